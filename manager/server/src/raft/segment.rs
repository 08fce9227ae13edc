//! Segment files of the raft log: framing and checksums, and which damage is cut off and which is refused.
//!
//! A segment is a preallocated file: a header, then frames. One frame is one write followed by one fdatasync, and a
//! frame is only begun when the one before it is durable. So a bad frame with a good one behind it was damaged after
//! it had been acknowledged, and is refused; a bad frame with nothing behind it may be a write that a crash cut off,
//! was never acknowledged, and is removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Size of a segment: large enough that its creation is rare, small enough that purged space comes back soon.
pub(super) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Exit status of a manager whose disk failed (EX_IOERR).
pub(super) const EXIT_IO_ERROR: i32 = 74;
/// Longest body of a frame. A longer one is not ours; the bound keeps a damaged length from being believed.
pub(super) const FRAME_MAX: usize = 64 * 1024 * 1024;

const SEGMENT_MAGIC: [u8; 8] = *b"RSWSEG\r\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const FRAME_MAGIC: u32 = 0x5257_4652;
const FRAME_HEADER: usize = 24;
const ALIGN: usize = 8;

/// Why the raft log of this node cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A call to the system failed.
    #[error("{what} of the raft log {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Acknowledged bytes changed on disk: this manager must not vote any more.
    #[error(
        "E_LOG_CORRUPT: raft log {path} is damaged at offset {offset}: {why}. The manager does not start with it: \
         restore the folder from a backup, or remove it and join the cluster again as a new node"
    )]
    Corrupt {
        /// In which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// Written by a newer version.
    #[error(
        "raft log {path} has format {found}, this version reads {FORMAT}: start the version that wrote it"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Encrypted, which this version cannot read.
    #[error("raft log {path} is encrypted with key {key}, which this version cannot read")]
    Encrypted {
        /// Which file.
        path: PathBuf,
        /// Number of the key.
        key: u32,
    },
    /// Another process has it open.
    #[error(
        "raft log {path} is in use by another process: is an rswarm daemon running with this data folder?"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

pub(super) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LogError + use<'a> {
    move |source| LogError::Io {
        what,
        path: path.to_path_buf(),
        source,
    }
}

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
}

/// Reads a segment. `expect_seq` is the number its first frame must have, `last` says whether a torn tail may be.
pub(super) fn scan(
    path: &Path,
    number: u64,
    expect_seq: Option<u64>,
    last: bool,
) -> Result<Scanned, LogError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    let corrupt = |offset: usize, why: String| LogError::Corrupt {
        path: path.to_path_buf(),
        offset: offset as u64,
        why,
    };
    let mut seq = read_header(path, &bytes, number)?;
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
            bodies.push(body.to_vec());
            at += frame_len(body.len());
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
    })
}

fn read_header(path: &Path, bytes: &[u8], number: u64) -> Result<u64, LogError> {
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
        });
    }
    let key = u32_at(header, 12).unwrap_or(0);
    if key != 0 {
        return Err(LogError::Encrypted {
            path: path.to_path_buf(),
            key,
        });
    }
    if u64_at(header, 16) != Some(number) {
        return Err(corrupt("its number is not the one in its name"));
    }
    u64_at(header, 24).ok_or_else(|| corrupt("the header is cut off"))
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
    let body = bytes.get(at + FRAME_HEADER..at + FRAME_HEADER + len as usize)?;
    (u32_at(bytes, at + 16)? == checksum(seq, len, body)).then_some(body)
}

fn encode_frame(seq: u64, body: &[u8]) -> Result<Vec<u8>, io::Error> {
    let len = u32::try_from(body.len())
        .ok()
        .filter(|l| *l as usize <= FRAME_MAX)
        .ok_or_else(|| io::Error::other("a frame of the raft log would be longer than 64 MiB"))?;
    let mut frame = Vec::with_capacity(frame_len(body.len()));
    frame.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&seq.to_le_bytes());
    frame.extend_from_slice(&checksum(seq, len, body).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(body);
    frame.resize(frame_len(body.len()), 0);
    Ok(frame)
}

/// Name of segment `number`.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// Numbers of the segments of a folder, lowest first; files of unfinished creations are removed.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".seg.tmp") {
            std::fs::remove_file(entry.path()).map_err(io_error("remove an unfinished segment", dir))?;
        } else if let Some(number) = name.strip_suffix(".seg") {
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

/// Makes names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_error("sync the folder", dir))
}

/// The segment that is being written.
pub(super) struct Tail {
    file: File,
    path: PathBuf,
    /// Its number.
    pub(super) number: u64,
    next_seq: u64,
    at: u64,
    size: u64,
}

impl Tail {
    /// Makes segment `number`: durable, with a checkpoint and room for a body of `room` bytes, before it has its name.
    pub(super) fn create(
        dir: &Path,
        number: u64,
        first_seq: u64,
        checkpoint: &[u8],
        room: usize,
    ) -> Result<Self, LogError> {
        let path = segment_path(dir, number);
        let temporary = dir.join(format!("{number:016x}.seg.tmp"));
        let frame = encode_frame(first_seq, checkpoint).map_err(io_error("begin a segment", &path))?;
        let at = (HEADER_BYTES + frame.len()) as u64;
        let size = SEGMENT_BYTES.max(at + frame_len(room) as u64);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io_error("create a segment", &temporary))?;
        let fill = || -> io::Result<()> {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)?;
            file.write_all_at(&encode_header(number, first_seq), 0)?;
            file.write_all_at(&frame, HEADER_BYTES as u64)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        fill().map_err(io_error("make a segment (is the disk full?)", &path))?;
        sync_dir(dir)?;
        Ok(Self {
            file,
            path,
            number,
            next_seq: first_seq + 1,
            at,
            size,
        })
    }

    /// Goes on writing a segment that was read.
    ///
    /// A torn tail is overwritten with zeros first, so that nothing of it is ever read as a frame.
    pub(super) fn resume(dir: &Path, number: u64, scanned: &Scanned) -> Result<Self, LogError> {
        let path = segment_path(dir, number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let size = SEGMENT_BYTES.max(scanned.size);
        if scanned.torn.is_some() || scanned.size < size {
            let mend = || -> io::Result<()> {
                file.set_len(scanned.end)?;
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)?;
                file.sync_all()
            };
            mend().map_err(io_error("cut off the torn end", &path))?;
        }
        Ok(Self {
            file,
            path,
            number,
            next_seq: scanned.next_seq,
            at: scanned.end,
            size,
        })
    }

    /// Whether a body of this length still fits.
    pub(super) fn fits(&self, body: usize) -> bool {
        self.at + frame_len(body) as u64 <= self.size
    }

    /// Number of the next frame.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Appends a frame and returns when it is durable. After an error nothing more may be written: what the disk has
    /// is unknown until it is read again.
    pub(super) fn append(&mut self, body: &[u8]) -> Result<(), LogError> {
        let frame = encode_frame(self.next_seq, body).map_err(io_error("append", &self.path))?;
        self.file
            .write_all_at(&frame, self.at)
            .map_err(io_error("append", &self.path))?;
        self.file.sync_data().map_err(io_error("fdatasync", &self.path))?;
        self.at += frame.len() as u64;
        self.next_seq += 1;
        Ok(())
    }
}

fn encode_header(number: u64, first_seq: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0u8; HEADER_BYTES];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    // 12..16: number of the key its frames are sealed with; 0: none.
    header[16..24].copy_from_slice(&number.to_le_bytes());
    header[24..32].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Writes a whole small file so that after a crash it is either the old one or the new one.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(io_error("write", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}
