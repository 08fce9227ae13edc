//! Old and new builds in one cluster: it is upgraded host by host, each can go back until it is said that none will, and
//! what is too old then is told so.

use std::path::{Path, PathBuf};

use hosts::Host;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until};

const SLEEPERS: &str = "service create -q --name web --replicas 3 web:v1 sleep 1000000";
/// Levels of the newer and of the older build. The same binary says it is either; `RSWARM_OLD_BINARY` names another for the
/// older.
const NEWER: [(&str, &str); 1] = [("RSWARM_LEVEL", "2")];
const OLDER: [(&str, &str); 1] = [("RSWARM_LEVEL", "1")];

/// Puts a host's daemon in the place of another build, as an operator upgrades a package and restarts its service.
fn install(host: &Host, newer: bool) -> Outcome {
    host.stop();
    boot(host, newer)?;
    Ok(host.answers()?)
}

fn boot(host: &Host, newer: bool) -> Outcome {
    let ours = Path::new(env!("CARGO_BIN_EXE_rswarm"));
    let old = std::env::var_os("RSWARM_OLD_BINARY").map(PathBuf::from);
    if newer {
        host.install(ours);
        host.boot_with(&NEWER)?;
    } else {
        host.install(old.as_deref().unwrap_or(ours));
        host.boot_with(&OLDER)?;
    }
    Ok(())
}

/// Every manager writes, every task is as it was, and nobody is Down.
fn works(bed: &Bed, step: &str, containers: &std::collections::BTreeMap<String, u64>) -> Outcome {
    bed.settled(2, 1)?;
    for number in 1..=2 {
        bed.ok(number, &format!("network create {step}-{number}"))?;
        bed.ok(number, &format!("service scale -q other={number}"))?;
        bed.runs(number, "other", usize::from(number))?;
    }
    equal(step, bed.all_containers("web")?, containers.clone())
}

/// A cluster is upgraded and downgraded host by host, then raised to what only the newer build knows.
pub(crate) fn old_and_new_builds(bed: &Bed) -> Outcome {
    let levels = || bed.ok(1, "info --format '{{.Level}} {{.LevelKnown}}'");
    let hosts = [bed.host(1), bed.host(2), bed.host(3)];
    for host in hosts {
        host.stop();
        boot(host, false)?;
    }
    for host in hosts {
        host.answers()?;
    }
    bed.form(2, 1)?;
    bed.ok(1, SLEEPERS)?;
    bed.ok(1, "service create -q --name other web:v1 sleep 1000000")?;
    bed.runs(1, "web", 3)?;
    let containers = bed.all_containers("web")?;
    for (number, host) in (1..).zip(hosts) {
        install(host, true)?;
        works(bed, &format!("upgraded{number}"), &containers)?;
        if number < 3 {
            bed.refused(1, "swarm update --level 2", "not know level 2")?;
        }
    }
    equal("levels", levels()?.trim(), "1 2")?;
    until("operators are told", PATIENCE, || {
        Ok(is(
            bed.types(1, "info")?
                .all()
                .contains("swarm update --level newest"),
            true,
        ))
    })?;
    for (number, host) in (1..).zip(hosts) {
        install(host, false)?;
        works(bed, &format!("downgraded{number}"), &containers)?;
    }
    for host in hosts {
        install(host, true)?;
    }
    bed.settled(2, 1)?;
    until("every node says what it knows", PATIENCE, || {
        Ok(is(bed.types(1, "info")?.all().contains("--level newest"), true))
    })?;
    let encrypted = "network create --opt encrypted secret";
    bed.refused(1, encrypted, "swarm update --level newest")?;
    let dual = "network create --ipv6 dual";
    bed.refused(1, dual, "swarm update --level newest")?;
    contains(&bed.ok(1, "swarm update --level newest")?, "level 2 now")?;
    bed.ok(1, encrypted)?;
    // Keys that were not written before are now.
    bed.ok(
        1,
        "service create -q --name dark --network secret --replicas 3 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "dark", 3)?;
    bed.ok(1, "service rm dark")?;
    bed.ok(1, dual)?;
    equal("levels", levels()?.trim(), "2 2")?;
    bed.refused(1, "swarm update --level 1", "no way back")?;
    too_old(bed, &containers)
}

/// Takes the log away but for what stands beside it, so that opening it fails; answers where it is and belongs.
fn hidden_segments(host: &Host) -> Result<Vec<(PathBuf, PathBuf)>, libtest_mimic::Failed> {
    let mut hidden = Vec::new();
    for entry in std::fs::read_dir(host.data().join("raft"))? {
        let segment = entry?.path();
        if segment.extension().is_some_and(|e| e == "seg") {
            let away = host.dir().join(segment.file_name().unwrap_or_default());
            std::fs::rename(&segment, &away)?;
            hidden.push((away, segment));
        }
    }
    equal("there is a log", hidden.is_empty(), false)?;
    Ok(hidden)
}

/// From here on an older build takes no part: not as a worker, not as a manager, not as a host that joins.
fn too_old(bed: &Bed, containers: &std::collections::BTreeMap<String, u64>) -> Outcome {
    let (manager, worker, stranger) = (bed.host(2), bed.host(3), bed.host(4));
    let told = |host: &Host| {
        Ok(is(
            host.whole_log()
                .contains("E_LEVEL: the cluster writes at level 2"),
            true,
        ))
    };
    install(worker, false)?;
    // A build from before there were levels says nothing of itself; it is told by the manager.
    until("the worker is told", PATIENCE, || told(worker))?;
    until("it is Down", PATIENCE, || {
        Ok(is(bed.nodes(1)?["h3"].status.as_str(), "Down"))
    })?;
    let its: Vec<_> = (bed.containers(3, "web")?.into_iter())
        .filter(|(name, _)| containers.contains_key(name))
        .collect();
    equal("what it runs goes on", its.len(), 1)?;
    if std::env::var_os("RSWARM_OLD_BINARY").is_none() {
        manager.stop();
        // What it cannot read is no damage to it: a log that were damaged it would put aside, and take anew from the other.
        let segments = hidden_segments(manager)?;
        boot(manager, false)?;
        until("the manager ends", PATIENCE, || Ok(is(manager.is_up(), false)))?;
        until("and says why", PATIENCE, || told(manager))?;
        equal(
            "a log that was put aside",
            manager.data().join("raft.damaged").exists(),
            false,
        )?;
        for (hidden, segment) in segments {
            std::fs::rename(hidden, segment)?;
        }
        // One of two managers is away: nothing can be written.
        bed.refused(1, "network create nowhere", "E_NO_QUORUM")?;
        install(manager, true)?;
    }
    let token = bed.ok(1, "swarm join-token -q worker")?;
    install(stranger, false)?;
    let line = format!("swarm join --token {} {}", token.trim(), bed.host(1).peer());
    bed.refused(4, &line, "E_LEVEL")?;
    install(worker, true)?;
    install(stranger, true)?;
    bed.join(4, token.trim())?;
    bed.settled(2, 2)
}
