//! Rolling changes: which slots change now, when the next ones may, and what happens when they fail.
//!
//! All of it is read from the tasks and the service, so a new leader goes on where the old one was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::ids::IdSource;
use model::object::{Key, Service, SlotKey, Task, UpdateState, UpdateStatus};
use model::spec::{FailureAction, PublishMode, TaskSpec, UpdateConfig, UpdateOrder};
use model::task_state::{DesiredState, TaskState};
use model::units::format_duration;
use model::{ServiceId, Timestamp};

use super::restart::{ended_by_itself, wait_after};
use super::revision::{self, roll_back};
use super::{SlotTasks, Wake, by_slot, is_live, make_task, order};
use crate::state::{Scratch, State};

/// How far one slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Runs the old spec only.
    Old,
    /// Has a new task that does not run yet, or is not ready.
    Changing,
    /// Runs the new task, still watched until this time.
    Watched(Timestamp),
    /// Runs the new task since so long that it counts as good; good since this time.
    Done(Timestamp),
    /// Has no live task of either spec.
    Empty,
    /// Has none either, and is about to get one of the old spec again: the manager itself stopped the last.
    Vacant,
    /// Has had its time, and its new tasks came to nothing or do not stay: it holds up nothing any more.
    GivenUp,
}

/// Drives a rollout one step: counts failures, acts on too many, changes the next slots, notices the end.
pub(super) fn drive(
    scratch: &mut Scratch,
    id: ServiceId,
    wanted: &[SlotKey],
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    let Some(service) = scratch.service(id).cloned() else {
        return;
    };
    let watches = |u: &UpdateStatus| u.state.is_active() || u.state == UpdateState::Canary;
    let Some(status) = service.update.clone().filter(watches) else {
        return;
    };
    let config = config_of(scratch, &service, &status);
    let mut slots = slots_of(scratch, id, wanted);
    let status = count(&service, status, &config, &slots, now);
    let deadlines = slots
        .values()
        .filter_map(|tasks| deadline_of(&service, &status, &config, tasks));
    deadlines.filter(|at| *at > now).for_each(|at| wake.at(at));
    if service.update.as_ref() != Some(&status) {
        scratch.edit_service(id, |s| s.update = Some(status.clone()));
    }
    if too_many_failed(&status, &config) && act_on_failure(scratch, &service, &status, &config, now) {
        // A rollback begins with the next look at the service, which its own change brings about.
        return;
    }
    if status.state == UpdateState::Canary {
        return;
    }
    if retire_superseded(scratch, &service, &slots) {
        slots = slots_of(scratch, id, wanted);
    }
    let progress: BTreeMap<SlotKey, Progress> = slots
        .iter()
        .map(|(slot, tasks)| {
            if is_given_up(&service, &status, &config, *slot, tasks, now) {
                return (*slot, Progress::GivenUp);
            }
            (*slot, progress_of(&service, tasks, &config, now))
        })
        .collect();
    for (slot, _) in progress.iter().filter(|(_, p)| **p == Progress::GivenUp) {
        // What comes too late would be one more slot at once than there may be.
        drop_prepared_of(scratch, &service, &slots[slot]);
    }
    swap(scratch, &service, &slots, &config);
    let begun = begun(&service, &slots);
    if canaries_stand(&status, &config, begun, &progress) {
        wait_for_promotion(scratch, id, &status, &config);
        return;
    }
    let begins = progress.values().any(|p| *p == Progress::Old);
    if begins && !order::holds_up(scratch, &service, &status, begun) {
        begin(
            scratch,
            &service,
            &slots,
            (&progress, begun),
            &config,
            now,
            ids,
            wake,
        );
    }
    for p in progress.values() {
        match p {
            Progress::Watched(until) => wake.at(*until),
            Progress::Done(_)
            | Progress::GivenUp
            | Progress::Changing
            | Progress::Old
            | Progress::Empty
            | Progress::Vacant => {}
        }
    }
    let over =
        (progress.values()).all(|p| matches!(p, Progress::Done(_) | Progress::Empty | Progress::GivenUp));
    if over {
        complete(scratch, &service, &status, now);
    }
}

/// The slots a rollout is about: those that are wanted, and those that still have a task, as on nodes not heard of.
fn slots_of(scratch: &Scratch, id: ServiceId, wanted: &[SlotKey]) -> BTreeMap<SlotKey, SlotTasks> {
    let wanted: BTreeSet<SlotKey> = wanted.iter().copied().collect();
    let mut slots = by_slot(scratch, id);
    slots.retain(|slot, tasks| wanted.contains(slot) || tasks.iter().any(|t| is_live(t)));
    slots
}

