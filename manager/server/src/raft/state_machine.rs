//! openraft's state machine over [`State`]: applies entries in order and publishes each result.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::{Stream, TryStreamExt};
use manager_core::{Changes, Entry as CoreEntry, Stale, State};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::broadcast;

use super::clock::Clock;
use super::codec;
use super::record::SnapshotHeader;
use super::segment::LogError;
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

/// A snapshot on disk, open for reading.
pub(super) type SnapshotFile = File;

pub(super) struct StateMachine {
    path: PathBuf,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
}

impl StateMachine {
    /// Begins with the snapshot in `dir`, if there is one.
    pub(super) fn open(dir: &Path) -> Result<(Self, Arc<Published>), LogError> {
        let path = dir.join("snapshot");
        let (state, applied, membership) = match File::open(&path) {
            Ok(mut file) => {
                let (header, state) = codec::read_snapshot(&path, &mut file)?;
                let membership = header.stored_membership().map_err(|why| LogError::Corrupt {
                    path: path.clone(),
                    offset: 0,
                    why,
                })?;
                (state, header.last.map(Into::into), membership)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                (State::new(), None, StoredMembership::default())
            }
            Err(e) => return Err(super::segment::io_error("open the snapshot", &path)(e)),
        };
        let published = Arc::new(Published {
            state: ArcSwap::from_pointee(state.clone()),
            events: broadcast::Sender::new(EVENTS_MAX),
            clock: Clock::new(),
        });
        published.clock.applied(state.time());
        Ok((
            Self {
                path,
                state,
                applied,
                membership,
                published: published.clone(),
            },
            published,
        ))
    }

    fn apply_one(&mut self, index: u64, bytes: &[u8]) -> io::Result<Outcome> {
        let (now, txn) = codec::decode_txn(bytes).map_err(|why| {
            io::Error::other(format!("entry {index} of the raft log cannot be read: {why}"))
        })?;
        self.published.clock.applied(now);
        let result = self.state.apply(&CoreEntry { index, now, txn });
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
            path: self.path.clone(),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, mut snapshot: File) -> Result<(), io::Error> {
        let path = self.path.clone();
        let (header, state) = tokio::task::spawn_blocking(move || {
            let read = codec::read_snapshot(&path, &mut snapshot)?;
            codec::store_snapshot(&path, &mut snapshot)?;
            Ok::<_, LogError>(read)
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        if header.last.map(LogId::from) != meta.last_log_id {
            return Err(io::Error::other("the snapshot is not the one that was announced"));
        }
        self.published.clock.applied(state.time());
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.published.state.store(Arc::new(self.state.clone()));
        // An error only says that nobody listens.
        let _ = self.published.events.send(Event::Replaced);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let path = self.path.clone();
        let (header, file) = tokio::task::spawn_blocking(move || {
            codec::read_snapshot(&path, &mut file).map(|(header, _)| (header, file))
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        let meta = SnapshotMeta {
            last_log_id: header.last.map(Into::into),
            last_membership: header.stored_membership().map_err(io::Error::other)?,
        };
        Ok(Some(Snapshot { meta, snapshot: file }))
    }
}

/// Writes the state of one moment, off the threads that answer.
pub(super) struct Builder {
    path: PathBuf,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let header = SnapshotHeader {
            last: self.applied.map(Into::into),
            membership_id: self.membership.log_id().map(Into::into),
            membership: Some(self.membership.membership().into()),
            index: self.state.index(),
            time: self.state.time().0,
            objects: codec::count(&self.state),
        };
        let (path, state) = (self.path.clone(), self.state.clone());
        let snapshot = tokio::task::spawn_blocking(move || {
            codec::write_snapshot(&path, &header, &state).map_err(io::Error::other)?;
            File::open(&path)
        })
        .await
        .map_err(io::Error::other)??;
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        Ok(Snapshot { meta, snapshot })
    }
}
