//! The state passes its own check: every index is a function of its table.

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    seen.after.check().map_err(|problems| problems.join("; "))
}
