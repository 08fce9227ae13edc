//! Only the current session of a node writes reports (I39).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let Some((node, session)) = &seen.cluster.reporting else {
        return Ok(());
    };
    let lead = seen.cluster.managers.lead.as_ref();
    if lead.is_some_and(|l| l.watch.is_current(*node, session)) {
        return Ok(());
    }
    Err(format!(
        "node {} wrote a report in session {session}, which has ended",
        node.0
    ))
}
