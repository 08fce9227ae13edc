//! Generic resources of a node: whether enough are free, and which of those with names a task is given.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::NodeId;
use model::object::{Node, Task};
use model::spec::Names;

use super::filter::replaces;
use crate::state::State;

/// Whether a node has as many of each kind as a task asks for, free or not.
pub(super) fn has_enough(node: &Node, task: &Task) -> bool {
    let asked = &task.spec.resources.reservations.generic;
    asked
        .iter()
        .all(|(kind, count)| *count <= node.description.generic.total(kind))
}

/// Whether a node has as many of each kind free as a task asks for.
pub(super) fn has_room(state: &State, node: &Node, task: &Task) -> bool {
    let asked = &task.spec.resources.reservations.generic;
    asked.iter().all(|(kind, count)| {
        let taken: u64 = (holders(state, node, task))
            .map(|t| {
                t.spec
                    .resources
                    .reservations
                    .generic
                    .get(kind)
                    .copied()
                    .unwrap_or(0)
            })
            .fold(0, u64::saturating_add);
        taken.saturating_add(*count) <= node.description.generic.total(kind)
    })
}

/// Those of a node's named resources that a task gets: of each kind the first that are free. One that replaces a task of the same
/// slot may get what that had, which is over before it begins.
pub(super) fn grant(state: &State, node: NodeId, task: &Task) -> Names {
    let asked = &task.spec.resources.reservations.generic;
    if asked.is_empty() {
        return Names::new();
    }
    let Some(node) = state.node(node) else {
        return Names::new();
    };
    let granted = asked.iter().filter_map(|(kind, count)| {
        let all = node.description.generic.named.get(kind)?;
        let taken: BTreeSet<&String> = (holders(state, node, task))
            .filter_map(|t| t.granted.get(kind))
            .flatten()
            .collect();
        let count = usize::try_from(*count).unwrap_or(usize::MAX);
        let free = all.iter().filter(|name| !taken.contains(name));
        Some((kind.clone(), free.take(count).cloned().collect()))
    });
    granted.collect()
}

/// Unfinished tasks of a node that keep what they have while a task is there.
fn holders<'a>(state: &'a State, node: &Node, task: &'a Task) -> impl Iterator<Item = &'a Arc<Task>> + 'a {
    let there = state.tasks_of_node(node.id);
    there.filter(|t| t.id != task.id && !t.status.state.is_terminal() && !replaces(task, t))
}
