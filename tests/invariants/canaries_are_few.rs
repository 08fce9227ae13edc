//! A rollout with canaries changes no more slots before it is promoted, and one that stands changes none (trap D4).

use std::collections::BTreeSet;

use model::object::{Object, Service, SlotKey, Task, UpdateState};

use super::Seen;
use crate::sim::log::Source;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    if seen.source != Source::Plan {
        return Ok(());
    }
    for change in &seen.changes.items {
        let (None, Some(Object::Task(task))) = (&change.before, &change.after) else {
            continue;
        };
        // Decided on the service as it was before this entry.
        let (Some(service), Some(_)) = (
            seen.before.service(task.service),
            seen.after.service(task.service),
        ) else {
            continue;
        };
        let new = |t: &Task| t.spec_version == service.spec_version;
        if !new(task) {
            continue;
        }
        let Some(update) = &service.update else { continue };
        let had: BTreeSet<SlotKey> = (seen.before.tasks_of_service(service.id))
            .filter(|t| service.is_current(t))
            .map(|t| t.slot)
            .collect();
        let spreads = !had.contains(&task.slot);
        let stands = matches!(
            update.state,
            UpdateState::Paused | UpdateState::RollbackPaused | UpdateState::Canary
        );
        if stands && spreads && is_same_rollout(seen, service) {
            return Err(format!("{} got the spec of a rollout that stands", task.name()));
        }
        let most = service.spec.update.canary as usize;
        let asks = update.state == UpdateState::Updating && most > 0 && !update.promoted;
        let after: BTreeSet<SlotKey> = (seen.after.tasks_of_service(service.id))
            .filter(|t| new(t) && t.desired.is_live() && !t.status.state.is_terminal())
            .filter(|t| t.meta.created_at >= update.started_at)
            .map(|t| t.slot)
            .collect();
        // A slot that never had a task is no part of a rollout that is over with this entry.
        let is_over = (seen.after.service(service.id)).is_some_and(|s| {
            s.update
                .as_ref()
                .is_some_and(|u| u.state == UpdateState::Completed)
        });
        let is_new = !(seen.before.tasks_of_service(service.id)).any(|t| t.slot == task.slot);
        if asks && spreads && after.len() > most && is_same_rollout(seen, service) && !(is_over && is_new) {
            return Err(format!(
                "{} slots of {} have the new spec, {most} canaries",
                after.len(),
                service.spec.name
            ));
        }
    }
    Ok(())
}

/// Whether the entry itself did not begin another rollout.
fn is_same_rollout(seen: &Seen<'_>, before: &Service) -> bool {
    let after = seen.after.service(before.id);
    after.is_some_and(|s| s.spec_version == before.spec_version)
}
