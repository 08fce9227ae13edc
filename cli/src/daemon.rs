//! `rswarm daemon`: an agent and, where the node is one, a manager; reached by a socket and by a port.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_worker::{Agent, AgentConfig, Encryption, Steering};
use manager_server::{Manager, ManagerConfig, Membership, Side};
use model::Level;
use model::object::NodeRole;
use model::spec::GenericResources;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};

use crate::client::Fail;

/// Time between two looks for memory that can be given back.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// Pause after a change of role that failed.
const ROLE_RETRY: Duration = Duration::from_secs(2);

/// Where and as what the daemon runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of everything this node keeps.
    #[arg(long, default_value = "/var/lib/rswarm")]
    pub(crate) data_dir: PathBuf,
    /// Name of this node; the host's where none is given.
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Name of the dataplane, where several daemons run on one machine: 1 to 8 of a-z and 0-9.
    #[arg(long, default_value = "rswarm")]
    pub(crate) dataplane: String,
    /// What encrypts networks: the kernel's WireGuard where there is one and this process otherwise, or this process alone.
    #[arg(long, value_enum, default_value = "auto", env = "RSWARM_WIREGUARD")]
    pub(crate) wireguard: Wireguard,
    /// Which CPUs carry packets of networks: one of all for each flow (streams are faster), or the one that sends (new
    /// connections are quicker where waking a CPU takes long). Links that are there keep what they have.
    #[arg(long, value_enum, default_value = "spread", env = "RSWARM_PACKET_STEERING")]
    pub(crate) packet_steering: PacketSteering,
    /// What this node has beside CPU and memory: KIND=NUMBER, such as gpu=2, or once for each that has a name,
    /// gpu=UUID; a name such as /dev/nvidia0 is a device, which the task that gets it finds there.
    #[arg(
        long,
        value_name = "KIND=VALUE",
        value_delimiter = ',',
        env = "RSWARM_NODE_GENERIC_RESOURCES"
    )]
    pub(crate) node_generic_resource: Vec<String>,
    /// What is logged: error, warn, info, debug, or a filter of tracing.
    #[arg(long, default_value = "info,openraft=error", env = "RSWARM_LOG")]
    pub(crate) log: String,
}

/// What encrypts networks.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Wireguard {
    Auto,
    Userspace,
}

/// Which CPUs carry packets.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum PacketSteering {
    Spread,
    Sender,
}

fn problem(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Fail {
    let what = format!("{what} {}", path.display());
    move |e| Fail::new(format!("{what}: {e}"))
}

/// Files that the process may have open at least, where it may say so itself: connections of clients are files as well.
const FILES: u64 = 65_536;

/// Raises the bound of open files, as shells give 1,024.
fn open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map_or(FILES, |most| most.min(FILES));
    if now.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            ..now
        };
        // What cannot be had is lived without: the bounds below follow from what there is.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Runs until a signal. Containers go on without it; the next daemon adopts them.
pub(crate) async fn run(args: Args, socket: PathBuf) -> Result<u8, Fail> {
    tracing_subscriber::fmt()
        .with_env_filter(&args.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    open_files();
    let data = std::path::absolute(&args.data_dir)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data)
        .map_err(problem("make the data folder", &data))?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o711)).map_err(problem("protect", &data))?;
    let _lock = lock(&data)?;
    let hostname = args
        .hostname
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).map_err(problem("make", folder))?;
    }
    let generic =
        GenericResources::parse(args.node_generic_resource.iter().map(String::as_str)).map_err(Fail::new)?;
    agent_worker::check_devices(&generic).map_err(Fail::new)?;
    // A socket nobody answers at is what a killed daemon left; one that answers is another daemon's.
    if tokio::net::UnixStream::connect(&socket).await.is_ok() {
        return Err(Fail::new(format!(
            "another daemon answers at {}: stop it, or choose another --socket",
            socket.display()
        )));
    }
    let _ = fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).map_err(problem("listen at", &socket))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).map_err(problem("protect", &socket))?;
    // A test lets a build be an older or a newer one.
    let level = crash::number("RSWARM_LEVEL").map_or(Level::OURS, Level::new);
    let manager = Manager::open(ManagerConfig {
        data_dir: data.clone(),
        hostname: hostname.clone(),
        level,
    })
    .await
    .map_err(|e| Fail::new(chain(&e)))?;
    let agent = Agent::open(AgentConfig {
        data_dir: data.clone(),
        keychain: manager.keychain().clone(),
        raft_id: manager.raft_id(),
        hostname,
        dataplane: args.dataplane,
        exe: std::env::current_exe()?,
        generic,
        version: env!("CARGO_PKG_VERSION").into(),
        level,
        encryption: match args.wireguard {
            Wireguard::Auto => Encryption::Auto,
            Wireguard::Userspace => Encryption::Userspace,
        },
        steering: match args.packet_steering {
            PacketSteering::Spread => Steering::Spread,
            PacketSteering::Sender => Steering::Sender,
        },
        peers: Some(Arc::new(manager.keychain().clone())),
    })
    .await
    .map_err(|e| Fail::new(chain(&e)))?;
    let (control, _) = manager.services();
    let (stop, stopping) = watch::channel(false);
    let mut served = stopping.clone();
    let server = tokio::spawn(
        proto::listener::server()
            .layer(manager.gate(Side::Socket))
            .add_service(control)
            .add_service(agent.service())
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
                let _ = served.wait_for(|s| *s).await;
            }),
    );
    let roles = tokio::spawn(follow_role(manager.clone(), agent.role()));
    let agents = tokio::spawn(follow(manager.clone(), agent, stopping));
    tracing::info!(node = %manager.node_id(), socket = %socket.display(), "ready");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let trim = async {
        loop {
            tokio::time::sleep(TRIM_EVERY).await;
            let _ = tokio::task::spawn_blocking(runtime::trim_memory).await;
        }
    };
    let code = tokio::select! {
        () = trim => 0,
        _ = term.recv() => 0,
        _ = int.recv() => 0,
        () = manager.stopped() => 1,
    };
    let _ = stop.send(true);
    manager.close().await;
    roles.abort();
    let _ = agents.await;
    // Watchers keep their streams open; they are cut rather than waited for.
    server.abort();
    let _ = fs::remove_file(&socket);
    Ok(code)
}

