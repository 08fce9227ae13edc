//! Each transition of a task is made by the one component that owns its state (I16, I19).

use model::object::{NodeState, Object};
use model::task_state::{Owner, TaskState};

use super::Seen;
use crate::sim::log::Source;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        let (was, is) = (before.status.state, after.status.state);
        if was == is {
            continue;
        }
        let by = match (was.owner(), is) {
            (_, TaskState::Orphaned) | (Owner::Allocator | Owner::Scheduler, _) => Source::Plan,
            (Owner::Agent, _) => Source::Agent,
            (Owner::Reaper, _) => return Err(format!("task {} left {was:?}", after.name())),
        };
        if seen.source != by {
            return Err(format!(
                "task {} went from {was:?} to {is:?} by {:?}",
                after.name(),
                seen.source
            ));
        }
    }
    // What a lost node still has is Orphaned and deleted in one entry.
    let lives = |n| {
        seen.after
            .node(n)
            .is_some_and(|n| n.status.state != NodeState::Down)
    };
    for change in &seen.changes.items {
        let made_or_gone = change.before.is_none() || change.after.is_none();
        let task = [&change.before, &change.after]
            .into_iter()
            .flatten()
            .find_map(|o| match o {
                Object::Task(t) => Some(t),
                _ => None,
            });
        let Some(task) = task.filter(|_| made_or_gone) else {
            continue;
        };
        let held = change.after.is_none() && task.node.is_some_and(lives) && !task.status.state.is_terminal();
        if seen.source != Source::Plan || held {
            return Err(format!(
                "task {} was made or deleted by {:?}, held: {held}",
                task.name(),
                seen.source
            ));
        }
    }
    Ok(())
}
