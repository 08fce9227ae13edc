//! A snapshot on disk: sealed piece by piece, and never under its name before it is whole.
//!
//! Each piece is sealed with its number and with whether it is the last, and all of them with the header. So pieces
//! that are missing, doubled, swapped, or from another snapshot do not open. Managers have different keys, so what
//! goes over the network is the content: [`SnapshotFile::next_piece`] there, [`SnapshotWriter::write`] here.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::{LogError, io_error};
use super::keys::KeyRing;
use super::replace::{create_private, remove_leftover, sync_dir};
use super::seal::{Cipher, NONCE_BYTES, SALT_BYTES, TAG_BYTES, random};

/// Longest piece: small beside gRPC's 4 MiB and beside memory, large beside its tag.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// How a snapshot began before they were sealed.
pub(super) const PLAIN_MAGIC: [u8; 8] = *b"RSWSNP\r\n";

const MAGIC: [u8; 8] = *b"RSWSNS\r\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
/// What the keys of snapshots are derived for.
const PURPOSE: &[u8] = b"rswarm raft snapshot";

/// Name of the snapshot in the folder of a log.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

/// Removes snapshots that were being written when the process ended.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), LogError> {
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snapshot") && name.ends_with(".tmp") {
            remove_leftover(&entry.path())?;
        }
    }
    Ok(())
}

/// Number of the data key of the snapshot at `path`; 0: a version that did not seal wrote it. None: there is none.
pub(super) fn key_of(path: &Path) -> Result<Option<u32>, LogError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    match File::open(path) {
        Ok(file) => file.take(HEADER_BYTES as u64).read_to_end(&mut bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => Err(e),
    }
    .map_err(io_error("read the snapshot", path))?;
    if bytes.starts_with(&PLAIN_MAGIC) {
        return Ok(Some(0));
    }
    Ok(Some(Header::decode(path, &bytes)?.key))
}

struct Header {
    key: u32,
    salt: [u8; SALT_BYTES],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.key.to_le_bytes());
        bytes[16..16 + SALT_BYTES].copy_from_slice(&self.salt);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, LogError> {
        let corrupt = |why: &str| corrupt_at(path, 0, why);
        let word = |at: usize| {
            let word = bytes.get(at..at + 4)?;
            word.try_into().ok().map(u32::from_le_bytes)
        };
        let header = bytes
            .get(..HEADER_BYTES)
            .ok_or_else(|| corrupt("its header is cut off"))?;
        if header[..8] != MAGIC {
            return Err(corrupt("it does not begin like a snapshot"));
        }
        if word(60) != Some(crc32fast::hash(&header[..60])) {
            return Err(corrupt("the checksum of its header is wrong"));
        }
        let found = word(8).unwrap_or(0);
        if found != FORMAT {
            return Err(LogError::Format {
                path: path.to_path_buf(),
                found,
                known: FORMAT,
            });
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&header[16..16 + SALT_BYTES]);
        Ok(Self {
            key: word(12).unwrap_or(0),
            salt,
        })
    }

    fn cipher(&self, path: &Path, keys: &KeyRing) -> Result<Cipher, LogError> {
        let cipher = keys.cipher(self.key, &self.salt, PURPOSE);
        cipher.ok_or_else(|| LogError::UnknownKey {
            path: path.to_path_buf(),
            key: self.key,
        })
    }
}

fn corrupt_at(path: &Path, offset: u64, why: &str) -> LogError {
    LogError::Corrupt {
        path: path.to_path_buf(),
        offset,
        why: why.into(),
    }
}

/// A key seals one snapshot only, so its pieces are simply counted.
fn nonce(piece: u64, last: bool) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..8].copy_from_slice(&piece.to_le_bytes());
    nonce[8] = u8::from(last);
    nonce
}

/// A file that goes when nobody gave it its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What is left is removed when the log is opened the next time.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A whole snapshot on disk, open for reading. One that was never installed is removed when this is dropped.
pub(crate) struct SnapshotFile {
    path: PathBuf,
    temporary: Option<Temporary>,
    file: File,
    header: [u8; HEADER_BYTES],
    cipher: Cipher,
    len: u64,
    at: u64,
    piece: u64,
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "snapshot {} at byte {} of {}",
            self.path.display(),
            self.at,
            self.len
        )
    }
}

