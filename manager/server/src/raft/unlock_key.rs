//! The key an operator keeps outside the cluster's disks, and what is sealed with it.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::seal::Secret;

const PREFIX: &str = "SWMKEY-1-";
/// Unpadded, as Swarm writes it; padding that somebody added does no harm.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// First byte of sealed bytes.
const FORMAT: u8 = 1;

/// The key that unlocks a manager. It prints as `SWMKEY-1-…`, and its debug text hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Secret);

/// A text is not an unlock key. The text is not repeated, as it may be one with a slip in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not an unlock key: it begins with {PREFIX} and 43 letters follow; copy it whole, as swarm unlock-key \
     printed it"
)]
pub struct UnlockKeyError;

/// Sealed bytes do not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the unlock key is not the one it was sealed with, or the sealed bytes are damaged")]
pub(crate) struct UnsealError;

impl UnlockKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn random() -> std::io::Result<Self> {
        Secret::random().map(Self)
    }

    /// The key of one use: another `salt` or `purpose` gives another key.
    pub(super) fn derive(&self, salt: &[u8], purpose: &[u8]) -> super::seal::Cipher {
        self.0.derive(salt, purpose)
    }

    /// The key of these bytes; none when they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Secret::from_bytes(bytes).map(Self)
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("UnlockKey(..)")
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Zeroizing::new(BASE64.encode(self.0.bytes()));
        write!(out, "{PREFIX}{}", text.as_str())
    }
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<Self, UnlockKeyError> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(UnlockKeyError)?;
        let bytes = Zeroizing::new(BASE64.decode(text).map_err(|_| UnlockKeyError)?);
        Secret::from_bytes(&bytes).map(Self).ok_or(UnlockKeyError)
    }
}

/// Seals a small file's content. `purpose` says what it is, and has to be given again when it is opened: so one file
/// cannot be put in the place of another.
///
/// # Errors
/// The kernel gives no random numbers.
pub(crate) fn seal_bytes(key: &UnlockKey, purpose: &str, plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut sealed = vec![FORMAT];
    sealed.extend_from_slice(
        &key.0
            .derive(b"rswarm unlock key", purpose.as_bytes())
            .seal(&[FORMAT], plain)?,
    );
    Ok(sealed)
}

/// The other way. The bytes are wiped when they are dropped.
///
/// # Errors
/// [`UnsealError`]: another key or purpose, or a changed byte. Nothing tells which.
pub(crate) fn open_bytes(
    key: &UnlockKey,
    purpose: &str,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let rest = sealed.strip_prefix(&[FORMAT]).ok_or(UnsealError)?;
    let cipher = key.0.derive(b"rswarm unlock key", purpose.as_bytes());
    cipher
        .open(&[FORMAT], rest)
        .map(Zeroizing::new)
        .ok_or(UnsealError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlock_key_is_read_as_it_prints_and_its_debug_text_hides_it() {
        let key = UnlockKey::random().unwrap();
        let text = key.to_string();
        assert_eq!((text.len(), text.parse()), (52, Ok(key.clone())));
        assert_eq!(
            format!("{text}=\n").parse(),
            Ok(key.clone()),
            "padding and a line's end"
        );
        let debug = format!("{key:?}");
        assert!(!debug.contains(&text[9..20]), "{debug}");
        let bad = [
            String::new(),
            "SWMKEY-1-".into(),
            text[9..].into(),
            text[..51].into(),
            format!("{text}AAAA"),
            text.replace("SWMKEY-1", "SWMKEY-2"),
            text.replace(&text[20..21], "!"),
        ];
        for text in bad {
            assert_eq!(text.parse::<UnlockKey>(), Err(UnlockKeyError), "{text}");
        }
    }

    #[test]
    fn sealed_bytes_open_with_their_key_and_purpose_only_and_with_every_bit_as_it_was() {
        let key = UnlockKey::random().unwrap();
        let sealed = seal_bytes(&key, "node key", b"PRIVATE").unwrap();
        assert_eq!(
            open_bytes(&key, "node key", &sealed).unwrap().as_slice(),
            b"PRIVATE"
        );
        assert!(!sealed.windows(7).any(|w| w == b"PRIVATE"));
        let other = UnlockKey::random().unwrap();
        assert_eq!(open_bytes(&other, "node key", &sealed), Err(UnsealError));
        assert_eq!(open_bytes(&key, "raft keys", &sealed), Err(UnsealError));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open_bytes(&key, "node key", &changed),
                Err(UnsealError),
                "bit {bit}"
            );
        }
        for end in 0..sealed.len() {
            assert_eq!(
                open_bytes(&key, "node key", &sealed[..end]),
                Err(UnsealError),
                "cut at {end}"
            );
        }
    }
}
