//! openraft's state machine over [`State`]: applies entries in order and publishes each result.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use futures::{Stream, TryStreamExt};
use manager_core::{Changes, Entry as CoreEntry, Stale, State};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::broadcast;

use super::clock::Clock;
use super::codec;
use super::disk::RETRY;
use super::error::{LogError, io_error};
use super::keys::KeyRing;
use super::level;
use super::record::SnapshotHeader;
use super::snapshot::{self, SnapshotFile};
use super::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// Entries a slow subscriber may be behind; one that is further behind starts again from the state.
const EVENTS_MAX: usize = 4096;

/// What an entry did.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// It was openraft's own.
    Nothing,
    /// It changed the state.
    Applied(Arc<Changes>),
    /// It was decided on something that had changed.
    Stale(Stale),
}

/// What subscribers hear.
#[derive(Debug, Clone)]
pub enum Event {
    /// An entry changed the state.
    Applied(Arc<Changes>),
    /// Anything may have changed: a snapshot was installed, or events were missed.
    Replaced,
}

/// The state as everybody reads it.
pub(super) struct Published {
    pub(super) state: ArcSwap<State>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) clock: Clock,
}

/// What the snapshot that is installed ends with. Held while one is installed, so that one that took long to write
/// does not take the place of a newer one from the leader.
type Installed = Mutex<Option<LogId>>;

pub(super) struct StateMachine {
    dir: PathBuf,
    keys: KeyRing,
    level: level::Written,
    installed: Arc<Installed>,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
}

impl StateMachine {
    /// Begins with the snapshot in `dir`, if there is one. One of a version that did not seal is sealed.
    pub(super) fn open(dir: &Path, keys: &KeyRing) -> Result<(Self, Arc<Published>), LogError> {
        snapshot::remove_unfinished(dir)?;
        let path = snapshot::path_in(dir);
        let found = match snapshot::key_of(&path)? {
            None => None,
            Some(0) => {
                let (header, state) = codec::read_plain_snapshot(&path)?;
                codec::write_snapshot(dir, keys, &header, &state)
                    .and_then(|mut sealed| sealed.install(dir, keys))
                    .map_err(io_error("seal the snapshot", &path))?;
                Some((header, state))
            }
            Some(_) => match SnapshotFile::open(&path, keys)? {
                None => None,
                Some(mut file) => Some(codec::read_snapshot(&mut file)?),
            },
        };
        let (state, applied, membership) = match found {
            Some((header, state)) => {
                let membership = header.stored_membership().map_err(|why| LogError::Corrupt {
                    path: path.clone(),
                    offset: 0,
                    why,
                })?;
                (state, header.last.map(Into::into), membership)
            }
            None => (State::new(), None, StoredMembership::default()),
        };
        let mut level = level::Written::open(dir)?;
        level.follow(&state);
        let published = Arc::new(Published {
            state: ArcSwap::from_pointee(state.clone()),
            events: broadcast::Sender::new(EVENTS_MAX),
            clock: Clock::new(),
        });
        published.clock.applied(state.time());
        Ok((
            Self {
                dir: dir.to_path_buf(),
                keys: keys.clone(),
                level,
                installed: Arc::new(Mutex::new(applied)),
                state,
                applied,
                membership,
                published: published.clone(),
            },
            published,
        ))
    }

    /// Refuses a snapshot that ends before what the log still has begins.
    pub(super) fn reaches(&self, purged: Option<LogId>) -> Result<(), LogError> {
        if self.applied.map(|id| id.index) >= purged.map(|id| id.index) {
            return Ok(());
        }
        Err(LogError::Corrupt {
            path: snapshot::path_in(&self.dir),
            offset: 0,
            why: format!(
                "it is missing or an old one: it ends with {}, and the log was cut up to {}",
                self.applied
                    .map_or("nothing".into(), |id| format!("entry {}", id.index)),
                purged.map_or(0, |id| id.index),
            ),
        })
    }

