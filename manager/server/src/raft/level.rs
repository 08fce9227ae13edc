//! The level a log is written at, beside it: a build that knows less must not open the log to find that out. It would
//! take what it cannot read for damage, and what it reads only in part for all there is.

use std::path::{Path, PathBuf};

use manager_core::State;
use model::Level;

use super::error::{LogError, io_error};
use super::replace::replace_file;

fn path_in(dir: &Path) -> PathBuf {
    dir.join("level")
}

fn text_of(level: Level) -> String {
    let crc = crc32fast::hash(&level.number().to_le_bytes());
    format!("level {level} {crc:08x}\n")
}

/// The level of the log in `dir`; the first one where nothing says more.
///
/// # Errors
/// [`LogError::Corrupt`] when it is there and cannot be read.
pub(super) fn read(dir: &Path) -> Result<Level, LogError> {
    let path = path_in(dir);
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Level::FIRST),
        read => read.map_err(io_error("read", &path))?,
    };
    let text = String::from_utf8_lossy(&text);
    let number = text.split(' ').nth(1).and_then(|n| n.parse().ok());
    let level = number.map(Level::new).filter(|level| text == text_of(*level));
    level.ok_or_else(|| LogError::Corrupt {
        path,
        offset: 0,
        why: "it does not hold the level of the log with its checksum".into(),
    })
}

/// What is written beside a log that is open.
#[derive(Debug, Clone)]
pub(super) struct Written {
    dir: PathBuf,
    level: Level,
}

impl Written {
    /// What is beside the log in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, LogError> {
        Ok(Self {
            dir: dir.to_owned(),
            level: read(dir)?,
        })
    }

    /// Keeps up with the state. A disk that is full is tried again with the next entry: this build reads the log either way.
    pub(super) fn follow(&mut self, state: &State) {
        let level = manager_core::admit::level::written(state);
        if level <= self.level {
            return;
        }
        match replace_file(&path_in(&self.dir), text_of(level).as_bytes()) {
            Ok(()) => self.level = level,
            Err(error) => tracing::warn!("the level of the raft log is not written beside it yet: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_back_and_every_changed_bit_of_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Level::FIRST, "there is none");
        let path = path_in(dir.path());
        replace_file(&path, text_of(Level::new(12)).as_bytes()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Level::new(12));
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &changed).unwrap();
            let error = read(dir.path()).unwrap_err();
            assert!(
                error.to_string().starts_with("E_LOG_CORRUPT"),
                "bit {bit}: {error}"
            );
        }
    }
}
