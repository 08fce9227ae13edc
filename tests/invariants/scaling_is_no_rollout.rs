//! What changes no task leaves rollout, history and the spec to go back to alone (D4, D5).

use model::object::Object;

use super::Seen;
use crate::sim::log::Source;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let (Some(Object::Service(before)), Some(Object::Service(after))) = (&change.before, &change.after)
        else {
            continue;
        };
        let scaled = before.spec != after.spec && before.spec_version == after.spec_version;
        if seen.source != Source::Admit || !scaled {
            continue;
        }
        if before.update != after.update {
            return Err(format!(
                "scaling_is_no_rollout (D4): {} was changed without a rollout, and its rollout is {:?}, was {:?}",
                after.spec.name, after.update, before.update
            ));
        }
        if (&before.previous_spec, &before.history) != (&after.previous_spec, &after.history) {
            return Err(format!(
                "scaling_is_no_rollout (D5): {} was changed without a rollout, and goes back elsewhere",
                after.spec.name
            ));
        }
    }
    Ok(())
}
