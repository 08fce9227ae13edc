//! Lists: which objects match the filters of a request, in which order.

use manager_core::{Kind, State};
use model::object::{Key, NodeRole, Object, Task};
use model::spec::Labels;
use model::task_state::DesiredState;
use proto::control::Filter;
use proto::types;

/// A filter that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FilterError {
    /// Its key.
    #[error("invalid filter \"{key}\": a list of {kind}s can be filtered by {known}")]
    Key {
        key: String,
        kind: &'static str,
        known: String,
    },
    /// Its value.
    #[error("invalid value \"{value}\" of the filter \"{key}\": use one of {known}")]
    Value {
        key: &'static str,
        value: String,
        known: &'static str,
    },
}

/// Objects of a kind that match, sorted by name, then id. Several values of one key are alternatives; of different
/// keys all must match.
pub(super) fn list(state: &State, kind: types::Kind, filters: &[Filter]) -> Result<Vec<Object>, FilterError> {
    let known = keys(kind);
    for filter in filters {
        if !known.contains(&filter.key.as_str()) {
            return Err(FilterError::Key {
                key: filter.key.chars().take(80).collect(),
                kind: noun(kind),
                known: if known.is_empty() {
                    "nothing".into()
                } else {
                    known.join(", ")
                },
            });
        }
        check_value(filter)?;
    }
    let matching = |object: &Object| {
        known.iter().all(|key| {
            let mut values = filters.iter().filter(|f| f.key == *key).peekable();
            values.peek().is_none() || values.any(|f| matches(state, object, key, &f.value))
        })
    };
    let mut objects: Vec<Object> = all(state, kind).filter(matching).collect();
    objects.sort_by_cached_key(|o| (name(o), o.key()));
    Ok(objects)
}

/// Every object of a kind.
pub(super) fn all(state: &State, kind: types::Kind) -> Box<dyn Iterator<Item = Object> + '_> {
    match kind {
        types::Kind::Cluster => Box::new(state.cluster().cloned().map(Object::Cluster).into_iter()),
        types::Kind::Node => Box::new(state.nodes().cloned().map(Object::Node)),
        types::Kind::Service => Box::new(state.services().cloned().map(Object::Service)),
        types::Kind::Task => Box::new(state.tasks().cloned().map(Object::Task)),
        types::Kind::Network => Box::new(state.networks().cloned().map(Object::Network)),
        types::Kind::Secret => Box::new(state.secrets().cloned().map(Object::Secret)),
        types::Kind::Config => Box::new(state.configs().cloned().map(Object::Config)),
    }
}

fn noun(kind: types::Kind) -> &'static str {
    match kind {
        types::Kind::Cluster => "cluster",
        types::Kind::Node => "node",
        types::Kind::Service => "service",
        types::Kind::Task => "task",
        types::Kind::Network => "network",
        types::Kind::Secret => "secret",
        types::Kind::Config => "config",
    }
}

fn keys(kind: types::Kind) -> &'static [&'static str] {
    match kind {
        types::Kind::Cluster => &[],
        types::Kind::Node => &["id", "name", "label", "node.label", "role", "membership"],
        types::Kind::Service => &["id", "name", "label", "mode"],
        types::Kind::Task => &["id", "name", "label", "service", "node", "desired-state"],
        types::Kind::Network => &["id", "name", "label", "driver"],
        types::Kind::Secret | types::Kind::Config => &["id", "name", "label"],
    }
}

fn check_value(filter: &Filter) -> Result<(), FilterError> {
    let allowed: (&'static str, &[&str], &'static str) = match filter.key.as_str() {
        "mode" => ("mode", &["replicated", "global"], "replicated and global"),
        "role" => ("role", &["manager", "worker"], "manager and worker"),
        "membership" => ("membership", &["accepted", "pending"], "accepted and pending"),
        "desired-state" => (
            "desired-state",
            &["ready", "running", "shutdown", "remove", "accepted"],
            "ready, running, shutdown and remove",
        ),
        _ => return Ok(()),
    };
    if allowed.1.contains(&filter.value.as_str()) {
        return Ok(());
    }
    let value = filter.value.chars().take(80).collect();
    Err(FilterError::Value {
        key: allowed.0,
        value,
        known: allowed.2,
    })
}

/// Name of an object; of a task its number sorts as a number.
fn name(object: &Object) -> (String, u32) {
    match object {
        Object::Cluster(_) => (String::new(), 0),
        Object::Node(o) => (o.description.hostname.clone(), 0),
        Object::Service(o) => (o.spec.name.clone(), 0),
        Object::Task(o) => match o.slot {
            model::object::SlotKey::Replica(n) => (o.service_name.clone(), n),
            model::object::SlotKey::Node(_) => (o.name(), 0),
        },
        Object::Network(o) => (o.spec.name.clone(), 0),
        Object::Secret(o) => (o.spec.name.clone(), 0),
        Object::Config(o) => (o.spec.name.clone(), 0),
    }
}

