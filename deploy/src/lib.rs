//! Compose files to model specs: interpolation, merge, conversion, diff.
//!
//! It reads neither files nor the environment: both are given.
#![forbid(unsafe_code)]

// Text to a tree with places.
mod interpolate;

// Short forms that flags share.
pub mod grammar;
