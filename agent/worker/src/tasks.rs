//! One worker a task: look, ask for the next step, do it, report.

mod bring;
mod checks;
mod hooks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_core::alone::{Alone, restart_at};
use agent_core::drain::{self, Drain};
use agent_core::health::Health;
use agent_core::hooks::post_start_is_open;
use agent_core::outbox::status_time;
use agent_core::readiness::Readiness;
use agent_core::step::RETRY;
use agent_core::{LocalTask, Seen, Step, is_unready, keeps_files, next_step, state_of};
use model::assignment::AssignmentSet;
use model::object::{ContainerStatus, Task, TaskStatus};
use model::spec::{RestartPolicy, SecretRef};
use model::task_state::{DesiredState, TaskState};
use model::{TaskId, Timestamp};
use runtime::{ContainerState, ExitStatus};
use tokio::sync::{mpsc, watch};

use crate::agent::{Shared, now};
use crate::contact::{self, Away, boottime};
use crate::report;
use crate::translate::{self, Place};
use bring::Brought;
use checks::Checks;

/// Every task of this node, each with its worker.
pub(crate) struct Tasks {
    shared: Arc<Shared>,
    workers: BTreeMap<TaskId, watch::Sender<Order>>,
    swept: bool,
    guard: tokio::task::AbortHandle,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.guard.abort();
    }
}

/// What a worker is told.
#[derive(Clone)]
struct Order {
    /// Absent: the manager has forgotten the task.
    task: Option<Arc<Task>>,
    set: Arc<AssignmentSet>,
}

impl Tasks {
    /// Begins with what runs and was assigned to the agent before this one: it is served and watched over as before,
    /// until a manager says what there is to do. Nothing is begun or removed.
    pub(crate) async fn resume(shared: Arc<Shared>) -> Self {
        let running: BTreeSet<TaskId> = (shared.runtime.list().iter())
            .filter(|c| matches!(c.state, ContainerState::Running { .. }))
            .filter_map(|c| c.id.parse().ok())
            .collect();
        let set = shared.kept.recall().unwrap_or_default();
        let known: BTreeSet<TaskId> = running
            .iter()
            .copied()
            .filter(|id| set.tasks.contains_key(id))
            .collect();
        let watched = if known.len() < running.len() {
            BTreeSet::new()
        } else {
            known.clone()
        };
        let mut tasks = Self {
            guard: tokio::spawn(contact::guard(shared.clone(), watched)).abort_handle(),
            shared,
            workers: BTreeMap::new(),
            swept: false,
        };
        // What runs and is not in it shows that it is old: then all stays as it is until a manager says more.
        if known.is_empty() || known.len() < running.len() {
            return tasks;
        }
        let serving = agent_core::assignments::served(&set, &known);
        if let Err(error) = tasks.shared.network.assign(set.clone(), &serving).await {
            tracing::error!(%error, "bring the network back as it was");
        }
        let set = Arc::new(set);
        for id in known {
            let order = Order {
                task: set.tasks.get(&id).cloned(),
                set: set.clone(),
            };
            tasks.begin(id, order, serving.contains(&id));
        }
        tasks
    }

    /// Takes a new set: new workers for new tasks, news for the others. Answers whether the network is as it says.
    pub(crate) async fn assign(&mut self, set: &AssignmentSet) -> bool {
        let first = !std::mem::replace(&mut self.swept, true);
        self.guard.abort();
        let serving: Vec<TaskId> = if first { self.adopt(set).await } else { Vec::new() };
        let brought = self.shared.network.assign(set.clone(), &serving).await;
        if let Err(error) = &brought {
            tracing::error!(%error, "bring the network up to date");
        }
        let set = Arc::new(set.clone());
        self.shared.kept.remember(set.clone());
        self.workers.retain(|_, w| !w.is_closed());
        for task in set.tasks.values() {
            let order = Order {
                task: Some(task.clone()),
                set: set.clone(),
            };
            match self.workers.get(&task.id) {
                Some(worker) => {
                    let _ = worker.send(order);
                }
                None => self.begin(task.id, order, serving.contains(&task.id)),
            }
        }
        for (_, worker) in self.workers.iter().filter(|(id, _)| !set.tasks.contains_key(id)) {
            let _ = worker.send(Order {
                task: None,
                set: set.clone(),
            });
        }
        brought.is_ok()
    }

