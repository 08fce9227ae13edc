//! What agents talk to: sessions and heartbeats, assignments out, status reports in.

mod data_plane;
mod frames;
mod health;
mod images;
mod node_use;
mod reports;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use manager_core::drains::Drains;
use manager_core::node_health::{Unheard, Watch, heartbeat_for};
use manager_core::{Action, State, admit, assignments};
use model::assignment::AssignmentSet;
use model::ids::IdSource;
use model::object::{NodeDescription, NodeRole, NodeStatus, TunnelKey};
use model::spec::GenericResources;
use model::{Level, NodeId, TaskId, Timestamp};
use proto::status;
use proto::{dispatch as wire, types};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::leader::sleep_until;
use crate::raft::{Event, Log, ProposeError, Role};
use crate::writer::RandomIds;

use crate::{ca, rpc_ca};
use reports::Reports;

/// Frames that wait for a slow agent; then only its own stream waits.
const FRAMES_QUEUED: usize = 2;
/// Nodes that are being told at once: what one is told of services with thousands of tasks takes megabytes until it is
/// sent, and a thousand nodes are told of the same change.
const TELLING_MAX: usize = 16;
/// A node that takes no frame for so long does not count as one of them any more.
const TAKE_LIMIT: Duration = Duration::from_millis(250);
/// Messages that wait for a slow agent beside its frames.
const NEWS_QUEUED: usize = 4;
/// How long a node waits for a leader that has just begun.
const READY_LIMIT: Duration = Duration::from_secs(1);
/// How long a node waits where an election is under way: most are over sooner.
const ELECTION_LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked whether it hears a quorum.
const HEARD_EVERY: Duration = Duration::from_millis(25);
/// How often it is looked whether a silent leader is heard of again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Times a manager's number is written again because its node changed meanwhile.
const REGISTER_TRIES: usize = 8;
/// Wait for agents to take their last message.
const DISMISS_LIMIT: Duration = Duration::from_secs(5);
/// Characters kept of the texts in a report.
const REPORT_TEXT_MAX: usize = 4096;
/// Reports in one call.
const REPORTS_MAX: usize = 10_000;

/// Sessions of the agents of one cluster.
pub(crate) struct Dispatcher {
    log: Arc<Log>,
    reports: Reports,
    images: Mutex<manager_core::images::Inventory>,
    nodes: Mutex<Nodes>,
    health_changed: Notify,
    /// Changes whenever a node registers, and when nobody is heard of any more.
    heard: watch::Sender<()>,
    streams: Mutex<JoinSet<()>>,
    telling: Semaphore,
    began: Instant,
    views: Mutex<assignments::Views>,
    drains: Mutex<Drains>,
    /// Who does not reach whom.
    unreached: Mutex<manager_core::data_plane::Watch>,
    node_use: Mutex<manager_core::node_use::Watch>,
    scaler: Mutex<manager_core::autoscale::Scaler>,
    /// Nodes are to say what their tasks use.
    measures: AtomicBool,
    news: Mutex<Arc<News>>,
    /// The term this dispatcher is ready to lead in: what an earlier leadership knew is forgotten.
    ready: watch::Sender<u64>,
}

/// What every node is told beside its tasks.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    managers: Vec<types::Peer>,
    authorities: String,
    issuer: String,
    heartbeat: Duration,
    epoch: u64,
    /// Nodes of the members of the log.
    members: BTreeSet<NodeId>,
}

/// What one node was told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    news: Arc<News>,
    manager: bool,
    renew: bool,
}

/// The nodes as this leader knows them.
struct Nodes {
    /// Who is heard of, in time since `began`: the wall clock may be set.
    watch: Watch,
    sessions: BTreeMap<NodeId, Session>,
}

/// A node that has registered.
struct Session {
    id: String,
    /// Told when its assignments may have changed, and when the session ends.
    wake: Arc<Notify>,
    /// Keeps the session stream open, and takes what the node is told.
    open: Option<mpsc::Sender<Result<wire::SessionMessage, Status>>>,
    told: Option<Told>,
    /// The key it said; it is written once the cluster's level allows it.
    key: Option<TunnelKey>,
    /// It has generic resources; they are written once the level allows it.
    generic: bool,
    /// Set when the node leaves: it is told to have nothing.
    leaving: bool,
}

