//! The raft log: entries and votes in one stream of durable frames, served from memory.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{oneshot, watch};

use super::disk::{DiskState, SyncClock};
use super::keys::{KeyError, KeyRing};
use super::log_writer::{COALESCE_BYTES, Job, OnFatal, Recovered, recover};
use super::memory::Memory;
use super::record::{Record, RecordKind, encode_record};
use super::segment::{LogError, TornTail, io_error};
use super::{Entry, LogId, TypeConfig, Vote};

/// Exit status of a manager whose disk failed (EX_IOERR).
const EXIT_IO_ERROR: i32 = 74;
/// Times the lock of the log is tried again, and how long after the last time: a second in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
/// Bytes of entries given to a peer at once, below gRPC's 4 MiB.
const READ_BYTES: usize = 1024 * 1024;

/// The log as openraft sees it.
#[derive(Clone)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Mutex<Memory>,
    queue: Mutex<Option<Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    give_up: Arc<AtomicBool>,
    disk: watch::Receiver<DiskState>,
    sync: SyncClock,
    keys: KeyRing,
    /// Held while the log may write.
    lock: Mutex<Option<File>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.give_up();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A panic of the writer was reported by its own thread.
            let _ = writer.join();
        }
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn give_up(&self) {
        self.give_up.store(true, Ordering::SeqCst);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = &*writer {
            writer.thread().unpark();
        }
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue
            .as_ref()
            .and_then(|queue| queue.send(job).ok())
            .ok_or_else(|| io::Error::other("the raft log is closed"))
    }
}

/// Locks a file, waiting a moment: a process that was just forked has the descriptors of its parent until it executes
/// its program, and with them a lock that was let go.
fn take(lock: &File) -> rustix::io::Result<()> {
    let mut tries = 0;
    loop {
        match rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            taken => return taken,
        }
    }
}

impl LogStore {
    /// Opens the log in `dir`, which is made when it is missing. What a crash left of its last write is removed and
    /// returned, any other damage is refused.
    pub(super) fn open(
        dir: &Path,
        keys: &KeyRing,
        on_fatal: OnFatal,
    ) -> Result<(Self, Option<TornTail>), LogError> {
        std::fs::create_dir_all(dir).map_err(io_error("create the folder", dir))?;
        let lock = File::create(dir.join("lock")).map_err(io_error("create the lock", dir))?;
        take(&lock).map_err(|_| LogError::Locked {
            path: dir.to_path_buf(),
        })?;
        let Recovered { memory, writer, torn } = recover(dir, keys)?;
        match keys.forget_unused() {
            Err(KeyError::Log(error @ LogError::Corrupt { .. })) => return Err(error),
            // It is as good the next time.
            Err(error) => tracing::warn!("data keys that nothing needs were kept: {error}"),
            Ok(()) => {}
        }
        let (give_up, disk, sync) = (writer.give_up(), writer.disk(), writer.sync());
        let (queue, jobs) = channel();
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run(&jobs, &on_fatal))
            .map_err(io_error("start the writer", dir))?;
        let shared = Shared {
            memory: Mutex::new(memory),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(Some(thread)),
            give_up,
            disk,
            sync,
            keys: keys.clone(),
            lock: Mutex::new(Some(lock)),
        };
        Ok((
            Self {
                shared: Arc::new(shared),
            },
            torn,
        ))
    }

    /// Writes what is left and returns when no more will be written.
    pub(super) fn close(&self) {
        self.shared.close();
    }

    /// Whether the disk has room.
    pub(super) fn disk(&self) -> watch::Receiver<DiskState> {
        self.shared.disk.clone()
    }

    /// How long the sync takes that is under way.
    pub(super) fn sync(&self) -> SyncClock {
        self.shared.sync.clone()
    }

    /// The data keys.
    pub(super) fn keys(&self) -> &KeyRing {
        &self.shared.keys
    }

    /// Lets a write fail that waits for room on a full disk, now or later: for when the log is about to be closed.
    pub(super) fn give_up(&self) {
        self.shared.give_up();
    }

    /// The last entry that is only in the snapshot, if there is any.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.shared.memory().kept.purged
    }

    async fn durable(&self, kind: RecordKind) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.shared.send(Job::Durable {
            record: Record { kind: Some(kind) },
            done,
        })?;
        wait.await
            .map_err(|_| io::Error::other("the raft log stopped before the write was durable"))?
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let bounds: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(bounds) {
            return Ok(Vec::new());
        }
        Ok(self
            .shared
            .memory()
            .entries
            .range(bounds)
            .map(|(_, s)| s.entry.clone())
            .collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        let memory = self.shared.memory();
        let mut bytes = 0;
        let within = memory.entries.range(start..end).take_while(|(_, stored)| {
            let first = bytes == 0;
            bytes += stored.bytes.max(1);
            first || bytes <= READ_BYTES
        });
        Ok(within.map(|(_, stored)| stored.entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.memory().kept.vote)
    }
}

/// `BTreeMap::range` panics on a range that ends before it begins.
fn is_empty(bounds: (Bound<u64>, Bound<u64>)) -> bool {
    let start = match bounds.0 {
        Bound::Included(i) => i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match bounds.1 {
        Bound::Included(i) => i < start,
        Bound::Excluded(i) => i <= start,
        Bound::Unbounded => false,
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.shared.memory();
        Ok(LogState {
            last_purged_log_id: memory.kept.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.shared.memory().kept.vote = Some(*vote);
        self.durable(RecordKind::Vote((*vote).into())).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.memory().kept.committed = committed;
        self.shared.send(Job::Committed(committed))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.memory().kept.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut buffer = Vec::new();
        let mut last = None;
        for entry in entries {
            if let Some(last) = last.take_if(|_| buffer.len() >= COALESCE_BYTES) {
                let bytes = std::mem::take(&mut buffer);
                self.shared.send(Job::Entries {
                    bytes,
                    last,
                    flushed: None,
                })?;
            }
            let before = buffer.len();
            buffer.extend_from_slice(&encode_record(RecordKind::Entry((&entry).into())));
            last = Some(entry.log_id());
            self.shared.memory().push(entry, buffer.len() - before);
        }
        match last {
            Some(last) => self.shared.send(Job::Entries {
                bytes: buffer,
                last,
                flushed: Some(callback),
            }),
            None => {
                callback.io_completed(Ok(()));
                Ok(())
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.shared.memory().truncate_after(last);
        self.durable(RecordKind::TruncateAfter(super::record::TruncateAfter {
            last: last.map(Into::into),
        }))
        .await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.shared.memory().purge(id);
        self.durable(RecordKind::Purge(id.into())).await
    }
}

/// Ends the process: the state of the disk is unknown, and only reading it again tells what is durable.
pub(super) fn exit_on_fatal() -> OnFatal {
    Box::new(|error| {
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(error) {
            text = format!("{text}: {source}");
        }
        tracing::error!("the raft log failed and this manager stops: {text}");
        // The logger may be asynchronous; an operator must find this line.
        eprintln!("rswarm: the raft log failed and this manager stops: {text}");
        std::process::exit(EXIT_IO_ERROR);
    })
}

#[cfg(test)]
#[path = "log_tests.rs"]
pub(super) mod tests;
