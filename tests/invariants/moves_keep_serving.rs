//! A drain that starts first, a label that goes and a rebalance take no service below its replicas (D18).

use std::collections::BTreeSet;

use model::spec::ServiceMode;
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for id in &seen.cluster.healthy_moves {
        let Some(service) = seen.after.service(*id) else {
            continue;
        };
        let ServiceMode::Replicated { replicas } = service.spec.mode else {
            continue;
        };
        let serving: BTreeSet<_> = seen
            .after
            .tasks_of_service(*id)
            .filter(|t| t.status.state == TaskState::Running && t.desired == DesiredState::Running)
            .map(|t| t.slot)
            .collect();
        if serving.len() < replicas as usize {
            return Err(format!(
                "{}: {} of {replicas} slots serve while tasks move",
                service.spec.name,
                serving.len()
            ));
        }
    }
    Ok(())
}
