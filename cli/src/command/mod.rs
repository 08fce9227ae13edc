//! One file a noun.

pub(crate) mod check_flags;
pub(crate) mod container;
pub(crate) mod cp;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod job;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod revisions;
pub(crate) mod run;
pub(crate) mod service;
pub(crate) mod service_flags;
pub(crate) mod service_list;
pub(crate) mod stack;
pub(crate) mod stats;
pub(crate) mod swarm;
pub(crate) mod top;
pub(crate) mod unlock;
pub(crate) mod volume;
