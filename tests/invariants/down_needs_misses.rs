//! A node is declared down only after three heartbeats that its leader did not get, by the time itself (I42).

use manager_core::node_health::MISSES;
use model::object::{NodeState, Object};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let Some(lead) = &seen.cluster.managers.lead else {
        return Ok(());
    };
    for change in &seen.changes.items {
        let (Some(Object::Node(before)), Some(Object::Node(after))) = (&change.before, &change.after) else {
            continue;
        };
        if before.status.state == NodeState::Down || after.status.state != NodeState::Down {
            continue;
        }
        let last = seen.cluster.heard.get(&after.id).copied().unwrap_or(lead.since);
        let silent = seen.cluster.now.since(last);
        if silent < seen.cluster.period() * MISSES {
            return Err(format!("node {} is down after {silent:?}", after.id.0));
        }
    }
    Ok(())
}
