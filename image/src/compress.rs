//! Plain, gzip and zstd, told apart by their first bytes, and bounded: a bomb is refused early.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// From this many bytes on the ratio is looked at: below it a bomb harms nobody.
const RATIO_FROM: u64 = 256 << 20;
/// Most bytes out of one byte in. Gzip reaches 1,032 on zeros alone; real layers have 2 to 20.
const RATIO_MAX: u64 = 1_000;
/// Words by which the callers know a refusal for size from a broken file.
pub(crate) const LIMIT: &str = "E_LAYER_LIMIT";

/// What a stream was packed with, taken off.
pub(crate) fn open<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 6];
    let mut have = 0;
    while have < magic.len() {
        match source.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(source);
    let taken = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: whole,
        taken: taken.clone(),
    };
    let unsupported = |what: &str| {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("it is packed with {what}; gzip, zstd and plain can be read: pack it anew"),
        ))
    };
    let plain: Box<dyn Read + 'a> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(counted)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::new(counted)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => return unsupported("xz"),
        [b'B', b'Z', b'h', ..] => return unsupported("bzip2"),
        _ => return Ok(Box::new(counted)),
    };
    Ok(Box::new(Bounded {
        inner: plain,
        taken,
        given: 0,
    }))
}

/// A stream of zstd, taken off; anything else fails at the first read.
pub(crate) fn open_zstd<'a>(source: impl Read + 'a) -> io::Result<impl Read + 'a> {
    let taken = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: source,
        taken: taken.clone(),
    };
    Ok(Bounded {
        inner: zstd::stream::read::Decoder::new(counted)?,
        taken,
        given: 0,
    })
}

struct Counted<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

/// Ends a stream that becomes absurdly larger than what it is made of.
struct Bounded<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
    given: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.given += n as u64;
        if self.given > RATIO_FROM && self.given / RATIO_MAX > self.taken.get() {
            return Err(io::Error::other(format!(
                "{LIMIT}: {} packed bytes become more than {} bytes: this looks like a decompression bomb",
                self.taken.get(),
                self.given
            )));
        }
        Ok(n)
    }
}
