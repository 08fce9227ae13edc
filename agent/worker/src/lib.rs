//! What an agent does: session, tasks, runtime and network calls.
//!
//! It keeps no truth of its own: which tasks there are the manager says, how they stand the runtime's folders say. So a
//! restarted agent adopts what runs by looking. What a manager said last is in a file, for as long as there is none.
#![forbid(unsafe_code)]

// Talking with a manager.
mod contact;
mod heartbeat;
mod identity;
mod inventory;
mod kept;
mod link;
mod report;
mod session;
mod usage;

// Images from and for other nodes.
mod fetch;
mod images;
mod peers;
mod vouch;

// Carrying tasks out.
mod devices;
mod network;
mod probe;
mod tasks;
mod translate;
mod volumes;

// Answering operators.
mod host;
mod streams;

// Wiring.
mod agent;

pub use agent::{Agent, AgentConfig, AgentError};
pub use devices::check_devices;
pub use host::HostService;
pub use images::ImagesService;
pub use net::{Encryption, Steering};
pub use peers::Peers;
