//! Whether a node can take a task.

use std::sync::Arc;

use model::NodeId;
use model::object::{Availability, Node, NodeState, Task};
use model::spec::{Platform, TaskSpec};
use model::task_state::DesiredState;

use super::affinity::Neighbours;
use super::constraint::{self, Constraint};
use super::generic;
use crate::state::{State, Usage};

/// Which filter refused, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// The node is not heard of, or takes no tasks.
    NotReady,
    /// Too little CPU or memory is free.
    Resources,
    /// A constraint does not hold.
    Constraint,
    /// The image runs on other platforms.
    Platform,
    /// A port of the node is taken.
    HostPort,
    /// The service has its most tasks there.
    MaxReplicas,
    /// A network is encrypted, and the node cannot do that.
    CannotEncrypt,
    /// Too few of a generic resource are free.
    Generic,
    /// A service that it wants beside it has no task there, or one that it does not want has, or does not want it.
    Affinity,
    /// What is free there is for a task of a higher priority, which waits for more.
    Kept,
    /// The leader is new, and has not heard of the node yet (see [`crate::node_health::Unheard`]).
    Unheard,
}

/// What a task asks of every node, read once.
#[derive(Debug)]
pub(super) struct Asked {
    constraints: Option<Vec<Constraint>>,
    neighbours: Neighbours,
    /// Nothing but CPU and memory, beyond what nodes of a class have in common.
    is_size_alone: bool,
}

impl Asked {
    /// One that cannot be read holds nowhere; admission refuses those.
    pub(super) fn of(state: &State, task: &Task) -> Self {
        let all = task.spec.placement.constraints.iter();
        let constraints: Option<Vec<Constraint>> = all.map(|c| constraint::parse(c).ok()).collect();
        let neighbours = Neighbours::of(state, task);
        let is_size_alone = constraints.iter().flatten().all(|c| !c.is_of_one())
            && neighbours.is_empty()
            && task.host_ports.is_empty()
            && task.spec.resources.reservations.generic.is_empty()
            && task.spec.placement.max_replicas_per_node == 0
            && task.desired != DesiredState::Ready;
        Self {
            constraints,
            neighbours,
            is_size_alone,
        }
    }

    /// Whether what nodes of its class have in common speaks against this one.
    pub(super) fn refuses_class(&self, node: &Node, task: &Task) -> bool {
        let holds = |all: &Vec<Constraint>| all.iter().all(|c| c.is_of_one() || c.holds(node));
        !takes(node)
            || !self.constraints.as_ref().is_some_and(holds)
            || !runs_on(node, &task.spec.placement.platforms)
            || cannot_encrypt(node, task)
            || !fits(Usage::default(), node, task)
    }

    /// Whether a node of a class that does not refuse may take the task, where all that runs there may go.
    pub(super) fn allows(&self, node: &Node, task: &Task) -> bool {
        self.holds(node) && generic::has_enough(node, task)
    }

    /// Whether a node refuses, of a class that does not: `like` is of that class.
    pub(super) fn refuses_one(
        &self,
        state: &State,
        (id, used): (NodeId, Usage),
        like: &Node,
        task: &Task,
    ) -> bool {
        if self.is_size_alone {
            return !fits(used, like, task);
        }
        let refuses = |node: &Arc<Node>| check_by(state, node, task, self).is_some();
        state.node(id).is_none_or(refuses)
    }

    fn holds(&self, node: &Node) -> bool {
        self.constraints
            .as_ref()
            .is_some_and(|all| all.iter().all(|c| c.holds(node)))
    }
}

/// The first filter that refuses the node, if any.
pub fn check(state: &State, node: &Node, task: &Task) -> Option<Refused> {
    check_by(state, node, task, &Asked::of(state, task))
}

/// The same, where what is asked was read before.
pub(super) fn check_by(state: &State, node: &Node, task: &Task, asked: &Asked) -> Option<Refused> {
    if !takes(node) {
        return Some(Refused::NotReady);
    }
    if !has_room(state, node, task) {
        return Some(Refused::Resources);
    }
    if !asked.holds(node) {
        return Some(Refused::Constraint);
    }
    if !runs_on(node, &task.spec.placement.platforms) {
        return Some(Refused::Platform);
    }
    if holds_port(state, node, task).is_some() {
        return Some(Refused::HostPort);
    }
    if cannot_encrypt(node, task) {
        return Some(Refused::CannotEncrypt);
    }
    if !generic::has_room(state, node, task) {
        return Some(Refused::Generic);
    }
    if !asked.neighbours.hold(state, node, task) {
        return Some(Refused::Affinity);
    }
    let most = task.spec.placement.max_replicas_per_node as usize;
    (most > 0 && others_there(state, node, task) >= most).then_some(Refused::MaxReplicas)
}

