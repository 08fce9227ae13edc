//! How a container is asked how it is.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Longest path of an HTTP probe, in bytes.
pub const PROBE_PATH_MAX: usize = 2048;

/// How to see whether a container is healthy, or ready. Zero durations and retries mean the defaults: for health Docker's,
/// which are given here, for readiness those in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`; empty: `net`, or the image's.
    pub test: Vec<String>,
    /// What the node asks over the container's network instead of running a command in it.
    pub net: Option<NetProbe>,
    /// Time between probes; zero: 30 s (5 s).
    pub interval: Duration,
    /// Longest time of one probe; zero: 30 s (5 s).
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy, or not ready; zero: 3.
    pub retries: u32,
    /// Time from start in which failures do not count; zero: none. Readiness has none: before the first success a task is
    /// not ready anyway.
    pub start_period: Duration,
    /// Time between probes in the start period; zero: 5 s. (Until it is ready for the first time; zero: 1 s.)
    pub start_interval: Duration,
}

/// A probe over the network, which needs no program in the image. It is sent in the container's network namespace to the
/// task's own first address, as what listens on 127.0.0.1 alone serves nobody; to 127.0.0.1 where it has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetProbe {
    /// A GET succeeds when the status of the answer is one of these. Redirections are not followed.
    Http {
        /// Port, not 0.
        port: u16,
        /// Path with query, which begins with `/`; at most [`PROBE_PATH_MAX`] bytes.
        path: String,
        /// Statuses that are well, from 100 to 599.
        status: RangeInclusive<u16>,
    },
    /// A connection is accepted.
    Tcp {
        /// Port, not 0.
        port: u16,
    },
}

impl NetProbe {
    /// Statuses that are well unless something else is said, as for Kubernetes.
    pub const STATUS: RangeInclusive<u16> = 200..=399;
}

impl Healthcheck {
    /// Whether it says that there is nothing to check.
    pub fn is_none(&self) -> bool {
        self.test.first().is_some_and(|t| t == "NONE")
    }

    /// Whether it says what to ask, and not only when.
    pub fn asks(&self) -> bool {
        self.net.is_some() || (!self.is_none() && self.test.len() > 1)
    }
}
