//! A task that runs what its service wants is stopped only for a reason, and a change of the leader is none (I41).

use std::collections::BTreeSet;
use std::sync::Arc;

use manager_core::schedule::filter;
use model::object::{Node, NodeState, Service, SlotKey, Task};
use model::spec::ServiceMode;
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (before, after) in seen.tasks() {
        let stopped = before.desired.is_live() && !after.desired.is_live();
        if !stopped || after.status.state.is_terminal() {
            continue;
        }
        let Some(service) = seen.after.service(after.service) else {
            continue;
        };
        // Who makes room says for whom; another property looks at that.
        let makes_room = after.status.error.starts_with("preempted by ");
        if !makes_room
            && service.is_current(after)
            && !slot_goes(seen, service, before)
            && !node_says_so(seen, after)
        {
            return Err(format!("{} was stopped for no reason", after.name()));
        }
    }
    Ok(())
}

/// The slot has another task, or is not wanted any more.
fn slot_goes(seen: &Seen<'_>, service: &Service, task: &Task) -> bool {
    let others = || {
        seen.before
            .tasks_of_service(service.id)
            .filter(|t| t.id != task.id)
    };
    let pair = others().any(|t| t.slot == task.slot && t.desired.is_live() && !t.status.state.is_terminal());
    let slots: BTreeSet<_> = others()
        .filter(|t| t.desired != DesiredState::Remove)
        .map(|t| t.slot)
        .chain([task.slot])
        .collect();
    let closed = match service.spec.mode {
        ServiceMode::Replicated { replicas } => slots.len() > replicas as usize,
        ServiceMode::Global => task
            .node
            .and_then(|n| seen.after.node(n))
            .is_none_or(|n| n.status.state != NodeState::Ready || !filter::suits(n, &service.spec.task)),
        ServiceMode::ReplicatedJob { completions, .. } => {
            task.slot > SlotKey::Replica(completions) || run_is_over(seen, service, task)
        }
        ServiceMode::GlobalJob => {
            let node = task.node.and_then(|n| seen.after.node(n));
            let fits =
                |n: &Arc<Node>| n.status.state == NodeState::Ready && filter::suits(n, &service.spec.task);
            !node.is_some_and(fits) || run_is_over(seen, service, task)
        }
    };
    pair || closed
}

/// The run of a job was replaced, or its slot completed nevertheless.
fn run_is_over(seen: &Seen<'_>, service: &Service, task: &Task) -> bool {
    let open = (service.job.as_ref()).is_some_and(|j| j.open(&service.spec).contains(&task.iteration));
    let done = |t: &&Arc<Task>| {
        (t.slot, t.iteration, t.status.state) == (task.slot, task.iteration, TaskState::Complete)
    };
    !open || seen.after.tasks_of_service(service.id).any(|t| done(&t))
}

/// Its node must not have it.
fn node_says_so(seen: &Seen<'_>, task: &Task) -> bool {
    let Some(id) = task.node else { return true };
    seen.after.node(id).is_none() || super::must_leave(seen.after, id, task)
}