    fn apply_one(&mut self, index: u64, bytes: &[u8]) -> io::Result<Outcome> {
        let (now, txn) = codec::decode_txn(bytes).map_err(|why| {
            io::Error::other(format!("entry {index} of the raft log cannot be read: {why}"))
        })?;
        self.published.clock.applied(now);
        let result = self.state.apply(&CoreEntry { index, now, txn });
        self.level.follow(&self.state);
        // Published before the proposer is answered, so that it reads what it wrote.
        self.published.state.store(Arc::new(self.state.clone()));
        Ok(match result {
            Ok(changes) => {
                let changes = Arc::new(changes);
                // An error only says that nobody listens.
                let _ = self.published.events.send(Event::Applied(changes.clone()));
                Outcome::Applied(changes)
            }
            Err(stale) => Outcome::Stale(stale),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = match &entry.payload {
                EntryPayload::Blank => Outcome::Nothing,
                EntryPayload::Normal(proposal) => self.apply_one(entry.log_id.index, &proposal.0)?,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Outcome::Nothing
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            dir: self.dir.clone(),
            keys: self.keys.clone(),
            installed: Arc::downgrade(&self.installed),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        mut snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let (dir, keys, installed) = (self.dir.clone(), self.keys.clone(), self.installed.clone());
        let announced = meta.last_log_id;
        let mut level = self.level.clone();
        let (state, level) = tokio::task::spawn_blocking(move || {
            // All of it is checked before it takes the place of the one that is there.
            let (header, state) = codec::read_snapshot(&mut snapshot).map_err(io::Error::other)?;
            if header.last.map(LogId::from) != announced {
                return Err(io::Error::other("the snapshot is not the one that was announced"));
            }
            let mut installed = installed.lock().unwrap_or_else(PoisonError::into_inner);
            level.follow(&state);
            snapshot.install(&dir, &keys)?;
            *installed = announced;
            Ok((state, level))
        })
        .await
        .map_err(io::Error::other)??;
        self.published.clock.applied(state.time());
        self.state = state;
        self.level = level;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.published.state.store(Arc::new(self.state.clone()));
        // An error only says that nobody listens.
        let _ = self.published.events.send(Event::Replaced);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let (path, keys) = (snapshot::path_in(&self.dir), self.keys.clone());
        let found = tokio::task::spawn_blocking(move || {
            let Some(mut file) = SnapshotFile::open(&path, &keys)? else {
                return Ok(None);
            };
            let header = codec::read_header(&mut file)?;
            Ok::<_, LogError>(Some((header, file)))
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        let Some((header, file)) = found else {
            return Ok(None);
        };
        let meta = SnapshotMeta {
            last_log_id: header.last.map(Into::into),
            last_membership: header.stored_membership().map_err(io::Error::other)?,
        };
        Ok(Some(Snapshot { meta, snapshot: file }))
    }
}

/// Writes the state of one moment, off the threads that answer.
pub(super) struct Builder {
    dir: PathBuf,
    keys: KeyRing,
    /// Gone when the log was closed.
    installed: Weak<Installed>,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Builder {
    fn write(&self) -> impl FnOnce() -> Result<SnapshotFile, LogError> + Send + use<> {
        let header = SnapshotHeader {
            last: self.applied.map(Into::into),
            membership_id: self.membership.log_id().map(Into::into),
            membership: Some(self.membership.membership().into()),
            index: self.state.index(),
            time: self.state.time().0,
            objects: codec::count(&self.state),
            answers: self.state.answers().count() as u64,
        };
        let (dir, keys, state) = (self.dir.clone(), self.keys.clone(), self.state.clone());
        let (installed, applied) = (self.installed.clone(), self.applied);
        move || {
            let path = snapshot::path_in(&dir);
            let mut file = codec::write_snapshot(&dir, &keys, &header, &state)
                .map_err(io_error("write the snapshot", &path))?;
            let closed = || io::Error::other("the log was closed");
            let installed = installed
                .upgrade()
                .ok_or_else(closed)
                .map_err(io_error("install the snapshot", &path))?;
            let mut newest = installed.lock().unwrap_or_else(PoisonError::into_inner);
            if newest.map(|id| id.index) <= applied.map(|id| id.index) {
                file.install(&dir, &keys)
                    .map_err(io_error("install the snapshot", &path))?;
                *newest = applied;
            }
            Ok(file)
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut said = false;
        let snapshot = loop {
            match tokio::task::spawn_blocking(self.write())
                .await
                .map_err(io::Error::other)?
            {
                // openraft would stop for good; until there is room the log is kept instead.
                Err(error @ LogError::Full { .. }) if self.installed.strong_count() > 0 => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!("{error}");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                result => break result.map_err(io::Error::other)?,
            }
        };
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        Ok(Snapshot { meta, snapshot })
    }
}
