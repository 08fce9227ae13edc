//! How long a rolling update takes where nothing makes it wait: what rswarm itself costs, task by task.
//!
//! `cargo bench --bench update` prints one JSON object at the end; each figure is the median of rounds. Needs root. Beside Docker the
//! same is measured by `benches/beside_docker.sh` (`b3_update.sh`).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench stops where something is not as it should be"
)]

#[path = "../tests/cluster/bed.rs"]
#[allow(dead_code, reason = "scenarios have more")]
mod bed;

use std::time::Instant;

use bed::Bed;

const REPLICAS: usize = 20;
const ROUNDS: usize = 5;
/// Stops at once, as its process asks for nothing more.
const WEB: &str = "service create -q --name web --update-delay 0s --update-monitor 0s --stop-signal KILL web:v1 sleep 100000";

fn main() {
    // What `cargo test --benches` does is not wanted here.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let bed = Bed::hosts(1).unwrap();
    bed.form(1, 0).map_err(|e| bed::text_of(&e)).unwrap();
    let ok = |line: &str| bed.ok(1, line).map_err(|e| bed::text_of(&e)).unwrap();
    ok(WEB);
    ok(&format!("service scale web={REPLICAS}"));
    let mut version = 0;
    let mut update = |flags: &str| {
        let mut took: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                version += 1;
                let began = Instant::now();
                ok(&format!("service update -q {flags} --env-add V={version} web"));
                began.elapsed().as_secs_f64()
            })
            .collect();
        took.sort_by(f64::total_cmp);
        println!("{flags}: {took:.2?} s");
        took[ROUNDS / 2]
    };
    let one = update("--update-parallelism 1 --update-order stop-first");
    let five = update("--update-parallelism 5 --update-order stop-first");
    let first = update("--update-parallelism 1 --update-order start-first");
    // Of the same tasks, all at once: what is not waiting for one another.
    let all = update("--update-parallelism 0 --update-order stop-first");
    println!(
        "{}",
        serde_json::json!({
            "update20_par1_s": one,
            "update20_par5_s": five,
            "update20_par1_start_first_s": first,
            "update20_all_s": all,
        })
    );
    bed.end().map_err(|e| bed::text_of(&e)).unwrap();
}
