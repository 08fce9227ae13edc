//! A rollback is never rolled back by itself, and ends as a rollback (I36).

use model::object::{Object, UpdateState};

use super::Seen;
use crate::sim::log::Source;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let (Some(Object::Service(before)), Some(Object::Service(after))) = (&change.before, &change.after)
        else {
            continue;
        };
        let (Some(was), Some(is)) = (&before.update, &after.update) else {
            continue;
        };
        let back = was.state == UpdateState::RollbackStarted;
        let ends_so = matches!(
            is.state,
            UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted
        );
        let again = was.started_at != is.started_at;
        if seen.source == Source::Plan && back && (!ends_so || again) {
            return Err(format!(
                "the rollback of {} became {:?}",
                after.spec.name, is.state
            ));
        }
    }
    Ok(())
}
