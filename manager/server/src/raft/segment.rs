//! Segment files of the raft log: framing, sealing and checksums, and which damage is cut off and which is refused.
//!
//! A segment is a preallocated file: a header, then frames. One frame is one write followed by one fdatasync, and a
//! frame is only begun when the one before it is durable. So a bad frame with a good one behind it was damaged after
//! it had been acknowledged, and is refused; a bad frame with nothing behind it may be a write that a crash cut off,
//! was never acknowledged, and is removed, unless the mark (`mark.rs`) says that it was durable.
//!
//! The body of a frame is sealed for its place: number of the segment, number of the frame and length. The checksum
//! is over what is on disk, so a torn frame is told from one that was replaced: a frame whose checksum is right and
//! which does not open was not written here, and is refused. Segments of versions that did not seal are read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) use super::error::{LogError, io_error};
pub(super) use super::replace::sync_dir;

use super::keys::KeyRing;
use super::replace::{create_private, remove_leftover};
use super::seal::{Cipher, NONCE_BYTES, SALT_BYTES, TAG_BYTES, random};

/// Size of a segment: large enough that its creation is rare, small enough that purged space comes back soon.
pub(super) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Longest body of a frame. A longer one is not ours; the bound keeps a damaged length from being believed.
pub(super) const FRAME_MAX: usize = 64 * 1024 * 1024;

const SEGMENT_MAGIC: [u8; 8] = *b"RSWSEG\r\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const FRAME_MAGIC: u32 = 0x5257_4652;
const FRAME_HEADER: usize = 24;
const ALIGN: usize = 8;
/// What sealing adds to a body.
const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;
/// What the keys of segments are derived for.
const PURPOSE: &[u8] = b"rswarm raft segment";

/// What is left of a frame that was being written when the machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// In which file.
    pub path: PathBuf,
    /// Where the log ends now.
    pub offset: u64,
}

/// Frames of one segment.
pub(super) struct Scanned {
    /// Bodies, oldest first; the first one is the checkpoint.
    pub(super) bodies: Vec<Vec<u8>>,
    /// Number of the next frame.
    pub(super) next_seq: u64,
    /// Where the next frame goes.
    pub(super) end: u64,
    /// Length of the file.
    pub(super) size: u64,
    /// Set when a torn frame follows.
    pub(super) torn: Option<TornTail>,
    /// Number of its data key; 0: it is not sealed.
    pub(super) key: u32,
    /// What its frames are sealed with.
    pub(super) cipher: Option<Cipher>,
}

/// What a segment's first bytes say.
struct Header {
    key: u32,
    number: u64,
    first_seq: u64,
    salt: [u8; SALT_BYTES],
}

/// Number of the data key of a segment; 0: it is not sealed.
pub(super) fn key_of(path: &Path, number: u64) -> Result<u32, LogError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    File::open(path)
        .and_then(|f| f.take(HEADER_BYTES as u64).read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    Ok(read_header(path, &bytes, number)?.key)
}

