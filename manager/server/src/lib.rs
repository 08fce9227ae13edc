//! What a manager does: API, Raft, leader loop, dispatcher.
#![forbid(unsafe_code)]

// A caller is known, and its call comes to the manager that can carry it out.
mod front;

// A request is admitted and becomes an entry of the replicated log.
mod api;
mod writer;

// The log makes it durable and applies it to the state.
pub mod raft;

// The leader decides what follows from it, and who takes part in the log.
mod leader;
mod members;

// Agents are told, and report back.
mod dispatcher;
mod rpc;

// Hosts become nodes, and stay them.
mod ca;
mod init;
mod interface;
mod join;
mod lock;
mod revive;
mod rpc_ca;
mod strangers;

// Wiring.
mod server;

pub use api::Api;
pub use ca::{CaError, TokenError};
pub use front::{Gate, Gated, NODE, REQUEST, Side};
pub use join::JoinError;
pub use raft::{Route, UnlockKey};
pub use rpc::DispatcherRpc;
pub use rpc_ca::CaRpc;
pub use server::{ClusterError, Manager, ManagerConfig, Membership};
pub use writer::{RandomIds, WriteError};
