//! Container start in the runtime, beside a bare floor and, where Docker Engine is installed, beside it; all in one run.
//!
//! `cargo bench --bench runtime` prints a table and writes `target/bench/runtime.json`. Needs root and busybox.
//!
//! The floor is the least that a container start can be on this kernel: clone3 into the same namespaces, the same
//! cgroups, an overlay of the same layer as root, the same seccomp filter, exec. It mounts no /proc,
//! hides nothing, drops no capability, and has neither shim nor log, so our figure over it is what those cost.
#![allow(clippy::unwrap_used, reason = "a bench may stop where a start failed")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use runtime::{ContainerConfig, ContainerState, Runtime, RuntimeConfig, run_hidden};

/// Starts of each kind; medians are reported.
const ROUNDS: usize = 60;
/// Containers alive at once when memory is measured.
const ALIVE: usize = 20;

fn main() -> ExitCode {
    run_hidden();
    if std::env::args().nth(1).as_deref() == Some("floor") {
        floor_child();
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: this bench needs root and /bin/busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir_all(layer.join("bin")).unwrap();
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep"] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    // One thread that waits for what it started, as a worker of the daemon does, and not a thread that waits for one.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let runtime = tokio.block_on(async {
        Runtime::open(RuntimeConfig {
            root: dir.path().join("containers"),
            exe: std::env::current_exe().unwrap(),
            cgroup_parent: "rswarm-bench".into(),
        })
        .unwrap()
    });

    // Alternately, so that a slow moment of the machine strikes both.
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        floor.push(bare_start(dir.path(), &layer, round));
        ours.push(our_start(&tokio, &runtime, &layer, round));
    }
    // Only now: ext4 looks long for inodes while there are some that were freed in the last five seconds.
    for round in 0..ROUNDS {
        tokio.block_on(runtime.remove(&format!("ours{round}"))).unwrap();
    }
    let (start, bare) = (median(&ours), median(&floor));
    let pss = shim_pss(&tokio, &runtime, &layer);
    runtime.close();

    let mut figures: BTreeMap<&str, f64> = BTreeMap::new();
    figures.insert("start_over_floor", start / bare);
    figures.insert("start_ms", start);
    figures.insert("floor_ms", bare);
    figures.insert("shim_pss_kib", pss);
    println!("container start, floor     {bare:8.2} ms (median of {ROUNDS})");
    println!("container start, ours      {start:8.2} ms");
    println!("start_over_floor           {:8.2}", start / bare);
    println!("shim, PSS with {ALIVE} alive   {pss:8.0} KiB each");
    match docker(dir.path(), &layer) {
        Ok((docker, version)) => {
            figures.insert("docker_ms", docker);
            figures.insert("docker_over_ours", docker / start);
            println!("docker run --network none  {docker:8.2} ms ({version})");
            println!("docker_over_ours           {:8.2}", docker / start);
        }
        Err(why) => println!("docker: left out, {why}"),
    }
    let lines: Vec<String> = figures.iter().map(|(k, v)| format!("\"{k}\": {v:.3}")).collect();
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("runtime.json"), format!("{{{}}}\n", lines.join(", "))).unwrap();
    ExitCode::SUCCESS
}

fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn config(layer: &Path, id: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.into(),
        hostname: "bench".into(),
        argv: vec!["/bin/sleep".into(), "60".into()],
        layers: vec![layer.to_owned()],
        ..ContainerConfig::default()
    }
}

/// From the wish for a container to its program running.
fn our_start(tokio: &tokio::runtime::Runtime, runtime: &Runtime, layer: &Path, round: usize) -> f64 {
    let id = format!("ours{round}");
    let config = config(layer, &id);
    tokio.block_on(async {
        let began = Instant::now();
        runtime.create(config).unwrap();
        runtime.start(&id).await.unwrap();
        let took = ms(began);
        runtime.stop(&id, 9, Duration::from_secs(5)).await.unwrap();
        took
    })
}

