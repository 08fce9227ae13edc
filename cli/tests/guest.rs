//! Whole machines: guests of QEMU with Debian's kernel and the real binary, for what needs a kernel of its own.
//!
//! That is cgroup v2 with all controllers, the loss of power, and hosts that are a cluster. Needs what `.ci/guest`
//! brings; the host's own network, mounts and namespaces are not touched.

#[path = "common/check.rs"]
mod check;
#[path = "guest/initramfs.rs"]
mod initramfs;
#[path = "guest/kernel.rs"]
mod kernel;
#[path = "guest/qemu.rs"]
mod qemu;
#[path = "guest/wire.rs"]
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use check::{contains, equal};
use kernel::Kernel;
use qemu::{Guest, Machines};

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds of a guest's time after which a host without power must be seen as down.
const DOWN_WITHIN: f64 = 6.0;
/// Where the daemon keeps the cgroups of its containers.
const CGROUPS: &str = "/sys/fs/cgroup/rswarm/rswarm";
/// Lists the tasks that are to run.
const TASKS: &str = "rswarm service ps -q --filter desired-state=running web";

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Each machine takes a processor.
    args.test_threads = Some(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    // As the kernel will name it, so that processes are found by it.
    let folder = fs::canonicalize(&folder).unwrap_or(folder);
    let (kernel, busybox) = match tools(&folder) {
        Ok(found) => found,
        Err(missing) => {
            println!("skipped: guests need {missing}; `.ci/guest` brings it");
            // There it has been run, so that what is missing is a fault.
            let ci = std::env::var_os("CI").is_some_and(|v| v == "true");
            return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if args.list {
        return libtest_mimic::run(&args, trials(None)).exit_code();
    }
    let binary = std::env::var_os("RSWARM_GUEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_rswarm")), PathBuf::from);
    let machines = match Machines::new(&folder, &kernel, &binary, &busybox) {
        Ok(machines) => Arc::new(machines),
        Err(failed) => {
            eprintln!(
                "make what guests boot from: {}",
                failed.message().unwrap_or_default()
            );
            return ExitCode::FAILURE;
        }
    };
    println!(
        "guests run {} by {}",
        binary.display(),
        if qemu::kvm() { "KVM" } else { "emulation" }
    );
    let own = machines.folder().to_owned();
    let conclusion = libtest_mimic::run(&args, trials(Some(machines)));
    let left = processes_in(&own);
    if own.exists() || !left.is_empty() {
        eprintln!("left behind: processes {left:?} and {}", own.display());
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// What is there to boot a guest with, or what is missing.
fn tools(folder: &Path) -> Result<(Kernel, PathBuf), &'static str> {
    let in_path = |name: &str| {
        std::env::var_os("PATH").and_then(|all| {
            std::env::split_paths(&all)
                .map(|p| p.join(name))
                .find(|p| p.exists())
        })
    };
    in_path("qemu-system-x86_64").ok_or("qemu-system-x86_64 (Debian: qemu-system-x86)")?;
    in_path("mke2fs").ok_or("mke2fs (Debian: e2fsprogs)")?;
    let busybox = in_path("busybox").ok_or("busybox (Debian: busybox-static)")?;
    let kernel = Kernel::find(&folder.join("kernel")).ok_or("a kernel in target/guest/kernel")?;
    Ok((kernel, busybox))
}

type Test = fn(&Machines) -> Result<(), Failed>;

fn trials(machines: Option<Arc<Machines>>) -> Vec<Trial> {
    let all: &[(&'static str, Test)] = &[
        ("a guest goes with its test, however that ends", hygiene),
        ("one host keeps the limits of cgroup v2", limits),
        ("one host comes back after a power cut", power_cut),
        ("a kernel without IPv6, and one without its tables", without_ipv6),
        ("two hosts are a cluster and survive a power cut of one", cluster),
        ("two hosts encrypt, by the kernel and without it", encrypted),
    ];
    let trial = |(name, test): &(&'static str, Test)| {
        let (test, machines) = (*test, machines.clone());
        Trial::test(*name, move || {
            let machines = machines.ok_or("nothing to boot")?;
            let began = Instant::now();
            let outcome = test(&machines);
            println!("  {:.1} s", began.elapsed().as_secs_f64());
            outcome?;
            equal(processes_in(machines.folder()), Vec::new())
        })
    };
    all.iter().map(trial).collect()
}

/// Processes that work in a folder of ours, as every QEMU does.
fn processes_in(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().parse();
        let cwd = fs::read_link(entry.path().join("cwd"));
        if let (Ok(pid), Ok(cwd)) = (pid, cwd)
            && cwd.starts_with(folder)
        {
            found.push(pid);
        }
    }
    found
}

/// Shows what guests said last when a test of theirs failed.
fn told(outcome: Result<(), Failed>, guests: &mut [&mut Guest]) -> Result<(), Failed> {
    if outcome.is_err() {
        for guest in guests {
            eprintln!("{}", guest.last_words());
        }
    }
    outcome
}

/// Neither a failed assertion nor the death of the test process leaves a machine running.
fn hygiene(machines: &Machines) -> Result<(), Failed> {
    let mut guest = machines.guest("a", 1)?;
    equal(processes_in(machines.folder()), guest.pid().into_iter().collect())?;
    equal(guest.abandon()?, true)?;
    let panicked = std::panic::catch_unwind(|| {
        let _guest = machines.guest("a", 1);
        std::panic::resume_unwind(Box::new("as an assertion does, but without its message"));
    });
    equal(panicked.is_err(), true)?;
    equal(processes_in(machines.folder()), Vec::new())
}

/// A guest that is a cluster of its own with an image.
fn host(machines: &Machines) -> Result<Guest, Failed> {
    let mut guest = machines.guest("a", 1)?;
    let made = (|| {
        guest.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
        guest
            .ok("rswarm swarm init && rswarm image import /image.tar box:1")
            .map(drop)
    })();
    told(made, &mut [&mut guest])?;
    Ok(guest)
}

fn limits(machines: &Machines) -> Result<(), Failed> {
    let mut guest = host(machines)?;
    let outcome = limits_hold(&mut guest);
    told(outcome, &mut [&mut guest])
}

fn limits_hold(guest: &mut Guest) -> Result<(), Failed> {
    let controllers = guest.ok("cat /sys/fs/cgroup/cgroup.controllers")?;
    for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
        contains(&controllers, controller)?;
    }
    equal(
        guest.ok("grep cgroup /proc/mounts | cut -d' ' -f3")?.as_str(),
        "cgroup2\n",
    )?;
    guest.ok("rswarm service create --name web --update-monitor 0s --stop-signal KILL --limit-memory 64m --limit-cpu 0.5 --limit-pids 20 box:1 sleep 10000")?;
    let group = format!("{CGROUPS}/*/");
    let files = guest.ok(&format!(
        "cd {group} && cat memory.max memory.swap.max cpu.max pids.max && wc -l <cgroup.procs"
    ))?;
    equal(files.as_str(), "67108864\n0\n50000 100000\n20\n1\n")?;
    // The container sees its own group as the root, and what is run in it later is bounded as well.
    equal(
        guest
            .ok("rswarm exec web.1 sh -c 'cat /proc/self/cgroup /sys/fs/cgroup/memory.max'")?
            .as_str(),
        "0::/\n67108864\n",
    )?;
    let forks =
        guest.run("rswarm exec web.1 sh -c 'for i in $(seq 40); do sleep 1000 >/dev/null 2>&1 & done'")?;
    contains(&forks.text, "can't fork")?;
    contains(&guest.ok(&format!("cat {group}pids.events"))?, "max ")?;
    guest.ok("rswarm service rm web")?;
    guest.until(
        "its group is gone",
        PATIENCE,
        &format!("ls -d {group} 2>/dev/null; true"),
        str::is_empty,
    )?;

    guest.ok("rswarm service create -d --name hungry --limit-memory 16m --restart-condition none box:1 sh -c 'x=a; while :; do x=$x$x; done'")?;
    let why = "rswarm service ps --no-trunc --format '{{.CurrentState}} {{.Error}}' hungry";
    let why = guest.until("the kill is named", PATIENCE, why, |t| t.contains("Failed"))?;
    contains(&why.to_lowercase(), "memory")?;
    guest.ok("rswarm service rm hungry")?;

    guest.ok("rswarm service create --name busy --update-monitor 0s --stop-signal KILL --limit-cpu 0.5 box:1 sh -c 'while :; do :; done'")?;
    let share = cpu_share(guest, &group)?;
    println!("  0.5 CPUs came out as {share:.2}");
    equal((0.4..=0.6).contains(&share), true).map_err(|_| format!("0.5 CPUs came out as {share:.2}"))?;
    // A daemon that was killed finds its containers, whose groups it did not make.
    let pid = guest.ok(&format!("cat {group}cgroup.procs"))?;
    guest.ok("kill -9 $(pidof rswarm | tr ' ' '\\n' | sort -n | head -n 1)")?;
    guest.ok("setsid rswarm daemon >/run/daemon.log 2>&1 &")?;
    guest.until("the daemon answers", PATIENCE, "rswarm service ls", |t| {
        t.contains("1/1")
    })?;
    equal(guest.ok(&format!("cat {group}cgroup.procs"))?, pid)?;

    guest.ok("rswarm swarm leave --force")?;
    let left = "ls -d /sys/fs/cgroup/rswarm 2>/dev/null; true";
    guest.until("no group is left", PATIENCE, left, str::is_empty)?;
    Ok(())
}

