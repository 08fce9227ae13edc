//! A backup: the whole state as one stream that only its key opens.

use std::io;

use super::UnlockKey;
use super::seal::{Cipher, SALT_BYTES, random};

/// How a backup begins.
const MAGIC: [u8; 8] = *b"RSWBKP\r\n";
const FORMAT: u8 = 1;
const HEADER: usize = MAGIC.len() + 1 + SALT_BYTES;
const PURPOSE: &[u8] = b"rswarm backup";
/// Longest sealed piece: a piece of a snapshot, nonce and tag.
const SEALED_MAX: usize = 257 * 1024;
/// Largest backup: a cluster of a million tasks has about 1 GiB.
const BYTES_MAX: u64 = 16 << 30;

/// Why a backup cannot be used. What it was to be restored to is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error("E_BACKUP_FORMAT: this is not a backup of rswarm")]
    Format,
    /// From a newer version.
    #[error(
        "E_BACKUP_VERSION: this backup has format {0}, this version reads {FORMAT}: restore it with the version that made it"
    )]
    Version(u8),
    /// A wrong key, or changed bytes: nothing tells which.
    #[error("E_BACKUP_KEY: this backup does not open: the key is another one, or the file was changed")]
    Key,
    /// Its end is missing.
    #[error("E_BACKUP_CUT: the end of this backup is missing")]
    Cut,
    /// Longer than any.
    #[error("E_BACKUP_SIZE: a backup has at most {BYTES_MAX} bytes")]
    Size,
    /// What is inside is not a state.
    #[error("E_BACKUP_CONTENT: what is in this backup cannot be read: {0}")]
    Content(String),
    /// A file or the kernel.
    #[error("keep the backup while it is read")]
    Io(#[from] io::Error),
}

fn place(number: u64, last: bool) -> [u8; 9] {
    let mut place = [0; 9];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8] = last.into();
    place
}

/// Seals pieces in order; the last one says that it is.
pub(super) struct Sealer {
    cipher: Cipher,
    number: u64,
}

impl Sealer {
    /// Begins; answers the first bytes of the backup.
    pub(super) fn new(key: &UnlockKey) -> io::Result<(Self, Vec<u8>)> {
        let salt: [u8; SALT_BYTES] = random()?;
        let mut header = MAGIC.to_vec();
        header.push(FORMAT);
        header.extend_from_slice(&salt);
        let cipher = key.derive(&salt, PURPOSE);
        Ok((Self { cipher, number: 0 }, header))
    }

    pub(super) fn piece(&mut self, plain: &[u8], last: bool) -> io::Result<Vec<u8>> {
        let sealed = self.cipher.seal(&place(self.number, last), plain)?;
        self.number += 1;
        let len = u32::try_from(sealed.len()).map_err(io::Error::other)?;
        let mut piece = len.to_le_bytes().to_vec();
        piece.extend_from_slice(&sealed);
        Ok(piece)
    }
}

/// Opens a backup that comes in bytes of any size.
pub(super) struct Opener {
    key: UnlockKey,
    cipher: Option<Cipher>,
    number: u64,
    rest: Vec<u8>,
    taken: u64,
    ended: bool,
}

impl Opener {
    pub(super) fn new(key: &UnlockKey) -> Self {
        Self {
            key: key.clone(),
            cipher: None,
            number: 0,
            rest: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    /// Takes bytes; answers what they open to.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<u8>, BackupError> {
        self.taken += bytes.len() as u64;
        if self.taken > BYTES_MAX {
            return Err(BackupError::Size);
        }
        self.rest.extend_from_slice(bytes);
        if self.cipher.is_none() {
            if self.rest.len() < HEADER {
                return Ok(Vec::new());
            }
            self.begin()?;
        }
        let mut plain = Vec::new();
        let mut rest = std::mem::take(&mut self.rest);
        let mut at = 0;
        while let Some(sealed) = next(&rest[at..])? {
            if self.ended {
                return Err(BackupError::Format);
            }
            plain.extend(self.open(sealed)?);
            at += 4 + sealed.len();
            self.number += 1;
        }
        rest.drain(..at);
        self.rest = rest;
        Ok(plain)
    }

    fn begin(&mut self) -> Result<(), BackupError> {
        if self.rest[..MAGIC.len()] != MAGIC {
            return Err(BackupError::Format);
        }
        let format = self.rest[MAGIC.len()];
        if format != FORMAT {
            return Err(BackupError::Version(format));
        }
        self.cipher = Some(self.key.derive(&self.rest[MAGIC.len() + 1..HEADER], PURPOSE));
        self.rest.drain(..HEADER);
        Ok(())
    }

    fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, BackupError> {
        let cipher = self.cipher.as_ref().ok_or(BackupError::Format)?;
        if let Some(plain) = cipher.open(&place(self.number, false), sealed) {
            return Ok(plain);
        }
        let plain = cipher
            .open(&place(self.number, true), sealed)
            .ok_or(BackupError::Key)?;
        self.ended = true;
        Ok(plain)
    }

    /// Whether all of it came.
    pub(super) fn finish(self) -> Result<(), BackupError> {
        if self.cipher.is_none() {
            return Err(BackupError::Format);
        }
        if self.ended && self.rest.is_empty() {
            Ok(())
        } else {
            Err(BackupError::Cut)
        }
    }
}

/// The next whole sealed piece.
fn next(bytes: &[u8]) -> Result<Option<&[u8]>, BackupError> {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*len) as usize;
    if len > SEALED_MAX {
        return Err(BackupError::Key);
    }
    Ok(rest.get(..len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &UnlockKey, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut sealer, mut all) = Sealer::new(key).unwrap();
        for (n, piece) in pieces.iter().enumerate() {
            all.extend(sealer.piece(piece, n + 1 == pieces.len()).unwrap());
        }
        all
    }

    fn opened(key: &UnlockKey, bytes: &[u8], step: usize) -> Result<Vec<u8>, BackupError> {
        let mut opener = Opener::new(key);
        let mut all = Vec::new();
        for part in bytes.chunks(step) {
            all.extend(opener.take(part)?);
        }
        opener.finish().map(|()| all)
    }

    #[test]
    fn a_backup_opens_whole_with_its_key_and_not_otherwise() {
        let key = UnlockKey::random().unwrap();
        let file = sealed(&key, &[b"one", b"", b"three"]);
        for step in [1, 7, 10_000] {
            assert_eq!(opened(&key, &file, step).unwrap(), b"onethree");
        }
        let other = UnlockKey::random().unwrap();
        assert!(matches!(opened(&other, &file, 100), Err(BackupError::Key)));
        for bit in 0..file.len() * 8 {
            let mut changed = file.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(&key, &changed, 100).is_err(), "bit {bit}");
        }
        for end in 0..file.len() {
            assert!(opened(&key, &file[..end], 100).is_err(), "cut at {end}");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(opened(&key, &longer, 100).is_err());
    }

    #[test]
    fn pieces_cannot_change_places() {
        let key = UnlockKey::random().unwrap();
        let (mut sealer, head) = Sealer::new(&key).unwrap();
        let pieces: Vec<_> = (0..3).map(|n| sealer.piece(&[n; 5], n == 2).unwrap()).collect();
        let swapped = [&head[..], &pieces[1], &pieces[0], &pieces[2]].concat();
        assert!(matches!(opened(&key, &swapped, 100), Err(BackupError::Key)));
        let dropped = [&head[..], &pieces[0], &pieces[2]].concat();
        assert!(matches!(opened(&key, &dropped, 100), Err(BackupError::Key)));
    }
}
