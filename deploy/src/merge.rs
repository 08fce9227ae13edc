//! Several files as one: later ones win, as docker/cli merges them.

use crate::node::{Entry, Node, Value};
use crate::schema::{Class, Shape};

/// Lays `over` onto `base`; both are in long form.
pub(crate) fn merge(base: Node, over: Node, shape: &Shape) -> Node {
    let at = base.at;
    match shape {
        Shape::Object(keys) => {
            // Options belong to their driver: another driver brings its own.
            let driver = |n: &Node| n.get("driver").and_then(Node::scalar).map(str::to_owned);
            let fresh = keys.iter().any(|k| k.name == "options") && driver(&base) != driver(&over);
            maps(base, over, |key, base, over| {
                let found = keys.iter().find(|k| k.name == key).map(|k| &k.class);
                match found {
                    Some(Class::Used(_)) if fresh && key == "options" => over,
                    Some(Class::Used(shape)) => merge(base, over, shape),
                    _ => over,
                }
            })
        }
        Shape::Named(inner) => maps(base, over, |_, base, over| merge(base, over, inner)),
        Shape::Networks | Shape::DependsOn => maps(base, over, |_, _, over| over),
        Shape::Pairs(_) | Shape::Ulimits => maps(base, over, |_, _, over| over),
        Shape::Texts | Shape::TextOrTexts | Shape::List(_) | Shape::Hosts => lists(at, base, over, |_| None),
        Shape::Ports => lists(at, base, over, |n| {
            let get = |k| n.get(k).and_then(Node::scalar).unwrap_or_default();
            Some(match n.get("published") {
                Some(_) => format!("{}/{}", get("published"), get("protocol")),
                None => format!(":{}/{}", get("target"), get("protocol")),
            })
        }),
        Shape::Mounts => lists(at, base, over, |n| key(n, "target")),
        Shape::Files => lists(at, base, over, |n| key(n, "source")),
        Shape::Text
        | Shape::Word(_)
        | Shape::Bool
        | Shape::Int(..)
        | Shape::Share
        | Shape::Duration
        | Shape::Size
        | Shape::Cpus
        | Shape::Percent
        | Shape::Mode
        | Shape::Restart
        | Shape::Command
        | Shape::Test
        | Shape::External
        | Shape::OnDisconnect
        | Shape::Http
        | Shape::Statuses
        | Shape::Schedule => over,
    }
}

fn key(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::scalar).map(str::to_owned)
}

fn maps(base: Node, over: Node, mut both: impl FnMut(&str, Node, Node) -> Node) -> Node {
    let at = base.at;
    let (base, over) = match (base.value, over.value) {
        (Value::Map(base), Value::Map(over)) => (base, over),
        (_, value) => return Node::new(over.at, value),
    };
    let mut all: Vec<Entry> = base;
    for entry in over {
        match all.iter_mut().find(|e| e.key == entry.key) {
            Some(found) => {
                let old = std::mem::replace(&mut found.node, Node::new(at, Value::Null));
                found.node = both(&entry.key, old, entry.node);
            }
            None => all.push(entry),
        }
    }
    Node::new(at, Value::Map(all))
}

/// Appends; items with the same key are replaced, and equal ones are kept once.
fn lists(at: crate::node::Place, base: Node, over: Node, key: impl Fn(&Node) -> Option<String>) -> Node {
    let (mut all, more) = match (base.value, over.value) {
        (Value::List(all), Value::List(more)) => (all, more),
        (_, value) => return Node::new(over.at, value),
    };
    for item in more {
        let same = |n: &Node| match (key(n), key(&item)) {
            (Some(a), Some(b)) => a == b,
            _ => n.value == item.value,
        };
        match all.iter_mut().find(|n| same(n)) {
            Some(found) => *found = item,
            None => all.push(item),
        }
    }
    Node::new(at, Value::List(all))
}
