//! Room for tasks of a higher priority: which of a lower one go.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Node, Task};
use model::task_state::DesiredState;
use model::{NodeId, ServiceId, TaskId};

use super::{Choice, affinity, candidates, filter};
use crate::orchestrate::is_live;
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
    waiting: BTreeMap<TaskId, Arc<Task>>,
}

/// Nodes on which there would be room for tasks that are alike: one look at all of them is enough, as room that is made for one
/// changes what there is on that node alone.
pub(super) type Offers = BTreeMap<NodeId, Offer>;

/// A node on which there would be room, and who has to go for it.
pub(super) struct Offer {
    host: String,
    /// Why those go that are leaving anyway.
    leaving: BTreeSet<String>,
    victims: Vec<Arc<Task>>,
}

impl Room {
    /// Whether a task waits for room.
    pub(super) fn waits(&self, id: TaskId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Makes room for a task that found no node; answers the host where it is made. What is leaving anyway is waited for; else the
    /// tasks of the lowest priority go, and as few as will do. The choice remembers what was seen for those that are alike.
    pub(super) fn make(
        &mut self,
        scratch: &mut Scratch,
        unheard: &BTreeSet<NodeId>,
        task: &Arc<Task>,
        choice: &mut Choice,
    ) -> Option<String> {
        if task.spec.priority == 0 || is_of_a_move(scratch, task) {
            return None;
        }
        let known = choice.offers.take();
        let offers = known.unwrap_or_else(|| self.offers(scratch, unheard, choice));
        let offers = choice.offers.insert(offers);
        let reason = reason(task);
        let (node, best) = offers.iter().min_by_key(|(node, o)| {
            let highest = o.victims.iter().map(|t| t.spec.priority).max();
            (!o.leaving.contains(&reason), highest, o.victims.len(), **node)
        })?;
        let (node, host) = (*node, best.host.clone());
        for victim in &best.victims {
            scratch.edit_task(victim.id, |t| {
                t.desired = t.desired.max(DesiredState::Shutdown);
                t.status.error.clone_from(&reason);
            });
            self.evicted.insert(victim.service);
        }
        self.kept.insert(node);
        let there = Task {
            node: Some(node),
            ..(**task).clone()
        };
        self.waiting.insert(task.id, Arc::new(there));
        offers.remove(&node);
        if let Some(host) = scratch.node(node) {
            let offer = self.offer(scratch, host, &choice.task, &choice.asked);
            offers.extend(offer.map(|offer| (node, offer)));
        }
        Some(host)
    }

    /// Looks at the nodes that may take the task, whoever goes.
    fn offers(&self, state: &State, unheard: &BTreeSet<NodeId>, choice: &Choice) -> Offers {
        let Choice {
            task, asked, kinds, ..
        } = choice;
        if kinds.is_empty() {
            return Offers::new();
        }
        let may = |node: &&Arc<Node>| {
            let class = state.standing(node.id).class;
            class.is_some_and(|class| kinds.contains_key(&class))
                && !unheard.contains(&node.id)
                && asked.allows(node, task)
        };
        let offer = |node: &Arc<Node>| Some((node.id, self.offer(state, node, task, asked)?));
        candidates(state, task).filter(may).filter_map(offer).collect()
    }

    fn offer(&self, state: &State, node: &Node, task: &Task, asked: &filter::Asked) -> Option<Offer> {
        #[cfg(test)]
        tests::LOOKED.with(|looked| looked.set(looked.get() + 1));
        let (mut victims, mut gone, mut leaving) = (Vec::new(), Vec::new(), BTreeSet::new());
        for other in state
            .tasks_of_node(node.id)
            .filter(|t| !t.status.state.is_terminal())
        {
            if !other.desired.is_live() {
                gone.push(other.id);
                leaving.insert(other.status.error.clone());
            } else if other.service != task.service && other.spec.priority < task.spec.priority {
                victims.push(other.clone());
            }
        }
        let waits = self.kept.contains(&node.id);
        let waiting = waits.then(|| self.waiting.values().filter(|t| t.node == Some(node.id)));
        let start = state.as_if(&gone, waiting.into_iter().flatten().cloned());
        let fits = |then: &State| filter::check_by(then, node, task, asked).is_none();
        // The lowest first, and of those the youngest.
        victims.sort_by_key(|t| (t.spec.priority, Reverse(t.meta.created_at), t.id));
        let without = |then: &State, gone: &[Arc<Task>]| {
            let ids: Vec<TaskId> = gone.iter().map(|t| t.id).collect();
            then.as_if(&ids, [])
        };
        // Who wants company may lose it; nobody else minds who else goes.
        if !affinity::wants_company(task) && !fits(&without(&start, &victims)) {
            return None;
        }
        let mut going: Vec<Arc<Task>> = Vec::new();
        let mut then = start.clone();
        let mut rest = victims.into_iter();
        while !fits(&then) {
            let next = rest.next()?;
            then = then.as_if(&[next.id], []);
            going.push(next);
        }
        // Who went for nothing, as what was asked came of others, stays: the highest first.
        for at in (0..going.len()).rev() {
            let mut fewer = going.clone();
            fewer.remove(at);
            if fits(&without(&start, &fewer)) {
                going = fewer;
            }
        }
        Some(Offer {
            host: node.description.hostname.clone(),
            leaving,
            victims: going,
        })
    }
}

/// Whether a task is to come for one that may as well stay: nobody goes for that.
fn is_of_a_move(state: &State, task: &Task) -> bool {
    let stays = |t: &Arc<Task>| {
        let node = t.node.and_then(|id| state.node(id));
        t.moving > 0 && is_live(t) && node.is_some_and(|n| filter::takes(n))
    };
    state.tasks_of_slot(task.service, task.slot).any(stays)
}

/// What a task says that goes for another.
fn reason(task: &Task) -> String {
    format!("{PREEMPTED}{} (priority {})", task.name(), task.spec.priority)
}

#[cfg(test)]
#[path = "preempt_tests.rs"]
mod tests;
