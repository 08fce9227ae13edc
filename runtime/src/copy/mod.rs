//! Copying files between a container and a tar: by code of ours, in this process, never by a program of the container.
//!
//! A container may change its files while they are copied. So every step holds a descriptor, every name is resolved by
//! openat2(2) below one, and nothing is looked up twice: a link that is swapped in between leads nowhere new.

mod pack;
mod place;
mod tree;
mod unpack;
mod view;

#[cfg(test)]
mod tests;

pub use pack::Source;
pub use place::{Destination, Place, PlaceError, Shape, place};
pub use tree::{Tree, local};
pub use unpack::{Options, Outcome, Owner, Target, unpack};

/// Longest name of an entry and longest target of a link: PATH_MAX of the kernel.
const NAME_MAX: usize = 4096;
/// Most entries of one copy; names of entries are all that is remembered, and only of folders and hard links.
const ENTRIES_MAX: u64 = 2_000_000;

/// Why a copy was not made, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A path that is not taken.
    #[error("E_PATH: {path}: {rule}")]
    Path {
        /// The path.
        path: String,
        /// Which rule it breaks.
        rule: &'static str,
    },
    /// There is nothing.
    #[error("{path}: no such file or folder")]
    Missing {
        /// The path.
        path: String,
    },
    /// Source and destination do not go together.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What is no tar, or has in it what is not taken.
    #[error("E_TAR_FORMAT: {0}")]
    Format(String),
    /// More than any copy may have.
    #[error("E_COPY_LIMIT: {0}")]
    Limit(String),
    /// The system refused.
    #[error("{what}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The container's files are not there.
    #[error("the files of container {id} cannot be reached: {problem}")]
    Container {
        /// The container.
        id: String,
        /// Why not.
        problem: String,
    },
}

impl CopyError {
    /// Whether the request is at fault, and the same one will fail again.
    pub fn is_request(&self) -> bool {
        match self {
            Self::Path { .. } | Self::Place(_) | Self::Format(_) | Self::Limit(_) => true,
            Self::Missing { .. } | Self::Io { .. } | Self::Container { .. } => false,
        }
    }
}

fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> CopyError {
    let what = what.into();
    move |e| CopyError::Io {
        what,
        source: e.into(),
    }
}

/// A name as people can read it: bytes that are no text, and control characters, are replaced.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(256)
        .collect()
}