/// Whether a node takes tasks.
pub fn takes(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

fn cannot_encrypt(node: &Node, task: &Task) -> bool {
    node.description.tunnel_key.is_none() && task.spec.networks.iter().any(|n| n.encrypted)
}

/// Live tasks of other slots of the same service on a node.
fn others_there(state: &State, node: &Node, task: &Task) -> usize {
    siblings(state, node, task)
        .filter(|t| t.slot != task.slot && t.desired.is_live())
        .count()
}

/// Whether a node meets the parts of a spec that do not depend on what runs there.
pub fn suits(node: &Node, spec: &TaskSpec) -> bool {
    constraints_hold(node, &spec.placement.constraints) && runs_on(node, &spec.placement.platforms)
}

/// Whether every constraint holds on a node. One that cannot be read holds nowhere; admission refuses those.
pub fn constraints_hold(node: &Node, constraints: &[String]) -> bool {
    constraints
        .iter()
        .all(|c| constraint::parse(c).is_ok_and(|c| c.holds(node)))
}

/// Unfinished tasks of the same service on a node.
pub(super) fn siblings<'a>(
    state: &'a State,
    node: &Node,
    task: &'a Task,
) -> impl Iterator<Item = &'a Arc<Task>> + 'a {
    let node = node.id;
    // A node has few tasks, a service may have thousands.
    state
        .tasks_of_node(node)
        .filter(move |t| t.service == task.service && t.id != task.id && !t.status.state.is_terminal())
}

/// Whether `old` gives back what it holds before `task` starts. One that starts first finds it taken.
pub(super) fn replaces(task: &Task, old: &Task) -> bool {
    let same = old.service == task.service && old.slot == task.slot;
    // Runs of a job that go on at the same time do not follow one another.
    let follows = old.iteration == task.iteration || !old.desired.is_live();
    task.desired == DesiredState::Ready && same && follows
}

fn has_room(state: &State, node: &Node, task: &Task) -> bool {
    let wanted = &task.spec.resources.reservations;
    if wanted.cpu.0 == 0 && wanted.memory.0 == 0 {
        return true;
    }
    let mut used = state.usage(node.id);
    // Only one that starts after another has a share of its own there.
    let replaced = (task.desired == DesiredState::Ready).then(|| siblings(state, node, task));
    for old in replaced.into_iter().flatten() {
        if !replaces(task, old) {
            continue;
        }
        used.cpu.0 = used.cpu.0.saturating_sub(old.spec.resources.reservations.cpu.0);
        used.memory.0 = used
            .memory
            .0
            .saturating_sub(old.spec.resources.reservations.memory.0);
    }
    fits(used, node, task)
}

/// Whether a node of which so much is used has the CPU and memory that a task reserves.
fn fits(used: Usage, node: &Node, task: &Task) -> bool {
    let wanted = &task.spec.resources.reservations;
    let fits = |used: u64, wanted: u64, all: u64| wanted == 0 || used.saturating_add(wanted) <= all;
    fits(used.cpu.0, wanted.cpu.0, node.description.cpus.0)
        && fits(used.memory.0, wanted.memory.0, node.description.memory.0)
}

fn runs_on(node: &Node, platforms: &[Platform]) -> bool {
    let same = |want: &str, have: &str| want.is_empty() || canonical(want) == canonical(have);
    let here = &node.description.platform;
    platforms.is_empty()
        || platforms
            .iter()
            .any(|p| same(&p.os, &here.os) && same(&p.arch, &here.arch))
}

/// Go's names of processors beside uname's.
fn canonical(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The task on a node that has a port which another one asks for.
pub(super) fn holds_port<'a>(state: &'a State, node: &Node, task: &Task) -> Option<&'a Arc<Task>> {
    if task.host_ports.is_empty() {
        return None;
    }
    state.tasks_of_node(node.id).find(|t| {
        !replaces(task, t)
            && !t.status.state.is_terminal()
            && t.host_ports.iter().any(|have| {
                task.host_ports.iter().any(|want| {
                    // Whatever address it is on: a port of a host leads to one place.
                    have.protocol == want.protocol && have.published == want.published
                })
            })
    })
}
