//! What a store gives to the stores of other hosts and takes from them: packed layers, verified before they are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::compress;
use crate::store::{ImageStore, StoreError, is_digest, parse};
use crate::unpack::{self, UnpackError};

/// Most bytes of a packed layer; it is no larger than what it unpacks to, but for headers.
const PACKED_MAX: u64 = 65 << 30;

/// An image as another host can have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOffer {
    /// `sha256:…`, the digest of its config.
    pub id: String,
    /// Its config document, byte for byte.
    pub config: Vec<u8>,
    /// Its layers, the lowest first, each once.
    pub layers: Vec<OfferedLayer>,
    /// Names that lead to it here.
    pub references: Vec<String>,
}

/// A layer as another host can have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedLayer {
    /// Digest of its uncompressed tar.
    pub diff_id: String,
    /// Bytes of its packed form.
    pub bytes: u64,
}

/// An image this host holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// `sha256:…`.
    pub id: String,
    /// Names that lead to it.
    pub references: Vec<String>,
    /// When it was made, in milliseconds since 1970; where it does not say, when it came to this host.
    pub created_ms: u64,
}

type Callback = Arc<dyn Fn() + Send + Sync>;

/// Tells that names or images changed.
#[derive(Default)]
pub(crate) struct Changes {
    version: AtomicU64,
    callback: Mutex<Option<Callback>>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Changes({})", self.version.load(Ordering::SeqCst))
    }
}

impl Changes {
    pub(crate) fn tell(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        let callback = self
            .callback
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(callback) = callback {
            callback();
        }
    }
}

impl ImageStore {
    /// Counts the changes of names and images; an [`ImageStore::inventory`] read after it is at least as new.
    pub fn version(&self) -> u64 {
        self.changes().version.load(Ordering::SeqCst)
    }

    /// Has `callback` called after every change, on the thread that made it; it replaces an earlier one.
    pub fn on_change(&self, callback: impl Fn() + Send + Sync + 'static) {
        *self
            .changes()
            .callback
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(callback));
    }

    /// Every image with its names, by id.
    pub fn inventory(&self) -> Vec<Held> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, id) in self.references().clone() {
            names.entry(id).or_default().push(name);
        }
        let held = |id: String| Held {
            created_ms: self.created(&id),
            references: names.remove(&id).unwrap_or_default(),
            id,
        };
        self.ids().into_iter().map(held).collect()
    }

    fn created(&self, id: &str) -> u64 {
        let said = self.document(id).ok().and_then(|d| d.created).and_then(|text| {
            let at = OffsetDateTime::parse(&text, &Rfc3339).ok()?;
            u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
        });
        let came = || {
            let at = fs::metadata(self.config_path(id)).ok()?.modified().ok()?;
            u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
        };
        // Tools that build reproducibly write 1970, which says nothing.
        said.filter(|ms| *ms > 0).or_else(came).unwrap_or(0)
    }

    /// An image as another host can have it; none where it is not here, or a layer of it has no packed form because an
    /// older version stored it.
    pub fn offer(&self, reference: &str) -> Option<ImageOffer> {
        let id = self.lookup(reference).ok()?;
        let config = fs::read(self.config_path(&id)).ok()?;
        let mut layers: Vec<OfferedLayer> = Vec::new();
        for diff_id in parse(&config).ok()?.rootfs.diff_ids {
            if layers.iter().any(|l| l.diff_id == diff_id) {
                continue;
            }
            let bytes = fs::metadata(self.blob_path(&diff_id)).ok()?.len();
            layers.push(OfferedLayer { diff_id, bytes });
        }
        let references = self.references();
        let names = references.iter().filter(|(_, i)| **i == id);
        Some(ImageOffer {
            references: names.map(|(name, _)| name.clone()).collect(),
            id,
            config,
            layers,
        })
    }

    /// The packed form of a layer and its length.
    ///
    /// # Errors
    /// [`StoreError::Config`] when this is no digest, [`StoreError::NoBlob`] when there is no such packed layer,
    /// [`StoreError::Io`] when it cannot be read.
    pub fn open_blob(&self, diff_id: &str) -> Result<(fs::File, u64), StoreError> {
        if !is_digest(diff_id) {
            let short: String = diff_id.chars().take(80).collect();
            return Err(StoreError::Config(format!("\"{short}\" is no digest of a layer")));
        }
        let path = self.blob_path(diff_id);
        let open = || -> io::Result<(fs::File, u64)> {
            let file = fs::File::open(&path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        };
        open().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::NoBlob(diff_id.to_owned()),
            _ => StoreError::Io {
                path: path.display().to_string(),
                source,
            },
        })
    }

    /// The layers of a config that are not here, the lowest first, each once.
    ///
    /// # Errors
    /// [`StoreError::Config`] when the config cannot be read or its layers cannot be used.
    pub fn missing(&self, config: &[u8]) -> Result<Vec<String>, StoreError> {
        let mut seen = BTreeSet::new();
        let layers = parse(config)?.rootfs.diff_ids;
        Ok(layers
            .into_iter()
            .filter(|l| seen.insert(l.clone()) && !self.layer_folder(l).exists())
            .collect())
    }

    /// Unpacks a layer from its packed form; both are kept only when the uncompressed tar has the digest `diff_id`.
    ///
    /// A layer that is here already is not read.
    ///
    /// # Errors
    /// [`UnpackError::Digest`] when it is another layer, cut off or no zstd; [`UnpackError::Limit`] when it is larger than
    /// any layer; [`UnpackError::Io`] when it cannot be written. Nothing of it is kept then.
    pub fn add_fetched_layer(&self, source: impl Read, diff_id: &str) -> Result<(), UnpackError> {
        let wrong = |found: String| UnpackError::Digest {
            wanted: diff_id.chars().take(80).collect(),
            found,
        };
        if !is_digest(diff_id) {
            return Err(wrong("not named by a digest".into()));
        }
        let bounded = source.take(PACKED_MAX);
        let added = self.unpack_layer(Some(diff_id), |blob, folder| {
            blob.copying(bounded, |packed| {
                let tar = compress::open_zstd(io::BufReader::new(packed))
                    .map_err(|e| wrong(format!("unreadable ({e})")))?;
                unpack::unpack(tar, folder)
            })
        });
        match added {
            Ok(_) => Ok(()),
            Err(error) if error.is_local() => Err(error),
            Err(error @ (UnpackError::Digest { .. } | UnpackError::Limit(_))) => Err(error),
            // A host that sends a broken layer sends another one than was asked for: nobody loads a broken one.
            Err(error) => {
                let text = match std::error::Error::source(&error) {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
                Err(if text.contains(compress::LIMIT) {
                    UnpackError::Limit(text)
                } else {
                    wrong(format!("unreadable ({text})"))
                })
            }
        }
    }
}
