//! Once the leader has nothing to do, a node that is heard of has no task that may not be there, but for those that hand over: of
//! their service one waits for a node or is not ready yet, and no deadline has passed (I27, D18).

use std::collections::BTreeMap;
use std::sync::Arc;

use manager_core::State;
use model::object::{Availability, Node, NodeState, SlotKey, Task};
use model::spec::{ServiceMode, UpdateOrder};
use model::task_state::{DesiredState, TaskState};

pub(super) fn check(state: &State) -> Result<(), String> {
    for node in state.nodes().filter(|n| n.status.state == NodeState::Ready) {
        for task in state.tasks_of_node(node.id) {
            let stays = is_live(task) && super::must_leave(state, node.id, task);
            if stays && !hands_over(state, node, task) {
                let host = &node.description.hostname;
                return Err(format!(
                    "{} is wanted to run on {host}, where it may not be",
                    task.name()
                ));
            }
        }
    }
    Ok(())
}

fn is_live(task: &Task) -> bool {
    task.desired.is_live() && !task.status.state.is_terminal()
}

fn hands_over(state: &State, node: &Node, task: &Task) -> bool {
    let drain = node.spec.drain.unwrap_or_default();
    let may_wait = match node.spec.availability {
        Availability::Drain => {
            let over = drain.deadline_at.is_some_and(|at| at <= state.time());
            drain.order == UpdateOrder::StartFirst && !over
        }
        Availability::Active | Availability::Pause => true,
    };
    let Some(service) = state.service(task.service) else {
        return false;
    };
    let replicated = matches!(service.spec.mode, ServiceMode::Replicated { .. });
    let rolls = service.update.as_ref().is_some_and(|u| u.state.is_active());
    let serves = task.desired == DesiredState::Running && task.is_ready();
    may_wait && replicated && serves && (rolls || is_busy(state, task))
}

/// Whether a successor of a task of the service is not ready, or failed.
fn is_busy(state: &State, task: &Task) -> bool {
    let mut slots: BTreeMap<SlotKey, Vec<&Arc<Task>>> = BTreeMap::new();
    let tasks = state.tasks_of_service(task.service);
    for task in tasks.filter(|t| t.desired != DesiredState::Remove) {
        slots.entry(task.slot).or_default().push(task);
    }
    let failed = |t: &Task| {
        matches!(
            t.status.state,
            TaskState::Failed | TaskState::Rejected | TaskState::Complete
        )
    };
    slots.values().any(|tasks| {
        let live = tasks.iter().filter(|t| is_live(t)).count();
        let newest = tasks
            .iter()
            .max_by_key(|t| (t.meta.created_at, t.desired.is_live(), t.id));
        newest.is_some_and(|t| (live > 1 && !t.is_ready()) || (live > 0 && failed(t)))
    })
}
