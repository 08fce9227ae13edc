//! Sealing with AES-256-GCM: what is opened is what was sealed, for the place it was sealed for, or it is refused.
//!
//! A secret itself seals nothing. Each segment and each snapshot has a key of its own, derived from the secret and
//! from random bytes at its beginning. So random nonces are no danger however long a secret is in use: they repeat
//! with a chance of 2^-32 after 2^32 seals with one key, and the largest file takes 2^18.

use std::io;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Bytes of a secret.
pub(super) const SECRET_BYTES: usize = 32;
/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 12;
/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;
/// Random bytes from which a file's key is derived; two files never have the same.
pub(super) const SALT_BYTES: usize = 24;

/// Random bytes of the kernel.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(bytes)
}

/// 32 bytes from which keys are derived. They are wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(Zeroizing<[u8; SECRET_BYTES]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret(..)")
    }
}

impl Secret {
    pub(super) fn random() -> io::Result<Self> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// None when there are not exactly 32 bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    pub(super) fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// The key of one file, or of one use: another `salt` or `purpose` gives another key.
    pub(super) fn derive(&self, salt: &[u8], purpose: &[u8]) -> Cipher {
        let purposes = [purpose];
        let key = Salt::new(HKDF_SHA256, salt)
            .extract(self.bytes())
            .expand(&purposes, &AES_256_GCM)
            .map(UnboundKey::from)
            .expect("HKDF-SHA256 gives up to 8,160 bytes, and this takes 32");
        Cipher(LessSafeKey::new(key))
    }
}

/// A key that seals and opens.
pub(super) struct Cipher(LessSafeKey);

impl Cipher {
    /// Seals `body` where it stands and returns the tag. No nonce may be given twice.
    pub(super) fn seal_in_place(
        &self,
        nonce: [u8; NONCE_BYTES],
        place: &[u8],
        body: &mut [u8],
    ) -> io::Result<[u8; TAG_BYTES]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(place), body)
            .map_err(|_| io::Error::other("AES-GCM seals at most 64 GiB at once"))?;
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Opens `body` where it stands. False: it is not what was sealed for this place with this key.
    #[must_use]
    pub(super) fn open_in_place(
        &self,
        nonce: [u8; NONCE_BYTES],
        place: &[u8],
        body: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0
            .open_in_place_separate_tag(nonce, Aad::from(place), Tag::from(tag), body, 0..)
            .is_ok()
    }

    /// Nonce, sealed bytes and tag in one.
    pub(super) fn seal(&self, place: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let nonce = random()?;
        let mut sealed = Vec::with_capacity(NONCE_BYTES + plain.len() + TAG_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = self.seal_in_place(nonce, place, &mut sealed[NONCE_BYTES..])?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// The other way; none as with [`Cipher::open_in_place`].
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
        let mut body = body.to_vec();
        self.open_in_place(*nonce, place, &mut body, *tag).then_some(body)
    }
}
