//! Tasks leave nodes, and clients do not notice.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until};
use crate::rolling;

/// Replicas of the service that is asked.
const REPLICAS: usize = 4;

/// A drain, a label that goes and a rebalance under requests from everywhere: none fails, and never do fewer tasks run than are wanted.
pub(crate) fn tasks_leave_unnoticed(bed: &Bed) -> Outcome {
    let clients = rolling::begin(bed, "")?;
    let began = Instant::now();
    never_fewer(bed, || {
        bed.ok(1, "node drain h2 --wait --timeout 2m")?;
        equal("h2's containers at its end", bed.containers(2, "")?.len(), 0)
    })?;
    let row = bed.ok(1, "node ls --filter name=h2")?;
    equal("it is empty", row.contains("left)"), false)?;

    bed.ok(1, "node update --availability active h2")?;
    never_fewer(bed, || {
        let moves = bed.ok(1, "service rebalance web")?;
        equal("floor(4 / 3) move", moves.matches(" leaves h").count(), 1)?;
        until("one is on h2", PATIENCE, || {
            let tasks = bed.running(1, "web")?;
            Ok(is((on(&tasks, "h2"), tasks.len()), (1, REPLICAS)))
        })
        .map(drop)
    })?;
    let again = bed.ok(1, "service rebalance web")?;
    equal("the second moves none", again.contains(" leaves "), false)?;

    for host in ["h1", "h2", "h3"] {
        bed.ok(1, &format!("node update --label-add disk=ssd {host}"))?;
    }
    bed.ok(1, "service update -q --constraint-add node.labels.disk==ssd web")?;
    bed.runs(1, "web", REPLICAS)?;
    never_fewer(bed, || {
        bed.ok(1, "node update --label-rm disk h3")?;
        until("none is on h3", PATIENCE, || {
            let tasks = bed.running(1, "web")?;
            Ok(is((on(&tasks, "h3"), tasks.len()), (0, REPLICAS)))
        })
        .map(drop)
    })?;
    rolling::none_failed(clients, began.elapsed())
}

/// What no other node can take serves on, says so, and is stopped at the deadline.
pub(crate) fn what_fits_nowhere_else_waits(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q -d --name stuck --replicas 3 --replicas-max-per-node 1 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "stuck", 3)?;
    for (line, why) in [
        ("node drain h2 --deadline 10ms", "is not between 1s and"),
        ("node drain h2 --order up", "there is no order up"),
        (
            "node drain h2 --order stop-first --deadline 5s",
            "stop-first waits for nothing",
        ),
    ] {
        bed.refused(1, line, why)?;
    }
    let waited = bed.types(1, "node drain h2 --wait --timeout 2s")?;
    equal("a wait that is too long", waited.code, Some(4))?;
    contains(&waited.all(), "h2: 1 task (stuck 1) left")?;
    equal("it serves on", bed.running(1, "stuck")?.len(), 3)?;
    contains(&bed.ok(1, "node ls")?, "Drain (1 task left)")?;
    contains(&bed.ok(1, "node inspect h2")?, "\"stuck\": 1")?;
    contains(
        &bed.ok(1, "service ps --no-trunc stuck")?,
        "max replicas per node",
    )?;

    let began = Instant::now();
    bed.ok(1, "node drain h2 --wait --deadline 5s")?;
    let took = began.elapsed();
    println!("    stopped after {took:.1?}");
    let (soonest, latest) = (Duration::from_secs(5), Duration::from_secs(25));
    equal("after the deadline", (soonest..latest).contains(&took), true)?;
    equal("two are left", bed.running(1, "stuck")?.len(), 2)?;

    bed.ok(1, "node update --availability active h2")?;
    bed.runs(1, "stuck", 3)?;
    bed.ok(1, "node drain h2 --wait --order stop-first --timeout 1m")?;
    equal("stopped at once", bed.containers(2, "stuck")?.len(), 0)
}

fn on(tasks: &[crate::bed::Task], host: &str) -> usize {
    tasks.iter().filter(|t| t.node == host).count()
}

/// Looks all the while how many tasks run.
fn never_fewer(bed: &Bed, does: impl FnOnce() -> Outcome + Send) -> Outcome {
    let mut fewest = REPLICAS;
    let done = std::thread::scope(|scope| -> Result<Outcome, Failed> {
        let doing = scope.spawn(does);
        while !doing.is_finished() {
            fewest = fewest.min(bed.running(1, "web")?.len());
        }
        Ok(doing.join().unwrap_or_else(|_| fail("it panicked")))
    })?;
    done?;
    equal("fewest tasks that ran", fewest, REPLICAS)
}
