//! The whole cluster on one thread and virtual time: everything follows from the seed.

pub mod cluster;
pub mod faults;
pub mod host;
pub mod log;
pub mod rng;
pub mod script;
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

/// Events with faults and work before everything is healed.
const STEPS: u32 = 120;

/// Runs one seed to its end.
pub fn run(seed: u64) -> Report {
    let mut cluster = cluster::Cluster::new(seed);
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
