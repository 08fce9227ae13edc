//! Rolling changes: which slots change now, when the next ones may, and what happens when they fail.
//!
//! All of it is read from the tasks and the service, so a new leader goes on where the old one was.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::ids::IdSource;
use model::object::{Key, Service, SlotKey, Task, UpdateState, UpdateStatus};
use model::spec::{FailureAction, PublishMode, TaskSpec, UpdateConfig, UpdateOrder};
use model::task_state::{DesiredState, TaskState};
use model::{ServiceId, Timestamp};

use super::restart::{ended_by_itself, wait_after};
use super::{SlotTasks, Wake, by_slot, is_live, make_task};
use crate::allocate;
use crate::state::Scratch;

/// How far one slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Runs the old spec only.
    Old,
    /// Has a new task that does not run yet.
    Changing,
    /// Runs the new task, still watched until this time.
    Watched(Timestamp),
    /// Runs the new task since so long that it counts as good; good since this time.
    Done(Timestamp),
    /// Has no live task of either spec.
    Empty,
}

/// Drives a rollout one step: counts failures, acts on too many, changes the next slots, notices the end.
pub(super) fn drive(
    scratch: &mut Scratch,
    id: ServiceId,
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    let Some(service) = scratch.service(id).cloned() else {
        return;
    };
    let Some(status) = service.update.clone().filter(|u| u.state.is_active()) else {
        return;
    };
    let config = config_of(&service, &status);
    let mut slots = by_slot(scratch, id);
    let status = count(&service, status, &config, &slots);
    if service.update.as_ref() != Some(&status) {
        scratch.edit_service(id, |s| s.update = Some(status.clone()));
    }
    if too_many_failed(&status, &config) && act_on_failure(scratch, &service, &status, &config, now) {
        // A rollback begins with the next look at the service, which its own change brings about.
        return;
    }
    if retire_superseded(scratch, &service, &slots) {
        slots = by_slot(scratch, id);
    }
    let progress: BTreeMap<SlotKey, Progress> = slots
        .iter()
        .map(|(slot, tasks)| (*slot, progress_of(&service, tasks, &config, now)))
        .collect();
    swap(scratch, &service, &slots, &config);
    begin(scratch, &service, &slots, &progress, &config, now, ids, wake);
    for p in progress.values() {
        if let Progress::Watched(until) = p {
            wake.at(*until);
        }
    }
    let over = progress
        .values()
        .all(|p| matches!(p, Progress::Done(_) | Progress::Empty));
    if over {
        complete(scratch, id, &status, now);
    }
}

/// The spec a new task of a slot is made from: while a rollout is under way or paused, a slot keeps what its last
/// task had, and a new slot gets the spec before, so that scaling spreads no bad spec (trap D4).
pub(super) fn spec_for_slot(service: &Service, last: Option<&Task>) -> (Arc<TaskSpec>, u64) {
    let unfinished = service.update.as_ref().is_some_and(|u| {
        matches!(
            u.state,
            UpdateState::Updating
                | UpdateState::Paused
                | UpdateState::RollbackStarted
                | UpdateState::RollbackPaused
        )
    });
    if unfinished {
        if let Some(task) = last {
            return (task.spec.clone(), task.spec_version);
        }
        if let Some(previous) = &service.previous_spec {
            return (
                Arc::new(previous.task.clone()),
                service.spec_version.saturating_sub(1),
            );
        }
    }
    (Arc::new(service.spec.task.clone()), service.spec_version)
}

fn config_of(service: &Service, status: &UpdateStatus) -> UpdateConfig {
    let mut config = match status.state {
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => {
            service.spec.rollback.clone()
        }
        UpdateState::Updating | UpdateState::Paused | UpdateState::Completed => service.spec.update.clone(),
    };
    if service.endpoint.ports.iter().any(|p| p.mode == PublishMode::Host) {
        // The old task holds the port until it ends: a new one beside it would wait for ever.
        config.order = UpdateOrder::StopFirst;
    }
    config
}

/// The status with the slots that failed so far, each once, and the number of slots that had to change.
fn count(
    service: &Service,
    mut status: UpdateStatus,
    config: &UpdateConfig,
    slots: &BTreeMap<SlotKey, SlotTasks>,
) -> UpdateStatus {
    for (slot, tasks) in slots {
        let failed = tasks
            .iter()
            .any(|t| failed_in_rollout(service, &status, config, t));
        if failed && !status.failed_slots.contains(slot) {
            status.failed_slots.push(*slot);
        }
    }
    if status.total_slots == 0 {
        status.total_slots = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    }
    status
}

/// Whether a task of the new spec ended before it ran, or within `monitor` of running.
fn failed_in_rollout(service: &Service, status: &UpdateStatus, config: &UpdateConfig, task: &Task) -> bool {
    let of_rollout = task.spec_version == service.spec_version && task.meta.created_at >= status.started_at;
    of_rollout
        && ended_by_itself(task)
        && task
            .running_at
            .is_none_or(|ran| task.over_at().since(ran) <= config.monitor)
}

