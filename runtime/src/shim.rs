//! The parent of one container: makes its first process, holds its output, waits, leaves the exit status on disk.
//!
//! It is a process of its own with one thread, so that the death of its caller loses no container, no exit code and no
//! line of a log.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use crate::cgroup;
use crate::init;
use crate::logs::{LogStream, LogWriter};
use crate::plan::LaunchPlan;
use crate::state_dir::{self, EXIT, ExitStatus, RUNNING, Running};
use crate::sys::{self, Cloned};

/// Longest plan read: arguments, environment and secrets have bounds of their own below this.
const PLAN_MAX: u64 = 64 << 20;
/// How long output is still read when the container ended but something else holds its pipe.
const DRAIN_MS: i64 = 200;

/// Entry of the hidden command; answers the exit code.
pub(crate) fn main(_: Option<OsString>) -> i32 {
    sys::hide();
    let mut text = Vec::new();
    if io::stdin().lock().take(PLAN_MAX).read_to_end(&mut text).is_err() {
        return 1;
    }
    let plan: LaunchPlan = match serde_json::from_slice(&text) {
        Ok(plan) => plan,
        Err(e) => return fail(&format!("read the plan: {e}")),
    };
    drop(text);
    match launch(&plan) {
        Ok(child) => watch(plan, child),
        Err(problem) => {
            cgroup::remove(&plan.cgroups);
            fail(&problem)
        }
    }
}

/// Tells the caller, who waits at our standard output, that nothing was started.
fn fail(problem: &str) -> i32 {
    let _ = writeln!(io::stdout(), "ERR {}", problem.replace('\n', " "));
    1
}

/// A started container.
struct Child {
    pid: i32,
    pidfd: OwnedFd,
    outputs: Vec<(OwnedFd, LogStream)>,
}

fn launch(plan: &LaunchPlan) -> Result<Child, String> {
    let step = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    // A session of our own: a signal to the caller's terminal or group does not reach the container.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        sys::ignore(signal);
    }
    cgroup::make(&plan.cgroups)?;
    let network = init::join_network(plan)?;
    let (report_in, report_out) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
    let stdio = Stdio::make(plan.tty)?;
    let mut filter = init::filter_for(&plan.process);
    let kinds =
        network | (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
    match sys::clone_into(kinds).map_err(|e| format!("make the namespaces: {e}"))? {
        Cloned::Child => {
            drop(report_in);
            let (problem, pipe) = match stdio.take_on(plan.tty) {
                Ok(()) => init::run(plan, report_out, &mut filter),
                Err(e) => (format!("take on standard input and output: {e}"), report_out),
            };
            init::report(pipe, &problem);
            std::process::exit(125);
        }
        Cloned::Parent(pid, pidfd) => {
            drop(report_out);
            let mut problem = String::new();
            let _ = File::from(report_in).read_to_string(&mut problem);
            if !problem.is_empty() {
                let _ = sys::wait(pid, true);
                return Err(problem);
            }
            Ok(Child {
                pid,
                pidfd,
                outputs: stdio.outputs(),
            })
        }
    }
}

/// Both ends of the container's standard input and output.
struct Stdio {
    ours: Vec<(OwnedFd, LogStream)>,
    theirs: [OwnedFd; 3],
}

impl Stdio {
    fn make(tty: bool) -> Result<Self, String> {
        let step = |e: rustix::io::Errno| format!("make standard input and output: {e}");
        if tty {
            let (ours, theirs) = open_terminal().map_err(step)?;
            let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(step);
            let (second, third) = (copy(&theirs)?, copy(&theirs)?);
            return Ok(Self {
                ours: vec![(ours, LogStream::Stdout)],
                theirs: [theirs, second, third],
            });
        }
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(step);
        let ((out_in, out), (err_in, err)) = (pipe()?, pipe()?);
        let null = File::open("/dev/null").map_err(|e| format!("open /dev/null: {e}"))?;
        Ok(Self {
            ours: vec![(out_in, LogStream::Stdout), (err_in, LogStream::Stderr)],
            theirs: [null.into(), out, err],
        })
    }

