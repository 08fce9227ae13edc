//! Files that are, after a crash, either the old one or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::{LogError, io_error};

/// Makes names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_error("sync the folder", dir))
}

/// A new, empty file that only its owner reads; one of that name is emptied.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Writes a whole small file so that after a crash it is either the old one or the new one.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = create_private(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        // What a full disk let through would only keep it full.
        let _ = std::fs::remove_file(&temporary);
        io_error("write", path)(e)
    })?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file that may not be there.
pub(super) fn remove_leftover(path: &Path) -> Result<(), LogError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove an unfinished file", path)(e)),
        _ => Ok(()),
    }
}