pub(crate) type Streamed<T> = ReceiverStream<Result<T, Status>>;

/// Begins anew with each leadership, and leads until it ends; returns once the log has stopped.
async fn while_leading<F: Future<Output = ()>>(
    dispatcher: &Dispatcher,
    begin: impl Fn(),
    lead: impl Fn() -> F,
) {
    let mut role = dispatcher.log.role();
    while let Ok(now) = role.wait_for(|r| r.leader || r.stopped).await.map(|r| *r)
        && now.leader
    {
        begin();
        let mut same = dispatcher.log.role();
        tokio::select! {
            () = lead() => {}
            _ = same.wait_for(|r| !r.leader || r.term != now.term) => {}
        }
    }
}

impl Dispatcher {
    /// Begins, without sessions. Nodes that count as Ready get the usual grace to register again.
    /// Its loops run in `tasks`.
    pub(crate) fn new(log: Arc<Log>, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let reports = Reports::new(log.clone());
        let dispatcher = Arc::new(Self {
            log,
            reports,
            images: Mutex::default(),
            nodes: Mutex::new(Nodes {
                watch: Watch::new(Timestamp::default()),
                sessions: BTreeMap::new(),
            }),
            health_changed: Notify::new(),
            heard: watch::Sender::new(()),
            streams: Mutex::default(),
            telling: Semaphore::new(TELLING_MAX),
            began: Instant::now(),
            views: Mutex::default(),
            drains: Mutex::default(),
            unreached: Mutex::default(),
            node_use: Mutex::default(),
            scaler: Mutex::default(),
            measures: AtomicBool::new(false),
            news: Mutex::default(),
            ready: watch::Sender::new(0),
        });
        tasks.spawn(route(dispatcher.clone(), dispatcher.log.subscribe()));
        tasks.spawn(health::watch(dispatcher.clone()));
        tasks.spawn(data_plane::watch(dispatcher.clone()));
        tasks.spawn(node_use::watch(dispatcher.clone()));
        tasks.spawn(usage::watch(dispatcher.clone()));
        dispatcher
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since this dispatcher began.
    pub(crate) fn uptime(&self) -> Timestamp {
        Timestamp::default() + self.began.elapsed()
    }

    fn heartbeat(&self) -> Result<Duration, Status> {
        let state = self.log.read();
        let configured = state.cluster().ok_or_else(no_cluster)?.heartbeat;
        Ok(heartbeat_for(configured, state.node_count()))
    }

    /// Only the leader hears nodes.
    fn leads(&self) -> Result<(), Status> {
        let role = *self.log.role().borrow();
        // One that hears no quorum may have been replaced already.
        if role.leader && *self.ready.borrow() == role.term && !self.log.quorum_is_late() {
            return Ok(());
        }
        Err(status::not_leader(
            "this manager does not lead the cluster",
            self.log.leader(),
        ))
    }

    /// Registers a node: a new session, which ends an older one of the same node.
    pub(crate) async fn session(
        &self,
        node: NodeId,
        mut description: NodeDescription,
        raft_id: u64,
    ) -> Result<Streamed<wire::SessionMessage>, Status> {
        let mut role = *self.log.role().borrow();
        // One that was told nothing by a leader yet, as it has just joined, takes part in no election.
        let takes_part = || !self.log.members().is_empty();
        if !role.leader && takes_part() && (role.leader_id.is_none() || self.log.leader_is_silent().await) {
            // Who leads next is known in a moment. A node that waits for it here comes to the next leader at once, and a
            // thousand that wait do not come again and again.
            role = self.next_leader(role).await;
        }
        if role.leader {
            // A moment; where it takes longer, the node is told to come again.
            let begun = async {
                self.begun(role.term).await;
                // Nobody has answered it yet as the leader.
                while self.log.quorum_is_late() {
                    tokio::time::sleep(HEARD_EVERY).await;
                }
            };
            let _ = tokio::time::timeout(READY_LIMIT, begun).await;
        }
        self.leads()?;
        // A leader that others have replaced must not hand out what is old.
        let newest = self.log.confirm().await;
        newest.map_err(|e| status::may_retry(Status::unavailable(e.to_string())))?;
        let state = self.log.read();
        let heartbeat = self.heartbeat()?;
        let known = state.node(node).ok_or_else(|| removed(node))?;
        let written = admit::level::written(&state);
        let knows = admit::level::knows(written, &known.description.hostname, description.level);
        knows.map_err(|e| Status::failed_precondition(e.to_string()))?;
        if description.address.is_empty() {
            // Given when it joined.
            description.address.clone_from(&known.description.address);
        }
        let key = description.tunnel_key;
        if !description.generic.is_sound() {
            tracing::warn!(%node, "what the node says of its generic resources is not as it may be, and is left out");
            description.generic = GenericResources::default();
        }
        let generic = description.generic != GenericResources::default();
        if written < Level::PLACEMENT {
            // Older managers would not see them.
            description.generic = GenericResources::default();
        }
        description.answers &= written >= Level::ENCRYPTED;
        description.tunnel_key = key.filter(|key| admit::level::may_say_key(&state, node, key));
        // That it is heard of says nothing of its data plane, nor of what its tasks use.
        let ready = NodeStatus {
            unreached: known.status.unreached.clone(),
            used: known.status.used,
            ..NodeStatus::ready()
        };
        let id = format!("{:032x}", RandomIds.next_id());
        let (open, stream) = mpsc::channel(NEWS_QUEUED);
        let news = self.current_news();
        let told = self.told(&state, node, &news);
        let first = wire::SessionMessage {
            session: id.clone(),
            ..message(&told, self.log.now())
        };
        // The channel is new and has room.
        let _ = open.try_send(Ok(first));
        {
            let mut nodes = self.nodes();
            nodes.watch.register(node, id.clone(), heartbeat, self.uptime());
            let session = Session {
                id,
                wake: Arc::new(Notify::new()),
                open: Some(open),
                told: Some(told),
                key,
                generic,
                leaving: false,
            };
            if let Some(old) = nodes.sessions.insert(node, session) {
                old.wake.notify_one();
            }
        }
        self.health_changed.notify_one();
        self.heard.send_replace(());
        if known.status != ready || known.description != description {
            let action = Action::NodeSeen {
                node,
                description: Some(Box::new(description)),
                status: ready,
            };
            // Of many nodes at once this is one entry.
            self.reports.commit(vec![action]).await?;
        }
        if raft_id != 0 && known.identity.raft_id != Some(raft_id) {
            self.register(node, raft_id).await?;
        }
        Ok(ReceiverStream::new(stream))
    }

    /// Waits until this dispatcher counts who is heard of in a term.
    pub(crate) async fn begun(&self, term: u64) {
        // It fails only when the dispatcher is gone, which the caller has.
        let _ = self.ready.subscribe().wait_for(|ready| *ready >= term).await;
    }

    /// Whom this leader has not heard of yet.
    pub(crate) fn unheard(&self) -> Unheard {
        let state = self.log.read();
        self.nodes().watch.unheard(&state, self.uptime())
    }

    /// Told when [`Dispatcher::unheard`] may have changed.
    pub(crate) fn heard(&self) -> watch::Receiver<()> {
        self.heard.subscribe()
    }

    /// Waits, within [`ELECTION_LIMIT`], until somebody leads who did not before, or the silent one is heard of again.
    async fn next_leader(&self, before: Role) -> Role {
        let (mut roles, own) = (self.log.role(), self.log.raft_id());
        let began = Instant::now();
        while began.elapsed() < ELECTION_LIMIT {
            let another =
                |now: &Role, id: u64| id != own && (Some(id) != before.leader_id || now.term > before.term);
            let elected =
                roles.wait_for(|now| now.leader || now.leader_id.is_some_and(|id| another(now, id)));
            match tokio::time::timeout(LOOK_AGAIN, elected).await {
                Ok(Ok(now)) => return *now,
                Ok(Err(_)) => break, // The log was closed.
                Err(_) => {}
            }
            let now = *roles.borrow();
            if now.leader_id.is_some() && !self.log.leader_is_silent().await {
                return now;
            }
        }
        *roles.borrow()
    }

    /// Remembers the number of a manager that has made itself a log.
    async fn register(&self, node: NodeId, raft_id: u64) -> Result<(), Status> {
        for _ in 0..REGISTER_TRIES {
            let admitted = admit::registered(&self.log.read(), node, raft_id)
                .map_err(|e| Status::permission_denied(e.to_string()))?;
            match self.log.propose(admitted.txn).await {
                Ok(_) => return Ok(()),
                Err(ProposeError::Stale(_)) => {}
                Err(error) => return Err(Status::unavailable(error.to_string())),
            }
        }
        Err(Status::unavailable("the node changes all the time: try again"))
    }

    fn current_news(&self) -> Arc<News> {
        let state = self.log.read();
        let security = state.cluster().map(|c| &c.security);
        let fresh = News {
            managers: rpc_ca::managers(&state),
            authorities: security.map(ca::authorities).unwrap_or_default(),
            issuer: security.map(ca::current_issuer).unwrap_or_default(),
            epoch: security.map(|s| s.epoch).unwrap_or_default(),
            heartbeat: self.heartbeat().unwrap_or_default(),
            members: self.log.members().into_iter().map(|(_, node, ..)| node).collect(),
        };
        let mut known = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if **known != fresh {
            *known = Arc::new(fresh);
        }
        known.clone()
    }

    fn told(&self, state: &State, node: NodeId, news: &Arc<News>) -> Told {
        let known = state.node(node);
        let manager = known.is_some_and(|n| n.spec.role == NodeRole::Manager);
        Told {
            // Whoever is to go from the log keeps its own until the others do without it.
            manager: manager || news.members.contains(&node),
            renew: known.is_some_and(|n| !n.identity.issuer.is_empty() && n.identity.issuer != news.issuer),
            news: news.clone(),
        }
    }

    /// Tells every node what has changed of what all are told. One that is slow to take it is told later. One that was
    /// removed, or whose build turned out to know too little when the level was raised, is told that it has no session any
    /// more, and not only at its next heartbeat.
    pub(crate) fn tell_news(&self) {
        let news = self.current_news();
        let (state, now) = (self.log.read(), self.log.now());
        let written = admit::level::written(&state);
        let mut nodes = self.nodes();
        let Nodes { watch, sessions } = &mut *nodes;
        sessions.retain(|node, session| {
            let waits = |key: &TunnelKey| admit::level::may_say_key(&state, *node, key);
            let known = (state.node(*node)).is_some_and(|n| {
                let unsaid = n.description.tunnel_key.is_none() && session.key.as_ref().is_some_and(waits);
                let lacks = written >= Level::PLACEMENT
                    && session.generic
                    && n.description.generic == GenericResources::default();
                n.description.level >= written && !unsaid && !lacks
            });
            if !known {
                watch.end(*node);
                session.wake.notify_one();
            }
            known
        });
        for (node, session) in sessions {
            let told = self.told(&state, *node, &news);
            if session.told.as_ref() == Some(&told) {
                continue;
            }
            if let Some(open) = &session.open
                && open.try_send(Ok(message(&told, now))).is_ok()
            {
                session.told = Some(told);
            }
        }
    }

    /// Keeps a session alive.
    pub(crate) fn beat(&self, node: NodeId, session: &str) -> Result<Duration, Status> {
        self.leads()?;
        let heartbeat = self.heartbeat()?;
        let (state, now) = (self.log.read(), self.uptime());
        let known = self.nodes().watch.beat(&state, node, session, heartbeat, now);
        known.then_some(heartbeat).ok_or_else(no_session)
    }

    pub(crate) fn check(&self, node: NodeId, session: &str) -> Result<Arc<Notify>, Status> {
        self.leads()?;
        let nodes = self.nodes();
        let current = nodes.watch.is_current(node, session);
        let found = nodes.sessions.get(&node).filter(|_| current);
        Ok(found.ok_or_else(no_session)?.wake.clone())
    }

    /// What the node has to do, from now on.
    pub(crate) fn assignments(
        self: &Arc<Self>,
        node: NodeId,
        session: String,
    ) -> Result<Streamed<wire::AssignmentsMessage>, Status> {
        let wake = self.check(node, &session)?;
        let (send, stream) = mpsc::channel(FRAMES_QUEUED);
        let mut streams = self.streams();
        while streams.try_join_next().is_some() {}
        streams.spawn(self.clone().assign(node, session, wake, send));
        Ok(ReceiverStream::new(stream))
    }

    async fn assign(
        self: Arc<Self>,
        node: NodeId,
        session: String,
        wake: Arc<Notify>,
        send: mpsc::Sender<Result<wire::AssignmentsMessage, Status>>,
    ) {
        let mut told: Option<AssignmentSet> = None;
        let stream = self.drains().open(node);
        loop {
            let leaving = match self.nodes().sessions.get(&node) {
                Some(current) if current.id == session => current.leaving,
                _ => break,
            };
            // It is closed never, so this fails never.
            let mut turn = self.telling.acquire().await.ok();
            // Before the state is read: a view of the services must not be taken for younger than it is.
            let now = self.uptime();
            let state = self.log.read();
            let wanted = if leaving {
                AssignmentSet::default()
            } else {
                self.wanted(&state, node, now)
            };
            let full = told.is_none() || leaving;
            let diff = assignments::diff(&told.take().unwrap_or_default(), &wanted);
            let (message, free) = self
                .drains()
                .send((node, stream), &wanted, full || !diff.is_empty());
            self.wake(&free);
            told = Some(wanted);
            if message.send {
                for frame in frames::split(&diff, full, state.index(), message.acknowledge) {
                    let mut taken = std::pin::pin!(send.send(Ok(frame)));
                    let in_time = tokio::time::timeout(TAKE_LIMIT, &mut taken).await;
                    let sent = match in_time {
                        Ok(sent) => sent,
                        Err(_) => {
                            turn = None;
                            taken.await
                        }
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
            drop(turn);
            if leaving {
                return;
            }
            tokio::select! {
                () = wake.notified() => {}
                () = send.closed() => return,
            }
        }
        // The agent is gone when this is not taken.
        let _ = send.send(Err(no_session())).await;
    }

    /// What a node may see in a state that was read at `now` or after.
    fn wanted(&self, state: &State, node: NodeId, now: Timestamp) -> AssignmentSet {
        let age = assignments::views_age(state.node_count());
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let common = views.common(state, now, age);
        let mut set = assignments::for_node_by(state, node, &common, &mut |service| {
            views.of(state, service, now, age)
        });
        self.drains().hold(state, &mut set);
        set
    }

    /// A node does as a message said.
    pub(crate) fn acknowledged(&self, node: NodeId, session: &str, number: u64) -> Result<(), Status> {
        self.check(node, session)?;
        let free = self.drains().acknowledged(node, number);
        self.wake(&free);
        Ok(())
    }

    /// Has these services told of as they are.
    fn renew(&self, services: &BTreeSet<model::ServiceId>) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        services.iter().for_each(|service| views.renew(*service));
    }

    fn drains(&self) -> MutexGuard<'_, Drains> {
        self.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells nodes what is new for them.
    fn wake(&self, those: &BTreeSet<NodeId>) {
        if those.is_empty() {
            return;
        }
        let nodes = self.nodes();
        let sessions = those.iter().filter_map(|node| nodes.sessions.get(node));
        sessions.for_each(|s| s.wake.notify_one());
    }

    /// Takes what a node saw; returns once it is committed.
    pub(crate) async fn report(
        &self,
        node: NodeId,
        session: &str,
        updates: Vec<(TaskId, model::object::TaskStatus)>,
    ) -> Result<(), Status> {
        if updates.len() > REPORTS_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {REPORTS_MAX} reports in one call"
            )));
        }
        self.check(node, session)?;
        let state = self.log.read();
        let news = updates.into_iter().filter_map(|(task, mut status)| {
            cut(&mut status.message);
            cut(&mut status.error);
            is_news(&state, node, task, &status).then_some(Action::TaskStatus { node, task, status })
        });
        self.reports.commit(news.collect()).await
    }

    /// Tells every node to stop everything, and waits a bounded time until all have taken the message.
    pub(crate) async fn dismiss(&self) {
        for session in self.nodes().sessions.values_mut() {
            session.leaving = true;
            session.wake.notify_one();
        }
        let mut streams = std::mem::take(&mut *self.streams());
        let all = async { while streams.join_next().await.is_some() {} };
        if tokio::time::timeout(DISMISS_LIMIT, all).await.is_err() {
            tracing::warn!("an agent did not take the message that it has nothing to run any more");
        }
    }

    /// Ends all sessions.
    pub(crate) fn close(&self) {
        let mut nodes = self.nodes();
        for (node, session) in std::mem::take(&mut nodes.sessions) {
            nodes.watch.end(node);
            session.wake.notify_one();
        }
    }
}

