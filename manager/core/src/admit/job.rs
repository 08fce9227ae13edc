//! Jobs: what they may ask for, and when they run.

use std::sync::Arc;

use model::Timestamp;
use model::job::JobStatus;
use model::object::{Endpoint, Key, Service};
use model::spec::{Concurrency, HISTORY_MAX, RUNS_ACTIVE_MAX, RestartCondition, ServiceSpec, UpdateConfig};

use super::service::{host_ports, missing};
use super::{Admitted, Refusal, RefusalKind, validate};
use crate::orchestrate::{job, revision};
use crate::state::{Kind, Scratch, State};

/// Checks what of a job does not depend on the state.
pub(super) fn check(spec: &ServiceSpec) -> Result<(), String> {
    if !spec.mode.is_job() {
        return match &spec.schedule {
            None => Ok(()),
            Some(_) => Err(format!(
                "a schedule is for jobs, and its mode is {}: use mode replicated-job or global-job",
                spec.mode.as_str()
            )),
        };
    }
    if spec.task.restart.condition == RestartCondition::Any {
        return Err(
            "restart condition any would run a job for ever: use on-failure, the default of jobs, or none"
                .into(),
        );
    }
    if spec.update != UpdateConfig::default() || spec.rollback != UpdateConfig::default() {
        return Err("a job has no rollout: take out what is said of update and rollback".into());
    }
    let Some(schedule) = &spec.schedule else {
        return Ok(());
    };
    if !(1..=HISTORY_MAX).contains(&schedule.history) {
        return Err(format!(
            "schedule: a history of {} runs is not between 1 and {HISTORY_MAX}",
            schedule.history
        ));
    }
    validate::duration("schedule: starting deadline", schedule.starting_deadline)
}

fn at(spec: &ServiceSpec, problem: &str) -> Refusal {
    Refusal::invalid(format!("service {}: {problem}", spec.name))
}

/// The runs of a service that is made now; none: it is no job.
pub(super) fn begins(spec: &ServiceSpec, now: Timestamp) -> Result<Option<JobStatus>, Refusal> {
    job::begins(spec, now).map_err(|e| at(spec, &e))
}

/// Puts a new spec of a job in place. Without a schedule another thing to run begins a new run in the place of the one
/// under way; with one, it is what the next run has. Anything else, scaling and labels too, begins nothing (trap D15).
pub(super) fn change(
    scratch: &mut Scratch,
    service: &Service,
    spec: ServiceSpec,
    endpoint: Endpoint,
    now: Timestamp,
) -> Result<(), Refusal> {
    let other = spec.task != service.spec.task || host_ports(&endpoint) != host_ports(&service.endpoint);
    let mut status = service.job.clone().unwrap_or_default();
    if spec.schedule != service.spec.schedule {
        status.next_at = job::next_of(&spec, now).map_err(|e| at(&spec, &e))?;
    }
    // One whose schedule was taken out before it ever fired is as one that was made without.
    let never = status.runs.is_empty();
    // One that had a schedule may still run what it ran before.
    let stale = service.spec.schedule.is_some()
        && status
            .active()
            .any(|r| job::is_older(scratch, service, r.iteration));
    if spec.schedule.is_none() && (other || never || stale) {
        let done = |run| job::completed(scratch, service.id, run);
        status.begin(&spec, Concurrency::Replace, None, now, done);
    }
    status.forget(&spec);
    scratch.edit_service(service.id, |s| {
        s.spec_version += u64::from(other);
        if other && s.made.is_some() {
            s.made = Some(revision::made("update", now));
        }
        s.endpoint = endpoint;
        s.job = Some(status);
        s.spec = Arc::new(spec);
    });
    Ok(())
}

/// Runs a job now, once more.
///
/// # Errors
/// [`Refusal`] when it is missing, no job, or its rule for runs at the same time forbids another one.
pub fn run_job(state: &State, reference: &str, now: Timestamp) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Service, reference)?;
    let Key::Service(id) = key else {
        return Err(missing(reference));
    };
    let service = state.service(id).ok_or_else(|| missing(reference))?;
    let name = &service.spec.name;
    let Some(mut status) = service.job.clone() else {
        return Err(Refusal::invalid(format!(
            "service {name} is {}, and only jobs are run: use service update --force to replace its tasks",
            service.spec.mode.as_str()
        )));
    };
    if !job::begin(state, service, &mut status, None, now) {
        let active: Vec<String> = status.active().map(|r| r.iteration.to_string()).collect();
        let why = match job::concurrency(&service.spec) {
            Concurrency::Allow => format!("at most {RUNS_ACTIVE_MAX} go on at a time"),
            Concurrency::Forbid | Concurrency::Replace => "its concurrency is forbid".into(),
        };
        return Err(Refusal::new(
            RefusalKind::InUse,
            format!(
                "service {name}: run {} is under way, and {why}: rswarm service runs {name} shows when it is over",
                active.join(", ")
            ),
        ));
    }
    let mut scratch = Scratch::new(state);
    scratch.edit_service(id, |s| s.job = Some(status));
    Ok(Admitted::new(scratch, vec![key]))
}
