//! The runtime against the real kernel: real namespaces, cgroups and processes. Needs root and busybox.
//!
//! This binary is its own shim, so it brings its own `main`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use runtime::copy::{Options, Owner, Shape, Tree, unpack};
use runtime::{
    ContainerConfig, ContainerState, ExecConfig, FileMount, LogConfig, LogQuery, LogStream, MountConfig,
    MountSource, Resources, Runtime, RuntimeConfig, run_hidden,
};
use tokio::io::AsyncReadExt;

fn main() -> ExitCode {
    run_hidden();
    let mut args = Arguments::from_args();
    // Exact counts before and after need the process for themselves.
    args.test_threads = Some(1);
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: the runtime's kernel tests need root and /bin/busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    }
    libtest_mimic::run(&args, trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    type Test = fn(Host) -> Result<(), Failed>;
    let all: &[(&'static str, Test)] = &[
        ("a container sees its own namespaces and root", sees_its_own),
        ("exit codes and signals are told apart", exit_codes),
        ("a missing program is named and leaves nothing", missing_program),
        ("limits are enforced and an oom kill is reported", limits),
        ("secrets live in memory with owner and mode", secrets),
        ("binds, tmpfs and a read-only root", mounts),
        ("forbidden calls are refused and masked paths are empty", sandbox),
        ("a container meets no binary it could write to", binary),
        ("exec runs in the container and keeps the exit code", exec),
        ("stop asks first and kills after the grace", stop),
        ("logs keep lines, streams and bounds", logs),
        (
            "a container outlives its owner and its exit code is kept",
            adoption,
        ),
        ("a killed shim loses no container", killed_shim),
        ("a link in the image leads no mount outside", hostile_links),
        ("files go into and out of a container that runs", copies),
        ("and of one that ended, until it is trimmed", copies_of_the_dead),
        ("its processes and what it uses are seen", looks),
        ("a small init reaps and passes signals on", small_init),
        ("a thousand starts leave nothing behind", leaves_nothing),
    ];
    all.iter()
        .map(|(name, test)| Trial::test(*name, move || test(Host::new()?)))
        .collect()
}

/// A runtime of its own in a folder of its own, with one layer that holds busybox.
struct Host {
    dir: tempfile::TempDir,
    runtime: Runtime,
    tokio: tokio::runtime::Runtime,
}

impl Drop for Host {
    fn drop(&mut self) {
        for c in self.runtime.list() {
            let _ = self.tokio.block_on(self.runtime.remove(&c.id));
        }
        self.runtime.close();
    }
}

impl Host {
    fn new() -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        let layer = dir.path().join("layer");
        for folder in ["bin", "etc", "tmp"] {
            fs::create_dir_all(layer.join(folder))?;
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox"))?;
        for applet in [
            "sh", "sleep", "cat", "id", "hostname", "mount", "ls", "stat", "ps", "kill", "dd", "unshare",
            "wc",
        ] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet))?;
        }
        fs::write(
            layer.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n",
        )?;
        fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:\n")?;
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let name = dir
            .path()
            .file_name()
            .map(|n| n.to_string_lossy().replace('.', ""))
            .unwrap_or_default();
        let runtime = tokio.block_on(async { Runtime::open(Self::config(dir.path(), &name)) })?;
        Ok(Self { dir, runtime, tokio })
    }

    fn config(dir: &Path, name: &str) -> RuntimeConfig {
        RuntimeConfig {
            root: dir.join("containers"),
            exe: std::env::current_exe().expect("this binary"),
            cgroup_parent: format!("rswarm-test/{name}"),
        }
    }

    fn container(&self, id: &str, argv: &[&str]) -> ContainerConfig {
        ContainerConfig {
            id: id.into(),
            hostname: "inside".into(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            layers: vec![self.dir.path().join("layer")],
            ..ContainerConfig::default()
        }
    }

    fn sh(&self, id: &str, script: &str) -> ContainerConfig {
        self.container(id, &["sh", "-c", script])
    }

    /// Runs a container to its end; answers its exit code and its output.
    fn run(&self, config: ContainerConfig) -> Result<(Option<i32>, String), Failed> {
        let id = config.id.clone();
        self.tokio.block_on(async {
            self.runtime.create(config)?;
            self.runtime.start(&id).await.map_err(|e| e.to_string())?;
            let exit = self.runtime.wait(&id).await?;
            let mut text = String::new();
            let mut lines = self.runtime.logs(&id, LogQuery::default());
            while let Some(line) = lines.recv().await {
                text.push_str(&String::from_utf8_lossy(&line.text));
            }
            self.runtime.remove(&id).await?;
            Ok((exit.code, text))
        })
    }
}

