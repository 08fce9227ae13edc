//! Compose files to model specs: interpolation, merge, conversion, diff.
//!
//! It reads neither files nor the environment: both are given.
#![forbid(unsafe_code)]

// Variables in texts.
mod interpolate;
pub use interpolate::interpolate;

// Short forms that flags share.
pub mod grammar;
