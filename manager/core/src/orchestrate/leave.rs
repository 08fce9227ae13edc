//! Tasks that must leave their nodes: one that serves goes once its successor does, any other at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::{Availability, Drain, Key, Node, NodeState, Service, Task};
use model::spec::{ServiceMode, UpdateOrder};
use model::task_state::DesiredState;
use model::{Level, NodeId, TaskId, Timestamp};

use super::{Wake, is_live};
use crate::admit::level;
use crate::schedule::filter;
use crate::state::{Scratch, State};

/// Stops the tasks of a service that must leave and cannot hand over; answers those that hand over first.
pub(super) fn enforce(
    scratch: &mut Scratch,
    service: &Service,
    now: Timestamp,
    wake: &mut Wake,
) -> BTreeSet<TaskId> {
    let mut handing_over = BTreeSet::new();
    for (task, reason, rule) in leaving(scratch, service) {
        let over = rule.deadline_at.is_some_and(|at| at <= now);
        if rule.order == UpdateOrder::StartFirst && !over && serves(scratch, service, &task) {
            rule.deadline_at.iter().for_each(|at| wake.at(*at));
            handing_over.insert(task.id);
            continue;
        }
        task.node.iter().for_each(|id| scratch.rely_on(Key::Node(*id)));
        scratch.edit_task(task.id, |t| {
            t.desired = t.desired.max(DesiredState::Shutdown);
            t.status.message = reason.into();
        });
    }
    handing_over
}

/// Live tasks that must leave, why, and how.
fn leaving(state: &State, service: &Service) -> Vec<(Arc<Task>, &'static str, Drain)> {
    // Many tasks ask the same of a node.
    let mut fits: BTreeMap<(u64, NodeId), bool> = BTreeMap::new();
    let mut found = Vec::new();
    for task in state.tasks_of_service(service.id).filter(|t| is_live(t)) {
        let Some(node) = task.node.and_then(|id| state.node(id)) else {
            continue;
        };
        if node.spec.availability == Availability::Drain {
            let rule = node.spec.drain.unwrap_or_default();
            found.push((task.clone(), "its node is being drained", rule));
            continue;
        }
        // By its own spec: what the service wants now comes to it by the rollout, slot by slot.
        let asked = &task.spec.placement.constraints;
        let holds = asked.is_empty()
            || *(fits.entry((task.spec_version, node.id)))
                .or_insert_with(|| filter::constraints_hold(node, asked));
        if !holds {
            let why = "its node no longer meets the placement constraints";
            found.push((task.clone(), why, relabelled(state)));
        }
    }
    found
}

/// Whether a task may not stay where it is, or has no place yet.
pub(super) fn must_leave(state: &State, task: &Task) -> bool {
    let stays = |n: &Arc<Node>| {
        n.spec.availability != Availability::Drain
            && filter::constraints_hold(n, &task.spec.placement.constraints)
    };
    !task.node.and_then(|id| state.node(id)).is_some_and(stays)
}

/// How tasks leave a node whose labels changed.
fn relabelled(state: &State) -> Drain {
    let order = if level::written(state) >= Level::MOVES {
        UpdateOrder::StartFirst
    } else {
        UpdateOrder::StopFirst
    };
    Drain {
        order,
        ..Drain::default()
    }
}

/// Whether clients would miss a task, and another may have its slot at the same time.
fn serves(state: &State, service: &Service, task: &Task) -> bool {
    let down = |n: &Arc<Node>| n.status.state == NodeState::Down;
    matches!(service.spec.mode, ServiceMode::Replicated { .. })
        && !service.spec.is_exclusive(&task.spec)
        && task.desired == DesiredState::Running
        && task.is_ready()
        && !task.node.and_then(|id| state.node(id)).is_none_or(down)
}
