//! Placement constraints: what a node has to be. `KEY==VALUE` and `KEY!=VALUE` as in Swarm, and more.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::object::{Node, NodeRole};
use regex_lite::{Regex, RegexBuilder};

/// Most constraints of one service.
pub const CONSTRAINTS_MAX: usize = 64;
/// Largest constraint, in bytes; one is read for each node and task.
pub const LENGTH_MAX: usize = 256;
/// Bytes that a regular expression may take.
const REGEX_MAX: usize = 64 << 10;

/// A constraint that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// No operator, or an empty side.
    #[error(
        "\"{0}\" is no constraint: write KEY==VALUE, KEY!=VALUE, KEY<NUMBER (or <=, >, >=), KEY=~REGEX, KEY!~REGEX, \"KEY in A,B\", \
         \"KEY not in A,B\", \"KEY is_set\" or \"KEY is_not_set\", such as node.labels.zone==a"
    )]
    Form(String),
    /// Longer than [`LENGTH_MAX`].
    #[error("a constraint of {0} bytes is too long: {LENGTH_MAX} are the most")]
    Long(usize),
    /// No node has such a key (Swarm takes it and never matches).
    #[error(
        "\"{0}\" is no key of a constraint: there are node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME and engine.labels.NAME"
    )]
    Key(String),
    /// Not an address or a network.
    #[error("\"{0}\" is neither an address nor a network such as 10.1.0.0/16")]
    Address(String),
    /// Not a number.
    #[error("\"{0}\" is no number to compare with")]
    Number(String),
    /// Not a regular expression.
    #[error("\"{0}\" is no regular expression: {1}")]
    Regex(String, String),
}

/// One constraint, read.
#[derive(Debug, Clone)]
pub struct Constraint {
    key: Key,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Arch,
    NodeLabel(String),
    EngineLabel(String),
}

