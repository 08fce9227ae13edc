//! Wiring: what this node is in a cluster, and the manager it runs where it is one.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use manager_core::{State, admit};
use model::object::{NodeIdentity, NodeRole};
use model::{ClusterId, Level, NodeId};
use proto::ca::ca_server::CaServer;
use proto::control::control_server::ControlServer;
use proto::dispatch::dispatcher_server::DispatcherServer;
use proto::identity::{IdentityError, Keychain, Papers, Place};
use proto::raft::raft_server::RaftServer;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::api::Api;
use crate::ca::{self, CaError};
use crate::dispatcher::Dispatcher;
use crate::join::{self, JoinError};
use crate::raft::network::{Links, MESSAGE_MAX, Route};
use crate::raft::{
    BackupError, KeyError, KeyRing, LockedRing, Log, LogError, OpenError, Opened, RaftRpc, UnlockKey,
};
use crate::rpc::DispatcherRpc;
use crate::rpc_ca::CaRpc;
use crate::writer::{RandomIds, WriteError, Writer};
use crate::{leader, lock, members, revive};

/// What every call says while there is no cluster.
pub(crate) const NOT_IN_CLUSTER: &str =
    "This node is not part of a cluster; run rswarm swarm init, or rswarm swarm join";
/// What calls about the cluster say on a worker.
pub(crate) const NOT_A_MANAGER: &str = "This node is not a cluster manager: worker nodes cannot show or change the cluster's state. Run this on a manager, or promote this node there with rswarm node promote";
/// What calls say on a manager that is locked.
pub(crate) const NEEDS_UNLOCKING: &str =
    "Swarm is encrypted and needs to be unlocked before it can be used: run rswarm swarm unlock";
/// Largest request: a stack with its secrets and configs.
pub(crate) const REQUEST_MAX: usize = 32 * 1024 * 1024;

/// What a node is told by the daemon.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Its files are in `raft/` and `identity/` of this folder.
    pub data_dir: PathBuf,
    /// Name of the host.
    pub hostname: String,
    /// What this build knows of the log and of messages.
    pub level: Level,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Membership {
    /// Part of no cluster.
    #[default]
    None,
    /// Part of one, without a log.
    Worker,
    /// Part of one, with a log.
    Manager,
    /// Part of one, with a log, and cannot read its own keys until an operator gives the unlock key.
    Locked,
}

