//! Hosts of one machine: network namespaces with daemons in them, and everything that can happen to them.
//!
//! The demo of a cluster and its tests use it. A daemon here is the real binary as an operator starts it; only its
//! network namespace is its own. Nothing but the kernel is needed, and nothing is left when [`Hosts`] is dropped.
#![forbid(unsafe_code)]

// The hosts, and what one of them can be told and made to suffer.
mod host;
mod hosts;

// A command and its deadline; what is left of hosts that are gone.
mod command;
mod remains;

pub use command::Said;
pub use host::Host;
pub use hosts::{Hosts, HostsError};
pub use net::{Overheard, inside, overhear};
pub use remains::Remains;
