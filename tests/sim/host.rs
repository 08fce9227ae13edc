//! A host: the real agent's decisions over a fake runtime, whose pulls take time and whose containers crash.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_core::drain::{self, Drain};
use agent_core::health::Health;
use agent_core::outbox::status_time;
use agent_core::readiness::Readiness;
use agent_core::step::{LocalTask, RETRY, Seen, Step, is_unready, next_step, state_of};
use model::assignment::AssignmentSet;
use model::object::{SlotKey, Task, TaskStatus};
use model::spec::OnDisconnect;
use model::task_state::DesiredState;
use model::{ServiceId, TaskId, Timestamp};

use super::manager::set;
use super::rng::Rng;
use super::session::Session;

/// Steps of one task at one time; more are an agent that never settles.
const STEPS_MAX: u32 = 20;

/// Longest time that a container takes to end by itself once it is asked to, in ms.
const STOP_MAX: u64 = 4_000;
/// Time that a kill takes, in ms.
const KILL: u64 = 200;

/// One machine. Its clock since the start of the host is the simulated time itself.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether it runs at all.
    pub up: bool,
    /// Whether what managers send arrives.
    pub hears: bool,
    /// Whether what it sends arrives.
    pub heard: bool,
    /// Until when the whole machine stands still.
    pub paused_until: Option<Timestamp>,
    /// When it last went on after that.
    pub resumed_at: Timestamp,
    /// How much its wall clock is ahead, in ms.
    pub wall: i64,
    /// Its session with a leader.
    pub session: Option<Session>,
    /// When it tries to get one again, and how long it waits after that at most.
    pub next_try: (Timestamp, Duration),
    /// When it sent what a manager answered last.
    pub contact: Timestamp,
    /// When its node was seen again after it had been down.
    pub back_at: Timestamp,
    /// What it was told, and the number of that; absent: its agent has just started.
    pub known: Option<(u64, AssignmentSet)>,
    /// What its agent knows of its tasks.
    pub tasks: BTreeMap<TaskId, Local>,
}

/// A task on its host.
#[derive(Debug, Clone)]
pub struct Local {
    task: LocalTask,
    /// Its place.
    pub slot: (ServiceId, SlotKey),
    /// Why its container ended, where that was the container's own doing or its host's.
    pub cause: Option<&'static str>,
    /// What is being done, and when it will be.
    busy: Option<(Step, Timestamp)>,
    since: Timestamp,
    /// When it was asked to stop as it was not wanted any more.
    stopped: Option<Timestamp>,
    /// It has a readiness check.
    asked: bool,
}

impl Host {
    /// A machine that runs.
    pub fn new() -> Self {
        Self {
            up: true,
            hears: true,
            heard: true,
            ..Self::default()
        }
    }