fn too_many_failed(status: &UpdateStatus, config: &UpdateConfig) -> bool {
    let failed = status.failed_slots.len();
    if failed == 0 {
        return false;
    }
    let total = f64::from(status.total_slots.max(1));
    let failed = f64::from(u32::try_from(failed).unwrap_or(u32::MAX));
    failed / total > config.max_failure_ratio
}

/// Pauses or goes back; answers whether the rollout ended with that.
fn act_on_failure(
    scratch: &mut Scratch,
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    now: Timestamp,
) -> bool {
    let back = status.state == UpdateState::RollbackStarted;
    let why = last_error(scratch, service);
    match config.failure_action {
        FailureAction::Continue => false,
        FailureAction::Rollback if !back && service.previous_spec.is_some() => {
            roll_back(
                scratch,
                service.id,
                now,
                &format!("update rolled back due to failure or early termination of a task{why}"),
            );
            true
        }
        FailureAction::Pause | FailureAction::Rollback => {
            let (state, what) = if back {
                (UpdateState::RollbackPaused, "rollback")
            } else {
                (UpdateState::Paused, "update")
            };
            scratch.edit_service(service.id, |s| {
                if let Some(u) = &mut s.update {
                    u.state = state;
                    u.message = format!("{what} paused due to failure or early termination of a task{why}");
                }
            });
            drop_prepared(scratch, service);
            true
        }
    }
}

fn last_error(scratch: &Scratch, service: &Service) -> String {
    let failed = scratch
        .tasks_of_service(service.id)
        .filter(|t| t.spec_version == service.spec_version && ended_by_itself(t))
        .max_by_key(|t| (t.over_at(), t.id));
    match failed {
        Some(t) if t.status.error.is_empty() => format!(": {}", t.name()),
        Some(t) => format!(": {}: {}", t.name(), t.status.error),
        None => String::new(),
    }
}

/// Ends new tasks that were only being prepared: the old ones go on.
fn drop_prepared(scratch: &mut Scratch, service: &Service) {
    for tasks in by_slot(scratch, service.id).into_values() {
        let old_lives = tasks.iter().any(|t| is_live(t) && !service.is_current(t));
        // One that ends meanwhile goes on no more: then this is decided anew.
        for old in tasks.iter().filter(|t| is_live(t) && !service.is_current(t)) {
            scratch.rely_on(Key::Task(old.id));
        }
        for task in tasks
            .iter()
            .filter(|t| old_lives && is_live(t) && service.is_current(t))
        {
            scratch.edit_task(task.id, |t| t.desired = DesiredState::Shutdown);
        }
    }
}

/// Makes the spec before the last change the spec again; the number of replicas stays (trap D5).
pub(crate) fn roll_back(scratch: &mut Scratch, id: ServiceId, now: Timestamp, message: &str) {
    scratch.edit_service(id, |s| {
        let Some(previous) = s.previous_spec.take() else {
            return;
        };
        let mut spec = (*previous).clone();
        spec.mode = s.spec.mode.clone();
        spec.name.clone_from(&s.spec.name);
        s.previous_spec = Some(s.spec.clone());
        s.spec = Arc::new(spec);
        s.spec_version += 1;
        s.update = Some(UpdateStatus {
            state: UpdateState::RollbackStarted,
            started_at: now,
            completed_at: None,
            message: message.into(),
            failed_slots: Vec::new(),
            total_slots: 0,
            last_slot_at: None,
        });
    });
    // Ports and virtual addresses follow the spec that is now wanted, unless somebody else took them meanwhile: then
    // the service stays reachable as it is.
    if let Some(s) = scratch.service(id).cloned()
        && let Ok(endpoint) = allocate::endpoint(scratch, &s.spec, id, &s.endpoint)
    {
        scratch.edit_service(id, |s| s.endpoint = endpoint);
    }
}

/// Ends what a rollout that this one takes the place of had begun: of several tasks of earlier specs a slot keeps the
/// one that serves.
fn retire_superseded(scratch: &mut Scratch, service: &Service, slots: &BTreeMap<SlotKey, SlotTasks>) -> bool {
    let mut any = false;
    for tasks in slots.values() {
        let old = || tasks.iter().filter(|t| is_live(t) && !service.is_current(t));
        let serves = |t: &&Arc<Task>| {
            let running = t.status.state == TaskState::Running && t.desired == DesiredState::Running;
            (running, t.desired == DesiredState::Running, t.status.state)
        };
        let Some(kept) = old().max_by_key(serves).map(|t| t.id) else {
            continue;
        };
        for task in old().filter(|t| t.id != kept) {
            scratch.edit_task(task.id, |t| t.desired = DesiredState::Shutdown);
            any = true;
        }
    }
    any
}

