//! A service → the tasks it should have: slots opened and closed, tasks replaced, rollouts driven.

pub(crate) mod cron;
pub(crate) mod job;
pub(crate) mod joined;
mod leave;
mod moves;
mod node;
pub mod order;
mod restart;
pub(crate) mod revision;
mod slots;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::ids::IdSource;
use model::object::{Meta, Object, Service, SlotKey, Task, TaskStatus};
use model::spec::{ServiceMode, TaskSpec};
use model::task_state::{DesiredState, TaskState};
use model::{ServiceId, TaskId, Timestamp};

pub(crate) use node::enforce_node;
pub use restart::{Restart, restart_after};
pub(crate) use restart::{ended_by_itself, ran_well};
pub(crate) use update::drop_prepared;

use crate::reap;
use crate::state::{Scratch, State};

/// Tasks of one slot, oldest first.
pub(crate) type SlotTasks = Vec<Arc<Task>>;

/// Brings the tasks of one service towards its spec; answers when it wants to be looked at again.
pub(crate) fn reconcile(
    scratch: &mut Scratch,
    id: ServiceId,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Option<Timestamp> {
    let Some(service) = scratch.service(id).cloned() else {
        remove_all(scratch, id);
        return None;
    };
    let mut wake = Wake::default();
    let handing_over = leave::enforce(scratch, &service, now, &mut wake);
    if service.spec.mode.is_job() {
        job::drive(scratch, id, now, ids, &mut wake);
        finish_unplaced(scratch, id, now);
        reap::history(scratch, id);
        return wake.at;
    }
    let wanted = wanted_slots(scratch, &service);
    close_slots(scratch, &service, &wanted);
    update::drive(scratch, id, &wanted, now, ids, &mut wake);
    // The rollout may have gone back to the spec before.
    let service = scratch.service(id).cloned().unwrap_or(service);
    let mut slots = by_slot(scratch, id);
    let leaving = leaving(scratch, id);
    for slot in wanted {
        let tasks = slots.remove(&slot).unwrap_or_default();
        fill_slot(
            scratch,
            &service,
            slot,
            (&tasks, leaving.contains(&slot)),
            now,
            ids,
            &mut wake,
        );
    }
    moves::drive(scratch, &service, &handing_over, now, ids, &mut wake);
    let slots = by_slot(scratch, id);
    promote(scratch, &service, slots, &leaving, now, &mut wake);
    finish_unplaced(scratch, id, now);
    reap::history(scratch, id);
    wake.at
}

/// The earliest of several times.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    at: Option<Timestamp>,
}

impl Wake {
    pub(crate) fn at(&mut self, time: Timestamp) {
        self.at = Some(self.at.map_or(time, |t| t.min(time)));
    }
}

/// Tasks of a service by slot, oldest first in each.
pub(crate) fn by_slot(state: &State, id: ServiceId) -> BTreeMap<SlotKey, SlotTasks> {
    let mut slots: BTreeMap<SlotKey, SlotTasks> = BTreeMap::new();
    for task in state
        .tasks_of_service(id)
        .filter(|t| t.desired != DesiredState::Remove)
    {
        slots.entry(task.slot).or_default().push(task.clone());
    }
    for tasks in slots.values_mut() {
        // Two tasks of one slot are seldom made in one millisecond; then the one still wanted is the younger.
        tasks.sort_by_key(|t| (t.meta.created_at, t.desired.is_live(), t.id));
    }
    slots
}

/// Whether a task is wanted and has not ended.
pub(crate) fn is_live(task: &Task) -> bool {
    task.desired.is_live() && !task.status.state.is_terminal()
}

fn wanted_slots(scratch: &Scratch, service: &Service) -> Vec<SlotKey> {
    match service.spec.mode {
        // Jobs fill theirs run by run.
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => Vec::new(),
        ServiceMode::Replicated { replicas } => {
            let slots = by_slot(scratch, service.id);
            let open: Vec<u32> = slots
                .keys()
                .filter_map(|s| match s {
                    SlotKey::Replica(n) => Some(*n),
                    SlotKey::Node(_) => None,
                })
                .collect();
            slots::keep(replicas, &open)
                .into_iter()
                .map(SlotKey::Replica)
                .collect()
        }
        ServiceMode::Global => node::eligible(scratch, service)
            .into_iter()
            .map(SlotKey::Node)
            .collect(),
    }
}

/// Ends the slots that are wanted no more; their history goes with them.
fn close_slots(scratch: &mut Scratch, service: &Service, wanted: &[SlotKey]) {
    let replicated = matches!(service.spec.mode, ServiceMode::Replicated { .. });
    let wanted: BTreeSet<SlotKey> = wanted.iter().copied().collect();
    for (slot, tasks) in by_slot(scratch, service.id) {
        if wanted.contains(&slot) {
            continue;
        }
        // A global service keeps what runs on a paused node, and what ended on a node that is gone is history.
        let keep = !replicated && node::keeps(scratch, slot);
        for task in tasks.iter().filter(|_| !keep) {
            let want = if replicated {
                DesiredState::Remove
            } else {
                DesiredState::Shutdown
            };
            if task.desired < want {
                scratch.edit_task(task.id, |t| t.desired = want);
            }
        }
    }
}

