//! A log that begins with a state instead of nothing: after a backup was restored, or all other managers were lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use manager_core::{Entry as CoreEntry, State};
use model::NodeId;
use openraft::{EntryPayload, RaftLogReader};
use tokio::sync::mpsc;

use super::backup::{BackupError, Opener, Sealer};
use super::keys::KeyRing;
use super::log::{self, LogStore};
use super::network::{Links, member};
use super::record::SnapshotHeader;
use super::snapshot::SnapshotWriter;
use super::{Log, LogError, LogId, Membership, OpenError, UnlockKey, codec, identity};

/// Pieces of a backup that wait for a slow reader.
pub(super) const PIECES_QUEUED: usize = 4;

impl Log {
    /// Makes the log of a manager that is alone and has this state. `raft_id` was never used before.
    ///
    /// # Errors
    /// [`OpenError`]; the folder has to be removed before another try.
    pub(crate) async fn revive(
        dir: &Path,
        raft_id: u64,
        links: Links,
        keys: KeyRing,
        (node, address): (NodeId, &str),
        state: &State,
    ) -> Result<Self, OpenError> {
        drop(LogStore::open(dir, &keys, log::exit_on_fatal())?);
        // A history of its own, which begins at the state's index; terms begin anew.
        let last = LogId::new(0.into(), state.index());
        let members = BTreeMap::from([(raft_id, member(node, address))]);
        let membership = Membership::new(vec![BTreeSet::from([raft_id])], members)
            .map_err(|e| OpenError::Raft { why: e.to_string() })?;
        let header = SnapshotHeader {
            last: Some(last.into()),
            membership_id: Some(last.into()),
            membership: Some((&membership).into()),
            index: state.index(),
            time: state.time().0,
            objects: codec::count(state),
            answers: state.answers().count() as u64,
        };
        let write = || codec::write_snapshot(dir, &keys, &header, state)?.install(dir, &keys);
        write().map_err(|source| LogError::Io {
            what: "write the state of the log",
            path: dir.to_owned(),
            source,
        })?;
        identity::write(dir, raft_id)?;
        let log = Self::start(dir, raft_id, links, keys).await?;
        log.lead_alone().await?;
        Ok(log)
    }

    /// The state with everything this manager has of the log, whether or not the others had it: what was acknowledged
    /// is in it, wherever this manager was one of the quorum.
    pub(crate) async fn everything(&self) -> Result<State, String> {
        let mut state = (*self.read()).clone();
        let applied = self.metrics().last_applied.map_or(0, |id| id.index + 1);
        let entries = self.store.clone().try_get_log_entries(applied..).await;
        for entry in entries.map_err(|e| e.to_string())? {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                let (now, txn) = codec::decode_txn(&proposal.0)?;
                let index = entry.log_id.index;
                // One that was decided on something older changes nothing, here as anywhere.
                let _ = state.apply(&CoreEntry { index, now, txn });
            }
        }
        Ok(state)
    }

    /// The whole state, sealed with a key, in pieces.
    pub(crate) fn backup(&self, key: UnlockKey) -> mpsc::Receiver<Result<Vec<u8>, String>> {
        let (send, pieces) = mpsc::channel(PIECES_QUEUED);
        let (state, keys, dir) = (self.read(), self.keys().clone(), self.dir.clone());
        tokio::task::spawn_blocking(move || {
            let make = || -> std::io::Result<()> {
                let header = SnapshotHeader {
                    index: state.index(),
                    time: state.time().0,
                    objects: codec::count(&state),
                    answers: state.answers().count() as u64,
                    ..SnapshotHeader::default()
                };
                // It is sealed on its way through the disk as well, and gone when this returns.
                let mut file = codec::write_snapshot(&dir, &keys, &header, &state)?;
                let (mut sealer, head) = Sealer::new(&key)?;
                let gone = |_| std::io::Error::other("nobody takes the backup any more");
                send.blocking_send(Ok(head)).map_err(gone)?;
                let mut piece = file.next_piece()?;
                while let Some(plain) = piece {
                    piece = file.next_piece()?;
                    let sealed = sealer.piece(&plain, piece.is_none())?;
                    send.blocking_send(Ok(sealed)).map_err(gone)?;
                }
                Ok(())
            };
            if let Err(error) = make() {
                // Nobody listens when this fails.
                let _ = send.blocking_send(Err(error.to_string()));
            }
        });
        pieces
    }
}

/// A backup that is being read.
pub(crate) struct Restore {
    opener: Opener,
    writer: SnapshotWriter,
}

impl Restore {
    /// Begins, in a folder of its own with its own keys.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub(crate) fn new(dir: &Path, keys: &KeyRing, key: &UnlockKey) -> Result<Self, BackupError> {
        Ok(Self {
            opener: Opener::new(key),
            writer: SnapshotWriter::create(dir, keys)?,
        })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`BackupError`].
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let plain = self.opener.take(bytes)?;
        Ok(self.writer.write(&plain)?)
    }

    /// The state in it.
    ///
    /// # Errors
    /// [`BackupError`].
    pub(crate) fn finish(self) -> Result<State, BackupError> {
        self.opener.finish()?;
        let mut file = self.writer.finish()?;
        let (_, state) = codec::read_snapshot(&mut file).map_err(|e| BackupError::Content(e.to_string()))?;
        if state.cluster().is_none() {
            return Err(BackupError::Content("there is no cluster in it".into()));
        }
        Ok(state)
    }
}
