//! `depends_on`: what has to hold of other services before one starts.

use std::collections::btree_map::Entry::Vacant;
use std::collections::{BTreeMap, BTreeSet};

use model::spec::{DEPENDENCIES_MAX, Dependency, DependencyCondition, ServiceSpec};

use crate::convert::{flag, section, text};
use crate::node::{Entry, Node, Value};
use crate::problem::Report;
use crate::schema::{DEPENDENCY, Shape, named, normalise};

/// `SERVICE[=CONDITION][,optional]`, where the condition is `started`, `healthy` or `completed`, or as compose files have it.
///
/// # Errors
/// One sentence for the user.
pub fn parse_dependency(text: &str) -> Result<Dependency, String> {
    let (what, optional) = match text.strip_suffix(",optional") {
        Some(what) => (what, true),
        None => (text, false),
    };
    let (service, condition) = what.split_once('=').unwrap_or((what, "started"));
    let service = service.trim();
    if service.is_empty() || service.contains(',') {
        return Err(format!("{text}: write SERVICE[=CONDITION][,optional]"));
    }
    let condition = DependencyCondition::parse(condition.trim()).ok_or_else(|| {
        format!("{text}: there is no condition {condition}: use started, healthy or completed")
    })?;
    Ok(Dependency {
        service: service.to_owned(),
        condition,
        optional,
    })
}

/// A list of names becomes a mapping of them.
pub(crate) fn long(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    if let Value::Map(_) = &node.value {
        return named(node, path, report, |n, path, report| {
            let long = normalise(n, &DEPENDENCY, path, report)?;
            if n.get("condition").is_none() {
                let message =
                    "needs a condition: service_started, service_healthy or service_completed_successfully";
                report.problem(n.at, path, message);
            }
            Some(long)
        });
    }
    let names = normalise(node, &Shape::Texts, path, report)?;
    let mut all: Vec<Entry> = Vec::new();
    for name in names.items() {
        let key = name.scalar().unwrap_or_default();
        if all.iter().any(|e| e.key == key) {
            continue;
        }
        let started = Entry {
            key: "condition".to_owned(),
            at: name.at,
            node: Node::text(name.at, DependencyCondition::Started.as_str()),
        };
        all.push(Entry {
            key: key.to_owned(),
            at: name.at,
            node: Node::new(name.at, Value::Map(vec![started])),
        });
    }
    Some(Node::new(node.at, Value::Map(all)))
}

/// What a service of a file depends on, by the names services have in the cluster.
pub(crate) fn dependencies(
    tree: &Node,
    key: &str,
    node: &Node,
    scoped: impl Fn(&str) -> String,
    report: &mut Report,
) -> Vec<Dependency> {
    let entries = node.get("depends_on").map_or(&[][..], Node::entries);
    let path = format!("services.{key}.depends_on");
    if let Some(over) = entries.get(DEPENDENCIES_MAX) {
        let message = format!("more than {DEPENDENCIES_MAX} services");
        report.problem(over.at, &path, message);
    }
    let mut all = Vec::new();
    for entry in entries {
        let optional = text(&entry.node, &["required"]) == "false";
        let there = section(tree, "services").iter().any(|e| e.key == entry.key);
        if !there && !optional {
            let message = format!("undefined service \"{}\"", entry.key);
            report.problem(entry.at, &path, message);
            continue;
        }
        if flag(&entry.node, &["restart"]) {
            let message = "restart: true is not supported: take it out, and run `rswarm service update --force` where it is needed";
            report.problem(entry.at, &format!("{path}.{}.restart", entry.key), message);
        }
        all.push(Dependency {
            service: scoped(&entry.key),
            condition: DependencyCondition::parse(&text(&entry.node, &["condition"])).unwrap_or_default(),
            optional,
        });
    }
    all
}

/// Reports what can never come true: services that wait for one another, and ends that never come.
pub(crate) fn check(tree: &Node, specs: &[ServiceSpec], report: &mut Report) {
    let services = section(tree, "services");
    let on = |key: &str| {
        let service = services.iter().find(|e| e.key == key);
        let list = service.and_then(|e| e.node.get("depends_on"));
        list.map_or(&[][..], Node::entries)
    };
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for service in services {
        let path = format!("services.{}.depends_on", service.key);
        for (entry, wants) in on(&service.key).iter().filter_map(|entry| {
            let place = services.iter().position(|e| e.key == entry.key)?;
            Some((entry, specs.get(place)?))
        }) {
            let condition = text(&entry.node, &["condition"]);
            let problem = DependencyCondition::parse(&condition).and_then(|c| c.never(wants));
            if let Some(why) = problem {
                report.problem(entry.at, &path, format!("\"{}\" {why}", entry.key));
            }
        }
        if told.contains(service.key.as_str()) {
            continue;
        }
        if let Some(circle) = circle(&service.key, &on) {
            let at = on(&service.key).first().map_or(service.at, |e| e.at);
            let message = format!(
                "services wait for one another and would never start: {} -> {}",
                circle.join(" -> "),
                service.key
            );
            report.problem(at, &path, message);
            told.extend(circle);
        }
    }
}

/// The way from a service back to itself, if there is one.
fn circle<'a>(start: &'a str, on: &impl Fn(&str) -> &'a [Entry]) -> Option<Vec<&'a str>> {
    // How each was come to.
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut todo = vec![start];
    while let Some(key) = todo.pop() {
        for next in on(key) {
            if next.key == start {
                let mut way = vec![key];
                while let Some(before) = way.last().filter(|k| **k != start).and_then(|k| from.get(k)) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if let Vacant(first) = from.entry(&next.key) {
                first.insert(key);
                todo.push(&next.key);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_as_flags_write_them() {
        let of = |service: &str, condition, optional| {
            Some(Dependency {
                service: service.into(),
                condition,
                optional,
            })
        };
        use DependencyCondition::{Completed, Healthy, Started};
        for (text, want) in [
            ("db", of("db", Started, false)),
            ("db=healthy", of("db", Healthy, false)),
            ("db=service_healthy", of("db", Healthy, false)),
            ("db=completed,optional", of("db", Completed, true)),
            ("db,optional", of("db", Started, true)),
            ("db=well", None),
            ("=healthy", None),
            ("a,b", None),
            ("", None),
        ] {
            assert_eq!(parse_dependency(text).ok(), want, "{text}");
        }
    }
}