fn contains(text: &str, part: &str) -> Result<(), Failed> {
    if text.contains(part) {
        Ok(())
    } else {
        Err(format!("no {part:?} in:\n{text}").into())
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), Failed> {
    if got == want {
        Ok(())
    } else {
        Err(format!("got {got:?}, not {want:?}").into())
    }
}

fn sees_its_own(host: Host) -> Result<(), Failed> {
    let (code, text) = host.run(host.sh(
        "a",
        "hostname; echo pid $$; ls /; ls /proc | grep -c '^[0-9]'; id; cat /proc/self/cgroup",
    ))?;
    equal(code, Some(0))?;
    contains(&text, "inside\n")?;
    contains(&text, "pid 1\n")?;
    contains(&text, "uid=0(root)")?;
    if text.contains("rswarm-test") {
        return Err(format!("the cgroup of the host shows:\n{text}").into());
    }
    let mut config = host.sh("b", "id; pwd; echo $HOME");
    config.user = "app".into();
    config.groups = vec!["extra".into()];
    config.cwd = "/made/for/it".into();
    let (_, text) = host.run(config)?;
    contains(&text, "uid=1000(app) gid=1000(app) groups=2000(extra)")?;
    contains(&text, "/made/for/it\n/tmp\n")
}

fn exit_codes(host: Host) -> Result<(), Failed> {
    equal(host.run(host.sh("a", "exit 7"))?.0, Some(7))?;
    equal(
        host.run(host.sh("b", "sh -c 'kill -9 $$'; exit $?"))?.0,
        Some(137),
    )?;
    equal(host.run(host.sh("c", "exit 0"))?.0, Some(0))
}

fn missing_program(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        host.runtime.create(host.container("a", &["no-such-program"]))?;
        let error = host.runtime.start("a").await.err().ok_or("it started")?;
        contains(
            &error.to_string(),
            "no-such-program: executable file not found in PATH",
        )?;
        host.runtime.remove("a").await?;
        host.runtime.create(host.container("b", &["/no/such"]))?;
        let error = host.runtime.start("b").await.err().ok_or("it started")?;
        contains(&error.to_string(), "/no/such")?;
        host.runtime.remove("b").await?;
        let mut wrong = host.sh("c", "true");
        wrong.user = "nobody-here".into();
        host.runtime.create(wrong)?;
        let error = host.runtime.start("c").await.err().ok_or("it started")?;
        contains(&error.to_string(), "no such user")?;
        host.runtime.remove("c").await?;
        equal(host.runtime.list().len(), 0)
    })
}

