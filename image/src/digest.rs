//! Digests: `sha256:` and 64 lower-case hexadecimal digits; so a valid one can be a file name.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// The hexadecimal part.
pub(crate) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Whether a text is a digest.
pub(crate) fn is_digest(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix("sha256:")
        .is_some_and(|h| h.len() == 64 && h.bytes().all(digit))
}

/// The digest of some bytes.
pub(crate) fn of(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// The name of each layer together with all below it (OCI image-spec, config.md, "Layer ChainID"), the lowest first.
///
/// Two images that begin with the same layers share the folders of these.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// Counts and hashes what passes through it.
pub(crate) struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// What is hashed, the digest of all that passed, and how much that was.
    pub(crate) fn finish(self) -> (T, String, u64) {
        let digest = format!("sha256:{:x}", self.hash.finalize());
        (self.inner, digest, self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_layer_is_its_own_chain_and_order_matters() {
        let (a, b) = (of(b"a"), of(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], of(format!("{a} {b}").as_bytes()));
        assert_ne!(chain_ids(&[b, a])[1], chain[1]);
    }

    #[test]
    fn only_whole_lower_case_digests_are_digests() {
        let good = of(b"");
        for (text, want) in [
            (good.as_str(), true),
            (&good[7..], false),
            (&good[..70], false),
            (&good.to_uppercase(), false),
            ("sha256:../../../../etc/passwd", false),
        ] {
            assert_eq!(is_digest(text), want, "{text}");
        }
    }
}
