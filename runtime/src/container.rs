//! What callers hold: the runtime of one host.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::cgroup::{self, Stats};
use crate::config::ContainerConfig;
use crate::error::{CreateError, ExecError, OpenError, RemoveError, StartError, StopError};
use crate::exec::{self, ExecConfig, ExecSession};
use crate::logs::{self, LogLine, LogQuery};
use crate::plan::{self, HostFacts};
use crate::processes::{self, Process};
use crate::rootfs;
use crate::state_dir::{self, EXIT, ExitStatus, IDENTITY, Identity, Running};
use crate::sys;

/// How long a container may take to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shim may take to write the exit status after its container ended.
const SHIM_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the status is looked for in the moment between a container's end and its shim's word.
const STATUS_PAUSE: Duration = Duration::from_millis(1);
/// Longest answer of a shim.
const ANSWER_MAX: u64 = 64 << 10;

/// Where a runtime keeps its containers.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Folder of containers.
    pub root: PathBuf,
    /// Binary whose `main` calls [`crate::run_hidden`] first.
    pub exe: PathBuf,
    /// Folder below which cgroups are made, relative to each hierarchy.
    pub cgroup_parent: String,
}

/// The runtime of one host. Clones are the same runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RuntimeConfig,
    /// What shims are started from: the binary, through a read-only mount.
    binary: OwnedFd,
    facts: HostFacts,
    /// Made, not started: their configs hold secrets, so they are kept here and not on disk.
    waiting: Mutex<BTreeMap<String, ContainerConfig>>,
}

/// A started container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its first process.
    pub pid: u32,
    /// When, in milliseconds since 1970.
    pub started_ms: u64,
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its id.
    pub id: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was started; 0: never.
    pub started_ms: u64,
    /// Where it stands.
    pub state: ContainerState,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running {
        /// That process.
        pid: u32,
    },
    /// It ended.
    Exited(ExitStatus),
}

