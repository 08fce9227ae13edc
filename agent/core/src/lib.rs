//! What an agent decides: the next step of each task, from what is wanted and what was seen.
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

// What the manager wants, and whether there is one.
pub mod alone;
pub mod assignments;
pub mod beats;
pub mod contact;

// One task at a time.
pub mod drain;
pub mod fetch;
pub mod health;
pub mod hooks;
pub mod probe;
pub mod readiness;
pub mod step;

// All of them together.
pub mod net;
pub mod outbox;
pub mod pulse;
pub mod usage;

pub use step::{LocalTask, Seen, Step, is_unready, keeps_files, next_step, state_of};
