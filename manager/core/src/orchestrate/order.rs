//! What services wait for: others that have to run, be healthy or be done before they start, change or go.
//!
//! All of it is read from the services and their tasks, and why one waits is said where it is asked for: nothing of it is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::ServiceId;
use model::job::RunState;
use model::object::{Key, Service, SlotKey, Task, UpdateState, UpdateStatus};
use model::spec::{Dependency, DependencyCondition, RestartCondition, ServiceMode, TaskSpec};
use model::task_state::{DesiredState, TaskState};

use super::{by_slot, holds_slot, is_live, update};
use crate::state::{Kind, Scratch, State};

/// Whether a task of this spec may not run yet: no other task of its service runs, and what it depends on does not hold. What comes
/// to fail later stops nothing. A run of a job also lets a rollout end first, as it has none of its own that would.
pub(super) fn holds_back(scratch: &mut Scratch, id: ServiceId, spec: &TaskSpec) -> bool {
    if spec.depends_on.is_empty() {
        return false;
    }
    let why = match running(scratch, id) {
        Some(task) => Ok(vec![Key::Task(task.id)]),
        None => lets_run(scratch, id, spec),
    };
    relies(scratch, why)
}

fn lets_run(state: &State, id: ServiceId, spec: &TaskSpec) -> Result<Vec<Key>, String> {
    if state.service(id).is_some_and(|s| s.spec.mode.is_job()) {
        unchanging(state, spec, |s| {
            s.update.as_ref().is_some_and(|u| u.state.is_active())
        })?;
    }
    met(state, spec)
}

/// Whether a rollout may not change slots yet: what the new spec depends on is itself being changed, or does not hold. One
/// that has begun goes on, and going back waits for nothing as long as a task runs.
pub(super) fn holds_up(
    scratch: &mut Scratch,
    service: &Service,
    status: &UpdateStatus,
    begun: usize,
) -> bool {
    let spec = &service.spec.task;
    if status.state == UpdateState::Updating && begun == 0 {
        let why = settled(scratch, spec);
        return relies(scratch, why);
    }
    holds_back(scratch, service.id, spec)
}

/// Whether something stands in the way; what shows that nothing does must still be so when the decision is written.
fn relies(scratch: &mut Scratch, why: Result<Vec<Key>, String>) -> bool {
    let Ok(shown_by) = why else { return true };
    shown_by.into_iter().for_each(|key| scratch.rely_on(key));
    false
}

/// Whether the tasks of a removed service go on for now: tasks of others that were removed depend on it, and have not ended.
/// Those that wait for one another all go at once.
pub(super) fn is_needed(state: &State, id: ServiceId) -> bool {
    let names = |id| -> BTreeSet<String> {
        let tasks = state.tasks_of_service(id);
        tasks.map(|t| t.service_name.clone()).collect()
    };
    let (mut seen, mut todo) = (BTreeSet::new(), vec![id]);
    while let Some(next) = todo.pop() {
        for by in names(next)
            .iter()
            .flat_map(|name| leaving_dependents(state, name))
        {
            if by == id {
                return false;
            }
            if seen.insert(by) {
                todo.push(by);
            }
        }
    }
    !seen.is_empty()
}

/// Removed services with tasks that depend on a service of this name, and may still have a process.
fn leaving_dependents(state: &State, name: &str) -> Vec<ServiceId> {
    let gone = state.dependents(name).into_iter();
    let gone = gone.filter(|id| state.service(*id).is_none());
    let on_it = |t: &Task| t.spec.depends_on.iter().any(|d| d.service == name);
    gone.filter(|id| {
        (state.tasks_of_service(*id))
            .any(|t| on_it(t) && t.status.state >= TaskState::Assigned && holds_slot(state, t))
    })
    .collect()
}

/// Why a task that is prepared does not run yet; none: it does, or waits for something else.
pub fn task_waits(state: &State, task: &Task) -> Option<String> {
    let waits = task.desired == DesiredState::Ready && is_live(task) && !task.spec.depends_on.is_empty();
    if !waits || running(state, task.service).is_some() {
        return None;
    }
    lets_run(state, task.service, &task.spec).err()
}

/// Why a rollout has not begun yet; none: it has, or there is none.
pub fn rollout_waits(state: &State, service: &Service) -> Option<String> {
    let status = service.update.as_ref()?;
    let begun = || update::begun(service, &by_slot(state, service.id)) > 0;
    let may_wait = status.state == UpdateState::Updating && !service.spec.task.depends_on.is_empty();
    if !may_wait || begun() {
        return None;
    }
    settled(state, &service.spec.task).err()
}

fn running(state: &State, id: ServiceId) -> Option<&Arc<Task>> {
    let runs = |t: &&Arc<Task>| t.status.state == TaskState::Running;
    state.tasks_of_service(id).find(runs)
}