    fn has_worker(&self, id: TaskId) -> bool {
        self.workers.get(&id).is_some_and(|worker| !worker.is_closed())
    }

    fn begin(&mut self, id: TaskId, order: Order, serving: bool) {
        let (sender, receiver) = watch::channel(order);
        let worker = Worker::new(self.shared.clone(), id, receiver, serving);
        self.shared.workers.spawn(worker.run());
        self.workers.insert(id, sender);
    }

    /// After a start: what runs and is wanted goes on serving, what nobody knows is removed.
    async fn adopt(&self, set: &AssignmentSet) -> Vec<TaskId> {
        let mut serving = Vec::new();
        for container in self.shared.runtime.list() {
            let known = container
                .id
                .parse::<TaskId>()
                .ok()
                .and_then(|id| set.tasks.get(&id));
            match known {
                // Its worker is told that nobody knows it any more.
                None if (container.id.parse()).is_ok_and(|id: TaskId| self.has_worker(id)) => {}
                None => {
                    if let Err(error) = self.shared.runtime.remove(&container.id).await {
                        tracing::warn!(%error, "remove a container nobody knows");
                    }
                    self.shared.volumes.remove_anonymous_of(&container.id);
                }
                Some(task) => {
                    let runs = matches!(container.state, ContainerState::Running { .. });
                    // One that is watched over already serves as its worker says.
                    if runs
                        && !self.has_worker(task.id)
                        && task.is_ready()
                        && task.desired == DesiredState::Running
                    {
                        serving.push(task.id);
                    }
                }
            }
        }
        for id in self.shared.network.attached() {
            if !id.parse::<TaskId>().is_ok_and(|t| set.tasks.contains_key(&t))
                && let Err(error) = self.shared.network.drop_stray(&id).await
            {
                tracing::warn!(%error, "remove a namespace nobody knows");
            }
        }
        serving
    }
}

enum News {
    Ended(Option<ExitStatus>),
    /// The hooks after its start are done, or one failed.
    PostStart(Result<(), String>),
    /// A hook before its stop failed.
    PreStop(String),
}

struct Worker {
    shared: Arc<Shared>,
    id: TaskId,
    order: watch::Receiver<Order>,
    task: Arc<Task>,
    local: LocalTask,
    container: Option<ContainerStatus>,
    checks: Checks,
    post_start: Option<tokio::task::AbortHandle>,
    /// What a hook before its stop said that failed.
    pre_stop: Option<String>,
    /// Why it was not ready when it was last lost, or at first.
    not_ready: Option<String>,
    /// Its readiness check has said something to this agent.
    asked: bool,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    message: String,
    unhealthy: Option<String>,
    /// Whether managers are reached, and the last long time without that was seen.
    away: watch::Receiver<Away>,
    gap: Option<(Timestamp, Timestamp)>,
    /// What is to be said of restarts without a manager.
    restarts: Option<String>,
    /// The last status that was reported in this life of the agent.
    told: Option<TaskStatus>,
}

impl Worker {
    fn new(shared: Arc<Shared>, id: TaskId, mut order: watch::Receiver<Order>, serving: bool) -> Self {
        let first = order.borrow_and_update().clone();
        let task = first.task.unwrap_or_else(|| unreachable_task(id));
        let local = LocalTask {
            desired: Some(task.desired),
            seen: Seen::Nothing,
            in_net: serving,
            served: serving || task.status.state == TaskState::Running,
            readiness: readiness_of(&task, serving),
            released: false,
            stopped_by_us: false,
            on_disconnect: task.spec.on_disconnect,
            away_since: None,
            overdue_since: None,
            killed_by: None,
            retry_at: None,
            drain: drain_of(&task, &first.set),
            alone: Alone {
                policy: restarts_alone(&task, &first.set),
                ..Alone::default()
            },
        };
        Self {
            away: shared.contact.away(),
            gap: None,
            shared,
            id,
            order,
            task,
            local,
            container: None,
            checks: Checks::default(),
            post_start: None,
            pre_stop: None,
            not_ready: None,
            asked: false,
            // A container ends once, and its hooks of each kind do.
            news: mpsc::channel(4),
            message: "accepted".into(),
            unhealthy: None,
            restarts: None,
            told: None,
        }
    }

