//! The synced-up-to mark: how much of the log is known to be durable, stored apart from it.
//!
//! By itself a log cannot tell its last frame, acknowledged and then damaged, from one that a crash cut off. Every
//! other frame is proved by the one behind it, which was only begun when it was durable. So the mark has to be right
//! about the last frame of a log at rest, and costs no sync while it is busy: it is written and synced when no write
//! came for [`MARK_AFTER`], when a segment is begun, and when the log is closed.
//!
//! What this detects: any damage to what was acknowledged, whatever it is and wherever it is (a bit, a cut, zeros, a
//! segment that is gone), except to the one last frame within [`MARK_AFTER`] and one sync of its acknowledgement.
//! There it is taken for a torn write and cut off. That needs a disk which loses, in a power cut, what it said was
//! durable a moment before. Not detected is an old copy of the whole folder in the place of the new one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{LogError, io_error};
use super::replace::replace_file;

/// How long a log rests before its mark is synced: so at most ten times a second, and no write waits for more than
/// one such sync.
pub(super) const MARK_AFTER: Duration = Duration::from_millis(100);

const MAGIC: [u8; 8] = *b"RSWSYN\r\n";
const RECORD_BYTES: usize = 20;
/// Two records in blocks of their own: a power cut damages the one that is being written at most.
const SLOT_BYTES: usize = 4096;

/// The file with the mark.
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    value: u64,
    slot: usize,
}

fn record(value: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&value.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn value_in(bytes: &[u8], slot: usize) -> Option<u64> {
    let found = bytes.get(slot * SLOT_BYTES..slot * SLOT_BYTES + RECORD_BYTES)?;
    let value = u64::from_le_bytes(found[8..16].try_into().ok()?);
    (found == record(value)).then_some(value)
}

impl Mark {
    /// Name of the file in the folder of a log.
    pub(super) fn path_in(dir: &Path) -> PathBuf {
        dir.join("synced")
    }

    /// Reads the mark, or makes one where there was never any.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when it is missing although the log is `marked`, or when both records are bad.
    pub(super) fn open(dir: &Path, marked: bool) -> Result<Self, LogError> {
        let path = Self::path_in(dir);
        let corrupt = |why: &str| LogError::Corrupt {
            path: path.clone(),
            offset: 0,
            why: why.into(),
        };
        if !path.exists() {
            if marked {
                return Err(corrupt("it is missing although there is a log"));
            }
            let mut bytes = vec![0; 2 * SLOT_BYTES];
            bytes[..RECORD_BYTES].copy_from_slice(&record(0));
            bytes[SLOT_BYTES..SLOT_BYTES + RECORD_BYTES].copy_from_slice(&record(0));
            replace_file(&path, &bytes)?;
        }
        let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
        let values = [value_in(&bytes, 0), value_in(&bytes, 1)];
        let value = values[0]
            .max(values[1])
            .ok_or_else(|| corrupt("both of its records are bad"))?;
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        // The next one overwrites the one that is bad or older.
        let slot = usize::from(values[0] == Some(value));
        Ok(Self {
            file,
            path,
            value,
            slot,
        })
    }

    /// Whether more of the log in `dir` is durable than its first frame, which is no more than its making. Reads only.
    pub(super) fn proves_writes(dir: &Path) -> bool {
        // One that cannot be read proves that there was a log, and opening it says what is wrong.
        std::fs::read(Self::path_in(dir)).is_ok_and(|bytes| {
            let values = [value_in(&bytes, 0), value_in(&bytes, 1)];
            values[0].max(values[1]).is_none_or(|value| value > 1)
        })
    }

    /// All frames with lower numbers are durable.
    pub(super) fn value(&self) -> u64 {
        self.value
    }

    /// Says durably that all frames below `next_seq` are durable. It never goes back.
    pub(super) fn advance(&mut self, next_seq: u64) -> Result<(), LogError> {
        if next_seq <= self.value {
            return Ok(());
        }
        self.file
            .write_all_at(&record(next_seq), (self.slot * SLOT_BYTES) as u64)
            .and_then(|()| self.file.sync_data())
            .map_err(io_error("write the mark", &self.path))?;
        self.value = next_seq;
        self.slot = 1 - self.slot;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_damage_of_the_record_that_is_being_written_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(dir.path(), false).unwrap();
        for value in [3, 9, 4] {
            mark.advance(value).unwrap();
        }
        assert_eq!(mark.value(), 9, "it never goes back");
        let path = Mark::path_in(dir.path());
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 2 * SLOT_BYTES);
        for (slot, left) in [(0, 3), (1, 9)] {
            for bit in 0..RECORD_BYTES * 8 {
                let mut bytes = whole.clone();
                bytes[slot * SLOT_BYTES + bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, &bytes).unwrap();
                assert_eq!(
                    Mark::open(dir.path(), true).unwrap().value(),
                    left,
                    "{slot} {bit}"
                );
                bytes[(1 - slot) * SLOT_BYTES + 9] ^= 1;
                std::fs::write(&path, &bytes).unwrap();
                assert!(matches!(
                    Mark::open(dir.path(), true),
                    Err(LogError::Corrupt { .. })
                ));
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            Mark::open(dir.path(), true),
            Err(LogError::Corrupt { .. })
        ));
    }
}
