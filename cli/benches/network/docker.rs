//! The overlay of Docker Engine, measured as ours is: two daemons of it, each on a host of a [`Wire`], in one swarm.
//!
//! Its virtual addresses and its mesh are not measured: they need `ip_vs`, which the kernels this is run on do not have.

use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use net::{Wire, inside};

use super::{Serve, in_turn, latency, serve, streams_in_turn, throughput};

/// How long a daemon may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const SINK: u16 = 9000;
const ECHO: u16 = 9001;
/// The cgroup in which its containers are, below every hierarchy.
const CGROUP: &str = "docker";

/// Over the underlay: throughput and latency of a network; and throughput of one that is encrypted over one that is not, where
/// the kernel can encrypt it.
pub(crate) struct Ratios {
    pub(crate) tcp: f64,
    pub(crate) latency: f64,
    pub(crate) encrypted: Option<f64>,
}

/// Nothing where Docker Engine is not installed.
pub(crate) fn overlay() -> Result<Option<Ratios>, String> {
    for program in ["dockerd", "docker", "iptables"] {
        if !(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()))
            .any(|folder| folder.join(program).exists())
        {
            println!(
                "skipped: Docker's overlay needs {program} (apt-get install docker.io iptables busybox-static)"
            );
            return Ok(None);
        }
    }
    let dir = tempfile::tempdir().map_err(said("make a folder"))?;
    let mut wire = Wire::make(&dir.path().join("wire")).map_err(said("make hosts"))?;
    for host in [1, 2] {
        wire.add(host).map_err(said("add a host"))?;
    }
    // All that were started end, whatever was measured, and whether or not the other one came up.
    let one = Engine::start(dir.path(), &wire, 1)?;
    let (ratios, ended) = match Engine::start(dir.path(), &wire, 2) {
        Ok(two) => (measure(&one, &two, dir.path()), two.end()),
        Err(why) => (Err(why), Ok(())),
    };
    let ended = [ended, one.end(), remove_cgroups()];
    let ratios = ratios?;
    ended.into_iter().collect::<Result<(), String>>()?;
    Ok(Some(ratios))
}

fn measure(one: &Engine, two: &Engine, dir: &Path) -> Result<Ratios, String> {
    println!("# Docker {}", one.docker("version --format {{.Server.Version}}")?);
    one.docker(&format!("swarm init --advertise-addr {}", Wire::address(1)))?;
    let token = one.docker("swarm join-token -q worker")?;
    two.docker(&format!("swarm join --token {token} {}:2377", Wire::address(1)))?;
    let image = dir.join("image.tar");
    archive(&image).map_err(said("make an image of /bin/busybox (Debian: busybox-static)"))?;
    for engine in [one, two] {
        engine.docker(&format!("import {} sleeper:1", image.display()))?;
    }
    let (h1, h2) = (&one.namespace, &two.namespace);
    serve(h2, SINK, Serve::Sink);
    serve(h2, ECHO, Serve::Echo);

    let (from, address) = pair(one, two, "plain", "")?;
    let under = |port| (Wire::address(2).into(), port);
    let (wire, tunnel) = streams_in_turn(
        || throughput(h1, under(SINK)),
        || throughput(&from, (address, SINK)),
    );
    println!("Docker: one TCP stream between hosts: {wire:.1} Gbit/s, between containers {tunnel:.1} Gbit/s");
    let (near, far) = in_turn(|| latency(h1, under(ECHO)), || latency(&from, (address, ECHO)));
    println!("Docker: a round trip between hosts: {near:.1} µs, between containers {far:.1} µs");

    let (secret_from, secret) = pair(one, two, "secret", "--opt encrypted")?;
    let encrypted = if reached(&secret_from, secret) {
        let (plain, secret) = streams_in_turn(
            || throughput(&from, (address, SINK)),
            || throughput(&secret_from, (secret, SINK)),
        );
        println!(
            "Docker: one TCP stream between containers: {plain:.1} Gbit/s, encrypted {secret:.2} Gbit/s"
        );
        Some(secret / plain)
    } else {
        println!(
            "skipped: Docker's encrypted overlay carries nothing here (it needs ESP, which this kernel lacks)"
        );
        None
    };
    Ok(Ratios {
        tcp: tunnel / wire,
        latency: far / near,
        encrypted,
    })
}

