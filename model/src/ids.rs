//! Ids of every kind of object; the only place that parses one.

use std::fmt;
use std::str::FromStr;

/// Length of a printed id: 25 digits of base 36, as Docker's clients expect.
pub const ID_LEN: usize = 25;

/// Digits that always fit into 64 bits, and one more than the greatest number that they make.
const WORD_DIGITS: usize = 12;
const WORD: u128 = 36u128.pow(12);

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an id: an id has 25 digits 0-9a-z")]
pub struct IdError {
    /// What was given.
    pub text: String,
}

/// Where new ids come from. Decisions are given one, so that they stay functions of their arguments.
pub trait IdSource {
    /// The next id, different from every earlier one.
    fn next_id(&mut self) -> u128;
}

fn format_id(value: u128, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut digits = [b'0'; ID_LEN];
    let mut rest = value;
    // Words of 64 bits are divided by the processor, longer numbers are not.
    for part in digits.rchunks_mut(WORD_DIGITS) {
        let mut word = u64::try_from(rest % WORD).unwrap_or(0);
        rest /= WORD;
        for digit in part.iter_mut().rev() {
            *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(word % 36) as usize];
            word /= 36;
        }
    }
    out.write_str(std::str::from_utf8(&digits).unwrap_or("?"))
}

fn parse_id(text: &str) -> Result<u128, IdError> {
    let wrong = || IdError {
        text: text.chars().take(64).collect(),
    };
    if text.len() != ID_LEN {
        return Err(wrong());
    }
    let mut value: u128 = 0;
    for byte in text.bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(wrong()),
        };
        value = value
            .checked_mul(36)
            .and_then(|v| v.checked_add(u128::from(digit)))
            .ok_or_else(wrong)?;
    }
    Ok(value)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// A new id from `source`.
            pub fn new(source: &mut dyn IdSource) -> Self { Self(source.next_id()) }

            /// No object: stands for "find it by its name" where a request names another object.
            pub const NIL: Self = Self(0);

            /// The first 12 digits, as tables print it.
            pub fn short(&self) -> String { self.to_string()[..12].to_owned() }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { format_id(self.0, out) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { format_id(self.0, out) }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> { parse_id(text).map(Self) }
        }
    )*};
}

ids! {
    /// A cluster.
    ClusterId,
    /// A node: one host of the cluster.
    NodeId,
    /// A service: what a user asked for.
    ServiceId,
    /// A task: one attempt to run one container of a service.
    TaskId,
    /// A network.
    NetworkId,
    /// A secret.
    SecretId,
    /// A config.
    ConfigId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_printed() {
        let (word, words) = (36u128.pow(12), 36u128.pow(24));
        for value in [
            0,
            1,
            35,
            36,
            word - 1,
            word,
            word + 1,
            words - 1,
            words,
            words + 1,
            u128::MAX,
        ] {
            let id = TaskId(value);
            assert_eq!(id.to_string().len(), ID_LEN);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(TaskId(words + 37).to_string(), "1000000000000000000000011");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "abc",
            "zzzzzzzzzzzzzzzzzzzzzzzzz",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "00000000000000000000000000",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text}");
        }
    }
}
