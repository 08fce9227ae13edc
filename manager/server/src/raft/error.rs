//! Why the files of the raft log cannot be read or written.

use std::io;
use std::path::{Path, PathBuf};

/// Why the raft log of this node cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A call to the system failed.
    #[error("{what} of the raft log {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no room for it. Nothing of it was acknowledged, and it may be tried again.
    #[error(
        "E_DISK_FULL: {what} of the raft log {path}: no space is left on that disk. Nothing that was acknowledged is \
         lost; free space there and this manager goes on by itself"
    )]
    Full {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Acknowledged bytes changed on disk: this manager must not vote any more.
    #[error(
        "E_LOG_CORRUPT: raft log {path} is damaged at offset {offset}: {why}. The manager does not start with it: \
         restore the folder from a backup, or remove it and join the cluster again as a new node"
    )]
    Corrupt {
        /// In which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// Written by a newer version.
    #[error("{path} has format {found}, this version reads {known}: start the version that wrote it")]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// Sealed with a key that is not there.
    #[error(
        "raft log {path} is sealed with data key {key}, which the file \"keys\" beside it does not hold: were the two \
         restored from different backups? Restore the whole folder, or remove it and join the cluster again as a new \
         node"
    )]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// Number of the key.
        key: u32,
    },
    /// Another process has it open.
    #[error(
        "raft log {path} is in use by another process: is an rswarm daemon running with this data folder?"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

/// Whether space is what was missing, so that the same call may succeed later.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Says what was attempted, and on what.
pub(super) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LogError + use<'a> {
    move |source| {
        let path = path.to_path_buf();
        if is_full(&source) {
            LogError::Full { what, path, source }
        } else {
            LogError::Io { what, path, source }
        }
    }
}
