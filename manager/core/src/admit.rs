//! A request and the state → one transaction, or a refusal a user can act on.

mod cluster;
mod file;
mod health;
mod job;
mod join;
pub mod level;
mod network;
mod node;
mod order;
mod pin;
mod rebalance;
mod rollout;
mod service;
mod stack;
mod validate;

use std::sync::Arc;

use model::Timestamp;
use model::object::{Key, Object};
use model::spec::{NameError, TaskSpec};

use crate::allocate::EndpointError;
use crate::state::{FindError, Kind, Scratch, State};
use crate::txn::{Action, Txn};

pub use cluster::{ClusterChanges, ClusterRequest, EXPIRY_DEFAULT, init_cluster, update_cluster};
pub use file::{
    create_config, create_secret, remove_configs, remove_secrets, update_config_labels, update_secret_labels,
};
pub use job::run_job;
pub use join::{
    JoinRequest, Revival, TokenRequest, begin_rotation, end_rotation, join, leave, make_token, registered,
    renewed, revive, rotate_token,
};
pub use network::{create_network, remove_networks, update_network};
pub use node::{remove_nodes, update_node};
pub use pin::{Pinning, ResolveImage};
pub use rebalance::rebalance_service;
pub use rollout::{Steer, rollback_service, steer_rollout};
pub use service::{create_service, remove_services, scale_services, update_service};
pub use stack::{StackChange, StackVerdict, deploy_stack, remove_stacks};

/// Most characters kept of who asked.
const BY_MAX: usize = 128;

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admitted {
    /// What changes.
    pub txn: Txn,
    /// The objects it is about, in the order of the request.
    pub keys: Vec<Key>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Of a stack: what happens to each object.
    pub changes: Vec<StackChange>,
}

impl Admitted {
    /// Writes down who asked for the specs that it brings.
    #[must_use]
    pub fn signed(mut self, by: &str, now: Timestamp) -> Self {
        for action in &mut self.txn.actions {
            if let Action::Put(Object::Service(service)) = action
                && service
                    .made
                    .as_ref()
                    .is_some_and(|m| m.at == now && m.by.is_empty())
                && let Some(made) = &mut Arc::make_mut(service).made
            {
                made.by = by.chars().take(BY_MAX).collect();
            }
        }
        self
    }

    fn new(scratch: Scratch, keys: Vec<Key>) -> Self {
        Self {
            txn: scratch.into_txn(),
            keys,
            ..Self::default()
        }
    }
}

/// Class of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Something the request names does not exist.
    NotFound,
    /// A name or port is taken.
    AlreadyExists,
    /// The request itself cannot be carried out, now or later.
    Invalid,
    /// Something is in use, or in a state that forbids it.
    InUse,
    /// It was based on an older version.
    Conflict,
    /// Who asks may not.
    Denied,
}

/// Why a request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    kind: RefusalKind,
    message: String,
}

impl Refusal {
    /// Class of the refusal.
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// Of a request that has the id of another one.
    pub fn reused() -> Self {
        Self::new(
            RefusalKind::AlreadyExists,
            "E_REQID_REUSE: another request with the same id was carried out already: choose a new id for each request",
        )
    }

    fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Invalid, message)
    }

    fn taken(kind: Kind, name: &str) -> Self {
        let message = format!(
            "the name {name} is taken by another {}: choose another, or remove that one",
            kind.as_str()
        );
        Self::new(RefusalKind::AlreadyExists, message)
    }

    fn outdated(kind: Kind, name: &str, expected: u64, found: u64) -> Self {
        let message = format!(
            "update out of sequence: {} {name} has version {found}, the request was based on {expected}; look again and repeat",
            kind.as_str()
        );
        Self::new(RefusalKind::Conflict, message)
    }
}

impl From<FindError> for Refusal {
    fn from(error: FindError) -> Self {
        let kind = match error {
            FindError::Missing { .. } => RefusalKind::NotFound,
            FindError::Ambiguous { .. } => RefusalKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<EndpointError> for Refusal {
    fn from(error: EndpointError) -> Self {
        let kind = match error {
            EndpointError::Taken { .. } | EndpointError::AddressTaken { .. } => RefusalKind::AlreadyExists,
            EndpointError::NeedsVip { .. }
            | EndpointError::Fixed { .. }
            | EndpointError::AddressOutside { .. }
            | EndpointError::NoIpv6 { .. }
            | EndpointError::NoPort { .. }
            | EndpointError::NoAddress { .. } => RefusalKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// Refuses when `expected` is given and is not `found`.
fn check_version(kind: Kind, name: &str, expected: Option<u64>, found: u64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != found => Err(Refusal::outdated(kind, name, expected, found)),
        Some(_) | None => Ok(()),
    }
}

/// Who uses something: a service by its spec, by the spec a rollout may still go back to, or a task that has not ended.
fn user_of(state: &State, uses: impl Fn(&TaskSpec) -> bool) -> Option<String> {
    let by_service = state.services().find(|s| {
        let may_go_back = s.update.as_ref().is_some_and(|u| u.completed_at.is_none());
        let previous = s.previous_spec.as_ref().filter(|_| may_go_back);
        uses(&s.spec.task) || previous.is_some_and(|p| uses(&p.task))
    });
    if let Some(service) = by_service {
        return Some(format!("service {}", service.spec.name));
    }
    let task = (state.tasks())
        .find(|t| !t.status.state.is_terminal() && state.service(t.service).is_some() && uses(&t.spec))?;
    Some(format!("task {}", task.name()))
}