    /// Power was cut: nothing runs any more, namespaces are gone, and folders are still there.
    pub fn reboot(&mut self, now: Timestamp) {
        self.restart(now);
        self.paused_until = None;
        for local in self.tasks.values_mut() {
            local.task.in_net = false;
            if local.runs() {
                local.cause = Some("power was cut");
            }
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

    /// The agent starts anew: containers go on, and it knows nothing until it is told.
    pub fn restart(&mut self, now: Timestamp) {
        self.session = None;
        self.known = None;
        self.next_try = (now, Duration::ZERO);
        for local in self.tasks.values_mut() {
            // A step that was cut off is found half-done and done again.
            local.busy = None;
            local.since = now;
            if local.task.seen == Seen::Stopping {
                local.task.seen = Seen::Running(Health::Healthy);
                local.task.killed_by = None;
            }
        }
    }

    /// A manager is reached again.
    pub fn reached(&mut self, now: Timestamp) {
        for local in self.tasks.values_mut() {
            local.task.reached(self.contact, now);
        }
        self.contact = now;
    }

    /// A bug that is planted: the agent removes what it finds when it starts.
    pub fn kill_all(&mut self) {
        for local in self.tasks.values_mut().filter(|l| l.runs()) {
            local.task.seen = Seen::Ended {
                code: None,
                reason: None,
            };
        }
    }

    /// Whether it is on its feet.
    pub fn is_awake(&self) -> bool {
        self.up && self.paused_until.is_none()
    }

    /// Does what is due; answers what has to be reported.
    ///
    /// # Errors
    /// An agent that goes round in circles.
    pub fn tick(
        &mut self,
        now: Timestamp,
        rng: &mut Rng,
        faults: bool,
    ) -> Result<Vec<(TaskId, TaskStatus)>, String> {
        let mut reports = Vec::new();
        if !self.is_awake() {
            return Ok(reports);
        }
        let nothing = AssignmentSet::default();
        let view = self.known.as_ref().map_or(&nothing, |(_, view)| view);
        let away = self.session.is_none().then_some(self.contact);
        for (id, task) in &view.tasks {
            self.tasks.entry(*id).or_insert_with(|| Local {
                task: LocalTask {
                    desired: Some(task.desired),
                    seen: Seen::Nothing,
                    in_net: false,
                    served: false,
                    readiness: Readiness::default(),
                    // The disk was lost, or the agent never had it: there is nothing to give back.
                    released: task.status.state.is_terminal(),
                    stopped_by_us: false,
                    on_disconnect: task.spec.on_disconnect,
                    away_since: None,
                    overdue_since: None,
                    killed_by: None,
                    retry_at: None,
                    // Hosts here leave restarts to the managers; those on their own are rows of `agent_core::alone`.
                    alone: Default::default(),
                    drain: Drain {
                        since: drain::served(task).then_some(now),
                        grace: drain::LIMIT,
                        ..Drain::default()
                    },
                },
                slot: (task.service, task.slot),
                cause: None,
                busy: None,
                since: now,
                stopped: None,
                asked: task.spec.container.readiness.is_some(),
            });
        }
        let mut forgotten = Vec::new();
        for (id, local) in &mut self.tasks {
            let task = view.tasks.get(id);
            local.task.away_since = away;
            local.task.drain.held = view.held.contains(id);
            local.task.drain.grace = task.map_or(Duration::ZERO, |t| drain::grace(t));
            if self.known.is_some() {
                local.task.desired = task.map(|t| t.desired);
            } else if !local.task.cut_off(now) {
                // Nobody has told the agent of it yet, and only what may not outlive its manager is its business.
                continue;
            }
            let image = task.map_or("", |t| t.spec.container.image.as_str());
            misfortune(local, image, now, rng, faults);
            if act(local, image, now, rng, faults)
                .ok_or_else(|| format!("agent_settles: task {id} goes round"))?
            {
                forgotten.push(*id);
                continue;
            }
            reports.extend(
                task.and_then(|t| report(local, t, now, self.wall))
                    .map(|status| (*id, status)),
            );
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
            local.cause = Some("it crashed");
            local.task.seen = Seen::Ended {
                code: Some(code),
                reason: None,
            };
        }
        runs
    }

    /// Whether a container of the task runs here.
    pub fn runs(&self, id: TaskId) -> bool {
        self.tasks.get(&id).is_some_and(Local::runs)
    }
}

impl Local {
    /// Whether it has a process.
    pub fn runs(&self) -> bool {
        matches!(self.task.seen, Seen::Running(_) | Seen::Stopping)
    }

    /// Whether it runs with connections, and whether it should.
    pub fn serves(&self, now: Timestamp) -> Option<(bool, bool)> {
        let healthy = self.task.seen == Seen::Running(Health::Healthy);
        healthy.then(|| (self.task.in_net, self.task.readiness.is_ready(now)))
    }

    /// What becomes of it when its host is cut off.
    pub fn on_disconnect(&self) -> OnDisconnect {
        self.task.on_disconnect
    }

    /// Since when it got no connections of its own host, where it was asked to stop just `now` as it was not wanted, and had
    /// time.
    pub fn left_since(&self, now: Timestamp) -> Option<Timestamp> {
        let in_time = self.stopped == Some(now) && !self.task.drain.grace.is_zero();
        self.task.drain.since.filter(|_| in_time)
    }

    /// Whether its host knows that it is not wanted any more.
    pub fn is_ending(&self) -> bool {
        !self.task.desired.is_some_and(DesiredState::is_live)
    }

    /// Whether there is a reason for its end.
    pub fn is_explained(&self) -> bool {
        self.cause.is_some() || self.task.stopped_by_us || matches!(self.task.seen, Seen::Failed { .. })
    }
}

/// What a manager does not know yet.
fn report(local: &Local, task: &Task, now: Timestamp, wall: i64) -> Option<TaskStatus> {
    let (state, unready) = (state_of(&local.task), is_unready(&local.task, now));
    let known = &task.status;
    let news = state > known.state || (state == known.state && unready != known.unready);
    // Whatever was told and lost is told again, as the real outbox does until it is acknowledged.
    (news && !known.state.is_terminal()).then(|| TaskStatus {
        state,
        unready,
        error: match &local.task.seen {
            Seen::Failed { error, .. } => error.clone(),
            _ => String::new(),
        },
        ..TaskStatus::new(status_time(set(local.since, wall), &task.status))
    })
}

/// What containers do by themselves.
fn misfortune(local: &mut Local, image: &str, now: Timestamp, rng: &mut Rng, faults: bool) {
    if local.asked && matches!(local.task.seen, Seen::Running(_)) {
        let ready = local.task.readiness.ready_at().is_some();
        let turns = match ready {
            true => faults && rng.below(1_000) < 10,
            false => image != "unready" && (!faults || rng.percent(40)),
        };
        if turns {
            local.task.readiness.observe(!ready, now);
            local.since = now;
        }
    }
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
    if !matches!(local.task.seen, Seen::Running(_)) {
        local.cause = Some("it ended by itself");
    }
    local.since = now;
}

/// Performs steps until one takes time or there is none; answers whether the task is forgotten.
fn act(local: &mut Local, image: &str, now: Timestamp, rng: &mut Rng, faults: bool) -> Option<bool> {
    for _ in 0..STEPS_MAX {
        if let Some((step, until)) = local.busy.take() {
            if until > now {
                // The real stop waits beside the worker, who may find that there is less time.
                let hurry = step == Step::Stop && next_step(&local.task, now) == Step::Stop;
                let most = if hurry { stop(local, now, rng) } else { u64::MAX };
                local.busy = Some((step, until.min(now + Duration::from_millis(most))));
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
            Step::Stop => stop(local, now, rng),
            Step::AddEndpoint
            | Step::DropEndpoint
            | Step::LookAtConnections
            | Step::Release
            | Step::Restart
            | Step::Forget => 50,
            Step::Wait(_) => 0,
        };
        local.busy = Some((step, now + Duration::from_millis(rng.below(most.max(1)))));
    }
    None
}

/// Begins to stop a container; answers how long that takes at most, in ms.
fn stop(local: &mut Local, now: Timestamp, rng: &mut Rng) -> u64 {
    let task = &mut local.task;
    let healthy = matches!(task.seen, Seen::Running(Health::Healthy));
    if healthy && !task.wanted(now) && !task.cut_off(now) {
        local.stopped = Some(now);
    }
    let grace = task.stop_grace(Duration::from_millis(rng.below(STOP_MAX)), now);
    task.killed_by = Some(now + grace);
    task.stopped_by_us |= !task.wanted(now);
    if matches!(task.seen, Seen::Running(Health::Unhealthy)) {
        local.cause = Some("it was unhealthy");
    }
    task.seen = Seen::Stopping;
    u64::try_from(grace.as_millis()).unwrap_or(STOP_MAX) + KILL
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
        Step::Start => {
            task.seen = Seen::Running(Health::Starting);
            if local.asked {
                task.readiness = Readiness::unproven();
            }
        }
        Step::AddEndpoint | Step::DropEndpoint if faults && rng.below(100) < 2 => {
            task.retry_at = Some(now + RETRY);
        }
        Step::AddEndpoint => (task.in_net, task.served) = (true, true),
        Step::DropEndpoint => {
            task.in_net = false;
            (task.drain.since, task.drain.looked) = (Some(now), None);
        }
        Step::LookAtConnections => task.drain.looked = Some((now, rng.percent(50))),
        Step::Stop => {
            task.seen = Seen::Ended {
                code: Some(143),
                reason: None,
            }
        }
        Step::Restart => {
            task.alone.restarted(now);
            task.seen = Seen::Nothing;
            task.released = false;
        }
        Step::Release => task.released = true,
        Step::Forget | Step::Wait(_) => {}
    }
}
