//! A rollout of a healthy service takes down no more slots at once than its parallelism (I34).

use std::collections::BTreeSet;

use model::object::UpdateState;
use model::spec::{ServiceMode, UpdateOrder};
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for id in &seen.cluster.healthy_updates {
        let Some(service) = seen.after.service(*id) else {
            continue;
        };
        let ServiceMode::Replicated { replicas } = service.spec.mode else {
            continue;
        };
        if service
            .update
            .as_ref()
            .is_none_or(|u| u.state != UpdateState::Updating)
        {
            continue;
        }
        let parallel = match (service.spec.update.order, service.spec.update.parallelism) {
            (UpdateOrder::StartFirst, _) => 0,
            (UpdateOrder::StopFirst, 0) => replicas,
            (UpdateOrder::StopFirst, n) => n,
        };
        let serving: BTreeSet<_> = seen
            .after
            .tasks_of_service(*id)
            .filter(|t| t.status.state == TaskState::Running && t.desired == DesiredState::Running)
            .map(|t| t.slot)
            .collect();
        if serving.len() + (parallel as usize) < replicas as usize {
            return Err(format!(
                "{}: {} of {replicas} slots serve, parallelism {parallel}",
                service.spec.name,
                serving.len()
            ));
        }
    }
    Ok(())
}
