//! One spec takes the place of another: what is kept of it, and where a rollback goes.

use std::sync::Arc;

use model::object::{Made, Service, UpdateState, UpdateStatus};
use model::spec::ServiceSpec;
use model::{Level, ServiceId, Timestamp};

use crate::allocate;
use crate::state::{Scratch, State};

/// Whether the cluster writes down where specs come from: older builds would lose it.
fn keeps_history(state: &State) -> bool {
    state.cluster().is_some_and(|c| c.level >= Level::ROLLOUTS)
}

/// Where a first spec comes from.
pub(crate) fn first(state: &State, now: Timestamp) -> Option<Made> {
    keeps_history(state).then(|| made("create", now))
}

fn made(cause: &str, at: Timestamp) -> Made {
    Made {
        at,
        by: String::new(),
        cause: cause.into(),
    }
}

/// Begins to roll out a spec. The one to go back to stays the last that was not itself still on its way: a second change of a
/// rollout that went wrong must not make the wrong one what is gone back to.
pub(crate) fn begin(scratch: &mut Scratch, id: ServiceId, spec: ServiceSpec, now: Timestamp) {
    let keeps = keeps_history(scratch);
    scratch.edit_service(id, |s| {
        let forward = matches!(
            s.update.as_ref().map(|u| u.state),
            Some(UpdateState::Updating | UpdateState::Paused | UpdateState::Canary)
        );
        let stays = keeps && forward && s.previous_spec.is_some();
        supersede(s, spec, keeps.then(|| made("update", now)), !stays);
        s.update = Some(UpdateStatus::begun(
            UpdateState::Updating,
            now,
            "update in progress",
        ));
    });
}

/// Puts a spec in place of another, which becomes what is gone back to where `goes_back` says so.
fn supersede(s: &mut Service, spec: ServiceSpec, made: Option<Made>, goes_back: bool) {
    let number = s.spec_version;
    if goes_back {
        s.previous_spec = Some(s.spec.clone());
        s.previous_version = if made.is_some() { number } else { 0 };
    } else if s.previous_version == 0 {
        s.previous_version = s.previous_number();
    }
    if made.is_some() {
        s.made = made;
    }
    s.spec = Arc::new(spec);
    s.spec_version += 1;
}

/// Makes an earlier spec the spec again, the one to go back to where no number is given; the number of replicas stays (trap
/// D5). It gets a number of its own: what was between them stays in the history.
pub(crate) fn roll_back(
    scratch: &mut Scratch,
    id: ServiceId,
    to: Option<u64>,
    now: Timestamp,
    message: &str,
    cause: &str,
) {
    let keeps = keeps_history(scratch);
    let Some(service) = scratch.service(id).cloned() else {
        return;
    };
    let number = to.unwrap_or_else(|| service.previous_number());
    let earlier = match to {
        Some(number) => service.revision(number),
        None => service.previous_spec.as_ref(),
    };
    let Some(earlier) = earlier else { return };
    let spec = ServiceSpec {
        mode: service.spec.mode.clone(),
        name: service.spec.name.clone(),
        ..(**earlier).clone()
    };
    scratch.edit_service(id, |s| {
        supersede(
            s,
            spec,
            keeps.then(|| made(&format!("{cause} to {number}"), now)),
            true,
        );
        s.update = Some(UpdateStatus::begun(UpdateState::RollbackStarted, now, message));
    });
    // Ports and virtual addresses follow the spec that is now wanted, unless somebody else took them meanwhile: then
    // the service stays reachable as it is.
    if let Some(s) = scratch.service(id).cloned()
        && let Ok(endpoint) = allocate::endpoint(scratch, &s.spec, id, &s.endpoint)
    {
        scratch.edit_service(id, |s| s.endpoint = endpoint);
    }
}
