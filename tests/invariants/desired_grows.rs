//! What is wanted of a task only grows (I13).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        if after.desired < before.desired {
            return Err(format!(
                "task {}: wanted {:?}, then {:?}",
                after.name(),
                before.desired,
                after.desired
            ));
        }
    }
    Ok(())
}
