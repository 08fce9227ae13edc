//! Placement constraints: `key==value` and `key!=value`.

use std::net::IpAddr;

use ipnet::IpNet;
use model::object::{Node, NodeRole};

/// Most constraints of one service.
pub const CONSTRAINTS_MAX: usize = 64;

/// A constraint that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Neither `==` nor `!=`, or an empty side.
    #[error("\"{0}\" is no constraint: write KEY==VALUE or KEY!=VALUE, such as node.labels.zone==a")]
    Form(String),
    /// No node has such a key (Swarm takes it and never matches).
    #[error(
        "\"{0}\" is no key of a constraint: there are node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME and engine.labels.NAME"
    )]
    Key(String),
    /// Not an address or a network.
    #[error("\"{0}\" is neither an address nor a network such as 10.1.0.0/16")]
    Address(String),
}

/// One constraint, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: String,
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

/// Reads a constraint.
///
/// # Errors
/// [`ConstraintError`] when its form, key or address cannot be used.
pub fn parse(text: &str) -> Result<Constraint, ConstraintError> {
    let form = || ConstraintError::Form(text.to_owned());
    let (at, equal) = match (text.find("=="), text.find("!=")) {
        (Some(e), Some(n)) => (e.min(n), e < n),
        (Some(e), None) => (e, true),
        (None, Some(n)) => (n, false),
        (None, None) => return Err(form()),
    };
    let (name, value) = (text[..at].trim(), text[at + 2..].trim());
    if name.is_empty() || value.is_empty() {
        return Err(form());
    }
    let key = key(name).ok_or_else(|| ConstraintError::Key(name.to_owned()))?;
    if key == Key::Ip && value.parse::<IpAddr>().is_err() && value.parse::<IpNet>().is_err() {
        return Err(ConstraintError::Address(value.to_owned()));
    }
    Ok(Constraint {
        key,
        equal,
        value: value.to_owned(),
    })
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
    /// Whether it holds on a node. Values are compared without regard to case; a missing label is empty.
    pub fn holds(&self, node: &Node) -> bool {
        let label = |labels: &model::spec::Labels, name: &str| labels.get(name).cloned().unwrap_or_default();
        let found = match &self.key {
            Key::Id => node.id.to_string(),
            Key::Hostname => node.description.hostname.clone(),
            Key::Role => match node.spec.role {
                NodeRole::Manager => "manager".into(),
                NodeRole::Worker => "worker".into(),
            },
            Key::Os => node.description.platform.os.clone(),
            Key::Arch => node.description.platform.arch.clone(),
            Key::NodeLabel(name) => label(&node.spec.labels, name),
            Key::EngineLabel(name) => label(&node.description.engine_labels, name),
            Key::Ip => return self.equal == self.ip_matches(&node.description.address),
        };
        self.equal == found.eq_ignore_ascii_case(&self.value)
    }

    fn ip_matches(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<IpAddr>() else {
            return false;
        };
        match self.value.parse::<IpNet>() {
            Ok(net) => net.contains(&address),
            Err(_) => self.value.parse() == Ok(address),
        }
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
        n.description.address = "10.1.2.3".into();
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
        ] {
            assert_eq!(parse(text).map(|c| c.holds(&n)), Ok(want), "{text}");
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
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
