//! Statuses that still have to reach a manager: the newest of each task, until it is acknowledged.

use std::collections::BTreeMap;

use model::object::TaskStatus;
use model::{TaskId, Timestamp};

/// Most statuses of one message; one log entry stays below 1 MiB.
pub const BATCH_MAX: usize = 512;

/// The time of a status that follows `known`. A manager takes no status older than the one it has: where the wall clock
/// was set back, the time stands still.
pub fn status_time(wall: Timestamp, known: &TaskStatus) -> Timestamp {
    wall.max(known.at)
}

/// The newest status of each task that a manager does not have yet.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: BTreeMap<TaskId, TaskStatus>,
}

impl Outbox {
    /// Adds a status; an older one of the task is not worth telling any more.
    pub fn put(&mut self, task: TaskId, status: TaskStatus) {
        self.waiting.insert(task, status);
    }

    /// What to tell next.
    pub fn batch(&self) -> Vec<(TaskId, TaskStatus)> {
        self.waiting
            .iter()
            .take(BATCH_MAX)
            .map(|(id, s)| (*id, s.clone()))
            .collect()
    }

    /// A manager has these; those that changed meanwhile stay.
    pub fn acknowledge(&mut self, told: &[(TaskId, TaskStatus)]) {
        for (id, status) in told {
            if self.waiting.get(id) == Some(status) {
                self.waiting.remove(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_hides_no_status() {
        let known = TaskStatus::new(Timestamp(5_000));
        assert_eq!(status_time(Timestamp(0), &known), Timestamp(5_000));
        assert_eq!(status_time(Timestamp(6_000), &known), Timestamp(6_000));
    }
}
