//! The packed form of a layer, written while the layer is unpacked, so that it can be sent to other hosts.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Level of zstd: the quickest, since a layer is packed once for every load and sent over a fast network.
const LEVEL: i32 = 1;
/// Bytes handed to the packing thread at once: large enough that handing over costs nothing.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the packing thread, 2 MiB; then reading waits.
const PIECES_QUEUED: usize = 8;

/// Where a packed layer is written: a file that is not in its place yet.
pub(crate) struct BlobFile {
    file: fs::File,
}

impl BlobFile {
    /// Makes the file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = fs::File::create_new(path)?;
        Ok(Self { file })
    }

    /// Runs `work` on a reader that packs what is read through it, in a thread of its own: packing takes longer than
    /// unpacking, and one after the other a load would take more than twice as long.
    ///
    /// The outer error is the file's; the inner one is that of `work`.
    pub(crate) fn packing<T, E>(
        self,
        source: impl Read,
        work: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> io::Result<Result<T, E>> {
        let (sender, pieces) = sync_channel(PIECES_QUEUED);
        thread::scope(|scope| {
            let packer = thread::Builder::new()
                .name("pack-layer".into())
                .spawn_scoped(scope, || pack(&self.file, pieces))?;
            let mut tee = Tee {
                inner: source,
                open: Vec::with_capacity(PIECE),
                sender,
            };
            let result = work(&mut tee);
            let complete = result.is_ok() && tee.flush().is_ok();
            drop(tee);
            let packed = packer
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that packs the layer panicked")));
            match packed {
                Err(error) => Err(error),
                // What was packed goes with its folder.
                Ok(()) if !complete => Ok(result),
                Ok(()) => self.file.sync_all().map(|()| result),
            }
        })
    }

    /// Runs `work` on a reader of packed bytes that are kept as they are.
    ///
    /// The outer error is the file's; the inner one is that of `work`.
    pub(crate) fn copying<T, E>(
        self,
        source: impl Read,
        work: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> io::Result<Result<T, E>> {
        let mut copy = Copy {
            inner: source,
            file: &self.file,
            failed: None,
        };
        let result = work(&mut copy);
        match copy.failed {
            Some(error) => Err(error),
            None if result.is_err() => Ok(result),
            None => self.file.sync_all().map(|()| result),
        }
    }
}

/// Packs what comes until its sender is gone.
fn pack(file: &fs::File, pieces: Receiver<Vec<u8>>) -> io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(file, LEVEL)?;
    for piece in pieces {
        encoder.write_all(&piece)?;
    }
    encoder.finish().map(drop)
}

/// Hands on what is read through it.
struct Tee<R> {
    inner: R,
    open: Vec<u8>,
    sender: SyncSender<Vec<u8>>,
}

impl<R> Tee<R> {
    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.open, Vec::with_capacity(PIECE));
        // It ends early only when it cannot write; why it says itself.
        self.sender
            .send(full)
            .map_err(|_| io::Error::other("the packed layer cannot be written"))
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.open.extend_from_slice(&buffer[..n]);
        if self.open.len() >= PIECE {
            self.flush()?;
        }
        Ok(n)
    }
}

/// Writes what is read through it.
struct Copy<'a, R> {
    inner: R,
    file: &'a fs::File,
    /// Why it could not be written; kept here because a reader's error loses its cause on the way through a tar.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Copy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Err(error) = self.file.write_all(&buffer[..n]) {
            self.failed = Some(error);
            return Err(io::Error::other("the packed layer cannot be written"));
        }
        Ok(n)
    }
}