fn matches(state: &State, object: &Object, key: &str, value: &str) -> bool {
    match key {
        "id" => types::Key::from(object.key()).id.starts_with(value),
        "name" => match object {
            Object::Task(task) => task.container_name().starts_with(value),
            other => name(other).0.starts_with(value),
        },
        "label" => labels(state, object, |labels| has_label(labels, value)),
        "node.label" => matches!(object, Object::Node(node) if has_label(&node.spec.labels, value)),
        "role" => {
            matches!(object, Object::Node(node) if (node.spec.role == NodeRole::Manager) == (value == "manager"))
        }
        // A node is in the state once it was accepted.
        "membership" => value == "accepted",
        "mode" => matches!(object, Object::Service(service) if service.spec.mode.as_str() == value),
        "driver" => matches!(object, Object::Network(_) if value == "overlay"),
        "service" => matches!(object, Object::Task(task) if of_service(state, task, value)),
        "node" => matches!(object, Object::Task(task) if on_node(state, task, value)),
        "desired-state" => matches!(object, Object::Task(task) if desired(task.desired, value)),
        _ => false,
    }
}

fn desired(state: DesiredState, value: &str) -> bool {
    // Docker's word for a task that is to be ready and to wait.
    let value = if value == "accepted" { "ready" } else { value };
    state.as_str() == value
}

fn of_service(state: &State, task: &Task, value: &str) -> bool {
    // A service may be gone while its tasks are still being stopped.
    task.service_name == value
        || matches!(state.find(Kind::Service, value), Ok(Key::Service(id)) if id == task.service)
        || task.service.to_string() == value
}

fn on_node(state: &State, task: &Task, value: &str) -> bool {
    let Some(id) = task.node else { return false };
    id.to_string().starts_with(value) || state.node(id).is_some_and(|n| n.description.hostname == value)
}

fn labels(state: &State, object: &Object, test: impl Fn(&Labels) -> bool) -> bool {
    match object {
        Object::Cluster(_) => false,
        Object::Node(o) => test(&o.description.engine_labels) || test(&o.spec.labels),
        Object::Service(o) => test(&o.spec.labels),
        Object::Task(o) => {
            test(&o.spec.container.labels) || state.service(o.service).is_some_and(|s| test(&s.spec.labels))
        }
        Object::Network(o) => test(&o.spec.labels),
        Object::Secret(o) => test(&o.spec.labels),
        Object::Config(o) => test(&o.spec.labels),
    }
}

/// `key`, or `key=value`.
fn has_label(labels: &Labels, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::object::{Config, Meta};
    use model::spec::ConfigSpec;
    use std::sync::Arc;

    fn state() -> State {
        let config = |id: u128, name: &str, label: &str| {
            let labels = Labels::from([("tier".to_owned(), label.to_owned())]);
            let spec = ConfigSpec {
                name: name.into(),
                labels,
                data: vec![],
            };
            Object::Config(Arc::new(Config {
                id: model::ConfigId(id),
                meta: Meta::default(),
                spec: Arc::new(spec),
            }))
        };
        State::from_objects(
            1,
            [
                config(3, "b", "front"),
                config(2, "a", "back"),
                config(1, "ab", "back"),
            ],
        )
    }

    fn names(filters: &[(&str, &str)]) -> Result<Vec<String>, FilterError> {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|(k, v)| Filter {
                key: (*k).into(),
                value: (*v).into(),
            })
            .collect();
        let found = list(&state(), types::Kind::Config, &filters)?;
        Ok(found.iter().map(|o| name(o).0).collect())
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_keys_add_up() {
        type Row = (
            &'static str,
            &'static [(&'static str, &'static str)],
            &'static [&'static str],
        );
        let rows: &[Row] = &[
            ("no filter: all, by name", &[], &["a", "ab", "b"]),
            ("the beginning of a name", &[("name", "a")], &["a", "ab"]),
            ("a label's key", &[("label", "tier")], &["a", "ab", "b"]),
            ("a label's value", &[("label", "tier=front")], &["b"]),
            ("two values", &[("name", "ab"), ("name", "b")], &["ab", "b"]),
            ("two keys", &[("name", "a"), ("label", "tier=front")], &[]),
        ];
        for (row, filters, expected) in rows {
            assert_eq!(names(filters).unwrap(), *expected, "{row}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        assert!(matches!(
            names(&[("colour", "red")]),
            Err(FilterError::Key { .. })
        ));
        let mode = Filter {
            key: "mode".into(),
            value: "most".into(),
        };
        assert!(matches!(
            list(&state(), types::Kind::Service, &[mode]),
            Err(FilterError::Value { .. })
        ));
    }
}
