//! Images on one host: store, unpack, load, import, build.
//!
//! It knows nothing of tasks or clusters, and gives out folders: an image's layers are overlay-ready folders, the top
//! one first. All calls block; async callers use a blocking thread.
#![forbid(unsafe_code)]

// What images are called and described by.
mod config;
mod reference;

// Bytes to folders.
mod blob;
mod compress;
mod unpack;

// Folders on disk.
mod store;

// To and from other hosts.
mod share;

// Ways in.
mod build;
mod dockerfile;
mod load;

pub use build::{BuildError, BuildRequest};
pub use config::{Healthcheck, ImageConfig};
pub use load::LoadError;
pub use reference::{Reference, ReferenceError};
pub use share::{Held, ImageOffer, OfferedLayer};
pub use store::{Image, ImageStore, ImageSummary, Removed, StoreError, id_of};
pub use unpack::UnpackError;