/// Serves other nodes while this one is in a cluster.
fn serve_port(manager: &Manager, agent: &Agent, mut ended: watch::Receiver<bool>) {
    let Some(listener) = manager.take_listener() else {
        return;
    };
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "serve other nodes");
            return;
        }
    };
    let (control, dispatcher) = manager.services();
    let (ca, raft) = manager.port_services();
    let connections = proto::listener::accept(listener, manager.keychain().clone());
    let router = proto::listener::server()
        .layer(manager.gate(Side::Port))
        .add_service(ca)
        .add_service(raft)
        .add_service(dispatcher)
        .add_service(control)
        .add_service(agent.images_service())
        .add_service(agent.service());
    tokio::spawn(async move {
        tokio::select! {
            result = router.serve_with_incoming(ReceiverStream::new(connections)) => {
                if let Err(error) = result {
                    tracing::error!(%error, "serve other nodes");
                }
            }
            // Streams of others are cut; they go on elsewhere.
            _ = ended.wait_for(|e| *e) => {}
        }
    });
}

/// Becomes a manager, or ceases to be one, as the managers say.
async fn follow_role(manager: Manager, mut role: watch::Receiver<Option<NodeRole>>) {
    loop {
        let said = *role.borrow_and_update();
        if let Some(said) = said
            && let Err(error) = manager.follow(said).await
        {
            tracing::error!("become {said:?}: {}", chain(&error));
            tokio::time::sleep(ROLE_RETRY).await;
            continue;
        }
        if role.changed().await.is_err() {
            return;
        }
    }
}

/// Runs the agent while this node is in a cluster; what it left behind goes when the cluster is left.
async fn follow(manager: Manager, agent: Agent, mut stopping: watch::Receiver<bool>) {
    let mut membership = manager.membership();
    loop {
        tokio::select! {
            result = membership.wait_for(|m| *m != Membership::None) => if result.is_err() { return },
            _ = stopping.wait_for(|s| *s) => return,
        }
        // A locked manager knows neither who it is nor where to listen; what it ran goes on, and goes when it leaves.
        tokio::select! {
            result = membership.wait_for(|m| *m != Membership::Locked) => if result.is_err() { return },
            _ = stopping.wait_for(|s| *s) => return,
        }
        let (end, ended) = watch::channel(false);
        serve_port(&manager, &agent, ended.clone());
        let runner = {
            let (agent, taking_part) = (agent.clone(), *membership.borrow() != Membership::None);
            tokio::spawn(async move {
                if taking_part {
                    agent.run(ended).await;
                }
            })
        };
        let left = tokio::select! {
            result = membership.wait_for(|m| *m == Membership::None) => result.is_ok(),
            _ = stopping.wait_for(|s| *s) => false,
        };
        let stopped = *stopping.borrow();
        let _ = end.send(true);
        let _ = runner.await;
        if left && !stopped {
            if let Err(error) = agent.destroy().await {
                tracing::error!(%error, "take down what the cluster left");
            }
        } else {
            return;
        }
    }
}

/// One daemon a folder.
fn lock(data: &Path) -> Result<fs::File, Fail> {
    let path = data.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(problem("open", &path))?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&file, exclusive).map_err(|_| {
        Fail::new(format!(
            "another daemon uses {}: stop it, or choose another --data-dir",
            data.display()
        ))
    })?;
    Ok(file)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
