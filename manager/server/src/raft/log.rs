//! The raft log: entries and votes in one stream of durable frames, served from memory.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use prost::Message;
use tokio::sync::oneshot;

use super::record::{Batch, Checkpoint, Record, RecordKind, encode_record};
use super::segment::{self, LogError, Tail, TornTail, io_error, list, scan, segment_path, sync_dir};
use super::{Entry, LogId, TypeConfig, Vote};

/// Bytes that are gathered for one fdatasync: more would hold the first of them up for longer than it saves.
const COALESCE_BYTES: usize = 1024 * 1024;
/// Bytes of entries given to a peer at once, below gRPC's 4 MiB.
const READ_BYTES: usize = 1024 * 1024;

/// What happens when the log cannot be written any more; it must not return to normal work.
pub(super) type OnFatal = Box<dyn Fn(&LogError) + Send>;

/// The log as openraft sees it.
#[derive(Clone)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Mutex<Memory>,
    queue: Mutex<Option<Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held while the log may write.
    lock: Mutex<Option<File>>,
}

/// Everything the log holds, as if all of it were durable already.
#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, Stored>,
    last: Option<LogId>,
    kept: Kept,
}

/// Smaller facts, which a checkpoint repeats at the beginning of each segment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Kept {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

struct Stored {
    entry: Entry,
    bytes: usize,
}

enum Job {
    /// Encoded entries.
    Entries {
        bytes: Vec<u8>,
        last: LogId,
        flushed: Option<IOFlushed<TypeConfig>>,
    },
    /// Answered once it is durable.
    Durable {
        record: Record,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Goes with the next durable write.
    Committed(Option<LogId>),
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
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A panic of the writer was reported by its own thread.
            let _ = writer.join();
        }
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue
            .as_ref()
            .and_then(|queue| queue.send(job).ok())
            .ok_or_else(|| io::Error::other("the raft log is closed"))
    }
}

