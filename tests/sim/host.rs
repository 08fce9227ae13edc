//! A host: the real agent's decisions over a fake runtime, whose pulls take time and whose containers crash.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_core::health::Health;
use agent_core::step::{LocalTask, RETRY, Seen, Step, next_step, state_of};
use model::assignment::AssignmentSet;
use model::object::{Task, TaskStatus};
use model::{TaskId, Timestamp};

use super::rng::Rng;

/// Steps of one task at one time; more are an agent that never settles.
const STEPS_MAX: u32 = 20;

/// One machine.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether it runs at all.
    pub up: bool,
    /// Whether it hears and is heard.
    pub connected: bool,
    /// What its agent knows of its tasks.
    pub tasks: BTreeMap<TaskId, Local>,
}

/// A task on its host.
#[derive(Debug, Clone)]
pub struct Local {
    task: LocalTask,
    /// What is being done, and when it will be.
    busy: Option<(Step, Timestamp)>,
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

    /// Power was cut: nothing runs any more, namespaces are gone, and folders are still there.
    pub fn reboot(&mut self, now: Timestamp) {
        for local in self.tasks.values_mut() {
            local.busy = None;
            local.since = now;
            local.task.in_net = false;
            local.task.seen = match &local.task.seen {
                Seen::Running(_) | Seen::Stopping => Seen::Ended {
                    code: None,
                    reason: None,
                },
                // Its config died with the agent.
                Seen::Prepared => Seen::Nothing,
                other => other.clone(),
            };
        }
    }

    /// Does what is due; answers what has to be reported.
    ///
    /// # Errors
    /// An agent that goes round in circles.
    pub fn tick(
        &mut self,
        view: &AssignmentSet,
        now: Timestamp,
        rng: &mut Rng,
        faults: bool,
    ) -> Result<Vec<(TaskId, TaskStatus)>, String> {
        let mut reports = Vec::new();
        if !self.up {
            return Ok(reports);
        }
        for (id, task) in &view.tasks {
            self.tasks.entry(*id).or_insert_with(|| Local {
                task: LocalTask {
                    desired: Some(task.desired),
                    seen: Seen::Nothing,
                    in_net: false,
                    // The disk was lost, or the agent never had it: there is nothing to give back.
                    released: task.status.state.is_terminal(),
                    stopped_by_us: false,
                    retry_at: None,
                },
                busy: None,
                since: now,
            });
        }
        let mut forgotten = Vec::new();
        for (id, local) in &mut self.tasks {
            let task = view.tasks.get(id);
            local.task.desired = task.map(|t| t.desired);
            let image = task.map_or("", |t| t.spec.container.image.as_str());
            misfortune(local, image, now, rng, faults);
            if act(local, image, now, rng, faults)
                .ok_or_else(|| format!("agent_settles: task {id} goes round"))?
            {
                forgotten.push(*id);
                continue;
            }
            reports.extend(task.and_then(|t| report(local, t)).map(|status| (*id, status)));
        }
        for id in forgotten {
            self.tasks.remove(&id);
        }
        Ok(reports)
    }

    /// The container of a task ends by itself.
    pub fn crash(&mut self, id: TaskId, code: i32, now: Timestamp) -> bool {
        let Some(local) = self.tasks.get_mut(&id) else {
            return false;
        };
        let runs = matches!(local.task.seen, Seen::Running(_));
        if runs {
            local.since = now;
            local.task.seen = Seen::Ended {
                code: Some(code),
                reason: None,
            };
        }
        runs
    }

    /// Whether a container of the task runs here.
    pub fn runs(&self, id: TaskId) -> bool {
        self.tasks
            .get(&id)
            .is_some_and(|l| matches!(l.task.seen, Seen::Running(_) | Seen::Stopping))
    }
}

/// What a manager does not know yet.
fn report(local: &Local, task: &Task) -> Option<TaskStatus> {
    let state = state_of(&local.task);
    // Whatever was told and lost is told again, as the real outbox does until it is acknowledged.
    (state > task.status.state && !task.status.state.is_terminal()).then(|| TaskStatus {
        state,
        error: match &local.task.seen {
            Seen::Failed { error, .. } => error.clone(),
            _ => String::new(),
        },
        ..TaskStatus::new(local.since)
    })
}

/// What containers do by themselves.
fn misfortune(local: &mut Local, image: &str, now: Timestamp, rng: &mut Rng, faults: bool) {
    let Seen::Running(health) = &mut local.task.seen else {
        return;
    };
    let ended = |code| Seen::Ended {
        code: Some(code),
        reason: None,
    };
    match health {
        Health::Starting if rng.percent(60) => *health = Health::Healthy,
        _ if image == "crash" && rng.percent(40) => local.task.seen = ended(1),
        _ if image == "exit" && rng.percent(20) => local.task.seen = ended(0),
        _ if faults && rng.below(1_000) < 3 => local.task.seen = ended(137),
        _ if faults && rng.below(1_000) < 1 => *health = Health::Unhealthy,
        _ => return,
    }
    local.since = now;
}

/// Performs steps until one takes time or there is none; answers whether the task is forgotten.
fn act(local: &mut Local, image: &str, now: Timestamp, rng: &mut Rng, faults: bool) -> Option<bool> {
    for _ in 0..STEPS_MAX {
        if let Some((step, until)) = local.busy.take() {
            if until > now {
                local.busy = Some((step, until));
                return Some(false);
            }
            if step == Step::Forget {
                return Some(true);
            }
            finish(local, &step, image, now, rng, faults);
        }
        let step = next_step(&local.task, now);
        if let Step::Wait(_) = step {
            return Some(false);
        }
        let most = match step {
            Step::Prepare => 4_000,
            Step::Start => 500,
            Step::Stop => 1_500,
            Step::AddEndpoint | Step::DropEndpoint | Step::Release | Step::Forget => 50,
            Step::Wait(_) => 0,
        };
        if step == Step::Stop {
            local.task.stopped_by_us = !local.task.desired.is_some_and(|d| d.is_live());
            local.task.seen = Seen::Stopping;
        }
        local.busy = Some((step, now + Duration::from_millis(rng.below(most))));
    }
    None
}

/// The outcome of a step.
fn finish(local: &mut Local, step: &Step, image: &str, now: Timestamp, rng: &mut Rng, faults: bool) {
    let task = &mut local.task;
    local.since = now;
    match step {
        Step::Prepare if image == "missing" => {
            task.seen = Seen::Failed {
                error: "No such image".into(),
                rejected: true,
            }
        }
        Step::Prepare => task.seen = Seen::Prepared,
        Step::Start if faults && rng.below(100) < 1 => {
            task.seen = Seen::Failed {
                error: "start: fork: no memory".into(),
                rejected: false,
            }
        }
        Step::Start => task.seen = Seen::Running(Health::Starting),
        Step::AddEndpoint | Step::DropEndpoint if faults && rng.below(100) < 2 => {
            task.retry_at = Some(now + RETRY);
        }
        Step::AddEndpoint => task.in_net = true,
        Step::DropEndpoint => task.in_net = false,
        Step::Stop => {
            task.seen = Seen::Ended {
                code: Some(143),
                reason: None,
            }
        }
        Step::Release => task.released = true,
        Step::Forget | Step::Wait(_) => {}
    }
}
