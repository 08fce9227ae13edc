//! One host: its daemon, what an operator types there, and what can happen to it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use net::{Wire, inside};
use rustix::process::{Pid, Signal};

use crate::command::{self, Said};
use crate::hosts::{HostsError, step};

/// How long a command may take where nothing else is said.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon that was asked to end may take.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Lines of a daemon's log that are shown of it.
const LOG_LINES: usize = 25;

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its number, from 1 on.
    pub number: u8,
    /// Its name, which its node has as well.
    pub name: String,
    /// Name of its dataplane on this machine.
    pub dataplane: String,
    exe: Mutex<PathBuf>,
    dir: PathBuf,
    namespace: PathBuf,
    log: String,
    daemon: Mutex<Option<Child>>,
}

impl Host {
    pub(crate) fn new(
        (number, id): (u8, &str),
        (exe, dir, namespace): (&Path, &Path, PathBuf),
        log: &str,
    ) -> Self {
        Self {
            number,
            name: format!("h{number}"),
            dataplane: format!("{id}{number}"),
            exe: Mutex::new(exe.to_owned()),
            dir: dir.join(format!("h{number}")),
            namespace,
            log: log.to_owned(),
            daemon: Mutex::default(),
        }
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Wire::address(self.number)
    }

    /// Its IPv6 address.
    pub fn address_ipv6(&self) -> Ipv6Addr {
        Wire::address_ipv6(self.number)
    }

    /// Where its managers are joined.
    pub fn peer(&self) -> String {
        format!("{}:2377", self.address())
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What its daemon keeps.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// The file of its network namespace.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its daemon's process, while it has one.
    pub fn pid(&self) -> Option<i32> {
        self.daemon().as_ref().and_then(|d| i32::try_from(d.id()).ok())
    }

    /// Whether its daemon runs.
    pub fn is_up(&self) -> bool {
        (self.daemon().as_mut()).is_some_and(|daemon| matches!(daemon.try_wait(), Ok(None)))
    }

    /// Whether its daemon was killed, or killed itself at a place a test chose.
    pub fn died(&self) -> bool {
        let killed = Some(Signal::KILL.as_raw());
        (self.daemon().as_mut())
            .is_some_and(|daemon| matches!(daemon.try_wait(), Ok(Some(status)) if status.signal() == killed))
    }

    /// Starts its daemon, with what an earlier one left, and does not wait until it answers.
    ///
    /// # Errors
    /// [`HostsError`] when it cannot be started, or runs.
    pub fn boot(&self) -> Result<(), HostsError> {
        self.boot_with(&[])
    }

    /// As [`Self::boot`], with something more in its environment.
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub fn boot_with(&self, environment: &[(&str, &str)]) -> Result<(), HostsError> {
        if self.is_up() {
            return step(
                format!("start the daemon of {}", self.name),
                Err(io::Error::other("it runs")),
            );
        }
        let what = format!("start the daemon of {}", self.name);
        step(&what, fs::create_dir_all(&self.dir))?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = step(&what, log)?;
        let mut command = self.command(&["daemon", "--hostname", &self.name, "--dataplane", &self.dataplane]);
        command
            .arg("--log")
            .arg(&self.log)
            .arg("--data-dir")
            .arg(self.data());
        // Signals of a terminal are not for it: it is needed to clean up.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(environment.iter().copied())
            .process_group(0);
        let child = inside(&self.namespace, move || command.spawn())?;
        *self.daemon() = Some(step(&what, child)?);
        Ok(())
    }

    /// Waits until its daemon answers.
    ///
    /// # Errors
    /// [`HostsError`] when it does not in time, or has ended.
    pub fn answers(&self) -> Result<(), HostsError> {
        let began = Instant::now();
        loop {
            if self.run_within(&["info"], None, START_LIMIT)?.ok() {
                return Ok(());
            }
            if !self.is_up() || began.elapsed() > START_LIMIT {
                return Err(HostsError::Silent {
                    host: self.name.clone(),
                    log: self.log(),
                });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Starts its daemon again and waits until it answers.
    ///
    /// # Errors
    /// As [`Self::boot`] and [`Self::answers`].
    pub fn start(&self) -> Result<(), HostsError> {
        self.boot()?;
        self.answers()
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Kills its daemon; containers go on.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.daemon().take() {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Asks its daemon to end; answers its exit code, none when it had to be killed.
    pub fn stop(&self) -> Option<i32> {
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let began = Instant::now();
        let mut held = self.daemon();
        let daemon = held.as_mut()?;
        let mut code = None;
        while began.elapsed() < END_LIMIT {
            if let Ok(Some(status)) = daemon.try_wait() {
                code = status.code();
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
        *held = None;
        code
    }

    /// Stops its daemon from running, as a host whose machine is paused.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it run again.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Puts another binary in place of its own, for the next start of its daemon and for its commands.
    pub fn install(&self, exe: &Path) {
        *self.exe.lock().unwrap_or_else(PoisonError::into_inner) = exe.to_owned();
    }

    /// Forgets what the managers' log and identity of this host are, as a disk that was replaced.
    ///
    /// # Errors
    /// [`HostsError`] when a folder cannot be removed.
    pub fn wipe(&self) -> Result<(), HostsError> {
        for folder in ["raft", "identity"] {
            let removed = fs::remove_dir_all(self.data().join(folder));
            let gone = removed.or_else(|e| {
                if e.kind() == io::ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(e)
                }
            });
            step(format!("wipe {folder} of {}", self.name), gone)?;
        }
        Ok(())
    }

    /// Our binary with its socket.
    pub fn command(&self, words: &[&str]) -> Command {
        let exe = self.exe.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = Command::new(exe);
        command
            .arg("-H")
            .arg(self.socket())
            .args(words)
            .current_dir(&self.dir);
        command
    }

    /// Runs a command as an operator on this host; it is ended after a minute.
    ///
    /// # Errors
    /// [`HostsError`] when it cannot be started.
    pub fn run(&self, words: &[&str]) -> Result<Said, HostsError> {
        self.run_within(words, None, COMMAND_LIMIT)
    }

    /// As [`Self::run`], with something to read and another limit.
    ///
    /// # Errors
    /// [`HostsError`] when it cannot be started.
    pub fn run_within(
        &self,
        words: &[&str],
        input: Option<&str>,
        limit: Duration,
    ) -> Result<Said, HostsError> {
        step(
            format!("run {} on {}", words.join(" "), self.name),
            command::run(self.command(words), input, limit),
        )
    }

    /// Does something in its network namespace.
    ///
    /// # Errors
    /// [`HostsError`] when there is no such namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, HostsError> {
        Ok(inside(&self.namespace, work)?)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// All that its daemons logged.
    pub fn whole_log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of its daemon's log.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.resume();
        self.kill();
    }
}
