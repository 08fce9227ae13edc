//! Between the last new connection of a task and the signal that asks it to end.
//!
//! First it waits until no other host sends it connections any more, as the manager says; then until its clients have
//! closed those they have. Both within one bound: a client that stays does not keep a task from being stopped, and a
//! manager that says nothing does not either.

use std::time::Duration;

use model::Timestamp;
use model::object::Task;
use model::task_state::TaskState;

/// The bound of both; a task with less time to stop waits no longer than that time.
pub const LIMIT: Duration = Duration::from_secs(2);
/// How often its connections are looked at: most last milliseconds.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drain {
    /// Other hosts may still send it connections.
    pub held: bool,
    /// When this host ceased to.
    pub since: Option<Timestamp>,
    /// When its connections were last looked at, and whether there were any.
    pub looked: Option<(Timestamp, bool)>,
    /// The time it has to stop.
    pub grace: Duration,
}

/// Whether a task was sent connections until it was to stop, as far as an agent that has just started knows.
pub fn served(task: &Task) -> bool {
    task.status.state == TaskState::Running && !task.desired.is_live()
}

/// The time a task has for both: none where the managers have replaced it already, as two of it must not run for longer
/// than they have to.
pub fn grace(task: &Task) -> Duration {
    if task.status.state.is_terminal() {
        return Duration::ZERO;
    }
    task.spec.container.stop_grace_or_default()
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing before this time.
    Wait(Timestamp),
    /// Look at its connections.
    Look,
    /// It may be asked to end.
    Over,
}

impl Drain {
    /// Decides.
    pub fn next(&self, now: Timestamp) -> Next {
        let Some(since) = self.since else {
            // It never had any.
            return Next::Over;
        };
        let end = since + LIMIT.min(self.grace);
        if now >= end {
            return Next::Over;
        }
        if self.held {
            return Next::Wait(end);
        }
        match self.looked {
            Some((_, false)) => Next::Over,
            Some((at, true)) if now < at + LOOK_EVERY => Next::Wait(end.min(at + LOOK_EVERY)),
            Some((_, true)) | None => Next::Look,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_stopped_once_its_clients_are_gone_or_its_time_is_over() {
        let at = |ms: u64| Timestamp(1_000 + ms);
        let drain = |held, looked: Option<(u64, bool)>| Drain {
            held,
            since: Some(at(0)),
            looked: looked.map(|(ms, any)| (at(ms), any)),
            grace: Duration::from_secs(10),
        };
        for (name, drain, now, want) in [
            ("it never served", Drain::default(), 0, Next::Over),
            (
                "others may send to it",
                drain(true, None),
                10,
                Next::Wait(at(2_000)),
            ),
            ("nobody sends to it", drain(false, None), 10, Next::Look),
            (
                "it has clients",
                drain(false, Some((10, true))),
                10,
                Next::Wait(at(60)),
            ),
            (
                "they are looked at again",
                drain(false, Some((10, true))),
                60,
                Next::Look,
            ),
            (
                "not after its time",
                drain(false, Some((1_990, true))),
                1_990,
                Next::Wait(at(2_000)),
            ),
            ("it has none", drain(false, Some((10, false))), 10, Next::Over),
            ("they stay", drain(false, Some((1_990, true))), 2_000, Next::Over),
            ("nobody says more", drain(true, None), 2_000, Next::Over),
            (
                "it has to stop at once",
                Drain {
                    grace: Duration::ZERO,
                    ..drain(true, None)
                },
                0,
                Next::Over,
            ),
        ] {
            assert_eq!(drain.next(at(now)), want, "{name}");
        }
    }
}
