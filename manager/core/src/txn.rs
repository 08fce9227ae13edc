//! Transactions: actions with the versions they were planned on; a stale one is refused and planned again.

use std::sync::Arc;

use model::object::{Key, NodeDescription, NodeStatus, Object, TaskStatus};
use model::{NodeId, TaskId, Timestamp};

use crate::admit::StackChange;

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes or replaces an object.
    Put(Object),
    /// Removes an object; one that is gone already is no error.
    Delete(Key),
    /// What an agent saw of a task of its node. A status older than the known one, and one of another node's task,
    /// changes nothing: reports may be late, doubled or wrong.
    TaskStatus {
        /// The node that reports.
        node: NodeId,
        /// Its task.
        task: TaskId,
        /// What it saw.
        status: TaskStatus,
    },
    /// A node was heard of, or was not. One that was removed meanwhile stays so.
    NodeSeen {
        /// The node.
        node: NodeId,
        /// What it says of itself; absent: as before. Apart, as most actions are small and many.
        description: Option<Box<NodeDescription>>,
        /// What the manager sees of it.
        status: NodeStatus,
    },
    /// Remembers what a request was answered, so that the same request, sent again because its answer was lost, is
    /// answered and not carried out once more. An entry with an answer that is known already changes nothing.
    Answer(Arc<Answer>),
}

/// What a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub request: RequestId,
    /// The objects it is about.
    pub keys: Vec<Key>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Of a stack: what happened to each object.
    pub changes: Vec<StackChange>,
}

/// Identifies a request over all its tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId {
    /// Chosen at random by who sent it first.
    pub id: u128,
    /// Digest of what it asks for: another request with the same id is a mistake.
    pub digest: u64,
}

/// Actions that take effect together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// Versions the actions were decided on; 0: the object did not exist.
    pub expect: Vec<(Key, u64)>,
    /// What changes.
    pub actions: Vec<Action>,
}

impl Txn {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// A transaction at its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Place in the log; becomes the version of what it writes.
    pub index: u64,
    /// The proposer's clock, so that every manager applies the same time.
    pub now: Timestamp,
    /// What changes.
    pub txn: Txn,
}

/// An object as it was before and is after an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which object.
    pub key: Key,
    /// Before; absent: it was made.
    pub before: Option<Object>,
    /// After; absent: it was removed.
    pub after: Option<Object>,
}

/// What an entry changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Place of the entry in the log.
    pub index: u64,
    /// Each changed object once.
    pub items: Vec<Change>,
}

/// A transaction was decided on something that has changed since. Deciding again helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} has version {found}, not {expected}: it changed meanwhile")]
pub struct Stale {
    /// What changed.
    pub key: Key,
    /// Version it was decided on.
    pub expected: u64,
    /// Version it has.
    pub found: u64,
}
