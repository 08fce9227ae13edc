//! What a manager does: API, Raft, leader loop, dispatcher.
#![forbid(unsafe_code)]

// A request is admitted and becomes an entry of the replicated log.
mod api;
mod writer;

// The log makes it durable and applies it to the state.
pub mod raft;

// The leader decides what follows from it.
mod leader;

// Agents are told, and report back.
mod dispatcher;
mod rpc;

// Wiring.
mod server;

pub use api::Api;
pub use rpc::DispatcherRpc;
pub use server::{ClusterError, Manager, ManagerConfig};
pub use writer::{RandomIds, WriteError};
