//! A tar stream read entry by entry: ustar, GNU long names, PAX. It is not trusted, so what two readers could
//! understand differently is refused (TARmageddon, CVE-2025-62518), and no record is kept in memory without a bound.

use std::collections::BTreeMap;
use std::io::{self, Read};

/// One block.
const BLOCK: usize = 512;
/// Longest name or link target: PATH_MAX of Linux.
pub(crate) const NAME_MAX: u64 = 4096;
/// Largest PAX record set of one entry; file capabilities and a few user attributes take less than 1 KiB.
const PAX_MAX: u64 = 1 << 20;
/// Most header records (long name, long link, PAX) before one entry.
const PREFIXES_MAX: usize = 8;

/// Why a tar cannot be read.
#[derive(Debug)]
pub(crate) enum TarError {
    /// The stream broke.
    Io(io::Error),
    /// Not a tar, or one that can be understood in two ways.
    Format(String),
    /// Larger than we take.
    Limit(String),
}

impl From<io::Error> for TarError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Format("the archive ends in the middle of an entry".into()),
            _ => Self::Io(e),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Folder,
    Fifo,
}

/// One entry without its content.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    /// Extended attributes by name.
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// The name for people.
    pub(crate) fn shown(&self) -> String {
        shown(&self.name)
    }
}

/// A name for people: short, and without control characters.
pub(crate) fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(200).collect();
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The reader; [`Self::next`], then read the content from it.
pub(crate) struct Tar<R> {
    source: R,
    /// Bytes of the current entry that were not read yet.
    left: u64,
    /// Zeros after them.
    padding: u64,
}

#[derive(Default)]
struct Prefix {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> Tar<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; none at the end. What was left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut prefix = Prefix::default();
        for _ in 0..=PREFIXES_MAX {
            self.skip()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let kind = block[156];
            let size = number(&block[124..136], "size")?;
            match kind {
                b'L' => prefix.name = Some(self.text(size, NAME_MAX, "name")?),
                b'K' => prefix.link = Some(self.text(size, NAME_MAX, "link target")?),
                b'x' => {
                    let text = self.record(size, PAX_MAX, "PAX header")?;
                    pax(&text, &mut prefix.pax)?;
                }
                b'g' => {
                    // Global records are comments (git writes its commit); none may change the entries after it.
                    let mut global = BTreeMap::new();
                    pax(&self.record(size, PAX_MAX, "PAX header")?, &mut global)?;
                    if let Some(key) = global.keys().find(|k| *k != "comment") {
                        return Err(TarError::Format(format!(
                            "a global PAX header sets {key} for all entries after it"
                        )));
                    }
                }
                _ => return self.entry(&block, kind, size, prefix).map(Some),
            }
        }
        Err(TarError::Format("too many header records before one entry".into()))
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, prefix: Prefix) -> Result<Entry, TarError> {
        let ustar = &block[257..262] == b"ustar";
        let mut name = cut(&block[..100]).to_vec();
        // GNU's format ("ustar  ") keeps other things in the field of the prefix.
        if ustar && block[262] == 0 && block[345] != 0 {
            name = [cut(&block[345..500]), b"/", &name].concat();
        }
        let mut pax = prefix.pax;
        let number_of = |field: &[u8], pax: Option<Vec<u8>>, what: &str| match pax {
            Some(text) => pax_number(&text, what),
            None => number(field, what),
        };
        if let Some(key) = pax.keys().find(|k| k.starts_with("GNU.sparse.")) {
            return Err(TarError::Limit(format!(
                "a sparse file ({key}): make the archive without --sparse"
            )));
        }
        let pax_size = pax.remove("size").map(|t| pax_number(&t, "size")).transpose()?;
        let size = match pax_size {
            // A size too large for the field is written as 0 or as the largest it takes.
            Some(real) if size == real || size == 0 || (real > size && size == 0o77_777_777_777) => real,
            Some(real) => {
                return Err(TarError::Format(format!(
                    "the size of {} is {size} in one header and {real} in another",
                    shown(&name)
                )));
            }
            None => size,
        };
        let uid = number_of(&block[108..116], pax.remove("uid"), "uid")?;
        let gid = number_of(&block[116..124], pax.remove("gid"), "gid")?;
        let mtime = match pax.remove("mtime") {
            Some(text) => pax_seconds(&text)?,
            None => i64::try_from(number(&block[136..148], "mtime").unwrap_or(0)).unwrap_or(0),
        };
        let mode = u32::try_from(number(&block[100..108], "mode")? & 0o7777).unwrap_or(0);
        if let Some(long) = pax.remove("path").or(prefix.name) {
            name = long;
        }
        let link = pax.remove("linkpath").or(prefix.link);
        let link = link.unwrap_or_else(|| cut(&block[157..257]).to_vec());
        for text in [&name, &link] {
            if text.len() as u64 > NAME_MAX {
                return Err(TarError::Limit(format!("a name longer than {NAME_MAX} bytes: {}", shown(text))));
            }
            if text.contains(&0) {
                return Err(TarError::Format(format!("a name with a zero byte: {}", shown(text))));
            }
        }
        let kind = kind_of(kind, &name)?;
        // Only files have content; some writers leave the size of a link's target in the header.
        let content = match kind {
            Kind::File => size,
            Kind::Folder if size == 0 => 0,
            Kind::HardLink | Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo if pax_size.is_none() => 0,
            Kind::HardLink | Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo | Kind::Folder => {
                return Err(TarError::Format(format!("{} has content but is no file", shown(&name))));
            }
        };
        self.expect(content);
        let xattrs = pax
            .into_iter()
            .filter_map(|(k, v)| k.strip_prefix("SCHILY.xattr.").map(|k| (k.to_owned(), v)))
            .collect();
        Ok(Entry {
            name,
            link,
            kind,
            mode,
            uid,
            gid,
            size: content,
            mtime,
            xattrs,
        })
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(TarError::Format("the archive ends in the middle of an entry".into()));
        }
        Ok(())
    }

    /// The next header; none at a block of zeros or where the stream ends between entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.source.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Format("the archive ends in the middle of a header".into())),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
            .sum();
        if number(&block[148..156], "checksum")? != sum {
            return Err(TarError::Format("a header's checksum is wrong: this is no tar, or a damaged one".into()));
        }
        Ok(Some(block))
    }

    fn record(&mut self, size: u64, max: u64, what: &str) -> Result<Vec<u8>, TarError> {
        if size > max {
            return Err(TarError::Limit(format!("a {what} of {size} bytes; {max} are possible")));
        }
        self.expect(size);
        let mut text = Vec::new();
        self.read_to_end(&mut text)?;
        Ok(text)
    }

    fn text(&mut self, size: u64, max: u64, what: &str) -> Result<Vec<u8>, TarError> {
        // One byte more for the zero that ends it.
        let text = self.record(size, max + 1, what)?;
        Ok(cut(&text).to_vec())
    }

    /// The stream behind the last entry.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }
}

