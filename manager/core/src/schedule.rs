//! Pending → Assigned, or why not.

pub mod affinity;
pub mod constraint;
pub mod explain;
pub mod filter;
mod generic;
mod preempt;
pub(crate) mod rebalance;
mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Key, Node, SlotKey, Task};
use model::spec::PlacementStrategy;
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, ServiceId, TaskId, Timestamp};

pub(crate) use preempt::PREEMPTED;

use crate::state::{Class, Fullness, Scratch, State};

/// Ended tasks of a service on a node within [`FAILURE_WINDOW_MS`] that make the node a last resort.
const FAILURES_MAX: usize = 5;
/// How long a failure counts against a node: 5 minutes.
const FAILURE_WINDOW_MS: u64 = 300_000;

/// Gives pending tasks a node, those of the highest priority first; those that fit nowhere say why and stay Pending, or make room.
/// Who is `unheard` gets none. Answers the services of which tasks were told to make room.
pub(crate) fn schedule(
    scratch: &mut Scratch,
    open: Vec<Arc<Task>>,
    unheard: &BTreeSet<NodeId>,
    now: Timestamp,
    report: &mut BTreeMap<TaskId, String>,
) -> BTreeSet<ServiceId> {
    let mut room = preempt::Room::default();
    let mut pending = pending(open);
    loop {
        let count = pending.len();
        place(scratch, &pending, unheard, now, &mut room);
        // What was placed may be the company that others waited for.
        pending.retain(|t| room.unplaced.contains_key(&t.id) && !room.waits(t.id));
        let placed = pending.len() < count;
        pending.retain(|t| affinity::wants_company(t));
        if !placed || pending.is_empty() {
            break;
        }
    }
    say_why(scratch, unheard, &room, report);
    room.evicted
}

/// Writes why tasks have no node, once all that could be placed are: those that come later may take what was free.
fn say_why(
    scratch: &mut Scratch,
    unheard: &BTreeSet<NodeId>,
    room: &preempt::Room,
    report: &mut BTreeMap<TaskId, String>,
) {
    let ids = room.unplaced.keys();
    let unplaced = ids.filter_map(|id| scratch.task(*id)).cloned().collect();
    let closed = Closed {
        unheard,
        kept: &room.kept,
    };
    let mut like: Option<(Arc<Task>, String)> = None;
    for task in pending(unplaced) {
        let known = like.take().filter(|(known, _)| {
            let any = |t: &Task| matches!(t.slot, SlotKey::Replica(_)) && t.desired != DesiredState::Ready;
            known.service == task.service && any(known) && any(&task) && alike(known, &task)
        });
        let text = known.map_or_else(|| no_node(scratch, closed, &task), |(_, text)| text);
        let host = room.unplaced.get(&task.id).and_then(Option::as_ref);
        let why = host.map_or_else(
            || text.clone(),
            |host| format!("{text}; it waits for room that is made on {host}"),
        );
        if task.status.error != why {
            scratch.change_task(&task, |t| t.status.error.clone_from(&why));
        }
        report.insert(task.id, why);
        like = Some((task, text));
    }
}

/// What every node says to a task, in one line.
fn no_node(state: &State, closed: Closed<'_>, task: &Task) -> String {
    let asked = filter::Asked::of(state, task);
    let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
    for reason in candidates(state, task).filter_map(|n| refusal(state, n, closed, (task, &asked))) {
        *refused.entry(reason).or_default() += 1;
    }
    explain::no_node(&refused, task)
}

/// Tasks that wait for a node, in an order in which the same tasks always meet the same nodes.
fn pending(mut open: Vec<Arc<Task>>) -> Vec<Arc<Task>> {
    open.retain(|t| t.status.state == TaskState::Pending && t.node.is_none());
    open.sort_by_key(|t| (std::cmp::Reverse(t.spec.priority), t.service, t.slot, t.id));
    open
}

