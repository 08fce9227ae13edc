//! Chunks of a request as a reader for code that blocks.

use std::io::{self, Read};

use proto::host::Chunk;
use tokio::sync::mpsc;
use tonic::Streaming;

/// Chunks under way between the network and the reader.
const QUEUE: usize = 4;

/// Reads the data of a stream of chunks.
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

impl ChunkReader {
    /// Starts to receive; `first` was taken from the stream already.
    pub(crate) fn new(first: Vec<u8>, mut stream: Streaming<Chunk>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut this = Self::of(receiver);
        this.rest = io::Cursor::new(first);
        tokio::spawn(async move {
            loop {
                let item = match stream.message().await {
                    Ok(Some(chunk)) => Ok(chunk.data),
                    Ok(None) => return,
                    Err(status) => Err(io::Error::other(status.message().to_owned())),
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
