//! What operators do with a rollout: go back, pause, resume, promote, abort.

use std::sync::Arc;

use model::object::{Key, Service, UpdateState, UpdateStatus};
use model::{Level, Timestamp};

use super::service::{named, resolve};
use super::{Admitted, Refusal, level, order};
use crate::allocate;
use crate::orchestrate::{drop_prepared, revision};
use crate::state::{Scratch, State};

/// What is done with a rollout that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Changes no further slot until it is resumed; slots that are half-way keep their old task.
    Pause,
    /// Goes on where it was paused, by an operator or by failures; those are forgotten.
    Resume,
    /// Changes the rest, after the canaries.
    Promote,
    /// Goes back to the spec from before it.
    Abort,
}

impl Steer {
    /// Its name, as commands have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

/// Goes back to the spec before the last change of what tasks run, or to the one with a number.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or has no such spec to go back to.
pub fn rollback_service(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    to: Option<u64>,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    go_back(
        state,
        named(state, reference, expected)?,
        to,
        now,
        ("manually requested rollback", "rollback"),
    )
}

fn go_back(
    state: &State,
    service: &Arc<Service>,
    to: Option<u64>,
    now: Timestamp,
    (message, cause): (&str, &str),
) -> Result<Admitted, Refusal> {
    let name = &service.spec.name;
    if service.spec.mode.is_job() {
        return Err(Refusal::invalid(format!(
            "service {name} is a job, which has no rollout to go back from: change it with service update"
        )));
    }
    let earlier = match to {
        None => service.previous_spec.as_ref().ok_or_else(|| {
            Refusal::invalid(format!(
                "service {name} has no earlier spec to go back to: it was never updated"
            ))
        })?,
        Some(number) if number == service.spec_version => {
            return Err(Refusal::invalid(format!(
                "service {name} has revision {number} now: there is nothing to go back to"
            )));
        }
        Some(number) => service.revision(number).ok_or_else(|| {
            Refusal::invalid(format!(
                "service {name} has no revision {number}, or it is too old to be kept: rswarm service history {name} shows those there are"
            ))
        })?,
    };
    let mut scratch = Scratch::new(state);
    // What it names may be gone, and its ports may be somebody else's, by now.
    resolve(&scratch, &mut (**earlier).clone())?;
    allocate::endpoint(&scratch, earlier, service.id, &service.endpoint)?;
    revision::roll_back(&mut scratch, service.id, to, now, message, cause);
    order::circle(&scratch, service.id)?;
    Ok(Admitted::new(scratch, vec![Key::Service(service.id)]))
}

/// Pauses, resumes, promotes or aborts the rollout of a service.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or has no rollout with which that can be done now.
pub fn steer_rollout(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    steer: Steer,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    let service = named(state, reference, expected)?;
    let name = &service.spec.name;
    let what = format!("service {name}: {} of a rollout", steer.as_str());
    level::needs(state, Level::ROLLOUTS, &what, "not know of it")?;
    let no = |why: &str| {
        let verb = steer.as_str();
        Err(Refusal::invalid(format!(
            "cannot {verb} the rollout of service {name}: {why}"
        )))
    };
    let Some(status) = service.update.as_ref().filter(|_| service.is_between_specs()) else {
        return no("there is none under way");
    };
    let changed = match (steer, status.state) {
        (Steer::Abort, UpdateState::RollbackStarted | UpdateState::RollbackPaused) => {
            return no("it goes back already");
        }
        (Steer::Abort, _) => {
            return go_back(
                state,
                service,
                None,
                now,
                ("aborted by an operator", "abort: back"),
            );
        }
        (Steer::Pause, UpdateState::Updating) => paused(status, UpdateState::Paused),
        (Steer::Pause, UpdateState::RollbackStarted) => paused(status, UpdateState::RollbackPaused),
        (Steer::Pause, _) => return no("it stands already"),
        (Steer::Resume, UpdateState::Paused) => UpdateStatus {
            promoted: status.promoted,
            ..UpdateStatus::begun(UpdateState::Updating, now, "update resumed")
        },
        (Steer::Resume, UpdateState::RollbackPaused) => {
            UpdateStatus::begun(UpdateState::RollbackStarted, now, "rollback resumed")
        }
        (Steer::Resume, UpdateState::Canary) => {
            return no("its canaries wait for you: promote or abort it");
        }
        (Steer::Resume, _) => return no("it is not paused"),
        (Steer::Promote, UpdateState::Canary) => UpdateStatus {
            state: UpdateState::Updating,
            message: "update promoted".into(),
            promoted: true,
            ..status.clone()
        },
        (Steer::Promote, UpdateState::Updating) if service.spec.update.canary > 0 && !status.promoted => {
            UpdateStatus {
                promoted: true,
                ..status.clone()
            }
        }
        (Steer::Promote, _) => return no("it has no canaries that wait"),
    };
    let mut scratch = Scratch::new(state);
    if steer == Steer::Pause {
        drop_prepared(&mut scratch, service);
    }
    scratch.edit_service(service.id, |s| s.update = Some(changed));
    Ok(Admitted::new(scratch, vec![Key::Service(service.id)]))
}

fn paused(status: &UpdateStatus, state: UpdateState) -> UpdateStatus {
    UpdateStatus {
        state,
        message: "paused by an operator".into(),
        timed_out: false,
        ..status.clone()
    }
}
