//! What can go wrong with a container, by what was asked.

use std::io;
use std::path::PathBuf;

/// Why the runtime cannot work on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its folder cannot be made.
    #[error("make the folder of containers {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its own binary cannot be shown to containers read-only.
    #[error("mount {} read-only for the processes that start containers", path.display())]
    Binary {
        /// The binary.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No cgroups.
    #[error(
        "no cgroup hierarchy is mounted below /sys/fs/cgroup: mount one, containers cannot be bounded without"
    )]
    NoCgroups,
}

/// Why a container was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The config cannot be carried out.
    #[error("container {id}: {problem}")]
    Config {
        /// The container.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// There is one with that id.
    #[error("container {id} exists already")]
    Exists {
        /// The container.
        id: String,
    },
    /// Its folder cannot be written.
    #[error("write the folder of container {id} at {}", path.display())]
    Folder {
        /// The container.
        id: String,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a container did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is none with that id, or it was made before its owner restarted.
    #[error("container {id} is not waiting to be started")]
    Unknown {
        /// The container.
        id: String,
    },
    /// The shim could not be run.
    #[error("run the shim of container {id}")]
    Shim {
        /// The container.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A step failed; the text names it.
    #[error("start container {id}: {problem}")]
    Step {
        /// The container.
        id: String,
        /// Which step, on what, and the kernel's answer.
        problem: String,
    },
}

/// Why a container could not be signalled or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// There is none with that id.
    #[error("there is no container {id} on this host")]
    Unknown {
        /// The container.
        id: String,
    },
    /// SIGKILL had no effect.
    #[error(
        "container {id} did not end within {seconds} s of SIGKILL: a process of it may hang in the kernel"
    )]
    Stuck {
        /// The container.
        id: String,
        /// How long it was waited.
        seconds: u64,
    },
    /// Not a signal.
    #[error("\"{0}\" is no signal")]
    Signal(String),
    /// The kernel refused.
    #[error("signal container {id}")]
    Kernel {
        /// The container.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a container's remains were not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It does not end.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Its folder stays.
    #[error("remove the folder {} of container {id}", path.display())]
    Folder {
        /// The container.
        id: String,
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a process was not run in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It does not run.
    #[error("container {id} is not running")]
    NotRunning {
        /// The container.
        id: String,
    },
    /// The request cannot be carried out.
    #[error("exec in container {id}: {problem}")]
    Config {
        /// The container.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// The helper could not be run.
    #[error("exec in container {id}")]
    Spawn {
        /// The container.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
