//! A further process in a running container.
//!
//! The agent runs this binary again as a helper; the helper joins the container's cgroups and namespaces, makes the
//! process, waits for it and ends as it ended. Standard input and output are the helper's own.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::{Child, Command};

use crate::cgroup;
use crate::error::ExecError;
use crate::init;
use crate::plan::{CgroupPlan, ProcessPlan};
use crate::state_dir::{Identity, Running};
use crate::sys::{self, Cloned};

/// What to run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecConfig {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, beside the container's own.
    pub env: Vec<String>,
    /// `user[:group]`; empty: the container's.
    pub user: String,
    /// Working directory; empty: the container's.
    pub cwd: String,
    /// A terminal of rows and columns.
    pub tty: Option<(u16, u16)>,
    /// Whether standard input is connected.
    pub stdin: bool,
}

#[derive(Serialize, Deserialize)]
struct Order {
    pid: u32,
    cgroups: CgroupPlan,
    process: ProcessPlan,
    tty: bool,
}

/// A process that runs in a container.
pub struct ExecSession {
    child: Child,
    terminal: Option<Terminal>,
    /// Its standard input, if it was connected.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output; with a terminal also its errors.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

impl ExecSession {
    /// Waits for its end: exit code, or 128 + signal.
    ///
    /// # Errors
    /// The helper was lost.
    pub async fn wait(&mut self) -> std::io::Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await?;
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Its terminal, if it has one.
    pub fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Ends it. The helper takes the process with it.
    pub fn kill(&mut self) {
        let _ = self.child.start_kill();
    }
}

/// The terminal of a process that runs in a container.
#[derive(Debug, Clone)]
pub struct Terminal(std::sync::Arc<OwnedFd>);

impl Terminal {
    /// Sets its size.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let _ = rustix::termios::tcsetwinsize(self.0.as_ref(), size);
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

pub(crate) fn start(
    helper: Command,
    dir: &Path,
    identity: &Identity,
    running: Running,
    config: &ExecConfig,
) -> Result<ExecSession, ExecError> {
    let id = identity.id.clone();
    if config.argv.first().is_none_or(String::is_empty) {
        return Err(ExecError::Config {
            id,
            problem: "there is no program to run".into(),
        });
    }
    let spawn = |source: std::io::Error| ExecError::Spawn {
        id: identity.id.clone(),
        source,
    };
    let mut process = identity.process.clone();
    process.argv.clone_from(&config.argv);
    // Of two with one name most programs take the first.
    let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = config.env.iter().map(name).collect();
    process.env.retain(|entry| !given.contains(&name(entry)));
    process.env.extend(config.env.iter().cloned());
    if !config.user.is_empty() {
        process.user.clone_from(&config.user);
    }
    if !config.cwd.is_empty() {
        process.cwd.clone_from(&config.cwd);
    }
    let order = Order {
        pid: running.pid,
        cgroups: identity.cgroups.clone(),
        process,
        tty: config.tty.is_some(),
    };
    let name = format!(
        "exec-{}-{}.json",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    crate::state_dir::write(dir, &name, &order, false).map_err(spawn)?;
    let path = dir.join(&name);
    let session = spawn_helper(helper, &path, config);
    if session.is_err() {
        let _ = fs::remove_file(&path);
    }
    session.map_err(spawn)
}

fn spawn_helper(mut command: Command, order: &Path, config: &ExecConfig) -> std::io::Result<ExecSession> {
    command.arg("__exec").arg(order).env_clear().kill_on_drop(true);
    let Some((rows, cols)) = config.tty else {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if config.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = command.spawn()?;
        return Ok(ExecSession {
            stdin: child.stdin.take().map(|s| Box::new(s) as _),
            stdout: child.stdout.take().map(|s| Box::new(s) as _),
            stderr: child.stderr.take().map(|s| Box::new(s) as _),
            child,
            terminal: None,
        });
    };
    let (ours, theirs) = crate::shim::open_terminal()?;
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    command
        .stdin(Stdio::from(copy(&theirs)?))
        .stdout(Stdio::from(copy(&theirs)?))
        .stderr(Stdio::from(theirs));
    let (stdin, stdout) = (copy(&ours)?, copy(&ours)?);
    let terminal = Terminal(std::sync::Arc::new(ours));
    terminal.resize(rows, cols);
    let session = ExecSession {
        child: command.spawn()?,
        stdin: Some(Box::new(tokio::fs::File::from_std(fs::File::from(stdin)))),
        stdout: Some(Box::new(tokio::fs::File::from_std(fs::File::from(stdout)))),
        stderr: None,
        terminal: Some(terminal),
    };
    // The command keeps its copies of the other end until it is dropped; then reading ends when the process does.
    drop(command);
    Ok(session)
}

/// Entry of the hidden command; answers the exit code of the process.
pub(crate) fn main(order: Option<OsString>) -> i32 {
    sys::hide();
    match run(order.map(PathBuf::from)) {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("exec: {problem}");
            // Docker's codes: not found 127, cannot be run 126, anything else 125.
            if problem.contains("not found") || problem.contains("No such file") {
                127
            } else {
                126
            }
        }
    }
}

fn run(order: Option<PathBuf>) -> Result<i32, String> {
    let path = order.ok_or("no order")?;
    let text = fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let _ = fs::remove_file(&path);
    let order: Order = serde_json::from_slice(&text).map_err(|e| format!("read the order: {e}"))?;
    // Ends with its caller: nobody would read its output.
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
    cgroup::enter(&order.cgroups)?;
    let pidfd = sys::pidfd_open(order.pid).map_err(|e| format!("find the container: {e}"))?;
    let kinds = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    let mut filter = init::filter_for(&order.process);
    let (report_in, report_out) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| format!("make a pipe: {e}"))?;
    sys::setns(pidfd.as_fd(), kinds).map_err(|e| format!("join the container: {e}"))?;
    match sys::clone_into(0).map_err(|e| format!("make the process: {e}"))? {
        Cloned::Child => {
            drop(report_in);
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
            let _ = rustix::process::setsid();
            if order.tty {
                let _ = sys::take_terminal(rustix::stdio::stdin());
            }
            let problem = init::become_program(&order.process, &mut filter);
            init::report(report_out, &problem);
            std::process::exit(126);
        }
        Cloned::Parent(pid, _pidfd) => {
            drop(report_out);
            let mut problem = String::new();
            let _ = fs::File::from(report_in).read_to_string(&mut problem);
            let status = sys::wait(pid, true).map_err(|e| format!("wait for the process: {e}"))?;
            if !problem.is_empty() {
                return Err(problem);
            }
            Ok(status.map_or(255, |(_, s)| sys::decode(s).0))
        }
    }
}
