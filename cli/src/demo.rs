//! `rswarm demo`: the main job on this machine, from nothing to nothing, on one host or on several.

mod load;
mod nodes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::host::{BuildOptions, ListContainersRequest};
use tokio::process::{Child, Command};

use crate::client::{Client, Fail};
use crate::command::image;
use crate::render::line;
use load::Load;

/// Port that the demo publishes.
const PORT: u16 = 18_080;
/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What `examples/shop` holds, so that the demo runs from the binary alone.
const SHOP: [(&str, &str); 4] = [
    ("Dockerfile", include_str!("../../examples/shop/Dockerfile")),
    ("stack.yml", include_str!("../../examples/shop/stack.yml")),
    ("motd", include_str!("../../examples/shop/motd")),
    ("key", include_str!("../../examples/shop/key")),
];

/// What is shown, and how it ends.
#[derive(clap::Args)]
#[command(
    after_help = "With --nodes, each host is a network namespace of this machine with a daemon of its own, and clients are in one more. \
Every host has a web service of its own with a port of its own, and clients ask each host for its own: networks over hosts and a mesh \
of ports come later. No request is repeated and none is left out, also while the leader is killed and a new version is rolled out; only \
the host that was cut off is not asked from the moment its link is healed until its tasks are those that the managers know again. \
The exit code is 0 only when no request failed, no write that was acknowledged was lost, the change of the leader restarted no task, \
and nothing is left behind."
)]
pub(crate) struct Args {
    /// Hosts of the cluster; beyond one they are three managers and workers.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<u8>::new().range(1..=20))]
    nodes: u8,
    /// End by itself.
    #[arg(long)]
    once: bool,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

struct Demo {
    exe: PathBuf,
    client: Client,
    daemon: Child,
}

impl Demo {
    /// Runs a command of ours as an operator would type it.
    async fn type_in(&self, words: &[&str]) -> Result<(), Fail> {
        line(format!("\n$ rswarm {}", words.join(" ")));
        let status = Command::new(&self.exe)
            .arg("--socket")
            .arg(&self.client.socket)
            .args(words)
            .status()
            .await?;
        if status.success() {
            Ok(())
        } else {
            Err(Fail::new(format!(
                "`rswarm {}` ended with {status}",
                words.join(" ")
            )))
        }
    }

    async fn timed(&self, words: &[&str]) -> Result<f64, Fail> {
        let began = Instant::now();
        self.type_in(words).await?;
        Ok(began.elapsed().as_secs_f64())
    }
}

pub(crate) async fn run(args: Args) -> Result<u8, Fail> {
    if !rustix::process::geteuid().is_root() {
        return Err(Fail::new(
            "the demo makes namespaces, cgroups and network links: run it as root",
        ));
    }
    if args.nodes > 1 {
        return nodes::run(args).await;
    }
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("rswarm.sock");
    let exe = std::env::current_exe()?;
    line(format!("# a daemon in {}", dir.path().display()));
    let log = std::fs::File::create(dir.path().join("daemon.log"))?;
    let daemon = Command::new(&exe)
        .arg("--socket")
        .arg(&socket)
        .args(["daemon", "--dataplane", "demo", "--data-dir"])
        .arg(dir.path().join("data"))
        .stderr(log)
        // Ctrl-C is for us: the daemon is needed to clean up.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut demo = Demo {
        exe,
        client: Client::new(socket),
        daemon,
    };
    let mut outcome = tokio::select! {
        outcome = steps(&demo, dir.path(), &args) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Fail::new("interrupted")),
    };
    if let (Ok(_), false) = (&outcome, args.once) {
        line(format!(
            "# up: curl http://127.0.0.1:{PORT}/ and rswarm --socket {} service ls; Ctrl-C ends it",
            demo.client.socket.display()
        ));
        if let Err(e) = tokio::signal::ctrl_c().await {
            outcome = Err(Fail::new(format!("wait for Ctrl-C: {e}")));
        }
    }
    if outcome.is_err() {
        let log = std::fs::read_to_string(dir.path().join("daemon.log")).unwrap_or_default();
        eprintln!("# what the daemon logged last:");
        log.lines()
            .rev()
            .take(20)
            .collect::<Vec<_>>()
            .iter()
            .rev()
            .for_each(|l| eprintln!("{l}"));
    }
    let cleaned = clean_up(&mut demo).await;
    let failed = outcome?;
    cleaned?;
    line("# everything is gone again");
    Ok(u8::from(failed > 0))
}

