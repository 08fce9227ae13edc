//! Pending → Assigned, or why not.

pub mod constraint;
pub mod explain;
pub mod filter;
mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Key, Node, SlotKey, Task};
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, ServiceId, TaskId, Timestamp};

use crate::state::{Scratch, State};

/// Ended tasks of a service on a node within [`FAILURE_WINDOW_MS`] that make the node a last resort.
const FAILURES_MAX: usize = 5;
/// How long a failure counts against a node: 5 minutes.
const FAILURE_WINDOW_MS: u64 = 300_000;

/// Gives pending tasks a node; those that fit nowhere say why and stay Pending. Who is `unheard` gets none.
pub(crate) fn schedule(
    scratch: &mut Scratch,
    open: &[TaskId],
    unheard: &BTreeSet<NodeId>,
    now: Timestamp,
    report: &mut BTreeMap<TaskId, String>,
) {
    let nodes: Vec<Arc<Node>> = scratch.nodes().cloned().collect();
    let mut pending: Vec<Arc<Task>> = open
        .iter()
        .filter_map(|id| scratch.task(*id))
        .filter(|t| t.status.state == TaskState::Pending && t.node.is_none())
        .cloned()
        .collect();
    // By service and slot, so that the same tasks always meet the same nodes.
    pending.sort_by_key(|t| (t.service, t.slot, t.id));
    for of_service in pending.chunk_by(|a, b| a.service == b.service) {
        let Some(first) = of_service.first() else { continue };
        let mut load = Load::of(scratch, first.service, now);
        let mut like: Option<(Arc<Task>, Choice)> = None;
        for (at, task) in of_service.iter().enumerate() {
            let is_like = |(known, _): &(Arc<Task>, Choice)| alike(known, task);
            // Of one alone nothing has to be kept.
            let many = like.as_ref().is_some_and(is_like)
                || of_service.get(at + 1).is_some_and(|next| alike(task, next));
            let chosen = if many && is_plain(task, &load) {
                // Each like the one before finds the nodes as that one left them.
                let known = like.take().filter(|(known, _)| alike(known, task));
                let choice = match known {
                    Some((_, choice)) => choice,
                    None => Choice::of(scratch, &nodes, unheard, task, &load),
                };
                let best = choice.best();
                like = Some((task.clone(), choice));
                best.ok_or_else(|| like.as_ref().map_or_else(String::new, |(_, c)| c.no_node(task)))
            } else {
                like = None;
                choose(scratch, &nodes, unheard, task, &load)
            };
            match chosen {
                Ok(node) => {
                    load.put(task.slot, node);
                    scratch.edit_task(task.id, |t| {
                        t.node = Some(node);
                        t.status.state = TaskState::Assigned;
                        t.status.at = now;
                        t.status.message = "scheduler assigned task to node".into();
                        t.status.error = String::new();
                    });
                    // A node that is drained or relabelled meanwhile gets nothing.
                    scratch.rely_on(Key::Node(node));
                    if let Some((_, choice)) = &mut like {
                        choice.placed(scratch, node, task, &load);
                    }
                }
                Err(why) => {
                    if task.status.error != why {
                        scratch.edit_task(task.id, |t| t.status.error.clone_from(&why));
                    }
                    report.insert(task.id, why);
                }
            }
        }
    }
}

/// Whether a task is one of many that any node may take: of a slot that has no other task, and not one that replaces another.
fn is_plain(task: &Task, load: &Load) -> bool {
    matches!(task.slot, SlotKey::Replica(_))
        && task.desired != DesiredState::Ready
        && load.slots.get(&task.slot).is_none_or(Vec::is_empty)
}

/// Whether two tasks of a service ask the same of a node.
fn alike(one: &Task, other: &Task) -> bool {
    one.spec_version == other.spec_version
        && one.desired == other.desired
        && (Arc::ptr_eq(&one.spec, &other.spec) || one.spec == other.spec)
        && one.host_ports == other.host_ports
}

