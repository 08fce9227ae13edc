//! Once the leader has nothing to do, a task without a service is wanted gone (I18).

use manager_core::State;
use model::task_state::DesiredState;

pub(super) fn check(state: &State) -> Result<(), String> {
    let alone = state
        .tasks()
        .find(|t| state.service(t.service).is_none() && t.desired != DesiredState::Remove);
    alone.map_or(Ok(()), |t| {
        Err(format!("task {} has no service and stays", t.name()))
    })
}
