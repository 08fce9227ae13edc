//! Jobs: runs that begin when the schedule or a change says so, their slots, and how they end.
//!
//! A slot of a run has its tasks one after the other until one of them completes; all is read from those and from the
//! service, so a new leader goes on where the old one was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::ids::IdSource;
use model::job::{JobStatus, RunState};
use model::object::{Service, SlotKey, Task};
use model::spec::{Concurrency, ServiceMode, ServiceSpec};
use model::task_state::{DesiredState, TaskState};
use model::{ServiceId, Timestamp};

use super::cron::Clock;
use super::{
    Restart, SlotTasks, Wake, by_slot, holds_slot, is_live, make_task, node, order, promote, restart_after,
    retire_ended,
};
use crate::state::{Scratch, State};

/// The runs of a job that is made now: one at once, or as its schedule says.
///
/// # Errors
/// What is wrong with its schedule.
pub(crate) fn begins(spec: &ServiceSpec, now: Timestamp) -> Result<Option<JobStatus>, String> {
    if !spec.mode.is_job() {
        return Ok(None);
    }
    let mut job = JobStatus {
        next_at: next_of(spec, now)?,
        ..JobStatus::default()
    };
    if spec.schedule.is_none() {
        job.begin(spec, Concurrency::Replace, None, now, |_| 0);
    }
    Ok(Some(job))
}

/// When the schedule of a job fires next; none: it has none.
///
/// # Errors
/// What is wrong with the schedule; also when it never fires.
pub(crate) fn next_of(spec: &ServiceSpec, now: Timestamp) -> Result<Option<Timestamp>, String> {
    let Some(schedule) = &spec.schedule else {
        return Ok(None);
    };
    match Clock::new(schedule)?.next(now) {
        Some(at) => Ok(Some(at)),
        None => Err(format!(
            "schedule \"{}\" never fires: there is no such day",
            schedule.cron
        )),
    }
}

/// How many slots of a run completed.
pub(crate) fn completed(state: &State, id: ServiceId, run: u64) -> u32 {
    let done = state
        .tasks_of_service(id)
        .filter(|t| t.iteration == run && t.status.state == TaskState::Complete);
    let slots: BTreeSet<SlotKey> = done.map(|t| t.slot).collect();
    u32::try_from(slots.len()).unwrap_or(u32::MAX)
}

/// What is done when a run is to begin and another is under way.
pub(crate) fn concurrency(spec: &ServiceSpec) -> Concurrency {
    (spec.schedule.as_ref()).map_or(Concurrency::Forbid, |s| s.concurrency)
}

/// Begins a run, as [`JobStatus::begin`] does, but that none stands in its way which has come to nothing: one of what the job
/// was before it was changed, and of which nothing runs.
pub(crate) fn begin(
    state: &State,
    service: &Service,
    job: &mut JobStatus,
    due_at: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let rule = concurrency(&service.spec);
    let done = |run| completed(state, service.id, run);
    if job.begin(&service.spec, rule, due_at, now, done) {
        return true;
    }
    job.replace(now, |run| came_to_nothing(state, service, run), done);
    job.begin(&service.spec, rule, due_at, now, done)
}

/// Whether a run is of an older spec of its job, and nothing of it runs: an image that cannot be had, no node for it, or it
/// failed and waits before it is tried again.
fn came_to_nothing(state: &State, service: &Service, run: u64) -> bool {
    let runs =
        |t: &Arc<Task>| t.iteration == run && holds_slot(state, t) && t.status.state >= TaskState::Starting;
    is_older(state, service, run) && !state.tasks_of_service(service.id).any(runs)
}

/// Whether a run is of what its job was before it was changed.
pub(crate) fn is_older(state: &State, service: &Service, run: u64) -> bool {
    let older = |t: &Arc<Task>| t.iteration == run && t.spec_version != service.spec_version;
    state.tasks_of_service(service.id).any(older)
}

/// Drives a job one step: begins the run that is due, ends what is wanted no more, fills slots, notices the end.
pub(super) fn drive(
    scratch: &mut Scratch,
    id: ServiceId,
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    fire(scratch, id, now, wake);
    let Some(service) = scratch.service(id).cloned() else {
        return;
    };
    let open = (service.job.as_ref()).map_or_else(Vec::new, |job| job.open(&service.spec));
    let wanted = wanted(scratch, &service);
    close(scratch, &service, &open, &wanted);
    for run in open {
        let mut slots = Slots::of(scratch, &service, run);
        slots.fill(scratch, &wanted, now, ids, wake);
        let (slots, leaving) = (of_run(scratch, id, run), leaving(scratch, &service, run));
        promote(scratch, &service, slots, &leaving, now, wake);
        settle(scratch, &service, run, &wanted, now);
    }
}