/// How many slots may be changed before an operator has seen them; absent: all.
fn canaries(status: &UpdateStatus, config: &UpdateConfig) -> Option<usize> {
    let forward = matches!(status.state, UpdateState::Updating | UpdateState::Canary);
    let asks = forward && config.canary > 0 && !status.promoted;
    asks.then_some(config.canary as usize)
}

/// Slots that were begun or changed: also before the rollout was paused and resumed, but not where the new task was withdrawn and
/// the old one goes on.
pub(super) fn begun(service: &Service, slots: &BTreeMap<SlotKey, SlotTasks>) -> usize {
    let has_new = |tasks: &&SlotTasks| {
        let new = |t: &Arc<Task>| of_rollout(service, t);
        let old_lives = || tasks.iter().any(|t| is_live(t) && !service.is_current(t));
        tasks.iter().any(|t| new(t) && (is_live(t) || ended_by_itself(t)))
            || (tasks.last().is_some_and(new) && !old_lives())
    };
    slots.values().filter(has_new).count()
}

/// Whether the canaries run, and there is something left for an operator to decide about.
fn canaries_stand(
    status: &UpdateStatus,
    config: &UpdateConfig,
    begun: usize,
    progress: &BTreeMap<SlotKey, Progress>,
) -> bool {
    let all = || progress.values();
    let settled = |p: &Progress| !matches!(p, Progress::Changing | Progress::Watched(_));
    canaries(status, config).is_some_and(|most| begun >= most)
        && all().all(settled)
        && all().any(|p| matches!(p, Progress::Old | Progress::Vacant))
}

fn wait_for_promotion(scratch: &mut Scratch, id: ServiceId, status: &UpdateStatus, config: &UpdateConfig) {
    let message = format!(
        "{} of {} slots have the new spec as canaries: promote or abort the rest",
        config.canary, status.total_slots
    );
    scratch.edit_service(id, |s| {
        if let Some(u) = &mut s.update {
            u.state = UpdateState::Canary;
            u.message = message;
        }
    });
}

/// The spec a new task of a slot is made from: while a rollout is under way or paused, a slot keeps what its last
/// task had, and a new slot gets the spec before, so that scaling spreads no bad spec (trap D4).
pub(super) fn spec_for_slot(service: &Service, last: Option<&Task>) -> (Arc<TaskSpec>, u64) {
    if service.is_between_specs() {
        if let Some(task) = last {
            return (task.spec.clone(), task.spec_version);
        }
        if let Some(previous) = &service.previous_spec {
            return (Arc::new(previous.task.clone()), service.previous_number());
        }
    }
    (Arc::new(service.spec.task.clone()), service.spec_version)
}

fn config_of(state: &State, service: &Service, status: &UpdateStatus) -> UpdateConfig {
    let mut config = match status.state {
        UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => {
            service.spec.rollback.clone()
        }
        UpdateState::Updating | UpdateState::Paused | UpdateState::Completed | UpdateState::Canary => {
            service.spec.update.clone()
        }
    };
    if !revision::keeps_history(state) {
        // Older managers, who may lead next, wait for ever.
        config.progress_deadline = Duration::ZERO;
    }
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
    now: Timestamp,
) -> UpdateStatus {
    for (slot, tasks) in slots {
        let failed = (tasks.iter()).any(|t| failed_in_rollout(service, &status, config, t))
            || is_overdue(service, &status, config, tasks, now);
        if failed && !status.failed_slots.contains(slot) {
            status.failed_slots.push(*slot);
        }
    }
    if status.total_slots == 0 {
        status.total_slots = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    }
    status
}

/// Also of one that was paused and goes on.
fn of_rollout(service: &Service, task: &Task) -> bool {
    task.spec_version == service.spec_version
}

/// Whether a task of the new spec ended before it ran, or within `monitor` of running; a canary at any time, until it is promoted.
fn failed_in_rollout(service: &Service, status: &UpdateStatus, config: &UpdateConfig, task: &Task) -> bool {
    let watched = |ran| task.over_at().since(ran) <= config.monitor || canaries(status, config).is_some();
    fell(service, status, task) && task.running_at.is_none_or(watched)
}

/// Whether a task of the new spec ended by itself; what went wrong before the rollout was resumed is forgiven.
fn fell(service: &Service, status: &UpdateStatus, task: &Task) -> bool {
    of_rollout(service, task) && ended_by_itself(task) && task.over_at() >= status.started_at
}

/// Whether a task of the new spec ever ran in a slot.
fn ran(service: &Service, tasks: &SlotTasks) -> bool {
    (tasks.iter()).any(|t| of_rollout(service, t) && t.running_at.is_some())
}

