//! The data keys of a raft log: where they are kept, and how an unlock key locks them.
//!
//! `keys` beside the log holds all keys that some file there is sealed with. It is open, or sealed with an unlock
//! key that is on none of the cluster's disks (autolock). Open, it protects a disk that is sold or a backup that
//! leaves `keys` out, and nothing else. Locking it later does not unmake what was on the disk before: after
//! [`KeyRing::seal`] call [`KeyRing::rotate`], so that what is written from then on was never readable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::error::{LogError, io_error};
use super::replace::{remove_leftover, replace_file};
use super::seal::{Cipher, Secret};
use super::unlock_key::{UnlockKey, open_bytes, seal_bytes};
use super::{segment, snapshot};

/// Keys of one ring. Those no file needs any more go when the log is opened, so this many come together only when
/// keys are changed this often within one run.
const KEYS_MAX: usize = 64;
/// Format of the file.
const FORMAT: u32 = 1;
/// What the sealed part of the file is sealed as.
const PURPOSE: &str = "rswarm raft data keys";

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct KeyFile {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(oneof = "Content", tags = "2, 3")]
    content: Option<Content>,
    /// Tells damage from a wrong unlock key.
    #[prost(fixed32, tag = "4")]
    crc: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
enum Content {
    /// A [`RingRecord`].
    #[prost(bytes, tag = "2")]
    Open(Vec<u8>),
    /// A [`RingRecord`], sealed with an unlock key.
    #[prost(bytes, tag = "3")]
    Sealed(Vec<u8>),
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct RingRecord {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<KeyRecord>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct KeyRecord {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

macro_rules! hide {
    ($($record:ident),*) => {$(
        impl fmt::Debug for $record {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(concat!(stringify!($record), "(..)"))
            }
        }
    )*};
}
hide!(KeyFile, Content, RingRecord, KeyRecord);

/// Why the data keys cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Their file.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The kernel gives no random numbers.
    #[error("cannot make a data key for the raft log in {path}")]
    Random {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are keys already: new ones would make the log unreadable.
    #[error("{path} exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The log is sealed and its keys are gone.
    #[error(
        "{path} is gone, and without it the raft log beside it cannot be read: restore it from a backup, or remove \
         the folder and join the cluster again as a new node"
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// Another unlock key is needed. Nothing was changed.
    #[error(
        "the unlock key does not open {path}: it is not the newest one of this cluster. Nothing was changed"
    )]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// Nothing was changed.
    #[error(
        "{path} is not what this process wrote: it was replaced or removed meanwhile. Restart this manager"
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// [`KEYS_MAX`].
    #[error(
        "the raft log in {path} has {KEYS_MAX} data keys, and no more are kept: restart this manager, which drops \
         those that no file needs"
    )]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
}

/// The data keys of one raft log. Clones are the same ring. Of a log that runs, change the one it was opened with
/// ([`super::Log::keys`]): another one refuses once the two differ.
#[derive(Clone)]
pub struct KeyRing {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    content: Mutex<Ring>,
}

#[derive(Clone)]
struct Ring {
    /// Never empty; the highest is used for writing.
    keys: BTreeMap<u32, Secret>,
    unlock: Option<UnlockKey>,
    /// Checksum of the file with this content.
    written: u32,
}

/// What stands in a folder.
pub enum Opened {
    /// It is open.
    Ready(KeyRing),
    /// Somebody has to give the unlock key.
    Locked(LockedRing),
}

/// Data keys that wait for the unlock key.
pub struct LockedRing {
    dir: PathBuf,
    sealed: Vec<u8>,
    written: u32,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.ring();
        write!(
            out,
            "KeyRing({:?}, locked: {})",
            ring.keys.keys(),
            ring.unlock.is_some()
        )
    }
}

impl fmt::Debug for LockedRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LockedRing({})", self.dir.display())
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(ring) => ring.fmt(out),
            Self::Locked(ring) => ring.fmt(out),
        }
    }
}

fn file_of(dir: &Path) -> PathBuf {
    dir.join("keys")
}

