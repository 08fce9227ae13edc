//! What the state of nodes means for tasks: which are lost, and where global services have theirs.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::object::{Availability, Node, NodeState, Service, SlotKey, Task};
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, ServiceId};

use crate::schedule::filter;
use crate::state::{Scratch, State};

/// Whether a task is given up with its node: the node is gone, or down for as long as the task asks for.
///
/// How long a node is silent stands in the log, measured by clocks that nobody sets: no wall clock decides here.
pub(crate) fn is_lost(state: &State, id: NodeId, task: &Task) -> bool {
    state.node(id).is_none_or(|n| {
        n.status.state == NodeState::Down && n.status.silent >= task.spec.on_disconnect.replace_after()
    })
}

/// Nodes on which a global service has a task: heard of, taking tasks, and fitting.
pub(crate) fn eligible(state: &State, service: &Service) -> Vec<NodeId> {
    state
        .nodes()
        .filter(|n| takes(n) && filter::suits(n, &service.spec.task))
        .map(|n| n.id)
        .collect()
}

/// Whether the task of a global service stays although the node takes no new ones.
pub(crate) fn keeps(state: &State, slot: SlotKey) -> bool {
    let SlotKey::Node(id) = slot else { return false };
    state
        .node(id)
        .is_some_and(|n| n.spec.availability == Availability::Pause || n.status.state == NodeState::Unknown)
}

fn takes(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Gives up tasks that are lost with a node; adds the services that have to look again, as others may have to leave it.
pub(crate) fn enforce_node(scratch: &mut Scratch, id: NodeId, services: &mut BTreeSet<ServiceId>) {
    let tasks: Vec<Arc<Task>> = scratch.tasks_of_node(id).cloned().collect();
    for task in tasks.iter().filter(|t| !t.status.state.is_terminal()) {
        services.insert(task.service);
        if is_lost(scratch, id, task) {
            scratch.edit_task(task.id, |t| {
                t.desired = t.desired.max(DesiredState::Shutdown);
                t.status.state = TaskState::Orphaned;
                t.status.error = "its node is down".into();
            });
        }
    }
    // A global service may gain or lose this node.
    let global: Vec<ServiceId> = scratch
        .services()
        .filter(|s| s.spec.mode.is_global())
        .map(|s| s.id)
        .collect();
    services.extend(global);
}