/// Reads a segment. `expect_seq` is the number its first frame must have, `last` says whether a torn tail may be.
pub(super) fn scan(
    path: &Path,
    number: u64,
    expect_seq: Option<u64>,
    last: bool,
    keys: &KeyRing,
) -> Result<Scanned, LogError> {
    let bytes = read_from_disk(path, last).map_err(io_error("read", path))?;
    let corrupt = |offset: usize, why: String| LogError::Corrupt {
        path: path.to_path_buf(),
        offset: offset as u64,
        why,
    };
    let header = read_header(path, &bytes, number)?;
    let cipher = header.cipher(path, keys)?;
    let mut seq = header.first_seq;
    if let Some(expected) = expect_seq.filter(|e| *e != seq) {
        return Err(corrupt(
            0,
            format!("its frames begin at {seq}, the ones before it end at {expected}"),
        ));
    }
    let mut bodies = Vec::new();
    let mut at = HEADER_BYTES;
    let mut torn = None;
    loop {
        if let Some(body) = frame_at(&bytes, at, |found| found == seq) {
            let opened = match &cipher {
                None => Some(body.to_vec()),
                Some(cipher) => cipher.open(&place(number, seq, body.len()), body),
            };
            let on_disk = body.len();
            bodies.push(opened.ok_or_else(|| {
                corrupt(
                    at,
                    "its checksum is right, but it is not what was sealed for this place".into(),
                )
            })?);
            at += frame_len(on_disk);
            seq += 1;
            continue;
        }
        let tail = bytes.get(at..).unwrap_or_default();
        if tail.iter().all(|b| *b == 0) {
            break;
        }
        if let Some(later) = (at + ALIGN..bytes.len())
            .step_by(ALIGN)
            .find(|o| frame_at(&bytes, *o, |found| found > seq).is_some())
        {
            return Err(corrupt(
                at,
                format!("a frame is bad although a good one follows at offset {later}"),
            ));
        }
        if !last {
            return Err(corrupt(
                at,
                "a frame is bad although a later segment exists".into(),
            ));
        }
        torn = Some(TornTail {
            path: path.to_path_buf(),
            offset: at as u64,
        });
        break;
    }
    if bodies.is_empty() {
        // The checkpoint was durable before the file got its name.
        return Err(corrupt(at, "the checkpoint at its beginning is missing".into()));
    }
    Ok(Scanned {
        bodies,
        next_seq: seq,
        end: at as u64,
        size: bytes.len() as u64,
        torn,
        key: header.key,
        cipher,
    })
}

