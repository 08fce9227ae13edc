//! Compose files to model specs: YAML with places, interpolation, schema, merge, conversion.
//!
//! It reads neither files nor the environment: both are given.
#![forbid(unsafe_code)]

// YAML with places, and what is wrong with it.
mod node;
mod problem;
pub use node::FILE_MAX;
pub use problem::{PROBLEMS_MAX, Problem};

// The steps, in order.
mod interpolate;
mod merge;
mod schema;
pub use interpolate::interpolate;

// To specs, and back to a file.
mod convert;
mod job;
mod order;
mod print;
pub use convert::{IMAGE_LABEL, Read, Surroundings};

// The whole way.
mod compose;
pub use compose::{Compose, FILES_MAX, Source, Vars, load};

// Short forms that flags share.
pub mod check;
pub mod grammar;
pub use order::parse_dependency;
