//! At rest a host has the containers of its assignments, runs those that are to run, and knows all of it (I40).

use manager_core::assignments;
use model::task_state::DesiredState;

use crate::sim::cluster::Cluster;

pub(super) fn check(cluster: &Cluster) -> Result<(), String> {
    for (node, host) in &cluster.hosts {
        let whole = assignments::for_node(&cluster.state, *node);
        if host.known.as_ref().is_none_or(|(_, known)| *known != whole) {
            return Err(format!("node {} does not know what it is to do", node.0));
        }
        for task in whole.tasks.values() {
            let runs = task.desired == DesiredState::Running && !task.status.state.is_terminal();
            if runs != host.runs(task.id) {
                return Err(format!(
                    "node {}: {} runs: {}, wanted: {runs}",
                    node.0,
                    task.name(),
                    !runs
                ));
            }
        }
        if let Some(id) = host.tasks.keys().find(|id| !whole.tasks.contains_key(id)) {
            return Err(format!("node {} still has task {id}, which nobody knows", node.0));
        }
    }
    Ok(())
}