/// The best node for a task, or one line that counts which filter refused how many.
fn choose(
    state: &State,
    nodes: &[Arc<Node>],
    unheard: &BTreeSet<NodeId>,
    task: &Task,
    load: &Load,
) -> Result<NodeId, String> {
    let own;
    let nodes = match task.slot {
        SlotKey::Node(id) => {
            own = state.node(id).cloned();
            own.as_slice()
        }
        SlotKey::Replica(_) => nodes,
    };
    let asked = filter::Asked::of(task);
    let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
    let mut fits: Vec<&Arc<Node>> = Vec::new();
    for node in nodes {
        match refusal(state, node, unheard, (task, &asked)) {
            None => fits.push(node),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    let others = |node: NodeId| load.others(task.slot, node);
    spread::narrow(&mut fits, &task.spec.placement.spread, &others);
    let best = fits.into_iter().min_by_key(|n| rank(state, n, task, load));
    best.map(|n| n.id).ok_or_else(|| explain::no_node(&refused, task))
}

fn refusal(
    state: &State,
    node: &Node,
    unheard: &BTreeSet<NodeId>,
    (task, asked): (&Task, &filter::Asked),
) -> Option<filter::Refused> {
    let reason = filter::check_by(state, node, task, asked);
    reason.or(unheard.contains(&node.id).then_some(filter::Refused::Unheard))
}

/// What makes a node better than another, least first: tasks of the service do not fail there, clients of other nodes are sent
/// there, it has fewer tasks of the service, then of all.
type Rank = (bool, bool, usize, u32, NodeId);

fn rank(state: &State, node: &Node, task: &Task, load: &Load) -> Rank {
    (
        load.failed(task.spec_version, node.id) >= FAILURES_MAX,
        !node.status.unreached.is_empty(),
        load.others(task.slot, node.id),
        state.usage(node.id).tasks,
        node.id,
    )
}

/// The nodes for tasks that are alike: what [`choose`] finds for each, kept up to date, so that none looks at all nodes.
struct Choice {
    fits: spread::Tree<Rank>,
    places: BTreeMap<NodeId, (Arc<Node>, Rank)>,
    asked: filter::Asked,
    refused: BTreeMap<filter::Refused, usize>,
}

impl Choice {
    fn of(state: &State, nodes: &[Arc<Node>], unheard: &BTreeSet<NodeId>, task: &Task, load: &Load) -> Self {
        let mut choice = Self {
            fits: spread::Tree::new(&task.spec.placement.spread),
            places: BTreeMap::new(),
            asked: filter::Asked::of(task),
            refused: BTreeMap::new(),
        };
        for node in nodes {
            match refusal(state, node, unheard, (task, &choice.asked)) {
                None => choice.add(state, node.clone(), task, load),
                Some(reason) => *choice.refused.entry(reason).or_default() += 1,
            }
        }
        choice
    }

    fn add(&mut self, state: &State, node: Arc<Node>, task: &Task, load: &Load) {
        let rank = rank(state, &node, task, load);
        self.fits.insert(&node, rank, load.others(task.slot, node.id));
        self.places.insert(node.id, (node, rank));
    }

    fn best(&self) -> Option<NodeId> {
        self.fits.best().map(|(.., id)| id)
    }

    fn no_node(&self, task: &Task) -> String {
        explain::no_node(&self.refused, task)
    }

    /// Takes a task that was given a node: the next is asked there anew.
    fn placed(&mut self, state: &State, node: NodeId, task: &Task, load: &Load) {
        let Some((node, rank)) = self.places.remove(&node) else {
            return;
        };
        self.fits.remove(&node, rank, rank.2);
        // As the next one, of a slot that nobody has.
        let next = Task {
            id: TaskId::NIL,
            slot: SlotKey::Replica(u32::MAX),
            ..task.clone()
        };
        match filter::check_by(state, &node, &next, &self.asked) {
            None => self.add(state, node, &next, load),
            Some(reason) => *self.refused.entry(reason).or_default() += 1,
        }
    }
}

/// What the tasks of a service mean for the nodes; kept up to date while its tasks are placed.
struct Load {
    tasks: BTreeMap<NodeId, usize>,
    /// Nodes of each slot's live tasks: two while it is handed over.
    slots: BTreeMap<SlotKey, Vec<NodeId>>,
    failures: BTreeMap<(u64, NodeId), usize>,
}

impl Load {
    fn of(state: &State, service: ServiceId, now: Timestamp) -> Self {
        let mut load = Self {
            tasks: BTreeMap::new(),
            slots: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        for task in state.tasks_of_service(service) {
            let Some(node) = task.node else { continue };
            if task.desired.is_live() && !task.status.state.is_terminal() {
                load.put(task.slot, node);
            }
            let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
            let recent = now.since(task.over_at()).as_millis() < u128::from(FAILURE_WINDOW_MS);
            if failed && recent {
                *load.failures.entry((task.spec_version, node)).or_default() += 1;
            }
        }
        load
    }

    fn put(&mut self, slot: SlotKey, node: NodeId) {
        *self.tasks.entry(node).or_default() += 1;
        self.slots.entry(slot).or_default().push(node);
    }

    /// Live tasks of other slots: the one that is replaced will be gone, and must not push its successor elsewhere.
    fn others(&self, slot: SlotKey, node: NodeId) -> usize {
        let own = self
            .slots
            .get(&slot)
            .map_or(0, |nodes| nodes.iter().filter(|n| **n == node).count());
        self.tasks.get(&node).copied().unwrap_or(0) - own
    }

    /// Recent failures of a spec on a node.
    fn failed(&self, spec_version: u64, node: NodeId) -> usize {
        self.failures.get(&(spec_version, node)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
