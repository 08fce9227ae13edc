//! A fake host: pulls that take time, containers that crash, a daemon that restarts, a machine that is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use model::assignment::AssignmentSet;
use model::object::{Task, TaskStatus};
use model::task_state::{DesiredState, TaskState};
use model::{TaskId, Timestamp};

use super::rng::Rng;

/// One machine.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether it runs at all.
    pub up: bool,
    /// Whether it hears and is heard.
    pub connected: bool,
    /// What it knows of itself: how far each task is, and when the next step is due.
    pub tasks: BTreeMap<TaskId, Local>,
}

/// A task on its host.
#[derive(Debug, Clone)]
pub struct Local {
    state: TaskState,
    due: Timestamp,
    since: Timestamp,
}

impl Host {
    /// A machine that runs.
    pub fn new() -> Self {
        Self {
            up: true,
            connected: true,
            tasks: BTreeMap::new(),
        }
    }

    /// Power was cut: nothing runs any more, and the agent knows its tasks only from its disk.
    pub fn reboot(&mut self, now: Timestamp) {
        for local in self.tasks.values_mut().filter(|l| !l.state.is_terminal()) {
            if local.state >= TaskState::Starting {
                local.state = TaskState::Failed;
                local.since = now;
            }
        }
    }

    /// Does what is due; answers what has to be reported.
    pub fn tick(
        &mut self,
        view: &AssignmentSet,
        now: Timestamp,
        rng: &mut Rng,
        faults: bool,
    ) -> Vec<(TaskId, TaskStatus)> {
        let mut reports = Vec::new();
        if !self.up {
            return reports;
        }
        self.tasks.retain(|id, _| view.tasks.contains_key(id));
        for (id, task) in &view.tasks {
            if task.status.state.is_terminal() {
                self.tasks.remove(id);
                continue;
            }
            let local = self.tasks.entry(*id).or_insert(Local {
                state: TaskState::Assigned,
                due: now,
                since: now,
            });
            let step = if local.due <= now {
                next(task, local, rng, faults)
            } else {
                None
            };
            if let Some(next) = step {
                local.state = next;
                local.since = now;
                local.due = now + pause(next, rng);
            }
            if local.state > task.status.state {
                let error = if local.state == TaskState::Rejected {
                    "No such image"
                } else {
                    ""
                };
                let status = TaskStatus {
                    state: local.state,
                    at: local.since,
                    error: error.into(),
                    ..TaskStatus::new(now)
                };
                reports.push((*id, status));
            }
        }
        reports
    }

    /// Whether a container of the task runs here.
    pub fn runs(&self, id: TaskId) -> bool {
        self.tasks
            .get(&id)
            .is_some_and(|l| l.state >= TaskState::Starting && !l.state.is_terminal())
    }
}

fn pause(state: TaskState, rng: &mut Rng) -> Duration {
    let most = match state {
        TaskState::Preparing => 4_000,
        TaskState::Starting => 1_000,
        _ => 100,
    };
    Duration::from_millis(rng.below(most))
}

/// The next state of a task, as its wish and its image have it.
fn next(task: &Task, local: &Local, rng: &mut Rng, faults: bool) -> Option<TaskState> {
    if local.state.is_terminal() {
        return None;
    }
    if !task.desired.is_live() {
        return Some(TaskState::Shutdown);
    }
    let image = task.spec.container.image.as_str();
    match local.state {
        TaskState::Assigned => Some(TaskState::Accepted),
        TaskState::Accepted => Some(TaskState::Preparing),
        TaskState::Preparing if image == "missing" => Some(TaskState::Rejected),
        TaskState::Preparing => Some(TaskState::Ready),
        TaskState::Ready if task.desired == DesiredState::Running => Some(TaskState::Starting),
        TaskState::Starting => Some(TaskState::Running),
        TaskState::Running if image == "crash" && rng.percent(40) => Some(TaskState::Failed),
        TaskState::Running if image == "exit" && rng.percent(20) => Some(TaskState::Complete),
        TaskState::Running if faults && rng.below(1_000) < 4 => Some(TaskState::Failed),
        _ => None,
    }
}
