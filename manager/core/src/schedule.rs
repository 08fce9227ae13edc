//! Pending → Assigned, or why not.

pub mod constraint;
pub mod explain;
pub mod filter;
mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Key, Node, SlotKey, Task};
use model::task_state::TaskState;
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
    let mut loads: BTreeMap<ServiceId, Load> = BTreeMap::new();
    for task in pending {
        let load = loads
            .entry(task.service)
            .or_insert_with(|| Load::of(scratch, task.service, now));
        match choose(scratch, &nodes, unheard, &task, load) {
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

/// The best node for a task, or one line that counts which filter refused how many.
fn choose(
    state: &State,
    nodes: &[Arc<Node>],
    unheard: &BTreeSet<NodeId>,
    task: &Task,
    load: &Load,
) -> Result<NodeId, String> {
    let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
    let mut fits: Vec<&Arc<Node>> = Vec::new();
    for node in nodes {
        if matches!(task.slot, SlotKey::Node(own) if own != node.id) {
            continue;
        }
        let reason = filter::check(state, node, task);
        match reason.or(unheard.contains(&node.id).then_some(filter::Refused::Unheard)) {
            None => fits.push(node),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    let others = |node: NodeId| load.others(task.slot, node);
    spread::narrow(&mut fits, &task.spec.placement.spread, &others);
    let best = fits.into_iter().min_by_key(|n| {
        let failing = load.failed(task.spec_version, n.id) >= FAILURES_MAX;
        // Clients of other nodes are not sent there.
        let degraded = !n.status.unreached.is_empty();
        (failing, degraded, others(n.id), state.usage(n.id).tasks, n.id)
    });
    best.map(|n| n.id).ok_or_else(|| explain::no_node(&refused, task))
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
