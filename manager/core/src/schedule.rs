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

use crate::state::{Class, Fullness, Scratch, State};

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
        let mut like: Option<Choice> = None;
        for task in of_service {
            // Each like the one before finds the nodes as that one left them.
            let plain = is_plain(task, &load);
            let known = like.take().filter(|known| plain && alike(&known.task, task));
            let mut choice = known.unwrap_or_else(|| {
                let task = if plain { Arc::new(next(task)) } else { task.clone() };
                Choice::of(scratch, unheard, task, &load)
            });
            match choice.best() {
                Some(node) => {
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
                    if plain {
                        choice.placed(scratch, unheard, node, &load);
                    }
                }
                None => {
                    let why = choice.no_node(scratch, unheard);
                    if task.status.error != why {
                        scratch.edit_task(task.id, |t| t.status.error.clone_from(&why));
                    }
                    report.insert(task.id, why);
                }
            }
            like = plain.then_some(choice);
        }
    }
}

/// Whether a task is one of many that any node may take: of a slot that has no other task, and not one that replaces another.
fn is_plain(task: &Task, load: &Load) -> bool {
    matches!(task.slot, SlotKey::Replica(_)) && task.desired != DesiredState::Ready && !load.has(task.slot)
}

/// A task like a plain one, of a slot that nobody has: it stands for all that are alike.
fn next(task: &Task) -> Task {
    Task {
        id: TaskId::NIL,
        slot: SlotKey::Replica(u32::MAX),
        ..task.clone()
    }
}

/// Whether two tasks of a service ask the same of a node.
fn alike(one: &Task, other: &Task) -> bool {
    one.spec_version == other.spec_version
        && one.desired == other.desired
        && (Arc::ptr_eq(&one.spec, &other.spec) || one.spec == other.spec)
        && one.host_ports == other.host_ports
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
/// there, it has fewer tasks of the service, then the smaller share of it is reserved, then it has fewer tasks of all.
type Rank = (bool, bool, usize, Fullness, NodeId);

fn rank(state: &State, node: &Node, task: &Task, load: &Load) -> Rank {
    (
        load.failed(task.spec_version, node.id) >= FAILURES_MAX,
        !node.status.unreached.is_empty(),
        load.others(task.slot, node.id),
        state.fullness(node.id),
        node.id,
    )
}

/// The nodes for tasks that are alike: the best for each, as if it had looked at all nodes by itself (a property test does). It
/// looks at those where the service has tasks, and at the best of each class of the others: a line is opened as far as it is used.
struct Choice {
    task: Arc<Task>,
    fits: spread::Tree<Rank>,
    places: BTreeMap<NodeId, Place>,
    /// Nodes that stand in no line (any more): the service is known there.
    known: BTreeSet<NodeId>,
    asked: filter::Asked,
    /// Why none fits, once that was asked.
    why: Option<String>,
}

/// A node that fits.
struct Place {
    node: Arc<Node>,
    rank: Rank,
    /// Whether it stands for the nodes of its class that come after it.
    line: Option<Class>,
}

impl Choice {
    fn of(state: &State, unheard: &BTreeSet<NodeId>, task: Arc<Task>, load: &Load) -> Self {
        let mut choice = Self {
            fits: spread::Tree::new(&task.spec.placement.spread),
            places: BTreeMap::new(),
            known: BTreeSet::new(),
            asked: filter::Asked::of(&task),
            why: None,
            task,
        };
        if let SlotKey::Node(own) = choice.task.slot {
            choice.add(state, unheard, own, None, load);
            return choice;
        }
        choice.known.extend(load.nodes());
        for id in load.nodes() {
            choice.add(state, unheard, id, None, load);
        }
        for (class, one) in state.classes() {
            let refuses = |node: &Arc<Node>| choice.asked.refuses_class(node, &choice.task);
            if !state.node(one).is_none_or(refuses) {
                choice.open(state, unheard, class, None, load);
            }
        }
        choice
    }

    /// Adds a node, if it fits.
    fn add(
        &mut self,
        state: &State,
        unheard: &BTreeSet<NodeId>,
        id: NodeId,
        line: Option<Class>,
        load: &Load,
    ) -> bool {
        let Some(node) = state.node(id) else { return false };
        if refusal(state, node, unheard, (&self.task, &self.asked)).is_some() {
            return false;
        }
        let (node, rank) = (node.clone(), rank(state, node, &self.task, load));
        self.fits.insert(&node, rank, rank.2);
        self.places.insert(id, Place { node, rank, line });
        true
    }

    /// Adds the best of a class after one that it had.
    fn open(
        &mut self,
        state: &State,
        unheard: &BTreeSet<NodeId>,
        class: Class,
        mut after: Option<(Fullness, NodeId)>,
        load: &Load,
    ) {
        while let Some((fullness, id)) = state.next_of_class(class, after) {
            after = Some((fullness, id));
            if !self.known.contains(&id) && self.add(state, unheard, id, Some(class), load) {
                return;
            }
        }
    }

    fn best(&self) -> Option<NodeId> {
        self.fits.best().map(|(.., id)| id)
    }

    /// Why there is no best, asked of every node.
    fn no_node(&mut self, state: &State, unheard: &BTreeSet<NodeId>) -> String {
        let (task, asked) = (&*self.task, &self.asked);
        let why = self.why.get_or_insert_with(|| {
            let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
            for reason in candidates(state, task).filter_map(|n| refusal(state, n, unheard, (task, asked))) {
                *refused.entry(reason).or_default() += 1;
            }
            explain::no_node(&refused, task)
        });
        why.clone()
    }

    /// Takes a task that was given a node: the next is asked there anew.
    fn placed(&mut self, state: &State, unheard: &BTreeSet<NodeId>, id: NodeId, load: &Load) {
        let Some(Place { node, rank, line }) = self.places.remove(&id) else {
            return;
        };
        self.fits.remove(&node, rank, rank.2);
        self.known.insert(id);
        self.add(state, unheard, id, None, load);
        if let Some(class) = line {
            self.open(state, unheard, class, Some((rank.3, id)), load);
        }
    }
}

/// The nodes that a task may be on: of a global service its own.
fn candidates<'a>(state: &'a State, task: &Task) -> impl Iterator<Item = &'a Arc<Node>> + 'a {
    let (own, any) = match task.slot {
        SlotKey::Node(id) => (state.node(id), None),
        SlotKey::Replica(_) => (None, Some(state.nodes())),
    };
    own.into_iter().chain(any.into_iter().flatten())
}

/// What the tasks of a service mean for the nodes; kept up to date while its tasks are placed.
struct Load {
    tasks: BTreeMap<NodeId, usize>,
    /// Live tasks of each slot by their node: two while it is handed over.
    slots: BTreeMap<(SlotKey, NodeId), usize>,
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
        *self.slots.entry((slot, node)).or_default() += 1;
    }

    /// Whether a slot has a live task somewhere.
    fn has(&self, slot: SlotKey) -> bool {
        let all = (slot, NodeId(0))..=(slot, NodeId(u128::MAX));
        self.slots.range(all).next().is_some()
    }

    /// Nodes where the service has live tasks, or some that failed not long ago.
    fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let failed = self.failures.keys().map(|(_, node)| *node);
        let all: BTreeSet<NodeId> = self.tasks.keys().copied().chain(failed).collect();
        all.into_iter()
    }

    /// Live tasks of other slots: the one that is replaced will be gone, and must not push its successor elsewhere.
    fn others(&self, slot: SlotKey, node: NodeId) -> usize {
        let own = self.slots.get(&(slot, node)).copied().unwrap_or(0);
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
