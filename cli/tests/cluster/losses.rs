//! Hosts are lost, come back, are removed, or all start anew.

use std::time::{Duration, Instant};

use crate::bed::{Bed, Outcome, PATIENCE, equal, is, until, within};

const DOWN: Duration = Duration::from_secs(6);
const ELSEWHERE: Duration = Duration::from_secs(8);

/// A worker is cut off: its tasks run elsewhere, and those it still has end when it is back.
pub(crate) fn worker_lost(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 3 web:v1 sleep 1000000",
    )?;
    let before = bed.runs(1, "web", 3)?;
    let old = bed.containers(3, "web")?;
    equal("tasks on h3", old.len(), 1)?;
    bed.hosts.isolate(&[bed.host(3)])?;
    let began = Instant::now();
    until("h3 is Down", PATIENCE, || {
        Ok(is(bed.nodes(1)?["h3"].status.as_str(), "Down"))
    })?;
    within("worker lost: Down after", began.elapsed(), DOWN)?;
    until("three tasks run elsewhere", PATIENCE, || {
        let tasks = bed.running(1, "web")?;
        Ok(is(tasks.iter().filter(|t| t.node != "h3").count(), 3))
    })?;
    within(
        "worker lost: its task ran elsewhere after",
        began.elapsed(),
        ELSEWHERE,
    )?;
    // Nobody can stop what runs there, nor ought it to stop by itself.
    equal("containers of h3", bed.containers(3, "web")?, old.clone())?;
    bed.hosts.heal()?;
    until("the old task is stopped", PATIENCE, || {
        Ok(is(bed.containers(3, "web")?.len(), 0))
    })?;
    within("healed: the old task had ended after", began.elapsed(), PATIENCE)?;
    bed.settled(1, 2)?;
    let after = bed.runs(1, "web", 3)?;
    let kept = |t: &&crate::bed::Task| t.node != "h3";
    let stayed = before.iter().filter(kept).filter(|t| after.contains(t)).count();
    equal(
        "tasks of hosts that were not lost",
        stayed,
        before.iter().filter(kept).count(),
    )
}

/// A worker's daemon dies for a moment, and a worker loses sight of all managers for a moment: nobody is Down, and
/// nothing is restarted.
pub(crate) fn short_losses_are_no_losses(bed: &Bed) -> Outcome {
    // Long enough for it to be noticed and mended on a busy machine.
    bed.ok(1, "swarm update --dispatcher-heartbeat 4s")?;
    bed.ok(
        1,
        "service create -q --name web --replicas 4 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 4)?;
    let before = bed.all_containers("web")?;
    let registered = || {
        bed.host(2)
            .whole_log()
            .matches("registered with the manager")
            .count()
    };
    let (h2, known) = (bed.host(2), registered());
    h2.kill();
    h2.start()?;
    until("h2 is back", PATIENCE, || Ok(is(registered() > known, true)))?;
    bed.hosts.isolate(&[h2])?;
    until("h2 misses its manager", PATIENCE, || {
        equal("h2", bed.nodes(1)?["h2"].status.as_str(), "Ready")?;
        Ok(is(
            h2.whole_log().contains("was not answered within its period"),
            true,
        ))
    })?;
    let known = registered();
    bed.hosts.heal()?;
    until("h2 has found it again", PATIENCE, || {
        equal("h2", bed.nodes(1)?["h2"].status.as_str(), "Ready")?;
        Ok(is(registered() > known, true))
    })?;
    equal("containers", bed.all_containers("web")?, before)
}

/// `node rm` of a node that is up is refused; forced, it holds within a second.
pub(crate) fn node_removed(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 3 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 3)?;
    bed.refused(1, "node rm h3", "is not down")?;
    bed.refused(1, "node rm -f h1", "is a cluster manager")?;
    bed.ok(1, "node rm -f h3")?;
    let began = Instant::now();
    until("h3 is told", PATIENCE, || {
        Ok(is(bed.host(3).whole_log().contains("E_NODE_REMOVED"), true))
    })?;
    within(
        "node rm -f: it was refused after",
        began.elapsed(),
        Duration::from_secs(1),
    )?;
    equal("h3 is listed", bed.nodes(1)?.contains_key("h3"), false)?;
    until("its task runs elsewhere", PATIENCE, || {
        let tasks = bed.running(1, "web")?;
        Ok(is(
            (tasks.len(), tasks.iter().any(|t| t.node == "h3")),
            (3, false),
        ))
    })?;
    // It leaves and comes back as another node; what it ran is gone.
    bed.ok(3, "swarm leave")?;
    until("what it ran is gone", PATIENCE, || {
        Ok(is(bed.containers(3, "")?.len(), 0))
    })?;
    let token = bed.ok(1, "swarm join-token -q worker")?;
    bed.join(3, token.trim())?;
    bed.settled(1, 2)?;
    // One that is down goes without force.
    bed.host(2).kill();
    until("h2 is Down", PATIENCE, || {
        Ok(is(bed.nodes(1)?["h2"].status.as_str(), "Down"))
    })?;
    bed.ok(1, "node rm h2")?;
    equal("nodes", bed.nodes(1)?.len(), 2)
}

