//! Logs of containers: one JSON record a line, as Docker's json-file driver writes them, bounded by rotation.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::config::LogConfig;

/// Longest line of one record; a longer one is split (as Docker does).
const LINE_MAX: usize = 16 << 10;
/// Records under way to a reader that is slower than the log.
const QUEUE: usize = 256;
/// How often a followed log is looked at. Only while somebody follows it.
const FOLLOW: Duration = Duration::from_millis(50);

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read from the container, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Where it came from.
    pub stream: LogStream,
    /// Its text, with its newline where it had one.
    pub text: Vec<u8>,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// The last lines only.
    pub tail: Option<usize>,
    /// Lines from this time on, in nanoseconds since 1970; 0: all.
    pub since_ns: u64,
    /// Goes on until the container ended.
    pub follow: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    log: String,
    stream: LogStream,
    time_ns: u64,
}

fn file_of(dir: &Path, age: u32) -> PathBuf {
    if age == 0 {
        dir.join("log.json")
    } else {
        dir.join(format!("log.json.{age}"))
    }
}

/// Writes a container's output.
pub(crate) struct LogWriter {
    dir: PathBuf,
    config: LogConfig,
    file: Option<File>,
    size: u64,
    partial: [Vec<u8>; 2],
}

impl LogWriter {
    pub(crate) fn open(dir: &Path, config: LogConfig) -> Self {
        let file = if config.discard {
            None
        } else {
            append_to(&file_of(dir, 0))
        };
        let size = file
            .as_ref()
            .and_then(|f| f.metadata().ok())
            .map_or(0, |m| m.len());
        Self {
            dir: dir.to_owned(),
            config,
            file,
            size,
            partial: [Vec::new(), Vec::new()],
        }
    }

    /// Takes output as it comes; whole lines are written at once.
    pub(crate) fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        if self.config.discard {
            return;
        }
        let index = usize::from(stream == LogStream::Stderr);
        let mut out = Vec::with_capacity(bytes.len().min(LINE_MAX) + 128);
        let time_ns = now_ns();
        let mut pending = std::mem::take(&mut self.partial[index]);
        for byte in bytes {
            pending.push(*byte);
            if *byte == b'\n' || pending.len() >= LINE_MAX {
                record(&mut out, stream, &pending, time_ns);
                pending.clear();
                // Written in pieces well below the size of a file, so that rotation keeps its bound.
                if out.len() as u64 >= self.config.max_size / 4 {
                    self.put(&out);
                    out.clear();
                }
            }
        }
        self.partial[index] = pending;
        self.put(&out);
    }

    /// Writes what had no newline at its end.
    pub(crate) fn finish(&mut self) {
        let mut out = Vec::new();
        for (index, stream) in [LogStream::Stdout, LogStream::Stderr].into_iter().enumerate() {
            let rest = std::mem::take(&mut self.partial[index]);
            if !rest.is_empty() {
                record(&mut out, stream, &rest, now_ns());
            }
        }
        self.put(&out);
    }

    fn put(&mut self, out: &[u8]) {
        if out.is_empty() {
            return;
        }
        if self.size > 0 && self.size + out.len() as u64 > self.config.max_size {
            self.rotate();
        }
        // A full disk loses lines of the log, not the container.
        if let Some(file) = &mut self.file
            && file.write_all(out).is_ok()
        {
            self.size += out.len() as u64;
        }
    }

    fn rotate(&mut self) {
        let files = self.config.max_files.max(1);
        for age in (0..files).rev() {
            let from = file_of(&self.dir, age);
            if age + 1 >= files {
                let _ = fs::remove_file(from);
            } else {
                let _ = fs::rename(from, file_of(&self.dir, age + 1));
            }
        }
        self.file = append_to(&file_of(&self.dir, 0));
        self.size = 0;
    }
}

fn append_to(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .ok()
}

fn record(out: &mut Vec<u8>, stream: LogStream, line: &[u8], time_ns: u64) {
    let record = Record {
        log: String::from_utf8_lossy(line).into_owned(),
        stream,
        time_ns,
    };
    if serde_json::to_writer(&mut *out, &record).is_ok() {
        out.push(b'\n');
    }
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads a log in a thread of its own; the channel closes at its end.
pub(crate) fn read(
    dir: PathBuf,
    query: LogQuery,
    ended: impl Fn() -> bool + Send + 'static,
) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut reader = Reader { dir, query, sender };
        reader.run(&ended);
    });
    receiver
}

struct Reader {
    dir: PathBuf,
    query: LogQuery,
    sender: mpsc::Sender<LogLine>,
}

impl Reader {
    fn run(&mut self, ended: &dyn Fn() -> bool) {
        let oldest = (0..).take_while(|age| file_of(&self.dir, *age).exists()).last();
        let mut kept: std::collections::VecDeque<LogLine> = std::collections::VecDeque::new();
        let mut place = None;
        for age in (0..=oldest.unwrap_or(0)).rev() {
            let Ok(file) = File::open(file_of(&self.dir, age)) else {
                continue;
            };
            let mut reader = BufReader::new(file);
            while let Some(line) = next(&mut reader) {
                if line.time_ns < self.query.since_ns {
                    continue;
                }
                match self.query.tail {
                    Some(most) => {
                        kept.push_back(line);
                        if kept.len() > most {
                            kept.pop_front();
                        }
                    }
                    None if self.sender.blocking_send(line).is_err() => return,
                    None => {}
                }
            }
            place = Some(reader);
        }
        for line in kept {
            if self.sender.blocking_send(line).is_err() {
                return;
            }
        }
        if self.query.follow {
            self.follow(place, ended);
        }
    }

    fn follow(&mut self, mut place: Option<BufReader<File>>, ended: &dyn Fn() -> bool) {
        loop {
            // Asked before reading, so that what came before the end is still read.
            let last = ended();
            while let Some(line) = place.as_mut().and_then(next) {
                if self.sender.blocking_send(line).is_err() {
                    return;
                }
            }
            let now = fs::metadata(file_of(&self.dir, 0)).map(|m| m.ino()).ok();
            let held = place
                .as_ref()
                .and_then(|p| p.get_ref().metadata().ok())
                .map(|m| m.ino());
            if now.is_some() && now != held {
                place = File::open(file_of(&self.dir, 0)).ok().map(BufReader::new);
                continue;
            }
            if last || self.sender.is_closed() {
                return;
            }
            std::thread::sleep(FOLLOW);
        }
    }
}

/// The next whole record; a half-written one is left for later.
fn next(reader: &mut BufReader<File>) -> Option<LogLine> {
    let mut text = Vec::new();
    let read = reader.read_until(b'\n', &mut text).ok()?;
    if read == 0 {
        return None;
    }
    if text.last() != Some(&b'\n') {
        let back = i64::try_from(read).ok()?;
        reader.seek(SeekFrom::Current(-back)).ok()?;
        return None;
    }
    // A line torn by a killed shim must not hide those after it.
    let Ok(record) = serde_json::from_slice::<Record>(&text) else {
        return next(reader);
    };
    Some(LogLine {
        time_ns: record.time_ns,
        stream: record.stream,
        text: record.log.into_bytes(),
    })
}