/// Makes a task where a slot has none, if its last one may be replaced.
fn fill_slot(
    scratch: &mut Scratch,
    service: &Service,
    slot: SlotKey,
    (tasks, leaving): (&SlotTasks, bool),
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    retire_ended(scratch, tasks);
    if tasks.iter().any(|t| is_live(t)) {
        return;
    }
    let run_at = match restart_after(service, tasks) {
        Restart::Never => return,
        Restart::Now => now,
        Restart::At(at) => at.max(now),
        Restart::NotBefore(at) if at > now => {
            wake.at(at);
            return;
        }
        Restart::NotBefore(_) => now,
    };
    let (spec, version) = update::spec_for_slot(service, tasks.last().map(|t| &**t));
    let busy = leaving || tasks.iter().any(|t| holds_slot(scratch, t));
    if run_at > now {
        wake.at(run_at);
    }
    let held = order::holds_back(scratch, service.id, &spec);
    let desired = if run_at > now || busy || held {
        DesiredState::Ready
    } else {
        DesiredState::Running
    };
    make_task(
        scratch,
        service,
        (slot, 0),
        (spec, version),
        desired,
        run_at,
        now,
        ids,
    );
}

/// A task that ended by itself is not wanted to run any more; that is how `service ps` tells it from its successor.
fn retire_ended(scratch: &mut Scratch, tasks: &[Arc<Task>]) {
    for task in tasks
        .iter()
        .filter(|t| t.status.state.is_terminal() && t.desired.is_live())
    {
        scratch.edit_task(task.id, |t| t.desired = DesiredState::Shutdown);
    }
}

/// Slots that were closed and whose task may still have a process: one that is opened again waits for it.
fn leaving(scratch: &Scratch, id: ServiceId) -> BTreeSet<SlotKey> {
    scratch
        .tasks_of_service(id)
        .filter(|t| t.desired == DesiredState::Remove && holds_slot(scratch, t))
        .map(|t| t.slot)
        .collect()
}

/// Whether a task may still have a process, so that its successor must wait.
fn holds_slot(state: &State, task: &Task) -> bool {
    !task.status.state.is_terminal() && task.node.is_some_and(|n| !node::is_lost(state, n, task))
}

#[expect(clippy::too_many_arguments, reason = "a task is made of this many things")]
pub(crate) fn make_task(
    scratch: &mut Scratch,
    service: &Service,
    (slot, iteration): (SlotKey, u64),
    (spec, spec_version): (Arc<TaskSpec>, u64),
    desired: DesiredState,
    run_at: Timestamp,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> TaskId {
    let id = TaskId::new(ids);
    scratch.put(Object::Task(Arc::new(Task {
        id,
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        service: service.id,
        service_name: service.spec.name.clone(),
        slot,
        spec,
        spec_version,
        node: None,
        desired,
        run_at,
        status: TaskStatus::new(now),
        running_at: None,
        unready_at: None,
        ended_at: None,
        fence: 0,
        granted: Default::default(),
        moving: 0,
        addresses: Vec::new(),
        host_ports: Vec::new(),
        iteration,
    })));
    id
}

/// Lets waiting tasks run whose time has come and whose predecessor is gone.
fn promote(
    scratch: &mut Scratch,
    service: &Service,
    slots: BTreeMap<SlotKey, SlotTasks>,
    leaving: &BTreeSet<SlotKey>,
    now: Timestamp,
    wake: &mut Wake,
) {
    for (slot, tasks) in slots {
        let Some(waiting) = tasks
            .iter()
            .find(|t| t.desired == DesiredState::Ready && is_live(t))
        else {
            continue;
        };
        let others_live = tasks.iter().any(|t| t.id != waiting.id && is_live(t));
        let others_hold = tasks.iter().any(|t| t.id != waiting.id && holds_slot(scratch, t));
        if others_live || others_hold || leaving.contains(&slot) {
            continue;
        }
        if waiting.run_at > now {
            wake.at(waiting.run_at);
            continue;
        }
        if order::holds_back(scratch, service.id, &waiting.spec) {
            continue;
        }
        scratch.edit_task(waiting.id, |t| t.desired = DesiredState::Running);
    }
}

/// A task that is wanted no more and never got a node has nobody else to end it.
fn finish_unplaced(scratch: &mut Scratch, id: ServiceId, now: Timestamp) {
    let ended: Vec<TaskId> = scratch
        .tasks_of_service(id)
        .filter(|t| !t.desired.is_live() && t.node.is_none() && !t.status.state.is_terminal())
        .map(|t| t.id)
        .collect();
    for task in ended {
        scratch.edit_task(task, |t| {
            t.status.state = TaskState::Shutdown;
            t.status.at = now;
            t.status.message = "shutdown before it was assigned".into();
        });
    }
}

fn remove_all(scratch: &mut Scratch, id: ServiceId) {
    let tasks: Vec<Arc<Task>> = scratch.tasks_of_service(id).cloned().collect();
    let needed = order::is_needed(scratch, id);
    for task in tasks {
        // What does not serve yet is no loss to those that have to go first, and what must leave its node has no successor.
        let serves = task.desired == DesiredState::Running && task.status.state == TaskState::Running;
        let stays = needed && serves && !leave::must_leave(scratch, &task);
        if task.desired != DesiredState::Remove && !stays {
            scratch.edit_task(task.id, |t| t.desired = DesiredState::Remove);
        }
    }
    reap::removed(scratch, id);
}