fn limits(host: Host) -> Result<(), Failed> {
    let mut config = host.sh("a", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; echo survived");
    config.resources = Resources {
        memory: 16 << 20,
        pids: 20,
        nano_cpus: 500_000_000,
    };
    host.tokio.block_on(async {
        host.runtime.create(config)?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        let exit = host.runtime.wait("a").await?;
        equal(exit.oom_killed, true)
    })?;
    let mut config = host.sh(
        "b",
        "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all started",
    );
    config.resources.pids = 5;
    let (_, text) = host.run(config)?;
    contains(&text, "can't fork")?;
    let mut config = host.sh("c", "sleep 60");
    config.resources = Resources {
        memory: 32 << 20,
        pids: 9,
        nano_cpus: 0,
    };
    host.tokio.block_on(async {
        host.runtime.create(config)?;
        host.runtime.start("c").await.map_err(|e| e.to_string())?;
        let stats = host.runtime.stats("c").ok_or("no stats")?;
        equal(stats.memory_limit, 32 << 20)?;
        equal(stats.pids, 1)
    })
}

fn secrets(host: Host) -> Result<(), Failed> {
    let mut config = host.sh(
        "a",
        "cat /run/secrets/key; stat -c '%u %g %a' /run/secrets/key; grep ' /run/secrets/key ' /proc/mounts; cat /deep/er/conf; echo x > /run/secrets/key",
    );
    let file = |target: &str, content: &str, mode| FileMount {
        target: target.into(),
        content: content.into(),
        uid: 1000,
        gid: 2000,
        mode,
        writable: false,
    };
    config.files = vec![
        file("/run/secrets/key", "s3cret-canary\n", 0o440),
        file("/deep/er/conf", "conf\n", 0o644),
    ];
    let (code, text) = host.run(config)?;
    contains(&text, "s3cret-canary\n1000 2000 440\n")?;
    contains(&text, " /run/secrets/key tmpfs ro")?;
    contains(&text, "conf\n")?;
    contains(&text, "Read-only file system")?;
    equal(code, Some(1))?;
    // The content was in the output of the container, which is gone; it must be nowhere else.
    let found = std::process::Command::new("grep")
        .args(["-ra", "s3cret-canary"])
        .arg(host.dir.path())
        .output()?;
    equal(found.stdout.len(), 0)
}

fn mounts(host: Host) -> Result<(), Failed> {
    let shared = host.dir.path().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("from-host"), "hello\n")?;
    let bind = |target: &str, read_only| MountConfig {
        target: target.into(),
        source: MountSource::Bind {
            path: shared.clone(),
            recursive: true,
        },
        read_only,
    };
    let mut config = host.sh(
        "a",
        "cat /rw/from-host; echo back > /rw/from-inside; echo x > /ro/y; echo z > /etc/new; echo w > /mem/w && cat /mem/w; stat -c %a /mem",
    );
    config.read_only = true;
    config.mounts = vec![
        bind("/rw", false),
        bind("/ro", true),
        MountConfig {
            target: "/mem".into(),
            source: MountSource::Tmpfs {
                size: 1 << 20,
                mode: 0o700,
            },
            read_only: false,
        },
    ];
    let (_, text) = host.run(config)?;
    contains(&text, "hello\n")?;
    contains(&text, "can't create /ro/y: Read-only file system")?;
    contains(&text, "can't create /etc/new: Read-only file system")?;
    contains(&text, "w\n700\n")?;
    equal(
        fs::read_to_string(shared.join("from-inside"))?,
        "back\n".to_owned(),
    )?;
    let mut config = host.sh("b", "true");
    config.mounts = vec![MountConfig {
        target: "/x".into(),
        source: MountSource::Bind {
            path: "/no/such/source".into(),
            recursive: true,
        },
        read_only: false,
    }];
    let error = host.run(config).err().ok_or("it started")?;
    contains(error.message().unwrap_or_default(), "bind /no/such/source")
}

fn sandbox(host: Host) -> Result<(), Failed> {
    let (_, text) = host.run(host.sh(
        "a",
        "mount -t tmpfs x /tmp; unshare -U true; cat /proc/kcore | wc -c; echo x > /proc/sysrq-trigger; \
         grep -E 'CapBnd|CapEff|NoNewPrivs|Seccomp:' /proc/self/status; echo 1 > /proc/sys/kernel/panic; ls /proc/self/fd | wc -l",
    ))?;
    contains(&text, "mount: permission denied")?;
    contains(&text, "unshare(0x10000000): Operation not permitted")?;
    contains(&text, "0\n")?;
    contains(&text, "can't create /proc/sysrq-trigger")?;
    contains(
        &text,
        "can't create /proc/sys/kernel/panic: Read-only file system",
    )?;
    contains(&text, "NoNewPrivs:\t1")?;
    contains(&text, "Seccomp:\t2")?;
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP
    contains(&text, "CapEff:\t00000000800405fb")?;
    contains(&text, "CapBnd:\t00000000800405fb")
}

/// CVE-2019-5736: /proc/PID/exe of what starts or enters a container leads to the host's own binary.
fn binary(host: Host) -> Result<(), Failed> {
    let pid = host.tokio.block_on(async {
        host.runtime.create(host.sh("a", "sleep 60"))?;
        let started = host.runtime.start("a").await.map_err(|e| e.to_string())?;
        Ok::<_, Failed>(started.pid)
    })?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status
        .lines()
        .find_map(|l| l.strip_prefix("PPid:"))
        .ok_or("no parent")?;
    let exe = format!("/proc/{}/exe", parent.trim());
    // Even root, whom no permission stops, is refused by the mount.
    let error = fs::File::options().write(true).truncate(true).open(&exe);
    let error = error
        .err()
        .ok_or("the shim's binary could be opened for writing")?;
    equal(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()))
}

