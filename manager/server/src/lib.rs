//! What a manager does: API, Raft, leader loop, dispatcher.
#![forbid(unsafe_code)]

// Requests become entries of the replicated log.
pub mod raft;
