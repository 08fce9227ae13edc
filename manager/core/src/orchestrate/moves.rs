//! Tasks that move to other nodes: each goes once its successor runs and is ready, and so many at once as were asked for.
//!
//! Which ones stands in the tasks themselves, or follows from their nodes, so a new leader goes on where the old one was.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::ids::IdSource;
use model::object::{Key, Service, SlotKey, Task};
use model::task_state::DesiredState;
use model::{TaskId, Timestamp};

use super::restart::{PREPARE_PAUSE, ended_by_itself, wait_after};
use super::{SlotTasks, Wake, by_slot, is_live, make_task, order};
use crate::state::Scratch;

/// What a slot waits for.
enum Step {
    /// Nothing: its task stays.
    Rest,
    /// Its turn.
    Turn(Arc<Task>, u32),
    /// Its successor, which is not ready yet or failed not long ago.
    Busy,
}

/// Takes every move of a service one step further: of tasks that are marked, and of those that hand over as they must leave.
pub(super) fn drive(
    scratch: &mut Scratch,
    service: &Service,
    handing_over: &BTreeSet<TaskId>,
    now: Timestamp,
    ids: &mut dyn IdSource,
    wake: &mut Wake,
) {
    if service.update.as_ref().is_some_and(|u| u.state.is_active()) {
        // A rollout makes every task anew.
        return;
    }
    let all = match service.spec.update.parallelism {
        0 => u32::MAX,
        some => some,
    };
    let many = |t: &Task| {
        if handing_over.contains(&t.id) {
            all
        } else {
            t.moving
        }
    };
    let (mut busy, mut waiting): (u32, Vec<(SlotKey, Arc<Task>, u32)>) = (0, Vec::new());
    for (slot, tasks) in by_slot(scratch, service.id) {
        match step(scratch, service, &tasks, handing_over, &many, now, wake) {
            Step::Rest => {}
            Step::Turn(task, most) => waiting.push((slot, task, most)),
            Step::Busy => busy += 1,
        }
    }
    for (slot, task, most) in waiting {
        if busy >= most || order::holds_back(scratch, service.id, &task.spec) {
            continue;
        }
        task.node.iter().for_each(|id| scratch.rely_on(Key::Node(*id)));
        let spec = (task.spec.clone(), task.spec_version);
        make_task(
            scratch,
            service,
            (slot, 0),
            spec,
            DesiredState::Running,
            now,
            now,
            ids,
        );
        busy += 1;
    }
}

/// When a move is called off whose successor is not ready; none: never, as its task has to leave.
fn given_up_at(
    service: &Service,
    old: &Task,
    new: &Task,
    handing_over: &BTreeSet<TaskId>,
) -> Option<Timestamp> {
    let bound = service.spec.update.progress_deadline;
    let may_stay = !handing_over.contains(&old.id) && !bound.is_zero();
    may_stay.then(|| new.unready_at.unwrap_or(new.meta.created_at) + bound)
}

/// Ends whichever of the two tasks of a slot is to go, and says what it waits for.
fn step(
    scratch: &mut Scratch,
    service: &Service,
    tasks: &SlotTasks,
    handing_over: &BTreeSet<TaskId>,
    many: &impl Fn(&Task) -> u32,
    now: Timestamp,
    wake: &mut Wake,
) -> Step {
    let mut live = tasks.iter().filter(|t| is_live(t));
    let (Some(old), new) = (live.next(), live.next_back()) else {
        return Step::Rest;
    };
    if let Some(new) = new {
        let (goes, stays, why) = match (new.is_ready(), many(old) > 0) {
            (true, _) => (old, new, "moved to another node"),
            (false, true) => match given_up_at(service, old, new, handing_over) {
                Some(at) if at <= now => {
                    scratch.edit_task(old.id, |t| t.moving = 0);
                    (new, old, "it was not ready in time: the task before it stays")
                }
                at => {
                    at.iter().for_each(|at| wake.at(*at));
                    return Step::Busy;
                }
            },
            // It was called off.
            (false, false) => (new, old, "the task before it stays"),
        };
        // Of two that go and stay the other must still be there.
        scratch.rely_on(Key::Task(stays.id));
        scratch.edit_task(goes.id, |t| {
            t.desired = DesiredState::Shutdown;
            t.status.message = why.into();
        });
        return Step::Rest;
    }
    let most = many(old);
    if most == 0 {
        return Step::Rest;
    }
    let failed = tasks
        .last()
        .filter(|last| last.id != old.id && ended_by_itself(last));
    match failed {
        None => Step::Turn(old.clone(), most),
        Some(last) if handing_over.contains(&old.id) => {
            let again = last.over_at() + wait_after(tasks, last).max(PREPARE_PAUSE);
            if again <= now {
                return Step::Turn(old.clone(), most);
            }
            wake.at(again);
            Step::Busy
        }
        // Its successor did not come to run: it stays.
        Some(_) => {
            scratch.edit_task(old.id, |t| t.moving = 0);
            Step::Rest
        }
    }
}
