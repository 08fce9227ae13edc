//! What a node knows from differences is what it would be told anew.

use manager_core::assignments;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for node in seen.after.nodes() {
        let whole = assignments::for_node(seen.after, node.id);
        let known = seen.cluster.views.get(&node.id).cloned().unwrap_or_default();
        if whole != known {
            let diff = assignments::diff(&known, &whole);
            return Err(format!(
                "node {} does not know: {diff:?}",
                node.description.hostname
            ));
        }
    }
    Ok(())
}