fn exec(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        let mut config = host.sh("a", "sleep 60");
        config.env = vec!["GREETING=hi".into()];
        host.runtime.create(config)?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        let run = async |argv: &[&str], tty: Option<(u16, u16)>| -> Result<(i32, String), Failed> {
            let argv = argv.iter().map(|a| (*a).to_owned()).collect();
            let mut session = host.runtime.exec(
                "a",
                &ExecConfig {
                    argv,
                    tty,
                    ..ExecConfig::default()
                },
            )?;
            let mut text = Vec::new();
            let mut out = session.stdout.take().ok_or("no output")?;
            // A terminal answers EIO at its end.
            let _ = out.read_to_end(&mut text).await;
            if let Some(mut err) = session.stderr.take() {
                err.read_to_end(&mut text).await?;
            }
            Ok((session.wait().await?, String::from_utf8_lossy(&text).into_owned()))
        };
        let (code, text) = run(
            &["sh", "-c", "hostname; echo $GREETING; ps | wc -l; exit 3"],
            None,
        )
        .await?;
        equal(code, 3)?;
        contains(&text, "inside\nhi\n")?;
        let (code, text) = run(
            &[
                "sh",
                "-c",
                "test -t 0 && echo terminal; stty size 2>/dev/null; exit 4",
            ],
            Some((24, 80)),
        )
        .await?;
        equal(code, 4)?;
        contains(&text, "terminal")?;
        let (code, text) = run(&["no-such"], None).await?;
        equal(code, 127)?;
        contains(&text, "executable file not found")?;
        let (code, text) = run(&["mount", "-t", "tmpfs", "x", "/tmp"], None).await?;
        equal(code != 0, true)?;
        contains(&text, "permission denied")?;
        let mut session = host.runtime.exec(
            "a",
            &ExecConfig {
                argv: ["sh", "-c", "test $GREETING = bye"].map(str::to_owned).into(),
                env: vec!["GREETING=bye".into()],
                ..ExecConfig::default()
            },
        )?;
        equal(session.wait().await?, 0)?;
        // What nobody waits for ends, whoever it runs as.
        for user in ["", "1000"] {
            let session = host.runtime.exec(
                "a",
                &ExecConfig {
                    argv: ["sleep", "4321"].map(str::to_owned).into(),
                    user: user.into(),
                    ..ExecConfig::default()
                },
            )?;
            let sleeps = async |want: usize| -> Result<(), Failed> {
                let mut found = 0;
                for _ in 0..200 {
                    let (_, list) = run(&["ps", "-o", "args"], None).await?;
                    found = list.lines().filter(|l| l.trim() == "sleep 4321").count();
                    if found == want {
                        return Ok(());
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(25)).await;
                }
                Err(format!("{found} processes sleep as user \"{user}\", not {want}").into())
            };
            sleeps(1).await?;
            drop(session);
            sleeps(0).await?;
        }
        Ok(())
    })
}

fn stop(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        host.runtime.create(host.sh(
            "polite",
            "trap 'exit 5' TERM; echo ready; while true; do sleep 0.05; done",
        ))?;
        host.runtime.start("polite").await.map_err(|e| e.to_string())?;
        let mut lines = host.runtime.logs(
            "polite",
            LogQuery {
                follow: true,
                ..LogQuery::default()
            },
        );
        lines.recv().await.ok_or("it said nothing")?;
        let exit = host
            .runtime
            .stop("polite", 15, Duration::from_secs(10))
            .await?
            .ok_or("no status")?;
        equal(exit.code, Some(5))?;
        host.runtime
            .create(host.sh("deaf", "trap '' TERM; while true; do sleep 0.05; done"))?;
        host.runtime.start("deaf").await.map_err(|e| e.to_string())?;
        let began = Instant::now();
        let exit = host
            .runtime
            .stop("deaf", 15, Duration::from_millis(300))
            .await?
            .ok_or("no status")?;
        equal((exit.code, exit.signal), (Some(137), Some(9)))?;
        equal(began.elapsed() >= Duration::from_millis(300), true)?;
        equal(host.runtime.stop("deaf", 15, Duration::ZERO).await?, Some(exit))?;
        equal(host.runtime.stop("none", 15, Duration::ZERO).await.is_err(), true)
    })
}