/// When a slot has had its time, if it was begun and there is a bound.
fn deadline_of(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    tasks: &SlotTasks,
) -> Option<Timestamp> {
    // What was withdrawn when it was paused is no try.
    let tried = |t: &Arc<Task>| {
        let since = |at: Timestamp| at >= status.started_at;
        since(t.meta.created_at) || is_live(t) || (ended_by_itself(t) && since(t.over_at()))
    };
    let mut new = tasks.iter().filter(|t| of_rollout(service, t) && tried(t));
    let first = new.next().filter(|_| !config.progress_deadline.is_zero())?;
    // Of one that was ready it begins anew when it ceases to be.
    let unready_at = (tasks.iter()).filter_map(|t| t.unready_at.filter(|_| is_unready(service, t)));
    let since = first.meta.created_at.max(status.started_at);
    Some(unready_at.fold(since, Timestamp::max) + config.progress_deadline)
}

/// Whether a slot has had its time.
fn is_late(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    tasks: &SlotTasks,
    now: Timestamp,
) -> bool {
    // One that waits for its restart's delay waits for no other task.
    let stands = |t: &Arc<Task>| (t.status.state == TaskState::Ready && t.run_at <= now) || t.is_ready();
    let waits = (tasks.iter()).any(|t| is_live(t) && service.is_current(t) && stands(t));
    !waits && deadline_of(service, status, config, tasks).is_some_and(|at| at <= now)
}

/// Whether the new task of a slot runs, and is not ready any more.
fn is_unready(service: &Service, task: &Task) -> bool {
    is_live(task) && service.is_current(task) && task.status.state == TaskState::Running && !task.is_ready()
}

/// Ends of new tasks after which a slot that has had its time, and is down, counts as one that does not stay up.
const FALLS: usize = 2;

/// Whether a slot has had its time and no new task ever ran, nor is ready and waits for the old one to stop (trap D3); or it was
/// ready, and is not any more; or its tasks end again and again, each after it was good.
fn is_overdue(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    tasks: &SlotTasks,
    now: Timestamp,
) -> bool {
    let falls = || tasks.iter().filter(|t| fell(service, status, t)).count();
    let unready = || tasks.iter().any(|t| is_unready(service, t));
    let late = is_late(service, status, config, tasks, now);
    late && (!ran(service, tasks) || unready() || falls() >= FALLS)
}

/// Whether a slot is waited for no more: it has had its time, and its new tasks failed, or ran long enough to be good and ended
/// nevertheless; what becomes of it then says its restart policy. Not while the old task is about to go for a new one.
fn is_given_up(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    slot: SlotKey,
    tasks: &SlotTasks,
    now: Timestamp,
) -> bool {
    let live = || tasks.iter().filter(|t| is_live(t));
    let stands = |t: &Arc<Task>| t.status.state == TaskState::Ready || t.is_ready();
    let hands_over =
        live().any(|t| !service.is_current(t)) && live().any(|t| service.is_current(t) && stands(t));
    let was_good = |t: &Arc<Task>| {
        let ran = t
            .running_at
            .filter(|_| of_rollout(service, t) && ended_by_itself(t));
        ran.is_some_and(|ran| t.over_at().since(ran) > config.monitor)
    };
    let over = deadline_of(service, status, config, tasks).is_some_and(|at| at <= now);
    over && !hands_over && (status.failed_slots.contains(&slot) || tasks.iter().any(was_good))
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
    let late = late(scratch, service, status, config, now);
    let why = match &late {
        Some(late) => late.clone(),
        None => format!(
            "due to failure or early termination of a task{}",
            last_error(scratch, service)
        ),
    };
    match config.failure_action {
        FailureAction::Continue => false,
        FailureAction::Rollback if !back && service.previous_spec.is_some() => {
            let message = format!("update rolled back {why}");
            roll_back(scratch, service.id, None, now, &message, "automatic rollback");
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
                    u.message = format!("{what} paused {why}");
                    u.timed_out = late.is_some();
                }
            });
            drop_prepared(scratch, service);
            true
        }
    }
}

