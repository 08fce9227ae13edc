//! The first process of a container, from its birth in new namespaces to its program: one thread, no way back.
//!
//! What fails is reported through a pipe that closes by itself when the program is run.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use crate::cgroup;
use crate::plan::{LaunchPlan, ProcessPlan};
use crate::rootfs;
use crate::seccomp;
use crate::sys::{self, Cloned};
use crate::user::UserSpec;

/// Where programs are looked for when the container's environment names no PATH (Docker's default).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Performs the plan; returns only to say which step failed, through which pipe.
pub(crate) fn run(plan: &LaunchPlan, report: OwnedFd, filter: &mut [libc::sock_filter]) -> (String, OwnedFd) {
    if let Err(problem) = prepare(plan) {
        return (problem, report);
    }
    if plan.init {
        match sys::clone_into(0) {
            Ok(Cloned::Child) => {}
            Ok(Cloned::Parent(child, _)) => {
                // The pipe must close here too, or a program that runs would never be noticed.
                drop(report);
                reap_for(child);
            }
            Err(e) => return (format!("make the process below the init: {e}"), report),
        }
    }
    (become_program(&plan.process, filter), report)
}

fn prepare(plan: &LaunchPlan) -> Result<(), String> {
    cgroup::enter(&plan.cgroups)?;
    // After the cgroups were entered, so that they are the root of what the container sees.
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(|e| format!("make the cgroup namespace: {e}"))?;
    rustix::system::sethostname(plan.hostname.as_bytes()).map_err(|e| format!("set the host name: {e}"))?;
    if plan.oom_score_adj != 0 {
        fs::write("/proc/self/oom_score_adj", plan.oom_score_adj.to_string())
            .map_err(|e| format!("set the OOM score adjustment: {e}"))?;
    }
    rootfs::enter(&plan.rootfs)?;
    for (key, value) in &plan.sysctls {
        let file = format!("/proc/sys/{}", key.replace('.', "/"));
        fs::write(&file, value).map_err(|e| format!("set {key} to {value}: {e}"))?;
    }
    rootfs::seal(&plan.rootfs)
}

/// The small init: passes signals on, reaps every orphan, ends as its child ended.
fn reap_for(child: i32) -> ! {
    crate::shim::forward_signals(child);
    loop {
        match sys::wait(-1, true) {
            Ok(Some((pid, status))) if pid == child => std::process::exit(sys::decode(status).0),
            Ok(_) => {}
            Err(_) => std::process::exit(255),
        }
    }
}

/// Takes on user, capabilities, limits and filter, and runs the program; returns only to say what failed.
pub(crate) fn become_program(process: &ProcessPlan, filter: &mut [libc::sock_filter]) -> String {
    match take_on(process, filter) {
        Ok(never) => match never {},
        Err(problem) => problem,
    }
}

enum Never {}

fn take_on(process: &ProcessPlan, filter: &mut [libc::sock_filter]) -> Result<Never, String> {
    let step = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    for limit in &process.ulimits {
        sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(step("set a resource limit"))?;
    }
    let user = UserSpec::parse(&process.user).map_err(|e| e.to_string())?;
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let ids = user.resolve(&passwd, &group).map_err(|e| e.to_string())?;
    let mut groups = ids.groups.clone();
    for name in &process.groups {
        let spec = UserSpec::parse(&format!("0:{name}")).map_err(|e| e.to_string())?;
        groups.push(spec.resolve(&passwd, &group).map_err(|e| e.to_string())?.gid);
    }
    let program = locate(process)?;
    let mut env = process.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", ids.home));
    }
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.push(format!("PATH={PATH}"));
    }
    let kept = process.capabilities.iter().fold(0u64, |set, c| set | 1 << c);
    for capability in 0..64 {
        // The kernel ends the list with an error, wherever it ends.
        if kept & 1 << capability == 0 && sys::prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    rootfs::work_in(&process.cwd)?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(step("forbid new privileges"))?;
    let parent_dies = sys::parent_death_signal();
    if ids.uid != 0 {
        // A user other than root starts without capabilities, as with Docker.
        sys::set_ids(ids.uid, ids.gid, &groups).map_err(step("take on the user"))?;
        sys::set_capabilities(0, 0, 0).map_err(step("drop capabilities"))?;
    } else {
        sys::set_ids(ids.uid, ids.gid, &groups).map_err(step("take on the user"))?;
        sys::set_capabilities(kept, kept, 0).map_err(step("drop capabilities"))?;
    }
    // The kernel forgets it with another user (prctl(2)), and a probe that takes too long would go on for ever.
    if let Ok(signal @ 1..) = u64::try_from(parent_dies) {
        sys::prctl(libc::PR_SET_PDEATHSIG, signal).map_err(step("end with the parent"))?;
    }
    sys::close_on_exec_from(3).map_err(step("close descriptors"))?;
    sys::umask(0o022);
    sys::reset_signals();
    let words = |list: &[String]| {
        list.iter()
            .map(|w| rootfs::c_string(w))
            .collect::<Result<Vec<_>, _>>()
    };
    let (path, argv, env) = (rootfs::c_string(&program)?, words(&process.argv)?, words(&env)?);
    sys::load_filter(filter).map_err(step("load the seccomp filter"))?;
    let error = sys::exec(&path, &argv, &env);
    Err(format!("run {program}: {error}"))
}

/// The program by its full path.
fn locate(process: &ProcessPlan) -> Result<String, String> {
    let name = process.argv.first().cloned().unwrap_or_default();
    if name.contains('/') {
        let full = if name.starts_with('/') {
            name.clone()
        } else {
            format!("{}/{name}", process.cwd.trim_end_matches('/'))
        };
        return match fs::metadata(&full) {
            Ok(_) => Ok(full),
            Err(e) => Err(format!("run {name}: {e}: the image has no such program")),
        };
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or(PATH);
    let found = path.split(':').map(|dir| format!("{dir}/{name}")).find(|p| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    });
    found.ok_or_else(|| format!("run {name}: executable file not found in PATH ({path})"))
}

/// Writes what failed where the waiting parent reads it.
pub(crate) fn report(pipe: OwnedFd, problem: &str) {
    let _ = fs::File::from(pipe).write_all(problem.as_bytes());
}

/// The filter for a process, made before its birth so that nothing is allocated late.
pub(crate) fn filter_for(process: &ProcessPlan) -> Vec<libc::sock_filter> {
    seccomp::filter(&process.capabilities)
}

/// Joins the network namespace the container was given, if it was.
pub(crate) fn join_network(plan: &LaunchPlan) -> Result<u64, String> {
    match &plan.network {
        crate::config::NetworkNamespace::New => Ok(libc::CLONE_NEWNET as u64),
        crate::config::NetworkNamespace::Path(path) => {
            let file = fs::File::open(path)
                .map_err(|e| format!("open the network namespace {}: {e}", path.display()))?;
            sys::setns(file.as_fd(), libc::CLONE_NEWNET)
                .map_err(|e| format!("join the network namespace: {e}"))?;
            Ok(0)
        }
    }
}
