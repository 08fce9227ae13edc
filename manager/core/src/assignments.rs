//! What a node may see: exactly its tasks, and of the rest only what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::assignment::{AssignmentDiff, AssignmentSet, Backend, ServiceEndpoints, ServiceNetwork};
use model::object::{Object, Service, Task};
use model::spec::PublishMode;
use model::task_state::TaskState;
use model::{NetworkId, NodeId};

use crate::state::State;
use crate::txn::Changes;

/// Everything a node may see.
pub fn for_node(state: &State, node: NodeId) -> AssignmentSet {
    let mut set = AssignmentSet::default();
    for task in state
        .tasks_of_node(node)
        .filter(|t| t.status.state >= TaskState::Assigned)
    {
        set.tasks.insert(task.id, task.clone());
        let unfinished = !task.status.state.is_terminal();
        if unfinished {
            for (network, _) in &task.addresses {
                if let Some(n) = state.network(*network) {
                    set.networks.insert(*network, n.clone());
                }
            }
        }
        if unfinished && task.desired.is_live() {
            for secret in &task.spec.container.secrets {
                if let Some(s) = state.secret(secret.id) {
                    set.secrets.insert(s.id, s.clone());
                }
            }
            for config in &task.spec.container.configs {
                if let Some(c) = state.config(config.id) {
                    set.configs.insert(c.id, c.clone());
                }
            }
        }
    }
    let near: BTreeSet<NetworkId> = set.networks.keys().copied().collect();
    for service in state.services().filter(|s| reaches(s, &near)) {
        set.services
            .insert(service.id, Arc::new(endpoints(state, service)));
    }
    set
}

/// Whether a node with tasks in `near` reaches a service: by a network, or by a port published everywhere.
fn reaches(service: &Service, near: &BTreeSet<NetworkId>) -> bool {
    service
        .spec
        .task
        .networks
        .iter()
        .any(|n| near.contains(&n.network))
        || service
            .endpoint
            .ports
            .iter()
            .any(|p| p.mode == PublishMode::Ingress)
}

/// How a service is reached.
pub fn endpoints(state: &State, service: &Service) -> ServiceEndpoints {
    let vips: BTreeMap<NetworkId, std::net::IpAddr> = service.endpoint.vips.iter().copied().collect();
    ServiceEndpoints {
        id: service.id,
        name: service.spec.name.clone(),
        mode: service.spec.endpoint.mode,
        networks: service
            .spec
            .task
            .networks
            .iter()
            .map(|n| ServiceNetwork {
                network: n.network,
                aliases: n.aliases.clone(),
                vip: vips.get(&n.network).copied(),
            })
            .collect(),
        ports: service
            .endpoint
            .ports
            .iter()
            .filter(|p| p.mode == PublishMode::Ingress)
            .cloned()
            .collect(),
        backends: state
            .tasks_of_service(service.id)
            .filter(|t| serves(t))
            .map(|t| backend(t))
            .collect(),
    }
}

/// Whether a task takes connections.
fn serves(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired == model::task_state::DesiredState::Running
}

fn backend(task: &Task) -> Backend {
    Backend {
        task: task.id,
        name: task.name(),
        addresses: task.addresses.clone(),
    }
}

/// What has to be told to a node that knows `old`.
pub fn diff(old: &AssignmentSet, new: &AssignmentSet) -> AssignmentDiff {
    fn changed<K: Ord + Copy, V: PartialEq + Clone>(
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> (BTreeMap<K, V>, Vec<K>) {
        let update = new
            .iter()
            .filter(|(k, v)| old.get(k) != Some(v))
            .map(|(k, v)| (*k, v.clone()))
            .collect();
        let removed = old.keys().filter(|k| !new.contains_key(k)).copied().collect();
        (update, removed)
    }
    let mut diff = AssignmentDiff::default();
    (diff.update.tasks, diff.remove_tasks) = changed(&old.tasks, &new.tasks);
    (diff.update.networks, diff.remove_networks) = changed(&old.networks, &new.networks);
    (diff.update.secrets, diff.remove_secrets) = changed(&old.secrets, &new.secrets);
    (diff.update.configs, diff.remove_configs) = changed(&old.configs, &new.configs);
    (diff.update.services, diff.remove_services) = changed(&old.services, &new.services);
    diff
}

/// Nodes whose view an entry may have changed. Everyone, when a service or network changed or a task began or ceased
/// to take connections; else only the nodes of the changed tasks.
pub fn nodes_affected(state: &State, changes: &Changes) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    for change in &changes.items {
        let tasks = || change.before.iter().chain(change.after.iter());
        let everyone = tasks().any(|o| match o {
            Object::Service(_) | Object::Network(_) | Object::Secret(_) | Object::Config(_) => true,
            Object::Task(t) => serves(t),
            Object::Cluster(_) | Object::Node(_) => false,
        });
        if everyone {
            return state.nodes().map(|n| n.id).collect();
        }
        for object in tasks() {
            if let Object::Task(t) = object {
                nodes.extend(t.node);
            }
        }
    }
    nodes
}