/// What part of a processor a group used over some seconds, both by the guest's clock.
fn cpu_share(guest: &mut Guest, group: &str) -> Result<f64, Failed> {
    let look = format!("cut -d' ' -f1 /proc/uptime; sed -n 's/usage_usec //p' {group}cpu.stat");
    let text = guest.ok(&format!("{look}; sleep 5; {look}"))?;
    let numbers: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let [began, before, ended, after] = numbers[..] else {
        return Err(format!("not four numbers: {text}").into());
    };
    Ok((after - before) / 1e6 / (ended - began))
}

/// Both go on with IPv4, and say what is missing.
fn without_ipv6(machines: &Machines) -> Result<(), Failed> {
    for (words, said) in [
        ("ipv6.disable=1", "no IPv6 (it was started with ipv6.disable=1"),
        (
            "guest.lacks=nft_fib_ipv6,nft_fib_inet,nft_reject_ipv6",
            "nft_fib_ipv6 and nft_reject_ipv6",
        ),
    ] {
        let mut guest = machines.guest_with("a", 1, words)?;
        let outcome = goes_on_with_ipv4(&mut guest, said);
        told(outcome, &mut [&mut guest])?;
    }
    Ok(())
}

fn goes_on_with_ipv4(guest: &mut Guest, said: &str) -> Result<(), Failed> {
    guest.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
    guest.ok("rswarm swarm init && rswarm image import /image.tar box:1")?;
    guest.ok("rswarm network create --ipv6 both")?;
    guest.ok("rswarm service create --name web --network both --publish 8080:80 --update-monitor 0s --stop-signal KILL box:1 sh -c 'mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 80 -h /www'")?;
    equal(
        guest.ok("wget -q -O - http://10.77.0.1:8080/")?.as_str(),
        "here\n",
    )?;
    equal(
        guest.ok("rswarm exec web.1 wget -q -O - http://web/")?.as_str(),
        "here\n",
    )?;
    contains(&guest.ok("cat /run/daemon.log")?, said)
}

