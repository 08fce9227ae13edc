//! Which tasks of a service would be better elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Node, Task};
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, ServiceId};

use super::{Choice, Closed, Load, next, spread};
use crate::state::State;

/// Tasks of a service that would find a node where there are fewer, in the order in which they are to move: as if each had moved
/// before the next is looked at. None once it is as even as what it asks of nodes allows,
/// nor while some move already.
pub(crate) fn moves(state: &State, service: ServiceId) -> Vec<Arc<Task>> {
    let moves = |t: &Arc<Task>| t.moving > 0 && t.desired.is_live() && !t.status.state.is_terminal();
    if state.tasks_of_service(service).any(moves) {
        return Vec::new();
    }
    let (mut trial, mut found) = (state.clone(), Vec::new());
    let most = state.tasks_of_service(service).count();
    while found.len() < most
        && let Some((task, then)) = first(&trial, service)
    {
        trial = trial.as_if(&[task.id], [then]);
        found.push(task);
    }
    found
}

/// A task as it were on another node.
fn on(task: &Arc<Task>, node: Option<NodeId>) -> Arc<Task> {
    Arc::new(Task {
        node,
        ..(**task).clone()
    })
}

/// Where one more task like this goes.
fn best(state: &State, task: &Task, load: &Load) -> Option<NodeId> {
    let nobody = BTreeSet::new();
    let closed = Closed {
        unheard: &nobody,
        kept: &nobody,
    };
    Choice::of(state, closed, Arc::new(next(task)), load).best()
}

/// The first task that would be better elsewhere, and as it were there.
fn first(state: &State, service: ServiceId) -> Option<(Arc<Task>, Arc<Task>)> {
    let mut by_node: BTreeMap<_, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.tasks_of_service(service).filter(|t| settled(t)) {
        by_node.entry(task.node?).or_default().push(task);
    }
    let mut sources: Vec<_> = by_node.into_iter().collect();
    sources.sort_by_key(|(node, tasks)| (std::cmp::Reverse(tasks.len()), *node));
    // Nodes that are alike in this need be asked once.
    let mut stays: BTreeSet<Vec<usize>> = BTreeSet::new();
    for (node, tasks) in sources {
        let (Some(from), Some(task)) = (state.node(node), tasks.last()) else {
            continue;
        };
        let without = state.as_if(&[task.id], []);
        let load = Load::of(&without, service, state.time());
        let crowd = |node: &Node| crowd(&without, task, &load, node);
        let here = crowd(from);
        if stays.contains(&here) {
            continue;
        }
        let there = best(&without, task, &load).and_then(|id| without.node(id));
        if let Some(there) = there.filter(|n| crowd(n) < here) {
            return Some(((*task).clone(), on(task, Some(there.id))));
        }
        stays.insert(here);
    }
    None
}

/// Whether a task runs and is to go on as it does.
fn settled(task: &Task) -> bool {
    task.desired == DesiredState::Running && task.status.state == TaskState::Running && task.moving == 0
}

/// How many tasks of the service there are on the branches of a node, the outermost first, and on itself.
fn crowd(state: &State, task: &Task, load: &Load, node: &Node) -> Vec<usize> {
    let preferences = &task.spec.placement.spread;
    let mut counts = vec![0; preferences.len() + 1];
    for (id, tasks) in &load.tasks {
        let Some(other) = state.node(*id) else { continue };
        let same = |p: &&String| spread::value(other, p) == spread::value(node, p);
        let common = preferences.iter().take_while(same).count();
        counts[..common].iter_mut().for_each(|count| *count += tasks);
        if *id == node.id {
            counts[preferences.len()] += tasks;
        }
    }
    counts
}
