//! A task is given only a node that is ready, active and meets its constraints, with room among its siblings (I25-I27),
//! and that the leader has heard of itself.

use std::collections::BTreeSet;

use manager_core::schedule::filter;
use model::object::{Availability, NodeState, Object};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let Some(Object::Task(after)) = &change.after else {
            continue;
        };
        let had = matches!(&change.before, Some(Object::Task(t)) if t.node.is_some());
        let Some(id) = after.node.filter(|_| !had) else {
            continue;
        };
        let fits = seen.before.node(id).is_some_and(|n| {
            n.status.state == NodeState::Ready
                && n.spec.availability == Availability::Active
                && filter::suits(n, &after.spec)
        });
        let most = after.spec.placement.max_replicas_per_node;
        // Slots, as a rollout that starts first has two tasks in one; under another bound others may be beside them.
        let siblings = seen.after.tasks_of_service(after.service).filter(|t| {
            let live = t.desired.is_live() && !t.status.state.is_terminal();
            live && t.node == Some(id) && t.spec.placement.max_replicas_per_node == most
        });
        let slots: BTreeSet<_> = siblings.map(|t| t.slot).collect();
        let fits = fits && (most == 0 || slots.len() <= most as usize);
        let cluster = seen.cluster;
        if cluster.managers.lead.is_some() && !cluster.heard.contains_key(&id) {
            return Err(format!(
                "task {} was given node {}, which this leader has not heard of",
                after.name(),
                id.0
            ));
        }
        if !fits {
            return Err(format!(
                "task {} was given node {}, which may not have it",
                after.name(),
                id.0
            ));
        }
    }
    Ok(())
}