fn power_cut(machines: &Machines) -> Result<(), Failed> {
    let mut guest = host(machines)?;
    let outcome = comes_back(&mut guest);
    told(outcome, &mut [&mut guest])
}

fn comes_back(guest: &mut Guest) -> Result<(), Failed> {
    guest.ok("rswarm network create shop")?;
    guest.ok("rswarm service create --name web --replicas 2 --network shop --publish 8080:80 --update-monitor 0s --stop-signal KILL --limit-memory 32m --mount type=volume,source=kept,target=/kept box:1 sh -c 'echo here | dd of=/kept/starts oflag=append conv=notrunc,fsync; exec httpd -f -p 80 -h /kept'")?;
    guest.ok("echo s3cret | rswarm secret create key -")?;
    let answer = "wget -q -O - http://10.77.0.1:8080/starts | wc -l";
    equal(guest.ok(answer)?.as_str(), "2\n")?;
    // Cut at once: what nobody synced is lost or, worse, there by name and empty. What was answered must be there.
    // Whether the same tasks go on or others take their place, two run and no more.
    cut_and_wait(guest, |_| true)?;
    equal(guest.ok(answer)?.as_str(), "4\n")?;
    equal(
        guest.ok("rswarm secret ls --format '{{.Name}}'")?.as_str(),
        "key\n",
    )?;
    // Cut with everything on disk: containers are known and cannot run, so others stand in their place.
    let before = guest.ok(&format!("sync; {TASKS}"))?;
    equal(before.lines().count(), 2)?;
    cut_and_wait(guest, |now| !before.lines().any(|task| now.contains(task)))?;
    equal(guest.ok(answer)?.as_str(), "6\n")?;
    let name = "rswarm exec web.1 wget -q -O - http://web/starts | wc -l";
    equal(guest.ok(name)?.as_str(), "6\n")?;
    let why = guest.ok("rswarm service ps --no-trunc --format '{{.CurrentState}} {{.Error}}' web")?;
    contains(&why, "this host was restarted")?;
    // With the service goes what all lives of the machine left: groups, folders, namespaces.
    guest.ok("rswarm service rm web")?;
    let left = format!(
        "ls -d {CGROUPS}/*/ /var/lib/rswarm/containers/* /var/lib/rswarm/net/netns/* 2>/dev/null; true"
    );
    guest.until("nothing of it is left", PATIENCE, &left, str::is_empty)?;
    Ok(())
}

