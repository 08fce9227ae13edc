//! A published port has one owner: in the cluster (ingress) or on its node (host) (I30).

use std::collections::{BTreeMap, BTreeSet};

use model::object::Task;
use model::spec::PublishMode;
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let mut cluster = BTreeSet::new();
    for service in seen.after.services() {
        for port in service
            .endpoint
            .ports
            .iter()
            .filter(|p| p.mode == PublishMode::Ingress)
        {
            if port.published == 0 || !cluster.insert((port.protocol, port.published)) {
                return Err(format!("port {} is published twice", port.published));
            }
        }
    }
    let mut nodes = BTreeMap::new();
    let open = seen
        .after
        .tasks()
        .filter(|t| !t.status.state.is_terminal() && holds(t));
    for task in open {
        for port in &task.host_ports {
            let Some(node) = task.node else { continue };
            if let Some(other) = nodes.insert((node, port.protocol, port.published), task.name()) {
                return Err(format!(
                    "{other} and {} have port {} of one node",
                    task.name(),
                    port.published
                ));
            }
        }
    }
    Ok(())
}

/// Whether a task has a process, or may start one: not a replacement that only prepares itself, nor one stopped before.
fn holds(task: &Task) -> bool {
    task.desired == DesiredState::Running || task.status.state >= TaskState::Starting
}