impl SnapshotFile {
    /// Opens the snapshot at `path`, if there is one.
    pub(super) fn open(path: &Path, keys: &KeyRing) -> Result<Option<Self>, LogError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open the snapshot", path)(e)),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        let read = || -> io::Result<u64> {
            (&file).take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
            Ok(file.metadata()?.len())
        };
        let len = { read }().map_err(io_error("read the snapshot", path))?;
        let header = Header::decode(path, &bytes)?;
        Ok(Some(Self {
            path: path.to_path_buf(),
            temporary: None,
            file,
            header: header.encode(),
            cipher: header.cipher(path, keys)?,
            len,
            at: HEADER_BYTES as u64,
            piece: 0,
        }))
    }

    /// The next piece of the content, at most 256 KiB, exactly as it was written. None: that was all of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] around [`LogError::Corrupt`] when the file was changed; otherwise as the disk says.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let rest = self.len - self.at;
        if rest == 0 && self.piece > 0 {
            return Ok(None);
        }
        let damaged =
            |why: &str| io::Error::new(io::ErrorKind::InvalidData, corrupt_at(&self.path, self.at, why));
        let full = PIECE_BYTES + TAG_BYTES;
        let take = usize::try_from(rest).map_or(full, |rest| rest.min(full));
        let Some(body) = take.checked_sub(TAG_BYTES) else {
            return Err(damaged("it is cut off"));
        };
        let mut bytes = vec![0; take];
        self.file.read_exact_at(&mut bytes, self.at)?;
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&bytes[body..]);
        bytes.truncate(body);
        let last = take as u64 == rest;
        if !self
            .cipher
            .open_in_place(nonce(self.piece, last), &self.header, &mut bytes, tag)
        {
            return Err(damaged("the piece that begins here is not what was sealed"));
        }
        self.at += take as u64;
        self.piece += 1;
        Ok(Some(bytes))
    }

    /// Begins again with the first piece.
    pub(crate) fn rewind(&mut self) {
        self.at = HEADER_BYTES as u64;
        self.piece = 0;
    }

    /// Where it is; for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The content as a stream, from where it stands.
    pub(super) fn reader(&mut self) -> PieceReader<'_> {
        PieceReader {
            file: self,
            piece: Vec::new(),
            at: 0,
        }
    }

    /// Makes this the snapshot of the log in `dir`. After a crash there is the old one or this one, whole.
    pub(super) fn install(&mut self, dir: &Path, keys: &KeyRing) -> io::Result<()> {
        if self.path.parent() != Some(dir) {
            // From a folder with other keys.
            self.rewind();
            let mut copy = SnapshotWriter::create(dir, keys)?;
            while let Some(piece) = self.next_piece()? {
                copy.write(&piece)?;
            }
            return copy.finish()?.install(dir, keys);
        }
        let Some(temporary) = &self.temporary else {
            return Ok(()); // It is the one.
        };
        let path = path_in(dir);
        crash::point("snap.before_rename");
        std::fs::rename(&temporary.0, &path)?;
        std::mem::forget(self.temporary.take());
        self.path = path;
        crash::point("snap.before_dirsync");
        sync_dir(dir).map_err(io::Error::other)
    }
}

/// The content of a snapshot, with no more than one piece of it in memory.
pub(super) struct PieceReader<'a> {
    file: &'a mut SnapshotFile,
    piece: Vec<u8>,
    at: usize,
}

impl Read for PieceReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.file.next_piece()? {
                None => return Ok(0),
                Some(piece) => (self.piece, self.at) = (piece, 0),
            }
        }
        let from = &self.piece[self.at..];
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        self.at += len;
        Ok(len)
    }
}

/// A snapshot that is being written: here, or by another manager over the network. Dropped unfinished, it is removed.
pub(crate) struct SnapshotWriter {
    temporary: Temporary,
    file: File,
    header: [u8; HEADER_BYTES],
    cipher: Cipher,
    /// What does not fill a piece yet.
    buffer: Vec<u8>,
    piece: u64,
}

impl std::fmt::Debug for SnapshotWriter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "snapshot {}, piece {}",
            self.temporary.0.display(),
            self.piece
        )
    }
}

impl SnapshotWriter {
    /// Begins a snapshot in the folder of a log, sealed with its newest data key.
    ///
    /// # Errors
    /// As the disk says; [`io::ErrorKind::StorageFull`] may pass. That holds for [`Self::write`] and [`Self::finish`].
    pub(crate) fn create(dir: &Path, keys: &KeyRing) -> io::Result<Self> {
        let name: [u8; 8] = random()?;
        let path = dir.join(format!("snapshot-{:016x}.tmp", u64::from_le_bytes(name)));
        let header = Header {
            key: keys.newest(),
            salt: random()?,
        };
        let cipher = header.cipher(&path, keys).map_err(io::Error::other)?;
        let mut file = create_private(&path)?;
        let temporary = Temporary(path);
        let header = header.encode();
        file.write_all(&header)?;
        Ok(Self {
            temporary,
            file,
            header,
            cipher,
            buffer: Vec::with_capacity(PIECE_BYTES + TAG_BYTES),
            piece: 0,
        })
    }

    /// Adds to the content; any number of bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // Only now is it certain that the full one is not the last.
            if self.buffer.len() == PIECE_BYTES {
                self.seal(false)?;
                crash::point("snap.mid_write");
            }
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = nonce(self.piece, last);
        let tag = self.cipher.seal_in_place(nonce, &self.header, &mut self.buffer)?;
        self.buffer.extend_from_slice(&tag);
        // After an error the writer is of no more use: a nonce must not be used twice.
        self.piece += 1;
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the content and makes it durable; it is not the snapshot of the log before it is installed.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotFile> {
        self.seal(true)?;
        self.file.sync_all()?;
        Ok(SnapshotFile {
            path: self.temporary.0.clone(),
            len: self.file.metadata()?.len(),
            temporary: Some(self.temporary),
            file: self.file,
            header: self.header,
            cipher: self.cipher,
            at: HEADER_BYTES as u64,
            piece: 0,
        })
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
