//! Slots that failed in a rollout stay counted until it ends, whoever leads (I35).

use model::object::Object;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let (Some(Object::Service(before)), Some(Object::Service(after))) = (&change.before, &change.after)
        else {
            continue;
        };
        let (Some(was), Some(is)) = (&before.update, &after.update) else {
            continue;
        };
        let same = was.started_at == is.started_at && before.spec_version == after.spec_version;
        if same && !was.failed_slots.iter().all(|s| is.failed_slots.contains(s)) {
            return Err(format!(
                "{}: failed slots were {:?} and are {:?}",
                after.spec.name, was.failed_slots, is.failed_slots
            ));
        }
    }
    Ok(())
}