/// Cuts the power, and waits until two containers run and their tasks are the right ones.
fn cut_and_wait(guest: &mut Guest, right: impl Fn(&str) -> bool) -> Result<(), Failed> {
    guest.power_cut()?;
    let boot = guest.boot()?.as_secs_f64();
    guest.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
    let state = format!("cat {CGROUPS}/*/cgroup.procs | wc -l; {TASKS}; cut -d' ' -f1 /proc/uptime");
    let now = guest.until("both run again", PATIENCE, &state, |t| {
        t.starts_with("2\n") && t.lines().count() == 4 && right(t)
    })?;
    let after = now.lines().last().unwrap_or_default();
    println!("  booted again in {boot:.1} s, both tasks ran {after} s after power on");
    Ok(())
}

fn cluster(machines: &Machines) -> Result<(), Failed> {
    let mut a = machines.guest("a", 1)?;
    let mut b = machines.guest("b", 2)?;
    let outcome = one_cluster(&mut a, &mut b);
    told(outcome, &mut [&mut a, &mut b])
}

/// How nodes are shown, sorted.
const NODES: &str = "rswarm node ls --format '{{.Hostname}} {{.Status}}' | sort";

/// Makes both a cluster, with the image.
fn join(a: &mut Guest, b: &mut Guest) -> Result<(), Failed> {
    for guest in [&mut *a, &mut *b] {
        guest.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
    }
    a.ok("rswarm swarm init --advertise-addr 10.77.0.1")?;
    let token = a.ok("rswarm swarm join-token worker -q")?;
    b.ok(&format!(
        "rswarm swarm join --token {} 10.77.0.1:2377",
        token.trim()
    ))?;
    a.until("both are ready", PATIENCE, NODES, |t| t == "a Ready\nb Ready\n")?;
    for guest in [&mut *a, &mut *b] {
        guest.ok("rswarm image import /image.tar box:1")?;
    }
    Ok(())
}