    async fn run(mut self) {
        self.look().await;
        loop {
            // The agent stops: nothing is begun any more.
            if self.order.has_changed().is_err() {
                return;
            }
            let away = *self.away.borrow_and_update();
            self.local.away_since = away.since;
            if self.gap != away.gap
                && let Some((since, until)) = away.gap
            {
                self.local.reached(since, until);
            }
            self.gap = away.gap;
            self.tell();
            let step = next_step(&self.local, boottime());
            match step {
                Step::Wait(until) => {
                    if !self.wait(until).await {
                        return;
                    }
                }
                Step::Forget => {
                    self.forget().await;
                    return;
                }
                Step::Prepare => {
                    if !self.prepare().await {
                        return;
                    }
                }
                Step::Start => self.start().await,
                Step::AddEndpoint => self.serve(true).await,
                Step::DropEndpoint => self.serve(false).await,
                Step::LookAtConnections => self.look_at_connections().await,
                Step::Stop => self.stop(),
                Step::Release => self.release().await,
                Step::Restart => self.restart().await,
            }
        }
    }

    /// What an earlier life of this agent left.
    async fn look(&mut self) {
        let name = self.id.to_string();
        let over = self.task.status.state.is_terminal();
        let Some(info) = self.shared.runtime.inspect(&name) else {
            if over {
                self.local.seen = Seen::Nothing;
                self.local.released = true;
            }
            return;
        };
        let pid = match info.state {
            ContainerState::Running { pid } => pid,
            ContainerState::Created | ContainerState::Exited(_) => 0,
        };
        self.container = Some(ContainerStatus {
            id: name.clone(),
            pid,
            exit_code: None,
            oom_killed: false,
        });
        match info.state {
            // Its config died with the earlier agent: made anew.
            ContainerState::Created => {
                let _ = self.shared.runtime.remove(&name).await;
            }
            ContainerState::Running { .. } => {
                if let Err(error) = self.shared.network.attach(&self.task).await {
                    tracing::warn!(%error, task = name, "take the network of a running task back");
                }
                let healthy = self.local.in_net;
                self.local.seen = Seen::Running(if healthy {
                    Health::Healthy
                } else {
                    Health::Starting
                });
                self.watch_end();
                self.message = "started".into();
                self.not_ready = self.told_not_ready();
                if !healthy && post_start_is_open(self.task.status.state) {
                    self.begin_post_start();
                } else {
                    self.begin_checks(healthy);
                }
            }
            ContainerState::Exited(exit) => {
                self.ended(Some(exit));
                self.local.released = over;
            }
        }
    }

    fn take_order(&mut self) {
        let order = self.order.borrow_and_update().clone();
        self.local.desired = order.task.as_ref().map(|t| t.desired);
        self.local.drain.held = order.set.held.contains(&self.id);
        self.local.drain.grace = (order.task.as_deref()).map_or(Duration::ZERO, drain::grace);
        if let Some(task) = order.task {
            self.local.alone.policy = restarts_alone(&task, &order.set);
            // The agent before this one has told it, and had no time to write it down.
            if task.status.unready && !self.asked {
                self.local.readiness = Readiness::unproven();
                self.not_ready = Some(task.status.message.clone());
            }
            self.task = task;
        }
    }

