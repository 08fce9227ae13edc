//! Whether and when the next task of a slot may run, from the tasks the slot had.
//!
//! Everything is read from the tasks themselves, so a new leader counts as the old one did.

use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;
use model::object::{Service, Task, UpdateState};
use model::spec::RestartCondition;
use model::task_state::TaskState;

/// When a slot without a live task gets its next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Not under this spec.
    Never,
    /// At once: there was none, or the manager itself stopped the last one.
    Now,
    /// It is prepared now and runs not before this time.
    At(Timestamp),
    /// It is not even made before this time: the last one failed while it was being prepared.
    NotBefore(Timestamp),
}

/// Least time between two tries to prepare a task, whatever the restart delay: each writes to the log.
pub(crate) const PREPARE_PAUSE: Duration = Duration::from_secs(1);

/// Decides on the tasks of one slot, oldest first, none of them live.
pub fn restart_after(service: &Service, tasks: &[Arc<Task>]) -> Restart {
    let Some(last) = tasks.last() else {
        return Restart::Now;
    };
    if !ended_by_itself(last) {
        return Restart::Now;
    }
    let back = service
        .update
        .as_ref()
        .is_some_and(|u| u.state == UpdateState::RollbackStarted);
    if back && !service.is_current(last) {
        // The spec that failed is not tried again; the rollback gives this slot its task.
        return Restart::Never;
    }
    let policy = &last.spec.restart;
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => last.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !wanted {
        return Restart::Never;
    }
    if policy.max_attempts > 0 && restarts(tasks, last) >= policy.max_attempts {
        return Restart::Never;
    }
    let wait = wait_after(tasks, last);
    if last.status.state == TaskState::Rejected {
        return Restart::NotBefore(last.over_at() + wait.max(PREPARE_PAUSE));
    }
    Restart::At(last.over_at() + wait)
}

/// How long a slot waits after `last`: with back-off twice as long as the time before, unless one ran well since. What
/// the manager stopped neither helped nor failed.
pub(crate) fn wait_after(tasks: &[Arc<Task>], last: &Task) -> Duration {
    let place = tasks.iter().position(|t| t.id == last.id).unwrap_or_default();
    let mut in_row = 0;
    let mut well = ran_well(last);
    for task in tasks[..place]
        .iter()
        .rev()
        .filter(|t| t.spec_version == last.spec_version)
    {
        if well {
            break;
        }
        in_row += u32::from(ended_by_itself(task));
        well = ran_well(task);
    }
    last.spec.restart.wait(in_row)
}

/// Whether a task ran for so long that it was well.
pub(crate) fn ran_well(task: &Task) -> bool {
    (task.running_at).is_some_and(|from| task.over_at().since(from) >= task.spec.restart.reset_after)
}

/// Restarts of this slot under the spec of `last`, within the policy's window before it ended.
fn restarts(tasks: &[Arc<Task>], last: &Task) -> u64 {
    let window = last.spec.restart.window;
    let from = if window.is_zero() {
        Timestamp(0)
    } else {
        last.over_at() - window
    };
    let mut count = 0;
    for pair in tasks.windows(2) {
        let [before, after] = pair else { continue };
        let same = before.spec_version == last.spec_version && after.spec_version == last.spec_version;
        if same && ended_by_itself(before) && after.created_after(from) {
            count += 1;
        }
    }
    count
}

trait CreatedAfter {
    fn created_after(&self, from: Timestamp) -> bool;
}

impl CreatedAfter for Task {
    fn created_after(&self, from: Timestamp) -> bool {
        self.meta.created_at >= from
    }
}

/// Whether a task ended although it was wanted. What the manager stopped never counts as an attempt.
pub(crate) fn ended_by_itself(task: &Task) -> bool {
    matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    )
}

#[cfg(test)]
#[path = "restart_tests.rs"]
pub(crate) mod tests;
