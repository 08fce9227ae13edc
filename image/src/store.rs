//! Images on disk: configs by id, layers by digest, references.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::blob::BlobFile;
use crate::config::{Document, ImageConfig};
use crate::reference::{Reference, ReferenceError};
use crate::share::Changes;
use crate::unpack::{self, UnpackError};

/// Largest config document.
pub(crate) const CONFIG_MAX: u64 = 4 << 20;
/// Most layers of an image; overlayfs takes 500.
const LAYERS_MAX: usize = 500;
/// End of the name of a packed layer.
const BLOB_SUFFIX: &str = ".tar.zst";

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder of it cannot be used.
    #[error("image store: {path}")]
    Io {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is none.
    #[error(
        "image {0} not found on this node: load or build it here (`rswarm image load`, `rswarm image build`)"
    )]
    NotFound(String),
    /// There is no packed form of the layer.
    #[error("the layer {0} cannot be sent from this node: it is not here, or was stored by an older version")]
    NoBlob(String),
    /// Several ids begin so.
    #[error("image {0} is ambiguous: several ids begin so")]
    Ambiguous(String),
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A container uses it.
    #[error(
        "image {0} is in use by a container: remove the container first, or use --force to only untag it"
    )]
    InUse(String),
    /// The id has several references.
    #[error("image {0} has several references: remove them by name, or use --force")]
    SeveralReferences(String),
    /// A config that cannot be used.
    #[error("{0}")]
    Config(String),
}

/// An image that can be run.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:…`, the digest of its config.
    pub id: String,
    /// What it says of its containers.
    pub config: ImageConfig,
    /// Its layers as folders, the top one first.
    pub layers: Vec<PathBuf>,
    /// Processor, in Go's words.
    pub architecture: String,
    /// Operating system.
    pub os: String,
}

/// A line of a list.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// `sha256:…`.
    pub id: String,
    /// Names that lead to it.
    pub references: Vec<String>,
    /// When it was made, RFC 3339; empty: unknown.
    pub created: String,
    /// Bytes of its layers.
    pub size: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone.
    Untagged(String),
    /// An image is gone.
    Deleted(String),
}

/// The images of one host. Clones are the same store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Name → id. On disk in `references.json`, rewritten as a whole.
    references: Mutex<BTreeMap<String, String>>,
    /// Who is told of changes.
    changes: Changes,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Io { path, source }
}