/// A network with a container on each host: the namespace of the first, and the address of the second, where it is served.
fn pair(one: &Engine, two: &Engine, name: &str, options: &str) -> Result<(PathBuf, IpAddr), String> {
    one.docker(&format!(
        "network create --driver overlay --attachable {options} {name}"
    ))?;
    let run = |engine: &Engine, container: String| {
        engine.docker(&format!(
            "run --detach --name {container} --network {name} sleeper:1 /bin/busybox sleep 3600"
        ))?;
        let pid = engine.docker(&format!("inspect {container} --format {{{{.State.Pid}}}}"))?;
        let address = engine.docker(&format!(
            "inspect {container} --format {{{{range.NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}"
        ))?;
        let address = address
            .parse()
            .map_err(|_| format!("{container} has no address: {address}"))?;
        Ok::<_, String>((PathBuf::from(format!("/proc/{pid}/ns/net")), address))
    };
    let (from, _) = run(one, format!("{name}-1"))?;
    let (to, address) = run(two, format!("{name}-2"))?;
    serve(&to, SINK, Serve::Sink);
    serve(&to, ECHO, Serve::Echo);
    Ok((from, address))
}

/// Whether an address answers within a time that is long for a network.
fn reached(from: &Path, address: IpAddr) -> bool {
    let connect =
        || std::net::TcpStream::connect_timeout(&(address, SINK).into(), Duration::from_secs(5)).is_ok();
    inside(from, connect).unwrap_or(false)
}

/// One daemon.
struct Engine {
    namespace: PathBuf,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Engine {
    fn start(dir: &Path, wire: &Wire, host: u8) -> Result<Self, String> {
        let folder = dir.join(format!("docker{host}"));
        std::fs::create_dir_all(&folder).map_err(said("make a folder"))?;
        let (socket, log) = (folder.join("socket"), folder.join("log"));
        let out = std::fs::File::create(&log).map_err(said("make a log"))?;
        let err = out.try_clone().map_err(said("make a log"))?;
        let namespace = wire.namespace(host);
        let mut command = Command::new("dockerd");
        command
            .arg(format!("--host=unix://{}", socket.display()))
            .arg(format!("--data-root={}", folder.join("data").display()))
            .arg(format!("--exec-root={}", folder.join("exec").display()))
            .arg(format!("--pidfile={}", folder.join("pid").display()))
            // Containers that do not end by themselves are killed when it ends.
            .arg("--shutdown-timeout=2")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        let child = inside(&namespace, || command.spawn())
            .map_err(said("enter a host"))?
            .map_err(said("start dockerd"))?;
        let mut engine = Self {
            namespace,
            child,
            socket,
            log,
        };
        let began = Instant::now();
        while engine.docker("version").is_err() {
            let ended = engine
                .child
                .try_wait()
                .map_err(said("look at dockerd"))?
                .is_some();
            if ended || began.elapsed() > PATIENCE {
                let said = engine.said();
                engine.end()?;
                return Err(format!("dockerd of host {host} did not start:\n{said}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(engine)
    }

    /// What a command of its client prints, told in words that are separated by spaces.
    fn docker(&self, words: &str) -> Result<String, String> {
        let output = Command::new("docker")
            .arg(format!("--host=unix://{}", self.socket.display()))
            .args(words.split_whitespace())
            .output()
            .map_err(said("start docker"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("docker {words}: {why}"))
    }

    /// The last lines of its log.
    fn said(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn end(mut self) -> Result<(), String> {
        let removed = match self.docker("ps --all --quiet") {
            Ok(ids) if !ids.is_empty() => self.docker(&format!("rm --force {}", ids.replace('\n', " "))),
            // None, or it never answered.
            Ok(_) | Err(_) => Ok(String::new()),
        };
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let began = Instant::now();
        while (self.child.try_wait())
            .map_err(said("wait for dockerd"))?
            .is_none()
        {
            if began.elapsed() > PATIENCE {
                return Err(format!("dockerd {pid:?} does not end:\n{}", self.said()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // It leaves its namespaces mounted.
        let folder = self.socket.parent().unwrap_or(&self.socket);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below: Vec<&str> = (mounts.lines())
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| Path::new(at).starts_with(folder))
            .collect();
        for at in below.iter().rev() {
            rustix::mount::unmount(*at, rustix::mount::UnmountFlags::DETACH)
                .map_err(said("unmount what dockerd left"))?;
        }
        removed.map(drop)
    }
}

/// Removes the cgroups it leaves, which are empty.
fn remove_cgroups() -> Result<(), String> {
    fn remove(folder: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)?.flatten() {
            if entry.file_type()?.is_dir() {
                remove(&entry.path())?;
            }
        }
        std::fs::remove_dir(folder)
    }
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").map_err(said("list cgroups"))?;
    let folders = hierarchies.flatten().map(|h| h.path().join(CGROUP));
    for folder in folders.chain([PathBuf::from("/sys/fs/cgroup").join(CGROUP)]) {
        if folder.is_dir() {
            remove(&folder).map_err(said("remove the cgroups dockerd left"))?;
        }
    }
    Ok(())
}

/// An image's file system: busybox alone.
fn archive(at: &Path) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(std::fs::File::create(at)?);
    archive.append_path_with_name("/bin/busybox", "bin/busybox")?;
    archive.finish()
}

fn said<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
