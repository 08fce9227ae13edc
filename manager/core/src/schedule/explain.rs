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

/// One line, the filter that refused most nodes first, with what the task asks of it.
pub fn no_node(refused: &BTreeMap<Refused, usize>, task: &Task) -> String {
    if refused.is_empty() {
        return "no suitable node (the cluster has none)".into();
    }
    let mut counts: Vec<(Refused, usize)> = refused.iter().map(|(r, n)| (*r, *n)).collect();
    counts.sort_by_key(|(r, n)| (std::cmp::Reverse(*n), *r));
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(r, n)| {
            let (nodes, asked) = (if n == 1 { "node" } else { "nodes" }, asked(r, task));
            format!("{}{asked} on {n} {nodes}", words(r))
        })
        .collect();
    format!("no suitable node ({})", parts.join("; "))
}

fn words(refused: Refused) -> &'static str {
    match refused {
        Refused::NotReady => "not ready, paused or drained",
        Refused::Resources => "insufficient resources",
        Refused::Constraint => "scheduling constraints not satisfied",
        Refused::Platform => "unsupported platform",
        Refused::HostPort => "host-mode port already in use",
        Refused::MaxReplicas => "max replicas per node limit exceeded",
        Refused::CannotEncrypt => "cannot encrypt networks",
        Refused::Unheard => "not heard of since the leader changed",
    }
}

/// Longest list of what a task asks for.
const ASKED_MAX: usize = 200;

/// What the task asks of a filter, in brackets.
fn asked(refused: Refused, task: &Task) -> String {
    let reservations = &task.spec.resources.reservations;
    let placement = &task.spec.placement;
    let mut list: Vec<String> = Vec::new();
    match refused {
        Refused::NotReady | Refused::CannotEncrypt | Refused::Unheard => {}
        Refused::Resources => {
            if reservations.cpu.0 > 0 {
                list.push(format!("reserves {} CPUs", reservations.cpu));
            }
            if reservations.memory.0 > 0 {
                list.push(format!("reserves {}", reservations.memory));
            }
        }
        Refused::Constraint => list.clone_from(&placement.constraints),
        Refused::Platform => {
            list.extend(placement.platforms.iter().map(|p| format!("{}/{}", p.os, p.arch)));
        }
        Refused::HostPort => list.extend(task.host_ports.iter().map(|p| p.published.to_string())),
        Refused::MaxReplicas => list.push(placement.max_replicas_per_node.to_string()),
    }
    let text: String = list.join(", ").chars().take(ASKED_MAX).collect();
    if text.is_empty() {
        text
    } else {
        format!(" ({text})")
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
                    .map(|r| format!("{}{}", words(r), asked(r, task)))
                    .unwrap_or_default(),
            });
            ((**task).clone(), nodes.collect())
        })
        .collect()
}
