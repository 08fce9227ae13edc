//! Deleting tasks: those wanted no more, and history beyond its limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::object::{Cluster, Key, SlotKey, Task};
use model::task_state::{DesiredState, TaskState};
use model::{ServiceId, TaskId};

use crate::state::Scratch;

/// Finished tasks kept per slot when there is no cluster object yet.
const HISTORY_DEFAULT: i32 = 5;

/// Deletes finished tasks of a service that were to be removed, and the oldest of each slot beyond the limit.
pub(crate) fn history(scratch: &mut Scratch, id: ServiceId) {
    removed(scratch, id);
    let limit = scratch
        .cluster()
        .map_or(HISTORY_DEFAULT, |c| c.task_history_limit);
    let mut slots: BTreeMap<SlotKey, Vec<Arc<Task>>> = BTreeMap::new();
    for task in scratch
        .tasks_of_service(id)
        .filter(|t| t.status.state.is_terminal())
    {
        slots.entry(task.slot).or_default().push(task.clone());
    }
    for mut tasks in slots.into_values() {
        tasks.sort_by_key(|t| (t.meta.created_at, t.id));
        let keep = kept(limit, tasks.last().map_or(0, |t| t.spec.restart.max_attempts));
        for task in tasks.iter().take(tasks.len().saturating_sub(keep)) {
            scratch.delete(Key::Task(task.id));
        }
    }
}

/// How many finished tasks of a slot are kept: enough to count the attempts of its restart policy.
fn kept(limit: i32, max_attempts: u64) -> usize {
    let limit = usize::try_from(limit).unwrap_or(Cluster::HISTORY_MAX);
    let counted = usize::try_from(max_attempts)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    let wanted = if max_attempts > 0 {
        limit.max(counted)
    } else {
        limit
    };
    // The last one is always kept: without it a slot that may not restart would look like a new one.
    wanted.clamp(1, Cluster::HISTORY_MAX)
}

/// Deletes tasks that were to be removed and hold nothing any more.
pub(crate) fn removed(scratch: &mut Scratch, id: ServiceId) {
    let gone: Vec<TaskId> = scratch
        .tasks_of_service(id)
        .filter(|t| t.desired == DesiredState::Remove)
        .filter(|t| t.status.state.is_terminal() || t.node.is_none() || t.status.state < TaskState::Assigned)
        .map(|t| t.id)
        .collect();
    for task in gone {
        scratch.delete(Key::Task(task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_covers_the_attempts_and_has_a_bound() {
        for (limit, attempts, want) in [
            (5, 0, 5),
            (5, 3, 5),
            (5, 9, 10),
            (0, 0, 1),
            (-1, 0, 100),
            (5, 1_000_000, 100),
            (5, u64::MAX, 100),
        ] {
            assert_eq!(kept(limit, attempts), want, "limit {limit}, attempts {attempts}");
        }
    }
}
