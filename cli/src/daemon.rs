//! `rswarm daemon`: an agent and a manager on one socket.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_worker::{Agent, AgentConfig};
use manager_server::{Manager, ManagerConfig, RandomIds};
use model::NodeId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;

use crate::client::Fail;

/// Time between two looks for memory that can be given back.
const TRIM_EVERY: Duration = Duration::from_secs(30);

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
    /// What is logged: error, warn, info, debug, or a filter of tracing.
    #[arg(long, default_value = "info,openraft=warn", env = "RSWARM_LOG")]
    pub(crate) log: String,
}

fn problem(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Fail {
    let what = format!("{what} {}", path.display());
    move |e| Fail::new(format!("{what}: {e}"))
}

/// Runs until a signal. Containers go on without it; the next daemon adopts them.
pub(crate) async fn run(args: Args, socket: PathBuf) -> Result<u8, Fail> {
    tracing_subscriber::fmt()
        .with_env_filter(&args.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let data = std::path::absolute(&args.data_dir)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data)
        .map_err(problem("make the data folder", &data))?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o711)).map_err(problem("protect", &data))?;
    let _lock = lock(&data)?;
    let node_id = node_id(&data)?;
    let hostname = args
        .hostname
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).map_err(problem("make", folder))?;
    }
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
    let manager = Manager::open(ManagerConfig {
        data_dir: data.clone(),
        node_id,
        hostname: hostname.clone(),
    })
    .await
    .map_err(|e| Fail::new(chain(&e)))?;
    let agent = Agent::open(AgentConfig {
        data_dir: data.clone(),
        manager: socket.clone(),
        node_id,
        hostname,
        dataplane: args.dataplane,
        exe: std::env::current_exe()?,
        version: env!("CARGO_PKG_VERSION").into(),
        peers: None,
    })
    .await
    .map_err(|e| Fail::new(chain(&e)))?;
    let (control, dispatcher) = manager.services();
    let (stop, stopping) = watch::channel(false);
    let mut served = stopping.clone();
    let server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(control)
            .add_service(dispatcher)
            .add_service(agent.service())
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
                let _ = served.wait_for(|s| *s).await;
            }),
    );
    let agents = tokio::spawn(follow(agent, manager.active(), stopping));
    tracing::info!(node = %node_id, socket = %socket.display(), "ready");
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
    let _ = agents.await;
    // Watchers keep their streams open; they are cut rather than waited for.
    server.abort();
    let _ = fs::remove_file(&socket);
    Ok(code)
}

/// Runs the agent while this node is in a cluster; what it left behind goes when the cluster is left.
async fn follow(agent: Agent, mut active: watch::Receiver<bool>, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            result = active.wait_for(|a| *a) => if result.is_err() { return },
            _ = stopping.wait_for(|s| *s) => return,
        }
        let (end, ended) = watch::channel(false);
        let runner = {
            let agent = agent.clone();
            tokio::spawn(async move { agent.run(ended).await })
        };
        let left = tokio::select! {
            result = active.wait_for(|a| !*a) => result.is_ok(),
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

/// The id of this node: made once, kept for ever.
fn node_id(data: &Path) -> Result<NodeId, Fail> {
    let path = data.join("node-id");
    if let Ok(text) = fs::read_to_string(&path) {
        return text
            .trim()
            .parse()
            .map_err(|e| Fail::new(format!("{}: {e}", path.display())));
    }
    let id = NodeId::new(&mut RandomIds);
    let aside = data.join(".node-id");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&aside)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        fs::rename(&aside, &path)
    };
    write().map_err(problem("write", &path))?;
    Ok(id)
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
