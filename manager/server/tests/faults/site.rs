//! One manager with a runtime of its own, which is dropped to kill it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use manager_server::{Manager, ManagerConfig, Side};
use model::object::NodeRole;
use proto::channel::{self, Expect};
use proto::control::control_client::ControlClient;
use proto::control::{InitClusterRequest, JoinClusterRequest, JoinTokenRequest, ListRequest};
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::dispatch::{SessionMessage, SessionRequest};
use proto::types::{Kind, NodeDescription, Object, object};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::lines::Grid;

/// How long forming a cluster or starting a manager may take.
const LIMIT: Duration = Duration::from_secs(20);

/// One manager.
pub(crate) struct Site {
    number: usize,
    grid: Grid,
    dir: tempfile::TempDir,
    running: Mutex<Option<(Runtime, Manager)>>,
}

impl Site {
    pub(crate) fn new(number: usize, grid: Grid) -> Self {
        Self {
            number,
            grid,
            dir: tempfile::tempdir().unwrap(),
            running: Mutex::default(),
        }
    }

    /// Where operators reach it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn manager(&self) -> Manager {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().unwrap().1.clone()
    }

    /// Does something as a part of it.
    pub(crate) fn run<T>(&self, work: impl AsyncFnOnce(&Manager) -> T) -> T {
        let manager = self.manager();
        // Not on its own thread, which would stand still in between.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work(&manager))
    }

    /// Starts it with what it left.
    pub(crate) fn start(&self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // One thread, so that it can be made to stand still.
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let manager = runtime.block_on(async {
            let config = ManagerConfig {
                data_dir: self.dir.path().to_path_buf(),
                hostname: format!("m{}", self.number + 1),
                level: model::Level::OURS,
            };
            let began = Instant::now();
            // What was killed may hold its log and its port for a moment: threads end after their last write.
            let manager = loop {
                match Manager::open_via(config.clone(), self.grid.route(self.number)).await {
                    Ok(manager) => break manager,
                    Err(error) => assert!(began.elapsed() < LIMIT, "m{}: {error:?}", self.number + 1),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            let _ = std::fs::remove_file(self.socket());
            let listener = tokio::net::UnixListener::bind(self.socket()).unwrap();
            let router = proto::listener::server()
                .layer(manager.gate(Side::Socket))
                .add_service(manager.services().0);
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
            serve_port(&manager);
            manager
        });
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((runtime, manager));
    }

    /// Ends it where it stands: nothing is closed or said.
    pub(crate) fn kill(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((runtime, manager)) = running {
            runtime.shutdown_background();
            drop(manager);
        }
    }

    /// Lets it stand still, as a machine that is paused.
    pub(crate) fn stall(&self, hold: Duration) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((runtime, _)) = running.as_ref() {
            runtime.spawn(async move { std::thread::sleep(hold) });
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Serves the other managers, once it is in a cluster.
fn serve_port(manager: &Manager) {
    let Some(listener) = manager.take_listener() else {
        return;
    };
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let connections = proto::listener::accept(listener, manager.keychain().clone());
    let (control, dispatcher) = manager.services();
    let (ca, raft) = manager.port_services();
    let router = proto::listener::server()
        .layer(manager.gate(Side::Port))
        .add_service(ca)
        .add_service(raft)
        .add_service(dispatcher)
        .add_service(control);
    let incoming = tokio_stream::wrappers::ReceiverStream::new(connections);
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
}

/// Makes the sites one cluster, all of them voting.
pub(crate) fn form(sites: &[std::sync::Arc<Site>], runtime: &Runtime) -> Result<(), String> {
    let control = |site: &Site| {
        let socket = site.socket();
        runtime
            .block_on(async move { channel::connect(&socket).await })
            .map(ControlClient::new)
            .map_err(|e| e.to_string())
    };
    let mut first = control(&sites[0])?;
    let said = |e: tonic::Status| e.message().to_owned();
    let init = InitClusterRequest {
        listen_addr: sites[0].grid.address(0),
        ..InitClusterRequest::default()
    };
    runtime.block_on(first.init_cluster(init)).map_err(said)?;
    let inside = |site: &Site| {
        let running = site.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, manager) = running.as_ref().unwrap();
        own.block_on(async { serve_port(manager) });
    };
    inside(&sites[0]);
    let token = JoinTokenRequest {
        manager: true,
        ..JoinTokenRequest::default()
    };
    let token = runtime
        .block_on(first.join_token(token))
        .map_err(said)?
        .into_inner();
    for (number, site) in sites.iter().enumerate().skip(1) {
        let join = JoinClusterRequest {
            managers: vec![token.address.clone()],
            token: token.token.clone(),
            listen_addr: site.grid.address(number),
            advertise_addr: site.grid.address(number),
            ..JoinClusterRequest::default()
        };
        runtime
            .block_on(control(site)?.join_cluster(join))
            .map_err(said)?;
        inside(site);
        let manager = site.manager();
        let running = site.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, _) = running.as_ref().unwrap();
        own.block_on(async { manager.follow(NodeRole::Manager).await })
            .map_err(|e| e.to_string())?;
        // What its agent would do: tell the leader the number of its log.
        own.block_on(register(&manager, sites[0].manager().node_id(), &token.address))?;
    }
    let began = Instant::now();
    loop {
        let nodes = ListRequest {
            kind: Kind::Node.into(),
            ..ListRequest::default()
        };
        let nodes = runtime.block_on(first.list(nodes)).map_err(said)?.into_inner();
        let votes = |o: &Object| match &o.object {
            Some(object::Object::Node(node)) => node.manager.as_ref().is_some_and(|m| m.voter && m.reachable),
            _ => false,
        };
        if nodes.objects.iter().filter(|o| votes(o)).count() == sites.len() {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            let shown: Vec<_> = nodes
                .objects
                .iter()
                .map(|o| match &o.object {
                    Some(object::Object::Node(node)) => format!(
                        "{:?} {:?}",
                        node.identity.as_ref().map(|i| i.raft_id),
                        node.manager
                    ),
                    _ => String::new(),
                })
                .collect();
            return Err(format!("the managers did not become a cluster: {shown:?}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

async fn register(manager: &Manager, leader: model::NodeId, address: &str) -> Result<(), String> {
    let channel = channel::connect_node(manager.keychain(), address, Expect::Node(leader))
        .await
        .map_err(|e| e.chain())?;
    begin(manager, channel).await.map(drop)
}

type Session = (
    DispatcherClient<Channel>,
    String,
    tonic::Streaming<SessionMessage>,
);

/// A session with the manager at an address, as the agent of this one would have it.
///
/// # Errors
/// What it said.
pub(crate) async fn session(manager: &Manager, address: &str) -> Result<Session, String> {
    let channel = channel::connect_node(manager.keychain(), address, Expect::Manager)
        .await
        .map_err(|e| e.chain())?;
    begin(manager, channel).await
}

async fn begin(manager: &Manager, channel: Channel) -> Result<Session, String> {
    let request = SessionRequest {
        description: Some(NodeDescription {
            hostname: manager.node_id().to_string(),
            level: model::Level::OURS.number(),
            ..NodeDescription::default()
        }),
        raft_id: *manager.raft_id().borrow(),
    };
    let mut client = DispatcherClient::new(channel);
    let said = |e: tonic::Status| e.message().to_owned();
    let mut messages = client.session(request).await.map_err(said)?.into_inner();
    let first = messages.message().await.map_err(said)?;
    let first = first.ok_or("the session ended at once")?;
    Ok((client, first.session, messages))
}
