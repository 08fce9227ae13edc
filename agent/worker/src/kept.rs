//! What this node was assigned last, for an agent that starts while no manager is there: the names it serves, and the
//! tasks whose restarts it decides. Secrets are not in it: they are in memory only.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::assignment::{AssignmentDiff, AssignmentSet};
use prost::Message;
use proto::dispatch::AssignmentsMessage;
use runtime::boot_id;
use tokio::sync::watch;

use crate::tasks::blocking;

/// Least time between two writes of the file: in a busy cluster something changes all the time.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Largest file that is written or read. A node with more than that learns it from a manager alone.
const SIZE_MAX: usize = 64 << 20;

/// The file, and what is to be in it.
pub(crate) struct Kept {
    path: PathBuf,
    newest: Arc<watch::Sender<Option<Arc<AssignmentSet>>>>,
    /// Held while the file is changed.
    file: Arc<Mutex<()>>,
}

impl Kept {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            newest: Arc::new(watch::Sender::new(None)),
            file: Arc::default(),
        }
    }

    /// Has a set written soon.
    pub(crate) fn remember(&self, set: Arc<AssignmentSet>) {
        self.newest.send_replace(Some(set));
    }

    /// What the agent before was assigned, on this boot: after another nothing of it runs.
    pub(crate) fn recall(&self) -> Option<AssignmentSet> {
        match read(&self.path) {
            Ok(set) => set,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "what this node was assigned last cannot be read: a manager will say it again");
                None
            }
        }
    }

    /// Removes the file: the node left its cluster.
    pub(crate) fn forget(&self) {
        self.newest.send_replace(None);
        let _held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = std::fs::remove_file(&self.path);
    }

    /// Writes what is to be written, for as long as it is polled.
    pub(crate) async fn run(&self) {
        let mut newest = self.newest.subscribe();
        let mut failing = false;
        loop {
            let set = newest.borrow_and_update().clone();
            if let Some(set) = set {
                let (path, newest, file) = (self.path.clone(), self.newest.clone(), self.file.clone());
                let write_one = move || {
                    let _held = file.lock().unwrap_or_else(PoisonError::into_inner);
                    if newest.borrow().is_none() {
                        return Ok(()); // Forgotten meanwhile.
                    }
                    // What is old is worse than nothing.
                    write(&path, &set).inspect_err(|_| drop(std::fs::remove_file(&path)))
                };
                let written = blocking(write_one).await;
                let error = match written {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(error) => Some(error),
                };
                // Said once; what runs does not depend on it while a manager is there.
                if let Some(error) = error.as_ref().filter(|_| !failing) {
                    tracing::warn!(error, path = %self.path.display(), "keep what this node is assigned");
                }
                failing = error.is_some();
            }
            tokio::time::sleep(WRITE_EVERY).await;
            if newest.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The file: the boot it is of, and the set as a manager sends it.
fn write(path: &Path, set: &AssignmentSet) -> io::Result<()> {
    let update = AssignmentSet {
        secrets: Default::default(),
        ..set.clone()
    };
    let diff = AssignmentDiff {
        update,
        ..AssignmentDiff::default()
    };
    let bytes = AssignmentsMessage::from(&diff).encode_to_vec();
    if bytes.len() > SIZE_MAX {
        return Err(io::Error::other(format!(
            "it has {} bytes, at most {SIZE_MAX} are kept",
            bytes.len()
        )));
    }
    let aside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(boot_id().as_bytes())?;
    file.write_all(b"\n")?;
    file.write_all(&bytes)?;
    // Not synced: after a power cut nothing runs that it speaks of.
    std::fs::rename(&aside, path)
}

fn read(path: &Path) -> io::Result<Option<AssignmentSet>> {
    let length = match std::fs::metadata(path) {
        Ok(known) => known.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > SIZE_MAX as u64 + 256 {
        return Err(io::Error::other(format!("it has {length} bytes")));
    }
    let bytes = std::fs::read(path)?;
    let Some(rest) = bytes.strip_prefix(boot_id().as_bytes()) else {
        return Ok(None);
    };
    let rest = rest
        .strip_prefix(b"\n")
        .ok_or_else(|| io::Error::other("it is cut off"))?;
    let message = AssignmentsMessage::decode(rest).map_err(io::Error::other)?;
    let diff: AssignmentDiff = message
        .try_into()
        .map_err(|e: proto::convert::WireError| io::Error::other(e.to_string()))?;
    Ok(Some(diff.update))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::object::{Config, Meta, Secret};
    use model::{ConfigId, SecretId};
    use std::os::unix::fs::PermissionsExt;

    fn set() -> AssignmentSet {
        let mut set = AssignmentSet::default();
        let secret = Secret {
            id: SecretId(1),
            meta: Meta::default(),
            spec: Arc::new(model::spec::SecretSpec {
                data: b"hunter2-hunter2".to_vec(),
                ..Default::default()
            }),
        };
        set.secrets.insert(SecretId(1), Arc::new(secret));
        let config = Config {
            id: ConfigId(2),
            meta: Meta::default(),
            spec: Arc::new(model::spec::ConfigSpec {
                data: b"listen 80".to_vec(),
                ..Default::default()
            }),
        };
        set.configs.insert(ConfigId(2), Arc::new(config));
        set
    }

    #[test]
    fn a_set_is_read_back_without_its_secrets_and_on_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("assigned");
        assert_eq!(read(&path).unwrap(), None, "none yet");
        write(&path, &set()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
        assert!(has(b"listen 80") && !has(b"hunter2"));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let wanted = AssignmentSet {
            secrets: Default::default(),
            ..set()
        };
        assert_eq!(read(&path).unwrap(), Some(wanted));
        let mut other = b"another-boot".to_vec();
        other.extend_from_slice(&bytes[12..]);
        std::fs::write(&path, other).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_an_error_or_less_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("assigned");
        write(&path, &set()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let _ = read(&path);
        }
        let kept = Kept::new(path.clone());
        std::fs::write(&path, [boot_id().as_bytes(), b"\n\xff\xff"].concat()).unwrap();
        assert_eq!(kept.recall(), None);
        kept.forget();
        assert!(!path.exists());
    }
}
