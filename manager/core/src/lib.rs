//! What a manager decides: pure functions over the replicated state.
//!
//! Modules stand in the order in which a request walks through them.
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

// A request becomes a transaction, or a refusal.
pub mod admit;

// The transaction becomes state.
pub mod state;
pub mod txn;

// The state becomes the next transaction.
pub mod allocate;
pub mod orchestrate;
pub mod plan;
pub mod reap;
pub mod schedule;

// What nodes are told, and what is heard of them.
pub mod assignments;
pub mod autoscale;
pub mod data_plane;
pub mod drains;
pub mod images;
pub mod members;
pub mod node_health;
pub mod node_use;

// By which clock.
pub mod log_time;

#[cfg(test)]
mod address_tests;
#[cfg(test)]
mod admit_tests;
#[cfg(test)]
mod orchestrate_tests;
#[cfg(test)]
mod placement_tests;
#[cfg(test)]
mod readiness_tests;

pub use admit::{Admitted, Refusal, RefusalKind};
pub use plan::{Dirty, Plan, plan};
pub use state::{FindError, Kind, State};
pub use txn::{Action, Answer, Change, Changes, Entry, RequestId, Stale, Txn};
