//! Clusters are made and joined by who has the token, and left again.

use std::time::{Duration, Instant};

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until, within};

/// `node ls` names five nodes that are Ready ten seconds after `swarm init`, each joined by the line it printed.
/// The first is told where others reach it by the name of an interface.
pub(crate) fn five_hosts_join_by_the_printed_line(bed: &Bed) -> Outcome {
    let began = Instant::now();
    let text = bed.ok(1, "swarm init --advertise-addr eth0")?;
    let line = (text.lines().map(str::trim))
        .find_map(|l| l.strip_prefix("rswarm "))
        .ok_or("no line to join by")?
        .to_owned();
    for number in 2..=5 {
        contains(&bed.ok(number, &line)?, "joined a swarm as a worker")?;
    }
    until("five nodes are Ready", PATIENCE, || {
        let nodes = bed.nodes(1)?;
        Ok(is(nodes.values().filter(|n| n.status == "Ready").count(), 5))
    })?;
    within("five hosts joined", began.elapsed(), Duration::from_secs(10))?;
    equal("nodes", bed.ok(1, "node ls -q")?.lines().count(), 5)?;
    bed.load_images()?;
    // One that leaves is listed no more, and what it ran goes elsewhere.
    bed.ok(1, "service create -q --name web --replicas 5 web:v1")?;
    let tasks = bed.runs(1, "web", 5)?;
    let nodes: std::collections::BTreeSet<_> = tasks.iter().map(|t| t.node.clone()).collect();
    equal("hosts that run a task", nodes.len(), 5)?;
    bed.ok(5, "swarm leave")?;
    until("h5 is listed no more", PATIENCE, || {
        Ok(is(bed.nodes(1)?.contains_key("h5"), false))
    })?;
    until("its task runs elsewhere", PATIENCE, || {
        let tasks = bed.running(1, "web")?;
        Ok(is(
            (tasks.len(), tasks.iter().any(|t| t.node == "h5")),
            (5, false),
        ))
    })?;
    // Everybody leaves, and the kernel has nothing of them any more.
    for number in [4, 3, 2] {
        bed.ok(number, "swarm leave")?;
    }
    bed.refused(1, "swarm leave", "only manager")?;
    bed.ok(1, "swarm leave --force")?;
    until("nothing of the cluster is left", PATIENCE, || {
        let left = bed.hosts.left();
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })?;
    for host in bed.hosts.all() {
        equal("exit code of a daemon", host.stop(), Some(0))?;
    }
    Ok(())
}

/// Who has no good token stays outside, and is told why.
pub(crate) fn tokens_let_in_whom_they_should(bed: &Bed) -> Outcome {
    bed.ok(1, "swarm init")?;
    bed.ok(3, "swarm init")?;
    let peer = bed.host(1).peer();
    let token = |line: &str| Ok::<_, libtest_mimic::Failed>(bed.ok(1, line)?.trim().to_owned());
    let join = |token: &str| format!("swarm join --token {token} {peer}");
    let worker = token("swarm join-token -q worker")?;
    let parts: Vec<&str> = worker.split('-').collect();
    let [_, _, digest, secret] = parts[..] else {
        return crate::bed::fail(format!("the token is {worker}"));
    };
    let small = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    equal(
        "its form",
        (digest.len(), secret.len(), small(digest) && small(secret)),
        (50, 25, true),
    )?;

    bed.refused(2, &join("SWMTKN-1-abc"), "E_TOKEN_FORMAT")?;
    let last = if secret.ends_with('0') { "1" } else { "0" };
    let wrong = format!("SWMTKN-1-{digest}-{}{last}", &secret[..24]);
    bed.refused(2, &join(&wrong), "E_TOKEN_INVALID")?;
    let foreign = bed.ok(3, "swarm join-token -q worker")?;
    let said = bed.refused(2, &join(foreign.trim()), "E_CA_MISMATCH")?;
    contains(&said.err, "nothing was sent to it")?;
    equal("nodes of h1's cluster", bed.nodes(1)?.len(), 1)?;

    bed.ok(2, &join(&worker))?;
    let rotated = token("swarm join-token -q --rotate worker")?;
    bed.ok(3, "swarm leave --force")?;
    bed.refused(3, &join(&worker), "E_TOKEN_INVALID")?;
    bed.settled(1, 1)?;
    // For one host only: the second one, which is the same that left, is refused.
    let once = token("swarm join-token -q --uses 1 worker")?;
    bed.ok(3, &join(&once))?;
    bed.settled(1, 2)?;
    bed.ok(3, "swarm leave")?;
    bed.refused(3, &join(&once), "E_TOKEN_EXPIRED")?;
    let brief = token("swarm join-token -q --expires 1ms worker")?;
    bed.refused(3, &join(&brief), "E_TOKEN_EXPIRED")?;
    // Labels come in with a token that says so.
    let labelled = join(&rotated).replace("--token", "--label zone=a --token");
    bed.refused(3, &labelled, "E_ROLE_DENIED")?;
    let allowing = token("swarm join-token -q --allow-labels worker")?;
    bed.ok(3, &labelled.replace(&rotated, &allowing))?;
    bed.settled(1, 2)?;
    let zone = bed.ok(1, "node inspect h3 --format {{.Spec.Labels.zone}}")?;
    equal("its label", zone.trim(), "a")
}
