//! The nouns of rswarm: ids, units, specs, objects and the ladder of task states.
//!
//! Both cores, the wire and the command line speak in these types. Nothing here reads a clock, opens a file, spawns
//! or logs, and no type here knows how it looks on the wire or in a file.
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

// What things are called and measured in.
pub mod ids;
pub mod level;
pub mod time;
pub mod units;

// What the user asked for; never edited by us.
pub mod spec;

// What the cluster remembers: spec + status + version.
pub mod job;
pub mod object;
pub mod task_state;

// What one node is told.
pub mod assignment;

pub use ids::*;
pub use level::Level;
pub use time::Timestamp;
pub use units::{Bytes, NanoCpus};