/// What did not run in time, where that is what went wrong.
fn late(
    scratch: &Scratch,
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    now: Timestamp,
) -> Option<String> {
    let slots = by_slot(scratch, service.id);
    let tasks = (slots.values()).find(|tasks| is_overdue(service, status, config, tasks, now))?;
    let task = (tasks.iter().rev()).find(|t| of_rollout(service, t))?;
    let within = format_duration(config.progress_deadline);
    let what = if is_unready(service, task) {
        format!("was not ready for {within}: {}", task.status.message)
    } else {
        let new = tasks.iter().rev().filter(|t| of_rollout(service, t));
        let error = new.map(|t| t.status.error.as_str()).find(|e| !e.is_empty());
        let why = error.unwrap_or(task.status.state.as_str());
        let what = if ran(service, tasks) {
            "does not stay up after"
        } else {
            "did not run within"
        };
        format!("{what} {within}: {why}")
    };
    Some(format!("because {} {what}", task.name()))
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
pub(crate) fn drop_prepared(scratch: &mut Scratch, service: &Service) {
    for tasks in by_slot(scratch, service.id).into_values() {
        drop_prepared_of(scratch, service, &tasks);
    }
}

fn drop_prepared_of(scratch: &mut Scratch, service: &Service, tasks: &SlotTasks) {
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

/// Ends what a rollout that this one takes the place of had begun: of several tasks of earlier specs a slot keeps the
/// one that serves.
fn retire_superseded(scratch: &mut Scratch, service: &Service, slots: &BTreeMap<SlotKey, SlotTasks>) -> bool {
    let mut any = false;
    for tasks in slots.values() {
        let old = || tasks.iter().filter(|t| is_live(t) && !service.is_current(t));
        let serves = |t: &&Arc<Task>| {
            let running = t.is_ready() && t.desired == DesiredState::Running;
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
        return match tasks.last() {
            _ if old => Progress::Old,
            Some(last) if service.is_current(last) => Progress::Empty,
            Some(last) if ended_by_itself(last) => Progress::Old,
            Some(_) => Progress::Vacant,
            None => Progress::Empty,
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
    // What serves nobody is no step forward: the next slots wait until it is ready again.
    if !fresh.is_ready() {
        return Progress::Changing;
    }
    let good_at = fresh.running_at.unwrap_or(fresh.status.at) + config.monitor;
    if good_at > now {
        Progress::Watched(good_at)
    } else {
        Progress::Done(good_at)
    }
}

/// Hands slots over from old task to new: the old one is stopped once the new one is prepared (stop-first) or runs
/// and is ready (start-first), never before (trap D1).
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
            UpdateOrder::StopFirst => fresh.status.state >= TaskState::Ready,
            UpdateOrder::StartFirst => fresh.is_ready(),
        };
        if !enough {
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
    (progress, begun): (&BTreeMap<SlotKey, Progress>, usize),
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
        Progress::Done(_)
        | Progress::Old
        | Progress::Changing
        | Progress::Watched(_)
        | Progress::Empty
        | Progress::Vacant
        | Progress::GivenUp => None,
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
    let canaries = (service.update.as_ref()).and_then(|u| canaries(u, config));
    let most = canaries.map_or(usize::MAX, |most| most.saturating_sub(begun));
    // A slot whose new task failed before is tried again no sooner than the restart policy says, and holds up no other meanwhile.
    let may_begin = |slot: &SlotKey| {
        let last = (slots[slot].iter().rev()).find(|t| ended_by_itself(t) && service.is_current(t));
        let retry_at = last
            .filter(|_| failed.contains(slot))
            .map(|t| t.over_at() + wait_after(&slots[slot], t).max(config.monitor));
        match retry_at {
            Some(at) if at > now => {
                wake.at(at);
                false
            }
            Some(_) | None => true,
        }
    };
    let next: Vec<SlotKey> = waiting.into_iter().filter(may_begin).collect();
    for slot in next.into_iter().take(parallel.saturating_sub(busy).min(most)) {
        let desired = match config.order {
            UpdateOrder::StopFirst => DesiredState::Ready,
            UpdateOrder::StartFirst => DesiredState::Running,
        };
        let spec = (Arc::new(service.spec.task.clone()), service.spec_version);
        make_task(scratch, service, (slot, 0), spec, desired, now, now, ids);
    }
}

fn complete(scratch: &mut Scratch, service: &Service, status: &UpdateStatus, now: Timestamp) {
    let (state, mut message) = if status.state == UpdateState::RollbackStarted {
        (UpdateState::RollbackCompleted, "rollback completed".to_owned())
    } else {
        (UpdateState::Completed, "update completed".to_owned())
    };
    let failed = status.failed_slots.len();
    if failed > 0 {
        message = format!("{message}; {failed} of {} slots failed", status.total_slots);
    }
    // Where the new task was given up the old one goes on.
    drop_prepared(scratch, service);
    scratch.edit_service(service.id, |s| {
        if let Some(u) = &mut s.update {
            u.state = state;
            u.message = message;
            u.completed_at = Some(now);
        }
    });
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
