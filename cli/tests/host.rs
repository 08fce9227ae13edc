//! One host, the whole way: the real binary as daemon and as command line, real containers, real traffic.
//!
//! Needs root and busybox. Every test has a daemon of its own in a folder of its own and leaves nothing behind.

#[path = "common/check.rs"]
mod check;
#[path = "common/wait.rs"]
mod wait;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use check::{contains, equal};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use wait::until;

/// Port that the tests publish.
const PORT: u16 = 18_181;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // They share the machine's ports and are counted on it.
    args.test_threads = Some(1);
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: the tests of a whole host need root and /bin/busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    }
    type Test = fn(&mut Host) -> Result<(), Failed>;
    let all: &[(&'static str, Test)] = &[
        ("a stack is deployed, changed, rolled and removed", stack),
        ("exit codes say how a rollout ended", exit_codes),
        ("a refused command changes nothing", refusals),
        ("containers outlive a killed daemon", adoption),
        ("a failed task is replaced and says why", replacement),
        ("a full disk is said and loses nothing", full_disk),
        ("a quiet cluster writes nothing", quiet),
        ("a thousand starts and stops leave nothing behind", cycles),
    ];
    let trials = all
        .iter()
        .map(|(name, test)| {
            Trial::test(*name, move || {
                let before = machine();
                let mut host = Host::start()?;
                let outcome = test(&mut host);
                let log = host.log();
                let left = host.end();
                if outcome.is_err() || left.is_err() {
                    eprintln!("the daemon's last lines:\n{log}");
                }
                outcome?;
                left?;
                equal(machine(), before)
            })
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

/// What a test must give back: mounts, network namespaces and links, cgroups of ours.
fn machine() -> BTreeMap<&'static str, usize> {
    let lines = |file: &str, word: &str| {
        fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .filter(|l| l.contains(word))
            .count()
    };
    let cgroups = ["memory", "cpu", "cpuacct", "pids", "blkio", ""]
        .iter()
        .filter(|c| {
            Path::new("/sys/fs/cgroup")
                .join(c)
                .join("rswarm/hosttest")
                .exists()
        })
        .count();
    BTreeMap::from([
        ("mounts", lines("/proc/self/mountinfo", "")),
        ("links", lines("/proc/net/dev", "rs-hosttest")),
        ("cgroups", cgroups),
    ])
}

struct Host {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Host {
    fn start() -> Result<Self, Failed> {
        let here = machine();
        if here["links"] + here["cgroups"] > 0 {
            return Err(format!("an earlier test left something: {here:?}").into());
        }
        let mut host = Self {
            dir: tempfile::tempdir()?,
            daemon: None,
        };
        // A disk of its own, small enough to be filled.
        fs::create_dir(host.path("data"))?;
        let (none, size) = (MountFlags::empty(), c"size=64m,mode=700");
        rustix::mount::mount("tmpfs", host.path("data"), "tmpfs", none, size)?;
        host.boot()?;
        host.ok(&["swarm", "init", "--listen-addr", "127.0.0.1:0"])?;
        let image = host.path("image");
        fs::create_dir_all(image.join("bin"))?;
        fs::copy("/bin/busybox", image.join("bin/busybox"))?;
        for applet in [
            "sh", "sleep", "cat", "httpd", "wget", "echo", "id", "true", "date", "kill",
        ] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(applet))?;
        }
        for version in ["v1", "v2"] {
            fs::create_dir_all(image.join("www"))?;
            fs::write(image.join("www/index.html"), format!("{version}\n"))?;
            fs::write(
                image.join("Dockerfile"),
                "FROM scratch\nCOPY bin /bin\nCOPY www /www\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
            )?;
            let tag = format!("web:{version}");
            host.ok(&["image", "build", "-q", "-t", &tag, &image.display().to_string()])?;
        }
        Ok(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a daemon; the one before is gone.
    fn boot(&mut self) -> Result<(), Failed> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"))?;
        let daemon = self
            .command(&["daemon", "--dataplane", "hosttest", "--data-dir"])
            .arg(self.path("data"))
            .stderr(log)
            .spawn()?;
        self.daemon = Some(daemon);
        until("the daemon answers", || Ok(self.run(&["info"])?.status.success()))
    }

    fn unmount(&self) {
        let _ = rustix::mount::unmount(self.path("data"), UnmountFlags::DETACH);
    }

    fn kill_daemon(&mut self) -> Result<(), Failed> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command
            .arg("--socket")
            .arg(self.path("sock"))
            .args(words)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output, Failed> {
        Ok(self.command(words).output()?)
    }

    /// Runs what must succeed; answers what it printed.
    fn ok(&self, words: &[&str]) -> Result<String, Failed> {
        self.code(words, 0)
    }

    /// As [`Self::ok`], as it is typed.
    fn types(&self, line: &str) -> Result<String, Failed> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        self.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn code(&self, words: &[&str], code: i32) -> Result<String, Failed> {
        let out = self.run(words)?;
        let (text, errors) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        if out.status.code() == Some(code) {
            return Ok(format!("{text}{}", if code == 0 { "" } else { &errors }));
        }
        Err(format!(
            "`rswarm {}` ended with {}, not {code}:\n{text}{errors}",
            words.join(" "),
            out.status
        )
        .into())
    }

    /// Runs what must be refused with words that help.
    fn refused(&self, words: &[&str], parts: &[&str]) -> Result<(), Failed> {
        let text = self.code(words, 1)?;
        for part in parts {
            if !text.contains(part) || text.contains("panicked") {
                return Err(format!("`rswarm {}` says without \"{part}\":\n{text}", words.join(" ")).into());
            }
        }
        Ok(())
    }

    fn file(&self, name: &str, text: &str) -> Result<String, Failed> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Everything the cluster holds, to see that nothing changed.
    fn everything(&self) -> Result<Vec<String>, Failed> {
        let list = |words: &[&str]| self.ok(words);
        Ok(vec![
            list(&[
                "service",
                "ls",
                "--format",
                "{{.Name}} {{.Image}} {{.Mode}} {{.Ports}}",
            ])?,
            list(&["network", "ls", "--format", "{{.Name}}"])?,
            list(&["secret", "ls", "--format", "{{.Name}}"])?,
            list(&["config", "ls", "--format", "{{.Name}}"])?,
            list(&["stack", "ls"])?,
        ])
    }

    /// Process ids of running containers whose name begins so.
    fn pids(&self, name: &str) -> Result<BTreeMap<String, u32>, Failed> {
        let mut pids = BTreeMap::new();
        for line in self.ok(&["ps", "--format", "json"])?.lines() {
            let row: Value = serde_json::from_str(line)?;
            let found = row["Names"].as_str().ok_or("no Names")?;
            if found.starts_with(name) {
                let pid = row["Pid"].as_u64().ok_or("no Pid")?;
                pids.insert(found.to_owned(), u32::try_from(pid)?);
            }
        }
        Ok(pids)
    }

    /// Leaves the cluster and ends the daemon; fails when anything of it is left.
    fn end(&mut self) -> Result<(), Failed> {
        self.ok(&["swarm", "leave", "--force"])?;
        until("everything of the cluster is taken down", || {
            let now = machine();
            Ok(now["links"] == 0 && now["cgroups"] == 0)
        })?;
        if let Some(mut daemon) = self.daemon.take() {
            let pid = i32::try_from(daemon.id())?;
            let pid = rustix::process::Pid::from_raw(pid).ok_or("no pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            equal(daemon.wait()?.code(), Some(0))?;
        }
        self.unmount();
        let own = self.dir.path().display().to_string();
        let ours = |path: PathBuf| {
            let text = fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&own)
        };
        let left = fs::read_dir("/proc")?
            .flatten()
            .filter(|e| ours(e.path()))
            .count();
        equal(("processes", left), ("processes", 0))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // After a failure: what runs goes with the cluster, and only a daemon can take it down.
        if machine()["cgroups"] > 0 {
            if self.daemon.is_none() {
                let _ = self.boot();
            }
            let _ = self.run(&["swarm", "leave", "--force"]);
            let _ = until("", || Ok(machine()["cgroups"] == 0));
        }
        let _ = self.kill_daemon();
        self.unmount();
    }
}

fn get() -> Result<String, Failed> {
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

const STACK: &str = r#"
services:
  web:
    image: web:${TAG:-v1}
    ports: ["18181:8080"]
    networks: [front]
    secrets: [{source: key, mode: 0400}]
    configs: [{source: motd, target: /etc/motd}]
    volumes: ["data:/data"]
    environment: {GREETING: hello}
    stop_grace_period: 500ms
    healthcheck: {test: "wget -q -O /dev/null http://127.0.0.1:8080/index.html", interval: 1s, start_interval: 50ms, start_period: 20s}
    deploy:
      replicas: 2
      update_config: {order: start-first, monitor: 200ms, failure_action: rollback}
      resources: {limits: {memory: 32m, cpus: 0.5, pids: 20}}
  back:
    image: web:v1
    networks: [front]
    stop_grace_period: 500ms
    deploy: {update_config: {monitor: 100ms}}
networks: {front: }
volumes: {data: }
secrets: {key: {file: key.txt}}
configs: {motd: {content: "welcome"}}
"#;

fn stack(host: &mut Host) -> Result<(), Failed> {
    host.file("key.txt", "s3cret")?;
    let file = host.file("stack.yml", STACK)?;
    let text = host.ok(&["stack", "deploy", "-c", &file, "shop"])?;
    for line in [
        "Creating network shop_front",
        "Creating secret shop_key",
        "Creating config shop_motd",
        "Creating service shop_web",
        "Service shop_back converged",
    ] {
        contains(&text, line)?;
    }
    equal(get()?.ends_with("v1\n"), true)?;
    let exec = |script: &str| host.ok(&["exec", "shop_web.1", "sh", "-c", script]);
    equal(
        exec("cat /run/secrets/key /etc/motd; echo $GREETING")?.as_str(),
        "s3cretwelcomehello\n",
    )?;
    equal(exec("wget -q -O - http://back:8080/index.html")?.as_str(), "v1\n")?;
    exec("echo kept > /data/file")?;
    // The same again changes nothing, and no task is replaced.
    let before = host.pids("shop_")?;
    let text = host.ok(&["stack", "deploy", "-c", &file, "shop"])?;
    equal(text.contains("Updating") || text.contains("Creating"), false)?;
    equal(host.pids("shop_")?, before.clone())?;
    // A new image is rolled out while requests come in, and the other service stays as it is.
    let out = host
        .command(&["stack", "deploy", "-d", "-c", &file, "shop"])
        .env("TAG", "v2")
        .output()?;
    equal(out.status.code(), Some(0))?;
    let mut failed = 0;
    until("the answer is v2", || {
        let answer = get();
        failed += usize::from(answer.is_err());
        Ok(answer.is_ok_and(|a| a.ends_with("v2\n")))
    })?;
    equal(
        host.code(&["service", "scale", "shop_web=3"], 0)?
            .contains("converged"),
        true,
    )?;
    equal(("failed requests", failed), ("failed requests", 0))?;
    let kept = |pids: BTreeMap<String, u32>| pids.into_iter().find(|(n, _)| n.starts_with("shop_back"));
    equal(kept(host.pids("shop_back")?), kept(before))?;
    equal(
        host.ok(&["exec", "shop_web.1", "cat", "/data/file"])?.as_str(),
        "kept\n",
    )?;
    // Without the service and with --prune it goes.
    let small = STACK.replace("  back:", "  x-back:").replace("  x-back:\n    image: web:v1\n    networks: [front]\n    stop_grace_period: 500ms\n    deploy: {update_config: {monitor: 100ms}}\n", "");
    let small = host.file("small.yml", &small)?;
    let text = host.ok(&["stack", "deploy", "--prune", "-c", &small, "shop"])?;
    contains(&text, "Removing service shop_back")?;
    equal(host.ok(&["stack", "services", "-q", "shop"])?.lines().count(), 1)?;
    let text = host.ok(&["stack", "rm", "shop"])?;
    contains(&text, "Removing network shop_front")?;
    until("its containers are gone", || Ok(host.pids("shop_")?.is_empty()))?;
    // Data is nobody's to remove but the operator's.
    equal(host.ok(&["volume", "ls", "-q"])?.as_str(), "shop_data\n")?;
    host.refused(&["stack", "rm", "shop"], &["nothing found in stack shop"])
}

fn exit_codes(host: &mut Host) -> Result<(), Failed> {
    let create = [
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "2",
        "--stop-grace-period",
        "200ms",
        "--update-monitor",
        "300ms",
        "--update-failure-action",
        "rollback",
        "--restart-delay",
        "50ms",
        "web:v1",
    ];
    host.code(&create, 0)?;
    host.code(&["service", "update", "--image", "web:v2", "web"], 0)?;
    // A program that fails at once: the rollout goes back by itself.
    host.code(&["service", "update", "--args", "sh -c 'exit 3'", "web"], 2)?;
    let spec = host.ok(&[
        "service",
        "inspect",
        "--format",
        "{{.Spec.TaskTemplate.ContainerSpec.Image}}",
        "web",
    ])?;
    // The one image its name meant is written down; tables for people show the name.
    let id = host.ok(&["image", "inspect", "--format", "{{.Id}}", "web:v2"])?;
    equal(spec, format!("web:v2@{id}"))?;
    let pretty = host.ok(&["service", "inspect", "--pretty", "web"])?;
    let tables = [
        host.ok(&["service", "ls"])?,
        host.ok(&["service", "ps", "web"])?,
        host.ok(&["ps"])?,
        pretty,
    ];
    for text in tables {
        contains(&text, "web:v2")?;
        equal(text.contains("sha256"), false)?;
    }
    contains(&host.ok(&["service", "ps", "--no-trunc", "web"])?, id.trim())?;
    host.code(
        &[
            "service",
            "update",
            "--update-failure-action",
            "pause",
            "--args",
            "sh -c 'exit 3'",
            "web",
        ],
        3,
    )?;
    host.code(&["service", "rollback", "web"], 0)?;
    // How an earlier rollout ended is not the doing of what comes after.
    host.code(&["service", "scale", "web=3"], 0)?;
    host.code(&["service", "update", "--label-add", "a=b", "web"], 0)?;
    let text = host.code(
        &[
            "service",
            "create",
            "--name",
            "nowhere",
            "--timeout",
            "500ms",
            "--constraint",
            "node.role==worker",
            "web:v1",
        ],
        4,
    )?;
    contains(&text, "did not converge in time")?;
    let why = host.types("service ps --no-trunc --format {{.Error}} nowhere")?;
    contains(&why, "node.role==worker")?;
    host.ok(&["service", "rm", "web", "nowhere"])?;
    Ok(())
}

fn refusals(host: &mut Host) -> Result<(), Failed> {
    host.types("service create --name web -p 18181:8080 --update-monitor 0s web:v1")?;
    let before = host.everything()?;
    host.refused(&["service", "inspect", "nosuch"], &["nosuch"])?;
    host.refused(&["node", "inspect", "nosuch"], &["nosuch"])?;
    host.refused(&["network", "rm", "nosuch"], &["nosuch"])?;
    host.refused(&["image", "inspect", "nosuch:1"], &["nosuch:1"])?;
    host.refused(
        &["service", "create", "--name", "web", "web:v1"],
        &["web", "taken"],
    )?;
    host.refused(
        &["service", "create", "--name", "x", "-p", "18181:80", "web:v1"],
        &["18181", "web"],
    )?;
    host.refused(
        &[
            "service",
            "create",
            "--name",
            "x",
            "--limit-memory",
            "1m",
            "web:v1",
        ],
        &["4"],
    )?;
    host.refused(
        &[
            "service",
            "create",
            "--name",
            "x",
            "--limit-cpu",
            "0.0001",
            "web:v1",
        ],
        &["0.001"],
    )?;
    host.refused(
        &[
            "service",
            "create",
            "--name",
            "x",
            "--constraint",
            "node.colour==red",
            "web:v1",
        ],
        &["node.colour"],
    )?;
    host.refused(
        &[
            "service",
            "create",
            "--name",
            "x",
            "--network",
            "nosuch",
            "web:v1",
        ],
        &["nosuch"],
    )?;
    host.refused(
        &["service", "create", "--name", "x", "--secret", "nosuch", "web:v1"],
        &["nosuch"],
    )?;
    host.refused(&["service", "create", "--name", "-x", "web:v1"], &["name"])
        .or_else(|_| {
            // clap takes it for a flag, which is wrong usage.
            host.code(&["service", "create", "--name", "-x", "web:v1"], 125)
                .map(drop)
        })?;
    host.refused(&["service", "scale", "web=many"], &["web=many"])?;
    host.refused(&["service", "scale", "web=1", "nosuch=2"], &["nosuch"])?;
    host.refused(&["service", "rm", "nosuch"], &["nosuch"])?;
    host.refused(&["service", "rollback", "web"], &["web"])?;
    let broken = host.file("broken.tar", "this is no archive")?;
    host.refused(&["image", "load", "-i", &broken], &["broken.tar"])
        .or_else(|_| host.refused(&["image", "load", "-i", &broken], &["archive"]))?;
    for (text, part) in [
        ("services: {a: {image: 5, ports: {}}}", "stack.yml:1:"),
        ("services: {a: {image: x, portz: []}}", "did you mean ports?"),
        ("services: {a: {image: 'x:${NOSUCHVAR:?needed}'}}", "NOSUCHVAR"),
        // The second service is refused by the manager: nothing of the first may be there.
        (
            "services: {a: {image: web:v1}, b: {image: web:v1, ports: ['18181:80']}}",
            "18181",
        ),
        (
            "services: {a: {image: web:v1, networks: [n]}}\nnetworks: {n: {external: true}}",
            "network create",
        ),
    ] {
        let file = host.file("stack.yml", text)?;
        host.refused(&["stack", "deploy", "-c", &file, "bad"], &[part])?;
    }
    equal(host.everything()?, before)?;
    equal(get()?.ends_with("v1\n"), true)
}

fn adoption(host: &mut Host) -> Result<(), Failed> {
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    host.ok(&[
        "service",
        "create",
        "--name",
        "count",
        "--update-monitor",
        "0s",
        "web:v1",
        "sh",
        "-c",
        script,
    ])?;
    host.types("service create --name mortal --replicas 2 --update-monitor 0s --restart-delay 0s web:v1 sh -c 'while [ ! -e /stop ]; do sleep 0.02; done; exit 7'")?;
    let before = host.pids("")?;
    equal(before.len(), 3)?;
    host.kill_daemon()?;
    // One of them ends while nobody looks.
    let victim = before
        .iter()
        .find(|(name, _)| name.starts_with("mortal.1"))
        .map(|(_, pid)| *pid)
        .ok_or("mortal.1 does not run")?;
    fs::write(format!("/proc/{victim}/root/stop"), "")?;
    until("it ended", || {
        Ok(!Path::new(&format!("/proc/{victim}/root/bin")).exists())
    })?;
    host.boot()?;
    until("a replacement runs", || {
        let pids = host.pids("mortal.1")?;
        Ok(pids.len() == 1 && !pids.values().any(|p| *p == victim))
    })?;
    let after = host.pids("")?;
    for (name, pid) in before.iter().filter(|(_, pid)| **pid != victim) {
        equal((name, after.get(name)), (name, Some(pid)))?;
    }
    let errors = host.types("service ps --no-trunc --format '{{.CurrentState}} {{.Error}}' mortal")?;
    contains(&errors, "exit (7)").map_err(|_| format!("no exit code 7 in:\n{errors}"))?;
    // Not a line is missing.
    std::thread::sleep(Duration::from_millis(200));
    let log = host.ok(&["service", "logs", "--raw", "count"])?;
    let lines: Vec<&str> = log.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        equal(*line, format!("line {}", i + 1).as_str())?;
    }
    equal(lines.len() > 5, true)?;
    host.ok(&["service", "rm", "count", "mortal"])?;
    Ok(())
}

/// What storage outside the cluster is shown by a task.
fn fence(pid: u32) -> Result<u64, Failed> {
    let env = fs::read_to_string(format!("/proc/{pid}/environ"))?;
    let value = env.split('\0').find_map(|e| e.strip_prefix("RSWARM_FENCE="));
    Ok(value.ok_or("no RSWARM_FENCE in its environment")?.parse()?)
}

fn replacement(host: &mut Host) -> Result<(), Failed> {
    host.types(
        "service create --name web -p 18181:8080 --replicas 2 --update-monitor 0s --restart-delay 0s web:v1",
    )?;
    // A slot is one container; a service of two is not.
    host.refused(&["exec", "web", "true"], &["ambiguous"])?;
    let before = host.pids("web.1")?;
    let (_, pid) = before.iter().next().ok_or("web.1 does not run")?;
    let first_fence = fence(*pid)?;
    let raw = rustix::process::Pid::from_raw(i32::try_from(*pid)?).ok_or("no pid")?;
    rustix::process::kill_process(raw, rustix::process::Signal::KILL)?;
    let mut failed = 0;
    until("a replacement runs", || {
        failed += usize::from(get().is_err());
        let now = host.pids("web.1")?;
        Ok(now.len() == 1 && now != before)
    })?;
    println!("requests that failed while one of two was killed and replaced: {failed}");
    let after = host.pids("web.1")?;
    let (_, pid) = after.iter().next().ok_or("web.1 does not run")?;
    let next_fence = fence(*pid)?;
    equal(next_fence > first_fence && first_fence > 0, true)
        .map_err(|_| format!("fence {first_fence}, then {next_fence}"))?;
    let rows = host.types("service ps --no-trunc --format '{{.Name}} {{.CurrentState}} {{.Error}}' web")?;
    equal(rows.contains("Failed") && rows.contains("137"), true).map_err(|_| rows)?;
    // Memory over the limit is named as such.
    host.types("service create -d --name hungry --limit-memory 16m --restart-condition none web:v1 sh -c 'x=a; while :; do x=$x$x; done'")?;
    until("the OOM kill is named", || {
        let rows = host.types("service ps --no-trunc --format {{.Error}} hungry")?;
        Ok(rows.to_lowercase().contains("memory") || rows.to_lowercase().contains("oom"))
    })?;
    host.ok(&["service", "rm", "web", "hungry"])?;
    Ok(())
}

/// What was answered is there after the disk had room again; what was not, said why.
fn full_disk(host: &mut Host) -> Result<(), Failed> {
    host.types("service create --name web --update-monitor 0s --stop-signal KILL web:v1 sleep 1000")?;
    let before = host.pids("web.1")?;
    let filler = host.path("data/filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[1; 64 << 10]).is_ok() {}
    drop(file);
    let big = host.file("big", &"x".repeat(1 << 20))?;
    fs::write(host.path("image/big"), fs::read(&big)?)?;
    fs::write(host.path("image/Dockerfile"), "FROM scratch\nCOPY big /\n")?;
    let image = host.path("image").display().to_string();
    host.refused(&["image", "build", "-t", "big:1", &image], &["No space left"])?;
    // The log has room made before; once that is used up the manager waits rather than promise what it cannot keep.
    let config = host.file("config", &"y".repeat(900_000))?;
    let mut kept = Vec::new();
    let mut refusal = String::new();
    for i in 0..40 {
        let out = host.run(&["config", "create", &format!("c{i}"), &config])?;
        if !out.status.success() {
            refusal = String::from_utf8_lossy(&out.stderr).into_owned();
            break;
        }
        kept.push(format!("c{i}"));
    }
    contains(&refusal, "E_DISK_FULL")?;
    fs::remove_file(&filler)?;
    until("the manager goes on by itself", || {
        Ok(host.run(&["service", "scale", "-d", "web=2"])?.status.success())
    })?;
    let names = host.types("config ls --format {{.Name}}")?;
    for name in &kept {
        contains(&names, name)?;
    }
    equal(host.pids("web.1")?, before)?;
    until("the second task runs", || Ok(host.pids("web.2")?.len() == 1))?;
    Ok(())
}

/// Reports and assignments once went round for ever, each being news to the other side for its time alone.
fn quiet(host: &mut Host) -> Result<(), Failed> {
    host.types(
        "service create --name many --replicas 20 --update-monitor 0s --stop-signal KILL web:v1 sleep 1000",
    )?;
    let written = || -> Result<Vec<std::time::SystemTime>, Failed> {
        let mut all = Vec::new();
        for entry in fs::read_dir(host.path("data/raft"))? {
            all.push(entry?.metadata()?.modified()?);
        }
        Ok(all)
    };
    std::thread::sleep(Duration::from_secs(1));
    let before = written()?;
    equal(before.is_empty(), false)?;
    std::thread::sleep(Duration::from_secs(3));
    equal(written()?, before)?;
    host.ok(&["service", "rm", "many"])?;
    Ok(())
}

fn cycles(host: &mut Host) -> Result<(), Failed> {
    const TOGETHER: usize = 50;
    host.types(
        "service create --name many --replicas 0 --update-monitor 0s --stop-signal KILL web:v1 sleep 1000",
    )?;
    let daemon = host.daemon.as_ref().ok_or("no daemon")?.id();
    let counts = || -> Result<BTreeMap<String, usize>, Failed> {
        let mut all: BTreeMap<String, usize> =
            machine().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        all.insert(
            "descriptors".into(),
            fs::read_dir(format!("/proc/{daemon}/fd"))?.count(),
        );
        let children = |pid: u32| -> usize {
            fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| {
                tasks
                    .flatten()
                    .filter_map(|t| fs::read_to_string(t.path().join("children")).ok())
                    .map(|t| t.split_whitespace().count())
                    .sum()
            })
        };
        all.insert("children".into(), children(daemon));
        let mut cgroups = 0;
        for controller in ["memory", "cpu", "cpuacct", "pids"] {
            let folder = Path::new("/sys/fs/cgroup")
                .join(controller)
                .join("rswarm/hosttest");
            cgroups += fs::read_dir(folder).map_or(0, |d| d.flatten().filter(|e| e.path().is_dir()).count());
        }
        all.insert("container cgroups".into(), cgroups);
        let containers = fs::read_dir(host.path("data")).map_or(0, |_| {
            walk(&host.path("data"), "containers").map_or(0, |f| fs::read_dir(f).map_or(0, Iterator::count))
        });
        all.insert("container folders".into(), containers);
        all.insert(
            "mounts of the daemon".into(),
            fs::read_to_string(format!("/proc/{daemon}/mountinfo"))?
                .lines()
                .count(),
        );
        Ok(all)
    };
    let mut first = None;
    let began = Instant::now();
    for round in 0..=1000 / TOGETHER {
        host.ok(&["service", "scale", "-q", &format!("many={TOGETHER}")])?;
        host.ok(&["service", "scale", "-q", "many=0"])?;
        until("all are gone", || {
            Ok(host.ok(&["service", "ps", "-q", "many"])?.is_empty())
        })?;
        if round == 0 {
            // The first round opens what stays open; a task is forgotten before its folder is gone.
            until("its folders are gone", || Ok(counts()?["container folders"] == 0))?;
            first = Some(counts()?);
        }
    }
    println!(
        "{:.1} ms a start and stop",
        began.elapsed().as_secs_f64() * 1e3 / 1050.0
    );
    let first = first.ok_or("no round")?;
    // A descriptor may be on its way, so that the last look is given some time.
    let mut last = counts()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while last != first && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        last = counts()?;
    }
    equal(last, first)?;
    host.ok(&["service", "rm", "many"])?;
    Ok(())
}

/// A folder of that name below another.
fn walk(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        if entry.file_type().is_ok_and(|t| t.is_dir())
            && let Some(found) = walk(&entry.path(), name)
        {
            return Some(found);
        }
    }
    None
}
