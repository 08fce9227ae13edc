//! Pending → Assigned, or why not.

pub mod constraint;
pub mod explain;
pub mod filter;
mod spread;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::object::{Key, Node, SlotKey, Task};
use model::task_state::TaskState;
use model::{NodeId, TaskId, Timestamp};

use crate::state::{Scratch, State};

/// Ended tasks of a service on a node within [`FAILURE_WINDOW_MS`] that make the node a last resort.
const FAILURES_MAX: usize = 5;
/// How long a failure counts against a node: 5 minutes.
const FAILURE_WINDOW_MS: u64 = 300_000;

/// Gives pending tasks a node; those that fit nowhere say why and stay Pending.
pub(crate) fn schedule(
    scratch: &mut Scratch,
    open: &[TaskId],
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
    for task in pending {
        match choose(scratch, &nodes, &task, now) {
            Ok(node) => {
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
fn choose(state: &State, nodes: &[Arc<Node>], task: &Task, now: Timestamp) -> Result<NodeId, String> {
    let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
    let mut fits: Vec<&Arc<Node>> = Vec::new();
    for node in nodes {
        if matches!(task.slot, SlotKey::Node(own) if own != node.id) {
            continue;
        }
        match filter::check(state, node, task) {
            None => fits.push(node),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    let load = Load::of(state, task, now);
    spread::narrow(&mut fits, &task.spec.placement.spread, &load.tasks);
    let best = fits.into_iter().min_by_key(|n| {
        let failing = load.failures.get(&n.id).copied().unwrap_or(0) >= FAILURES_MAX;
        (
            failing,
            load.tasks.get(&n.id).copied().unwrap_or(0),
            state.usage(n.id).tasks,
            n.id,
        )
    });
    best.map(|n| n.id).ok_or_else(|| explain::no_node(&refused, task))
}

/// What the other tasks of a service mean for a node.
struct Load {
    tasks: BTreeMap<NodeId, usize>,
    failures: BTreeMap<NodeId, usize>,
}

impl Load {
    fn of(state: &State, task: &Task, now: Timestamp) -> Self {
        let mut load = Self {
            tasks: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        for other in state.tasks_of_service(task.service) {
            let Some(node) = other.node else { continue };
            if other.desired.is_live() && !other.status.state.is_terminal() {
                *load.tasks.entry(node).or_default() += 1;
            }
            let failed = matches!(other.status.state, TaskState::Failed | TaskState::Rejected);
            let recent = now.since(other.status.at).as_millis() < u128::from(FAILURE_WINDOW_MS);
            if failed && recent && other.spec_version == task.spec_version {
                *load.failures.entry(node).or_default() += 1;
            }
        }
        load
    }
}
