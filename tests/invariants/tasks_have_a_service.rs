//! Once the leader has nothing to do, a task without a service is wanted gone (I18), or serves those that go first.

use std::sync::Arc;

use manager_core::State;
use model::object::Task;
use model::task_state::{DesiredState, TaskState};

pub(super) fn check(state: &State) -> Result<(), String> {
    let removed = |t: &&Arc<Task>| state.service(t.service).is_none();
    let is_needed = |task: &Task| {
        let mut others = state
            .tasks()
            .filter(removed)
            .filter(|t| !t.status.state.is_terminal());
        let on_it = |t: &Arc<Task>| t.spec.depends_on.iter().any(|d| d.service == task.service_name);
        task.status.state == TaskState::Running && others.any(on_it)
    };
    let mut alone = state.tasks().filter(removed);
    let alone = alone.find(|t| t.desired != DesiredState::Remove && !is_needed(t));
    alone.map_or(Ok(()), |t| {
        Err(format!("task {} has no service and stays", t.name()))
    })
}
