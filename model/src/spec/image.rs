//! How an image is named, `[REGISTRY/]PATH[:TAG][@sha256:…]`, and its id.

use std::fmt;
use std::str::FromStr;

/// Longest reference of an image, without its digest.
pub const IMAGE_MAX: usize = 512;
/// Most images one node tells its manager of; ten times what a busy host holds.
pub const IMAGES_HELD_MAX: usize = 10_000;
/// Most names of them; all together stay below the 32 MiB of one request.
pub const IMAGE_NAMES_MAX: usize = 20_000;

/// Id of an image: the SHA-256 of its config.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub [u8; 32]);

/// A text that is no id of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no id of an image: it has \"sha256:\" and 64 digits 0-9a-f")]
pub struct ImageIdError {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl fmt::Display for ImageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for ImageId {
    type Err = ImageIdError;

    fn from_str(text: &str) -> Result<Self, ImageIdError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let read = || {
            let digits = text.strip_prefix("sha256:")?.as_bytes();
            let mut id = [0; 32];
            if digits.len() != 2 * id.len() {
                return None;
            }
            for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = digit(pair[0])? << 4 | digit(pair[1])?;
            }
            Some(Self(id))
        };
        read().ok_or_else(|| ImageIdError {
            text: text.chars().take(80).collect(),
        })
    }
}

/// The parts of a reference. Whether they can be used, the store of a node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRef<'a> {
    /// Registry and path, as given.
    pub name: &'a str,
    /// Tag; absent: `latest`.
    pub tag: Option<&'a str>,
    /// What stands behind `@`: the id of the one image that is meant.
    pub digest: Option<&'a str>,
}

impl<'a> ImageRef<'a> {
    /// Takes a reference apart.
    pub fn parse(text: &'a str) -> Self {
        let (bare, digest) = match text.split_once('@') {
            Some((bare, digest)) => (bare, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match bare.rfind(':') {
            Some(at) if !bare[at..].contains('/') => (&bare[..at], Some(&bare[at + 1..])),
            Some(_) | None => (bare, None),
        };
        Self { name, tag, digest }
    }

    /// Name and tag as every node lists them: without the prefixes that Docker's own registry has, with a tag.
    pub fn key(&self) -> String {
        let name = ["docker.io/library/", "docker.io/"]
            .iter()
            .find_map(|p| self.name.strip_prefix(p))
            .unwrap_or(self.name);
        format!("{name}:{}", self.tag.unwrap_or("latest"))
    }

    /// The same name with the one image it means from now on.
    pub fn pinned(&self, id: ImageId) -> String {
        format!("{}:{}@{id}", self.name, self.tag.unwrap_or("latest"))
    }

    /// A reference as tables show it: without the digest where it has a tag, as Docker shows it.
    pub fn shown(text: &'a str) -> &'a str {
        match (Self::parse(text).tag, text.split_once('@')) {
            (Some(_), Some((bare, _))) => bare,
            (Some(_) | None, _) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_apart_and_have_one_key() {
        let id = ImageId([0xab; 32]);
        for (text, key, pinned) in [
            ("busybox", "busybox:latest", "busybox:latest@"),
            (
                "docker.io/library/busybox:1",
                "busybox:1",
                "docker.io/library/busybox:1@",
            ),
            ("docker.io/shop/web:1", "shop/web:1", "docker.io/shop/web:1@"),
            (
                "registry:5000/a/b",
                "registry:5000/a/b:latest",
                "registry:5000/a/b:latest@",
            ),
            ("a:1@sha256:00", "a:1", "a:1@"),
        ] {
            let parts = ImageRef::parse(text);
            assert_eq!(parts.key(), key, "{text}");
            let text = parts.pinned(id);
            assert_eq!(text, format!("{pinned}{id}"));
            let again = ImageRef::parse(&text);
            assert_eq!(
                (again.key().as_str(), again.digest),
                (key, Some(id.to_string().as_str()))
            );
            assert_eq!(ImageRef::shown(&text), pinned.trim_end_matches('@'));
        }
        assert_eq!(ImageRef::shown("a@sha256:00"), "a@sha256:00");
        assert_eq!(ImageRef::shown("a"), "a");
    }

    #[test]
    fn an_image_id_reads_back_and_nothing_else_is_one() {
        let id = ImageId(std::array::from_fn(|i| u8::try_from(i * 8).unwrap_or(0)));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "sha256:",
            &id.to_string()[7..],
            &id.to_string().to_uppercase(),
            &format!("{id}0"),
            &format!("sha256:{}g", &id.to_string()[8..]),
        ] {
            assert!(bad.parse::<ImageId>().is_err(), "{bad}");
        }
    }
}
