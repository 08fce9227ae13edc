//! What a node knows from differences is what it would be told anew.

use manager_core::assignments;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (node, (_, known)) in &seen.cluster.views {
        let whole = seen.cluster.whole(*node);
        if whole != *known {
            let diff = assignments::diff(known, &whole);
            return Err(format!("node {} does not know: {diff:?}", node.0));
        }
    }
    Ok(())
}
