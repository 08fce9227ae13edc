//! Nodes.

use std::sync::Arc;

use model::object::{Key, Node, NodeRole, NodeSpec, NodeState, Object};
use model::task_state::{DesiredState, TaskState};

use super::{Admitted, Refusal, RefusalKind, check_version, validate};
use crate::state::{Kind, Scratch, State};

/// Changes labels and availability of a node.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or its role would change.
pub fn update_node(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    spec: NodeSpec,
) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Node, reference)?;
    let Some(Object::Node(node)) = state.object(key) else {
        return Err(Refusal::new(
            RefusalKind::NotFound,
            format!("node {reference} not found"),
        ));
    };
    check_version(
        Kind::Node,
        &node.description.hostname,
        expected,
        node.meta.version,
    )?;
    validate::labels("node", reference, &spec.labels)?;
    if spec.role != node.spec.role {
        return Err(Refusal::invalid(format!(
            "the role of node {reference} cannot change yet: this version runs one manager per cluster"
        )));
    }
    let mut scratch = Scratch::new(state);
    scratch.put(Object::Node(Arc::new(Node {
        spec,
        ..(*node).clone()
    })));
    Ok(Admitted::new(scratch, vec![key]))
}

/// Removes nodes, all or none; tasks they still had are Orphaned.
///
/// # Errors
/// [`Refusal`] when one is missing, is a manager, or is not down and `force` is not set.
pub fn remove_nodes(state: &State, references: &[String], force: bool) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for reference in references {
        let key = scratch.find(Kind::Node, reference)?;
        let Key::Node(id) = key else { continue };
        let Some(node) = scratch.node(id).cloned() else {
            continue;
        };
        if node.spec.role == NodeRole::Manager {
            return Err(Refusal::new(
                RefusalKind::InUse,
                format!("node {reference} is a cluster manager: demote it before it is removed"),
            ));
        }
        if node.status.state != NodeState::Down && !force {
            return Err(Refusal::new(
                RefusalKind::InUse,
                format!(
                    "node {reference} is not down: stop its daemon or let it leave first, or use --force"
                ),
            ));
        }
        let tasks: Vec<_> = scratch.tasks_of_node(id).map(|t| t.id).collect();
        for task in tasks {
            scratch.edit_task(task, |t| {
                if !t.status.state.is_terminal() {
                    t.status.state = TaskState::Orphaned;
                    t.status.error = "its node was removed".into();
                }
                t.desired = t.desired.max(DesiredState::Shutdown);
            });
        }
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}
