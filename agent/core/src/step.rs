//! The next step of one task, and the state to report: total functions of what is wanted and what was seen.
//!
//! Every time here is of the clock that counts since the host's start, sleep included (CLOCK_BOOTTIME): nobody sets it.

use std::time::Duration;

use model::Timestamp;
use model::spec::OnDisconnect;
use model::task_state::{DesiredState, TaskState};

use crate::alone::{Alone, restart_at};
use crate::drain::{self, Drain};
use crate::health::Health;
use crate::readiness::Readiness;

/// How the container of a task stands on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// It is made, with its network, and can start at once.
    Prepared,
    /// Its process runs.
    Running(Health),
    /// It was asked to stop.
    Stopping,
    /// It ended by itself or was stopped.
    Ended {
        /// Exit code; absent: nobody saw it.
        code: Option<i32>,
        /// Why it counts as failed although it was not its own doing (unhealthy, memory).
        reason: Option<String>,
    },
    /// It could not be made or started.
    Failed {
        /// Why.
        error: String,
        /// It never ran.
        rejected: bool,
    },
}

/// A task of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalTask {
    /// What the manager wants; absent: it has forgotten the task.
    pub desired: Option<DesiredState>,
    /// How its container stands.
    pub seen: Seen,
    /// Whether connections are sent to it.
    pub in_net: bool,
    /// Whether they ever were, also before it was restarted in place: managers count it as running.
    pub served: bool,
    /// Whether it takes them, as its readiness check says.
    pub readiness: Readiness,
    /// Whether its network and writable files were given back.
    pub released: bool,
    /// It was stopped because it was not wanted any more, or because its host was cut off.
    pub stopped_by_us: bool,
    /// What becomes of it when its host is cut off.
    pub on_disconnect: OnDisconnect,
    /// The last contact with a manager, while there is no session; absent: there is one.
    pub away_since: Option<Timestamp>,
    /// The last contact before a time without one that was too long for it, found only afterwards.
    pub overdue_since: Option<Timestamp>,
    /// When the stop that was asked for kills it at the latest.
    pub killed_by: Option<Timestamp>,
    /// No step before this time: something is to be tried again.
    pub retry_at: Option<Timestamp>,
    /// How it is restarted while no manager is reached.
    pub alone: Alone,
    /// How far its clients have left it.
    pub drain: Drain,
}

impl LocalTask {
    /// Whether its host is cut off for so long that it must not run.
    pub fn cut_off(&self, now: Timestamp) -> bool {
        let away = self.away_since.map(|since| now.since(since));
        self.overdue_since.is_some() || away.is_some_and(|away| self.on_disconnect.stops(away))
    }

    /// A manager is reached at `now`, for the first time since `since`. A host that stood still meanwhile finds out only
    /// now for how long, and by now the task may have been replaced.
    pub fn reached(&mut self, since: Timestamp, now: Timestamp) {
        let runs = matches!(self.seen, Seen::Running(_) | Seen::Stopping);
        if runs && self.on_disconnect.stops(now.since(since)) {
            self.overdue_since = Some(since);
        }
    }

    /// Whether it is wanted to run, now or soon, and may.
    pub fn wanted(&self, now: Timestamp) -> bool {
        self.desired.is_some_and(DesiredState::is_live) && !self.cut_off(now)
    }

    /// Time between stop signal and kill, where its spec asks for `asked`.
    pub fn stop_grace(&self, asked: Duration, now: Timestamp) -> Duration {
        match self.overdue_since.or(self.away_since) {
            Some(since) if self.cut_off(now) => self.on_disconnect.grace(asked, now.since(since)),
            Some(_) | None => asked,
        }
    }

