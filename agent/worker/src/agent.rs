//! Wiring: one agent of a node, and what its parts share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::ImageStore;
use model::object::{NodeDescription, NodeRole, NodeUse};
use model::{Level, NodeId};
use net::{Dataplane, DataplaneConfig, Encryption, Steering};
use proto::host::host_server::HostServer;
use proto::identity::Keychain;
use proto::images::images_server::ImagesServer;
use runtime::{Runtime, RuntimeConfig};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::contact::Contact;
use crate::fetch::Fetcher;
use crate::host::HostService;
use crate::images::ImagesService;
use crate::inventory::Inventory;
use crate::kept::Kept;
use crate::link::Links;
use crate::network::Network;
use crate::peers::Peers;
use crate::volumes::Volumes;
use agent_core::outbox::Outbox;

/// Largest message of operators to a host.
const REQUEST_MAX: usize = 4 << 20;
/// How long tasks may take to end the step they are at, before everything is taken down.
const STEP_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
/// Containers made or started at the same time: more only wait for each other in the kernel.
const STARTS: usize = 8;

/// What an agent is told by the daemon.
#[derive(Clone)]
pub struct AgentConfig {
    /// Its folders are in here.
    pub data_dir: PathBuf,
    /// Who this node is to others, and where the managers are.
    pub keychain: Keychain,
    /// This node's number among the managers; 0 while it has no log.
    pub raft_id: watch::Receiver<u64>,
    /// Name of the host.
    pub hostname: String,
    /// Name of the dataplane on this machine.
    pub dataplane: String,
    /// Binary that is its own shim.
    pub exe: PathBuf,
    /// What this host has beside CPU and memory.
    pub generic: model::spec::GenericResources,
    /// Version it reports.
    pub version: String,
    /// What this build knows of messages.
    pub level: Level,
    /// How networks are encrypted.
    pub encryption: Encryption,
    /// Which CPUs carry packets of networks.
    pub steering: Steering,
    /// Other nodes, whose images are fetched; none: only images that are here can be run.
    pub peers: Option<Arc<dyn Peers>>,
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Containers cannot be run here.
    #[error(transparent)]
    Runtime(#[from] runtime::OpenError),
    /// Images cannot be kept here.
    #[error(transparent)]
    Images(#[from] image::StoreError),
    /// The network cannot be made here.
    #[error(transparent)]
    Net(#[from] net::NetError),
}

/// One agent. Clones are the same agent.
#[derive(Clone)]
pub struct Agent {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    pub(crate) runtime: Runtime,
    pub(crate) images: ImageStore,
    pub(crate) network: Network,
    pub(crate) volumes: Volumes,
    pub(crate) outbox: Mutex<Outbox>,
    pub(crate) told: Notify,
    pub(crate) starts: Semaphore,
    /// One for each task; they end, each after its step, once the session is over.
    pub(crate) workers: TaskTracker,
    pub(crate) role: watch::Sender<Option<NodeRole>>,
    pub(crate) links: Arc<Links>,
    pub(crate) inventory: Inventory,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) contact: Contact,
    pub(crate) kept: Kept,
    /// The managers ask what tasks use.
    pub(crate) measures: watch::Sender<bool>,
    /// What its tasks use together, once that was measured.
    pub(crate) node_use: watch::Sender<Option<NodeUse>>,
}

impl Agent {
    /// Opens the folders and adopts what runs.
    ///
    /// # Errors
    /// [`AgentError`] with the part that cannot work.
    pub async fn open(config: AgentConfig) -> Result<Self, AgentError> {
        let runtime = Runtime::open(RuntimeConfig {
            root: config.data_dir.join("containers"),
            exe: config.exe.clone(),
            cgroup_parent: format!("rswarm/{}", config.dataplane),
        })?;
        let images = ImageStore::open(&config.data_dir.join("images"))?;
        let plane = Dataplane::open(DataplaneConfig {
            name: config.dataplane.clone(),
            state_dir: config.data_dir.join("net"),
            upstream: upstream(Path::new("/etc/resolv.conf")),
            encryption: config.encryption,
            steering: config.steering,
        })
        .await?;
        let volumes = Volumes::new(config.data_dir.join("volumes"));
        let links = Arc::new(Links::new());
        let shared = Shared {
            inventory: Inventory::of(&images),
            fetcher: Arc::new(Fetcher::new(images.clone(), config.peers.clone(), links.clone())),
            links,
            runtime,
            images,
            network: Network::new(plane, config.keychain.clone()).await,
            volumes,
            outbox: Mutex::new(Outbox::default()),
            told: Notify::new(),
            starts: Semaphore::new(STARTS),
            workers: TaskTracker::new(),
            role: watch::Sender::new(None),
            contact: Contact::open(config.data_dir.join("contact")),
            kept: Kept::new(config.data_dir.join("assigned")),
            measures: watch::Sender::new(false),
            node_use: watch::Sender::new(None),
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The service for operators, to be added to the daemon's server.
    pub fn service(&self) -> HostServer<HostService> {
        HostServer::new(HostService::new(self.shared.clone())).max_decoding_message_size(REQUEST_MAX)
    }

    /// What the managers say this node is to be; absent before they said anything.
    pub fn role(&self) -> watch::Receiver<Option<NodeRole>> {
        self.shared.role.subscribe()
    }

    /// The service for other nodes of the cluster, to be added to the server they reach.
    pub fn images_service(&self) -> ImagesServer<ImagesService> {
        ImagesService::server(self.shared.images.clone(), Some(self.shared.links.clone()))
    }

    /// Serves a manager until told to stop. Containers go on either way.
    pub async fn run(&self, stop: watch::Receiver<bool>) {
        // What a cluster said that this host has left is not said of this one: the same role is news again.
        self.shared.role.send_replace(None);
        tokio::select! {
            () = crate::session::run(self.shared.clone(), stop) => {}
            () = crate::inventory::run(self.shared.clone()) => {}
            () = self.shared.kept.run() => {}
            () = self.shared.network.keep() => {}
            () = self.shared.network.renew_keys() => {}
            () = self.shared.network.feel() => {}
        }
    }

    /// Takes down everything: containers, networks. For a node that left its cluster.
    ///
    /// # Errors
    /// The first step that failed; the others are done all the same.
    pub async fn destroy(&self) -> Result<(), AgentError> {
        self.shared.kept.forget();
        // A container that is being made or started while others are removed would be left.
        self.shared.workers.close();
        if tokio::time::timeout(STEP_LIMIT, self.shared.workers.wait())
            .await
            .is_err()
        {
            tracing::warn!("a task is still being started or stopped while everything is taken down");
        }
        self.shared.workers.reopen();
        for container in self.shared.runtime.list() {
            if let Err(error) = self.shared.runtime.remove(&container.id).await {
                tracing::warn!(%error, "remove a container");
            }
        }
        self.shared.network.destroy().await?;
        self.shared.runtime.close();
        Ok(())
    }
}

impl Shared {
    /// The node it is; the zero id while it is none.
    pub(crate) fn node_id(&self) -> NodeId {
        self.config.keychain.node().unwrap_or(NodeId::NIL)
    }

    /// What this host says of itself.
    pub(crate) fn description(&self) -> NodeDescription {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        NodeDescription {
            hostname: self.config.hostname.clone(),
            platform: model::spec::Platform {
                os: "linux".into(),
                arch: arch.into(),
            },
            cpus: model::NanoCpus(cpus * 1_000_000_000),
            memory: model::Bytes(memory.unwrap_or(0) * 1024),
            engine_version: self.config.version.clone(),
            address: self.config.keychain.place().address,
            level: self.config.level,
            tunnel_key: *self.network.key().borrow(),
            answers: Dataplane::has_ipv6(),
            generic: self.config.generic.clone(),
            ..NodeDescription::default()
        }
    }
}

/// Name servers of the host, at most three; its own loopback ones are reached from here as well.
fn upstream(resolv: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv).unwrap_or_default();
    text.lines()
        .filter_map(|l| l.strip_prefix("nameserver"))
        .filter_map(|a| a.trim().parse().ok())
        .map(|ip: std::net::IpAddr| SocketAddr::new(ip, 53))
        .take(3)
        .collect()
}

/// Milliseconds since 1970.
pub(crate) fn now() -> model::Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    model::Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
