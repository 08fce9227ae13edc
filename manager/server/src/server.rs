//! Wiring: one manager of a node, with or without a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use manager_core::admit::{self, ClusterRequest};
use manager_core::{Action, State};
use model::ids::IdSource;
use model::object::Object;
use model::{ClusterId, NodeId};
use proto::control::control_server::ControlServer;
use proto::dispatch::dispatcher_server::DispatcherServer;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::api::Api;
use crate::dispatcher::Dispatcher;
use crate::leader;
use crate::raft::{KeyError, KeyRing, Log, OpenError, Opened};
use crate::rpc::DispatcherRpc;
use crate::writer::{RandomIds, WriteError, Writer};

/// What every call says while there is no cluster.
pub(crate) const NOT_IN_CLUSTER: &str = "This node is not part of a cluster; run rswarm swarm init";
/// Largest request: a stack with its secrets and configs.
const REQUEST_MAX: usize = 32 * 1024 * 1024;

/// What a manager is told by the daemon.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Its files are in `raft/` of this folder.
    pub data_dir: PathBuf,
    /// The node it runs on; the same over restarts.
    pub node_id: NodeId,
    /// Name of the host.
    pub hostname: String,
}

/// Why a cluster was not made or left.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is one.
    #[error("this node is already part of a cluster: leave it first with rswarm swarm leave --force")]
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
    /// The request cannot be carried out, or could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The log did not start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its data keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The data keys are sealed with an unlock key.
    #[error(
        "this manager is locked: its raft log in {path} can only be read with the unlock key of the cluster"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
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

/// One manager. Clones are the same manager.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

struct Shared {
    config: ManagerConfig,
    cluster: ArcSwapOption<Cluster>,
    /// Held while a cluster is made or left.
    change: Mutex<()>,
    active: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
}

/// The cluster this node is part of.
pub(crate) struct Cluster {
    pub(crate) writer: Arc<Writer>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Manager {
    /// Starts a manager: where its folder has a cluster, this returns once that cluster can be used.
    ///
    /// # Errors
    /// [`ClusterError`] when the log is damaged, in use or cannot be read.
    pub async fn open(config: ManagerConfig) -> Result<Self, ClusterError> {
        let dir = config.data_dir.join("raft");
        let shared = Shared {
            config,
            cluster: ArcSwapOption::empty(),
            change: Mutex::new(()),
            active: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
        };
        let manager = Self {
            shared: Arc::new(shared),
        };
        if Log::exists(&dir) {
            let log = Arc::new(Log::open(&dir, unlocked(&dir)?).await?);
            if log.read().cluster().is_some() {
                manager.start(log);
                return Ok(manager);
            }
            // Its making was interrupted before it was acknowledged.
            log.close().await;
        }
        wipe(&dir)?;
        Ok(manager)
    }

    /// The services of this manager, to be added to the daemon's server.
    pub fn services(&self) -> (ControlServer<Api>, DispatcherServer<DispatcherRpc>) {
        let control = ControlServer::new(Api::new(self.clone())).max_decoding_message_size(REQUEST_MAX);
        let dispatcher = DispatcherServer::new(DispatcherRpc::new(self.clone()));
        (control, dispatcher.max_decoding_message_size(REQUEST_MAX))
    }

    /// Whether this node is part of a cluster, now and when it changes.
    pub fn active(&self) -> watch::Receiver<bool> {
        self.shared.active.subscribe()
    }

    /// The node it runs on.
    pub fn node_id(&self) -> NodeId {
        self.shared.config.node_id
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
    }

    pub(crate) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.shared.cluster.load_full()
    }

    pub(crate) fn config(&self) -> &ManagerConfig {
        &self.shared.config
    }

    /// Makes a cluster with this node as its first manager.
    pub(crate) async fn init(
        &self,
        request: &ClusterRequest,
        address: &str,
    ) -> Result<ClusterId, ClusterError> {
        let _change = self.shared.change.lock().await;
        if self.cluster().is_some() {
            return Err(ClusterError::Active);
        }
        let node = self.node_id();
        // A request that is refused must leave no folder behind.
        let (request, address, hostname) = (
            request.clone(),
            address.to_owned(),
            self.shared.config.hostname.clone(),
        );
        let decide = move |state: &State, now, ids: &mut RandomIds| {
            let mut admitted = admit::init_cluster(state, &request, node, now, ids)?;
            for action in &mut admitted.txn.actions {
                if let Action::Put(Object::Node(first)) = action {
                    let first = Arc::make_mut(first);
                    first.description.address.clone_from(&address);
                    first.description.hostname.clone_from(&hostname);
                }
            }
            Ok(admitted)
        };
        decide(&State::new(), model::Timestamp::default(), &mut RandomIds).map_err(WriteError::Refused)?;
        let dir = self.dir();
        wipe(&dir)?;
        // Ids of managers are never used twice; 63 bits are random enough for that.
        let raft_id = u64::try_from(RandomIds.next_id() & u128::from(u64::MAX >> 1)).unwrap_or(1);
        let log = Arc::new(Log::bootstrap(&dir, raft_id, KeyRing::create(&dir, None)?).await?);
        Writer::new(log.clone()).write(decide).await?;
        let id = log.read().cluster().map(|c| c.id).ok_or(ClusterError::Inactive)?;
        self.start(log);
        Ok(id)
    }

    /// Leaves the cluster: every node is told to stop its tasks, then the state is removed.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), ClusterError> {
        let _change = self.shared.change.lock().await;
        let cluster = self.cluster().ok_or(ClusterError::Inactive)?;
        if !force {
            return Err(ClusterError::LastManager);
        }
        self.shared.cluster.store(None);
        cluster.dispatcher.dismiss().await;
        cluster.stop().await;
        wipe(&self.dir())?;
        self.shared.active.send_replace(false);
        Ok(())
    }

    fn dir(&self) -> PathBuf {
        self.shared.config.data_dir.join("raft")
    }

    fn start(&self, log: Arc<Log>) {
        let writer = Arc::new(Writer::new(log.clone()));
        let mut tasks = JoinSet::new();
        let dispatcher = Dispatcher::new(log.clone(), &mut tasks);
        tasks.spawn(leader::run(writer.clone()));
        let stopped = self.shared.stopped.clone();
        let mut role = log.role();
        tasks.spawn(async move {
            // An error means that the log is gone, which is the same.
            let _ = role.wait_for(|r| r.stopped).await;
            stopped.send_replace(true);
        });
        let cluster = Cluster {
            writer,
            dispatcher,
            tasks: std::sync::Mutex::new(tasks),
        };
        self.shared.cluster.store(Some(Arc::new(cluster)));
        self.shared.active.send_replace(true);
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

fn unlocked(dir: &Path) -> Result<KeyRing, ClusterError> {
    match KeyRing::open(dir)? {
        Opened::Ready(ring) => Ok(ring),
        Opened::Locked(_) => Err(ClusterError::Locked {
            path: dir.to_path_buf(),
        }),
    }
}

/// Removes what is left of a cluster; first what says that there is one.
fn wipe(dir: &Path) -> Result<(), ClusterError> {
    Log::disown(dir).map_err(OpenError::from)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ClusterError::Wipe {
            path: dir.to_path_buf(),
            source: e,
        }),
        _ => Ok(()),
    }
}
