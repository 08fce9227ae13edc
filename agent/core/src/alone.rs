//! Restarts on a host that reaches no manager: what failed is started again in place, as its restart policy says.

use std::time::Duration;

use model::Timestamp;
use model::spec::{RestartCondition, RestartPolicy};
use model::task_state::DesiredState;

use crate::step::{LocalTask, Seen};

/// How long no manager was reached before a host restarts by itself: most elections are over long before, and then the
/// manager decides, which may choose another host.
pub const ALONE_AFTER: Duration = Duration::from_secs(10);
/// Shortest wait before such a restart, so that what fails at once does not take the whole host.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Restarts that are remembered.
const ATTEMPTS_MAX: usize = 100;

/// What a task needs for its restarts without a manager. Times are of the clock since the host's start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Alone {
    /// Its policy; absent: it is never restarted here.
    pub policy: Option<RestartPolicy>,
    /// When its container ended.
    pub ended_at: Option<Timestamp>,
    /// When it was restarted here, the newest last.
    pub attempts: Vec<Timestamp>,
    /// How many of those restarts, the newest, followed one another without one that helped.
    pub in_row: u32,
}

impl Alone {
    /// Remembers a restart.
    pub fn restarted(&mut self, now: Timestamp) {
        self.in_row = self.row().saturating_add(1);
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(now);
        self.ended_at = None;
    }

    /// Restarts in a row before the next one: none where the last one ran well, by the same rule as the manager's.
    fn row(&self) -> u32 {
        let reset_after = self
            .policy
            .as_ref()
            .map_or(RestartPolicy::RESET_AFTER, |p| p.reset_after);
        let ran = self
            .attempts
            .last()
            .zip(self.ended_at)
            .map(|(from, to)| to.since(*from));
        if ran.is_some_and(|ran| ran >= reset_after) {
            0
        } else {
            self.in_row
        }
    }

    /// Whether its policy allows another restart at `at`.
    fn allows(&self, policy: &RestartPolicy, at: Timestamp) -> bool {
        let counted = |attempt: &&Timestamp| policy.window.is_zero() || at.since(**attempt) < policy.window;
        let attempts = self.attempts.iter().filter(counted).count() as u64;
        policy.max_attempts == 0 || attempts < policy.max_attempts
    }
}