impl KeyRing {
    /// Makes the ring of a new log in `dir`, with one key; the folder is made when it is missing.
    ///
    /// # Errors
    /// [`KeyError`], among them [`KeyError::Exists`].
    pub fn create(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Self, KeyError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error("create the folder", dir))?;
        if file_of(dir).exists() {
            return Err(KeyError::Exists { path: file_of(dir) });
        }
        let mut ring = Ring {
            keys: BTreeMap::from([(1, new_secret(dir)?)]),
            unlock: unlock.cloned(),
            written: 0,
        };
        ring.save(dir)?;
        Ok(Self::of(dir, ring))
    }

    /// Reads the ring in `dir`. The log of a version that did not seal yet is given one.
    ///
    /// # Errors
    /// [`KeyError`]; [`KeyError::Lost`] when there is none although something is sealed.
    pub fn open(dir: &Path) -> Result<Opened, KeyError> {
        let path = file_of(dir);
        // An unfinished one may hold, in the open, what the finished one holds locked.
        remove_leftover(&path.with_extension("tmp"))?;
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if used_keys(dir)?.iter().any(|number| *number > 0) {
                    return Err(KeyError::Lost { path });
                }
                return Self::create(dir, None).map(Opened::Ready);
            }
            Err(e) => return Err(io_error("read", &path)(e).into()),
        };
        let corrupt = |why: &str| LogError::Corrupt {
            path: path.clone(),
            offset: 0,
            why: why.into(),
        };
        let file = KeyFile::decode(bytes.as_slice()).map_err(|_| corrupt("it is no file of data keys"))?;
        if file.format > FORMAT {
            let (found, known) = (file.format, FORMAT);
            return Err(LogError::Format { path, found, known }.into());
        }
        if file.format != FORMAT || file.crc != sum(file.content.as_ref()) {
            return Err(corrupt("its checksum is wrong").into());
        }
        let written = crc32fast::hash(&bytes);
        Ok(match file.content {
            Some(Content::Open(record)) => {
                let keys = decode_ring(dir, &Zeroizing::new(record))?;
                let unlock = None;
                Opened::Ready(Self::of(
                    dir,
                    Ring {
                        keys,
                        unlock,
                        written,
                    },
                ))
            }
            Some(Content::Sealed(sealed)) => Opened::Locked(LockedRing {
                dir: dir.to_path_buf(),
                sealed,
                written,
            }),
            None => return Err(corrupt("it holds no keys").into()),
        })
    }

    fn of(dir: &Path, ring: Ring) -> Self {
        Self {
            shared: Arc::new(Shared {
                dir: dir.to_path_buf(),
                content: Mutex::new(ring),
            }),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file needs an unlock key.
    pub fn is_sealed(&self) -> bool {
        self.ring().unlock.is_some()
    }

    /// Locks the file with `unlock`, with another key than before, or with none. Only this file is written; after a
    /// crash it is locked as before or as wanted.
    ///
    /// # Errors
    /// [`KeyError`]; the keys in use stay as they are.
    pub fn seal(&self, unlock: Option<&UnlockKey>) -> Result<(), KeyError> {
        self.change(|ring| {
            ring.unlock = unlock.cloned();
            Ok(())
        })
    }

    /// Adds a data key and returns its number: segments and snapshots that are begun from now on are sealed with it.
    ///
    /// # Errors
    /// [`KeyError`]; the keys in use stay as they are.
    pub fn rotate(&self) -> Result<u32, KeyError> {
        let path = self.shared.dir.clone();
        self.change(|ring| {
            if ring.keys.len() >= KEYS_MAX {
                return Err(KeyError::TooMany { path });
            }
            let number = ring.newest() + 1;
            ring.keys.insert(number, new_secret(&self.shared.dir)?);
            Ok(number)
        })
    }

    /// Drops the keys that no file in the folder is sealed with; for a log that nobody writes at the moment.
    pub(super) fn forget_unused(&self) -> Result<(), KeyError> {
        let used = used_keys(&self.shared.dir)?;
        let ring = self.ring();
        let newest = ring.newest();
        if ring
            .keys
            .keys()
            .all(|number| *number == newest || used.contains(number))
        {
            return Ok(());
        }
        drop(ring);
        self.change(|ring| {
            ring.keys
                .retain(|number, _| *number == newest || used.contains(number));
            Ok(())
        })
    }

    /// Durable first, and only then used.
    fn change<T>(&self, change: impl FnOnce(&mut Ring) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut current = self.ring();
        let path = file_of(&self.shared.dir);
        // A key that another ring added would be gone, and with it what is sealed with it.
        if !std::fs::read(&path).is_ok_and(|bytes| crc32fast::hash(&bytes) == current.written) {
            return Err(KeyError::Changed { path });
        }
        let mut next = current.clone();
        let result = change(&mut next)?;
        next.save(&self.shared.dir)?;
        *current = next;
        Ok(result)
    }

    /// Number of the key for writing.
    pub(super) fn newest(&self) -> u32 {
        self.ring().newest()
    }

    /// The key of the file whose salt this is. None: the ring has no such data key.
    pub(super) fn cipher(&self, number: u32, salt: &[u8], purpose: &[u8]) -> Option<Cipher> {
        self.ring()
            .keys
            .get(&number)
            .map(|secret| secret.derive(salt, purpose))
    }
}

impl Ring {
    fn newest(&self) -> u32 {
        self.keys.last_key_value().map_or(0, |(number, _)| *number)
    }

    fn save(&mut self, dir: &Path) -> Result<(), KeyError> {
        let mut record = RingRecord {
            keys: self
                .keys
                .iter()
                .map(|(number, secret)| KeyRecord {
                    number: *number,
                    secret: secret.bytes().to_vec(),
                })
                .collect(),
        };
        let plain = Zeroizing::new(record.encode_to_vec());
        record.wipe();
        let content = match &self.unlock {
            None => Content::Open(plain.to_vec()),
            Some(key) => Content::Sealed(seal_bytes(key, PURPOSE, &plain).map_err(random_error(dir))?),
        };
        let file = KeyFile {
            format: FORMAT,
            crc: sum(Some(&content)),
            content: Some(content),
        };
        let bytes = Zeroizing::new(file.encode_to_vec());
        if let Some(Content::Open(mut copy)) = file.content {
            copy.zeroize();
        }
        self.written = crc32fast::hash(&bytes);
        Ok(replace_file(&file_of(dir), &bytes)?)
    }
}

impl RingRecord {
    fn wipe(&mut self) {
        self.keys.iter_mut().for_each(|key| key.secret.zeroize());
    }
}

impl LockedRing {
    /// Opens the ring. Nothing on disk changes, whichever key is given.
    ///
    /// # Errors
    /// [`KeyError::WrongKey`]; it may be tried again with another one.
    pub fn unlock(&self, key: &UnlockKey) -> Result<KeyRing, KeyError> {
        let plain = open_bytes(key, PURPOSE, &self.sealed).map_err(|_| KeyError::WrongKey {
            path: file_of(&self.dir),
        })?;
        let ring = Ring {
            keys: decode_ring(&self.dir, &plain)?,
            unlock: Some(key.clone()),
            written: self.written,
        };
        Ok(KeyRing::of(&self.dir, ring))
    }
}

fn decode_ring(dir: &Path, bytes: &[u8]) -> Result<BTreeMap<u32, Secret>, KeyError> {
    let corrupt = || LogError::Corrupt {
        path: file_of(dir),
        offset: 0,
        why: "the keys in it are not ours".into(),
    };
    let mut record = RingRecord::decode(bytes).map_err(|_| corrupt())?;
    let keys: Option<BTreeMap<u32, Secret>> = record
        .keys
        .iter()
        .map(|key| {
            Some((
                key.number,
                Secret::from_bytes(&key.secret).filter(|_| key.number > 0)?,
            ))
        })
        .collect();
    record.wipe();
    Ok(keys.filter(|keys| !keys.is_empty()).ok_or_else(corrupt)?)
}

fn sum(content: Option<&Content>) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    let (kind, bytes): (u8, &[u8]) = match content {
        None => (0, &[]),
        Some(Content::Open(bytes)) => (1, bytes),
        Some(Content::Sealed(bytes)) => (2, bytes),
    };
    crc.update(&[kind]);
    crc.update(bytes);
    crc.finalize()
}

fn random_error(dir: &Path) -> impl Fn(std::io::Error) -> KeyError {
    |source| KeyError::Random {
        path: dir.to_path_buf(),
        source,
    }
}

fn new_secret(dir: &Path) -> Result<Secret, KeyError> {
    Secret::random().map_err(random_error(dir))
}

/// Numbers of the keys that the files of a folder are sealed with; 0 for one that is not sealed.
fn used_keys(dir: &Path) -> Result<BTreeSet<u32>, LogError> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let mut used = BTreeSet::new();
    for number in segment::list(dir)? {
        used.insert(segment::key_of(&segment::segment_path(dir, number), number)?);
    }
    used.extend(snapshot::key_of(&snapshot::path_in(dir))?);
    Ok(used)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
