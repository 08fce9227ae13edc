//! What a build understands, so that old and new ones can be in one cluster.

use std::fmt;

/// A number for what may be in the log and in messages: it grows by one with a release that writes what older ones
/// cannot read. A cluster writes at its own level until an operator raises it, which is only possible when every node's
/// build knows the next one; until then each host can go back to the build it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u32);

impl Level {
    /// The first one.
    pub const FIRST: Self = Self(1);
    /// From here on networks can be encrypted: an agent that does not know of it would send in the open.
    pub const ENCRYPTED: Self = Self(2);
    /// From here on networks can have IPv6: an agent that does not know of it would give its tasks none.
    pub const IPV6: Self = Self(2);
    /// From here on ports can speak the PROXY protocol: an agent that does not know of it would leave out who the client is.
    pub const PROXY: Self = Self(2);
    /// From here on there are what a rollout is asked beyond Docker's six knobs, revisions, and pauses: an older manager would lose them.
    pub const ROLLOUTS: Self = Self(3);
    /// From here on there are readiness, probes over the network and hooks: an agent that does not know of them would not ask.
    pub const HEALTH: Self = Self(3);
    /// From here on there are jobs and schedules: an older manager could not read them.
    pub const JOBS: Self = Self(3);
    /// From here on there are affinities, named resources, priorities and strategies: an older manager would leave them out.
    pub const PLACEMENT: Self = Self(3);
    /// From here on tasks leave a node once their successors run: an older manager would leave both in a slot.
    pub const MOVES: Self = Self(3);
    /// From here on services are scaled by what their tasks use: an older manager would lose the rule.
    pub const AUTOSCALE: Self = Self(3);
    /// From here on services start, change and go in an order: an older manager would lose it.
    pub const ORDER: Self = Self(3);
    /// What this build knows.
    pub const OURS: Self = Self(3);

    /// A level by its number; zero, which says nothing, counts as the first.
    pub const fn new(number: u32) -> Self {
        Self(if number == 0 { 1 } else { number })
    }

    /// Its number, from 1.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
