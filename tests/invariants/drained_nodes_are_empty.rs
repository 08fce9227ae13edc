//! Once the leader has nothing to do, a drained node that is heard of has no task that is wanted to run (I27).

use manager_core::State;
use model::object::{Availability, NodeState};

pub(super) fn check(state: &State) -> Result<(), String> {
    let drained = state
        .nodes()
        .filter(|n| n.spec.availability == Availability::Drain && n.status.state == NodeState::Ready);
    for node in drained {
        if let Some(task) = state.tasks_of_node(node.id).find(|t| t.desired.is_live()) {
            let host = &node.description.hostname;
            return Err(format!(
                "{} is wanted to run on {host}, which is drained",
                task.name()
            ));
        }
    }
    Ok(())
}
