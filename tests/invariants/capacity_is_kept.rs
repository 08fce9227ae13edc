//! What the tasks of a node reserve is no more than it has; replacements that wait do not count (I25).

use std::collections::{BTreeMap, BTreeSet};

use model::NodeId;
use model::object::Task;
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let mut used: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    let open = seen
        .after
        .tasks()
        .filter(|t| !t.status.state.is_terminal() && holds(t));
    for task in open {
        let Some(node) = task.node else { continue };
        let sum = used.entry(node).or_default();
        sum.0 += task.spec.resources.reservations.cpu.0;
        sum.1 += task.spec.resources.reservations.memory.0;
    }
    generic(seen)?;
    for (node, (cpu, memory)) in used {
        let Some(node) = seen.after.node(node) else {
            continue;
        };
        if cpu > node.description.cpus.0 || memory > node.description.memory.0 {
            return Err(format!(
                "node {} has promised more than it has",
                node.description.hostname
            ));
        }
    }
    Ok(())
}

/// Generic resources: of each kind no more, and each that has a name for one task.
fn generic(seen: &Seen<'_>) -> Result<(), String> {
    let mut used: BTreeMap<(NodeId, &str), (u64, BTreeSet<&String>)> = BTreeMap::new();
    for task in seen
        .after
        .tasks()
        .filter(|t| !t.status.state.is_terminal() && holds(t))
    {
        let Some(node) = task.node else { continue };
        for (kind, count) in &task.spec.resources.reservations.generic {
            let (sum, names) = used.entry((node, kind)).or_default();
            *sum += count;
            for name in task.granted.get(kind).into_iter().flatten() {
                if !names.insert(name) {
                    return Err(format!(
                        "{} was given {kind} {name}, which another has",
                        task.name()
                    ));
                }
            }
        }
    }
    for ((node, kind), (sum, names)) in used {
        let Some(node) = seen.after.node(node) else {
            continue;
        };
        let has_names = node.description.generic.named.contains_key(kind);
        let wrong = has_names && names.len() as u64 != sum;
        if sum > node.description.generic.total(kind) || wrong {
            return Err(format!(
                "node {} has promised {sum} {kind}",
                node.description.hostname
            ));
        }
    }
    Ok(())
}

/// Whether a task has a process, or may start one: not a replacement that only prepares itself, nor one stopped before.
fn holds(task: &Task) -> bool {
    task.desired == DesiredState::Running || task.status.state >= TaskState::Starting
}
