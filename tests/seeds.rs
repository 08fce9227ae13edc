//! Many seeds of the simulation: `SEEDS=n` runs the first n, `SEED=n` runs one and prints its end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tests::sim::{self, Report};

/// Seeds without `SEEDS`.
const SEEDS: u64 = 1_000;
/// Seeds run twice to compare their traces.
const TWICE: u64 = 20;

/// What has to happen at least once in a full run, else the simulation tests less than it says.
const MUST_HAPPEN: &[&str] = &[
    "answers lost",
    "clock leaps of hosts",
    "clock leaps of managers",
    "completed",
    "daemon restarts",
    "followers that died",
    "hosts cut off",
    "hosts lost power",
    "hosts not heard",
    "hosts paused",
    "hosts paused shortly",
    "hosts that do not hear",
    "leader changes",
    "leaders in a minority",
    "leaders that died",
    "leaders that moved",
    "manager restarts",
    "node losses",
    "node returns",
    "nodes activated",
    "nodes drained",
    "nodes lost together",
    "paused",
    "power failures",
    "proposals doubled",
    "proposals lost",
    "proposals refused",
    "reports of old sessions",
    "requests refused",
    "requests without a leader",
    "rollback_completed",
    "rollback_paused",
    "rollback_started",
    "rollbacks asked",
    "scales",
    "services created",
    "services removed",
    "services updated",
    "silences told",
    "snapshots installed",
    "stacks deployed",
    "stacks removed",
    "stacks with IPv6 deployed",
    "stacks with an IPv6 address deployed",
    "stale proposals",
    "tasks stopped by their cut off hosts",
    "updates of healthy services",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn fail(seed: u64, report: &Report) -> String {
    format!(
        "seed {seed} (SEED={seed} runs it alone):\n  {}\n{}\n",
        report.last.join("\n  "),
        report.problem.as_deref().unwrap_or("ok")
    )
}

#[test]
fn every_seed_keeps_the_invariants_and_converges() {
    if let Some(seed) = number("SEED") {
        let report = sim::run(seed);
        println!("{}", fail(seed, &report));
        assert!(report.problem.is_none(), "seed {seed} failed");
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let (next, counts) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, u64>::new()));
    let failed = Mutex::new(Vec::new());
    // Each simulation is one thread; seeds share nothing.
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let report = sim::run(seed);
                    let mut all = counts.lock().expect("no thread panicked");
                    report
                        .counts
                        .iter()
                        .for_each(|(kind, n)| *all.entry(kind).or_default() += n);
                    if report.problem.is_some() {
                        failed.lock().expect("no thread panicked").push((seed, report));
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().expect("no thread panicked");
    println!("{seeds} seeds: {counts:#?}");
    let failed = failed.into_inner().expect("no thread panicked");
    for (seed, report) in &failed {
        println!(
            "seed {seed}: {}",
            report
                .problem
                .as_deref()
                .unwrap_or_default()
                .chars()
                .take(600)
                .collect::<String>()
        );
    }
    if let Some((seed, report)) = failed.first() {
        panic!(
            "{} of {seeds} seeds failed; {}",
            failed.len(),
            fail(*seed, report)
        );
    }
    if seeds >= SEEDS {
        for kind in MUST_HAPPEN {
            assert!(
                counts.contains_key(kind),
                "{kind}: never happened in {seeds} seeds"
            );
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..TWICE {
        assert_eq!(sim::run(seed).trace, sim::run(seed).trace, "seed {seed}");
    }
}
