//! A task ends by its own doing, by its host's power, or because somebody stopped it: an agent that starts ends none (M5).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let Some((node, _)) = &seen.cluster.reporting else {
        return Ok(());
    };
    let Some(host) = seen.cluster.hosts.get(node) else {
        return Ok(());
    };
    for (before, after) in seen.tasks() {
        if before.status.state.is_terminal() || !after.status.state.is_terminal() {
            continue;
        }
        // Its agent may have forgotten it while the report was under way.
        let explained = host.tasks.get(&after.id).is_none_or(|local| local.is_explained());
        if before.desired.is_live() && !explained {
            return Err(format!("{} ended and nobody knows why", after.name()));
        }
    }
    Ok(())
}