/// The memory that a shim alone adds, in KiB, as the mean of several.
fn shim_pss(tokio: &tokio::runtime::Runtime, runtime: &Runtime, layer: &Path) -> f64 {
    tokio.block_on(async {
        for i in 0..ALIVE {
            let id = format!("alive{i}");
            runtime.create(config(layer, &id)).unwrap();
            runtime.start(&id).await.unwrap();
        }
        let mut total = 0.0;
        for info in runtime.list() {
            let ContainerState::Running { pid } = info.state else {
                continue;
            };
            total += pss_kib(parent(pid));
        }
        for i in 0..ALIVE {
            let id = format!("alive{i}");
            runtime.stop(&id, 9, Duration::from_secs(5)).await.unwrap();
            runtime.remove(&id).await.unwrap();
        }
        total / ALIVE as f64
    })
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("PPid:")).unwrap();
    line[5..].trim().parse().unwrap()
}

fn pss_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|l| l.starts_with("Pss:")).unwrap();
    line[4..].trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// One bare start. A program of its own does it, since clone3 as fork wants a process of one thread.
fn bare_start(dir: &Path, layer: &Path, round: usize) -> f64 {
    let root = dir.join(format!("floor{round}"));
    let out = Command::new(std::env::current_exe().unwrap())
        .arg("floor")
        .arg(&root)
        .arg(layer)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().unwrap_or_else(|_| {
        panic!(
            "the floor failed: {text} {}",
            String::from_utf8_lossy(&out.stderr)
        )
    })
}

fn floor_child() -> ! {
    let mut args = std::env::args().skip(2).map(PathBuf::from);
    let (root, layer) = (args.next().unwrap(), args.next().unwrap());
    let began = Instant::now();
    let cgroups: Vec<PathBuf> = ["cpu", "cpuacct", "memory", "pids"]
        .iter()
        .map(|c| Path::new("/sys/fs/cgroup").join(c))
        .filter(|c| c.is_dir())
        .map(|c| c.join(format!("rswarm-floor-{}", std::process::id())))
        .collect();
    cgroups.iter().for_each(|c| fs::create_dir(c).unwrap());
    for folder in ["upper", "work", "merged"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let options = CString::new(format!(
        "lowerdir={},upperdir={u}/upper,workdir={u}/work",
        layer.display(),
        u = root.display()
    ))
    .unwrap();
    let merged = CString::new(root.join("merged").display().to_string()).unwrap();
    let mut pipe = [0; 2];
    let mut args = libc::clone_args {
        flags: (libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS) as u64,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: one thread, no CLONE_VM: the child is a copy, as after fork; the struct has its size.
    let pid = unsafe {
        libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC);
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    if pid == 0 {
        for cgroup in &cgroups {
            fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        }
        become_sleep(&merged, &options);
    }
    // SAFETY: both descriptors are ours alone.
    let (mut read, write) = unsafe { (fs::File::from_raw_fd(pipe[0]), OwnedFd::from_raw_fd(pipe[1])) };
    drop(write);
    let mut nothing = Vec::new();
    read.read_to_end(&mut nothing).unwrap();
    let took = ms(began);
    // SAFETY: the child is ours and not yet waited for.
    unsafe {
        let pid = i32::try_from(pid).unwrap();
        let mut status = 0;
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &raw mut status, 0);
        // A program that never ran ends by itself with a code and not by that signal.
        assert!(libc::WIFSIGNALED(status), "the floor's program did not run");
    }
    for cgroup in &cgroups {
        fs::remove_dir(cgroup).unwrap();
    }
    println!("{took}");
    std::process::exit(0);
}

/// The rest of the floor, in the child.
fn become_sleep(merged: &CString, options: &CString) -> ! {
    let filter: Vec<libc::sock_filter> = runtime::default_filter()
        .into_iter()
        .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_ptr().cast_mut(),
    };
    let argv = [c"/bin/sleep".as_ptr(), c"60".as_ptr(), std::ptr::null()];
    // SAFETY: every text ends with a zero and lives until exec; the filter has the length it says.
    unsafe {
        let none = std::ptr::null::<libc::c_void>();
        let steps = [
            libc::unshare(libc::CLONE_NEWCGROUP),
            libc::sethostname(c"floor".as_ptr(), 5),
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                none,
            ),
            libc::mount(
                c"overlay".as_ptr(),
                merged.as_ptr(),
                c"overlay".as_ptr(),
                0,
                options.as_ptr().cast(),
            ),
            libc::chdir(merged.as_ptr()),
            i32::try_from(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())).unwrap(),
            libc::umount2(c".".as_ptr(), libc::MNT_DETACH),
            libc::chdir(c"/".as_ptr()),
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                std::ptr::from_ref(&program),
            ),
        ];
        if steps.iter().all(|s| *s == 0) {
            libc::execv(argv[0], argv.as_ptr());
        }
        libc::_exit(1);
    }
}

