//! Room for tasks of a higher priority: which of a lower one go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Node, Task};
use model::task_state::DesiredState;
use model::{NodeId, ServiceId, TaskId};

use super::{candidates, filter};
use crate::state::{Scratch, State};

/// What the error of a task that made room begins with; it is kept when its agent says that it ended.
pub(crate) const PREEMPTED: &str = "preempted by ";

/// Where room is made, while tasks are placed.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Nodes that are closed to those that come later: they would take what was made.
    pub(super) kept: BTreeSet<NodeId>,
    /// Services of the tasks that are to go.
    pub(super) evicted: BTreeSet<ServiceId>,
    /// Tasks that found no node, with the host on which room is made for them.
    pub(super) unplaced: BTreeMap<TaskId, Option<String>>,
    /// Tasks that wait for room, on the node on which they will be.
    waiting: Vec<Arc<Task>>,
}

/// A node on which there would be room, and who has to go for it.
struct Offer {
    node: NodeId,
    host: String,
    /// Somebody has been told to go for this task there.
    mine: bool,
    victims: Vec<Arc<Task>>,
}

impl Room {
    /// Whether a task waits for room.
    pub(super) fn waits(&self, id: TaskId) -> bool {
        self.waiting.iter().any(|t| t.id == id)
    }

    /// Makes room for a task that found no node; answers the host where it is made. What is leaving anyway is waited for; else the
    /// tasks of the lowest priority go, and as few as will do.
    pub(super) fn make(
        &mut self,
        scratch: &mut Scratch,
        unheard: &BTreeSet<NodeId>,
        task: &Arc<Task>,
    ) -> Option<String> {
        if task.spec.priority == 0 {
            return None;
        }
        let asked = filter::Asked::of(scratch, task);
        let offers = candidates(scratch, task).filter(|n| !unheard.contains(&n.id));
        let offers = offers.filter_map(|n| self.offer(scratch, n, task, &asked));
        let best = offers.min_by_key(|o| {
            let highest = o.victims.iter().map(|t| t.spec.priority).max();
            (!o.mine, highest, o.victims.len(), o.node)
        })?;
        let reason = reason(task);
        for victim in &best.victims {
            scratch.edit_task(victim.id, |t| {
                t.desired = t.desired.max(DesiredState::Shutdown);
                t.status.error.clone_from(&reason);
            });
            self.evicted.insert(victim.service);
        }
        self.kept.insert(best.node);
        self.waiting.push(Arc::new(Task {
            node: Some(best.node),
            ..(**task).clone()
        }));
        Some(best.host)
    }

    fn offer(&self, state: &State, node: &Node, task: &Task, asked: &filter::Asked) -> Option<Offer> {
        let there = || {
            state
                .tasks_of_node(node.id)
                .filter(|t| !t.status.state.is_terminal())
        };
        let mut gone: Vec<TaskId> = there().filter(|t| !t.desired.is_live()).map(|t| t.id).collect();
        let waiting: Vec<Arc<Task>> = (self.waiting.iter())
            .filter(|t| t.node == Some(node.id))
            .cloned()
            .collect();
        let fits = |gone: &[TaskId]| {
            filter::check_by(&state.as_if(gone, waiting.iter().cloned()), node, task, asked).is_none()
        };
        let reason = reason(task);
        let mine = there().any(|t| !t.desired.is_live() && t.status.error == reason);
        let mut victims: Vec<Arc<Task>> = there()
            .filter(|t| {
                t.desired.is_live() && t.service != task.service && t.spec.priority < task.spec.priority
            })
            .cloned()
            .collect();
        // The lowest first, and of those the youngest.
        victims.sort_by_key(|t| (t.spec.priority, Reverse(t.meta.created_at), t.id));
        let mut going: Vec<Arc<Task>> = Vec::new();
        let mut rest = victims.into_iter();
        while !fits(&gone) {
            let next = rest.next()?;
            gone.push(next.id);
            going.push(next);
        }
        // Who went for nothing, as what was asked came of others, stays: the highest first.
        for at in (0..going.len()).rev() {
            let without: Vec<TaskId> = gone.iter().copied().filter(|id| *id != going[at].id).collect();
            if fits(&without) {
                gone = without;
                going.remove(at);
            }
        }
        Some(Offer {
            node: node.id,
            host: node.description.hostname.clone(),
            mine,
            victims: going,
        })
    }
}

/// What a task says that goes for another.
fn reason(task: &Task) -> String {
    format!("{PREEMPTED}{} (priority {})", task.name(), task.spec.priority)
}
