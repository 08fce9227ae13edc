//! What the log holds, in memory: reads never touch the disk.

use std::collections::BTreeMap;

use prost::Message;

use super::record::{Checkpoint, Record, RecordKind, encode_record};
use super::{Entry, LogId, Vote};

/// Everything the log holds, as if all of it were durable already.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) entries: BTreeMap<u64, Stored>,
    pub(super) last: Option<LogId>,
    pub(super) kept: Kept,
}

/// Smaller facts, which a checkpoint repeats at the beginning of each segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kept {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
}

pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) bytes: usize,
}

impl Memory {
    /// Repeats what a record did when it was written. `newest` becomes the highest entry of the segment.
    pub(super) fn replay(
        &mut self,
        record: Record,
        first: bool,
        newest: &mut Option<u64>,
    ) -> Result<(), String> {
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
    pub(super) fn check(&self) -> Result<(), String> {
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

    pub(super) fn push(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        self.entries.insert(entry.log_id.index, Stored { entry, bytes });
    }

    pub(super) fn truncate_after(&mut self, last: Option<LogId>) {
        self.entries.split_off(&last.map_or(0, |id| id.index + 1));
        self.last = cut(self.last, last);
    }

    pub(super) fn purge(&mut self, id: LogId) {
        self.entries = self.entries.split_off(&(id.index + 1));
        self.kept.purged = Some(id);
        if self.last.is_none_or(|last| last.index < id.index) {
            self.last = Some(id);
        }
    }
}

/// The end of a log that ended at `end`, after everything behind `last` was taken off.
pub(super) fn cut(end: Option<LogId>, last: Option<LogId>) -> Option<LogId> {
    if end.map(|id| id.index) > last.map(|id| id.index) {
        last
    } else {
        end
    }
}

/// The first record of a segment.
pub(super) fn checkpoint(kept: &Kept, last: Option<LogId>) -> Vec<u8> {
    encode_record(RecordKind::Checkpoint(Checkpoint {
        vote: kept.vote.map(Into::into),
        committed: kept.committed.map(Into::into),
        purged: kept.purged.map(Into::into),
        last: last.map(Into::into),
    }))
}