/// When a task that ended is to be restarted on this host, if no manager is reached before. None as long as a manager is
/// reached: then restarts are its decision.
pub fn restart_at(task: &LocalTask, now: Timestamp) -> Option<Timestamp> {
    let (policy, ended) = (task.alone.policy.as_ref()?, task.alone.ended_at?);
    let away = task.away_since?;
    let Seen::Ended { code, reason } = &task.seen else {
        return None;
    };
    if task.stopped_by_us || task.desired != Some(DesiredState::Running) || task.cut_off(now) {
        return None;
    }
    let failed = *code != Some(0) || reason.is_some();
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => failed,
        RestartCondition::None => false,
    };
    let wait = policy.wait(task.alone.row()).max(DELAY_MIN);
    let at = (ended + wait).max(away + ALONE_AFTER);
    (wanted && task.alone.allows(policy, at)).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::{Step, next_step};
    use model::spec::OnDisconnect;

    fn ended(code: i32) -> LocalTask {
        LocalTask {
            desired: Some(DesiredState::Running),
            seen: Seen::Ended {
                code: Some(code),
                reason: None,
            },
            in_net: false,
            served: false,
            readiness: crate::readiness::Readiness::default(),
            released: true,
            stopped_by_us: false,
            on_disconnect: OnDisconnect::Keep,
            away_since: Some(Timestamp(0)),
            overdue_since: None,
            killed_by: None,
            retry_at: None,
            drain: crate::drain::Drain::default(),
            alone: Alone {
                policy: Some(RestartPolicy::default()),
                ended_at: Some(Timestamp(1_000)),
                attempts: Vec::new(),
                in_row: 0,
            },
        }
    }

    fn with(edit: impl FnOnce(&mut LocalTask)) -> LocalTask {
        let mut task = ended(1);
        edit(&mut task);
        task
    }

    #[test]
    fn a_host_restarts_by_itself_only_when_it_is_alone_and_its_policy_says_so() {
        let ten = Some(Timestamp(10_000));
        let policy = |edit: fn(&mut RestartPolicy)| {
            with(|t| edit(t.alone.policy.as_mut().unwrap_or(&mut RestartPolicy::default())))
        };
        let rows = [
            ("alone for long enough", ended(1), ten),
            ("whatever its exit code", ended(0), ten),
            ("a manager is reached", with(|t| t.away_since = None), None),
            ("it was stopped", with(|t| t.stopped_by_us = true), None),
            (
                "it is not wanted",
                with(|t| t.desired = Some(DesiredState::Shutdown)),
                None,
            ),
            ("it still runs", with(|t| t.seen = Seen::Prepared), None),
            (
                "ended late, its delay counts",
                with(|t| t.alone.ended_at = Some(Timestamp(60_000))),
                Some(Timestamp(65_000)),
            ),
            ("never", policy(|p| p.condition = RestartCondition::None), None),
            (
                "on failure, it failed",
                policy(|p| p.condition = RestartCondition::OnFailure),
                ten,
            ),
            (
                "no attempts left",
                with(|t| {
                    t.alone.policy = Some(RestartPolicy {
                        max_attempts: 1,
                        ..RestartPolicy::default()
                    });
                    t.alone.restarted(Timestamp(5));
                    t.alone.ended_at = Some(Timestamp(1_000));
                }),
                None,
            ),
            (
                "an attempt outside the window",
                with(|t| {
                    t.alone.policy = Some(RestartPolicy {
                        max_attempts: 1,
                        window: Duration::from_secs(5),
                        ..RestartPolicy::default()
                    });
                    t.alone.restarted(Timestamp(5));
                    t.alone.ended_at = Some(Timestamp(1_000));
                }),
                ten,
            ),
            (
                "it may not run here any more",
                with(|t| t.on_disconnect = OnDisconnect::StopAfter(Duration::from_secs(1))),
                None,
            ),
        ];
        for (name, task, wanted) in rows {
            assert_eq!(restart_at(&task, Timestamp(5_000)), wanted, "{name}");
        }
        let clean = with(|t| {
            t.seen = Seen::Ended {
                code: Some(0),
                reason: None,
            };
            t.alone.policy = Some(RestartPolicy {
                condition: RestartCondition::OnFailure,
                ..RestartPolicy::default()
            });
        });
        assert_eq!(
            restart_at(&clean, Timestamp(5_000)),
            None,
            "on failure, it did not fail"
        );
    }

    #[test]
    fn it_waits_until_then_and_begins_anew() {
        let task = ended(1);
        assert_eq!(
            next_step(&task, Timestamp(9_999)),
            Step::Wait(Some(Timestamp(10_000)))
        );
        assert_eq!(next_step(&task, Timestamp(10_000)), Step::Restart);
        let mut unreleased = ended(1);
        unreleased.released = false;
        assert_eq!(next_step(&unreleased, Timestamp(10_000)), Step::Release);
    }

    #[test]
    fn waits_grow_until_it_ran_well() {
        let mut task = ended(1);
        task.alone.policy = Some(RestartPolicy {
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(6),
            ..RestartPolicy::default()
        });
        let mut now = Timestamp(100_000);
        // How long it runs each time, and how long its host waits then.
        for (ran, wait) in [(0, 1), (3, 2), (59, 4), (0, 6), (0, 6), (60, 1), (5, 2), (0, 4)] {
            let end = now + Duration::from_secs(ran);
            task.alone.ended_at = Some(end);
            let at = restart_at(&task, end).expect("it is restarted");
            assert_eq!(at.since(end), Duration::from_secs(wait), "after {ran} s");
            task.alone.restarted(at);
            now = at;
        }
    }

    #[test]
    fn a_limited_number_of_restarts_is_remembered() {
        let mut alone = Alone::default();
        (0..500).for_each(|n| alone.restarted(Timestamp(n)));
        assert_eq!(alone.attempts.len(), ATTEMPTS_MAX);
        assert_eq!(alone.attempts.last(), Some(&Timestamp(499)));
    }
}