/// Reads a file. The last segment is read as the disk has it: after a failed fdatasync the page cache may hold, as if
/// it were written, what the disk never got, and a later fdatasync would not write it either.
fn read_from_disk(path: &Path, last: bool) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if last {
        // What a killed process left is written out; only then it can be dropped from the cache.
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Header {
    /// None: not sealed.
    fn cipher(&self, path: &Path, keys: &KeyRing) -> Result<Option<Cipher>, LogError> {
        if self.key == 0 {
            return Ok(None);
        }
        let cipher = keys.cipher(self.key, &self.salt, PURPOSE);
        cipher.map(Some).ok_or_else(|| LogError::UnknownKey {
            path: path.to_path_buf(),
            key: self.key,
        })
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0u8; HEADER_BYTES];
        header[..8].copy_from_slice(&SEGMENT_MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&self.key.to_le_bytes());
        header[16..24].copy_from_slice(&self.number.to_le_bytes());
        header[24..32].copy_from_slice(&self.first_seq.to_le_bytes());
        header[32..32 + SALT_BYTES].copy_from_slice(&self.salt);
        let crc = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// What a frame is sealed for.
fn place(number: u64, seq: u64, len: usize) -> [u8; 24] {
    let mut place = [0; 24];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8..16].copy_from_slice(&seq.to_le_bytes());
    place[16..].copy_from_slice(&(len as u64).to_le_bytes());
    place
}

fn read_header(path: &Path, bytes: &[u8], number: u64) -> Result<Header, LogError> {
    let corrupt = |why: &str| LogError::Corrupt {
        path: path.to_path_buf(),
        offset: 0,
        why: why.into(),
    };
    let header = bytes
        .get(..HEADER_BYTES)
        .ok_or_else(|| corrupt("the header is cut off"))?;
    if header[..8] != SEGMENT_MAGIC {
        return Err(corrupt("it does not begin like a segment"));
    }
    if u32_at(header, 60) != Some(crc32fast::hash(&header[..60])) {
        return Err(corrupt("the checksum of the header is wrong"));
    }
    let format = u32_at(header, 8).unwrap_or(0);
    if format != FORMAT {
        return Err(LogError::Format {
            path: path.to_path_buf(),
            found: format,
            known: FORMAT,
        });
    }
    if u64_at(header, 16) != Some(number) {
        return Err(corrupt("its number is not the one in its name"));
    }
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&header[32..32 + SALT_BYTES]);
    Ok(Header {
        key: u32_at(header, 12).unwrap_or(0),
        number,
        first_seq: u64_at(header, 24).unwrap_or(0),
        salt,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn frame_len(body: usize) -> usize {
    (FRAME_HEADER + body).next_multiple_of(ALIGN)
}

fn checksum(seq: u64, len: u32, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&seq.to_le_bytes());
    crc.update(&len.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

/// The body of the whole frame at `at`, when there is one with a wanted number.
fn frame_at(bytes: &[u8], at: usize, wanted: impl Fn(u64) -> bool) -> Option<&[u8]> {
    if u32_at(bytes, at)? != FRAME_MAGIC {
        return None;
    }
    let len = u32_at(bytes, at + 4)?;
    let seq = u64_at(bytes, at + 8)?;
    if len as usize > FRAME_MAX || !wanted(seq) {
        return None;
    }
    let end = at + FRAME_HEADER + len as usize;
    let body = bytes.get(at + FRAME_HEADER..end)?;
    let unused = bytes.get(end..at + frame_len(len as usize))?;
    let whole = u32_at(bytes, at + 20)? == 0 && unused.iter().all(|b| *b == 0);
    (whole && u32_at(bytes, at + 16)? == checksum(seq, len, body)).then_some(body)
}

/// A frame with its body sealed.
fn seal_frame(cipher: &Cipher, number: u64, seq: u64, body: &[u8]) -> Result<Vec<u8>, io::Error> {
    let sealed = body.len() + SEAL_BYTES;
    let len = u32::try_from(sealed)
        .ok()
        .filter(|_| sealed <= FRAME_MAX)
        .ok_or_else(|| io::Error::other("a frame of the raft log would be longer than 64 MiB"))?;
    let nonce: [u8; NONCE_BYTES] = random()?;
    let mut frame = Vec::with_capacity(frame_len(sealed));
    frame.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&seq.to_le_bytes());
    // 16..20: the checksum; 20..24: not used.
    frame.extend_from_slice(&[0; 8]);
    frame.extend_from_slice(&nonce);
    frame.extend_from_slice(body);
    let plain = &mut frame[FRAME_HEADER + NONCE_BYTES..];
    let tag = cipher.seal_in_place(nonce, &place(number, seq, sealed), plain)?;
    frame.extend_from_slice(&tag);
    let crc = checksum(seq, len, &frame[FRAME_HEADER..]);
    frame[16..20].copy_from_slice(&crc.to_le_bytes());
    frame.resize(frame_len(sealed), 0);
    Ok(frame)
}

/// Name of segment `number`.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// Removes segments that were being made when the process ended.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), LogError> {
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        if entry.file_name().to_string_lossy().ends_with(".seg.tmp") {
            remove_leftover(&entry.path())?;
        }
    }
    Ok(())
}

/// Numbers of the segments of a folder, lowest first.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_suffix(".seg") {
            numbers.push(u64::from_str_radix(number, 16).map_err(|_| LogError::Corrupt {
                path: entry.path(),
                offset: 0,
                why: "its name is not one of ours".into(),
            })?);
        }
    }
    numbers.sort_unstable();
    if let Some(gap) = numbers.windows(2).find(|w| w[0] + 1 != w[1]) {
        return Err(LogError::Corrupt {
            path: segment_path(dir, gap[0] + 1),
            offset: 0,
            why: "this segment is missing between two others".into(),
        });
    }
    Ok(numbers)
}

/// The segment that is being written.
pub(super) struct Tail {
    file: File,
    path: PathBuf,
    /// Its number.
    pub(super) number: u64,
    /// Number of its data key.
    pub(super) key: u32,
    cipher: Cipher,
    next_seq: u64,
    at: u64,
    size: u64,
}

