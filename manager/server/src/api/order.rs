//! Why tasks and rollouts wait for other services: said in what is shown, and kept nowhere.

use manager_core::orchestrate::order;
use manager_core::{Changes, State};
use model::ServiceId;
use model::object::{Object, Service};
use proto::types;

/// Says in an object that is shown what it waits for.
pub(super) fn say(state: &State, shown: &mut types::Object) {
    match &mut shown.object {
        Some(types::object::Object::Task(shown)) => {
            let task = shown.id.parse().ok().and_then(|id| state.task(id));
            if let (Some(why), Some(status)) =
                (task.and_then(|t| order::task_waits(state, t)), &mut shown.status)
            {
                status.message = why;
            }
        }
        Some(types::object::Object::Service(shown)) => {
            let service = shown.id.parse().ok().and_then(|id| state.service(id));
            if let (Some(why), Some(update)) = (
                service.and_then(|s| order::rollout_waits(state, s)),
                &mut shown.update,
            ) {
                update.message = why;
            }
        }
        _ => {}
    }
}

/// What a service waits for: one of its tasks, or its rollout.
pub(super) fn why(state: &State, service: &Service) -> Option<String> {
    let task = || {
        let mut tasks = state.tasks_of_service(service.id);
        tasks.find_map(|t| order::task_waits(state, t))
    };
    order::rollout_waits(state, service).or_else(task)
}

/// What of a service has to be shown again after changes of another: what waits, says something else.
pub(super) fn again(state: &State, changes: &Changes, id: ServiceId) -> Vec<Object> {
    let Some(service) = state.service(id).filter(|s| !s.spec.task.depends_on.is_empty()) else {
        return Vec::new();
    };
    let name = |object: &Object| match object {
        Object::Task(task) => Some(task.service_name.clone()),
        Object::Service(service) => Some(service.spec.name.clone()),
        _ => None,
    };
    let changed = |name: &str| service.spec.task.depends_on.iter().any(|d| d.service == name);
    let of_it = (changes.items.iter())
        .filter_map(|c| c.after.as_ref().or(c.before.as_ref()))
        .filter_map(name)
        .any(|name| changed(&name));
    if !of_it {
        return Vec::new();
    }
    let waits = |t: &&std::sync::Arc<model::object::Task>| order::task_waits(state, t).is_some();
    let tasks = state
        .tasks_of_service(id)
        .filter(waits)
        .cloned()
        .map(Object::Task);
    let rollout = order::rollout_waits(state, service).map(|_| Object::Service(service.clone()));
    tasks.chain(rollout).collect()
}