    /// Waits for anything new; answers whether to go on.
    async fn wait(&mut self, until: Option<model::Timestamp>) -> bool {
        let pause = until.map(|t| t.since(boottime()));
        let sleep = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.order.changed() => {
                if changed.is_err() {
                    return false;
                }
                self.take_order();
            }
            news = self.news.1.recv() => match news {
                Some(News::Ended(exit)) => self.ended(exit),
                Some(News::PostStart(result)) => self.post_started(result),
                Some(News::PreStop(problem)) => self.pre_stop = Some(problem),
                None => return false,
            },
            verdict = self.checks.next() => self.judge(verdict),
            // It ends with the agent.
            changed = self.away.changed() => return changed.is_ok(),
            () = sleep => {}
        }
        true
    }

    /// Answers whether to go on.
    async fn prepare(&mut self) -> bool {
        self.message = "preparing".into();
        self.tell();
        let mut brought = self.bring_image().await;
        if let Brought::Here = brought {
            brought = self.make().await;
        }
        let result = match brought {
            Brought::Here => Ok(()),
            Brought::Failed(error) => Err(error),
            Brought::NotWanted => return true,
            Brought::Stopped => return false,
        };
        match result {
            Ok(()) => {
                crash::point("agent.after_create");
                self.local.seen = Seen::Prepared;
                self.local.retry_at = None;
                self.message = "ready to start".into();
            }
            Err(error) => {
                self.local.seen = Seen::Failed {
                    error,
                    rejected: true,
                }
            }
        }
        true
    }

    async fn make(&mut self) -> Brought {
        let (image, namespace) = match self.join().await {
            Ok(both) => both,
            Err(error) => return Brought::Failed(error),
        };
        match self.pre_start(&image, &namespace).await {
            Brought::Here => {}
            other => return other,
        }
        match self.create(image, namespace).await {
            Ok(()) => Brought::Here,
            Err(error) => Brought::Failed(error),
        }
    }

    /// Its image, and its network namespace.
    async fn join(&self) -> Result<(Arc<image::Image>, PathBuf), String> {
        let _permit = self.shared.starts.acquire().await;
        let reference = self.task.spec.container.image.clone();
        let images = self.shared.images.clone();
        let image = blocking(move || images.resolve(&reference))
            .await?
            .map_err(|e| e.to_string())?;
        let namespace = self.shared.network.attach(&self.task).await.map_err(chain)?;
        crash::point("agent.after_attach");
        Ok((Arc::new(image), namespace))
    }

    async fn create(&self, image: Arc<image::Image>, namespace: PathBuf) -> Result<(), String> {
        let _permit = self.shared.starts.acquire().await;
        let (shared, task) = (self.shared.clone(), self.task.clone());
        let set = self.order.borrow().set.clone();
        blocking(move || {
            let place = Place {
                node: shared.node_id(),
                hostname: &shared.config.hostname,
            };
            let config = translate::container(&task, &image, &set, &shared.volumes, &place, namespace)?;
            // What a try before this one left.
            shared.runtime.create(config).map_err(chain)
        })
        .await?
    }

    async fn start(&mut self) {
        let name = self.id.to_string();
        let permit = self.shared.starts.acquire().await;
        let result = self.shared.runtime.start(&name).await;
        drop(permit);
        match result {
            Ok(started) => {
                crash::point("agent.after_start");
                self.container = Some(ContainerStatus {
                    id: name,
                    pid: started.pid,
                    exit_code: None,
                    oom_killed: false,
                });
                self.local.seen = Seen::Running(Health::Starting);
                self.message = self.restarts.clone().unwrap_or_else(|| "started".into());
                self.local.readiness = readiness_of(&self.task, false);
                self.not_ready = None;
                self.watch_end();
                self.begin_post_start();
            }
            Err(error) => {
                self.local.seen = Seen::Failed {
                    error: chain(error),
                    rejected: false,
                }
            }
        }
    }

    /// Watches for the end of the process, whoever brings it about.
    fn watch_end(&self) {
        let (shared, name, news) = (self.shared.clone(), self.id.to_string(), self.news.0.clone());
        tokio::spawn(async move {
            let exit = shared.runtime.wait(&name).await.ok();
            let _ = news.send(News::Ended(exit)).await;
        });
    }

    async fn serve(&mut self, serves: bool) {
        match self.shared.network.serve(self.id, serves).await {
            Ok(()) => {
                crash::point("agent.after_serve");
                self.local.in_net = serves;
                self.local.served |= serves;
                self.local.drain.since = (!serves).then(boottime);
                self.local.drain.looked = None;
                self.local.retry_at = None;
            }
            Err(error) => {
                tracing::error!(%error, task = %self.id, "change the balancers");
                self.local.retry_at = Some(boottime() + RETRY);
            }
        }
    }

    async fn look_at_connections(&mut self) {
        let any = self.shared.network.is_connected(&self.task).await;
        let any = any.unwrap_or_else(|error| {
            tracing::warn!(%error, task = %self.id, "look at the connections of a task that is to stop");
            false
        });
        self.local.drain.looked = Some((boottime(), any));
    }

    fn stop(&mut self) {
        let now = boottime();
        let hurried = self.local.seen == Seen::Stopping;
        self.local.stopped_by_us |= !self.local.wanted(now);
        self.local.seen = Seen::Stopping;
        self.message = "stopping".into();
        if self.local.cut_off(now) {
            self.unhealthy = Some("stopped: its node reached no manager (on-disconnect)".into());
        }
        self.checks = Checks::default();
        self.end_post_start();
        let image = self.shared.images.resolve(&self.task.spec.container.image).ok();
        let signal = translate::stop_signal(&self.task.spec.container, image.as_ref());
        let grace = (self.local).stop_grace(self.task.spec.container.stop_grace_or_default(), now);
        self.local.killed_by = Some(now + grace);
        crash::point("agent.before_stop");
        let (shared, name) = (self.shared.clone(), self.id.to_string());
        let (task, news) = (self.task.clone(), self.news.0.clone());
        tokio::spawn(async move {
            let grace = match hurried {
                true => grace,
                false => hooks::pre_stop(&shared, &task, grace, &news).await,
            };
            // Its end is seen by the one who waits for it.
            if let Err(error) = shared.runtime.stop(&name, signal, grace).await {
                tracing::error!(%error, "stop a task");
            }
        });
    }

    fn ended(&mut self, exit: Option<ExitStatus>) {
        crash::point("agent.after_end");
        self.checks = Checks::default();
        self.end_post_start();
        let code = exit.and_then(|e| e.code);
        let oom = exit.is_some_and(|e| e.oom_killed);
        let reason = self.unhealthy.take().or_else(|| {
            oom.then(|| {
                format!(
                    "killed by the kernel: out of memory (limit {})",
                    self.task.spec.resources.limits.memory
                )
            })
        });
        if let Some(container) = &mut self.container {
            container.pid = 0;
            container.exit_code = code;
            container.oom_killed = oom;
        }
        self.local.seen = Seen::Ended { code, reason };
        self.local.alone.ended_at = Some(boottime());
        self.message = match self.pre_stop.take() {
            Some(problem) => format!("finished; pre_stop: {problem}"),
            None => "finished".into(),
        };
    }

    async fn release(&mut self) {
        if let Err(error) = self.shared.network.detach(self.id).await {
            tracing::warn!(%error, task = %self.id, "give a network back");
        }
        crash::point("agent.mid_release");
        if self.local.seen == Seen::Prepared || matches!(self.local.seen, Seen::Failed { .. }) {
            // It has no log worth keeping.
            let _ = self.shared.runtime.remove(&self.id.to_string()).await;
        } else if !keeps_files(&self.local) {
            let (shared, name) = (self.shared.clone(), self.id.to_string());
            let _ = blocking(move || shared.runtime.trim(&name)).await;
        }
        self.local.released = true;
    }

    /// Begins anew in place: no manager is there to make a replacement.
    async fn restart(&mut self) {
        if let Err(error) = self.shared.runtime.remove(&self.id.to_string()).await {
            tracing::error!(%error, "remove what is to be restarted");
            self.local.retry_at = Some(boottime() + RETRY);
            return;
        }
        self.local.alone.restarted(boottime());
        let times = self.local.alone.attempts.len();
        tracing::warn!(task = %self.id, times, "restart a task while no manager is reached");
        self.restarts = Some(format!(
            "restarted {times} times on its node while no manager was reached"
        ));
        self.local.seen = Seen::Nothing;
        self.local.released = false;
        self.container = None;
        self.unhealthy = None;
    }

    async fn forget(&mut self) {
        let name = self.id.to_string();
        let _ = self.shared.network.detach(self.id).await;
        crash::point("agent.mid_forget");
        if let Err(error) = self.shared.runtime.remove(&name).await {
            tracing::error!(%error, "remove a task's container");
        }
        self.shared.volumes.remove_anonymous_of(&name);
    }

    /// Puts the state where the reporter finds it.
    fn tell(&mut self) {
        if self.local.desired.is_none() || self.task.status.state.is_terminal() {
            return;
        }
        // Its end is not the last word while this host may restart it by itself.
        if restart_at(&self.local, boottime()).is_some() {
            return;
        }
        let state = state_of(&self.local);
        let error = match &self.local.seen {
            Seen::Failed { error, .. } => error.clone(),
            Seen::Ended {
                reason: Some(reason), ..
            } => reason.clone(),
            Seen::Ended { code, .. } if state == TaskState::Failed => match code {
                Some(code) => format!("task: non-zero exit ({code})"),
                None => {
                    "task: its exit code is unknown: this host was restarted, or its shim was killed".into()
                }
            },
            Seen::Ended { .. } | Seen::Nothing | Seen::Prepared | Seen::Running(_) | Seen::Stopping => {
                String::new()
            }
        };
        let unready = is_unready(&self.local, boottime());
        let status = TaskStatus {
            state,
            unready,
            at: status_time(now(), self.told.as_ref().unwrap_or(&self.task.status)),
            message: self.not_ready_yet().unwrap_or_else(|| self.message.clone()),
            error,
            container: self.container.clone(),
        };
        // What a manager knows already, or will: it keeps every status until it is acknowledged.
        if status.is_news_to(self.told.as_ref().unwrap_or(&self.task.status)) {
            self.told = Some(status.clone());
            report::put(&self.shared, self.id, status);
        }
    }
}