impl Tail {
    /// Makes segment `number`: durable, with a checkpoint and room for a body of `room` bytes, before it has its name.
    ///
    /// # Errors
    /// [`LogError::Full`]: nothing was made, and it may be tried again.
    pub(super) fn create(
        dir: &Path,
        keys: &KeyRing,
        number: u64,
        first_seq: u64,
        checkpoint: &[u8],
        room: usize,
    ) -> Result<Self, LogError> {
        let path = segment_path(dir, number);
        let temporary = dir.join(format!("{number:016x}.seg.tmp"));
        let key = keys.newest();
        let salt = random().map_err(io_error("begin a segment", &path))?;
        let header = Header {
            key,
            number,
            first_seq,
            salt,
        };
        let cipher = keys
            .cipher(key, &salt, PURPOSE)
            .ok_or_else(|| LogError::UnknownKey {
                path: path.clone(),
                key,
            })?;
        let frame =
            seal_frame(&cipher, number, first_seq, checkpoint).map_err(io_error("begin a segment", &path))?;
        let at = (HEADER_BYTES + frame.len()) as u64;
        let size = SEGMENT_BYTES.max(at + frame_len(room + SEAL_BYTES) as u64);
        let fill = || -> io::Result<File> {
            let file = create_private(&temporary)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)?;
            file.write_all_at(&header.encode(), 0)?;
            file.write_all_at(&frame, HEADER_BYTES as u64)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            Ok(file)
        };
        let file = fill().map_err(|e| {
            // What a full disk let through would only keep it full.
            let _ = std::fs::remove_file(&temporary);
            io_error("make a segment", &path)(e)
        })?;
        sync_dir(dir)?;
        Ok(Self {
            file,
            path,
            number,
            key,
            cipher,
            next_seq: first_seq + 1,
            at,
            size,
        })
    }

    /// Goes on writing a segment that was read, and made whole with [`mend`].
    pub(super) fn resume(file: File, path: &Path, number: u64, scanned: &Scanned, cipher: Cipher) -> Self {
        Self {
            file,
            path: path.to_path_buf(),
            number,
            key: scanned.key,
            cipher,
            next_seq: scanned.next_seq,
            at: scanned.end,
            size: SEGMENT_BYTES.max(scanned.size),
        }
    }

    /// Whether a body of this length still fits.
    pub(super) fn fits(&self, body: usize) -> bool {
        self.at + frame_len(body + SEAL_BYTES) as u64 <= self.size
    }

    /// Number of the next frame.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Writes a frame, which is durable only once [`Tail::sync`] has returned; exactly that must follow. After an
    /// error nothing more may be written: what the disk has is unknown until it is read again.
    pub(super) fn write(&mut self, body: &[u8]) -> Result<(), LogError> {
        let frame = seal_frame(&self.cipher, self.number, self.next_seq, body)
            .map_err(io_error("append", &self.path))?;
        self.file
            .write_all_at(&frame, self.at)
            .map_err(io_error("append", &self.path))?;
        self.at += frame.len() as u64;
        self.next_seq += 1;
        Ok(())
    }

    /// Makes the frame durable.
    pub(super) fn sync(&self) -> Result<(), LogError> {
        sync_data(&self.file).map_err(io_error("fdatasync", &self.path))
    }
}

/// Makes the last segment whole: what is torn is overwritten with zeros, so that nothing of it is ever read as a
/// frame. What was read is durable already ([`read_from_disk`]).
pub(super) fn mend(path: &Path, scanned: &Scanned) -> Result<File, LogError> {
    const ZEROS: &[u8] = &[0; 64 * 1024];
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io_error("open", path))?;
    let mend = || -> io::Result<()> {
        let mut changed = scanned.torn.is_some();
        if changed {
            let mut at = scanned.end;
            // In place: on a full disk, room that is given back may not be had again.
            while at < scanned.size {
                let rest = usize::try_from(scanned.size - at).unwrap_or(usize::MAX);
                let part = &ZEROS[..rest.min(ZEROS.len())];
                file.write_all_at(part, at)?;
                at += part.len() as u64;
            }
        }
        if scanned.size < SEGMENT_BYTES {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES)?;
            changed = true;
        }
        if changed { file.sync_all() } else { Ok(()) }
    };
    mend().map_err(io_error("cut off the torn end", path))?;
    Ok(file)
}

#[cfg(not(test))]
fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

#[cfg(test)]
pub(super) use fault::sync_data;

/// A disk that fails, for tests in a process of their own.
#[cfg(test)]
pub(super) mod fault {
    use super::{File, io};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Syncs of frames until one fails, once; 0: none does.
    pub(in crate::raft) static SYNCS_UNTIL_EIO: AtomicU64 = AtomicU64::new(0);

    pub(in crate::raft) fn sync_data(file: &File) -> io::Result<()> {
        let less = |left: u64| left.checked_sub(1);
        if SYNCS_UNTIL_EIO.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) == Ok(1) {
            return Err(rustix::io::Errno::IO.into());
        }
        file.sync_data()
    }
}