/// What is asked of a value; the flag says whether it has to be so, or must not.
#[derive(Debug, Clone)]
enum Test {
    Among(bool, Vec<String>),
    Than(Than, f64),
    Matches(bool, Regex),
    IsSet(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Than {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Operators between a key and a value, longer ones before those they begin with.
const OPERATORS: [&str; 8] = ["==", "!=", "=~", "!~", "<=", ">=", "<", ">"];

/// Reads a constraint.
///
/// # Errors
/// [`ConstraintError`] when its form, key or value cannot be used.
pub fn parse(text: &str) -> Result<Constraint, ConstraintError> {
    let form = || ConstraintError::Form(text.to_owned());
    if text.len() > LENGTH_MAX {
        return Err(ConstraintError::Long(text.len()));
    }
    let (name, operator, value) = split(text).ok_or_else(form)?;
    let needs_value = !operator.starts_with("is_");
    if name.is_empty() || value.is_empty() == needs_value {
        return Err(form());
    }
    let key = key(name).ok_or_else(|| ConstraintError::Key(name.to_owned()))?;
    let number = || {
        let number = value.parse::<f64>().ok().filter(|n| n.is_finite());
        number.ok_or_else(|| ConstraintError::Number(value.to_owned()))
    };
    let test = match operator {
        "==" => Test::Among(true, vec![value.to_owned()]),
        "!=" => Test::Among(false, vec![value.to_owned()]),
        "in" => Test::Among(true, list(value)),
        "not in" => Test::Among(false, list(value)),
        "<" => Test::Than(Than::Less, number()?),
        "<=" => Test::Than(Than::LessOrEqual, number()?),
        ">" => Test::Than(Than::Greater, number()?),
        ">=" => Test::Than(Than::GreaterOrEqual, number()?),
        "=~" => Test::Matches(true, regex(value)?),
        "!~" => Test::Matches(false, regex(value)?),
        "is_set" => Test::IsSet(true),
        "is_not_set" => Test::IsSet(false),
        _ => return Err(form()),
    };
    if matches!(&test, Test::Among(_, values) if values.is_empty()) {
        return Err(form());
    }
    if let (Key::Ip, Test::Among(_, values)) = (&key, &test) {
        let is_none = |v: &&String| v.parse::<IpAddr>().is_err() && v.parse::<IpNet>().is_err();
        if let Some(none) = values.iter().find(is_none) {
            return Err(ConstraintError::Address(none.clone()));
        }
    }
    Ok(Constraint { key, test })
}

/// Name, operator and value.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    // A word is one only with space around it.
    for word in ["is_set", "is_not_set", "in", "not in"] {
        if let Some(value) = rest.strip_prefix(word)
            && (value.is_empty() || value.starts_with([' ', '(']))
        {
            return Some((name, word, value.trim()));
        }
    }
    let found = OPERATORS.iter().filter_map(|o| Some((text.find(o)?, *o)));
    let (at, operator) = found.min_by_key(|(at, o)| (*at, std::cmp::Reverse(o.len())))?;
    Some((text[..at].trim(), operator, text[at + operator.len()..].trim()))
}

/// `a, b` or `(a, b)`.
fn list(text: &str) -> Vec<String> {
    let bare = text.strip_prefix('(').and_then(|t| t.strip_suffix(')'));
    let values = bare.unwrap_or(text).split(',').map(str::trim);
    values.filter(|v| !v.is_empty()).map(str::to_owned).collect()
}

/// Anywhere in the value, and without regard to case, as values are compared otherwise.
fn regex(text: &str) -> Result<Regex, ConstraintError> {
    let built = RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(REGEX_MAX)
        .build();
    built.map_err(|e| ConstraintError::Regex(text.to_owned(), e.to_string()))
}

fn key(name: &str) -> Option<Key> {
    // Label names keep their case; the words before do not matter in it.
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("node.labels.") && name.len() > 12 {
        return Some(Key::NodeLabel(name[12..].to_owned()));
    }
    if lower.starts_with("engine.labels.") && name.len() > 14 {
        return Some(Key::EngineLabel(name[14..].to_owned()));
    }
    Some(match lower.as_str() {
        "node.id" => Key::Id,
        "node.hostname" => Key::Hostname,
        "node.ip" => Key::Ip,
        "node.role" => Key::Role,
        "node.platform.os" => Key::Os,
        "node.platform.arch" => Key::Arch,
        _ => return None,
    })
}

impl Constraint {
    /// Whether it is about a node's name or address, in which nodes that are alike otherwise differ.
    pub(super) fn is_of_one(&self) -> bool {
        matches!(self.key, Key::Id | Key::Hostname | Key::Ip)
    }

    /// Whether it holds on a node. Values are compared without regard to case. A label that is missing is none of any values,
    /// matches nothing and is no number.
    pub fn holds(&self, node: &Node) -> bool {
        let value = self.key.of(node);
        let value = value.as_deref();
        match &self.test {
            Test::IsSet(wanted) => value.is_some() == *wanted,
            Test::Among(wanted, values) => {
                let is = |v: &String| {
                    if self.key == Key::Ip {
                        value.is_some_and(|address| is_at(address, v))
                    } else {
                        value.unwrap_or_default().eq_ignore_ascii_case(v)
                    }
                };
                values.iter().any(is) == *wanted
            }
            Test::Matches(wanted, regex) => value.is_some_and(|v| regex.is_match(v)) == *wanted,
            Test::Than(than, limit) => {
                let number = value.and_then(|v| v.trim().parse::<f64>().ok());
                number.is_some_and(|number| match than {
                    Than::Less => number < *limit,
                    Than::LessOrEqual => number <= *limit,
                    Than::Greater => number > *limit,
                    Than::GreaterOrEqual => number >= *limit,
                })
            }
        }
    }
}

impl Key {
    /// What a node has; nothing of a label it has not.
    fn of<'a>(&self, node: &'a Node) -> Option<Cow<'a, str>> {
        Some(match self {
            Self::Id => node.id.to_string().into(),
            Self::Hostname => node.description.hostname.as_str().into(),
            Self::Role => match node.spec.role {
                NodeRole::Manager => "manager".into(),
                NodeRole::Worker => "worker".into(),
            },
            Self::Os => node.description.platform.os.as_str().into(),
            Self::Arch => node.description.platform.arch.as_str().into(),
            Self::NodeLabel(name) => node.spec.labels.get(name)?.as_str().into(),
            Self::EngineLabel(name) => node.description.engine_labels.get(name)?.as_str().into(),
            Self::Ip => address(&node.description.address)?.to_string().into(),
        })
    }
}

