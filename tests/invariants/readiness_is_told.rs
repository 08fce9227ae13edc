//! At rest a task that is ready has connections, and one that is not has none, on its host and in the state (I33).

use model::task_state::DesiredState;

use crate::sim::cluster::Cluster;

pub(super) fn check(cluster: &Cluster) -> Result<(), String> {
    for host in cluster.hosts.values() {
        for (id, local) in &host.tasks {
            let task = cluster.state.task(*id);
            let Some(task) = task.filter(|t| t.desired == DesiredState::Running) else {
                continue;
            };
            let Some((in_net, ready)) = local.serves(cluster.now) else {
                continue;
            };
            if in_net != ready || task.is_ready() != ready {
                return Err(format!(
                    "task {id}: it is ready: {ready}; its host sends it connections: {in_net}; the state says: {}",
                    task.is_ready()
                ));
            }
        }
    }
    Ok(())
}
