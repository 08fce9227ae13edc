//! A task never changes its node, once it has one, nor its spec, service or slot (I14, I15).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        let moved = before.node.is_some() && before.node != after.node;
        let changed = before.spec != after.spec
            || before.spec_version != after.spec_version
            || (before.service, before.slot) != (after.service, after.slot);
        if moved || changed {
            return Err(format!("task {} changed its node or spec", after.name()));
        }
    }
    Ok(())
}
