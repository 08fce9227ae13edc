//! Once the leader has nothing to do, no service has live tasks in more slots than replicas (I22).

use std::collections::BTreeSet;

use manager_core::State;
use model::spec::ServiceMode;

pub(super) fn check(state: &State) -> Result<(), String> {
    for service in state.services() {
        let replicas = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::ReplicatedJob { completions, .. } => completions,
            ServiceMode::Global | ServiceMode::GlobalJob => continue,
        };
        let live = state
            .tasks_of_service(service.id)
            .filter(|t| t.desired.is_live() && !t.status.state.is_terminal());
        let slots: BTreeSet<_> = live.map(|t| t.slot).collect();
        if slots.len() > replicas as usize {
            let name = &service.spec.name;
            return Err(format!(
                "{name} has live tasks in {} slots of {replicas}",
                slots.len()
            ));
        }
    }
    Ok(())
}