    /// In the child: puts the container's ends in place.
    fn take_on(self, tty: bool) -> io::Result<()> {
        drop(self.ours);
        rustix::stdio::dup2_stdin(&self.theirs[0])?;
        rustix::stdio::dup2_stdout(&self.theirs[1])?;
        rustix::stdio::dup2_stderr(&self.theirs[2])?;
        let _ = rustix::process::setsid();
        if tty {
            sys::take_terminal(rustix::stdio::stdin())?;
        }
        Ok(())
    }

    /// In the parent: keeps our ends only.
    fn outputs(self) -> Vec<(OwnedFd, LogStream)> {
        self.ours
    }
}

/// A new pair of terminal ends: ours and the process's.
pub(crate) fn open_terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags =
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, theirs))
}

fn watch(plan: LaunchPlan, child: Child) -> i32 {
    let me = std::process::id();
    let pid = u32::try_from(child.pid).unwrap_or(0);
    let running = Running {
        boot: state_dir::boot_id(),
        pid,
        pid_start: state_dir::start_time(pid).unwrap_or(0),
        shim: me,
        shim_start: state_dir::start_time(me).unwrap_or(0),
        started_ms: state_dir::now_ms(),
    };
    let known = state_dir::write(&plan.dir, RUNNING, &running, false);
    match known.and_then(|()| serde_json::to_string(&running).map_err(Into::into)) {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "OK {text}");
        }
        Err(e) => {
            // A container nobody could find again must not run.
            let _ = sys::pidfd_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = sys::wait(child.pid, true);
            cgroup::remove(&plan.cgroups);
            return fail(&format!("record the container in {}: {e}", plan.dir.display()));
        }
    }
    detach_stdio();
    let LaunchPlan {
        dir, cgroups, log, ..
    } = plan;
    let mut writer = LogWriter::open(&dir, log);
    let status = pump(&child, &mut writer);
    let (code, signal) = sys::decode(status);
    let exit = ExitStatus {
        code: Some(code),
        signal,
        oom_killed: cgroup::oom_killed(&cgroups),
        finished_ms: state_dir::now_ms(),
    };
    let written = state_dir::write(&dir, EXIT, &exit, true);
    cgroup::remove(&cgroups);
    i32::from(written.is_err())
}

/// The caller's pipes are not ours to hold.
fn detach_stdio() {
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Moves output to the log until the container ended and its output is read; answers its raw wait status.
fn pump(child: &Child, log: &mut LogWriter) -> i32 {
    let mut buffer = vec![0u8; 32 << 10];
    let mut open: Vec<bool> = vec![true; child.outputs.len()];
    let mut ended: Option<i32> = None;
    loop {
        let live: Vec<usize> = (0..open.len()).filter(|i| open[*i]).collect();
        if ended.is_some() && live.is_empty() {
            break;
        }
        let fds: Vec<BorrowedFd<'_>> = live.iter().map(|i| child.outputs[*i].0.as_fd()).collect();
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        if ended.is_none() {
            polled.push(PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN));
        }
        let patience = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: DRAIN_MS * 1_000_000,
        };
        let ready = match poll(&mut polled, ended.map(|_| &patience)) {
            Ok(0) => break,
            Ok(_) => polled.iter().map(|p| !p.revents().is_empty()).collect::<Vec<_>>(),
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        };
        for (slot, i) in live.iter().enumerate().filter(|(slot, _)| ready[*slot]) {
            let _ = slot;
            let (fd, stream) = &child.outputs[*i];
            match rustix::io::read(fd, &mut buffer[..]) {
                Ok(n) if n > 0 => log.write(*stream, &buffer[..n]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Ok(_) | Err(_) => open[*i] = false,
            }
        }
        if ended.is_none() && ready.last() == Some(&true) {
            ended = sys::wait(child.pid, false)
                .ok()
                .flatten()
                .map(|(_, status)| status);
        }
    }
    log.finish();
    ended
        .or_else(|| sys::wait(child.pid, true).ok().flatten().map(|(_, s)| s))
        .unwrap_or(255 << 8)
}

/// The process to which the small init passes signals on.
static TARGET: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: libc::c_int) {
    let _ = sys::kill(TARGET.load(Ordering::Relaxed), signal);
}

/// Passes signals on that would otherwise end or stop the small init.
pub(crate) fn forward_signals(child: i32) {
    TARGET.store(child, Ordering::Relaxed);
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGWINCH,
    ] {
        sys::handle(signal, pass_on);
    }
}