/// Begins the run that is due. Whoever leads does so in one entry with the time of the next one, so no time fires twice;
/// of several that were missed, the last one does.
fn fire(scratch: &mut Scratch, id: ServiceId, now: Timestamp, wake: &mut Wake) {
    let Some(service) = scratch.service(id).cloned() else {
        return;
    };
    let next = service.job.as_ref().and_then(|job| job.next_at);
    let (Some(first), Some(schedule)) = (next, &service.spec.schedule) else {
        return;
    };
    if first > now {
        wake.at(first);
        return;
    }
    // It was understood when it was admitted; one that is not any more fires no more.
    let clock = Clock::new(schedule).ok();
    let due = clock.as_ref().map_or(first, |c| c.last(first, now));
    let next_at = clock.and_then(|c| c.next(now));
    let late = !schedule.starting_deadline.is_zero() && now.since(due) > schedule.starting_deadline;
    let mut job = service.job.clone().unwrap_or_default();
    if late || !begin(scratch, &service, &mut job, Some(due), now) {
        job.missed += 1;
    }
    job.next_at = next_at;
    scratch.edit_service(id, |s| s.job = Some(job));
    if let Some(at) = next_at {
        wake.at(at);
    }
}

/// The slots a run has now.
fn wanted(state: &State, service: &Service) -> BTreeSet<SlotKey> {
    match service.spec.mode {
        ServiceMode::ReplicatedJob { completions, .. } => (1..=completions).map(SlotKey::Replica).collect(),
        ServiceMode::GlobalJob => {
            let nodes = node::eligible(state, service).into_iter();
            nodes.map(SlotKey::Node).collect()
        }
        ServiceMode::Replicated { .. } | ServiceMode::Global => BTreeSet::new(),
    }
}

/// Ends tasks of runs that are over and of slots that are wanted no more; the history of a replica goes with its slot.
fn close(scratch: &mut Scratch, service: &Service, open: &[u64], wanted: &BTreeSet<SlotKey>) {
    let global = service.spec.mode.is_global();
    for (slot, tasks) in by_slot(scratch, service.id) {
        let stays = wanted.contains(&slot) || (global && node::keeps(scratch, slot));
        for task in &tasks {
            let want = if !stays && !global {
                DesiredState::Remove
            } else if !stays || !open.contains(&task.iteration) {
                DesiredState::Shutdown
            } else {
                continue;
            };
            if task.desired < want {
                scratch.edit_task(task.id, |t| t.desired = want);
            }
        }
    }
}

/// The tasks of one run by slot, and which slots are taken.
struct Slots<'a> {
    service: &'a Service,
    run: u64,
    tasks: BTreeMap<SlotKey, SlotTasks>,
    /// Slots in which something may still run that is not of this run, or was to be removed.
    leaving: BTreeSet<SlotKey>,
    /// Slots that count as running.
    taken: BTreeSet<SlotKey>,
}

/// What to do with a slot.
enum Next {
    /// Nothing: it failed for good, or has a task.
    Nothing,
    /// Nothing before this time.
    Wait(Timestamp),
    /// A task that runs not before this time.
    Task(Timestamp),
}

impl<'a> Slots<'a> {
    fn of(scratch: &Scratch, service: &'a Service, run: u64) -> Self {
        let tasks = of_run(scratch, service.id, run);
        let leaving = leaving(scratch, service, run);
        let busy = |tasks: &SlotTasks| tasks.iter().any(|t| is_live(t) || holds_slot(scratch, t));
        let own = tasks
            .iter()
            .filter(|(_, tasks)| busy(tasks))
            .map(|(slot, _)| *slot);
        let taken = own.chain(leaving.iter().copied()).collect();
        Self {
            service,
            run,
            tasks,
            leaving,
            taken,
        }
    }

    /// Makes tasks in slots that have none, never more at a time than the job allows.
    fn fill(
        &mut self,
        scratch: &mut Scratch,
        wanted: &BTreeSet<SlotKey>,
        now: Timestamp,
        ids: &mut dyn IdSource,
        wake: &mut Wake,
    ) {
        let most = (self.service.spec.mode.concurrent()).map_or(usize::MAX, |n| n as usize);
        for slot in wanted {
            let tasks = self.tasks.get(slot).map_or(&[][..], Vec::as_slice);
            retire_ended(scratch, tasks);
            if completed_in(tasks) {
                // One that was stopped completed nevertheless: what was to follow it is not needed.
                tasks.iter().filter(|t| is_live(t)).for_each(|t| {
                    scratch.edit_task(t.id, |t| t.desired = DesiredState::Shutdown);
                });
                continue;
            }
            let run_at = match next(self.service, tasks, now) {
                Next::Nothing => continue,
                Next::Wait(at) => {
                    wake.at(at);
                    continue;
                }
                Next::Task(at) => at,
            };
            if !self.taken.contains(slot) && self.taken.len() >= most {
                continue;
            }
            self.taken.insert(*slot);
            let busy = self.leaving.contains(slot) || tasks.iter().any(|t| holds_slot(scratch, t));
            // What is tried again in a run is what was tried before, and a run of a schedule has one spec.
            let of_run = tasks.last().or_else(|| self.tasks.values().flatten().next());
            let spec = match of_run.filter(|_| !tasks.is_empty() || self.service.spec.schedule.is_some()) {
                Some(other) => (other.spec.clone(), other.spec_version),
                None => (
                    Arc::new(self.service.spec.task.clone()),
                    self.service.spec_version,
                ),
            };
            let held = order::holds_back(scratch, self.service.id, &spec.0);
            let desired = if run_at > now || busy || held {
                DesiredState::Ready
            } else {
                DesiredState::Running
            };
            let place = (*slot, self.run);
            make_task(scratch, self.service, place, spec, desired, run_at, now, ids);
        }
    }
}

