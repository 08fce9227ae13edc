//! What an entry writes has its index as version, higher than before (I11).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let was = change.before.as_ref().map_or(0, |o| o.meta().version);
        let is = change
            .after
            .as_ref()
            .map_or(seen.entry.index, |o| o.meta().version);
        if is != seen.entry.index || was >= is {
            return Err(format!(
                "{:?} went from version {was} to {is} by entry {}",
                change.key, seen.entry.index
            ));
        }
    }
    Ok(())
}
