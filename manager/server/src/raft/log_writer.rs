//! The one thread that writes the raft log: what waits shares a sync, and nothing is answered before it is durable.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::{oneshot, watch};

use super::disk::{DiskState, RETRY, SyncClock};
use super::keys::{KeyError, KeyRing};
use super::mark::{MARK_AFTER, Mark};
use super::memory::{Kept, Memory, checkpoint, cut};
use super::record::{Batch, Record, RecordKind, encode_record};
use super::segment::{self, LogError, Tail, TornTail, io_error, list, scan, segment_path, sync_dir};
use super::{LogId, TypeConfig, Vote};

/// Bytes that are gathered for one fdatasync: more would hold the first of them up for longer than it saves.
pub(super) const COALESCE_BYTES: usize = 1024 * 1024;
/// A new data key after this many segments (32 GiB), so that one key never seals more than 2^30 frames. It bounds
/// what one key is worth; the nonces are safe without it (`seal.rs`).
const SEGMENTS_PER_KEY: u64 = if cfg!(test) { 3 } else { 4096 };

/// What happens when the log cannot be written any more; it must not return to normal work.
pub(super) type OnFatal = Box<dyn Fn(&LogError) + Send>;

/// What the writer is asked for.
pub(super) enum Job {
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

/// What was read when a log was opened, and who goes on writing it.
pub(super) struct Recovered {
    pub(super) memory: Memory,
    pub(super) writer: Writer,
    pub(super) torn: Option<TornTail>,
}

/// Reads all segments in order.
///
/// # Errors
/// [`LogError::Corrupt`] for any damage but a torn tail behind the mark; then nothing was written.
pub(super) fn recover(dir: &Path, keys: &KeyRing) -> Result<Recovered, LogError> {
    segment::remove_unfinished(dir)?;
    let numbers = list(dir)?;
    let mut memory = Memory::default();
    let Some((&last, _)) = numbers.split_last() else {
        let mark = Mark::open(dir, false)?;
        if mark.value() > 0 {
            return Err(gone(&segment_path(dir, 0), 0, 0, mark.value()));
        }
        let tail = Tail::create(dir, keys, 0, 0, &checkpoint(&Kept::default(), None), 0)?;
        let writer = Writer::new(dir, keys, mark, tail);
        return Ok(Recovered {
            memory,
            writer,
            torn: None,
        });
    };
    let mut closed = VecDeque::new();
    let mut expect = None;
    let mut sealed = false;
    for &number in &numbers {
        let path = segment_path(dir, number);
        let mut scanned = scan(&path, number, expect, number == last, keys)?;
        expect = Some(scanned.next_seq);
        sealed |= scanned.key > 0;
        let newest = replay(&path, &mut memory, &scanned.bodies, number == numbers[0])?;
        if number != last {
            closed.push_back((number, newest));
            continue;
        }
        memory.check().map_err(|why| LogError::Corrupt {
            path: path.clone(),
            offset: scanned.end,
            why,
        })?;
        let mark = Mark::open(dir, sealed)?;
        if scanned.next_seq < mark.value() {
            return Err(gone(&path, scanned.end, scanned.next_seq, mark.value()));
        }
        let file = segment::mend(&path, &scanned)?;
        let (tail, newest) = if let Some(cipher) = scanned.cipher.take() {
            (Tail::resume(file, &path, number, &scanned, cipher), newest)
        } else {
            // A version that did not seal wrote it: nothing more goes there.
            closed.push_back((number, newest));
            let body = checkpoint(&memory.kept, memory.last);
            (
                Tail::create(dir, keys, number + 1, scanned.next_seq, &body, 0)?,
                None,
            )
        };
        let mut writer = Writer::new(dir, keys, mark, tail);
        writer.closed = closed;
        writer.newest = newest;
        writer.kept = memory.kept.clone();
        writer.last = memory.last;
        return Ok(Recovered {
            memory,
            writer,
            torn: scanned.torn,
        });
    }
    unreachable!("the last segment ends the loop")
}

fn gone(path: &Path, offset: u64, from: u64, to: u64) -> LogError {
    LogError::Corrupt {
        path: path.to_path_buf(),
        offset,
        why: format!("frames {from} to {} were durable and are gone or changed", to - 1),
    }
}

/// Repeats the frames of one segment; returns its highest entry.
fn replay(
    path: &Path,
    memory: &mut Memory,
    bodies: &[Vec<u8>],
    oldest: bool,
) -> Result<Option<u64>, LogError> {
    let mut newest = None;
    for (at, body) in bodies.iter().enumerate() {
        let wrong = |why: String| LogError::Corrupt {
            path: path.to_path_buf(),
            offset: 0,
            why: format!("frame {at}: {why}"),
        };
        let batch = Batch::decode(body.as_slice()).map_err(|e| wrong(e.to_string()))?;
        for record in batch.records {
            memory
                .replay(record, oldest && at == 0, &mut newest)
                .map_err(wrong)?;
        }
    }
    Ok(newest)
}

/// The one thread that writes.
pub(super) struct Writer {
    dir: PathBuf,
    keys: KeyRing,
    mark: Mark,
    /// Set when a write that waits for room should wait no longer.
    give_up: Arc<AtomicBool>,
    disk: watch::Sender<DiskState>,
    sync: SyncClock,
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
    fn new(dir: &Path, keys: &KeyRing, mark: Mark, tail: Tail) -> Self {
        Self {
            dir: dir.to_path_buf(),
            keys: keys.clone(),
            mark,
            give_up: Arc::default(),
            disk: watch::Sender::default(),
            sync: SyncClock::new(),
            tail,
            closed: VecDeque::new(),
            newest: None,
            kept: Kept::default(),
            last: None,
        }
    }