/// Every daemon is killed at once and started again: the cluster is as it was.
pub(crate) fn every_daemon_restarts(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 5 web:v1 sleep 1000000",
    )?;
    let tasks = bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    for host in bed.hosts.all() {
        host.kill();
    }
    let began = Instant::now();
    for host in bed.hosts.all() {
        host.boot()?;
    }
    for host in bed.hosts.all() {
        host.answers()?;
    }
    bed.ok(2, "network create after")?;
    within(
        "everything restarted: a write after",
        began.elapsed(),
        Duration::from_secs(10),
    )?;
    bed.settled(3, 2)?;
    equal("containers", bed.all_containers("web")?, before)?;
    equal("tasks", bed.running(3, "web")?, tasks)
}

/// With no manager at all, what runs goes on: containers, names, virtual addresses.
pub(crate) fn no_manager_at_all(bed: &Bed) -> Outcome {
    bed.ok(1, "network create shop")?;
    bed.ok(
        1,
        "service create -q --name web --replicas 2 --network shop --constraint node.hostname==h3 web:v1",
    )?;
    bed.ok(
        1,
        "service create -q --name client --network shop --constraint node.hostname==h3 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 2)?;
    bed.runs(1, "client", 1)?;
    let before = bed.containers(3, "")?;
    let ask = |name: &str| {
        bed.ok(
            3,
            &format!("exec client.1 wget -q -O - http://{name}:8080/index.html"),
        )
    };
    equal("the answer", ask("web")?.as_str(), "hello\n")?;
    let text = bed.ok(3, "exec client.1 nslookup web")?;
    let vip = (text.lines().filter_map(|l| l.strip_prefix("Address: ")))
        .next_back()
        .ok_or_else(|| format!("no address of web in:\n{text}"))?
        .to_owned();
    bed.host(1).kill();
    bed.host(2).kill();
    for _ in 0..10 {
        equal("the answer without managers", ask("web")?.as_str(), "hello\n")?;
    }
    // The worker's daemon starts anew meanwhile, adopts what runs, and knows the names as they were told last.
    bed.host(3).kill();
    equal("processes", bed.hosts.left().processes.len() > 2, true)?;
    equal("containers", bed.hosts.left().cgroups.is_empty(), false)?;
    bed.host(3).start()?;
    for name in [vip.as_str(), "web", "tasks.web", "web.1"] {
        equal(
            &format!("the answer of {name} after a restart"),
            ask(name)?.as_str(),
            "hello\n",
        )?;
    }
    equal("containers", bed.containers(3, "")?, before.clone())?;
    bed.refused(3, "service ls", "not a cluster manager")?;
    bed.host(1).start()?;
    bed.host(2).start()?;
    bed.settled(2, 1)?;
    equal("containers", bed.containers(3, "")?, before)?;
    equal(
        "tasks",
        (bed.running(1, "web")?.len(), bed.tasks(1, "web")?.len()),
        (2, 2),
    )
}