fn progress_of(service: &Service, tasks: &SlotTasks, config: &UpdateConfig, now: Timestamp) -> Progress {
    let live: Vec<&Arc<Task>> = tasks.iter().filter(|t| is_live(t)).collect();
    let old = live.iter().any(|t| !service.is_current(t));
    let Some(fresh) = live.iter().rev().find(|t| service.is_current(t)) else {
        // A slot whose last task ended under another spec has nothing to keep: it gets the new one like any other.
        let ended_old = tasks
            .last()
            .is_some_and(|t| ended_by_itself(t) && !service.is_current(t));
        return if old || ended_old {
            Progress::Old
        } else {
            Progress::Empty
        };
    };
    if old || fresh.status.state != TaskState::Running {
        return Progress::Changing;
    }
    // A task from before the rollout (a rollback leaves those alone) has nothing to prove.
    let began = service.update.as_ref().map_or(Timestamp(0), |u| u.started_at);
    if fresh.meta.created_at < began {
        return Progress::Done(Timestamp(0));
    }
    let good_at = fresh.running_at.unwrap_or(fresh.status.at) + config.monitor;
    if good_at > now {
        Progress::Watched(good_at)
    } else {
        Progress::Done(good_at)
    }
}

/// Hands slots over from old task to new: the old one is stopped once the new one is ready (stop-first) or runs
/// (start-first), never before (trap D1).
fn swap(
    scratch: &mut Scratch,
    service: &Service,
    slots: &BTreeMap<SlotKey, SlotTasks>,
    config: &UpdateConfig,
) {
    for tasks in slots.values() {
        let fresh = tasks.iter().rev().find(|t| is_live(t) && service.is_current(t));
        let Some(fresh) = fresh else { continue };
        let enough = match config.order {
            UpdateOrder::StopFirst => TaskState::Ready,
            UpdateOrder::StartFirst => TaskState::Running,
        };
        if fresh.status.state < enough {
            continue;
        }
        for old in tasks.iter().filter(|t| is_live(t) && !service.is_current(t)) {
            scratch.edit_task(old.id, |t| t.desired = DesiredState::Shutdown);
        }
    }
}

/// Begins to change as many slots as `parallelism`, `delay` and `monitor` allow.
#[expect(clippy::too_many_arguments, reason = "the rollout's whole view")]
fn begin(
    scratch: &mut Scratch,
    service: &Service,
    slots: &BTreeMap<SlotKey, SlotTasks>,
    progress: &BTreeMap<SlotKey, Progress>,
    config: &UpdateConfig,
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    let waiting: Vec<SlotKey> = progress
        .iter()
        .filter(|(_, p)| **p == Progress::Old)
        .map(|(s, _)| *s)
        .collect();
    if waiting.is_empty() {
        return;
    }
    let busy = progress
        .values()
        .filter(|p| matches!(p, Progress::Changing | Progress::Watched(_)))
        .count();
    let parallel = if config.parallelism == 0 {
        usize::MAX
    } else {
        config.parallelism as usize
    };
    let last_good = progress.values().filter_map(|p| match p {
        Progress::Done(at) if at.0 > 0 => Some(*at),
        Progress::Done(_) | Progress::Old | Progress::Changing | Progress::Watched(_) | Progress::Empty => {
            None
        }
    });
    if let Some(next) = last_good
        .max()
        .map(|at| at + config.delay)
        .filter(|next| *next > now)
    {
        wake.at(next);
        return;
    }
    let failed = service
        .update
        .as_ref()
        .map(|u| u.failed_slots.clone())
        .unwrap_or_default();
    for slot in waiting.into_iter().take(parallel.saturating_sub(busy)) {
        let tasks = &slots[&slot];
        // A slot whose new task failed before is tried again no sooner than the restart policy says.
        let retry_at = if failed.contains(&slot) {
            let last = tasks
                .iter()
                .rev()
                .find(|t| ended_by_itself(t) && service.is_current(t));
            last.map_or(now, |t| t.over_at() + wait_after(tasks, t).max(config.monitor))
        } else {
            now
        };
        if retry_at > now {
            wake.at(retry_at);
            continue;
        }
        let desired = match config.order {
            UpdateOrder::StopFirst => DesiredState::Ready,
            UpdateOrder::StartFirst => DesiredState::Running,
        };
        let spec = (Arc::new(service.spec.task.clone()), service.spec_version);
        make_task(scratch, service, (slot, 0), spec, desired, now, now, ids);
    }
}

fn complete(scratch: &mut Scratch, id: ServiceId, status: &UpdateStatus, now: Timestamp) {
    let (state, message) = if status.state == UpdateState::RollbackStarted {
        (UpdateState::RollbackCompleted, "rollback completed")
    } else {
        (UpdateState::Completed, "update completed")
    };
    scratch.edit_service(id, |s| {
        if let Some(u) = &mut s.update {
            u.state = state;
            u.message = message.into();
            u.completed_at = Some(now);
        }
    });
}
