//! Generic resources: what nodes have beside CPU and memory, such as GPUs, counted or by name.

use std::collections::{BTreeMap, BTreeSet};

/// Most kinds that a node has, or a service asks for.
pub const KINDS_MAX: usize = 32;
/// Most of one kind on a node.
pub const UNITS_MAX: u64 = 100_000;
/// Most that a node names of one kind: each stands in its description.
pub const NAMES_MAX: usize = 256;
/// Longest kind, and longest name of one.
pub const GENERIC_NAME_MAX: usize = 128;

/// How many of each kind.
pub type Amounts = BTreeMap<String, u64>;
/// Which of each kind, by name.
pub type Names = BTreeMap<String, BTreeSet<String>>;

/// What a node has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenericResources {
    /// Kinds that are only counted.
    pub counted: Amounts,
    /// Kinds of which each has a name: a task is told which are its own.
    pub named: Names,
}

impl GenericResources {
    /// How many of a kind there are.
    pub fn total(&self, kind: &str) -> u64 {
        let named = self.named.get(kind).map_or(0, |names| names.len() as u64);
        self.counted.get(kind).copied().unwrap_or(0) + named
    }

    /// Whether a host may say this of itself: as [`GenericResources::parse`] reads it.
    pub fn is_sound(&self) -> bool {
        let counted = self.counted.iter().map(|(kind, n)| format!("{kind}={n}"));
        let named =
            (self.named.iter()).flat_map(|(kind, names)| names.iter().map(move |n| format!("{kind}={n}")));
        let texts: Vec<String> = counted.chain(named).take(KINDS_MAX * (NAMES_MAX + 1)).collect();
        Self::parse(texts.iter().map(String::as_str)).is_ok_and(|read| read == *self)
    }

    /// Reads what a host is started with: `gpu=2`, or once for each that has a name `gpu=UUID1`, as Docker has it.
    ///
    /// # Errors
    /// What is wrong, for an operator.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut all = Self::default();
        for text in texts {
            let (kind, value) = split(text)?;
            match value.parse::<u64>() {
                Ok(count) => {
                    amount(text, count)?;
                    if all.counted.insert(kind.clone(), count).is_some() {
                        return Err(format!("generic resource \"{text}\": {kind} is counted twice"));
                    }
                }
                Err(_) => {
                    let names = all.named.entry(kind.clone()).or_default();
                    if value.len() > GENERIC_NAME_MAX
                        || value
                            .chars()
                            .any(|c| c.is_whitespace() || c.is_control() || c == ',')
                    {
                        return Err(format!(
                            "generic resource \"{text}\": a name has at most {GENERIC_NAME_MAX} characters, and no space or comma"
                        ));
                    }
                    if !names.insert(value.to_owned()) || names.len() > NAMES_MAX {
                        return Err(format!(
                            "generic resource \"{text}\": {value} is there twice, or there are more than {NAMES_MAX} names"
                        ));
                    }
                }
            }
            if all.counted.contains_key(&kind) && all.named.contains_key(&kind) {
                return Err(format!(
                    "generic resource \"{text}\": {kind} is either counted or has names"
                ));
            }
        }
        if all.counted.len() + all.named.len() > KINDS_MAX {
            return Err(format!(
                "there are more than {KINDS_MAX} kinds of generic resources"
            ));
        }
        let mut variables = BTreeMap::new();
        for kind in all.counted.keys().chain(all.named.keys()) {
            let variable = resource_variable(kind);
            if let Some(other) = variables.insert(variable.clone(), kind) {
                return Err(format!(
                    "generic resources {other} and {kind}: a task finds both as RSWARM_{variable}; rename one of them"
                ));
            }
        }
        Ok(all)
    }
}

/// Reads what a service asks for: `gpu=1`.
///
/// # Errors
/// What is wrong, for an operator.
pub fn parse_amount(text: &str) -> Result<(String, u64), String> {
    let (kind, value) = split(text)?;
    let count = value.parse().map_err(|_| {
        format!("generic resource \"{text}\": a service asks for a number of them: write {kind}=1")
    })?;
    amount(text, count)?;
    Ok((kind, count))
}

fn amount(text: &str, count: u64) -> Result<(), String> {
    if (1..=UNITS_MAX).contains(&count) {
        return Ok(());
    }
    Err(format!(
        "generic resource \"{text}\": the number must be between 1 and {UNITS_MAX}"
    ))
}

fn split(text: &str) -> Result<(String, &str), String> {
    let (kind, value) = text.split_once('=').unwrap_or((text, ""));
    check_kind(kind)?;
    if value.is_empty() {
        return Err(format!(
            "generic resource \"{text}\" has no value: write KIND=NUMBER, such as gpu=1"
        ));
    }
    Ok((kind.to_owned(), value))
}

/// What the environment variable that tells a task of a kind ends with: `RESOURCE_GPU`.
pub fn resource_variable(kind: &str) -> String {
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!("RESOURCE_{}", kind.chars().map(fits).collect::<String>())
}

/// Whether a kind can be one: it becomes part of the name of an environment variable.
///
/// # Errors
/// What is wrong, for an operator.
pub fn check_kind(kind: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !kind.is_empty() && kind.len() <= GENERIC_NAME_MAX && kind.chars().all(fits) {
        return Ok(());
    }
    Err(format!(
        "\"{kind}\" is no kind of generic resource: write letters, digits, \"-\", \"_\" and \".\", at most {GENERIC_NAME_MAX}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_has_is_counted_or_named() {
        let rows: [(&[&str], Result<u64, &str>); 11] = [
            (&["gpu=2"], Ok(2)),
            (&["gpu=GPU-1", "gpu=/dev/nvidia1"], Ok(2)),
            (&[], Ok(0)),
            (&["gpu=2", "gpu=3"], Err("counted twice")),
            (&["gpu=2", "gpu=GPU-1"], Err("either counted or has names")),
            (&["gpu=a", "gpu=a"], Err("there twice")),
            (&["gpu=0"], Err("between 1 and")),
            (&["gpu=100001"], Err("between 1 and 100000")),
            (&["gpu"], Err("has no value")),
            (&["g u=1"], Err("no kind")),
            (&["gpu-a=1", "GPU_A=x"], Err("as RSWARM_RESOURCE_GPU_A")),
        ];
        for (texts, expected) in rows {
            let got = GenericResources::parse(texts.iter().copied());
            match (got, expected) {
                (Ok(all), Ok(total)) => assert_eq!(all.total("gpu"), total, "{texts:?}"),
                (Err(e), Err(part)) => assert!(e.contains(part), "{e}"),
                (got, _) => panic!("{texts:?}: {got:?}"),
            }
        }
        let kinds: Vec<String> = (0..=KINDS_MAX).map(|n| format!("k{n}=1")).collect();
        assert!(GenericResources::parse(kinds[1..].iter().map(String::as_str)).is_ok());
        assert!(GenericResources::parse(kinds.iter().map(String::as_str)).is_err());
    }

    #[test]
    fn a_service_asks_for_a_number() {
        assert_eq!(parse_amount("gpu=1"), Ok(("gpu".into(), 1)));
        for bad in ["gpu", "gpu=", "gpu=a", "gpu=0", "=1", "g/u=1", "gpu=-1"] {
            assert!(parse_amount(bad).is_err(), "{bad}");
        }
    }
}