    /// Set, a write that waits for room fails at once; its thread must be unparked.
    pub(super) fn give_up(&self) -> Arc<AtomicBool> {
        self.give_up.clone()
    }

    /// Whether there is room.
    pub(super) fn disk(&self) -> watch::Receiver<DiskState> {
        self.disk.subscribe()
    }

    /// How long a sync takes.
    pub(super) fn sync(&self) -> SyncClock {
        self.sync.clone()
    }

    /// Writes until the log is closed. After an error it writes nothing more, as nobody knows what the disk has.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, on_fatal: &OnFatal) {
        if let Err(error) = self.write_all(jobs, on_fatal)
            && !self.gave_up(&error)
        {
            on_fatal(&error);
        }
    }

    fn gave_up(&self, error: &LogError) -> bool {
        matches!(error, LogError::Full { .. }) && self.give_up.load(Ordering::SeqCst)
    }

    fn write_all(&mut self, jobs: &Receiver<Job>, on_fatal: &OnFatal) -> Result<(), LogError> {
        let mut committed = None;
        while let Some(first) = self.next(jobs)? {
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
                // First: nobody is to be told anything by a process whose disk is in an unknown state.
                if !self.gave_up(&error) {
                    on_fatal(&error);
                }
                waiting.tell(Err(&error));
                return Ok(());
            }
            waiting.tell(Ok(()));
        }
        if committed.is_some() {
            self.write(Vec::new(), Vec::new(), committed)?;
        }
        self.mark.advance(self.tail.next_seq())
    }

    /// The next job; meanwhile, a log at rest gets its mark. None: the log is closed.
    fn next(&mut self, jobs: &Receiver<Job>) -> Result<Option<Job>, LogError> {
        if self.mark.value() < self.tail.next_seq() {
            match jobs.recv_timeout(MARK_AFTER) {
                Ok(job) => return Ok(Some(job)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.mark.advance(self.tail.next_seq())?,
            }
        }
        Ok(jobs.recv().ok())
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
        self.make_room(frame.len())?;
        self.tail.write(&frame)?;
        let votes = effects.iter().any(|e| matches!(e, Effect::Vote(_)));
        let place = |vote, append| crash::point(if votes { vote } else { append });
        self.sync.begins();
        place("raft.before_vote_fsync", "raft.before_append_fsync");
        self.tail.sync()?;
        self.sync.ended();
        place("raft.after_vote_fsync", "raft.after_append_fsync");
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

    /// Begins a segment when the frame does not fit in this one; on a full disk it waits until there is room.
    fn make_room(&mut self, frame: usize) -> Result<(), LogError> {
        while !self.tail.fits(frame) {
            match self.rotate(frame) {
                Ok(()) => {
                    if self.disk.send_replace(DiskState::Ok) == DiskState::Full {
                        tracing::info!(folder = %self.dir.display(), "there is room again for the raft log");
                    }
                }
                Err(error @ LogError::Full { .. }) => {
                    if self.disk.send_replace(DiskState::Full) == DiskState::Ok {
                        tracing::error!("{error}");
                    }
                    if self.give_up.load(Ordering::SeqCst) {
                        return Err(error);
                    }
                    std::thread::park_timeout(RETRY);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn rotate(&mut self, room: usize) -> Result<(), LogError> {
        let number = self.tail.number + 1;
        if number.is_multiple_of(SEGMENTS_PER_KEY) && self.keys.newest() == self.tail.key {
            match self.keys.rotate() {
                Ok(key) => tracing::info!(key, "the raft log goes on with a new data key"),
                Err(KeyError::Log(error)) => return Err(error),
                // The old one is still good.
                Err(error) => tracing::warn!("{error}"),
            }
        }
        let body = checkpoint(&self.kept, self.last);
        let tail = Tail::create(&self.dir, &self.keys, number, self.tail.next_seq(), &body, room)?;
        self.closed.push_back((self.tail.number, self.newest.take()));
        self.tail = tail;
        // From here on it is noticed when the new segment is gone.
        self.mark.advance(self.tail.next_seq())?;
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
            crash::point("log.mid_purge");
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