impl LogStore {
    /// Opens the log in `dir`, which is made when it is missing. What a crash left of its last write is removed and
    /// returned, any other damage is refused.
    pub(super) fn open(dir: &Path, on_fatal: OnFatal) -> Result<(Self, Option<TornTail>), LogError> {
        std::fs::create_dir_all(dir).map_err(io_error("create the folder", dir))?;
        let lock = File::create(dir.join("lock")).map_err(io_error("create the lock", dir))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            LogError::Locked {
                path: dir.to_path_buf(),
            }
        })?;
        let (memory, writer, torn) = recover(dir)?;
        let (queue, jobs) = channel();
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run(&jobs, &on_fatal))
            .map_err(io_error("start the writer", dir))?;
        let shared = Shared {
            memory: Mutex::new(memory),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(Some(thread)),
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

/// Reads all segments in order.
fn recover(dir: &Path) -> Result<(Memory, Writer, Option<TornTail>), LogError> {
    let numbers = list(dir)?;
    let mut memory = Memory::default();
    let Some((&last, _)) = numbers.split_last() else {
        let checkpoint = encode_record(RecordKind::Checkpoint(Checkpoint::default()));
        let tail = Tail::create(dir, 0, 0, &checkpoint, 0)?;
        let writer = Writer::new(dir, tail, VecDeque::new(), None, Kept::default(), None);
        return Ok((memory, writer, None));
    };
    let mut closed = VecDeque::new();
    let mut expect = None;
    for &number in &numbers {
        let path = segment_path(dir, number);
        let scanned = scan(&path, number, expect, number == last)?;
        expect = Some(scanned.next_seq);
        let mut newest = None;
        for (at, body) in scanned.bodies.iter().enumerate() {
            let wrong = |why: String| LogError::Corrupt {
                path: path.clone(),
                offset: 0,
                why: format!("frame {at}: {why}"),
            };
            let batch = Batch::decode(body.as_slice()).map_err(|e| wrong(e.to_string()))?;
            for record in batch.records {
                let first = number == numbers[0] && at == 0;
                memory.replay(record, first, &mut newest).map_err(wrong)?;
            }
        }
        if number != last {
            closed.push_back((number, newest));
            continue;
        }
        memory.check().map_err(|why| LogError::Corrupt {
            path: path.clone(),
            offset: scanned.end,
            why,
        })?;
        let tail = Tail::resume(dir, number, &scanned)?;
        let writer = Writer::new(dir, tail, closed, newest, memory.kept.clone(), memory.last);
        return Ok((memory, writer, scanned.torn));
    }
    unreachable!("the last segment ends the loop")
}

impl Memory {
    /// Repeats what a record did when it was written. `newest` becomes the highest entry of the segment.
    fn replay(&mut self, record: Record, first: bool, newest: &mut Option<u64>) -> Result<(), String> {
        match record
            .kind
            .ok_or("a record of an unknown kind: written by a newer version?")?
        {
            RecordKind::Entry(wire) => {
                let bytes = wire.encoded_len();
                let entry = wire.into_entry()?;
                let id = entry.log_id;
                if let Some(last) = self.last.filter(|last| last.index + 1 != id.index) {
                    return Err(format!("entry {} follows entry {}", id.index, last.index));
                }
                *newest = (*newest).max(Some(id.index));
                self.push(entry, bytes);
            }
            RecordKind::Vote(vote) => self.kept.vote = Some(vote.into()),
            RecordKind::Committed(id) => self.kept.committed = Some(id.into()),
            RecordKind::TruncateAfter(to) => self.truncate_after(to.last.map(Into::into)),
            RecordKind::Purge(id) => self.purge(id.into()),
            RecordKind::Checkpoint(checkpoint) => {
                let kept = Kept {
                    vote: checkpoint.vote.map(Into::into),
                    committed: checkpoint.committed.map(Into::into),
                    purged: checkpoint.purged.map(Into::into),
                };
                if first {
                    self.kept = kept;
                    self.last = checkpoint.last.map(Into::into);
                } else if kept != self.kept || checkpoint.last.map(Into::into) != self.last {
                    return Err("the checkpoint does not say what the segments before it do".into());
                }
            }
        }
        Ok(())
    }

    /// Whether no entry is missing between what was purged and the end.
    fn check(&self) -> Result<(), String> {
        let next = self.kept.purged.map_or(0, |id| id.index + 1);
        let end = self.last.map_or(0, |id| id.index + 1).max(next);
        if self.entries.len() as u64 != end - next || self.entries.keys().next().is_some_and(|i| *i != next) {
            return Err(format!(
                "entries {next} to {end} should be there, {} are",
                self.entries.len()
            ));
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        self.entries.insert(entry.log_id.index, Stored { entry, bytes });
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        self.entries.split_off(&last.map_or(0, |id| id.index + 1));
        self.last = cut(self.last, last);
    }

    fn purge(&mut self, id: LogId) {
        self.entries = self.entries.split_off(&(id.index + 1));
        self.kept.purged = Some(id);
        if self.last.is_none_or(|last| last.index < id.index) {
            self.last = Some(id);
        }
    }
}

/// The end of a log that ended at `end`, after everything behind `last` was taken off.
fn cut(end: Option<LogId>, last: Option<LogId>) -> Option<LogId> {
    if end.map(|id| id.index) > last.map(|id| id.index) {
        last
    } else {
        end
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

/// The one thread that writes.
struct Writer {
    dir: PathBuf,
    tail: Tail,
    /// Full segments, oldest first, with their highest entry.
    closed: VecDeque<(u64, Option<u64>)>,
    /// Highest entry of the tail.
    newest: Option<u64>,
    kept: Kept,
    last: Option<LogId>,
}

/// What is to be told once a frame is durable.
#[derive(Default)]
struct Waiting {
    flushed: Vec<IOFlushed<TypeConfig>>,
    done: Vec<oneshot::Sender<io::Result<()>>>,
}

impl Waiting {
    fn tell(self, result: Result<(), &LogError>) {
        let answer = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        for flushed in self.flushed {
            flushed.io_completed(answer());
        }
        for done in self.done {
            // Nobody waits any more while openraft shuts down.
            let _ = done.send(answer());
        }
    }
}

impl Writer {
    fn new(
        dir: &Path,
        tail: Tail,
        closed: VecDeque<(u64, Option<u64>)>,
        newest: Option<u64>,
        kept: Kept,
        last: Option<LogId>,
    ) -> Self {
        Self {
            dir: dir.to_path_buf(),
            tail,
            closed,
            newest,
            kept,
            last,
        }
    }

    /// Writes until the log is closed. After an error it writes nothing more, as nobody knows what the disk has.
    fn run(mut self, jobs: &Receiver<Job>, on_fatal: &OnFatal) {
        let mut committed = None;
        while let Ok(first) = jobs.recv() {
            let mut frame = Vec::new();
            let mut waiting = Waiting::default();
            let mut effects = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next {
                gather(job, &mut frame, &mut waiting, &mut effects, &mut committed);
                next = if frame.len() < COALESCE_BYTES {
                    jobs.try_recv().ok()
                } else {
                    None
                };
            }
            if frame.is_empty() {
                continue; // Only a commit index, which is not worth a sync.
            }
            if let Err(error) = self.write(frame, effects, committed.take()) {
                waiting.tell(Err(&error));
                on_fatal(&error);
                return;
            }
            waiting.tell(Ok(()));
        }
        if committed.is_some()
            && let Err(error) = self.write(Vec::new(), Vec::new(), committed)
        {
            on_fatal(&error);
        }
    }

    fn write(
        &mut self,
        mut frame: Vec<u8>,
        effects: Vec<Effect>,
        committed: Option<LogId>,
    ) -> Result<(), LogError> {
        if let Some(id) = committed {
            frame.extend_from_slice(&encode_record(RecordKind::Committed(id.into())));
        }
        if !self.tail.fits(frame.len()) {
            self.rotate(frame.len())?;
        }
        self.tail.append(&frame)?;
        self.kept.committed = committed.or(self.kept.committed);
        let mut purged = false;
        for effect in effects {
            match effect {
                Effect::Entries(last) => {
                    self.newest = self.newest.max(Some(last.index));
                    self.last = Some(last);
                }
                Effect::Vote(vote) => self.kept.vote = Some(vote),
                Effect::Truncate(last) => self.last = cut(self.last, last),
                Effect::Purge(id) => {
                    self.kept.purged = Some(id);
                    if self.last.is_none_or(|last| last.index < id.index) {
                        self.last = Some(id);
                    }
                    purged = true;
                }
            }
        }
        if purged { self.collect() } else { Ok(()) }
    }

    fn rotate(&mut self, room: usize) -> Result<(), LogError> {
        let checkpoint = Checkpoint {
            vote: self.kept.vote.map(Into::into),
            committed: self.kept.committed.map(Into::into),
            purged: self.kept.purged.map(Into::into),
            last: self.last.map(Into::into),
        };
        let body = encode_record(RecordKind::Checkpoint(checkpoint));
        let number = self.tail.number + 1;
        let tail = Tail::create(&self.dir, number, self.tail.next_seq(), &body, room)?;
        self.closed.push_back((self.tail.number, self.newest.take()));
        self.tail = tail;
        // What was purged meanwhile may have freed the segment that was just closed.
        self.collect()
    }

    /// Deletes the oldest segments as long as all of their entries are purged.
    fn collect(&mut self) -> Result<(), LogError> {
        let purged = self.kept.purged.map(|id| id.index);
        let mut deleted = false;
        while self.closed.front().is_some_and(|(_, newest)| *newest <= purged) {
            let Some((number, _)) = self.closed.pop_front() else {
                break;
            };
            let path = segment_path(&self.dir, number);
            std::fs::remove_file(&path).map_err(io_error("delete a purged segment", &path))?;
            deleted = true;
        }
        if deleted { sync_dir(&self.dir) } else { Ok(()) }
    }
}

/// What a record does to the facts of a checkpoint.
enum Effect {
    Entries(LogId),
    Vote(Vote),
    Truncate(Option<LogId>),
    Purge(LogId),
}

fn gather(
    job: Job,
    frame: &mut Vec<u8>,
    waiting: &mut Waiting,
    effects: &mut Vec<Effect>,
    committed: &mut Option<LogId>,
) {
    match job {
        Job::Entries { bytes, last, flushed } => {
            frame.extend_from_slice(&bytes);
            effects.push(Effect::Entries(last));
            waiting.flushed.extend(flushed);
        }
        Job::Durable { record, done } => {
            effects.extend(match &record.kind {
                Some(RecordKind::Vote(vote)) => Some(Effect::Vote((*vote).into())),
                Some(RecordKind::TruncateAfter(to)) => Some(Effect::Truncate(to.last.map(Into::into))),
                Some(RecordKind::Purge(id)) => Some(Effect::Purge((*id).into())),
                _ => None,
            });
            if let Some(kind) = record.kind {
                frame.extend_from_slice(&encode_record(kind));
            }
            waiting.done.push(done);
        }
        Job::Committed(id) => *committed = id,
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
        std::process::exit(segment::EXIT_IO_ERROR);
    })
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