async fn steps(demo: &Demo, dir: &Path, args: &Args) -> Result<u64, Fail> {
    ready(&demo.client).await?;
    demo.type_in(&["swarm", "init", "--listen-addr", "127.0.0.1:0"])
        .await?;
    let context = dir.join("shop");
    std::fs::create_dir(&context)?;
    for (name, text) in SHOP {
        std::fs::write(context.join(name), text)?;
    }
    std::fs::copy(&demo.exe, context.join("rswarm"))?;
    for version in ["v1", "v2"] {
        line(format!(
            "\n$ rswarm image build -t shop/web:{version} --build-arg VERSION={version} examples/shop"
        ));
        let options = BuildOptions {
            tags: vec![format!("shop/web:{version}")],
            build_args: [("VERSION".to_owned(), version.to_owned())].into(),
            ..BuildOptions::default()
        };
        image::build(&demo.client, &context, options, true).await?;
    }
    demo.type_in(&["image", "ls"]).await?;
    let file = context.join("stack.yml").display().to_string();
    let deploy = demo.timed(&["stack", "deploy", "-c", &file, "shop"]).await?;
    for words in [
        ["stack", "ls"].as_slice(),
        &["stack", "services", "shop"],
        &["stack", "ps", "shop"],
    ] {
        demo.type_in(words).await?;
    }
    let load = Load::start(&[local()], None);
    let result = under_load(demo).await;
    let (requests, failed) = load.end();
    let (scale, update, replace) = result?;
    line(format!(
        "\n# {requests} requests, {failed} failed; deploy {deploy:.2} s, scale {scale:.2} s, update {update:.2} s, replace {replace:.3} s"
    ));
    if let Some(path) = &args.report {
        let report = serde_json::json!({"requests": requests, "failed": failed, "deploy_s": deploy, "scale_s": scale, "update_s": update, "replace_s": replace});
        std::fs::write(path, format!("{report}\n"))
            .map_err(|e| Fail::new(format!("write {}: {e}", path.display())))?;
    }
    Ok(failed)
}

/// Where this machine's own clients ask.
fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT))
}

async fn under_load(demo: &Demo) -> Result<(f64, f64, f64), Fail> {
    demo.type_in(&["service", "ls"]).await?;
    let scale = demo.timed(&["service", "scale", "shop_web=10"]).await?;
    demo.type_in(&["service", "ps", "shop_web", "--filter", "desired-state=running"])
        .await?;
    let update = demo
        .timed(&["service", "update", "--image", "shop/web:v2", "shop_web"])
        .await?;
    let answer = load::request(local())?;
    if !answer.contains("\"version\":\"v2\"") {
        return Err(Fail::new(format!(
            "after the update the answer is not v2: {answer}"
        )));
    }
    line("\n# one container is killed");
    let before = running(&demo.client).await?;
    let victim = before
        .iter()
        .find(|(name, _)| name.starts_with("shop_api.1."))
        .map(|(_, pid)| *pid)
        .unwrap_or(0);
    let pid = i32::try_from(victim)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| Fail::new("shop_api.1 does not run"))?;
    let began = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .map_err(|e| Fail::new(format!("kill shop_api.1: {e}")))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = running(&demo.client).await?;
        if now
            .iter()
            .filter(|(name, pid)| name.starts_with("shop_api.") && *pid != victim)
            .count()
            >= 2
        {
            break;
        }
        if Instant::now() > deadline {
            return Err(Fail::new("the killed container was not replaced"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let replace = began.elapsed().as_secs_f64();
    demo.type_in(&["service", "ps", "shop_api"]).await?;
    Ok((scale, update, replace))
}

/// Name and process of every running container.
async fn running(client: &Client) -> Result<Vec<(String, u32)>, Fail> {
    let reply = client
        .host()
        .await?
        .list_containers(ListContainersRequest { all: false })
        .await?
        .into_inner();
    Ok(reply.containers.into_iter().map(|c| (c.name, c.pid)).collect())
}

async fn ready(client: &Client) -> Result<(), Fail> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.control().await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Ends services, cluster and daemon, and looks whether anything is left.
async fn clean_up(demo: &mut Demo) -> Result<(), Fail> {
    let left = Command::new(&demo.exe)
        .arg("--socket")
        .arg(&demo.client.socket)
        .args(["swarm", "leave", "--force"])
        .status()
        .await;
    // What the cluster had is taken down after the answer; its link goes last.
    let deadline = Instant::now() + PATIENCE;
    let link = || std::fs::read_to_string("/proc/net/dev").is_ok_and(|t| t.contains("rs-demo:"));
    while link() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some(pid) = demo
        .daemon
        .id()
        .and_then(|p| i32::try_from(p).ok())
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let _ = tokio::time::timeout(Duration::from_secs(15), demo.daemon.wait()).await;
    let mut remains = Vec::new();
    if !left?.success() {
        remains.push("a cluster that could not be left".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let data = demo
        .client
        .socket
        .parent()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    remains.extend(
        mounts
            .lines()
            .filter(|l| l.contains(&data))
            .map(|l| format!("the mount {l}")),
    );
    if link() {
        remains.push("the network link rs-demo".to_owned());
    }
    for controller in ["memory", "cpu", "pids", ""] {
        let folder = Path::new("/sys/fs/cgroup").join(controller).join("rswarm/demo");
        if folder.exists() {
            remains.push(folder.display().to_string());
        }
    }
    if remains.is_empty() {
        Ok(())
    } else {
        Err(Fail::new(format!("left behind: {}", remains.join(", "))))
    }
}