fn place(
    scratch: &mut Scratch,
    pending: &[Arc<Task>],
    unheard: &BTreeSet<NodeId>,
    now: Timestamp,
    room: &mut preempt::Room,
) {
    for of_service in pending.chunk_by(|a, b| (a.spec.priority, a.service) == (b.spec.priority, b.service)) {
        let Some(first) = of_service.first() else { continue };
        let mut load = Load::of(scratch, first.service, now);
        let mut like: Option<Choice> = None;
        for task in of_service {
            let closed = Closed {
                unheard,
                kept: &room.kept,
            };
            // Each like the one before finds the nodes as that one left them.
            let plain = is_plain(task, &load);
            let known = like.take().filter(|known| plain && alike(&known.task, task));
            let mut choice = known.unwrap_or_else(|| {
                let task = if plain { Arc::new(next(task)) } else { task.clone() };
                Choice::of(scratch, closed, task, &load)
            });
            match choice.best() {
                Some(node) => {
                    load.put(task.slot, node);
                    let granted = generic::grant(scratch, node, task);
                    scratch.change_task(task, |t| {
                        t.node = Some(node);
                        t.granted = granted;
                        t.status.state = TaskState::Assigned;
                        t.status.at = now;
                        t.status.message = "scheduler assigned task to node".into();
                        t.status.error = String::new();
                    });
                    // A node that is drained or relabelled meanwhile gets nothing.
                    scratch.rely_on(Key::Node(node));
                    room.unplaced.remove(&task.id);
                    if plain {
                        choice.placed(scratch, closed, node, &load);
                    }
                }
                None => {
                    let host = room.make(scratch, unheard, task, &mut choice);
                    room.unplaced.insert(task.id, host);
                }
            }
            like = plain.then_some(choice);
        }
    }
}

/// Nodes that get no tasks for now.
#[derive(Debug, Clone, Copy)]
struct Closed<'a> {
    unheard: &'a BTreeSet<NodeId>,
    /// Where tasks that came before wait for room.
    kept: &'a BTreeSet<NodeId>,
}

impl Closed<'_> {
    fn has(&self, id: NodeId) -> bool {
        self.unheard.contains(&id) || self.kept.contains(&id)
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
    closed: Closed<'_>,
    (task, asked): (&Task, &filter::Asked),
) -> Option<filter::Refused> {
    let reason = filter::check_by(state, node, task, asked);
    let unheard = || {
        closed
            .unheard
            .contains(&node.id)
            .then_some(filter::Refused::Unheard)
    };
    let kept = || closed.kept.contains(&node.id).then_some(filter::Refused::Kept);
    reason.or_else(unheard).or_else(kept)
}

/// What makes a node better than another, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Tasks of the service fail there.
    fails: bool,
    /// Clients of other nodes are not sent there.
    unreached: bool,
    /// Tasks of the service there, where they are spread.
    others: usize,
    /// How full it is: the share of it that is reserved, and will be, its size, and its tasks. Turned round where few nodes are to be used: of two
    /// that are empty the larger.
    full: [u64; 3],
    /// Its id, turned round as well, so that nodes of a class stand as they do in their line.
    id: u128,
}

impl Rank {
    /// Of a node with so many `others` of the service.
    fn of((id, others): (NodeId, usize), fullness: Fullness, kind: &Kind, task: &Task, load: &Load) -> Self {
        let (share, tasks) = (u64::from(fullness.share), u64::from(fullness.tasks));
        let (others, full, turned) = match task.spec.placement.strategy {
            PlacementStrategy::Spread => {
                let then = share + u64::from(kind.share);
                (others, [then, 0, tasks], id.0)
            }
            PlacementStrategy::Binpack => {
                let size = kind.one.description.memory.0;
                (0, [!share, !size, !tasks], !id.0)
            }
        };
        Self {
            fails: load.failed(task.spec_version, id) >= FAILURES_MAX,
            unreached: !kind.one.status.unreached.is_empty(),
            others,
            full,
            id: turned,
        }
    }
}

/// What nodes of a class mean for a task.
struct Kind {
    /// One of them.
    one: Arc<Node>,
    path: spread::Path,
    /// What the task would take of one.
    share: u32,
}

impl Kind {
    fn of(one: &Arc<Node>, task: &Task) -> Self {
        Self {
            one: one.clone(),
            path: spread::path(one, &task.spec.placement.spread),
            share: Fullness::share_of(task, one),
        }
    }
}