/// Makes what was renamed to `path` be found there after a power cut.
fn keep_names(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

impl ImageStore {
    /// Opens the store; what an interrupted load left is removed.
    ///
    /// # Errors
    /// [`StoreError::Io`] when its folder cannot be used.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let _ = fs::remove_dir_all(root.join("tmp"));
        for folder in ["images", "layers", "blobs", "tmp"] {
            fs::create_dir_all(root.join(folder)).map_err(at(&root.join(folder)))?;
        }
        let file = root.join("references.json");
        let references = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| StoreError::Config(format!("{}: {e}", file.display())))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(at(&file)(e)),
        };
        let store = Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                references: Mutex::new(references),
                changes: Changes::default(),
            }),
        };
        store.sweep_blobs();
        Ok(store)
    }

    /// What tells of changes.
    pub(crate) fn changes(&self) -> &Changes {
        &self.inner.changes
    }

    /// Removes packed layers that have no unpacked one: a crash came between the two.
    fn sweep_blobs(&self) {
        let Ok(entries) = fs::read_dir(self.inner.root.join("blobs")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let layer = name.strip_suffix(BLOB_SUFFIX);
            if !layer.is_some_and(|hex| self.layer_path(hex).exists()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(crate) fn references(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.inner
            .references
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn config_path(&self, id: &str) -> PathBuf {
        self.inner.root.join("images").join(hex(id))
    }

    fn layer_path(&self, diff_id: &str) -> PathBuf {
        self.inner.root.join("layers").join(hex(diff_id))
    }

    pub(crate) fn blob_path(&self, diff_id: &str) -> PathBuf {
        let name = format!("{}{BLOB_SUFFIX}", hex(diff_id));
        self.inner.root.join("blobs").join(name)
    }

    /// The folder of an unpacked layer.
    pub(crate) fn layer_folder(&self, diff_id: &str) -> PathBuf {
        self.layer_path(diff_id)
    }

    /// A folder of its own for work in progress, on the same file system.
    pub(crate) fn scratch(&self) -> Result<Scratch, StoreError> {
        let tmp = self.inner.root.join("tmp");
        let mut random = [0u8; 12];
        let source = Path::new("/dev/urandom");
        fs::File::open(source)
            .and_then(|mut f| f.read_exact(&mut random))
            .map_err(at(source))?;
        let name: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let path = tmp.join(name);
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(Scratch { path })
    }

    /// Unpacks one layer, if it is not there, and checks its digest where one is known.
    pub(crate) fn add_layer(&self, source: impl Read, wanted: Option<&str>) -> Result<String, UnpackError> {
        self.unpack_layer(wanted, |blob, folder| {
            blob.packing(source, |tar| unpack::unpack(tar, folder))
        })
    }

    /// Has `work` unpack a layer and write its packed form; both are kept when the digest is right.
    ///
    /// A layer without its packed form, which an older version stored, is unpacked again to get one.
    pub(crate) fn unpack_layer(
        &self,
        wanted: Option<&str>,
        work: impl FnOnce(BlobFile, &Path) -> io::Result<Result<String, UnpackError>>,
    ) -> Result<String, UnpackError> {
        let io = |source: io::Error| UnpackError::Io {
            entry: "a layer".into(),
            source,
        };
        if let Some(wanted) = wanted
            && self.layer_path(wanted).exists()
            && self.blob_path(wanted).exists()
        {
            return Ok(wanted.to_owned());
        }
        let scratch = self.scratch().map_err(|e| io(io::Error::other(e.to_string())))?;
        let (folder, packed) = (scratch.path.join("layer"), scratch.path.join("blob"));
        fs::create_dir(&folder).map_err(io)?;
        let blob = BlobFile::create(&packed).map_err(io)?;
        let found = work(blob, &folder).map_err(|source| UnpackError::Io {
            entry: "a layer into its packed form".into(),
            source,
        })??;
        if let Some(wanted) = wanted.filter(|w| *w != found) {
            return Err(UnpackError::Digest {
                wanted: wanted.to_owned(),
                found,
            });
        }
        // A layer that has its name counts as whole for ever, so that its files must be on the disk before: after a
        // power cut they would be there, and empty. One call for all files; syncing each costs its own commit.
        let written = fs::File::open(&folder).map_err(io)?;
        rustix::fs::syncfs(&written).map_err(|e| io(e.into()))?;
        // The packed form first: one without its layer is removed at the next start.
        fs::rename(&packed, self.blob_path(&found)).map_err(io)?;
        let target = self.layer_path(&found);
        match fs::rename(&folder, &target) {
            // Another load was faster: the same content is there.
            Err(_) if target.exists() => Ok(found),
            other => other
                .and_then(|()| keep_names(&target))
                .map(|()| found)
                .map_err(io),
        }
    }

    /// Adds an image whose layers are there; answers its id.
    ///
    /// # Errors
    /// [`StoreError::Config`] when the config cannot be read or a layer of it is missing; [`StoreError::Io`].
    pub fn add_image(&self, config: &[u8], references: &[Reference]) -> Result<String, StoreError> {
        let id = id_of(config);
        let document = parse(config)?;
        // From here on no removal takes a layer away: it holds the names as well.
        let mut known = self.references();
        for layer in &document.rootfs.diff_ids {
            if !self.layer_path(layer).exists() {
                return Err(StoreError::Config(format!(
                    "the image names the layer {layer}, which it does not bring"
                )));
            }
        }
        self.write(&self.config_path(&id), config)?;
        let mut next = known.clone();
        for reference in references {
            next.insert(reference.to_string(), id.clone());
        }
        self.save(&next)?;
        *known = next;
        drop(known);
        self.changes().tell();
        Ok(id)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let scratch = self.scratch()?;
        let aside = scratch.path.join("file");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&aside)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&aside, path)?;
            keep_names(path)
        };
        write().map_err(at(path))
    }

    fn save(&self, references: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(references).map_err(|e| StoreError::Config(e.to_string()))?;
        self.write(&self.inner.root.join("references.json"), &text)
    }

    /// The id that a name, an id or the beginning of one (4 digits at least) leads to. A name with a digest leads to
    /// the image of that id and no other, whatever the name is worth today.
    pub(crate) fn lookup(&self, text: &str) -> Result<String, StoreError> {
        let missing = || StoreError::NotFound(text.to_owned());
        if let Some((_, digest)) = text.split_once('@') {
            let there = is_digest(digest) && self.config_path(digest).exists();
            return if there {
                Ok(digest.to_owned())
            } else {
                Err(missing())
            };
        }
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(id) = self.references().get(&reference.to_string())
        {
            return Ok(id.clone());
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 4 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut matches = self.ids().into_iter().filter(|id| hex(id).starts_with(digits));
        match (matches.next(), matches.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(text.to_owned())),
            (None, _) => Err(missing()),
        }
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.inner.root.join("images")) else {
            return Vec::new();
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .map(|e| format!("sha256:{}", e.file_name().to_string_lossy()))
            .collect();
        ids.sort();
        ids
    }

    pub(crate) fn document(&self, id: &str) -> Result<Document, StoreError> {
        let path = self.config_path(id);
        let text = fs::read(&path).map_err(at(&path))?;
        serde_json::from_slice(&text).map_err(|e| StoreError::Config(format!("{}: {e}", path.display())))
    }

    /// The image a reference leads to.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is not on this host.
    pub fn resolve(&self, reference: &str) -> Result<Image, StoreError> {
        let id = self.lookup(reference)?;
        let document = self.document(&id)?;
        Ok(Image {
            layers: document
                .rootfs
                .diff_ids
                .iter()
                .rev()
                .map(|d| self.layer_path(d))
                .collect(),
            config: document.config.unwrap_or_default(),
            architecture: document.architecture,
            os: document.os,
            id,
        })
    }

    /// Every image.
    pub fn list(&self) -> Vec<ImageSummary> {
        let references = self.references().clone();
        let summary = |id: String| {
            let document = self.document(&id).ok()?;
            Some(ImageSummary {
                references: references
                    .iter()
                    .filter(|(_, i)| **i == id)
                    .map(|(r, _)| r.clone())
                    .collect(),
                created: document.created.unwrap_or_default(),
                size: document
                    .rootfs
                    .diff_ids
                    .iter()
                    .map(|d| size_of(&self.layer_path(d)))
                    .sum(),
                labels: document.config.and_then(|c| c.labels).unwrap_or_default(),
                id,
            })
        };
        self.ids().into_iter().filter_map(summary).collect()
    }

    /// One image as `docker image inspect` prints it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is not on this host.
    pub fn inspect(&self, reference: &str) -> Result<serde_json::Value, StoreError> {
        let id = self.lookup(reference)?;
        let document = self.document(&id)?;
        let tags: Vec<String> = self
            .references()
            .iter()
            .filter(|(_, i)| **i == id)
            .map(|(r, _)| r.clone())
            .collect();
        let size: u64 = document
            .rootfs
            .diff_ids
            .iter()
            .map(|d| size_of(&self.layer_path(d)))
            .sum();
        Ok(serde_json::json!({
            "Id": id,
            "RepoTags": tags,
            "RepoDigests": [],
            "Created": document.created.unwrap_or_default(),
            "Config": document.config.unwrap_or_default(),
            "Architecture": document.architecture,
            "Os": document.os,
            "Size": size,
            "RootFS": { "Type": "layers", "Layers": document.rootfs.diff_ids },
        }))
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// [`StoreError`] when the source is missing or the name cannot be used.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), StoreError> {
        let id = self.lookup(source)?;
        let target: Reference = target.parse()?;
        let mut known = self.references();
        let mut next = known.clone();
        next.insert(target.to_string(), id);
        self.save(&next)?;
        *known = next;
        drop(known);
        self.changes().tell();
        Ok(())
    }

    /// Removes a name, and the image when it has none left and nothing uses it.
    ///
    /// # Errors
    /// [`StoreError`] when it is missing, in use, or an id with several names and `force` is not set.
    pub fn remove(
        &self,
        reference: &str,
        force: bool,
        in_use: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Removed>, StoreError> {
        let id = self.lookup(reference)?;
        let mut known = self.references();
        let names: Vec<String> = known
            .iter()
            .filter(|(_, i)| **i == id)
            .map(|(r, _)| r.clone())
            .collect();
        // With a digest it is an id.
        let named = (!reference.contains('@'))
            .then(|| reference.parse::<Reference>().ok())
            .flatten()
            .map(|r| r.to_string())
            .filter(|r| names.contains(r));
        let untag: Vec<String> = match named {
            Some(name) => vec![name],
            None if names.len() > 1 && !force => {
                return Err(StoreError::SeveralReferences(reference.to_owned()));
            }
            None => names.clone(),
        };
        let last = untag.len() == names.len();
        if last && in_use(&id) && !force {
            return Err(StoreError::InUse(reference.to_owned()));
        }
        let mut next = known.clone();
        next.retain(|name, _| !untag.contains(name));
        self.save(&next)?;
        *known = next;
        let mut removed: Vec<Removed> = untag.into_iter().map(Removed::Untagged).collect();
        if last && !in_use(&id) {
            let layers = self.document(&id)?.rootfs.diff_ids;
            let path = self.config_path(&id);
            fs::remove_file(&path).map_err(at(&path))?;
            let kept: Vec<String> = self
                .ids()
                .iter()
                .filter_map(|i| self.document(i).ok())
                .flat_map(|d| d.rootfs.diff_ids)
                .collect();
            for layer in layers.iter().filter(|l| !kept.contains(l)) {
                // Offered no more before it is gone.
                let _ = fs::remove_file(self.blob_path(layer));
                let _ = fs::remove_dir_all(self.layer_path(layer));
            }
            removed.push(Removed::Deleted(id));
        }
        drop(known);
        self.changes().tell();
        Ok(removed)
    }
}

/// A folder for work in progress; it goes with its owner.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The id of the image with this config.
pub fn id_of(config: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(config))
}

/// A config document whose layers can be used.
pub(crate) fn parse(config: &[u8]) -> Result<Document, StoreError> {
    let document: Document = serde_json::from_slice(config)
        .map_err(|e| StoreError::Config(format!("the config of the image cannot be read: {e}")))?;
    check(&document)?;
    Ok(document)
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Whether a text is `sha256:` and 64 hexadecimal digits, so that it can be a file name.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|h| {
        h.len() == 64
            && h.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn check(document: &Document) -> Result<(), StoreError> {
    let layers = &document.rootfs.diff_ids;
    if layers.len() > LAYERS_MAX {
        return Err(StoreError::Config(format!(
            "E_LAYER_LIMIT: the image has {} layers; {LAYERS_MAX} are possible",
            layers.len()
        )));
    }
    if let Some(bad) = layers.iter().find(|l| !is_digest(l)) {
        let bad: String = bad.chars().take(80).collect();
        return Err(StoreError::Config(format!("\"{bad}\" is no digest of a layer")));
    }
    Ok(())
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size_of(&e.path()),
            Ok(m) if m.is_file() => m.len(),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}
