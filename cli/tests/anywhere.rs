//! Three hosts, each in a network namespace: what runs on any of them is reached from the one manager.
//!
//! Needs root, busybox and `ip`. One cluster serves all tests, in their order; it leaves nothing behind.

#[path = "common/check.rs"]
mod check;
#[path = "common/wait.rs"]
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use check::{contains, equal};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal};
use rustix::termios::Winsize;
use wait::{PATIENCE, until};

/// Hosts; the first is the manager, and runs no tasks.
const HOSTS: usize = 3;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let tools = ["/bin/busybox", "/sbin/ip", "/usr/bin/nsenter"].map(Path::new);
    if !rustix::process::geteuid().is_root() || !tools.iter().all(|t| t.exists()) {
        println!(
            "skipped: the tests of several hosts need root, /bin/busybox (Debian: busybox-static), /sbin/ip (iproute2) and nsenter (util-linux)"
        );
        return ExitCode::SUCCESS;
    }
    type Test = fn(&mut Cluster) -> Result<(), Failed>;
    let all: &[(&'static str, Test)] = &[
        ("the cluster stands", |c| c.deploy()),
        ("exec keeps exit codes, input and output across nodes", exec),
        ("exec has a terminal across nodes", terminal),
        ("a lost client takes its process along", lost_client),
        ("files are copied both ways across nodes", copies),
        ("stats and top see any node", looks),
        ("logs of all nodes come as one", logs),
        ("a reader that stalls holds nobody up", stalled),
        ("following outlives a node and picks it up again", follow),
        ("a dead node costs one warning and no wait", dead_node),
    ];
    // Whether it was started, and what came of it.
    let cluster = Arc::new(Mutex::new((false, None::<Cluster>)));
    let trials = all.iter().map(|(name, test)| {
        let cluster = cluster.clone();
        Trial::test(*name, move || {
            let mut cluster = cluster.lock().map_err(|_| "an earlier test failed")?;
            if !std::mem::replace(&mut cluster.0, true) {
                cluster.1 = Some(Cluster::start()?);
            }
            let cluster = cluster
                .1
                .as_mut()
                .ok_or("there is no cluster, see the first test")?;
            test(cluster).inspect_err(|_| cluster.show_logs())
        })
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    let left = match cluster.lock().map(|mut c| c.1.take()) {
        Ok(Some(cluster)) => cluster.end(),
        Ok(None) | Err(_) => Ok(()),
    };
    if let Err(failed) = left {
        eprintln!("left behind: {failed:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn ip(line: &str) -> Result<(), Failed> {
    let out = Command::new("/sbin/ip").args(line.split_whitespace()).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("ip {line}: {}", String::from_utf8_lossy(&out.stderr)).into())
}

fn signal(child: &Child, signal: Signal) -> Result<(), Failed> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("no pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// Waits for the end of a process, and kills it when it does not come.
fn end_of(mut child: Child) -> Result<Option<i32>, Failed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(format!("it did not end within {PATIENCE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    daemons: BTreeMap<usize, Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.values_mut() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for host in 1..=HOSTS {
            let _ = ip(&format!("netns del anywhere{host}"));
        }
        let _ = ip("netns del anywhere");
    }
}

impl Cluster {
    fn start() -> Result<Self, Failed> {
        let mut cluster = Self {
            dir: tempfile::tempdir()?,
            daemons: BTreeMap::new(),
        };
        ip("netns add anywhere")?;
        ip("-n anywhere link add br0 type bridge")?;
        ip("-n anywhere link set br0 up")?;
        for host in 1..=HOSTS {
            ip(&format!("netns add anywhere{host}"))?;
            ip(&format!("-n anywhere{host} link set lo up"))?;
            ip(&format!(
                "-n anywhere link add v{host} type veth peer name eth0 netns anywhere{host}"
            ))?;
            ip(&format!("-n anywhere link set v{host} master br0 up"))?;
            ip(&format!("-n anywhere{host} addr add 10.98.0.{host}/24 dev eth0"))?;
            ip(&format!("-n anywhere{host} link set eth0 up"))?;
            fs::create_dir(cluster.path(&format!("{host}")))?;
            cluster.boot(host)?;
        }
        cluster.ok(1, "swarm init --advertise-addr 10.98.0.1 --availability drain")?;
        cluster.ok(1, "swarm update --dispatcher-heartbeat 1s")?;
        let token = cluster.ok(1, "swarm join-token -q worker")?;
        for host in 2..=HOSTS {
            let address = format!("10.98.0.{host}");
            cluster.ok(
                host,
                &format!(
                    "swarm join --token {} --advertise-addr {address} 10.98.0.1:2377",
                    token.trim()
                ),
            )?;
        }
        cluster.images()?;
        Ok(cluster)
    }

    fn images(&self) -> Result<(), Failed> {
        let image = self.path("image");
        fs::create_dir_all(image.join("bin"))?;
        fs::copy("/bin/busybox", image.join("bin/busybox"))?;
        for applet in [
            "sh", "sleep", "cat", "echo", "id", "ls", "stat", "stty", "seq", "yes", "head", "wc",
        ] {
            symlink("busybox", image.join("bin").join(applet))?;
        }
        fs::create_dir(image.join("etc"))?;
        fs::write(
            image.join("etc/passwd"),
            "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n",
        )?;
        fs::write(
            image.join("Dockerfile"),
            "FROM scratch\nCOPY bin /bin\nCOPY etc /etc\n",
        )?;
        for host in 2..=HOSTS {
            self.ok(host, &format!("image build -q -t box {}", image.display()))?;
        }
        Ok(())
    }

    fn deploy(&self) -> Result<(), Failed> {
        let tick = "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.1; done";
        let mut words = vec![
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "box",
            "sh",
            "-c",
        ];
        words.push(tick);
        self.code(1, &words, 0)?;
        equal(
            self.places()?.values().cloned().collect::<BTreeSet<_>>(),
            BTreeSet::from(["h2".into(), "h3".into()]),
        )
    }

    /// Node of each task that is to run, by name.
    fn places(&self) -> Result<BTreeMap<String, String>, Failed> {
        let format = "{{.Name}} {{.Node}}";
        let words = [
            "service",
            "ps",
            "web",
            "--filter",
            "desired-state=running",
            "--format",
            format,
        ];
        let text = self.code(1, &words, 0)?;
        Ok(text
            .lines()
            .filter_map(|l| l.split_once(' '))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect())
    }

    fn on(&self, host: &str) -> Result<String, Failed> {
        let places = self.places()?;
        let found = places.iter().find(|(_, place)| *place == host);
        Ok(found
            .ok_or_else(|| format!("nothing on {host}: {places:?}"))?
            .0
            .clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn boot(&mut self, host: usize) -> Result<(), Failed> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{host}/log")))?;
        // Not `ip netns exec`, which hides the cgroups behind a /sys of its own.
        let daemon = Command::new("/usr/bin/nsenter")
            .args([
                &format!("--net=/run/netns/anywhere{host}"),
                env!("CARGO_BIN_EXE_rswarm"),
            ])
            .arg("--socket")
            .arg(self.path(&format!("{host}/sock")))
            .args([
                "daemon",
                "--hostname",
                &format!("h{host}"),
                "--dataplane",
                &format!("any{host}"),
                "--data-dir",
            ])
            .arg(self.path(&format!("{host}/data")))
            .stderr(log)
            .spawn()?;
        self.daemons.insert(host, daemon);
        until("the daemon answers", || {
            Ok(self.run(host, &["info"])?.status.success())
        })
    }

    fn kill(&mut self, host: usize) -> Result<(), Failed> {
        if let Some(mut daemon) = self.daemons.remove(&host) {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    fn show_logs(&self) {
        for host in 1..=HOSTS {
            let text = fs::read_to_string(self.path(&format!("{host}/log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("h{host}:\n{}", lines[lines.len().saturating_sub(8)..].join("\n"));
        }
    }

    fn command(&self, host: usize, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command
            .arg("--socket")
            .arg(self.path(&format!("{host}/sock")))
            .args(words)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, host: usize, words: &[&str]) -> Result<Output, Failed> {
        Ok(self.command(host, words).output()?)
    }

    fn ok(&self, host: usize, line: &str) -> Result<String, Failed> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        self.code(host, &words.iter().map(String::as_str).collect::<Vec<_>>(), 0)
    }

    /// Runs what must end with this code; answers its output, and what it complained of.
    fn code(&self, host: usize, words: &[&str], code: i32) -> Result<String, Failed> {
        let out = self.run(host, words)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let errors = String::from_utf8_lossy(&out.stderr);
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

    fn refused(&self, line: &str, part: &str) -> Result<(), Failed> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        let text = self.code(1, &words.iter().map(String::as_str).collect::<Vec<_>>(), 1)?;
        contains(&text, part)
    }

    /// What one command gets on standard input, and prints.
    fn piped(&self, line: &str, input: &[u8]) -> Result<Output, Failed> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut child = self
            .command(1, &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no input")?;
        let input = input.to_owned();
        let typing = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let out = child.wait_with_output()?;
        typing.join().map_err(|_| "the input panicked")?;
        Ok(out)
    }

    /// Takes everything down; fails when something is left.
    fn end(mut self) -> Result<(), Failed> {
        for host in (1..=HOSTS).rev() {
            if !self.daemons.contains_key(&host) {
                self.boot(host)?;
            }
            self.ok(host, "swarm leave --force")?;
        }
        let cgroups = || {
            let kinds = ["memory", "cpu", "cpuacct", "pids", "blkio", ""];
            let folder = |kind: &str, host| {
                Path::new("/sys/fs/cgroup")
                    .join(kind)
                    .join(format!("rswarm/any{host}"))
            };
            kinds
                .iter()
                .any(|kind| (1..=HOSTS).any(|host| folder(kind, host).exists()))
        };
        until("everything is taken down", || Ok(!cgroups()))?;
        for (host, mut daemon) in std::mem::take(&mut self.daemons) {
            signal(&daemon, Signal::TERM)?;
            let code = daemon.wait()?.code();
            equal((host, code), (host, Some(0)))?;
        }
        let own = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        equal(mounts.lines().filter(|l| l.contains(&own)).count(), 0)
    }
}

fn exec(c: &mut Cluster) -> Result<(), Failed> {
    let (two, three) = (c.on("h2")?, c.on("h3")?);
    for task in [&two, &three] {
        let text = c.ok(1, &format!("exec {task} cat /etc/hostname"))?;
        equal(text.is_empty(), false)?;
        c.code(1, &["exec", task, "sh", "-c", "exit 7"], 7)?;
        c.code(1, &["exec", task, "sh", "-c", "kill -9 $$"], 137)?;
        let text = c.code(1, &["exec", task, "no-such-program"], 127)?;
        contains(&text, "no-such-program")?;
    }
    // By the whole name of its container, by the beginning of its task's id, and at its node.
    let id = c.ok(1, &format!("service ps web --no-trunc -q --filter name={two}"))?;
    let id = id.lines().next().ok_or("no task")?.to_owned();
    equal(
        c.ok(1, &format!("exec {two}.{id} echo by name"))?.as_str(),
        "by name\n",
    )?;
    equal(
        c.ok(1, &format!("exec {} echo by id", &id[..16]))?.as_str(),
        "by id\n",
    )?;
    equal(
        c.ok(1, &format!("exec --node h2 {two} echo there"))?.as_str(),
        "there\n",
    )?;
    c.refused(&format!("exec --node h3 {two} echo there"), "No such container")?;
    c.refused("exec nosuch true", "No such container")?;
    // A service: any of its tasks; and one of them.
    equal(c.ok(1, "service exec web -- echo any")?.as_str(), "any\n")?;
    equal(
        c.ok(1, &format!("service exec {three} -- echo one"))?.as_str(),
        "one\n",
    )?;
    // Streams stay apart, and input ends.
    let out = c.piped(
        &format!("exec -i {three} sh -c 'wc -c; echo oops >&2; exit 3'"),
        &vec![b'x'; 3_000_000],
    )?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    equal(
        (text(&out.stdout), text(&out.stderr), out.status.code()),
        ("3000000\n".into(), "oops\n".into(), Some(3)),
    )?;
    // What it leaves behind does not keep its caller.
    let began = Instant::now();
    equal(
        c.ok(1, &format!("exec {two} sh -c 'sleep 60 & echo done'"))?
            .as_str(),
        "done\n",
    )?;
    equal(began.elapsed() < Duration::from_secs(20), true)
}

/// A pair of ends of a terminal.
fn pty(rows: u16, cols: u16) -> Result<(OwnedFd, OwnedFd), Failed> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(
        &ours,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    size(&ours, rows, cols)?;
    Ok((ours, theirs))
}

fn size(terminal: &OwnedFd, rows: u16, cols: u16) -> Result<(), Failed> {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

fn terminal(c: &mut Cluster) -> Result<(), Failed> {
    let task = c.on("h3")?;
    let (ours, theirs) = pty(40, 100)?;
    let child = c
        .command(1, &["exec", "-it", &task, "sh"])
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs))
        .spawn()?;
    let mut screen = fs::File::from(ours.try_clone()?);
    let mut keys = fs::File::from(ours.try_clone()?);
    let (sender, shown) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        while let Ok(n @ 1..) = screen.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut text = String::new();
    let mut wait_for = |part: &str| -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        while !text.contains(part) {
            let left = deadline.saturating_duration_since(Instant::now());
            let piece = shown
                .recv_timeout(left)
                .map_err(|_| format!("no \"{part}\" on the screen:\n{text}"))?;
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text.clear();
        Ok(())
    };
    keys.write_all(b"echo 'si''ze' $(stty size)\n")?;
    wait_for("size 40 100")?;
    size(&ours, 50, 120)?;
    signal(&child, Signal::WINCH)?;
    until("the size arrives", || {
        keys.write_all(b"echo 'si''ze' $(stty size)\n")?;
        Ok(wait_for("size 50 120").is_ok())
    })?;
    // Ctrl-C goes to what runs in there, not to this end.
    keys.write_all(b"sleep 600\n")?;
    until("it sleeps", || {
        Ok(c.ok(1, &format!("top {task}"))?.contains("sleep 600"))
    })?;
    keys.write_all(&[3])?;
    keys.write_all(b"echo 'still' 'here'; exit 9\n")?;
    wait_for("still here")?;
    equal(end_of(child)?, Some(9))
}

fn lost_client(c: &mut Cluster) -> Result<(), Failed> {
    let task = c.on("h3")?;
    // It reads nothing, so what it is sent is stuck on the way.
    let mut child = c
        .command(1, &["exec", "-i", &task, "sleep", "654"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    let typing = std::thread::spawn(move || while stdin.write_all(&[b'x'; 65_536]).is_ok() {});
    let runs = || Ok::<_, Failed>(c.ok(1, &format!("top {task}"))?.contains("sleep 654"));
    until("it runs", runs)?;
    child.kill()?;
    child.wait()?;
    typing.join().map_err(|_| "the input panicked")?;
    until("it ended with its caller", || Ok(!runs()?))
}

fn copies(c: &mut Cluster) -> Result<(), Failed> {
    let task = c.on("h3")?;
    let tree = c.path("tree");
    fs::create_dir_all(tree.join("sub"))?;
    fs::write(tree.join("sub/script"), "#!/bin/sh\n")?;
    symlink("sub/script", tree.join("link"))?;
    // More than any window on the way.
    let big: Vec<u8> = (0..20_000_000u32)
        .flat_map(|n| (n / 7919).to_le_bytes())
        .take(20_000_000)
        .collect();
    fs::write(tree.join("big"), &big)?;
    rustix::fs::chownat(
        rustix::fs::CWD,
        tree.join("sub/script"),
        Some(rustix::fs::Uid::from_raw(1000)),
        None,
        rustix::fs::AtFlags::empty(),
    )?;
    // After the owner, whose change clears the bit.
    fs::set_permissions(tree.join("sub/script"), fs::Permissions::from_mode(0o4750))?;
    c.ok(1, &format!("cp -q tree {task}:/copied"))?;
    let stat = format!("exec {task} stat -c '%u %a' /copied/sub/script");
    equal(c.ok(1, &stat)?.as_str(), "0 4750\n")?;
    c.ok(1, &format!("cp -q -a tree/. {task}:/copied/"))?;
    equal(c.ok(1, &stat)?.as_str(), "1000 4750\n")?;
    // And back: as mine and without privileges, or as it is.
    let out = c.run(1, &["cp", &format!("{task}:/copied"), "back"])?;
    contains(
        &String::from_utf8_lossy(&out.stderr),
        "Successfully copied 20MB to back",
    )?;
    equal(fs::read(c.path("back/big"))? == big, true)?;
    equal(fs::read_link(c.path("back/link"))?, PathBuf::from("sub/script"))?;
    let script = fs::metadata(c.path("back/sub/script"))?;
    equal((script.uid(), script.mode() & 0o7777), (0, 0o750))?;
    c.ok(1, &format!("cp -q -a {task}:/copied/. back"))?;
    let script = fs::metadata(c.path("back/sub/script"))?;
    equal((script.uid(), script.mode() & 0o7777), (1000, 0o4750))?;
    c.ok(1, &format!("cp -q -L {task}:/copied/link followed"))?;
    equal(fs::symlink_metadata(c.path("followed"))?.is_file(), true)?;
    // Of a task that failed, what it left is there still.
    let words = [
        "service",
        "create",
        "-d",
        "--name",
        "crash",
        "--restart-condition",
        "none",
        "box",
        "sh",
        "-c",
    ];
    c.code(1, &[&words[..], &["echo core > /core; exit 3"]].concat(), 0)?;
    until("it has failed", || {
        Ok(c.ok(1, "service ps crash --format {{.CurrentState}}")?
            .starts_with("Failed"))
    })?;
    c.ok(1, "cp -q crash.1:/core core")?;
    equal(fs::read_to_string(c.path("core"))?.as_str(), "core\n")?;
    c.ok(1, "service rm crash")?;
    // As tars.
    let tar = c.piped(&format!("cp {task}:/copied/sub -"), b"")?;
    let out = c.piped(&format!("cp -q - {task}:/etc"), &tar.stdout)?;
    equal(out.status.code(), Some(0))?;
    equal(c.ok(1, &format!("exec {task} ls /etc/sub"))?.as_str(), "script\n")?;
    // What is refused: a way out, no tar, a device, and what is not there.
    c.refused(&format!("cp {task}:/../../etc/shadow out"), "E_PATH")?;
    c.refused(&format!("cp {task}:/proc/1/environ out"), "E_PATH")?;
    c.refused(&format!("cp {task}:/nosuch out"), "no such file")?;
    c.refused("cp tree back", "CONTAINER:PATH")?;
    let out = c.piped(&format!("cp - {task}:/etc"), &[7; 4096])?;
    equal(out.status.code(), Some(1))?;
    contains(&String::from_utf8_lossy(&out.stderr), "E_TAR_FORMAT")?;
    // A container that makes its destination a link to the host's files only fools itself.
    let up = format!("../../../../../../../..{}", c.dir.path().display());
    c.ok(1, &format!("exec {task} /bin/busybox mkdir /x"))?;
    c.ok(1, &format!("exec {task} /bin/busybox ln -s {up} /x/out"))?;
    fs::write(c.path("evil"), "evil")?;
    let _ = c.run(1, &["cp", "evil", &format!("{task}:/x/out/planted")])?;
    equal(c.path("planted").exists(), false)
}

fn looks(c: &mut Cluster) -> Result<(), Failed> {
    let (two, three) = (c.on("h2")?, c.on("h3")?);
    let text = c.ok(1, "stats --no-stream --cluster")?;
    let head = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = head
        .split("   ")
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .collect();
    equal(
        words,
        vec![
            "CONTAINER ID",
            "NAME",
            "CPU %",
            "MEM USAGE / LIMIT",
            "MEM %",
            "NET I/O",
            "BLOCK I/O",
            "PIDS",
            "NODE",
        ],
    )?;
    equal(text.lines().count(), 3)?;
    for (task, node) in [(&two, "h2"), (&three, "h3")] {
        let line = text
            .lines()
            .find(|l| l.contains(task.as_str()))
            .ok_or("no line")?;
        contains(line, node)?;
        contains(line, "B / ")?;
        contains(line, "%")?;
    }
    let line = c.ok(
        1,
        &format!("stats --no-stream --format '{{{{.Name}}}} {{{{.PIDs}}}} {{{{.MemUsage}}}}' {two}"),
    )?;
    equal(line.lines().count(), 1)?;
    contains(&line, &two)?;
    equal(c.ok(1, "stats --no-stream web")?.lines().count(), 3)?;
    equal(c.ok(2, "stats --no-stream")?.lines().count(), 2)?;
    let text = c.ok(1, &format!("top {three}"))?;
    equal(
        text.lines()
            .next()
            .map(|l| l.split_whitespace().collect::<Vec<_>>()),
        Some("UID PID PPID C STIME TTY TIME CMD".split(' ').collect()),
    )?;
    contains(&text, "root")?;
    contains(&text, "sh -c i=0;")?;
    let text = c.ok(1, &format!("top {three} -o cpid,comm"))?;
    contains(&text, "CPID   COMMAND\n1 ")?;
    c.refused(&format!("top {three} --forest"), "--forest")
}

fn logs(c: &mut Cluster) -> Result<(), Failed> {
    let (two, three) = (c.on("h2")?, c.on("h3")?);
    let text = c.ok(1, "service logs --timestamps --tail 30 web")?;
    equal(text.lines().count(), 60)?;
    let times: Vec<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
    equal(times.is_sorted(), true)?;
    for (task, node) in [(&two, "@h2    | tick "), (&three, "@h3    | tick ")] {
        let of: Vec<&str> = text
            .lines()
            .filter(|l| l.contains(&format!(" {task}.")))
            .collect();
        equal(of.len(), 30)?;
        contains(of[0], node)?;
    }
    // They take turns, as their times do.
    let turns = text
        .lines()
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|w| w[0].contains("@h2") != w[1].contains("@h2"))
        .count();
    equal(turns > 10, true)?;
    let raw = c.ok(1, "service logs --raw --tail 2 web")?;
    equal(raw.lines().all(|l| l.starts_with("tick ")), true)?;
    let one = c.ok(1, &format!("service logs --no-task-ids --tail 3 {three}"))?;
    equal(
        one.lines()
            .all(|l| l.starts_with(&format!("{three}@h3    | tick "))),
        true,
    )?;
    equal(one.lines().count(), 3)?;
    let one = c.ok(1, &format!("logs --tail 4 {two}"))?;
    equal((one.lines().count(), one.starts_with("tick ")), (4, true))?;
    c.refused("service logs nosuch", "no such task or service")
}

/// Somebody who follows much output and takes none must not hold up another call to the same node.
fn stalled(c: &mut Cluster) -> Result<(), Failed> {
    let task = c.on("h3")?;
    let mut readers = Vec::new();
    for _ in 0..6 {
        let child = c
            .command(1, &["exec", &task, "yes", "nobody reads this"])
            .stdout(Stdio::piped())
            .spawn()?;
        readers.push(child);
    }
    let yes = || Ok::<_, Failed>(c.ok(1, &format!("top {task}"))?.matches("yes nobody").count() == 6);
    until("they all write", yes)?;
    let began = Instant::now();
    for _ in 0..5 {
        equal(c.ok(1, &format!("exec {task} echo quick"))?.as_str(), "quick\n")?;
    }
    equal(began.elapsed() < Duration::from_secs(20), true)?;
    for mut reader in readers {
        reader.kill()?;
        reader.wait()?;
    }
    until("they ended", || {
        Ok(!c.ok(1, &format!("top {task}"))?.contains("yes nobody"))
    })
}

/// Lines of a running `service logs -f`, as they come.
struct Followed {
    child: Child,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
    seen: Vec<String>,
}

fn lines_of(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Followed {
    fn start(c: &Cluster, words: &[&str]) -> Result<Self, Failed> {
        let mut child = c
            .command(1, words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            lines: lines_of(child.stdout.take().ok_or("no output")?),
            errors: lines_of(child.stderr.take().ok_or("no errors")?),
            child,
            seen: Vec::new(),
        })
    }

    /// Reads until so many new lines of a node came.
    fn more(&mut self, node: &str, mut count: usize) -> Result<(), Failed> {
        let (deadline, mark) = (Instant::now() + PATIENCE, format!("@{node} "));
        while count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.map_err(|_| {
                format!(
                    "no more lines of {node}; the last ones: {:?}",
                    self.seen.iter().rev().take(3).collect::<Vec<_>>()
                )
            })?;
            count -= usize::from(line.contains(&mark));
            self.seen.push(line);
        }
        Ok(())
    }

    /// Each task's lines: all of them, each once, in order.
    fn check(&self) -> Result<BTreeMap<String, u64>, Failed> {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        for line in &self.seen {
            let (task, text) = line
                .split_once(" | ")
                .ok_or_else(|| format!("no prefix: {line}"))?;
            let number: u64 = text.trim().strip_prefix("tick ").ok_or("no tick")?.parse()?;
            let known = next.entry(task.trim().to_owned()).or_insert(0);
            if number != *known + 1 {
                return Err(format!("{task}: tick {number} after {known}").into());
            }
            *known = number;
        }
        Ok(next)
    }
}

fn follow(c: &mut Cluster) -> Result<(), Failed> {
    let lost = c.on("h3")?;
    let mut followed = Followed::start(c, &["service", "logs", "-f", "web"])?;
    followed.more("h2", 20)?;
    followed.more("h3", 20)?;
    c.kill(3)?;
    let warning = followed.errors.recv_timeout(PATIENCE)?;
    for part in ["WARNING", "node h3", &lost, "until it is back"] {
        contains(&warning, part)?;
    }
    // The other goes on, and so does what takes the lost one's place.
    followed.more("h2", 20)?;
    until("its task is replaced", || {
        Ok(c.places()?.len() == 2 && c.places()?.values().all(|n| n == "h2"))
    })?;
    let new = c.ok(1, "service ps web --no-trunc -q --filter desired-state=running")?;
    equal(new.lines().count(), 2)?;
    until("the new task's lines come", || {
        followed.more("h2", 5)?;
        Ok(new.lines().all(|id| {
            followed
                .seen
                .iter()
                .any(|l| l.contains(&format!(".{}@h2", &id[..12])))
        }))
    })?;
    // Its container went on without a daemon: what it said meanwhile comes, and nothing twice.
    c.boot(3)?;
    followed.more("h3", 10)?;
    let seen = followed.check()?;
    equal(seen.len(), 3)?;
    c.ok(1, "service rm web")?;
    let rest: Vec<String> = followed.lines.iter().collect();
    followed.seen.extend(rest);
    followed.check()?;
    equal(followed.errors.iter().collect::<Vec<_>>(), Vec::<String>::new())?;
    equal(end_of(followed.child)?, Some(0))
}

fn dead_node(c: &mut Cluster) -> Result<(), Failed> {
    c.deploy()?;
    let (two, three) = (c.on("h2")?, c.on("h3")?);
    until("both have said something", || {
        Ok(c.ok(1, "service logs web")?.lines().count() > 40)
    })?;
    // Its cable is pulled: nothing is refused, nothing answers.
    let mut followed = Followed::start(c, &["service", "logs", "-f", "--tail", "5", "web"])?;
    followed.more("h3", 10)?;
    let mut held = c
        .command(1, &["exec", &three, "sleep", "600"])
        .stderr(Stdio::piped())
        .spawn()?;
    until("it runs", || {
        Ok(c.ok(1, &format!("top {three}"))?.contains("sleep 600"))
    })?;
    ip("-n anywhere link set v3 down")?;
    let began = Instant::now();
    let out = c.run(1, &["service", "logs", "--tail", "3", "web"])?;
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    equal((out.status.code(), errors.lines().count()), (Some(0), 1))?;
    contains(&errors, &three)?;
    contains(&String::from_utf8_lossy(&out.stdout), &two)?;
    // A session on it ends with a reason.
    let mut reason = String::new();
    held.stderr
        .take()
        .ok_or("no errors")?
        .read_to_string(&mut reason)?;
    equal(end_of(held)?, Some(1))?;
    contains(&reason, "node h3 was lost")?;
    let warning = followed.errors.recv_timeout(PATIENCE)?;
    contains(&warning, "node h3")?;
    followed.more("h2", 5)?;
    until("it is down", || {
        Ok(c.ok(1, "node ls --format '{{.Hostname}} {{.Status}}'")?
            .contains("h3 Down"))
    })?;
    let again = Instant::now();
    let out = c.run(1, &["service", "logs", "web"])?;
    equal(
        (out.status.code(), again.elapsed() < Duration::from_secs(5)),
        (Some(0), true),
    )?;
    contains(&String::from_utf8_lossy(&out.stderr), "down")?;
    let id = c.ok(
        1,
        &format!("service ps web --no-trunc -q --filter name={three} --filter node=h3"),
    )?;
    c.refused(
        &format!("exec {} true", id.lines().next().ok_or("no task")?),
        "down",
    )?;
    contains(
        &String::from_utf8_lossy(&c.run(1, &["stats", "--no-stream", "--cluster"])?.stderr),
        "node h3 is down",
    )?;
    equal(began.elapsed() < PATIENCE, true)?;
    ip("-n anywhere link set v3 up")?;
    c.ok(1, "service rm web")?;
    followed.lines.iter().for_each(drop);
    equal(followed.errors.iter().count(), 0)?;
    equal(end_of(followed.child)?, Some(0))
}