/// What to do with a slot that has these tasks of a run, none of which completed.
fn next(service: &Service, tasks: &[Arc<Task>], now: Timestamp) -> Next {
    if tasks.iter().any(|t| is_live(t)) {
        return Next::Nothing;
    }
    match restart_after(service, tasks) {
        Restart::Never => Next::Nothing,
        Restart::NotBefore(at) if at > now => Next::Wait(at),
        Restart::Now | Restart::NotBefore(_) => Next::Task(now),
        Restart::At(at) => Next::Task(at.max(now)),
    }
}

fn completed_in(tasks: &[Arc<Task>]) -> bool {
    tasks.iter().any(|t| t.status.state == TaskState::Complete)
}

fn of_run(scratch: &Scratch, id: ServiceId, run: u64) -> BTreeMap<SlotKey, SlotTasks> {
    let mut slots = by_slot(scratch, id);
    slots.retain(|_, tasks| {
        tasks.retain(|t| t.iteration == run);
        !tasks.is_empty()
    });
    slots
}

/// Slots in which a task that is to be removed, or of a run that is over, may still have a process. Runs that go on at the
/// same time are no matter of one another.
fn leaving(scratch: &Scratch, service: &Service, run: u64) -> BTreeSet<SlotKey> {
    let open = (service.job.as_ref()).map_or_else(Vec::new, |job| job.open(&service.spec));
    let leaves =
        |t: &Task| t.desired == DesiredState::Remove || (t.iteration != run && !open.contains(&t.iteration));
    (scratch.tasks_of_service(service.id))
        .filter(|t| leaves(t) && holds_slot(scratch, t))
        .map(|t| t.slot)
        .collect()
}

/// Writes down how a run ended, once nothing of it is to come; one that is scaled up goes on.
fn settle(scratch: &mut Scratch, service: &Service, run: u64, wanted: &BTreeSet<SlotKey>, now: Timestamp) {
    let slots = of_run(scratch, service.id, run);
    let none = Vec::new();
    let (mut failed, mut over) = (0, true);
    for slot in wanted {
        let tasks = slots.get(slot).unwrap_or(&none);
        if completed_in(tasks) {
            continue;
        }
        let for_good = !tasks.iter().any(|t| is_live(t)) && restart_after(service, tasks) == Restart::Never;
        failed += u32::from(for_good);
        over &= for_good;
    }
    over &= !slots.values().flatten().any(|t| is_live(t));
    // Where it was begun and did not complete, as the node was lost or drained, it failed; where nowhere is any node for it, it waits.
    if service.spec.mode.is_global() {
        let lost = (slots.iter())
            .filter(|(slot, tasks)| !wanted.contains(slot) && !completed_in(tasks))
            .count();
        failed += u32::try_from(lost).unwrap_or(u32::MAX);
        over &= !(wanted.is_empty() && slots.is_empty());
    }
    let done = completed(scratch, service.id, run);
    let found = (service.job.as_ref()).and_then(|job| job.runs.iter().find(|r| r.iteration == run));
    let Some(mut result) = found.cloned() else { return };
    if over {
        result.ended_at = result.ended_at.or(Some(now));
        result.state = if failed == 0 {
            RunState::Completed
        } else {
            RunState::Failed
        };
        (result.completed, result.failed) = (done, failed);
    } else {
        result.ended_at = None;
        result.state = RunState::Active;
        (result.completed, result.failed) = (0, 0);
    }
    if found == Some(&result) {
        return;
    }
    scratch.edit_service(service.id, |s| {
        let spec = s.spec.clone();
        if let Some(job) = &mut s.job {
            if let Some(known) = job.runs.iter_mut().find(|r| r.iteration == run) {
                *known = result;
            }
            job.forget(&spec);
        }
    });
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