/// Reads the content of the current entry.
impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.source.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn kind_of(kind: u8, name: &[u8]) -> Result<Kind, TarError> {
    Ok(match kind {
        // Before POSIX a folder was a file whose name ends with a slash.
        0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Folder,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Folder,
        b'6' => Kind::Fifo,
        b'S' => {
            return Err(TarError::Limit(format!(
                "{} is a sparse file: make the archive without --sparse",
                shown(name)
            )));
        }
        other => {
            return Err(TarError::Format(format!(
                "{} is of the unknown kind '{}'",
                shown(name),
                char::from(other).escape_default()
            )));
        }
    })
}

/// A field up to its first zero.
fn cut(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number: octal digits, or base 256 where the first bit is set.
fn number(field: &[u8], what: &str) -> Result<u64, TarError> {
    let wrong = || TarError::Format(format!("a header's {what} is no number"));
    if field[0] & 0x80 != 0 {
        let mut value = 0u64;
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 { byte & 0x7f } else { *byte };
            value = value
                .checked_mul(256)
                .and_then(|v| v.checked_add(u64::from(byte)))
                .ok_or_else(wrong)?;
        }
        // Negative or beyond what a file can have.
        return i64::try_from(value).map(|_| value).map_err(|_| wrong());
    }
    let text = cut(field);
    let text = std::str::from_utf8(text).map_err(|_| wrong())?.trim_matches(' ');
    if text.is_empty() {
        return Ok(0);
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    u64::from_str_radix(text, 8).map_err(|_| wrong())
}

fn pax_number(text: &[u8], what: &str) -> Result<u64, TarError> {
    std::str::from_utf8(text)
        .ok()
        .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse::<u64>().ok())
        .filter(|n| i64::try_from(*n).is_ok())
        .ok_or_else(|| TarError::Format(format!("the {what} of a PAX header is no number")))
}

fn pax_seconds(text: &[u8]) -> Result<i64, TarError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.split('.').next())
        .and_then(|t| t.parse::<i64>().ok())
        .ok_or_else(|| TarError::Format("the time of a PAX header is no number".into()))
}

/// Records `LENGTH KEY=VALUE\n`; one key once.
fn pax(mut text: &[u8], into: &mut BTreeMap<String, Vec<u8>>) -> Result<(), TarError> {
    let wrong = |why: &str| TarError::Format(format!("a PAX header is malformed: {why}"));
    while !text.is_empty() {
        let space = text.iter().position(|b| *b == b' ').ok_or_else(|| wrong("no length"))?;
        let length = std::str::from_utf8(&text[..space])
            .ok()
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse::<usize>().ok())
            .filter(|n| *n > space + 1 && *n <= text.len())
            .ok_or_else(|| wrong("a length that is none"))?;
        let record = &text[space + 1..length];
        text = &text[length..];
        let record = record.strip_suffix(b"\n").ok_or_else(|| wrong("a record without an end"))?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(|| wrong("a record without ="))?;
        let key = std::str::from_utf8(&record[..equals])
            .ok()
            .filter(|k| !k.is_empty())
            .ok_or_else(|| wrong("a key that is no text"))?;
        if into.insert(key.to_owned(), record[equals + 1..].to_vec()).is_some() {
            return Err(wrong("one key twice"));
        }
    }
    Ok(())
}
