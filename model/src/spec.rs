//! What the user asked for; never edited by us.

mod autoscale;
mod container;
mod disconnect;
mod generic;
mod health;
mod hook;
mod image;
mod job;
mod network;
mod order;
mod placement;
mod secret;
mod service;
mod stack;
mod update;

pub use autoscale::*;
pub use container::*;
pub use disconnect::*;
pub use generic::*;
pub use health::*;
pub use hook::*;
pub use image::*;
pub use job::*;
pub use network::*;
pub use order::*;
pub use placement::*;
pub use secret::*;
pub use service::*;
pub use stack::*;
pub use update::*;

/// Labels: sorted, so that equal sets print and compare equal.
pub type Labels = std::collections::BTreeMap<String, String>;

/// Longest name of a service, network, secret, config or stack.
pub const NAME_MAX: usize = 63;

/// A name that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{name}\" cannot be the name of a {kind}: use 1 to 63 of a-z, A-Z, 0-9, \"_\", \"-\" and \".\", with a letter or digit first and last"
)]
pub struct NameError {
    /// What the name was for.
    pub kind: &'static str,
    /// The name, cut to 80 characters.
    pub name: String,
}

/// Checks a name of an object of `kind`: one rule for all of them.
///
/// # Errors
/// [`NameError`] when it is empty, too long, or has other characters.
pub fn check_name(kind: &'static str, name: &str) -> Result<(), NameError> {
    let bytes = name.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if edge(bytes.first()) && edge(bytes.last()) && inner && bytes.len() <= NAME_MAX {
        return Ok(());
    }
    Err(NameError {
        kind,
        name: name.chars().take(80).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_inner_marks() {
        for good in ["a", "web", "shop_web", "a.b-c", &"x".repeat(63)] {
            assert!(check_name("service", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-rf",
            "../x",
            "a/b",
            "con\n",
            "trailing.",
            "é",
            &"x".repeat(64),
        ] {
            assert!(check_name("service", bad).is_err(), "{bad}");
        }
    }
}
