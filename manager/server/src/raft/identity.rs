//! The number of this manager in the cluster: a changed bit of it must not make it vote as somebody else.

use std::path::{Path, PathBuf};

use super::error::{LogError, io_error};
use super::mark::Mark;
use super::replace::{remove_leftover, replace_file, sync_dir};

/// Name of the file in the folder of a log.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("identity")
}

fn left_path_in(dir: &Path) -> PathBuf {
    dir.join("identity.left")
}

/// Whether the manager of this folder left, so that what is there may be removed.
pub(super) fn was_left(dir: &Path) -> bool {
    left_path_in(dir).exists()
}

/// Durably ends the membership. At each step the folder is either a whole log's or nobody's: after it, its files may be
/// removed in any order.
pub(super) fn leave(dir: &Path) -> Result<(), LogError> {
    if !dir.exists() {
        return Ok(());
    }
    // A renaming needs no room, which a new file would.
    match std::fs::rename(path_in(dir), left_path_in(dir)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("leave", dir)(e)),
        _ => sync_dir(dir)?,
    }
    remove_leftover(&Mark::path_in(dir))?;
    sync_dir(dir)
}

fn text_of(id: u64) -> String {
    format!("raft-id {id} {:08x}\n", crc32fast::hash(&id.to_le_bytes()))
}

/// Writes it so that after a crash it is there or not.
pub(super) fn write(dir: &Path, id: u64) -> Result<(), LogError> {
    replace_file(&path_in(dir), text_of(id).as_bytes())
}

/// Reads it. The number alone, as an earlier version wrote it, is written anew.
pub(super) fn read(dir: &Path) -> Result<u64, LogError> {
    let path = path_in(dir);
    let corrupt = |why: &str| LogError::Corrupt {
        path: path.clone(),
        offset: 0,
        why: why.into(),
    };
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(corrupt("it is missing although there is a log"));
        }
        read => read.map_err(io_error("read", &path))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    if let Some(id) = text.strip_suffix('\n').and_then(digits) {
        write(dir, id)?;
        return Ok(id);
    }
    let id = text.split(' ').nth(1).and_then(digits);
    id.filter(|id| text == text_of(*id))
        .ok_or_else(|| corrupt("it does not hold the number of this manager with its checksum"))
}

/// `str::parse` takes a sign, too.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_and_every_cut_of_the_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for id in [1, 77, u64::MAX >> 1] {
            write(dir.path(), id).unwrap();
            assert_eq!(read(dir.path()).unwrap(), id);
            let whole = std::fs::read(path_in(dir.path())).unwrap();
            for bit in 0..whole.len() * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(path_in(dir.path()), &changed).unwrap();
                let error = read(dir.path()).unwrap_err();
                assert!(
                    error.to_string().starts_with("E_LOG_CORRUPT"),
                    "{id} bit {bit}: {error}"
                );
            }
            for end in 0..whole.len() {
                std::fs::write(path_in(dir.path()), &whole[..end]).unwrap();
                assert!(read(dir.path()).is_err(), "{id} cut at {end}");
            }
        }
    }

    #[test]
    fn a_folder_that_was_left_is_no_log_at_any_step_of_its_removal() {
        use crate::raft::Log;
        let dir = tempfile::tempdir().unwrap();
        leave(&dir.path().join("never was")).unwrap();
        write(dir.path(), 7).unwrap();
        Mark::open(dir.path(), false).unwrap().advance(9).unwrap();
        let text = std::fs::read(path_in(dir.path())).unwrap();
        std::fs::remove_file(path_in(dir.path())).unwrap();
        assert!(Log::exists(dir.path()), "an identity that was lost");
        // A crash behind the first step.
        std::fs::write(left_path_in(dir.path()), text).unwrap();
        assert!(!Log::exists(dir.path()));
        leave(dir.path()).unwrap();
        assert!(!Log::exists(dir.path()));
        std::fs::remove_file(left_path_in(dir.path())).unwrap();
        assert!(!Log::exists(dir.path()), "whatever of the rest is still there");
    }

    #[test]
    fn an_identity_of_an_earlier_version_is_read_and_gets_its_checksum() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path_in(dir.path()), "12345\n").unwrap();
        assert_eq!(read(dir.path()).unwrap(), 12345);
        assert_eq!(
            std::fs::read_to_string(path_in(dir.path())).unwrap(),
            text_of(12345)
        );
    }
}