impl Runtime {
    /// Opens the runtime and finds its containers.
    ///
    /// # Errors
    /// [`OpenError`] when the folder or cgroups cannot be used.
    pub fn open(config: RuntimeConfig) -> Result<Self, OpenError> {
        fs::create_dir_all(&config.root).map_err(|source| OpenError::Folder {
            path: config.root.clone(),
            source,
        })?;
        let facts = cgroup::facts().ok_or(OpenError::NoCgroups)?;
        cgroup::delegate(&facts, &config.cgroup_parent).map_err(|source| OpenError::Folder {
            path: Path::new(cgroup::ROOT).join(&config.cgroup_parent),
            source,
        })?;
        let binary = rootfs::read_only_view(&config.exe).map_err(|source| OpenError::Binary {
            path: config.exe.clone(),
            source,
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                binary,
                facts,
                waiting: Mutex::new(BTreeMap::new()),
            }),
        })
    }

    /// A child of this binary, started through the read-only mount; it has our descriptors until it runs.
    fn helper(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.inner.binary.as_raw_fd()));
        command.arg0(&self.inner.config.exe);
        command
    }

    /// What the host offers.
    pub fn facts(&self) -> &HostFacts {
        &self.inner.facts
    }

    pub(crate) fn dir(&self, id: &str) -> PathBuf {
        self.inner.config.root.join(id)
    }

    fn plan(&self, config: &ContainerConfig) -> Result<plan::LaunchPlan, String> {
        let parent = &self.inner.config.cgroup_parent;
        plan::plan(
            config,
            &self.inner.facts,
            &self.dir(&config.id),
            Path::new(cgroup::ROOT),
            parent,
        )
    }

    /// Makes the folder of a container; nothing runs yet.
    ///
    /// # Errors
    /// [`CreateError`]; then nothing of it is left.
    pub fn create(&self, config: ContainerConfig) -> Result<(), CreateError> {
        let id = config.id.clone();
        let plan = self.plan(&config).map_err(|problem| CreateError::Config {
            id: id.clone(),
            problem,
        })?;
        let dir = self.dir(&id);
        if dir.exists() {
            return Err(CreateError::Exists { id });
        }
        let made = (|| -> io::Result<()> {
            for folder in ["", "upper", "work"] {
                use std::os::unix::fs::DirBuilderExt;
                fs::DirBuilder::new()
                    .mode(if folder == "upper" { 0o755 } else { 0o700 })
                    .create(dir.join(folder))?;
            }
            let identity = Identity {
                id: id.clone(),
                created_ms: state_dir::now_ms(),
                argv: config.argv.clone(),
                labels: config.labels.clone(),
                layers: config.layers.clone(),
                cgroups: plan.cgroups,
                process: plan.process,
            };
            state_dir::write(&dir, IDENTITY, &identity, false)
        })();
        if let Err(source) = made {
            let _ = fs::remove_dir_all(&dir);
            return Err(CreateError::Folder {
                id,
                path: dir,
                source,
            });
        }
        self.waiting().insert(id, config);
        Ok(())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ContainerConfig>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a container; returns once its program runs.
    ///
    /// # Errors
    /// [`StartError`] with the step that failed; then nothing runs, and it can only be removed.
    pub async fn start(&self, id: &str) -> Result<Started, StartError> {
        let config = self
            .waiting()
            .remove(id)
            .ok_or_else(|| StartError::Unknown { id: id.into() })?;
        let step = |problem: String| StartError::Step {
            id: id.into(),
            problem,
        };
        let plan = self.plan(&config).map_err(step)?;
        let text = serde_json::to_vec(&plan).map_err(|e| step(e.to_string()))?;
        drop((plan, config));
        let shim = |source| StartError::Shim {
            id: id.into(),
            source,
        };
        let mut child = self
            .helper()
            .arg("__shim")
            .arg(id)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(shim)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        if let Some(mut stdin) = stdin {
            // A shim that ended early says why below.
            let _ = stdin.write_all(&text).await;
        }
        let mut answer = String::new();
        if let Some(stdout) = stdout {
            stdout
                .take(ANSWER_MAX)
                .read_to_string(&mut answer)
                .await
                .map_err(shim)?;
        }
        // The shim outlives us or is reaped by tokio; its end is seen through its pidfd.
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        let answer = answer.trim();
        if let Some(text) = answer.strip_prefix("OK ") {
            let running: Running = serde_json::from_str(text).map_err(|e| step(e.to_string()))?;
            return Ok(Started {
                pid: running.pid,
                started_ms: running.started_ms,
            });
        }
        Err(step(
            answer
                .strip_prefix("ERR ")
                .unwrap_or("its shim ended without a word")
                .to_owned(),
        ))
    }

    /// Waits for the end of a container that was started.
    ///
    /// # Errors
    /// [`StopError::Unknown`] when there is none, or it was never started.
    pub async fn wait(&self, id: &str) -> Result<ExitStatus, StopError> {
        let unknown = || StopError::Unknown { id: id.into() };
        let dir = self.dir(id);
        if let Some(exit) = state_dir::read::<ExitStatus>(&dir, EXIT) {
            return Ok(exit);
        }
        let running = state_dir::running(&dir).ok_or_else(unknown)?;
        let container = open_process(running.pid, running.pid_start);
        let copy = container
            .as_ref()
            .and_then(|c| rustix::io::fcntl_dupfd_cloexec(c, 3).ok());
        if let Some(container) = container {
            ended(container).await;
        }
        // The shim writes the status at once, and then takes its time to clean up.
        while state_dir::alive(running.shim, running.shim_start) {
            if let Some(exit) = state_dir::read::<ExitStatus>(&dir, EXIT) {
                return Ok(exit);
            }
            tokio::time::sleep(STATUS_PAUSE).await;
        }
        if let Some(exit) = state_dir::read::<ExitStatus>(&dir, EXIT) {
            return Ok(exit);
        }
        // The shim was killed: the container went on without it.
        let code = copy.and_then(|fd| sys::exit_info(fd.as_fd())).map(sys::decode);
        let identity: Identity = state_dir::read(&dir, IDENTITY).ok_or_else(unknown)?;
        let exit = ExitStatus {
            code: code.map(|(c, _)| c),
            signal: code.and_then(|(_, s)| s),
            oom_killed: cgroup::oom_killed(&identity.cgroups),
            finished_ms: state_dir::now_ms(),
        };
        let _ = state_dir::write(&dir, EXIT, &exit, true);
        cgroup::remove(&identity.cgroups);
        Ok(exit)
    }

    /// Sends a signal to the first process of a container. One that ended is no error.
    ///
    /// # Errors
    /// [`StopError`] when there is none with that id, or the kernel refuses.
    pub fn signal(&self, id: &str, signal: i32) -> Result<(), StopError> {
        let dir = self.dir(id);
        let Some(running) = state_dir::running(&dir) else {
            return if dir.exists() {
                Ok(())
            } else {
                Err(StopError::Unknown { id: id.into() })
            };
        };
        match open_process(running.pid, running.pid_start) {
            None => Ok(()),
            Some(fd) => match sys::pidfd_signal(fd.as_fd(), signal) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                other => other.map_err(|source| StopError::Kernel {
                    id: id.into(),
                    source,
                }),
            },
        }
    }

    /// Asks a container to end with `signal`, and kills it `grace` later.
    ///
    /// Returns when its exit status is known. On one that ended it answers the recorded status again; on one that was
    /// never started nothing happens.
    ///
    /// # Errors
    /// [`StopError::Stuck`] when SIGKILL has no effect within 5 s.
    pub async fn stop(
        &self,
        id: &str,
        signal: i32,
        grace: Duration,
    ) -> Result<Option<ExitStatus>, StopError> {
        let dir = self.dir(id);
        if state_dir::running(&dir).is_none() {
            self.waiting().remove(id);
            return if dir.exists() {
                Ok(None)
            } else {
                Err(StopError::Unknown { id: id.into() })
            };
        }
        if !grace.is_zero() {
            self.signal(id, signal)?;
            if let Ok(exit) = tokio::time::timeout(grace, self.wait(id)).await {
                return exit.map(Some);
            }
        }
        self.signal(id, libc::SIGKILL)?;
        match tokio::time::timeout(KILL_TIMEOUT + SHIM_TIMEOUT, self.wait(id)).await {
            Ok(exit) => exit.map(Some),
            Err(_) => Err(StopError::Stuck {
                id: id.into(),
                seconds: KILL_TIMEOUT.as_secs() + SHIM_TIMEOUT.as_secs(),
            }),
        }
    }

    /// Removes what is left of a container; one that runs is killed first, one that is gone is no error.
    ///
    /// # Errors
    /// [`RemoveError`] when it does not end or its folder stays.
    pub async fn remove(&self, id: &str) -> Result<(), RemoveError> {
        let dir = self.dir(id);
        self.waiting().remove(id);
        if !dir.exists() {
            return Ok(());
        }
        self.stop(id, libc::SIGKILL, Duration::ZERO).await?;
        let running = state_dir::running(&dir);
        if let Some(shim) = running.and_then(|r| open_process(r.shim, r.shim_start)) {
            ended(shim).await;
        }
        if let Some(identity) = state_dir::read::<Identity>(&dir, IDENTITY) {
            cgroup::remove(&identity.cgroups);
        }
        let path = dir.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(&path)).await;
        match removed {
            Ok(Err(source)) if source.kind() != io::ErrorKind::NotFound => Err(RemoveError::Folder {
                id: id.into(),
                path: dir,
                source,
            }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Frees the writable layer of a container that ended; its log and status stay.
    pub fn trim(&self, id: &str) {
        for folder in ["upper", "work"] {
            let _ = fs::remove_dir_all(self.dir(id).join(folder));
        }
    }

    /// Every container of this host, running or not.
    pub fn list(&self) -> Vec<ContainerInfo> {
        let Ok(entries) = fs::read_dir(&self.inner.config.root) else {
            return Vec::new();
        };
        let mut found: Vec<ContainerInfo> = entries
            .flatten()
            .filter_map(|e| self.inspect(&e.file_name().to_string_lossy()))
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// What is known of one container.
    pub fn inspect(&self, id: &str) -> Option<ContainerInfo> {
        let dir = self.dir(id);
        let identity: Identity = state_dir::read(&dir, IDENTITY)?;
        let running = state_dir::running(&dir);
        let state = match (state_dir::read::<ExitStatus>(&dir, EXIT), &running) {
            (Some(exit), _) => ContainerState::Exited(exit),
            (None, None) => ContainerState::Created,
            // Until its shim wrote how it ended, a process that is gone counts as running: `wait` knows better soon.
            (None, Some(r)) => ContainerState::Running { pid: r.pid },
        };
        Some(ContainerInfo {
            id: identity.id,
            argv: identity.argv,
            labels: identity.labels,
            created_ms: identity.created_ms,
            started_ms: running.map_or(0, |r| r.started_ms),
            state,
        })
    }

    /// What a running container uses; absent when it does not run.
    pub fn stats(&self, id: &str) -> Option<Stats> {
        let dir = self.dir(id);
        let running = state_dir::running(&dir)?;
        let identity: Identity = state_dir::read(&dir, IDENTITY)?;
        state_dir::alive(running.pid, running.pid_start)
            .then(|| cgroup::stats(&identity.cgroups, running.pid))
    }

    /// Processes of a running container; absent when it does not run.
    pub fn processes(&self, id: &str) -> Option<Vec<Process>> {
        let dir = self.dir(id);
        let running = state_dir::running(&dir)?;
        let identity: Identity = state_dir::read(&dir, IDENTITY)?;
        if !state_dir::alive(running.pid, running.pid_start) {
            return None;
        }
        let passwd = self
            .tree(id, false)
            .ok()
            .and_then(|tree| tree.text("/etc/passwd"));
        Some(processes::list(
            &identity.cgroups,
            running.pid,
            &passwd.unwrap_or_default(),
        ))
    }

    /// Runs a further process in a container.
    ///
    /// # Errors
    /// [`ExecError`] when it does not run, or the helper cannot be started. A program that cannot be run is seen as
    /// exit code 126 or 127 with a line on standard error.
    pub fn exec(&self, id: &str, config: &ExecConfig) -> Result<ExecSession, ExecError> {
        let dir = self.dir(id);
        let not_running = || ExecError::NotRunning { id: id.into() };
        let identity: Identity = state_dir::read(&dir, IDENTITY).ok_or_else(not_running)?;
        let running = state_dir::running(&dir).ok_or_else(not_running)?;
        if !state_dir::alive(running.pid, running.pid_start) {
            return Err(not_running());
        }
        exec::start(self.helper(), &dir, &identity, running, config)
    }

    /// Reads the log of a container.
    pub fn logs(&self, id: &str, query: LogQuery) -> mpsc::Receiver<LogLine> {
        let dir = self.dir(id);
        let of = dir.clone();
        logs::read(dir, query, move || of.join(EXIT).exists() || !of.exists())
    }

    /// Removes the cgroups this runtime made for itself. Containers must be gone.
    pub fn close(&self) {
        let parent = Path::new(&self.inner.config.cgroup_parent);
        let roots: Vec<PathBuf> = if self.inner.facts.cgroup_v2 {
            vec![PathBuf::from(cgroup::ROOT)]
        } else {
            self.inner
                .facts
                .controllers
                .iter()
                .map(|c| Path::new(cgroup::ROOT).join(c))
                .collect()
        };
        for root in roots {
            let mut folder = Some(parent);
            while let Some(part) = folder.filter(|p| !p.as_os_str().is_empty()) {
                if fs::remove_dir(root.join(part)).is_err() {
                    break;
                }
                folder = part.parent();
            }
        }
    }
}

/// A process by its id and start time: absent when it is gone, whoever has the id now.
fn open_process(pid: u32, start: u64) -> Option<OwnedFd> {
    let fd = sys::pidfd_open(pid).ok()?;
    // Checked after opening: the id cannot change hands any more.
    state_dir::alive(pid, start).then_some(fd)
}

/// Waits until the process of a pidfd ended.
async fn ended(fd: OwnedFd) {
    // Registration fails only without a reactor, and this is async.
    if let Ok(fd) = sys::readiness(fd) {
        let _ = fd.readable().await;
    }
}
