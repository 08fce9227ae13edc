//! A task is given only a node that is ready, active and meets its constraints (I26, I27).

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
