//! A task that is told to make room has a lower priority than the one it makes room for.

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        if !before.desired.is_live() || after.desired.is_live() {
            continue;
        }
        let Some(by) = after.status.error.strip_prefix("preempted by ") else {
            continue;
        };
        let higher = seen.before.tasks().chain(seen.after.tasks()).any(|t| {
            t.spec.priority > after.spec.priority
                && by == format!("{} (priority {})", t.name(), t.spec.priority)
        });
        if !higher {
            return Err(format!(
                "{} of priority {} was {}",
                after.name(),
                after.spec.priority,
                after.status.error
            ));
        }
    }
    Ok(())
}
