//! A slot has one task that is wanted running; two while a start-first rollout changes it or it moves (I20).

use std::collections::BTreeMap;

use model::object::NodeState;
use model::task_state::DesiredState;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let mut slots = BTreeMap::new();
    let down = |n| {
        seen.after
            .node(n)
            .is_none_or(|n| n.status.state == NodeState::Down)
    };
    for task in seen.after.tasks() {
        let live = task.desired == DesiredState::Running && !task.status.state.is_terminal();
        if live && !task.node.is_some_and(down) {
            *slots
                .entry((task.service, task.slot, task.iteration))
                .or_insert(0) += 1;
        }
    }
    for ((id, slot, _), count) in slots {
        let Some(service) = seen.after.service(id) else {
            continue;
        };
        // A rollout that takes the place of a start-first one, or goes back from it, finds its pairs.
        let start_first = service.update.is_some() && seen.cluster.start_first.contains(&id);
        let two = start_first || seen.cluster.moved.contains(&(id, slot));
        if count > if two { 2 } else { 1 } {
            return Err(format!(
                "slot {slot:?} of {} has {count} tasks that are wanted running",
                service.spec.name
            ));
        }
    }
    Ok(())
}
