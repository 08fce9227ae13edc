//! Images on one host: store, unpack, load, import, build.
//!
//! It knows nothing of tasks or clusters, and gives out folders: an image's layers are overlay-ready folders, the top
//! one first. All calls block; async callers use a blocking thread.
#![forbid(unsafe_code)]

// What images are called and described by.
mod config;
mod reference;

// Bytes to folders.
mod compress;
mod unpack;

// Folders on disk.
mod store;

// Ways in.
mod build;
mod dockerfile;
mod load;

pub use build::{BuildError, BuildRequest};
pub use config::{Healthcheck, ImageConfig};
pub use load::LoadError;
pub use reference::{Reference, ReferenceError};
pub use store::{Image, ImageStore, ImageSummary, Removed, StoreError};
pub use unpack::UnpackError;
