//! Finding an object by what a person types: id, name, or the unique beginning of an id.

use model::object::Key;
use model::{ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};

use super::{State, name_key};

/// Kinds of objects that are named by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A node.
    Node,
    /// A service.
    Service,
    /// A task.
    Task,
    /// A network.
    Network,
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl Kind {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// Why a reference names no single object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing has that id or name.
    #[error("{} {reference} not found: `rswarm {} ls` lists what there is", kind.as_str(), kind.as_str())]
    Missing {
        /// Of which kind.
        kind: Kind,
        /// What was asked for.
        reference: String,
    },
    /// Several ids begin so, or several nodes have that host name.
    #[error("{} {reference} is ambiguous: {count} match; use the full id", kind.as_str())]
    Ambiguous {
        /// Of which kind.
        kind: Kind,
        /// What was asked for.
        reference: String,
        /// How many match.
        count: usize,
    },
}

impl State {
    /// The object of a kind that `reference` names: a full id, then a name, then the beginning of one id.
    ///
    /// # Errors
    /// [`FindError`] when none or several match.
    pub fn find(&self, kind: Kind, reference: &str) -> Result<Key, FindError> {
        let missing = || FindError::Missing {
            kind,
            reference: reference.chars().take(80).collect(),
        };
        if let Some(key) = self.by_full_id(kind, reference) {
            return Ok(key);
        }
        if let Some(id) = self.names.get(&name_key(kind, reference)) {
            return key_of(kind, *id).ok_or_else(missing);
        }
        if reference.is_empty() {
            return Err(missing());
        }
        let matches: Vec<Key> = match kind {
            Kind::Node => {
                let named: Vec<Key> = (self
                    .nodes
                    .values()
                    .filter(|n| n.description.hostname == reference))
                .map(|n| Key::Node(n.id))
                .collect();
                if named.is_empty() {
                    self.prefixed(kind, reference)
                } else {
                    named
                }
            }
            Kind::Task => {
                let named: Vec<Key> = (self.tasks.values().filter(|t| t.container_name() == reference))
                    .map(|t| Key::Task(t.id))
                    .collect();
                if named.is_empty() {
                    self.prefixed(kind, reference)
                } else {
                    named
                }
            }
            Kind::Service | Kind::Network | Kind::Secret | Kind::Config => self.prefixed(kind, reference),
        };
        match matches.as_slice() {
            [] => Err(missing()),
            [one] => Ok(*one),
            many => Err(FindError::Ambiguous {
                kind,
                reference: reference.to_owned(),
                count: many.len(),
            }),
        }
    }

    /// The object of a kind that has exactly this name; secrets, configs, networks and services have names.
    ///
    /// What decides whether a name is free, or which object a file means, asks here: the beginning of somebody else's
    /// id may well look like a name (`c1`, `feed`).
    pub fn named(&self, kind: Kind, name: &str) -> Option<Key> {
        (self.names.get(&name_key(kind, name))).and_then(|id| key_of(kind, *id))
    }

    /// The object of a kind that `reference` names in a specification: a name or a full id, never a part of one.
    ///
    /// # Errors
    /// [`FindError::Missing`].
    pub fn refer(&self, kind: Kind, reference: &str) -> Result<Key, FindError> {
        (self
            .named(kind, reference)
            .or_else(|| self.by_full_id(kind, reference)))
        .ok_or_else(|| FindError::Missing {
            kind,
            reference: reference.chars().take(80).collect(),
        })
    }

    fn by_full_id(&self, kind: Kind, reference: &str) -> Option<Key> {
        let id: TaskId = reference.parse().ok()?;
        key_of(kind, id.0).filter(|key| self.object(*key).is_some())
    }

    fn prefixed(&self, kind: Kind, prefix: &str) -> Vec<Key> {
        fn pick<I: ToString>(ids: impl Iterator<Item = (I, Key)>, prefix: &str) -> Vec<Key> {
            ids.filter(|(id, _)| id.to_string().starts_with(prefix))
                .map(|(_, key)| key)
                .collect()
        }
        match kind {
            Kind::Node => pick(self.nodes.keys().map(|id| (*id, Key::Node(*id))), prefix),
            Kind::Service => pick(self.services.keys().map(|id| (*id, Key::Service(*id))), prefix),
            Kind::Task => pick(self.tasks.keys().map(|id| (*id, Key::Task(*id))), prefix),
            Kind::Network => pick(self.networks.keys().map(|id| (*id, Key::Network(*id))), prefix),
            Kind::Secret => pick(self.secrets.keys().map(|id| (*id, Key::Secret(*id))), prefix),
            Kind::Config => pick(self.configs.keys().map(|id| (*id, Key::Config(*id))), prefix),
        }
    }
}

fn key_of(kind: Kind, id: u128) -> Option<Key> {
    Some(match kind {
        Kind::Node => Key::Node(NodeId(id)),
        Kind::Service => Key::Service(ServiceId(id)),
        Kind::Task => Key::Task(TaskId(id)),
        Kind::Network => Key::Network(NetworkId(id)),
        Kind::Secret => Key::Secret(SecretId(id)),
        Kind::Config => Key::Config(ConfigId(id)),
    })
}
