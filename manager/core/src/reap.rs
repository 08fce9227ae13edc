//! Deleting tasks: those wanted no more, and history beyond its limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::object::{Cluster, Key, SlotKey, Task};
use model::spec::RestartPolicy;
use model::task_state::{DesiredState, TaskState};
use model::{ServiceId, TaskId};

use crate::orchestrate::{ended_by_itself, ran_well};
use crate::state::Scratch;

/// Finished tasks kept per slot when there is no cluster object yet.
const HISTORY_DEFAULT: i32 = 5;

/// Deletes finished tasks of a service that were to be removed, and the oldest of each slot beyond the limit.
pub(crate) fn history(scratch: &mut Scratch, id: ServiceId) {
    removed(scratch, id);
    let limit = scratch
        .cluster()
        .map_or(HISTORY_DEFAULT, |c| c.task_history_limit);
    // A run that is under way counts on its own tasks; those of runs that ended are the history of their slot.
    let open: Vec<u64> = (scratch.service(id))
        .and_then(|s| Some(s.job.as_ref()?.open(&s.spec)))
        .unwrap_or_default();
    let mut slots: BTreeMap<(SlotKey, Option<u64>), Vec<Arc<Task>>> = BTreeMap::new();
    for task in scratch
        .tasks_of_service(id)
        .filter(|t| t.status.state.is_terminal())
    {
        let run = open.contains(&task.iteration).then_some(task.iteration);
        slots.entry((task.slot, run)).or_default().push(task.clone());
    }
    let rolled = (scratch.service(id))
        .filter(|s| s.is_between_specs())
        .map(|s| s.spec_version);
    for ((_, run), mut tasks) in slots {
        tasks.sort_by_key(|t| (t.meta.created_at, t.id));
        let Some(last) = tasks.pop() else { continue };
        let counted = counted(&last.spec.restart);
        let mut more = kept(limit, counted) - 1;
        // That a slot of a run completed is known by the task that did, and since when a rollout tries a slot by the first.
        let needed = |t: &Task| {
            (run.is_some() && t.status.state == TaskState::Complete) || rolled == Some(t.spec_version)
        };
        if let Some(at) = tasks
            .iter()
            .position(|t| needed(t))
            .filter(|_| run.is_some() || more > 0)
        {
            tasks.remove(at);
            more = more.saturating_sub(1);
        }
        if counted > 0 {
            // What the manager stopped is counted by no policy, so it goes first, but for the last that ran well.
            let grows = last.spec.restart.backs_off();
            let well = (tasks.iter().rev().find(|t| grows && ran_well(t))).map(|t| t.id);
            tasks.sort_by_key(|t| ended_by_itself(t) || well == Some(t.id));
        }
        for task in tasks.iter().take(tasks.len().saturating_sub(more)) {
            scratch.delete(Key::Task(task.id));
        }
    }
}

/// How many restarts of a slot its policy looks back on: attempts, and those in a row as long as waits grow.
fn counted(policy: &RestartPolicy) -> usize {
    let attempts = usize::try_from(policy.max_attempts).unwrap_or(usize::MAX);
    let steps = policy.steps() as usize;
    // One that ran well may stand between the attempts.
    let between = usize::from(attempts > 0 && steps > 0);
    attempts.max(steps).saturating_add(between)
}

/// How many finished tasks of a slot are kept: enough to count so many restarts.
fn kept(limit: i32, counted: usize) -> usize {
    let limit = usize::try_from(limit).unwrap_or(Cluster::HISTORY_MAX);
    let wanted = match counted {
        0 => limit,
        counted => limit.max(counted.saturating_add(1)),
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
            (5, usize::MAX, 100),
        ] {
            assert_eq!(kept(limit, attempts), want, "limit {limit}, attempts {attempts}");
        }
    }
}
