//! Nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::object::{Availability, Drain, Key, Node, NodeRole, NodeSpec, NodeState, Object};
use model::spec::UpdateOrder;
use model::units::format_duration;
use model::{Level, NodeId, Timestamp};

use super::{Admitted, Refusal, RefusalKind, check_version, level, validate};
use crate::members;
use crate::state::{Kind, Scratch, State};

/// Changes labels, availability and role of a node. `reached` says which managers answer at the moment. A node that is drained gives
/// its tasks away start-first unless asked otherwise, where the cluster's level allows.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or its role may not change: the last manager stays one, and so
/// does one without which the others would have no quorum. Also when its drain has a deadline out of bounds.
pub fn update_node(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    mut spec: NodeSpec,
    reached: &BTreeSet<NodeId>,
    now: Timestamp,
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
    spec.drain = drain(state, &node, &spec, now)?;
    let mut warnings = Vec::new();
    if spec.role != node.spec.role {
        match spec.role {
            NodeRole::Worker => may_demote(state, &node, reference, reached)?,
            NodeRole::Manager => may_promote(state, reference)?,
        }
        let managers = state.managers().count();
        let managers = match spec.role {
            NodeRole::Worker => managers - 1,
            NodeRole::Manager => managers + 1,
        };
        warnings.extend(members::advice(managers));
    }
    let mut scratch = Scratch::new(state);
    scratch.put(Object::Node(Arc::new(Node {
        spec,
        ..(*node).clone()
    })));
    Ok(Admitted {
        warnings,
        ..Admitted::new(scratch, vec![key])
    })
}

/// How a node is drained: as asked, with the time at which that ends.
fn drain(state: &State, node: &Node, spec: &NodeSpec, now: Timestamp) -> Result<Option<Drain>, Refusal> {
    if spec.availability != Availability::Drain {
        return Ok(None);
    }
    let knows = level::written(state) >= Level::MOVES;
    let Some(asked) = spec.drain else {
        let start_first = Drain {
            order: UpdateOrder::StartFirst,
            ..Drain::default()
        };
        return Ok(knows.then_some(start_first));
    };
    let host = &node.description.hostname;
    if asked.order == UpdateOrder::StopFirst {
        if asked.deadline.is_some() {
            return Err(Refusal::invalid(format!(
                "node {host} is not drained: stop-first waits for nothing, so it has no deadline"
            )));
        }
        return Ok(knows.then(Drain::default));
    }
    level::needs(
        state,
        Level::MOVES,
        &format!("node {host}: drain start-first"),
        "stop its tasks at once",
    )?;
    let bounds = Drain::DEADLINE_MIN..=Drain::DEADLINE_MAX;
    if let Some(wrong) = asked.deadline.filter(|d| !bounds.contains(d)) {
        return Err(Refusal::invalid(format!(
            "node {host} is not drained: a deadline of {} is not between {} and {}",
            format_duration(wrong),
            format_duration(Drain::DEADLINE_MIN),
            format_duration(Drain::DEADLINE_MAX),
        )));
    }
    if node.spec.drain == Some(asked) {
        return Ok(Some(asked));
    }
    Ok(Some(Drain {
        deadline_at: asked.deadline.map(|d| now + d),
        ..asked
    }))
}

fn may_promote(state: &State, reference: &str) -> Result<(), Refusal> {
    if state.managers().count() >= members::MANAGERS_MAX {
        return Err(Refusal::invalid(format!(
            "node {reference} is not promoted: a cluster has at most {} managers, as each of them takes part in every write",
            members::MANAGERS_MAX
        )));
    }
    Ok(())
}

fn may_demote(
    state: &State,
    node: &Node,
    reference: &str,
    reached: &BTreeSet<NodeId>,
) -> Result<(), Refusal> {
    let others: Vec<NodeId> = state
        .managers()
        .map(|n| n.id)
        .filter(|id| *id != node.id)
        .collect();
    if others.is_empty() {
        return Err(Refusal::new(
            RefusalKind::InUse,
            format!("node {reference} is the last manager: promote another one first"),
        ));
    }
    let answer = others.iter().filter(|id| reached.contains(id)).count();
    if answer < members::quorum(others.len()) {
        return Err(Refusal::new(
            RefusalKind::InUse,
            format!(
                "node {reference} is not demoted: of the {} other managers {answer} can be reached, and without a \
                 quorum of {} the cluster would stand still; bring them back first",
                others.len(),
                members::quorum(others.len())
            ),
        ));
    }
    Ok(())
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
        super::join::orphan(&mut scratch, id, "its node was removed");
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}