fn one_cluster(a: &mut Guest, b: &mut Guest) -> Result<(), Failed> {
    join(a, b)?;
    let nodes = NODES;
    a.ok("rswarm service create --name all --mode global --update-monitor 0s --stop-signal KILL --limit-memory 32m box:1 sleep 10000")?;
    for guest in [&mut *a, &mut *b] {
        equal(guest.ok(&format!("ls -d {CGROUPS}/*/"))?.lines().count(), 1)?;
    }
    // The clock begins before the cut, so that the bound includes it.
    let clock = "cut -d' ' -f1 /proc/uptime";
    let began: f64 = a.ok(clock)?.trim().parse()?;
    b.power_cut()?;
    a.until("b is down", PATIENCE, nodes, |t| t.contains("b Down"))?;
    let took = a.ok(clock)?.trim().parse::<f64>()? - began;
    println!("  seen down {took:.1} s after the cut");
    equal(took < DOWN_WITHIN, true).map_err(|_| format!("seen down after {took:.1} s, not {DOWN_WITHIN}"))?;
    println!("  b booted again in {:.1} s", b.boot()?.as_secs_f64());
    a.until("b is ready again", PATIENCE, nodes, |t| t == "a Ready\nb Ready\n")?;
    a.until("the service runs on both", PATIENCE, "rswarm service ls", |t| {
        t.contains("2/2")
    })?;
    b.until(
        "its container runs",
        PATIENCE,
        &format!("cat {CGROUPS}/*/cgroup.procs | wc -l"),
        |t| t == "1\n",
    )?;
    Ok(())
}

/// Text that is sent, and looked for on the wire.
const SECRET: &str = "nobody-may-read-this";
/// Mebibytes that are sent for a throughput.
const BULK: u32 = 24;

fn encrypted(machines: &Machines) -> Result<(), Failed> {
    let mut a = machines.guest("a", 1)?;
    let mut b = machines.guest("b", 2)?;
    let outcome = both_encrypt(machines, &mut a, &mut b);
    told(outcome, &mut [&mut a, &mut b])
}

/// Tasks of two hosts in an encrypted network: by the kernel's WireGuard on both, also while a daemon is dead; then with the
/// tunnel of one in its daemon. Nothing of it is on the wire.
fn both_encrypt(machines: &Machines, a: &mut Guest, b: &mut Guest) -> Result<(), Failed> {
    join(a, b)?;
    a.ok("rswarm network create --opt encrypted dark && rswarm network create light")?;
    let bulk = format!("dd if=/dev/zero of=/w/bulk bs=1M count={BULK} 2>/dev/null");
    let serve = format!("mkdir /w; echo {SECRET} >/w/index.html; {bulk}; exec httpd -f -p 80 -h /w");
    for (name, network) in [("dark", "dark"), ("light", "light")] {
        a.ok(&format!(
            "rswarm service create --name {name} --mode global --network {network} --update-monitor 0s --stop-signal KILL box:1 sh -c '{serve}'"
        ))?;
    }
    let inner = "nsenter --net=/var/lib/rswarm/net/wireguard ip link";
    for guest in [&mut *a, &mut *b] {
        contains(&guest.ok(inner)?, "wireguard:")?;
    }
    // In the open it is heard, so that there is something to hear.
    let (frames, with) = ask_other(machines, a, "light")?;
    equal((frames > 4, with > 0), (true, true))?;
    for guest in [&mut *a, &mut *b] {
        let (frames, with) = ask_other(machines, guest, "dark")?;
        equal((frames > 4, with), (true, 0))?;
    }
    let (light, dark) = (throughput(a, "light")?, throughput(a, "dark")?);
    println!(
        "  between guests without a processor of their own: in the open {light:.1} MB/s, encrypted by the kernel {dark:.1} MB/s, ratio {:.2}",
        dark / light
    );
    // What the kernel does goes on without a daemon, and the next one finds it.
    let key = "rswarm node inspect b --format '{{.Description.WireGuardKey}}'";
    let before = a.ok(key)?;
    let stop = "for p in $(pidof rswarm); do grep -q daemon /proc/$p/cmdline && kill -9 $p; done; true";
    b.ok(stop)?;
    let (_, with) = ask_other(machines, a, "dark")?;
    equal(with, 0)?;
    b.ok("setsid rswarm daemon >/run/daemon.log 2>&1 &")?;
    b.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
    a.until("both are ready", PATIENCE, NODES, |t| t == "a Ready\nb Ready\n")?;
    let (_, with) = ask_other(machines, a, "dark")?;
    equal(with, 0)?;
    equal(a.ok(key)?, before.clone())?;
    // One kernel can, and the other may not: on the wire it is the same.
    b.ok(stop)?;
    b.ok("setsid rswarm daemon --wireguard userspace >/run/daemon.log 2>&1 &")?;
    b.until("the daemon answers", PATIENCE, "rswarm info", |_| true)?;
    a.until("b has another key", PATIENCE, key, |now| now != before)?;
    equal(b.run(inner)?.status != 0, true)?;
    for guest in [&mut *a, &mut *b] {
        let (frames, with) = ask_other(machines, guest, "dark")?;
        equal((frames > 4, with), (true, 0))?;
    }
    println!(
        "  from the kernel's WireGuard to a tunnel in the daemon: {:.1} MB/s",
        throughput(a, "dark")?
    );
    // What the kernel has is looked at every minute: nothing was found to be other than it was left.
    a.ok("while [ $(cut -d. -f1 /proc/uptime) -lt 68 ]; do sleep 1; done")?;
    for guest in [b, a] {
        equal(guest.ok("grep repaired /run/daemon.log; true")?.as_str(), "")?;
        guest.ok("rswarm swarm leave --force")?;
        let left =
            "ls -d /var/lib/rswarm/net/wireguard 2>/dev/null; ip link | grep -e encrypted -e wireguard; true";
        guest.until("nothing of it is left", PATIENCE, left, str::is_empty)?;
    }
    Ok(())
}

