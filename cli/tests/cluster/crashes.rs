//! Daemons that die at a chosen place: whatever they left, the next start and a repeated command reach the same result.

use std::time::{Duration, Instant};

use hosts::Host;

use crate::bed::{Bed, Outcome, PATIENCE, equal, fail, is, text_of, until, within};

/// Until two managers have left, one after the other.
const LEFT: Duration = Duration::from_secs(6);
/// Kills the daemon when it comes there for the first time.
const FIRST: &str = "return";

/// Puts a host's daemon to work that dies at a place.
fn arm(host: &Host, place: &str) -> Outcome {
    host.stop();
    host.boot_with(&[("FAILPOINTS", place)])?;
    // It may die before it answers.
    match host.answers() {
        Err(_) if !host.died() => fail(format!("{place}: the daemon does not start")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Starts every daemon again that died.
fn revive(bed: &Bed) -> Outcome {
    for host in bed.hosts.all().iter().filter(|h| h.died()) {
        host.start()?;
    }
    Ok(())
}

/// Types a line until it has succeeded, or was carried out already by the try before, as the words `done` say; starts
/// daemons again that die of it.
fn gets_through(bed: &Bed, number: u8, line: &str, done: Option<&str>) -> Outcome {
    until(&format!("`rswarm {line}` gets through"), PATIENCE, || {
        revive(bed)?;
        let said = bed.types(number, line)?;
        let text = said.all();
        Ok(if said.ok() || done.is_some_and(|done| text.contains(done)) {
            Ok(())
        } else {
            Err(text)
        })
    })?;
    Ok(())
}

/// Waits until h2 runs so many containers of the service, and no others of it are left anywhere.
fn has(bed: &Bed, what: &str, count: usize) -> Outcome {
    until(what, PATIENCE, || {
        revive(bed)?;
        let all = match bed.all_containers("c.") {
            Ok(all) => all,
            // Its daemon died this very moment.
            Err(not_yet) => return Ok(Err(text_of(&not_yet))),
        };
        Ok(is(all.len(), count).map_err(|e| format!("{e}: {all:?}")))
    })?;
    Ok(())
}

/// Tasks are made, changed and removed while a host's daemon dies at a place.
fn tasks_come_and_go(bed: &Bed, host: &Host, place: &str) -> Outcome {
    arm(host, place)?;
    let create = "service create -q --detach --name c --replicas 2 --constraint node.hostname==h2 web:v1 sleep 1000000";
    gets_through(bed, 1, create, Some("is taken by another"))?;
    has(bed, "two run", 2)?;
    gets_through(bed, 1, "service scale --detach c=1", Some("unchanged"))?;
    has(bed, "one runs", 1)?;
    let update = "service update -q --detach --env-add A=1 c";
    gets_through(bed, 1, update, Some("unchanged"))?;
    until("one runs as it was changed", PATIENCE, || {
        revive(bed)?;
        let look = || {
            let running = bed.running(1, "c")?;
            let all = bed.all_containers("c.")?;
            let Some(name) = all.keys().next() else {
                return Ok(Err("none runs".to_owned()));
            };
            let said = bed.types(2, &format!("exec {name} sh -c 'echo A=$A'"))?;
            Ok(is((running.len(), all.len(), said.out.trim()), (1, 1, "A=1")))
        };
        // Its daemon may die this very moment.
        Ok(look().unwrap_or_else(|not_yet: libtest_mimic::Failed| Err(text_of(&not_yet))))
    })?;
    gets_through(bed, 1, "service rm c", Some("not found"))?;
    has(bed, "none runs", 0)?;
    until("the host has forgotten the tasks", PATIENCE, || {
        revive(bed)?;
        let said = bed.types(2, "ps -a -q")?;
        Ok(is((said.ok(), said.out.trim()), (true, "")))
    })?;
    // The place was reached: daemons that are revived have no such place.
    equal("daemons that still have it", alive_since(bed, host)?, false)
}

/// Whether the daemon that was armed still runs.
fn alive_since(bed: &Bed, host: &Host) -> Result<bool, libtest_mimic::Failed> {
    revive(bed)?;
    let pid = host.pid().ok_or("its daemon has no process")?;
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    Ok(String::from_utf8_lossy(&environment).contains("FAILPOINTS"))
}

/// The worker's daemon dies at every place of its work with tasks.
pub(crate) fn an_agent_dies_anywhere(bed: &Bed) -> Outcome {
    for place in [
        "agent.after_attach",
        "agent.after_create",
        "agent.after_start",
        "agent.after_serve",
        "agent.before_report",
        "agent.after_report",
        "agent.before_stop",
        "agent.after_end",
        "agent.mid_release",
        "agent.mid_forget",
    ] {
        let armed = format!("{place}={FIRST}");
        tasks_come_and_go(bed, bed.host(2), &armed).map_err(|e| format!("{place}: {}", text_of(&e)))?;
        println!("    the agent died: {place}");
    }
    Ok(())
}

/// The only manager's daemon dies at every place of its work with tasks.
pub(crate) fn a_manager_dies_anywhere(bed: &Bed) -> Outcome {
    for place in [
        "leader.before_plan_commit",
        "leader.after_plan_commit",
        "dispatcher.before_reports_commit",
        "dispatcher.after_reports_commit",
        "raft.before_append_fsync=8*off->return",
        "raft.after_append_fsync=8*off->return",
    ] {
        let armed = if place.contains('=') {
            place.to_owned()
        } else {
            format!("{place}={FIRST}")
        };
        tasks_come_and_go(bed, bed.host(1), &armed).map_err(|e| format!("{place}: {}", text_of(&e)))?;
        println!("    the manager died: {place}");
    }
    Ok(())
}

/// A cluster of two managers forms and renews its authority, while one of the daemons dies at every place of that.
pub(crate) fn a_cluster_forms_although_a_daemon_dies(bed: &Bed) -> Outcome {
    for (number, place) in [
        (1, "init.after_log"),
        (1, "init.before_papers"),
        (1, "identity.before_rename"),
        (1, "identity.after_rename"),
        (1, "ca.before_join_commit"),
        (1, "ca.after_join_commit"),
        (1, "members.before_change"),
        (1, "members.after_change"),
        (1, "ca.before_renew_commit"),
        (1, "ca.after_renew_commit"),
        (1, "ca.after_rotation"),
        (2, "join.before_ask"),
        (2, "join.before_papers"),
        (2, "join.after_papers"),
        (2, "identity.before_rename"),
        (2, "identity.after_rename"),
    ] {
        forms(bed, bed.host(number), place).map_err(|e| format!("h{number} at {place}: {}", text_of(&e)))?;
        println!("    h{number} died: {place}");
    }
    Ok(())
}

fn forms(bed: &Bed, host: &Host, place: &str) -> Outcome {
    arm(host, &format!("{place}={FIRST}"))?;
    gets_through(bed, 1, "swarm init", Some("already"))?;
    let mut token = String::new();
    until("a token is told", PATIENCE, || {
        revive(bed)?;
        let said = bed.types(1, "swarm join-token -q manager")?;
        token = said.out.trim().to_owned();
        Ok(is(said.ok(), true).map_err(|_| said.all()))
    })?;
    let join = format!("swarm join --token {token} {}", bed.host(1).peer());
    gets_through(bed, 2, &join, Some("already"))?;
    let stands = || {
        until("two managers, and nobody else", PATIENCE, || {
            revive(bed)?;
            let said = bed.types(
                1,
                "node ls --format '{{.Hostname}} {{.Status}} {{.ManagerStatus}}'",
            )?;
            let mut rows: Vec<&str> = said.out.lines().collect();
            rows.sort_unstable();
            let (one, two) = (rows.first().copied(), rows.get(1).copied());
            let right = rows.len() == 2
                && [one, two]
                    .into_iter()
                    .flatten()
                    .all(|r| r.ends_with("Ready Leader") || r.ends_with("Ready Reachable"));
            Ok(if right { Ok(()) } else { Err(said.all()) })
        })
    };
    stands()?;
    gets_through(bed, 1, "swarm ca --rotate", None)?;
    until("the authority is replaced", PATIENCE, || {
        revive(bed)?;
        let said = bed.types(1, "node ls --format '{{.TLSStatus}}'")?;
        let ready = said.out.lines().filter(|l| *l == "Ready").count();
        Ok(is(ready, 2).map_err(|_| said.all()))
    })?;
    stands()?;
    gets_through(bed, 2, "network create after", Some("exists already"))?;
    equal("daemons that still have it", alive_since(bed, host)?, false)?;
    let began = Instant::now();
    for number in [2, 1] {
        gets_through(bed, number, "swarm leave --force", None)?;
    }
    within("both left after", began.elapsed(), LEFT)
}
