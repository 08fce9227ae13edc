//! Chunks of a request as a reader, and of an answer as a writer, for code that blocks.

use std::io::{self, Read, Write};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Chunks under way between the network and the reader.
const QUEUE: usize = 4;
/// A client that sends or takes nothing for this long is given up: it holds a thread and its place in a bounded number.
const STALL_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of one chunk of an answer.
const PIECE: usize = 128 << 10;

/// Reads the data of a stream of chunks.
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

impl ChunkReader {
    /// Starts to receive; `first` was taken from the stream already.
    pub(crate) fn new<M: Send + 'static>(
        first: Vec<u8>,
        mut stream: Streaming<M>,
        data: fn(M) -> Vec<u8>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut this = Self::of(receiver);
        this.rest = io::Cursor::new(first);
        tokio::spawn(async move {
            loop {
                let item = match tokio::time::timeout(STALL_LIMIT, stream.message()).await {
                    Ok(Ok(Some(chunk))) => Ok(data(chunk)),
                    Ok(Ok(None)) => return,
                    Ok(Err(status)) => Err(io::Error::other(status.message().to_owned())),
                    Err(_) => Err(io::Error::other(format!("nothing was sent for {STALL_LIMIT:?}"))),
                };
                let last = item.is_err();
                if sender.send(item).await.is_err() || last {
                    return;
                }
            }
        });
        this
    }

    /// Reads what comes through a channel.
    pub(crate) fn of(receiver: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self {
            receiver,
            rest: io::Cursor::default(),
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.rest.read(buffer)?;
            if got > 0 || buffer.is_empty() {
                return Ok(got);
            }
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = io::Cursor::new(chunk?),
                None => return Ok(0),
            }
        }
    }
}

/// Sends what is written to it as chunks of an answer; to be used where blocking is allowed.
pub(crate) struct ChunkWriter<M> {
    sender: mpsc::Sender<Result<M, Status>>,
    message: fn(Vec<u8>) -> M,
    rest: Vec<u8>,
    runtime: Handle,
}

impl<M> ChunkWriter<M> {
    /// A writer within a runtime.
    pub(crate) fn new(sender: mpsc::Sender<Result<M, Status>>, message: fn(Vec<u8>) -> M) -> Self {
        Self {
            sender,
            message,
            rest: Vec::with_capacity(PIECE),
            runtime: Handle::current(),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.rest, Vec::with_capacity(PIECE));
        let sent = self.sender.send(Ok((self.message)(piece)));
        match self
            .runtime
            .block_on(async { tokio::time::timeout(STALL_LIMIT, sent).await })
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Err(_) => Err(io::Error::other(format!(
                "the client took nothing for {STALL_LIMIT:?}"
            ))),
        }
    }
}

impl<M> Write for ChunkWriter<M> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.rest.len());
        self.rest.extend_from_slice(&bytes[..taken]);
        if self.rest.len() >= PIECE {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