/// The name of the task of a service on the other guest, and the container on this one.
fn places(guest: &mut Guest, service: &str) -> Result<(String, String), Failed> {
    let container = guest.ok(&format!("rswarm ps -q --filter name={service}"))?;
    let own = guest.ok(&format!("rswarm exec {} hostname -i", container.trim()))?;
    let all = format!("rswarm exec {} nslookup tasks.{service}", container.trim());
    let all = guest.ok(&all)?;
    let addresses = all.lines().filter_map(|l| l.strip_prefix("Address"));
    let other = addresses
        .filter_map(|l| l.split_whitespace().last())
        .find(|a| !a.starts_with("127.") && !own.contains(a) && a.parse::<std::net::Ipv4Addr>().is_ok());
    let other = other.ok_or_else(|| format!("only its own address {own}: {all}"))?;
    Ok((other.to_owned(), container.trim().to_owned()))
}

/// Asks the task of the other guest; how many frames passed meanwhile, and in how many the answer could be read.
fn ask_other(machines: &Machines, guest: &mut Guest, service: &str) -> Result<(usize, usize), Failed> {
    let (other, container) = places(guest, service)?;
    machines.wire().listen(SECRET);
    let ask = format!("rswarm exec {container} timeout 5 wget -q -O - http://{other}/");
    guest.until("the other task answers", PATIENCE, &ask, |text| {
        text.trim() == SECRET
    })?;
    let heard = machines.wire().heard();
    Ok((heard.frames, heard.with))
}

/// Megabytes a second from the task on the other guest to the one on this, by the guest's clock.
fn throughput(guest: &mut Guest, service: &str) -> Result<f64, Failed> {
    let (other, container) = places(guest, service)?;
    let clock = "cut -d' ' -f1 /proc/uptime";
    let fetch = format!("wget -q -O - http://{other}/bulk | wc -c");
    let text = guest.ok(&format!(
        "{clock}; rswarm exec {container} sh -c '{fetch}'; {clock}"
    ))?;
    let numbers: Vec<f64> = text.lines().filter_map(|l| l.trim().parse().ok()).collect();
    let [began, bytes, ended] = numbers[..] else {
        return Err(format!("not three numbers: {text}").into());
    };
    equal(bytes, f64::from(BULK << 20))?;
    Ok(f64::from(BULK) * 1.048_576 / (ended - began).max(0.01))
}