/// Why a cluster was not made, joined or left.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is one.
    #[error("this node is already part of a cluster: leave it first with rswarm swarm leave")]
    Active,
    /// There is none.
    #[error("{NOT_IN_CLUSTER}")]
    Inactive,
    /// The last manager takes the cluster with it.
    #[error(
        "this node is the only manager: leaving removes the cluster with all services, secrets and configs; \
         repeat with --force if that is wanted"
    )]
    LastManager,
    /// A manager does not leave by accident.
    #[error(
        "this node is a manager of {0}: demote it first with rswarm node demote, or repeat with --force, which demotes it \
         where that is possible"
    )]
    Manager(usize),
    /// Only a manager has the state.
    #[error("this node is not a manager: only one that is has the cluster's state to go on with")]
    NoManager,
    /// The state cannot be read.
    #[error("the cluster's state cannot be read from this manager's log: {0}")]
    State(String),
    /// This build is too old for it.
    #[error("{0}")]
    TooOld(String),
    /// A backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// An address cannot be used.
    #[error("{0}")]
    Address(String),
    /// The request cannot be carried out, or could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The log did not start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Certificates.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The node's own files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another cluster did not take it.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Its data keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What it needs is sealed with an unlock key.
    #[error("{NEEDS_UNLOCKING}")]
    Locked,
    /// Nothing is sealed.
    #[error("this node is not locked")]
    NotLocked,
    /// Another key was given.
    #[error(
        "this is not the unlock key of this cluster: nothing was changed; `rswarm swarm unlock-key` on another manager shows it"
    )]
    WrongKey,
    /// The folder of the cluster cannot be removed.
    #[error("cannot remove {path}")]
    Wipe {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One node's part in a cluster. Clones are the same.
#[derive(Clone)]
pub struct Manager {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: ManagerConfig,
    pub(crate) keychain: Keychain,
    pub(crate) links: Links,
    cluster: ArcSwapOption<Cluster>,
    /// Held while a cluster is made, joined or left.
    pub(crate) change: Mutex<()>,
    pub(crate) membership: watch::Sender<Membership>,
    /// This manager's number; 0: it has no log.
    raft_id: watch::Sender<u64>,
    /// Where other nodes connect, until the daemon takes it.
    listener: std::sync::Mutex<Option<TcpListener>>,
    /// What an unlock key is waited for to open.
    locked: std::sync::Mutex<Option<(String, Papers, Option<LockedRing>)>>,
    stopped: watch::Sender<bool>,
}

/// The cluster this node is a manager of.
pub(crate) struct Cluster {
    pub(crate) writer: Arc<Writer>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Manager {
    /// Starts. Where the folder has a log that no other manager shares, this returns once it can be used.
    ///
    /// # Errors
    /// [`ClusterError`] when the log is damaged, in use or cannot be read, or the port is taken.
    pub async fn open(config: ManagerConfig) -> Result<Self, ClusterError> {
        Self::open_via(config, Route::default()).await
    }

    /// As [`Manager::open`], with another way to the other nodes.
    ///
    /// # Errors
    /// As [`Manager::open`].
    pub async fn open_via(config: ManagerConfig, route: Route) -> Result<Self, ClusterError> {
        let keychain = Keychain::new(&config.data_dir.join("identity"));
        let manager = Self {
            shared: Arc::new(Shared {
                links: Links::new(keychain.clone(), route),
                keychain,
                config,
                cluster: ArcSwapOption::empty(),
                change: Mutex::new(()),
                membership: watch::Sender::default(),
                raft_id: watch::Sender::new(0),
                listener: std::sync::Mutex::new(None),
                locked: std::sync::Mutex::new(None),
                stopped: watch::Sender::new(false),
            }),
        };
        let dir = manager.dir();
        let Some((key, papers)) = manager.keychain().stored()? else {
            // Its making was interrupted before it was acknowledged.
            wipe(&dir)?;
            return Ok(manager);
        };
        revive::take_over(&dir)?;
        // Before anything of the log is read.
        let level = Log::level(&dir).map_err(OpenError::from)?;
        manager.knows_level(level)?;
        let keys = if Log::exists(&dir) {
            Some(KeyRing::open(&dir)?)
        } else {
            None
        };
        match keys {
            Some(Opened::Locked(ring)) => manager.wait_for_key(key, papers, Some(ring)),
            _ if lock::is_sealed(&key) => manager.wait_for_key(key, papers, None),
            Some(Opened::Ready(ring)) => manager.begin(Papers { key, ..papers }, Some(ring)).await?,
            None => manager.begin(Papers { key, ..papers }, None).await?,
        }
        Ok(manager)
    }

    fn wait_for_key(&self, key: String, papers: Papers, ring: Option<LockedRing>) {
        tracing::warn!("{NEEDS_UNLOCKING}");
        let mut locked = self
            .shared
            .locked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *locked = Some((key, papers, ring));
        self.shared.membership.send_replace(Membership::Locked);
    }

    /// Takes part, with everything that is needed for it.
    async fn begin(&self, papers: Papers, keys: Option<KeyRing>) -> Result<(), ClusterError> {
        let dir = self.dir();
        self.keychain().use_papers(papers)?;
        let place = self.keychain().place();
        self.listen(bind(&place.listen)?);
        if let Some(keys) = keys {
            match Log::open(&dir, self.shared.links.clone(), keys).await {
                Ok(log) => {
                    if let Err(error) = self.knows(&log.read()) {
                        log.close().await;
                        self.stop_daemon();
                        return Err(error);
                    }
                    self.renew_own(&log)?;
                    self.start(Arc::new(log));
                }
                Err(error) => set_aside(&dir, &place, self.node_id(), error)?,
            }
        }
        if self.cluster().is_none() {
            self.shared.membership.send_replace(Membership::Worker);
        }
        Ok(())
    }

    /// Whether this build knows what the cluster of a state writes.
    pub(crate) fn knows(&self, state: &State) -> Result<(), ClusterError> {
        self.knows_level(admit::level::written(state))
    }

    fn knows_level(&self, written: Level) -> Result<(), ClusterError> {
        let config = self.config();
        let known = admit::level::knows(written, &config.hostname, config.level);
        known.map_err(|refusal| ClusterError::TooOld(refusal.to_string()))
    }

    /// Ends the daemon, as one that can do nothing any more.
    pub(crate) fn stop_daemon(&self) {
        self.shared.stopped.send_replace(true);
    }

    /// A manager that was away until its certificate ended makes itself a new one: it has the authority's key. Without
    /// this, managers that were all away could not speak to each other any more.
    fn renew_own(&self, log: &Log) -> Result<(), ClusterError> {
        let Some(identity) = self.keychain().identity() else {
            return Ok(());
        };
        let now = self.keychain().clock().now().0;
        let state = log.read();
        let (Some(cluster), Some(node)) = (state.cluster(), state.node(identity.subject.node)) else {
            return Ok(());
        };
        if now < identity.subject.not_after || node.spec.role != NodeRole::Manager {
            return Ok(());
        }
        let csr = proto::identity::request(&identity.papers.key)?;
        let issued = ca::sign(
            &cluster.security,
            &csr,
            node.id,
            NodeRole::Manager,
            cluster.id,
            now,
        )?;
        self.keychain()
            .renew(&issued.certificates, &ca::authorities(&cluster.security))?;
        tracing::warn!("the certificate of this manager had ended: it has made itself a new one");
        Ok(())
    }

    /// Opens what is locked. A wrong key changes nothing.
    pub(crate) async fn unlock(&self, key: &UnlockKey) -> Result<(), ClusterError> {
        let _change = self.shared.change.lock().await;
        let take = || {
            let locked = self.shared.locked.lock();
            locked.unwrap_or_else(std::sync::PoisonError::into_inner).take()
        };
        let Some((key_file, papers, ring)) = take() else {
            return Err(ClusterError::NotLocked);
        };
        let opened = lock::open_papers(papers.clone(), &key_file, key).and_then(|papers| {
            let ring = ring.as_ref().map(|r| r.unlock(key)).transpose();
            Ok((papers, ring.map_err(|_| ClusterError::WrongKey)?))
        });
        match opened {
            Ok((papers, None)) if Log::exists(&self.dir()) => {
                // Only the node's own key was sealed yet when it stopped.
                let Opened::Ready(ring) = KeyRing::open(&self.dir())? else {
                    return Err(ClusterError::Locked);
                };
                self.begin(papers, Some(ring)).await
            }
            Ok((papers, ring)) => self.begin(papers, ring).await,
            Err(error) => {
                self.wait_for_key(key_file, papers, ring);
                Err(error)
            }
        }
    }

    /// The services of operators and other nodes, to be added to the daemon's servers.
    pub fn services(&self) -> (ControlServer<Api>, DispatcherServer<DispatcherRpc>) {
        let control = ControlServer::new(Api::new(self.clone())).max_decoding_message_size(REQUEST_MAX);
        let dispatcher = DispatcherServer::new(DispatcherRpc::new(self.clone()));
        (control, dispatcher.max_decoding_message_size(REQUEST_MAX))
    }

    /// The services only other nodes call.
    pub fn port_services(&self) -> (CaServer<CaRpc>, RaftServer<RaftRpc>) {
        let ca = CaServer::new(CaRpc::new(self.clone()));
        let raft = RaftServer::new(RaftRpc::new(self.clone()))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        (ca, raft)
    }

    /// What this node is, now and when it changes.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.shared.membership.subscribe()
    }

    /// This manager's number, now and when it changes; 0 while it has no log.
    pub fn raft_id(&self) -> watch::Receiver<u64> {
        self.shared.raft_id.subscribe()
    }

    /// Who this node is to others.
    pub fn keychain(&self) -> &Keychain {
        &self.shared.keychain
    }

    /// Where other nodes connect; given once after each time this node became part of a cluster.
    pub fn take_listener(&self) -> Option<TcpListener> {
        let mut listener = self
            .shared
            .listener
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        listener.take()
    }

    pub(crate) fn listen(&self, listener: TcpListener) {
        let mut place = self
            .shared
            .listener
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *place = Some(listener);
    }

    /// The node it runs on; the zero id while it is part of no cluster.
    pub fn node_id(&self) -> NodeId {
        self.keychain().node().unwrap_or(NodeId::NIL)
    }

    /// Returns when the manager cannot go on: the daemon ends then, and starts again.
    pub async fn stopped(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Stops with everything written. The cluster is there again after the next [`Manager::open`].
    pub async fn close(&self) {
        let _change = self.shared.change.lock().await;
        if let Some(cluster) = self.shared.cluster.swap(None) {
            cluster.stop().await;
        }
        drop(self.take_listener());
    }

    /// Becomes what the cluster says this node is to be: a manager makes itself a log, which the others fill; who is a
    /// manager no more forgets its log.
    ///
    /// # Errors
    /// [`ClusterError`] when a log cannot be made or removed; it will be said again.
    pub async fn follow(&self, role: NodeRole) -> Result<(), ClusterError> {
        let _change = self.shared.change.lock().await;
        match (role, self.cluster()) {
            (NodeRole::Manager, None) if self.keychain().identity().is_some() => {
                let dir = self.dir();
                wipe(&dir)?;
                let keys = KeyRing::create(&dir, None)?;
                let log = Log::blank(&dir, raft_id(), self.shared.links.clone(), keys).await?;
                tracing::info!(raft_id = log.raft_id(), "this node becomes a manager");
                self.start(Arc::new(log));
            }
            (NodeRole::Worker, Some(cluster)) => {
                tracing::info!("this node is a manager no more");
                self.stop_managing(&cluster).await;
                wipe(&self.dir())?;
                self.shared.membership.send_replace(Membership::Worker);
            }
            (NodeRole::Manager | NodeRole::Worker, _) => {}
        }
        Ok(())
    }

    pub(crate) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.shared.cluster.load_full()
    }

    /// The state as this node knows it, where it is a manager that knows one.
    pub(crate) fn known(&self) -> Option<Arc<State>> {
        let state = self.cluster()?.writer.log.read();
        state.cluster().is_some().then_some(state)
    }

    pub(crate) fn config(&self) -> &ManagerConfig {
        &self.shared.config
    }

    /// Joins the cluster of others.
    pub(crate) async fn join(&self, request: join::Request) -> Result<(ClusterId, NodeRole), ClusterError> {
        let _change = self.shared.change.lock().await;
        if self.keychain().identity().is_some() {
            return Err(ClusterError::Active);
        }
        let listener = bind(&request.listen)?;
        let joined = join::join(&self.shared.config, self.keychain(), &request, &listener).await?;
        self.listen(listener);
        self.shared.membership.send_replace(Membership::Worker);
        Ok(joined)
    }

    /// Leaves the cluster. The last manager takes it with it: every node is told to stop its tasks.
    pub(crate) async fn leave(&self, force: bool) -> Result<Option<String>, ClusterError> {
        let _change = self.shared.change.lock().await;
        if *self.shared.membership.borrow() == Membership::Locked && !force {
            return Err(ClusterError::Locked);
        }
        if *self.shared.membership.borrow() == Membership::None {
            return Err(ClusterError::Inactive);
        }
        let mut warning = None;
        if let Some(cluster) = self.cluster() {
            let state = cluster.writer.log.read();
            let managers = state.managers().count();
            match (force, managers) {
                (false, 0 | 1) => return Err(ClusterError::LastManager),
                (false, more) => return Err(ClusterError::Manager(more)),
                (true, 0 | 1) => cluster.dispatcher.dismiss().await,
                (true, _) => warning = join::withdraw(self).await.err(),
            }
            self.stop_managing(&cluster).await;
        }
        // Of the last manager's cluster nothing is left to be told.
        if self.dir().exists() {
            wipe(&self.dir())?;
        } else {
            warning = join::say_goodbye(self).await.err();
        }
        self.keychain().forget()?;
        drop(self.take_listener());
        self.shared.membership.send_replace(Membership::None);
        Ok(warning)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.shared.config.data_dir.join("raft")
    }

    pub(crate) fn start(&self, log: Arc<Log>) {
        let writer = Arc::new(Writer::new(log.clone()));
        let mut tasks = JoinSet::new();
        let dispatcher = Dispatcher::new(log.clone(), &mut tasks);
        tasks.spawn(leader::run(writer.clone(), dispatcher.clone()));
        tasks.spawn(members::run(writer.clone(), dispatcher.clone()));
        tasks.spawn(lock::follow(self.clone(), log.clone()));
        let stopped = self.shared.stopped.clone();
        let mut role = log.role();
        tasks.spawn(async move {
            // An error means that the log is gone, which is the same.
            let _ = role.wait_for(|r| r.stopped).await;
            stopped.send_replace(true);
        });
        let raft_id = log.raft_id();
        let cluster = Cluster {
            writer,
            dispatcher,
            tasks: std::sync::Mutex::new(tasks),
        };
        self.shared.cluster.store(Some(Arc::new(cluster)));
        self.shared.raft_id.send_replace(raft_id);
        self.shared.membership.send_replace(Membership::Manager);
    }

    pub(crate) async fn stop_managing(&self, cluster: &Cluster) {
        self.shared.cluster.store(None);
        self.shared.raft_id.send_replace(0);
        cluster.stop().await;
    }

    /// Which of the managers answer.
    pub(crate) async fn reached(&self) -> BTreeSet<NodeId> {
        match self.cluster() {
            Some(cluster) => cluster.writer.log.reached().await,
            None => BTreeSet::new(),
        }
    }
}

impl Cluster {
    async fn stop(&self) {
        let mut tasks = std::mem::take(
            &mut *self
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        tasks.shutdown().await;
        self.dispatcher.close();
        self.writer.log.close().await;
    }
}

/// A new number of a manager: never used twice, and 63 bits are random enough for that.
pub(crate) fn raft_id() -> u64 {
    use model::ids::IdSource;
    u64::try_from(RandomIds.next_id() & u128::from(u64::MAX >> 1))
        .unwrap_or(1)
        .max(1)
}

/// Certificates of a node for the state.
pub(crate) fn identity_of(issued: &ca::Issued, raft_id: Option<u64>) -> NodeIdentity {
    NodeIdentity {
        key: issued.key.clone(),
        issuer: issued.issuer.clone(),
        expires_at: issued.expires_at,
        raft_id,
    }
}

/// Listens at an address.
pub(crate) fn bind(address: &str) -> Result<TcpListener, ClusterError> {
    let refused = |e: std::io::Error| {
        ClusterError::Address(format!(
            "cannot listen at {address}: {e}; choose another with --listen-addr IP:PORT"
        ))
    };
    let listener = TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// A damaged log is put aside where other managers have the state: this one asks them for it, under a new number. A
/// manager that is alone stops.
fn set_aside(dir: &Path, place: &Place, own: NodeId, error: OpenError) -> Result<(), ClusterError> {
    let damaged = matches!(
        error,
        OpenError::Log(LogError::Corrupt { .. }) | OpenError::Lost { .. }
    );
    if !damaged || !place.managers.iter().any(|(node, _)| *node != own) {
        return Err(error.into());
    }
    let aside = dir.with_extension("damaged");
    tracing::error!(
        "{error}. It is kept in {}; this manager takes the state from the others, under a new number",
        aside.display()
    );
    let moved = std::fs::remove_dir_all(&aside).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    });
    moved
        .and_then(|()| std::fs::rename(dir, &aside))
        .map_err(|source| ClusterError::Wipe {
            path: dir.to_owned(),
            source,
        })
}

/// Removes what is left of a cluster; first what says that there is one.
pub(crate) fn wipe(dir: &Path) -> Result<(), ClusterError> {
    Log::disown(dir).map_err(OpenError::from)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ClusterError::Wipe {
            path: dir.to_path_buf(),
            source: e,
        }),
        _ => Ok(()),
    }
}
