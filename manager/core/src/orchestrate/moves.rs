//! Tasks that move to other nodes: each goes once its successor runs, and so many at once as were asked for.
//!
//! Which ones stands in the tasks themselves, so a new leader goes on where the old one was.

use model::Timestamp;
use model::ids::IdSource;
use model::object::{Service, SlotKey, Task};
use model::task_state::DesiredState;

use super::{by_slot, is_live, make_task, order};
use crate::state::Scratch;

/// Takes every move of a service one step further.
pub(super) fn drive(scratch: &mut Scratch, service: &Service, now: Timestamp, ids: &mut dyn IdSource) {
    if service.update.as_ref().is_some_and(|u| u.state.is_active()) {
        // A rollout makes every task anew.
        return;
    }
    let (mut busy, mut waiting): (u32, Vec<(SlotKey, Task)>) = (0, Vec::new());
    for (slot, tasks) in by_slot(scratch, service.id) {
        let Some(moving) = tasks.iter().find(|t| t.moving > 0 && is_live(t)) else {
            continue;
        };
        match tasks.last() {
            Some(last) if last.id == moving.id => waiting.push((slot, (**moving).clone())),
            Some(last) if is_live(last) && !last.is_ready() => busy += 1,
            Some(last) if is_live(last) => scratch.edit_task(moving.id, |t| {
                t.desired = DesiredState::Shutdown;
                t.status.message = "moved to another node".into();
            }),
            // Its successor did not come to run: it stays.
            Some(_) | None => scratch.edit_task(moving.id, |t| t.moving = 0),
        }
    }
    for (slot, task) in waiting {
        if busy >= task.moving || order::holds_back(scratch, service.id, &task.spec) {
            return;
        }
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
