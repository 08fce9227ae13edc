//! A task is asked to stop only when no node sends it connections any more, or when it has waited long enough.

use agent_core::drain::LIMIT;
use model::object::NodeState;
use model::{NodeId, Timestamp};

use crate::sim::cluster::Cluster;
use crate::sim::host::{Host, Local};

pub(super) fn check(cluster: &Cluster) -> Result<(), String> {
    for (node, host) in &cluster.hosts {
        for (id, local) in &host.tasks {
            let Some(since) = local.left_since(cluster.now) else {
                continue;
            };
            let others = cluster.hosts.iter().filter(|(other, _)| *other != node);
            let sends = |(other, host): &(&NodeId, &Host)| {
                knew(cluster, **other, host, since) && is_behind(host, local, *id)
            };
            if let Some((other, _)) = others.filter(|_| cluster.now < since + LIMIT).find(sends) {
                return Err(format!(
                    "task {id} on node {} was asked to stop while node {} still sent it connections",
                    node.0, other.0
                ));
            }
        }
    }
    Ok(())
}

/// Whether a node was there to be told since a task was to stop.
fn knew(cluster: &Cluster, node: NodeId, host: &Host, since: Timestamp) -> bool {
    let ready = (cluster.state.node(node)).is_some_and(|n| n.status.state == NodeState::Ready);
    ready && host.session.as_ref().is_some_and(|s| s.since < since)
}

fn is_behind(host: &Host, local: &Local, id: model::TaskId) -> bool {
    let view = host
        .known
        .as_ref()
        .and_then(|(_, set)| set.services.get(&local.slot.0));
    view.is_some_and(|view| view.backends.iter().any(|b| b.task == id))
}