/// What is known of the readiness of a task before it is asked: one that serves goes on.
fn readiness_of(task: &Task, serves: bool) -> Readiness {
    if serves || task.spec.container.readiness.is_none() {
        Readiness::default()
    } else {
        Readiness::unproven()
    }
}

fn drain_of(task: &Task, set: &AssignmentSet) -> Drain {
    Drain {
        held: set.held.contains(&task.id),
        since: drain::served(task).then(boottime),
        grace: drain::grace(task),
        ..Drain::default()
    }
}

/// By which policy a task is restarted while no manager is reached. None for one whose secrets are not here: the agent
/// before this one had them, in memory.
fn restarts_alone(task: &Task, set: &AssignmentSet) -> Option<RestartPolicy> {
    let here = |secret: &SecretRef| set.secrets.contains_key(&secret.id);
    (task.spec.container.secrets.iter().all(here)).then(|| task.spec.restart.clone())
}

fn unreachable_task(id: TaskId) -> Arc<Task> {
    // Workers are begun with a task; this keeps the type simple.
    Arc::new(Task {
        id,
        meta: Default::default(),
        service: model::ServiceId::NIL,
        service_name: String::new(),
        slot: model::object::SlotKey::Replica(0),
        spec: Arc::default(),
        spec_version: 0,
        node: None,
        desired: DesiredState::Remove,
        run_at: Default::default(),
        status: TaskStatus::new(Default::default()),
        running_at: None,
        unready_at: None,
        ended_at: None,
        fence: 0,
        granted: Default::default(),
        moving: 0,
        addresses: Vec::new(),
        host_ports: Vec::new(),
        iteration: 0,
    })
}

/// An error with what it came from, in one line.
pub(crate) fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// Runs something that blocks where it blocks nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|e| format!("a worker thread failed: {e}"))
}