fn logs(host: Host) -> Result<(), Failed> {
    let mut config = host.sh(
        "a",
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; sleep 0.1; echo oops >&2; sleep 0.1; printf unfinished",
    );
    config.log = LogConfig {
        max_size: 4096,
        max_files: 3,
        discard: false,
    };
    host.tokio.block_on(async {
        host.runtime.create(config)?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        host.runtime.wait("a").await?;
        let mut lines = host.runtime.logs(
            "a",
            LogQuery {
                tail: Some(3),
                ..LogQuery::default()
            },
        );
        let mut got = Vec::new();
        while let Some(line) = lines.recv().await {
            got.push(line);
        }
        equal(got.len(), 3)?;
        equal(
            got.iter()
                .any(|l| l.stream == LogStream::Stderr && l.text == b"oops\n"),
            true,
        )?;
        equal(got.iter().any(|l| l.text == b"unfinished"), true)?;
        let dir = host.dir.path().join("containers/a");
        let size: u64 = fs::read_dir(dir)?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("log.json"))
            .filter_map(|e| e.metadata().ok())
            .map(|m| m.len())
            .sum();
        equal(size <= 3 * 4096 + 4096, true)?;
        // A follower sees what comes while it looks, and ends with the container.
        host.runtime
            .create(host.sh("b", "echo one; sleep 0.3; echo two"))?;
        host.runtime.start("b").await.map_err(|e| e.to_string())?;
        let mut lines = host.runtime.logs(
            "b",
            LogQuery {
                follow: true,
                ..LogQuery::default()
            },
        );
        let mut text = Vec::new();
        while let Some(line) = lines.recv().await {
            text.extend(line.text);
        }
        equal(
            String::from_utf8_lossy(&text).into_owned(),
            "one\ntwo\n".to_owned(),
        )
    })
}

fn adoption(host: Host) -> Result<(), Failed> {
    let name = host
        .dir
        .path()
        .file_name()
        .map(|n| n.to_string_lossy().replace('.', ""))
        .unwrap_or_default();
    host.tokio.block_on(async {
        host.runtime.create(host.sh("lives", "sleep 60"))?;
        let started = host.runtime.start("lives").await.map_err(|e| e.to_string())?;
        host.runtime.create(host.sh("ends", "sleep 0.2; exit 9"))?;
        host.runtime.start("ends").await.map_err(|e| e.to_string())?;
        let again = Runtime::open(Host::config(host.dir.path(), &name))?;
        equal(again.wait("ends").await?.code, Some(9))?;
        let info = again.inspect("lives").ok_or("it is gone")?;
        equal(info.state, ContainerState::Running { pid: started.pid })?;
        let exit = again
            .stop("lives", 15, Duration::from_millis(50))
            .await?
            .ok_or("no status")?;
        equal(exit.code, Some(137))
    })
}

fn killed_shim(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        host.runtime.create(host.sh("a", "sleep 60"))?;
        let started = host.runtime.start("a").await.map_err(|e| e.to_string())?;
        let parent = fs::read_to_string(format!("/proc/{}/status", started.pid))?;
        let shim = parent
            .lines()
            .find_map(|l| l.strip_prefix("PPid:\t"))
            .ok_or("no parent")?
            .to_owned();
        let waiting = {
            let runtime = host.runtime.clone();
            tokio::spawn(async move { runtime.wait("a").await })
        };
        std::process::Command::new("kill").args(["-9", &shim]).status()?;
        equal(Path::new(&format!("/proc/{}", started.pid)).exists(), true)?;
        host.runtime.signal("a", 9)?;
        let exit = tokio::time::timeout(Duration::from_secs(5), waiting).await???;
        // Kernels before 6.15 cannot tell how a process ended to others than its parent.
        equal(matches!(exit.code, Some(137) | None), true)
    })
}

