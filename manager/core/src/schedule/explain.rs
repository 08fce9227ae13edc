//! Why a task has no node, in words.

use std::collections::BTreeMap;

use model::object::{Availability, Node, NodeState, SlotKey, Task};
use model::task_state::TaskState;
use model::{Bytes, NanoCpus, ServiceId, TaskId};

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
            let (nodes, asked) = (if n == 1 { "node" } else { "nodes" }, asked_of(r, task));
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
        Refused::Generic => "insufficient generic resources",
        Refused::Affinity => "affinity not satisfied",
        Refused::Kept => "kept for tasks of higher priority",
        Refused::Unheard => "not heard of since the leader changed",
    }
}

/// Longest list of what a task asks for.
const ASKED_MAX: usize = 200;

/// What the task asks of a filter, in brackets.
fn asked_of(refused: Refused, task: &Task) -> String {
    let reservations = &task.spec.resources.reservations;
    let placement = &task.spec.placement;
    let mut list: Vec<String> = Vec::new();
    match refused {
        Refused::NotReady | Refused::CannotEncrypt | Refused::Kept | Refused::Unheard => {}
        Refused::Generic => list.extend(reservations.generic.iter().map(|(kind, n)| format!("{kind}={n}"))),
        Refused::Affinity => list.clone_from(&placement.affinity),
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

/// Why one node refuses a task: what is asked of it, and what of it is in the way.
fn reason(state: &State, node: &Node, refused: Refused, task: &Task) -> String {
    let asked = || format!("{}{}", words(refused), asked_of(refused, task));
    match refused {
        Refused::NotReady => {
            let is = match (node.status.state, node.spec.availability) {
                (NodeState::Down, _) => "down",
                (NodeState::Unknown, _) => "not heard of yet",
                (NodeState::Ready, Availability::Drain) => "drained",
                (NodeState::Ready, Availability::Pause) => "paused",
                (NodeState::Ready, Availability::Active) => return asked(),
            };
            format!("it is {is}")
        }
        Refused::Resources => {
            let (used, wanted) = (state.usage(node.id), &task.spec.resources.reservations);
            let (cpus, memory) = (node.description.cpus, node.description.memory);
            let mut free = Vec::new();
            if wanted.cpu.0 > 0 {
                let left = NanoCpus(cpus.0.saturating_sub(used.cpu.0));
                free.push(format!("{left} of {cpus} CPUs"));
            }
            if wanted.memory.0 > 0 {
                let left = Bytes(memory.0.saturating_sub(used.memory.0));
                free.push(format!("{left} of {memory}"));
            }
            format!("{}: it has {} free", asked(), free.join(" and "))
        }
        Refused::HostPort => {
            let holds = filter::holds_port(state, node, task);
            holds.map_or_else(asked, |holder| format!("{}: {} has it", asked(), holder.name()))
        }
        Refused::Constraint
        | Refused::Platform
        | Refused::MaxReplicas
        | Refused::CannotEncrypt
        | Refused::Generic
        | Refused::Affinity
        | Refused::Kept
        | Refused::Unheard => asked(),
    }
}

/// Tasks of which it is said why they have no node; of more, it is the same again.
pub const TASKS_MAX: usize = 5;

/// What every node says to the first tasks of a service that have no node, and how many have none. Where all have one: what they
/// would say to one more.
pub fn service_why(state: &State, id: ServiceId) -> (Vec<(Task, Vec<NodeReason>)>, usize) {
    let live = |t: &&std::sync::Arc<Task>| t.desired.is_live() && !t.status.state.is_terminal();
    let tasks = || state.tasks_of_service(id).filter(live);
    let waits = |t: &Task| t.node.is_none() && t.status.state <= TaskState::Pending;
    let waiting: Vec<Task> = tasks().filter(|t| waits(t)).map(|t| (**t).clone()).collect();
    let count = waiting.len();
    let asked: Vec<Task> = if waiting.is_empty() {
        tasks().next().map(|t| one_more(t)).into_iter().collect()
    } else {
        waiting.into_iter().take(TASKS_MAX).collect()
    };
    let said = asked.into_iter().map(|task| {
        let asked = filter::Asked::of(state, &task);
        let nodes = state.nodes().map(|n| NodeReason {
            node: n.id,
            hostname: n.description.hostname.clone(),
            reason: filter::check_by(state, n, &task, &asked)
                .map(|r| reason(state, n, r, &task))
                .unwrap_or_default(),
        });
        let mut nodes: Vec<NodeReason> = nodes.collect();
        nodes.sort_by(|a, b| (&a.hostname, a.node).cmp(&(&b.hostname, b.node)));
        (task, nodes)
    });
    (said.collect(), count)
}

/// A task like another, of a slot that nobody has.
fn one_more(task: &Task) -> Task {
    let slot = match task.slot {
        SlotKey::Replica(_) => SlotKey::Replica(u32::MAX),
        own @ SlotKey::Node(_) => own,
    };
    let mut more = Task {
        id: TaskId::NIL,
        slot,
        node: None,
        host_ports: task.host_ports.clone(),
        ..task.clone()
    };
    more.status.message = "every task has a node; one more would find".into();
    more.status.error = String::new();
    more
}
