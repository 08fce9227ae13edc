//! Why a task has no node, in words.

use std::collections::BTreeMap;

use model::ServiceId;
use model::object::Task;
use model::task_state::TaskState;

use super::filter::{self, Refused};
use crate::state::State;

/// What one node says to one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReason {
    /// The node.
    pub node: model::NodeId,
    /// Its host name.
    pub hostname: String,
    /// Why it cannot take the task; empty: it can.
    pub reason: String,
}

/// One line, the filter that refused most nodes first.
pub fn no_node(refused: &BTreeMap<Refused, usize>) -> String {
    if refused.is_empty() {
        return "no suitable node (the cluster has none)".into();
    }
    let mut counts: Vec<(Refused, usize)> = refused.iter().map(|(r, n)| (*r, *n)).collect();
    counts.sort_by_key(|(r, n)| (std::cmp::Reverse(*n), *r));
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(r, n)| format!("{} {n} {}", words(r), if n == 1 { "node" } else { "nodes" }))
        .collect();
    format!("no suitable node ({})", parts.join("; "))
}

fn words(refused: Refused) -> &'static str {
    match refused {
        Refused::NotReady => "not ready, paused or drained:",
        Refused::Resources => "insufficient resources on",
        Refused::Constraint => "scheduling constraints not satisfied on",
        Refused::Platform => "unsupported platform on",
        Refused::HostPort => "host-mode port already in use on",
        Refused::MaxReplicas => "max replicas per node limit exceeded on",
    }
}

/// Every unplaced task of a service with what every node says to it.
pub fn service_why(state: &State, id: ServiceId) -> Vec<(Task, Vec<NodeReason>)> {
    state
        .tasks_of_service(id)
        .filter(|t| t.desired.is_live() && t.node.is_none() && t.status.state <= TaskState::Pending)
        .map(|task| {
            let nodes = state.nodes().map(|n| NodeReason {
                node: n.id,
                hostname: n.description.hostname.clone(),
                reason: filter::check(state, n, task)
                    .map(|r| words(r).trim_end_matches(" on").to_owned())
                    .unwrap_or_default(),
            });
            ((**task).clone(), nodes.collect())
        })
        .collect()
}