fn hostile_links(host: Host) -> Result<(), Failed> {
    let layer = host.dir.path().join("layer");
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside)?;
    std::os::unix::fs::symlink(&outside, layer.join("escape"))?;
    std::os::unix::fs::symlink("/proc/1/root/etc", layer.join("magic"))?;
    let mut config = host.sh("a", "cat /escape/file");
    config.files = vec![FileMount {
        target: "/escape/file".into(),
        content: b"inside only\n".to_vec(),
        uid: 0,
        gid: 0,
        mode: 0o444,
        writable: false,
    }];
    let got = host.run(config);
    equal(fs::read_dir(&outside)?.count(), 0)?;
    if let Ok((_, text)) = got {
        contains(&text, "inside only")?;
    }
    let _ = fs::remove_file(layer.join("proc"));
    std::os::unix::fs::symlink("/etc", layer.join("proc"))?;
    let got = host.run(host.sh("b", "ls /etc/passwd"));
    // Either it is refused, or proc was mounted where the link leads inside the root; never on the host.
    equal(Path::new("/etc/passwd").exists(), true)?;
    drop(got);
    Ok(())
}

/// A file of a container, as tar.
fn out(tree: &Tree, path: &str) -> Result<Vec<u8>, Failed> {
    let mut tar = Vec::new();
    tree.source(path, false)?.pack(&mut tar)?;
    Ok(tar)
}

fn into(tree: &Tree, path: &str, tar: &[u8]) -> Result<(), Failed> {
    let options = Options {
        owner: Owner::Is(0, 0),
        privileges: true,
        devices: false,
    };
    let file = Shape {
        folder: false,
        contents: false,
    };
    unpack(tar, &tree.target(path, file)?, options)?;
    Ok(())
}

fn holds(tar: &[u8], text: &str) -> bool {
    tar[512.min(tar.len())..].starts_with(text.as_bytes())
}

fn copies(host: Host) -> Result<(), Failed> {
    let script = "echo seen > /tmp/volatile; ln -s ../../../../etc/passwd /tmp/up; ln -s /proc/1/root /tmp/door; \
                  echo ready; while ! test -e /tmp/in; do sleep 0.02; done; cat /tmp/in; stat -c '%u %a' /tmp/in";
    let mut config = host.sh("a", script);
    config.mounts = vec![MountConfig {
        source: MountSource::Tmpfs {
            size: 1 << 20,
            mode: 0o777,
        },
        target: "/tmp".into(),
        read_only: false,
    }];
    host.tokio.block_on(async {
        host.runtime.create(config)?;
        let early = host.runtime.tree("a", false).err().ok_or("seen before it ran")?;
        contains(&early.to_string(), "not started yet")?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut lines = host.runtime.logs("a", query);
        lines.recv().await.ok_or("no line")?;
        let tree = host.runtime.tree("a", true)?;
        // What lies in a mount of the container only.
        let tar = out(&tree, "/tmp/volatile")?;
        equal(holds(&tar, "seen\n"), true)?;
        let mut passwd = Vec::new();
        tree.source("/tmp/up", true)?.pack(&mut passwd)?;
        equal(holds(&passwd, "root:x:0:0::/root:/bin/sh\napp:"), true)?;
        for refused in [
            "/tmp/door/etc/passwd",
            "/proc/1/environ",
            "/sys/kernel",
            "/../etc/passwd",
        ] {
            equal(tree.source(refused, true).is_err(), true)?;
        }
        into(&tree, "/tmp/in", &tar)?;
        let mut text = String::new();
        while let Some(line) = lines.recv().await {
            text.push_str(&String::from_utf8_lossy(&line.text));
        }
        equal(text.as_str(), "seen\n0 644\n")
    })
}

fn copies_of_the_dead(host: Host) -> Result<(), Failed> {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").map(|t| t.lines().count());
    let before = mounts()?;
    host.tokio.block_on(async {
        host.runtime
            .create(host.sh("a", "echo core > /tmp/core; exit 3"))?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        host.runtime.wait("a").await?;
        let tar = out(&host.runtime.tree("a", false)?, "/tmp/core")?;
        equal(holds(&tar, "core\n"), true)?;
        let tree = host.runtime.tree("a", true)?;
        equal(host.runtime.tree("a", true).is_err(), true)?;
        into(&tree, "/etc/added", &tar)?;
        drop(tree);
        let tree = host.runtime.tree("a", true)?;
        equal(holds(&out(&tree, "/etc/added")?, "core\n"), true)?;
        drop(tree);
        equal(host.dir.path().join("layer/etc/added").exists(), false)?;
        equal(mounts()?, before)?;
        host.runtime.trim("a");
        let gone = host
            .runtime
            .tree("a", false)
            .err()
            .ok_or("seen after it was freed")?;
        contains(&gone.to_string(), "freed")
    })
}

