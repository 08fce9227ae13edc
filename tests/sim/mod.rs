//! The whole cluster on one thread and virtual time: everything follows from the seed.

pub mod cluster;
pub mod faults;
pub mod heal;
pub mod host;
pub mod lead;
pub mod log;
pub mod manager;
pub mod rng;
pub mod script;
pub mod session;
pub mod workload;

use std::collections::BTreeMap;

/// What happened in a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How often each kind of thing happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Hash over every event: the same seed gives the same.
    pub trace: u64,
    /// The last events, oldest first.
    pub last: Vec<String>,
    /// Why the run failed, if it did.
    pub problem: Option<String>,
}

/// A bug that is put in on purpose: the invariants have to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The dispatcher takes reports of sessions that have ended.
    NoSessionCheck,
    /// The leader keeps which slots of a rollout failed in memory only.
    CountersInRam,
    /// An agent that starts ends the containers it finds.
    KillsOnStart,
    /// The leader measures heartbeats by its wall clock.
    WallClock,
    /// A node keeps secrets after the last task that needed them.
    KeptSecrets,
    /// A new leader gives nodes no time to register again.
    NoGrace,
    /// A task with `stop_after` is replaced as soon as its node is down.
    EarlyReplacement,
    /// A new leader gives tasks to nodes that it has not heard of yet.
    TrustsUnheard,
    /// A task that is to stop waits for nobody.
    StopsAtOnce,
    /// The allocator gives an address again as soon as its task is told to stop.
    FreesEarly,
    /// Scaling forgets the rollout under way, as in Docker (trap D4).
    ScaleResumes,
    /// Scaling takes the place of the spec to go back to, as in Docker (trap D5).
    ScaleOverwrites,
    /// The last piece of a snapshot does not reach the manager that is given it.
    ShortSnapshot,
    /// A node is not told that a task was forgotten.
    KeepsForgotten,
    /// A node is drained as in Docker: its tasks are stopped at once, whatever was asked.
    DrainStopsFirst,
}

impl Plant {
    /// Every one.
    pub const ALL: [Self; 15] = [
        Self::NoSessionCheck,
        Self::CountersInRam,
        Self::KillsOnStart,
        Self::WallClock,
        Self::KeptSecrets,
        Self::NoGrace,
        Self::EarlyReplacement,
        Self::TrustsUnheard,
        Self::StopsAtOnce,
        Self::FreesEarly,
        Self::ScaleResumes,
        Self::ScaleOverwrites,
        Self::ShortSnapshot,
        Self::KeepsForgotten,
        Self::DrainStopsFirst,
    ];

    /// The properties that are about it.
    pub const fn found_by(self) -> &'static [&'static str] {
        match self {
            Self::NoSessionCheck => &["I39"],
            Self::CountersInRam => &["I35"],
            Self::KillsOnStart => &["I41"],
            Self::WallClock | Self::NoGrace => &["I42"],
            // What the node was told and what it should know differ as well.
            Self::KeptSecrets => &["I43", "I10"],
            Self::EarlyReplacement => &["I21b"],
            Self::TrustsUnheard => &["I26"],
            Self::StopsAtOnce => &["I33"],
            Self::FreesEarly => &["I28"],
            Self::ScaleResumes => &["(D4): "],
            Self::ScaleOverwrites => &["(D5): "],
            Self::ShortSnapshot => &["applied the same log to another state", "is lost"],
            Self::KeepsForgotten => &["I10", "I40"],
            Self::DrainStopsFirst => &["(D18): "],
        }
    }
}

/// Events with faults and work before everything is healed.
const STEPS: u32 = 180;
/// One seed in so many has healthy services, and only such faults as must not touch a task.
const QUIET_EVERY: u64 = 8;

/// Runs one seed to its end.
pub fn run(seed: u64) -> Report {
    run_with(seed, None)
}

/// Runs one seed with a bug in it.
pub fn run_with(seed: u64, plant: Option<Plant>) -> Report {
    let mut cluster = cluster::Cluster::new(seed);
    cluster.plant = plant;
    cluster.quiet = seed % QUIET_EVERY == QUIET_EVERY - 1;
    let outcome = (|| {
        cluster.begin()?;
        for _ in 0..STEPS {
            cluster.step()?;
        }
        cluster.heal()
    })();
    Report {
        problem: outcome.err(),
        trace: cluster.trace,
        last: cluster.last.iter().cloned().collect(),
        counts: cluster.counts,
    }
}