/// The same with Docker Engine, with a daemon of our own in a folder of its own; without a network, as ours.
fn docker(dir: &Path, layer: &Path) -> Result<(f64, String), String> {
    let found = |program: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain([PathBuf::from("/usr/sbin")])
            .any(|folder| folder.join(program).is_file())
    };
    if !found("dockerd") || !found("docker") {
        return Err("dockerd and docker are not installed".into());
    }
    let root = dir.join("docker");
    fs::create_dir_all(&root).map_err(|e| e.to_string())?;
    let socket = format!("unix://{}/docker.sock", root.display());
    let log = fs::File::create(root.join("log")).map_err(|e| e.to_string())?;
    let mut daemon = Command::new("dockerd")
        .args([
            "--bridge",
            "none",
            "--iptables=false",
            "--ip-masq=false",
            "--host",
            &socket,
        ])
        .args(["--storage-driver", "overlay2"])
        .arg("--data-root")
        .arg(root.join("data"))
        .arg("--exec-root")
        .arg(root.join("exec"))
        .arg("--pidfile")
        .arg(root.join("pid"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| format!("start dockerd: {e}"))?;
    let result = docker_starts(&socket, dir, layer).map_err(|e| {
        let log = fs::read_to_string(root.join("log")).unwrap_or_default();
        format!(
            "{e}; dockerd said last: {}",
            log.lines().last().unwrap_or_default()
        )
    });
    if let Some(pid) = i32::try_from(daemon.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let _ = daemon.wait();
    result
}

fn docker_starts(socket: &str, dir: &Path, layer: &Path) -> Result<(f64, String), String> {
    let docker = |words: &[&str]| -> Result<String, String> {
        let out = Command::new("docker")
            .args(["--host", socket])
            .args(words)
            .output()
            .map_err(|e| e.to_string())?;
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
        } else {
            Err(format!(
                "docker {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&out.stderr).trim()
            ))
        }
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let version = loop {
        match docker(&["version", "--format", "Docker {{.Server.Version}}"]) {
            Ok(version) => break version,
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    let archive = dir.join("bench.tar").display().to_string();
    let packed = Command::new("tar")
        .args(["-C", &layer.display().to_string(), "-cf", &archive, "."])
        .status();
    if !packed.is_ok_and(|s| s.success()) {
        return Err("tar the image: failed".into());
    }
    docker(&["import", &archive, "bench:1"])?;
    let mut all = Vec::new();
    for round in 0..ROUNDS / 3 {
        let name = format!("bench{round}");
        let began = Instant::now();
        docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            &name,
            "bench:1",
            "/bin/sleep",
            "60",
        ])?;
        all.push(ms(began));
        docker(&["rm", "-f", &name])?;
    }
    Ok((median(&all), version))
}
