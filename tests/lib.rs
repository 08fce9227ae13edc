//! Simulation of a whole cluster on one thread, and the properties it must keep.
#![forbid(unsafe_code)]

pub mod invariants;
pub mod sim;
