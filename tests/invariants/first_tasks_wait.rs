//! While no task of a service runs, none is let run before everything that it depends on holds.

use std::collections::BTreeSet;

use manager_core::{Kind, State};
use model::job::RunState;
use model::object::{Key, Object, Task};
use model::spec::{Dependency, DependencyCondition, RestartCondition, ServiceMode};
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let Some(Object::Task(after)) = &change.after else {
            continue;
        };
        let waited = match &change.before {
            Some(Object::Task(before)) => before.desired == DesiredState::Ready,
            _ => true,
        };
        let let_run = waited && after.desired == DesiredState::Running;
        if !let_run
            || (seen.before.tasks_of_service(after.service)).any(|t| t.status.state == TaskState::Running)
        {
            continue;
        }
        // The run of a job ends in the very entry that lets others run.
        let lacks = |state: &State| after.spec.depends_on.iter().find(|d| !holds(state, d)).cloned();
        if let (Some(lacking), Some(_)) = (lacks(seen.before), lacks(seen.after)) {
            return Err(format!("{} is to run without {lacking:?}", after.name()));
        }
    }
    Ok(())
}

fn holds(state: &State, dependency: &Dependency) -> bool {
    let Some(Key::Service(id)) = state.named(Kind::Service, &dependency.service) else {
        return dependency.optional;
    };
    let Some(service) = state.service(id) else {
        return false;
    };
    let slots = |which: &dyn Fn(&Task) -> bool| {
        let tasks = state.tasks_of_service(id).filter(|t| which(t));
        tasks.map(|t| t.slot).collect::<BTreeSet<_>>().len()
    };
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas as usize,
        _ => slots(&|t| t.desired.is_live() && !t.status.state.is_terminal()),
    };
    let ends = service.spec.mode.is_job() || service.spec.task.restart.condition != RestartCondition::Any;
    let runs = |t: &Task| t.status.state == TaskState::Running && t.desired == DesiredState::Running;
    let ended = |t: &Task| t.status.state == TaskState::Complete;
    match dependency.condition {
        DependencyCondition::Started => slots(&|t| runs(t) || (ends && ended(t))) > 0,
        DependencyCondition::Healthy => wanted > 0 && slots(&|t| runs(t) && !t.status.unready) >= wanted,
        DependencyCondition::Completed => match service.job.as_ref() {
            Some(job) => job.runs.last().is_some_and(|r| r.state == RunState::Completed),
            None => ends && wanted > 0 && slots(&ended) >= wanted,
        },
    }
}
