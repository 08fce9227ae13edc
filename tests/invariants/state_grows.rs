//! The state of a task only grows, and what ended stays ended (I12).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        let (was, is) = (before.status.state, after.status.state);
        if is < was || (was.is_terminal() && is != was) {
            return Err(format!("task {} went from {was:?} to {is:?}", after.name()));
        }
    }
    Ok(())
}
