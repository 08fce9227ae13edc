//! Names of images: `[registry/]path[:tag][@digest]`, as Docker reads them.

use std::fmt;

/// Longest reference.
const REFERENCE_MAX: usize = 512;

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no image reference: write [REGISTRY/]NAME[:TAG] in lower case")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
}

/// A name and a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Name as people write it: `busybox`, `shop/web`, `registry:5000/a`.
    pub name: String,
    /// Tag; `latest` where none was given.
    pub tag: String,
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.name, self.tag)
    }
}

impl std::str::FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = || ReferenceError {
            text: text.chars().take(80).collect(),
        };
        let bare = text.split_once('@').map_or(text, |(name, _)| name);
        let bare = ["docker.io/library/", "docker.io/"]
            .iter()
            .find_map(|p| bare.strip_prefix(p))
            .unwrap_or(bare);
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match bare.rfind(':') {
            Some(at) if !bare[at..].contains('/') => (&bare[..at], &bare[at + 1..]),
            Some(_) | None => (bare, "latest"),
        };
        let part = |p: &str, upper: bool| {
            let inner = |c: char| {
                c.is_ascii_lowercase()
                    || c.is_ascii_digit()
                    || matches!(c, '.' | '_' | '-')
                    || (upper && c == ':')
            };
            p.starts_with(|c: char| c.is_ascii_alphanumeric()) && p.chars().all(inner)
        };
        let mut parts = name.split('/').enumerate();
        let names = parts.all(|(i, p)| part(p, i == 0 && name.contains('/')));
        let tag_ok = !tag.is_empty()
            && tag.len() <= 128
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && tag
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if text.len() > REFERENCE_MAX || !names || !tag_ok {
            return Err(wrong());
        }
        Ok(Self {
            name: name.into(),
            tag: tag.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_as_docker_reads_them() {
        for (text, want) in [
            ("busybox", Some("busybox:latest")),
            ("docker.io/library/busybox:1", Some("busybox:1")),
            ("shop/web:v1", Some("shop/web:v1")),
            ("registry:5000/a/b", Some("registry:5000/a/b:latest")),
            ("a@sha256:00", Some("a:latest")),
            ("", None),
            ("Upper", None),
            ("a:", None),
            ("a b", None),
            ("../a", None),
            ("a//b", None),
        ] {
            assert_eq!(
                text.parse::<Reference>().ok().map(|r| r.to_string()).as_deref(),
                want,
                "{text}"
            );
        }
    }
}