/// The address in what a node says of where it is: with a port, or without.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = text.parse::<SocketAddr>().map(|at| at.ip());
    with_port.or_else(|_| text.parse()).ok()
}

fn is_at(address: &str, value: &str) -> bool {
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    match value.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => value.parse() == Ok(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrate_tests::node;

    #[test]
    fn every_key_and_operator() {
        let mut n = node(7, "Alpha");
        n.spec.labels.insert("Zone".into(), "A".into());
        n.description.engine_labels.insert("ssd".into(), "yes".into());
        n.spec.labels.insert("disks".into(), "12".into());
        n.spec.labels.insert("empty".into(), String::new());
        n.description.address = "10.1.2.3:2377".into();
        for (text, want) in [
            ("node.hostname==alpha", true),
            ("node.hostname != alpha", false),
            ("node.labels.Zone==a", true),
            ("node.labels.zone==a", false),
            ("node.labels.zone!=a", true),
            ("engine.labels.ssd==yes", true),
            ("node.role==worker", true),
            ("node.ip==10.1.0.0/16", true),
            ("node.ip==10.1.2.3", true),
            ("node.ip!=10.2.0.0/16", true),
            ("node.platform.os==linux", true),
            ("node.platform.arch==arm64", false),
            ("node.id==0000000000000000000000007", true),
            ("node.labels.disks>9", true),
            ("node.labels.disks > 12", false),
            ("node.labels.disks>=12", true),
            ("node.labels.disks<100", true),
            ("node.labels.disks<=11.5", false),
            ("node.labels.Zone<1", false),
            ("node.labels.none<1", false),
            ("node.hostname=~^al", true),
            ("node.hostname =~ ^PH", false),
            ("node.hostname!~^al", false),
            ("node.labels.none=~.*", false),
            ("node.labels.none!~a", true),
            ("node.labels.Zone=~==|a", true),
            ("node.hostname in beta, alpha", true),
            ("node.hostname in (beta)", false),
            ("node.hostname not in beta,gamma", true),
            ("node.labels.none in a,b", false),
            ("node.labels.none not in a,b", true),
            ("node.ip in 10.2.0.0/16,10.1.2.3", true),
            ("node.ip not in 10.1.0.0/16", false),
            ("node.ip=~^10\\.", true),
            ("node.labels.empty is_set", true),
            ("node.labels.none is_set", false),
            ("node.labels.none is_not_set", true),
            ("node.labels.in==a", false),
        ] {
            assert_eq!(
                parse(text).map(|c| c.holds(&n)).map_err(|e| e.to_string()),
                Ok(want),
                "{text}"
            );
        }
        // One that says nothing of where it is, or a name.
        for address in ["", "here:2377"] {
            n.description.address = address.into();
            assert!(!parse("node.ip in 0.0.0.0/0").unwrap().holds(&n));
            assert!(parse("node.ip is_not_set").unwrap().holds(&n));
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_and_not_a_constraint_that_never_holds() {
        for text in [
            "node.label.zone==a",
            "zone==a",
            "node.labels.==a",
            "node.id",
            "node.id==",
            "node.ip==here",
            "node.ip in 10.1.0.0/16,here",
            "node.labels.a=b",
            "node.labels.a<b",
            "node.labels.a<nan",
            "node.labels.a=~(",
            "node.labels.a in",
            "node.labels.a in (,)",
            "node.labels.a is_set b",
            "node.labels.a inside b",
            "in a",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let long = |n: usize| format!("node.labels.a=={}", "x".repeat(n - 15));
        assert!(parse(&long(LENGTH_MAX)).is_ok());
        assert!(matches!(
            parse(&long(LENGTH_MAX + 1)),
            Err(ConstraintError::Long(257))
        ));
    }
}
