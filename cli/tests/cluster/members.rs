//! Managers come and go: promoted, demoted, lost, replaced.

use std::time::Duration;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until, within};

/// Workers become managers and the other way, the leader too; what would leave no quorum is refused.
pub(crate) fn promote_and_demote(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 5 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    bed.ok(1, "node promote h4 h5")?;
    bed.settled(5, 0)?;
    // Each may be asked now, and the leader may go as well.
    bed.ok(5, "network create five")?;
    bed.ok(4, "node demote h1")?;
    bed.settled_as(2, &["h2", "h3", "h4", "h5"], 1)?;
    until("h1 has forgotten the state", PATIENCE, || {
        let said = bed.types(1, "service ls")?;
        Ok(if said.all().contains("not a cluster manager") {
            Ok(())
        } else {
            Err(said.all())
        })
    })?;
    bed.ok(4, "node promote h1")?;
    bed.settled(5, 0)?;
    bed.ok(1, "node demote h4 h5")?;
    bed.settled_as(1, &["h1", "h2", "h3"], 2)?;
    equal("containers", bed.all_containers("web")?, before)?;
    // One of three is lost: of the other two none may go, but the lost one may.
    let lost = bed.followers(3)?[0];
    lost.kill();
    let (leader, other) = (
        bed.leader()?,
        bed.followers(3)?.into_iter().find(|h| h.number != lost.number),
    );
    let other = other.ok_or("no other manager")?;
    until("it is known to be lost", PATIENCE, || {
        Ok(is(
            bed.nodes(leader.number)?[&lost.name].manager.as_str(),
            "Unreachable",
        ))
    })?;
    let said = bed.refused(
        leader.number,
        &format!("node demote {}", other.name),
        "is not demoted",
    )?;
    contains(&said.err, "quorum")?;
    bed.ok(leader.number, &format!("node demote {}", lost.name))?;
    until("two managers are left", PATIENCE, || {
        let nodes = bed.nodes(leader.number)?;
        Ok(is(nodes.values().filter(|n| !n.manager.is_empty()).count(), 2))
    })?;
    let warned = bed.types(leader.number, "info")?;
    contains(&warned.all(), "2 managers")?;
    bed.ok(leader.number, &format!("node demote {}", other.name))?;
    until("one manager is left", PATIENCE, || {
        let nodes = bed.nodes(leader.number)?;
        Ok(is(nodes.values().filter(|n| !n.manager.is_empty()).count(), 1))
    })?;
    bed.refused(
        leader.number,
        &format!("node demote {}", leader.name),
        "last manager",
    )?;
    lost.start()?;
    until("five nodes are Ready", PATIENCE, || {
        let nodes = bed.nodes(leader.number)?;
        Ok(is(nodes.values().filter(|n| n.status == "Ready").count(), 5))
    })?;
    Ok(())
}

/// Of two managers one is lost: it is said at once, and tasks go on.
pub(crate) fn one_of_two_managers_lost(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 3 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 3)?;
    let before = bed.all_containers("web")?;
    let (leader, other) = (bed.leader()?, bed.followers(2)?[0]);
    other.kill();
    for line in ["network create nowhere", "service ls", "node promote h3"] {
        let said = bed.refused(leader.number, line, "E_NO_QUORUM")?;
        within(
            &format!("one of two lost: `{line}` was refused after"),
            said.took,
            Duration::from_secs(3),
        )?;
    }
    // Longer than a silent node is waited for: nobody was silent, the leader did not listen.
    std::thread::sleep(Duration::from_secs(6));
    other.start()?;
    bed.settled(2, 1)?;
    bed.ok(other.number, "network create again")?;
    equal("containers", bed.all_containers("web")?, before)
}

/// A manager's disk is replaced and the host joins again, before anybody missed it: it takes its own place, and nobody
/// waits for a ghost.
pub(crate) fn wiped_manager_joins_again(bed: &Bed) -> Outcome {
    let token = bed.ok(1, "swarm join-token -q manager")?;
    let lost = bed.followers(3)?[0];
    let asked = bed.leader()?;
    lost.kill();
    lost.wipe()?;
    lost.start()?;
    let nodes = || {
        bed.ok(
            asked.number,
            "node ls --format '{{.Hostname}} {{.Status}} {{.ManagerStatus}}'",
        )
    };
    bed.ok(
        lost.number,
        &format!("swarm join --token {} {}", token.trim(), asked.peer()),
    )?;
    let voters = |text: &str| {
        let votes =
            |l: &&str| l.ends_with("Leader") || l.ends_with("Reachable") || l.ends_with("Unreachable");
        text.lines().filter(votes).count()
    };
    until("three managers vote, all of them there", PATIENCE, || {
        let text = nodes()?;
        equal("voters at any time are three at most", voters(&text) <= 3, true)?;
        let there = text
            .lines()
            .filter(|l| l.ends_with("Leader") || l.ends_with("Reachable"))
            .count();
        Ok(if there == 3 { Ok(()) } else { Err(text) })
    })?;
    // Any one of the three can be lost now.
    let leader = bed.leader()?;
    leader.kill();
    let other = bed.up()?.number;
    bed.ok(other, "network create after")?;
    leader.start()?;
    bed.settled(3, 0)
}

/// A manager was away while a worker became a manager and the leader: it follows that one all the same.
pub(crate) fn unknown_leader_is_followed(bed: &Bed) -> Outcome {
    bed.host(3).kill();
    bed.ok(1, "node promote h4 h5")?;
    bed.settled_as(1, &["h1", "h2", "h4", "h5"], 0)?;
    // The lead goes round until one has it that h3 knows as a worker.
    until("h4 or h5 leads", PATIENCE, || {
        let leader = bed.leader()?;
        if leader.number >= 4 {
            return Ok(Ok(()));
        }
        leader.kill();
        until("another one leads", PATIENCE, || {
            let found = bed.leader_by(4).ok().flatten();
            Ok(is(found.is_some_and(|l| l.number != leader.number), true))
        })?;
        leader.start()?;
        bed.settled_as(4, &["h1", "h2", "h4", "h5"], 0)?;
        Ok(Err(leader.name.clone()))
    })?;
    bed.ok(4, "network create meanwhile")?;
    bed.host(3).start()?;
    bed.settled_as(4, &["h1", "h2", "h3", "h4", "h5"], 0)?;
    until("h3 has what it missed", PATIENCE, || {
        let said = bed.types(3, "network ls --format {{.Name}}")?;
        Ok(if said.out.contains("meanwhile") {
            Ok(())
        } else {
            Err(said.all())
        })
    })?;
    Ok(())
}