fn looks(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        let mut config = host.sh("a", "sleep 60 & dd if=/bin/busybox of=/x bs=4k; echo up; wait");
        config.user = "app".into();
        config.mounts = Vec::new();
        host.runtime.create(config)?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut lines = host.runtime.logs("a", query);
        while let Some(line) = lines.recv().await {
            if line.text == b"up\n" {
                break;
            }
        }
        let mut processes = host.runtime.processes("a").ok_or("it does not run")?;
        // A moment after the shell forked it, the second one is a shell as well.
        for _ in 0..500 {
            if processes.iter().any(|p| p.command.starts_with("sleep")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            processes = host.runtime.processes("a").ok_or("it does not run")?;
        }
        let seen: Vec<(u32, &str, &str)> = (processes.iter())
            .map(|p| {
                (
                    p.inner_pid,
                    p.user.as_str(),
                    p.command.split(' ').next().unwrap_or_default(),
                )
            })
            .collect();
        equal(seen, vec![(1, "app", "sh"), (2, "app", "sleep")])?;
        equal(processes[1].parent, processes[0].pid)?;
        let stats = host.runtime.stats("a").ok_or("no stats")?;
        equal(stats.pids, 2)?;
        equal(stats.network, (0, 0))?;
        equal(stats.cpu_ns > 0 && stats.memory > 0, true)?;
        // Where the kernel counts disks at all, it counts this container's.
        let counted = ["blkio", "cgroup.controllers"]
            .iter()
            .any(|c| Path::new("/sys/fs/cgroup").join(c).exists());
        equal(stats.disk.is_some(), counted)
    })
}

fn small_init(host: Host) -> Result<(), Failed> {
    host.tokio.block_on(async {
        let mut config = host.sh(
            "a",
            "trap 'exit 6' TERM; echo pid $$; while true; do sleep 0.05; done",
        );
        config.init = true;
        host.runtime.create(config)?;
        host.runtime.start("a").await.map_err(|e| e.to_string())?;
        // The trap is in place once the line is out.
        let mut lines = host.runtime.logs(
            "a",
            LogQuery {
                follow: true,
                ..LogQuery::default()
            },
        );
        let line = lines.recv().await.ok_or("no line")?;
        equal(line.text == b"pid 1\n", false)?;
        let exit = host
            .runtime
            .stop("a", 15, Duration::from_secs(5))
            .await?
            .ok_or("no status")?;
        equal(exit.code, Some(6))
    })
}

fn leaves_nothing(host: Host) -> Result<(), Failed> {
    let counts = || -> Result<BTreeMap<&'static str, usize>, Failed> {
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()))?;
        Ok(BTreeMap::from([
            (
                "mounts",
                fs::read_to_string("/proc/self/mountinfo")?
                    .lines()
                    .filter(|l| l.contains("/containers/"))
                    .count(),
            ),
            ("descriptors", fs::read_dir("/proc/self/fd")?.count()),
            (
                "folders",
                fs::read_dir(host.dir.path().join("containers"))?.count(),
            ),
            ("processes", children.split_whitespace().count()),
        ]))
    };
    // The first one opens what stays open: epoll, wake-up pipes, threads.
    host.run(host.sh("warm", "true"))?;
    let before = counts()?;
    let began = Instant::now();
    for i in 0..1000 {
        host.run(host.sh(&format!("c{i}"), "exit 0"))?;
    }
    println!(
        "1000 containers: {:.1} ms each, start to removal",
        began.elapsed().as_secs_f64()
    );
    let name = host
        .dir
        .path()
        .file_name()
        .map(|n| n.to_string_lossy().replace('.', ""))
        .unwrap_or_default();
    for controller in ["memory", "cpu", "pids", ""] {
        let folder: PathBuf = Path::new("/sys/fs/cgroup")
            .join(controller)
            .join("rswarm-test")
            .join(&name);
        if let Ok(entries) = fs::read_dir(&folder) {
            equal(entries.flatten().filter(|e| e.path().is_dir()).count(), 0)?;
        }
    }
    equal(counts()?, before)
}