fn message(told: &Told, now: Timestamp) -> wire::SessionMessage {
    wire::SessionMessage {
        session: String::new(),
        heartbeat_ns: nanos(told.news.heartbeat),
        managers: told.news.managers.clone(),
        manager: told.manager,
        authorities: told.news.authorities.clone(),
        now_ms: now.0,
        epoch: told.news.epoch,
        renew: told.renew,
    }
}

fn removed(node: NodeId) -> Status {
    Status::permission_denied(format!(
        "E_NODE_REMOVED: node {node} is not part of this cluster any more"
    ))
}

/// Whether a report may change the state; most repeated ones do not, and need no sync.
fn is_news(state: &State, node: NodeId, task: TaskId, status: &model::object::TaskStatus) -> bool {
    let known = state.task(task).filter(|t| t.node == Some(node));
    known.is_some_and(|t| t.status != *status && status.state >= t.status.state)
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(REPORT_TEXT_MAX) {
        text.truncate(at);
    }
}

/// Wakes the streams whose nodes an entry affects. What affects all is told together with what follows it shortly.
async fn route(dispatcher: Arc<Dispatcher>, mut subscription: crate::raft::Subscription) {
    let mut rounds = assignments::Rounds::default();
    // Nobody has registered yet.
    dispatcher.drains().restart(&dispatcher.log.read());
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = sleep_until(rounds.due(), dispatcher.uptime()) => {
                dispatcher.nodes().sessions.values().for_each(|s| s.wake.notify_one());
                let age = assignments::views_age(dispatcher.log.read().node_count());
                rounds.done(dispatcher.uptime(), age);
                continue;
            }
        };
        match event {
            None => return,
            Some(Event::Replaced) => {
                let free = dispatcher.drains().restart(&dispatcher.log.read());
                dispatcher.wake(&free);
                rounds.change(dispatcher.uptime());
            }
            Some(Event::Applied(changes)) => {
                let affected = assignments::affected(&changes);
                let mut concerned = affected.nodes;
                let waited_for = {
                    let mut drains = dispatcher.drains();
                    concerned.extend(drains.take(&changes));
                    affected.everyone.then(|| drains.services())
                };
                // Before they are woken; time is short: not only when the views are old enough.
                dispatcher.renew(&waited_for.unwrap_or_default());
                dispatcher.wake(&concerned);
                if affected.everyone {
                    rounds.change(dispatcher.uptime());
                }
            }
        }
    }
}

fn no_session() -> Status {
    Status::failed_precondition("this session of the node has ended: register again")
}

fn no_cluster() -> Status {
    Status::failed_precondition(crate::server::NOT_IN_CLUSTER)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