/// The nodes for tasks that are alike: the best for each, as if it had looked at all nodes by itself (a property test does). It
/// looks at those where the service has tasks, and at the best of each class of the others: a line is opened as far as it is used.
struct Choice {
    task: Arc<Task>,
    asked: filter::Asked,
    /// Classes that do not refuse.
    kinds: BTreeMap<Class, Kind>,
    fits: spread::Tree<Rank>,
    places: BTreeMap<NodeId, Place>,
    /// Nodes that stand in no line (any more): the service is known there.
    known: BTreeSet<NodeId>,
    /// Where room can be made, once that was looked for.
    offers: Option<preempt::Offers>,
}

/// A node that fits.
struct Place {
    class: Class,
    rank: Rank,
    /// Tasks of the service there.
    tasks: usize,
    fullness: Fullness,
    /// Whether it stands for the nodes of its class that come after it.
    leads: bool,
}

impl Choice {
    fn of(state: &State, closed: Closed<'_>, task: Arc<Task>, load: &Load) -> Self {
        let asked = filter::Asked::of(state, &task);
        let classes = match task.slot {
            SlotKey::Node(own) => state
                .standing(own)
                .class
                .map(|class| (class, own))
                .into_iter()
                .collect(),
            SlotKey::Replica(_) => state.classes(),
        };
        let kind = |(class, one)| {
            let one = state.node(one).filter(|one| !asked.refuses_class(one, &task))?;
            Some((class, Kind::of(one, &task)))
        };
        let mut choice = Self {
            kinds: classes.into_iter().filter_map(kind).collect(),
            fits: spread::Tree::new(),
            places: BTreeMap::new(),
            known: BTreeSet::new(),
            offers: None,
            asked,
            task,
        };
        if let SlotKey::Node(own) = choice.task.slot {
            choice.add(state, closed, own, false, load);
            return choice;
        }
        choice.known.extend(load.nodes());
        for id in load.nodes() {
            choice.add(state, closed, id, false, load);
        }
        let classes: Vec<Class> = choice.kinds.keys().copied().collect();
        for class in classes {
            choice.open(state, closed, class, None, load);
        }
        choice
    }

    /// Adds a node, if it fits.
    fn add(&mut self, state: &State, closed: Closed<'_>, id: NodeId, leads: bool, load: &Load) -> bool {
        let standing = state.standing(id);
        let Some((class, kind)) = standing.class.and_then(|c| Some((c, self.kinds.get(&c)?))) else {
            return false;
        };
        let one = (id, standing.usage);
        if closed.has(id) || self.asked.refuses_one(state, one, &kind.one, &self.task) {
            return false;
        }
        let tasks = load.others(self.task.slot, id);
        let fullness = standing.fullness;
        let place = Place {
            class,
            rank: Rank::of((id, tasks), fullness, kind, &self.task, load),
            tasks,
            fullness,
            leads,
        };
        self.fits.insert(&kind.path, place.rank, place.tasks);
        self.places.insert(id, place);
        true
    }

    /// Adds the best of a class after one that it had.
    fn open(
        &mut self,
        state: &State,
        closed: Closed<'_>,
        class: Class,
        mut after: Option<(Fullness, NodeId)>,
        load: &Load,
    ) {
        let strategy = self.task.spec.placement.strategy;
        let next = |after| match strategy {
            PlacementStrategy::Spread => state.next_of_class(class, after),
            PlacementStrategy::Binpack => state.before_of_class(class, after),
        };
        while let Some((fullness, id)) = next(after) {
            after = Some((fullness, id));
            if !self.known.contains(&id) && self.add(state, closed, id, true, load) {
                return;
            }
        }
    }

    fn best(&self) -> Option<NodeId> {
        let best = self.fits.best()?.id;
        Some(NodeId(match self.task.spec.placement.strategy {
            PlacementStrategy::Spread => best,
            PlacementStrategy::Binpack => !best,
        }))
    }

    /// Takes a task that was given a node: the next is asked there anew.
    fn placed(&mut self, state: &State, closed: Closed<'_>, id: NodeId, load: &Load) {
        let Some(place) = self.places.remove(&id) else {
            return;
        };
        if let Some(kind) = self.kinds.get(&place.class) {
            self.fits.remove(&kind.path, place.rank, place.tasks);
        }
        self.known.insert(id);
        self.add(state, closed, id, false, load);
        if place.leads {
            self.open(state, closed, place.class, Some((place.fullness, id)), load);
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
