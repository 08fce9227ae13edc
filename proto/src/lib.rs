//! The wire: messages, services and the conversion to and from the model.
//!
//! It decides nothing: whether a message is well formed is all it knows.
#![forbid(unsafe_code)]

pub mod authz;
pub mod channel;
pub mod convert;
pub mod identity;
pub mod listener;
pub mod status;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files hold the comments"
)]
mod generated {
    pub mod roles {
        tonic::include_proto!("rswarm.roles");
    }
    pub mod ca {
        tonic::include_proto!("rswarm.ca");
    }
    pub mod raft {
        tonic::include_proto!("rswarm.raft");
    }
    pub mod types {
        tonic::include_proto!("rswarm.types");
    }
    pub mod control {
        tonic::include_proto!("rswarm.control");
    }
    pub mod dispatch {
        tonic::include_proto!("rswarm.dispatch");
    }
    pub mod host {
        tonic::include_proto!("rswarm.host");
    }
    pub mod images {
        tonic::include_proto!("rswarm.images");
    }
}
pub use generated::{ca, control, dispatch, host, images, raft, roles, types};