    /// When it will be cut off, if it is not yet and no manager is reached before.
    fn cut_off_at(&self, now: Timestamp) -> Option<Timestamp> {
        match self.on_disconnect {
            OnDisconnect::Keep => None,
            OnDisconnect::StopAfter(after) => {
                self.away_since.map(|since| since + after).filter(|at| *at > now)
            }
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make image, volumes, network and container ready.
    Prepare,
    /// Run it.
    Start,
    /// Send connections to it.
    AddEndpoint,
    /// Send it no more connections; those it has go on.
    DropEndpoint,
    /// Look whether it has connections.
    LookAtConnections,
    /// Ask it to stop, and kill it after its grace.
    Stop,
    /// Give back its network and files; its log stays.
    Release,
    /// Begin anew after it ended, as no manager is there to replace it.
    Restart,
    /// Remove everything of it.
    Forget,
    /// Nothing until something changes, or until the time.
    Wait(Option<Timestamp>),
}

/// Decides the next step.
pub fn next_step(task: &LocalTask, now: Timestamp) -> Step {
    let step = step_now(task, now);
    match (step, task.cut_off_at(now)) {
        (Step::Wait(None), Some(at)) => Step::Wait(Some(at)),
        (Step::Wait(Some(until)), Some(at)) => Step::Wait(Some(until.min(at))),
        (step, _) => step,
    }
}

fn step_now(task: &LocalTask, now: Timestamp) -> Step {
    if task.cut_off(now) {
        match task.seen {
            // Before it is out of the balancers: those of other hosts cannot be told anyway, and time is short.
            Seen::Running(_) => return Step::Stop,
            // An earlier stop has more grace than there is time.
            Seen::Stopping
                if task
                    .killed_by
                    .is_none_or(|at| at > now + task.stop_grace(Duration::MAX, now)) =>
            {
                return Step::Stop;
            }
            // It goes on when there is a manager again.
            Seen::Nothing | Seen::Prepared if task.desired.is_some_and(DesiredState::is_live) => {
                return Step::Wait(None);
            }
            Seen::Nothing | Seen::Prepared | Seen::Stopping | Seen::Ended { .. } | Seen::Failed { .. } => {}
        }
    }
    if let Some(at) = task.retry_at.filter(|at| *at > now) {
        return Step::Wait(Some(at));
    }
    let wanted = matches!(task.desired, Some(DesiredState::Ready | DesiredState::Running));
    match &task.seen {
        Seen::Nothing if wanted => Step::Prepare,
        Seen::Nothing => finished(task),
        Seen::Prepared => match task.desired {
            Some(DesiredState::Ready) => Step::Wait(None),
            Some(DesiredState::Running) => Step::Start,
            Some(DesiredState::Shutdown | DesiredState::Remove) | None => finished(task),
        },
        Seen::Running(health) => match (wanted, health, task.in_net) {
            // One that is not ready is left alone, without connections.
            (true, Health::Healthy, true) if !task.readiness.is_ready(now) => Step::DropEndpoint,
            (true, Health::Healthy, false) => match task.readiness.ready_at() {
                Some(at) if at <= now => Step::AddEndpoint,
                later => Step::Wait(later),
            },
            (true, Health::Healthy, true) | (true, Health::Starting, _) => Step::Wait(None),
            // Out of the balancers first, whatever the reason, so that no connection meets a dying process.
            (true, Health::Unhealthy, true) | (false, _, true) => Step::DropEndpoint,
            (true, Health::Unhealthy, false) => Step::Stop,
            (false, _, false) => match task.drain.next(now) {
                drain::Next::Wait(until) => Step::Wait(Some(until)),
                drain::Next::Look => Step::LookAtConnections,
                drain::Next::Over => Step::Stop,
            },
        },
        Seen::Stopping => Step::Wait(None),
        Seen::Ended { .. } | Seen::Failed { .. } => {
            if task.in_net {
                return Step::DropEndpoint;
            }
            match (finished(task), restart_at(task, now)) {
                (Step::Wait(None), Some(at)) if at > now => Step::Wait(Some(at)),
                (Step::Wait(None), Some(_)) => Step::Restart,
                (step, _) => step,
            }
        }
    }
}

/// What is left to do once nothing runs.
fn finished(task: &LocalTask) -> Step {
    if task.desired.is_none() {
        Step::Forget
    } else if task.released {
        Step::Wait(None)
    } else {
        Step::Release
    }
}

/// The state a manager is told.
pub fn state_of(task: &LocalTask) -> TaskState {
    let wanted = matches!(task.desired, Some(DesiredState::Ready | DesiredState::Running));
    match &task.seen {
        Seen::Nothing if wanted => TaskState::Preparing,
        Seen::Nothing if task.released => TaskState::Shutdown,
        Seen::Nothing => TaskState::Accepted,
        // What may still hold an address has not ended: addresses are given again once a task is over.
        Seen::Prepared if !wanted && task.released => TaskState::Shutdown,
        Seen::Prepared => TaskState::Ready,
        // One that ceased to be ready is not less far than it was.
        Seen::Running(_) | Seen::Stopping if task.in_net || task.served => TaskState::Running,
        Seen::Running(_) | Seen::Stopping => TaskState::Starting,
        // One that could never start must not look ready: its predecessor would be stopped for it (trap D1).
        Seen::Failed { rejected: true, .. } if !task.released => TaskState::Preparing,
        Seen::Ended { .. } | Seen::Failed { .. } if !task.released => TaskState::Starting,
        Seen::Ended { .. } if task.stopped_by_us => TaskState::Shutdown,
        Seen::Ended {
            code: Some(0),
            reason: None,
        } => TaskState::Complete,
        Seen::Ended { .. } => TaskState::Failed,
        Seen::Failed { rejected: true, .. } => TaskState::Rejected,
        Seen::Failed { .. } => TaskState::Failed,
    }
}

/// Whether a manager is told that a task which runs takes no connections for now.
pub fn is_unready(task: &LocalTask, now: Timestamp) -> bool {
    state_of(task) == TaskState::Running && !task.readiness.is_ready(now)
}

/// Whether what a task wrote is kept until it is forgotten, although it is over: of one that failed, for whoever looks
/// for the reason (`cp` reaches it). Of others nobody needs it, and disks are finite.
pub fn keeps_files(task: &LocalTask) -> bool {
    let over = LocalTask {
        released: true,
        ..task.clone()
    };
    matches!(over.seen, Seen::Ended { .. }) && state_of(&over) == TaskState::Failed
}

/// How long a temporary failure waits before it is tried again.
pub const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn task(desired: Option<DesiredState>, seen: Seen, in_net: bool, released: bool) -> LocalTask {
        LocalTask {
            desired,
            seen,
            in_net,
            served: in_net,
            readiness: Readiness::default(),
            released,
            stopped_by_us: false,
            on_disconnect: OnDisconnect::Keep,
            away_since: None,
            overdue_since: None,
            killed_by: None,
            retry_at: None,
            alone: Alone::default(),
            drain: Drain::default(),
        }
    }

    #[test]
    fn a_task_that_may_not_outlive_its_manager_is_stopped_in_time() {
        let s = Duration::from_secs;
        let away = |seen, seconds: u64| {
            LocalTask {
                on_disconnect: OnDisconnect::StopAfter(s(20)),
                away_since: Some(Timestamp(1_000)),
                ..task(Some(DesiredState::Running), seen, true, false)
            }
            .at(Timestamp(1_000) + s(seconds))
        };
        let running = || Seen::Running(Health::Healthy);
        for (name, (task, now), want) in [
            ("not yet", away(running(), 0), Step::Wait(Some(Timestamp(21_000)))),
            (
                "a moment before",
                away(running(), 19),
                Step::Wait(Some(Timestamp(21_000))),
            ),
            (
                "now, before the balancers are told",
                away(running(), 20),
                Step::Stop,
            ),
            ("nothing is begun", away(Seen::Nothing, 20), Step::Wait(None)),
            ("nor started", away(Seen::Prepared, 20), Step::Wait(None)),
            ("before, it is", away(Seen::Prepared, 19), Step::Start),
            (
                "a stop with more grace than time is hurried",
                away(Seen::Stopping, 20),
                Step::Stop,
            ),
        ] {
            assert_eq!(next_step(&task, now), want, "{name}");
        }
        // 1.05 * 20 s + 1 s after the last contact it is dead; nothing is hurried twice.
        let (mut stopping, now) = away(Seen::Stopping, 20);
        assert_eq!(stopping.stop_grace(s(300), now), s(2));
        stopping.killed_by = Some(now + s(2));
        assert_eq!(next_step(&stopping, now), Step::Wait(None));
        // One that is kept is left alone.
        let (mut kept, now) = away(running(), 10_000);
        kept.on_disconnect = OnDisconnect::Keep;
        assert_eq!(next_step(&kept, now), Step::Wait(None));
        // With a manager again it goes on.
        let (mut back, now) = away(running(), 10_000);
        back.away_since = None;
        assert_eq!(next_step(&back, now), Step::Wait(None));
        // A host that stood still and finds a manager at once kills at once; what had not begun may begin.
        let (mut late, now) = away(running(), 90);
        let (mut waiting, _) = away(Seen::Prepared, 90);
        for task in [&mut late, &mut waiting] {
            task.away_since = None;
            task.reached(Timestamp(1_000), now);
        }
        assert_eq!(
            (next_step(&late, now), late.stop_grace(s(10), now)),
            (Step::Stop, Duration::ZERO)
        );
        assert_eq!(next_step(&waiting, now), Step::Start);
        // A failed step that would be tried again later delays no stop.
        let (mut failing, now) = away(running(), 20);
        failing.retry_at = Some(now + RETRY);
        assert_eq!(next_step(&failing, now), Step::Stop);
    }

    impl LocalTask {
        fn at(self, now: Timestamp) -> (Self, Timestamp) {
            (self, now)
        }
    }

    #[test]
    fn every_pair_has_its_step() {
        use DesiredState::{Ready, Remove, Running, Shutdown};
        let ended = Seen::Ended {
            code: Some(1),
            reason: None,
        };
        let failed = Seen::Failed {
            error: "x".into(),
            rejected: true,
        };
        let rows = [
            (
                "a new task is prepared",
                Some(Ready),
                Seen::Nothing,
                false,
                false,
                Step::Prepare,
            ),
            (
                "also when it may run at once",
                Some(Running),
                Seen::Nothing,
                false,
                false,
                Step::Prepare,
            ),
            (
                "one that is prepared waits for its turn",
                Some(Ready),
                Seen::Prepared,
                false,
                false,
                Step::Wait(None),
            ),
            (
                "and then starts",
                Some(Running),
                Seen::Prepared,
                false,
                false,
                Step::Start,
            ),
            (
                "it gets no connection while starting",
                Some(Running),
                Seen::Running(Health::Starting),
                false,
                false,
                Step::Wait(None),
            ),
            (
                "it does once healthy",
                Some(Running),
                Seen::Running(Health::Healthy),
                false,
                false,
                Step::AddEndpoint,
            ),
            (
                "then it runs",
                Some(Running),
                Seen::Running(Health::Healthy),
                true,
                false,
                Step::Wait(None),
            ),
            (
                "an unhealthy one is taken out first",
                Some(Running),
                Seen::Running(Health::Unhealthy),
                true,
                false,
                Step::DropEndpoint,
            ),
            (
                "then stopped",
                Some(Running),
                Seen::Running(Health::Unhealthy),
                false,
                false,
                Step::Stop,
            ),
            (
                "one not wanted is taken out first",
                Some(Shutdown),
                Seen::Running(Health::Healthy),
                true,
                false,
                Step::DropEndpoint,
            ),
            (
                "then stopped too",
                Some(Remove),
                Seen::Running(Health::Healthy),
                false,
                false,
                Step::Stop,
            ),
            (
                "a forgotten one as well",
                None,
                Seen::Running(Health::Starting),
                false,
                false,
                Step::Stop,
            ),
            (
                "stopping takes its time",
                Some(Shutdown),
                Seen::Stopping,
                false,
                false,
                Step::Wait(None),
            ),
            (
                "one that crashed is taken out",
                Some(Running),
                ended.clone(),
                true,
                false,
                Step::DropEndpoint,
            ),
            (
                "and gives back what it held",
                Some(Running),
                ended.clone(),
                false,
                false,
                Step::Release,
            ),
            (
                "its log stays until it is forgotten",
                Some(Shutdown),
                ended.clone(),
                false,
                true,
                Step::Wait(None),
            ),
            ("then all of it goes", None, ended, false, true, Step::Forget),
            (
                "one that could not start too",
                Some(Running),
                failed,
                false,
                false,
                Step::Release,
            ),
            (
                "one prepared in vain gives back",
                Some(Shutdown),
                Seen::Prepared,
                false,
                false,
                Step::Release,
            ),
            (
                "one never begun as well",
                Some(Shutdown),
                Seen::Nothing,
                false,
                false,
                Step::Release,
            ),
        ];
        for (name, desired, seen, in_net, released, want) in rows {
            assert_eq!(
                next_step(&task(desired, seen, in_net, released), NOW),
                want,
                "{name}"
            );
        }
        let mut later = task(Some(Ready), Seen::Nothing, false, false);
        later.retry_at = Some(Timestamp(2_000));
        assert_eq!(next_step(&later, NOW), Step::Wait(Some(Timestamp(2_000))));
        assert_eq!(next_step(&later, Timestamp(2_000)), Step::Prepare);
    }

    #[test]
    fn only_a_failed_task_keeps_its_files() {
        let ended = |code, reason: Option<&str>| Seen::Ended {
            code,
            reason: reason.map(str::to_owned),
        };
        let refused = Seen::Failed {
            error: "no".into(),
            rejected: true,
        };
        for (name, seen, stopped, want) in [
            ("it ended badly", ended(Some(3), None), false, true),
            ("nobody saw how it ended", ended(None, None), false, true),
            (
                "it became unhealthy",
                ended(Some(0), Some("unhealthy")),
                false,
                true,
            ),
            ("it ended well", ended(Some(0), None), false, false),
            ("it was stopped", ended(Some(137), None), true, false),
            ("it never ran", refused, false, false),
        ] {
            let mut task = task(Some(DesiredState::Running), seen, false, false);
            task.stopped_by_us = stopped;
            assert_eq!(keeps_files(&task), want, "{name}");
        }
    }

    #[test]
    fn a_task_is_over_only_when_it_holds_nothing() {
        let desired = Some(DesiredState::Running);
        let ended = |code, reason: Option<&str>| Seen::Ended {
            code,
            reason: reason.map(str::to_owned),
        };
        for (name, seen, in_net, released, stopped, want) in [
            (
                "healthy but unreachable is not running",
                Seen::Running(Health::Healthy),
                false,
                false,
                false,
                TaskState::Starting,
            ),
            (
                "reachable is running",
                Seen::Running(Health::Healthy),
                true,
                false,
                false,
                TaskState::Running,
            ),
            (
                "ended but holding its address",
                ended(Some(0), None),
                false,
                false,
                false,
                TaskState::Starting,
            ),
            (
                "ended well",
                ended(Some(0), None),
                false,
                true,
                false,
                TaskState::Complete,
            ),
            (
                "ended badly",
                ended(Some(3), None),
                false,
                true,
                false,
                TaskState::Failed,
            ),
            (
                "ended unseen",
                ended(None, None),
                false,
                true,
                false,
                TaskState::Failed,
            ),
            (
                "ended well but unhealthy",
                ended(Some(0), Some("unhealthy")),
                false,
                true,
                false,
                TaskState::Failed,
            ),
            (
                "could not be prepared, still holding its network",
                Seen::Failed {
                    error: "no image".into(),
                    rejected: true,
                },
                false,
                false,
                false,
                TaskState::Preparing,
            ),
            (
                "could not be prepared",
                Seen::Failed {
                    error: "no image".into(),
                    rejected: true,
                },
                false,
                true,
                false,
                TaskState::Rejected,
            ),
            (
                "stopped by us",
                ended(Some(137), None),
                false,
                true,
                true,
                TaskState::Shutdown,
            ),
        ] {
            let mut t = task(desired, seen, in_net, released);
            t.stopped_by_us = stopped;
            assert_eq!(state_of(&t), want, "{name}");
        }
    }
    #[test]
    fn a_task_that_is_not_ready_runs_without_connections() {
        use DesiredState::{Running, Shutdown};
        let s = |at: u64| Timestamp(at * 1_000);
        let ready = |verdicts: &[bool]| {
            let mut readiness = Readiness::unproven();
            let mut at = 0;
            for passes in verdicts {
                at += 1;
                readiness.observe(*passes, Timestamp(at));
            }
            readiness
        };
        // Ready six times, and lost each time: it comes back a second after the last.
        let flapped = [true, false].repeat(6);
        let flapped = [&flapped[..], &[true]].concat();
        let healthy = Seen::Running(Health::Healthy);
        let rows = [
            (
                "not yet",
                &[][..],
                healthy.clone(),
                (false, false),
                Step::Wait(None),
                false,
            ),
            (
                "asked in vain",
                &[false],
                healthy.clone(),
                (false, false),
                Step::Wait(None),
                false,
            ),
            (
                "for the first time",
                &[true],
                healthy.clone(),
                (false, false),
                Step::AddEndpoint,
                false,
            ),
            (
                "not before it is healthy",
                &[true],
                Seen::Running(Health::Starting),
                (false, false),
                Step::Wait(None),
                false,
            ),
            (
                "it serves",
                &[true],
                healthy.clone(),
                (true, true),
                Step::Wait(None),
                false,
            ),
            (
                "no longer",
                &[true, false],
                healthy.clone(),
                (true, true),
                Step::DropEndpoint,
                true,
            ),
            (
                "it is left alone",
                &[true, false],
                healthy.clone(),
                (false, true),
                Step::Wait(None),
                true,
            ),
            (
                "it is back",
                &[true, false, true],
                healthy.clone(),
                (false, true),
                Step::AddEndpoint,
                false,
            ),
            (
                "too often",
                &flapped,
                healthy.clone(),
                (false, true),
                Step::Wait(Some(Timestamp(1_012))),
                true,
            ),
            (
                "unhealthy beside that",
                &[true, false],
                Seen::Running(Health::Unhealthy),
                (false, true),
                Step::Stop,
                true,
            ),
            (
                "it is stopped as it is",
                &[true, false],
                Seen::Stopping,
                (false, true),
                Step::Wait(None),
                true,
            ),
        ];
        for (name, verdicts, seen, (in_net, served), want, unready) in rows {
            let mut t = task(Some(Running), seen, in_net, false);
            t.served = served;
            t.readiness = ready(verdicts);
            assert_eq!(next_step(&t, NOW), want, "{name}");
            assert_eq!(is_unready(&t, NOW), unready, "{name}");
            let runs = if served {
                TaskState::Running
            } else {
                TaskState::Starting
            };
            assert_eq!(state_of(&t), runs, "{name}");
            assert_eq!(t.away_since, None, "nothing of it needs a manager");
        }
        let mut late = task(Some(Running), healthy.clone(), false, false);
        late.served = true;
        late.readiness = ready(&flapped);
        assert_eq!(next_step(&late, s(2)), Step::AddEndpoint, "in the end");
        // One that is to stop is stopped, ready or not.
        let mut unwanted = task(Some(Shutdown), healthy, false, false);
        unwanted.readiness = ready(&[true, false]);
        assert_eq!(next_step(&unwanted, NOW), Step::Stop);
    }
}
