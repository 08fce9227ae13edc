//! The dataplane of one host: addresses, routes, nftables maps, DNS.
//!
//! One network namespace holds everything: containers hang on it by veth pairs with a /32 each, virtual addresses and
//! published ports are elements of nftables maps there. The host's own namespace gets one veth and one small table.
//! It knows no task, service or node.
#![deny(unsafe_code)]

// What is wanted, and the elements that make it so; pure.
mod balance;
mod family;
mod overlay;
mod plan;

// The namespace, its rules, and containers on it.
mod container;
mod dataplane;
mod dial;
mod flows;
mod found;
mod proxy;
mod pulse;
mod ruleset;
mod steer;
mod tunnel;
mod uplink;
mod wireguard;

// Several hosts on one machine, for tests and the demo.
mod wire;

// Names.
pub mod dns;

#[allow(
    unsafe_code,
    reason = "the only unsafe code of this crate: one system call a function"
)]
mod sys;

pub use dataplane::{Applied, Dataplane, DataplaneConfig, EndpointAddress, EndpointConfig, NetError};
pub use dns::Zone;
pub use overlay::{Overlay, Remote};
pub use plan::{Endpoint, Protocol, Wanted};
pub use pulse::Probe;
pub use steer::Steering;
pub use wire::{Overheard, Wire, inside, overhear};
pub use wireguard::{Encryption, Key};
