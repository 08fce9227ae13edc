//! The embedded container runtime: namespaces, cgroups, overlay, shim, logs, exec.
//!
//! It is given folders for layers and knows no image, task, service or cluster. `create` writes the container's folder, `start` runs a
//! shim (this binary again) that makes the container's first process and outlives its caller, `wait` reads what the
//! shim left on disk.
#![deny(unsafe_code)]

// What is asked for, and the plan made of it.
pub mod config;
pub mod plan;

// What performs the plan: the shim, the container's first process, and helpers of both.
mod cgroup;
mod exec;
mod init;
mod rootfs;
mod seccomp;
mod shim;
mod user;

// What is on disk, and how it is read.
pub mod copy;
pub mod logs;
pub mod merge;
mod processes;
mod state_dir;

// What callers hold.
mod container;
mod error;

#[allow(
    unsafe_code,
    reason = "the only unsafe code of this crate: one system call a function"
)]
mod sys;

pub use cgroup::Stats;
pub use config::{
    ContainerConfig, FileMount, LogConfig, MountConfig, MountSource, NetworkNamespace, Resources, Ulimit,
};
pub use container::{ContainerInfo, ContainerState, Runtime, RuntimeConfig, Started};
pub use error::{CreateError, ExecError, OpenError, RemoveError, StartError, StopError};
pub use exec::{ExecConfig, ExecSession, Terminal};
pub use logs::{LogLine, LogQuery, LogStream};
pub use processes::Process;
pub use state_dir::{ExitStatus, boot_id};

/// The seccomp filter of a container with Docker's default capabilities, so that a bench can load the same.
#[doc(hidden)]
pub fn default_filter() -> Vec<(u16, u8, u8, u32)> {
    let kept = plan::capabilities(&[], &[]).unwrap_or_default();
    let flat = |f: libc::sock_filter| (f.code, f.jt, f.jf, f.k);
    seccomp::filter(&kept).into_iter().map(flat).collect()
}

/// Keeps the memory of a long-lived process small; to be called before it has threads.
///
/// glibc gives every thread an arena and keeps what a burst left in it: a daemon that once started 200 containers would
/// stay large.
pub fn tune_memory() {
    sys::tune_allocator();
}

/// Gives memory back that is free; takes some milliseconds, so it is for quiet moments.
pub fn trim_memory() {
    sys::trim_allocator();
}

/// Runs the hidden part this process was started for, if its arguments say so, and never returns from it.
///
/// The binary's `main` calls this first: the shim and the first process of a container are the same binary.
pub fn run_hidden() {
    let mut args = std::env::args_os().skip(1);
    let part = args.next();
    let Some(part) = part.as_deref().and_then(|p| p.to_str()) else {
        return;
    };
    let code = match part {
        "__shim" => shim::main(args.next()),
        "__exec" => exec::main(args.next()),
        _ => return,
    };
    std::process::exit(code);
}