/// What shows that everything a spec depends on holds.
///
/// # Errors
/// What does not, in words.
fn met(state: &State, spec: &TaskSpec) -> Result<Vec<Key>, String> {
    let each = spec.depends_on.iter().map(|dependency| {
        check(state, dependency).map_err(|why| waits_for(dependency, dependency.condition.as_str(), &why))
    });
    Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
}

/// The same, of what is not being changed either.
fn settled(state: &State, spec: &TaskSpec) -> Result<Vec<Key>, String> {
    unchanging(state, spec, Service::is_between_specs)?;
    met(state, spec)
}

/// # Errors
/// What a spec depends on and is being changed.
fn unchanging(state: &State, spec: &TaskSpec, changes: impl Fn(&Service) -> bool) -> Result<(), String> {
    for dependency in &spec.depends_on {
        let Some(service) = named(state, &dependency.service).filter(|s| changes(s)) else {
            continue;
        };
        if let Some(update) = &service.update {
            return Err(waits_for(dependency, update.state.as_str(), &update.message));
        }
    }
    Ok(())
}

fn waits_for(dependency: &Dependency, what: &str, why: &str) -> String {
    format!("waits for {}: {what}, {why}", dependency.service)
}

fn named<'a>(state: &'a State, name: &str) -> Option<&'a Arc<Service>> {
    match state.named(Kind::Service, name) {
        Some(Key::Service(id)) => state.service(id),
        _ => None,
    }
}

/// What shows that a dependency holds.
///
/// # Errors
/// Why it does not.
fn check(state: &State, dependency: &Dependency) -> Result<Vec<Key>, String> {
    let Some(service) = named(state, &dependency.service) else {
        return if dependency.optional {
            Ok(Vec::new())
        } else {
            Err("there is no such service".into())
        };
    };
    if let Some(why) = dependency.condition.never(&service.spec) {
        return Err(format!("it {why}"));
    }
    let by = match dependency.condition {
        DependencyCondition::Started => started(state, service),
        DependencyCondition::Healthy => in_each_slot(state, service, "ready", |t| {
            t.is_ready() && t.desired == DesiredState::Running
        }),
        DependencyCondition::Completed if service.spec.mode.is_job() => run_completed(state, service),
        DependencyCondition::Completed => in_each_slot(state, service, "completed", |t| {
            t.status.state == TaskState::Complete && service.is_current(t)
        }),
    };
    by.map(|mut keys| {
        keys.push(Key::Service(service.id));
        keys
    })
}

/// One task runs; where that is the end of it, one that ended well counts as well.
fn started(state: &State, service: &Service) -> Result<Vec<Key>, String> {
    let ends = service.spec.mode.is_job() || service.spec.task.restart.condition != RestartCondition::Any;
    let runs = |t: &Task| t.status.state == TaskState::Running && t.desired == DesiredState::Running;
    let ran = |t: &&Arc<Task>| runs(t) || (ends && t.status.state == TaskState::Complete);
    match state.tasks_of_service(service.id).find(ran) {
        Some(task) => Ok(vec![Key::Task(task.id)]),
        None if service.spec.mode == (ServiceMode::Replicated { replicas: 0 }) => {
            Err("it has no replicas".into())
        }
        None => Err("no task runs".into()),
    }
}

/// Every slot that is wanted has such a task.
fn in_each_slot(
    state: &State,
    service: &Service,
    what: &str,
    is_so: impl Fn(&Task) -> bool,
) -> Result<Vec<Key>, String> {
    let tasks = || state.tasks_of_service(service.id);
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas: 0 } => return Err("it has no replicas".into()),
        ServiceMode::Replicated { replicas } => replicas as usize,
        // A slot for each node that has, or had, a task of what is wanted now.
        ServiceMode::Global | ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => {
            let counts = |t: &&Arc<Task>| is_live(t) || is_so(t);
            let slots: BTreeSet<SlotKey> = tasks().filter(counts).map(|t| t.slot).collect();
            slots.len().max(1)
        }
    };
    let mut slots: BTreeSet<SlotKey> = BTreeSet::new();
    let first = tasks().filter(|t| is_so(t) && slots.insert(t.slot));
    let keys: Vec<Key> = first.map(|t| Key::Task(t.id)).collect();
    if keys.len() >= wanted {
        Ok(keys)
    } else {
        Err(format!("{} of {wanted} {what}", keys.len()))
    }
}

/// The newest run of a job completed.
fn run_completed(state: &State, service: &Service) -> Result<Vec<Key>, String> {
    let run = service.job.as_ref().and_then(|job| job.runs.last());
    match run.map(|r| (r.state, r.failed)) {
        Some((RunState::Completed, _)) => Ok(Vec::new()),
        Some((RunState::Failed, failed)) => Err(format!("its last run failed in {failed} slots")),
        Some((RunState::Active | RunState::Replaced, _)) => {
            let tasks = state.tasks_of_service(service.id).map(|t| &**t);
            let (done, all) = service.tally(tasks).unwrap_or_default();
            Err(format!("{done} of {all} completed"))
        }
        None => Err("it has not run yet".into()),
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
