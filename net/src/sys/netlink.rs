//! Netlink messages (netlink(7)): built by hand, sent in one go, every answer read.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const REPLACE: u16 = 0x100;

/// Largest answer read at once.
const ANSWER_MAX: usize = 64 << 10;

/// One message under construction.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
}

impl Message {
    /// A message of a type with flags; its fixed header follows.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        self
    }

    /// Adds a text with its NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds a number in network order, as nf_tables has them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a number in host order, as rtnetlink has them.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds attributes within one.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        inner(self);
        let len = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&(kind | 0x8000).to_ne_bytes());
        self
    }

    /// Asks for no answer where all is well.
    fn unasked(&mut self) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & !ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    fn seal(&mut self, sequence: u32) {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// A netlink socket; it stays in the namespace its thread was in when it was made.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of a protocol (NETLINK_ROUTE 0, NETLINK_NETFILTER 12).
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: takes integers; the result is a new descriptor that nobody else owns.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // Large batches answer one message each.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&fd, 4 << 20);
        // All elements of a table go in one batch, which the usual bound of a socket is too small for.
        let bytes: libc::c_int = 4 << 20;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
        // SAFETY: the number lives through the call and its size is given; what comes of it is seen when a batch is sent.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                (&raw const bytes).cast(),
                size,
            );
        }
        Ok(Self { fd, sequence: 1 })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer lives through the call and its length is given.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; ANSWER_MAX];
        // SAFETY: the buffer lives through the call and its length is given.
        let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        buffer.truncate(usize::try_from(got).unwrap_or(0));
        Ok(buffer)
    }

    /// Sends one request and waits until it is carried out.
    pub(crate) fn request(&mut self, mut message: Message) -> io::Result<()> {
        self.sequence += 1;
        message.seal(self.sequence);
        self.send(&message.bytes)?;
        self.answer()
    }

    /// Sends messages as one nf_tables batch: all take effect, or none.
    pub(crate) fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        // The marks of a batch name the subsystem nf_tables (10) in `res_id`.
        let mark = |kind: u16| Message::new(kind, REQUEST, &[0, 0, 0, 10]);
        let last = messages.len();
        let mut all = Vec::new();
        let batch = [mark(16)].into_iter().chain(messages).chain([mark(17)]);
        for (at, mut message) in batch.enumerate() {
            self.sequence += 1;
            // A refusal is answered in any case.
            if at < last {
                message.unasked();
            }
            message.seal(self.sequence);
            all.extend_from_slice(&message.bytes);
        }
        self.send(&all)?;
        self.answer()
    }

    /// Reads the answer to a request, or the first refusal of a batch.
    fn answer(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.receive()?;
            let Some((_, _, body)) = messages(&buffer).into_iter().find(|(kind, ..)| *kind == 2) else {
                continue;
            };
            let code = i32::from_ne_bytes(body.get(..4).and_then(|b| b.try_into().ok()).unwrap_or([0; 4]));
            if code == 0 {
                return Ok(());
            }
            // The rest of a batch may have been refused as well.
            self.flush();
            return Err(io::Error::from_raw_os_error(-code));
        }
    }

    /// Throws away answers nobody waits for any more.
    fn flush(&self) {
        let mut buffer = [0u8; 4096];
        // SAFETY: the buffer lives through the call and its length is given; the flag keeps it from waiting.
        while unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        } > 0
        {}
    }

    /// Sends a dump request; answers the bodies of what comes.
    pub(crate) fn dump(&mut self, mut message: Message) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        message.seal(self.sequence);
        self.send(&message.bytes)?;
        let mut found = Vec::new();
        loop {
            let buffer = self.receive()?;
            for (kind, _, body) in messages(&buffer) {
                match kind {
                    3 => return Ok(found),
                    2 => {
                        let code = i32::from_ne_bytes(
                            body.get(..4).and_then(|b| b.try_into().ok()).unwrap_or([0; 4]),
                        );
                        if code == 0 {
                            return Ok(found);
                        }
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => found.push(body.to_vec()),
                }
            }
        }
    }
}

/// Type, sequence and body of each message in a buffer.
fn messages(mut buffer: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut found = Vec::new();
    while buffer.len() >= 16 {
        let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap_or([0; 4]));
        let len = word(0) as usize;
        if len < 16 || len > buffer.len() {
            break;
        }
        let kind = u16::from_ne_bytes(buffer[4..6].try_into().unwrap_or([0; 2]));
        found.push((kind, word(8), &buffer[16..len]));
        buffer = &buffer[len.next_multiple_of(4).min(buffer.len())..];
    }
    found
}

/// Attributes of a body after its fixed header.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        if len < 4 || len > bytes.len() {
            break;
        }
        found.push((kind, &bytes[4..len]));
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

/// The first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let found = attributes(bytes).into_iter().find(|(k, _)| *k == kind)?;
    Some(found.1.to_vec())
}
