//! Volumes of this host: folders that outlive containers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is remembered of a volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) created_ms: u64,
    /// Goes with the task it was made for.
    pub(crate) anonymous_of: Option<String>,
}

/// The volumes below a folder.
#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
}

impl Volumes {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the files of a volume are.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    pub(crate) fn get(&self, name: &str) -> Option<VolumeRecord> {
        serde_json::from_slice(&fs::read(self.root.join(name).join("volume.json")).ok()?).ok()
    }

    pub(crate) fn list(&self) -> Vec<VolumeRecord> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|e| self.get(&e.file_name().to_string_lossy()))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Makes a volume; one that is there is left as it is. Answers whether it is new.
    pub(crate) fn ensure(&self, record: &VolumeRecord) -> io::Result<bool> {
        if self.get(&record.name).is_some() {
            return Ok(false);
        }
        let folder = self.root.join(&record.name);
        fs::create_dir_all(self.path(&record.name))?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o711))?;
        let aside = folder.join(".volume.json");
        fs::write(&aside, serde_json::to_vec(record)?)?;
        fs::rename(aside, folder.join("volume.json"))?;
        Ok(true)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.root.join(name))
    }

    /// Removes the volumes that were made for one task alone.
    pub(crate) fn remove_anonymous_of(&self, task: &str) {
        for record in self
            .list()
            .into_iter()
            .filter(|r| r.anonymous_of.as_deref() == Some(task))
        {
            if let Err(error) = self.remove(&record.name) {
                tracing::warn!(volume = record.name, %error, "remove an anonymous volume");
            }
        }
    }

    /// Fills a new volume with what the image has at its place, lower layers first.
    pub(crate) fn fill(&self, name: &str, layers: &[PathBuf], target: &str) -> io::Result<()> {
        let into = self.path(name);
        for layer in layers.iter().rev() {
            let from = layer.join(target.trim_start_matches('/'));
            // A link on the way could lead to the host's files.
            let inside = from
                .canonicalize()
                .is_ok_and(|p| layer.canonicalize().is_ok_and(|l| p.starts_with(l)));
            if inside && from.is_dir() {
                copy_folder(&from, &into)?;
            }
        }
        Ok(())
    }
}

fn copy_folder(from: &Path, into: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    fs::set_permissions(into, meta.permissions())?;
    chown(into, Some(meta.uid()), Some(meta.gid()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), into.join(entry.file_name()));
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            if !target.is_dir() {
                fs::create_dir(&target)?;
            }
            copy_folder(&source, &target)?;
        } else if meta.is_symlink() {
            let _ = fs::remove_file(&target);
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else if meta.is_file() {
            let _ = fs::remove_file(&target);
            fs::copy(&source, &target)?;
            chown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else {
            // A whiteout takes away what a lower layer brought.
            let _ = fs::remove_file(&target);
            let _ = fs::remove_dir_all(&target);
        }
    }
    Ok(())
}
