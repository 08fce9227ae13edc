//! Much at once: certificates of many nodes under writes, members that change while lines fail, a host that is away while all
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hosts::Host;
use proto::control::control_client::ControlClient;
use proto::control::{CreateRequest, Spec, spec};
use proto::types::ConfigSpec;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until, within};
use crate::failover::SLEEPERS;
use crate::strain::lasts;

/// Nodes that get new certificates: 3 managers and workers.
const NODES: u8 = 10;
/// Writes a second meanwhile, of writers beside each other.
const RATE: u32 = 100;
const WRITERS: u32 = 4;
/// Until all have them.
const ROTATED: Duration = Duration::from_secs(60);
/// What a host that is back may take to end what is old (reliability.md M14), a grace of 10 s included.
const ENDED: Duration = Duration::from_secs(23);

/// Workers of the cluster whose certificates change; `RSWARM_NODES=50` has as many nodes.
pub(crate) fn workers() -> u8 {
    let asked = std::env::var("RSWARM_NODES")
        .ok()
        .and_then(|text| text.parse().ok());
    asked.unwrap_or(NODES).max(4) - 3
}

fn config(name: String) -> CreateRequest {
    CreateRequest {
        spec: Some(Spec {
            spec: Some(spec::Spec::Config(ConfigSpec {
                name,
                data: b"x".to_vec(),
                ..ConfigSpec::default()
            })),
        }),
        ..CreateRequest::default()
    }
}

/// Writes at a rate through one host until it is over; answers what failed.
fn write(host: &Host, writer: u32, done: &AtomicUsize, over: &AtomicBool) -> Result<Vec<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let channel = proto::channel::connect(&host.socket()).await;
        let mut control = ControlClient::new(channel.map_err(|e| e.to_string())?);
        let mut failed = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1) * WRITERS / RATE);
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            tick.tick().await;
            number += 1;
            match control.create(config(format!("w{writer}-{number}"))).await {
                Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Err(status) => failed.push(status.message().to_owned()),
            }
        }
        Ok(failed)
    })
}

/// All nodes get certificates of a new authority under 100 writes a second (M28): no call fails, no session is lost.
pub(crate) fn certificates_of_many(bed: &Bed) -> Outcome {
    let nodes = usize::from(workers()) + 3;
    let issuers = || -> Result<BTreeSet<String>, libtest_mimic::Failed> {
        let names: Vec<String> = bed.nodes(1)?.into_keys().collect();
        let line = format!(
            "node inspect {} --format {{{{.TLSInfo.CertIssuer}}}}",
            names.join(" ")
        );
        Ok(bed.ok(1, &line)?.lines().map(str::to_owned).collect())
    };
    let logged = |what: &str| -> usize {
        let all = bed.hosts.all().iter();
        all.map(|h| h.whole_log().matches(what).count()).sum()
    };
    let ended = || logged("the session with the manager ended") + logged("registering again");
    let (old, renewed, lost) = (issuers()?, logged("has a new certificate"), ended());
    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let failed = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let host = &bed.hosts.all()[writer as usize % 3];
                let (done, over) = (&done, &over);
                scope.spawn(move || write(host, writer, done, over))
            })
            .collect();
        let rotated = bed
            .host(2)
            .run_within(&["swarm", "ca", "--rotate", "-q"], None, ROTATED);
        let took = began.elapsed();
        let new = rotated.map_err(libtest_mimic::Failed::from).and_then(|said| {
            equal("swarm ca --rotate", said.code, Some(0))?;
            let have = || Ok(is(logged("has a new certificate") - renewed, nodes));
            until("all have a new certificate", PATIENCE, have)
        });
        over.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for writer in writers {
            failed.extend(writer.join().map_err(|_| "a writer panicked")??);
        }
        new?;
        within("the authority was replaced in", took, ROTATED)?;
        Ok::<_, libtest_mimic::Failed>(failed)
    })?;
    let rate = done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    println!(
        "    {nodes} nodes have new certificates; {:.0} writes a second, {} failed, {} sessions ended",
        rate,
        failed.len(),
        ended() - lost
    );
    equal("calls that failed", failed, Vec::new())?;
    equal("sessions that ended", ended() - lost, 0)?;
    let new = issuers()?;
    equal("issuers", (new.len(), new.is_disjoint(&old)), (1, true))?;
    bed.settled(3, workers())
}

/// Managers become five and three again while lines fail (M33): each step is carried out or refused as a whole, what was
/// acknowledged is there, and no term has two leaders.
pub(crate) fn members_change_while_lines_fail(bed: &Bed) -> Outcome {
    bed.ok(1, SLEEPERS)?;
    bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    let mut written = Vec::new();
    let mut write = |number: u8, name: &str| -> Outcome {
        bed.ok(number, &format!("network create {name}"))?;
        written.push(name.to_owned());
        Ok(())
    };
    // A follower is cut off both ways while a fourth is added.
    let lost = bed.followers(3)?[1];
    bed.hosts.isolate(&[lost])?;
    let asked = if lost.number == 1 { 2 } else { 1 };
    bed.ok(asked, "node promote h4")?;
    write(asked, "four")?;
    bed.hosts.heal()?;
    bed.settled(4, 1)?;
    // The leader is cut off while a fifth is added through another.
    let leader = bed.leader()?;
    let asked = if leader.number == 1 { 2 } else { 1 };
    bed.hosts.isolate(&[leader])?;
    // Who cannot reach a quorum says so, and changes nothing.
    let refused = bed.types(leader.number, "node promote h5")?;
    equal("promoted by a leader that is alone", refused.ok(), false)?;
    contains(&refused.all(), "E_NO_QUORUM")?;
    bed.ok(asked, "node promote h5")?;
    write(asked, "five")?;
    bed.hosts.heal()?;
    bed.settled(5, 0)?;
    // Lost one way: the leader no longer hears one of those that go.
    let leader = bed.leader()?;
    let going: Vec<&Host> = (bed.hosts.all().iter())
        .filter(|h| h.number != leader.number)
        .skip(2)
        .collect();
    let [first, second] = going[..] else {
        return fail("there are not four others");
    };
    bed.hosts.lose(first, leader, true)?;
    bed.ok(leader.number, &format!("node demote {}", first.name))?;
    write(leader.number, "four-again")?;
    bed.hosts.heal()?;
    // Two of the four are on either side of a cut, and the one that goes, which may not have left the log yet, is alone:
    // nothing can be decided, nor is anything.
    let others: Vec<&Host> = (bed.hosts.all().iter())
        .filter(|h| ![first.number, second.number, leader.number].contains(&h.number))
        .collect();
    let names = |hosts: &[&Host]| {
        let names: BTreeSet<String> = hosts.iter().map(|h| h.name.clone()).collect();
        names.into_iter().collect::<Vec<_>>()
    };
    let stays = names(&[leader, second, others[0], others[1]]);
    let stays: Vec<&str> = stays.iter().map(String::as_str).collect();
    bed.settled_as(leader.number, &stays, 1)?;
    bed.hosts.cut(&[leader, second], &others)?;
    bed.hosts.isolate(&[first])?;
    let began = Instant::now();
    let refused = bed.types(leader.number, &format!("node demote {}", second.name))?;
    equal("demoted without a quorum", refused.ok(), false)?;
    contains(&refused.all(), "E_NO_QUORUM")?;
    within("no quorum is said after", began.elapsed(), Duration::from_secs(5))?;
    bed.hosts.heal()?;
    bed.settled_as(others[0].number, &stays, 1)?;
    bed.ok(others[0].number, &format!("node demote {}", second.name))?;
    write(others[0].number, "three-again")?;
    let three = names(&[leader, others[0], others[1]]);
    let three: Vec<&str> = three.iter().map(String::as_str).collect();
    bed.settled_as(leader.number, &three, 2)?;
    for host in [leader, others[0], others[1]] {
        let there = bed.ok(host.number, "network ls --format {{.Name}}")?;
        for name in &written {
            contains(&there, name)?;
        }
    }
    one_leader_a_term(bed)?;
    equal("containers", bed.all_containers("web")?, before)
}

/// Fails when two managers said that they lead in the same term.
fn one_leader_a_term(bed: &Bed) -> Outcome {
    let mut terms = BTreeMap::new();
    for host in bed.hosts.all() {
        let log = host.whole_log();
        for line in log.lines().filter(|l| l.contains("leading the cluster")) {
            let Some((_, term)) = line.rsplit_once("term=") else {
                return fail(format!("no term: {line}"));
            };
            // One may say so twice, after it could not be sure for a while.
            let led = terms.entry(term.trim().to_owned()).or_insert(&host.name);
            equal(line, *led, &host.name)?;
        }
    }
    equal("somebody led", terms.is_empty(), false)
}

/// A worker is away while its service is updated and scaled down (M14): when it is back, what is old there ends soon, and
/// nothing new is stopped. `RSWARM_STRAIN_SECONDS=600` for the ten minutes of the promise.
pub(crate) fn away_while_all_changes(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 8 --update-parallelism 2 --update-delay 0s web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 8)?;
    let lost = bed.host(4);
    let old = bed.containers(4, "web")?;
    equal("tasks on h4", old.len(), 2)?;
    bed.ok(1, "service update -d -q --env-add ROUND=2 web")?;
    bed.hosts.isolate(&[lost])?;
    let began = Instant::now();
    bed.ok(1, "service scale -q web=4")?;
    until("the update is through without it", PATIENCE, || {
        let state = bed.ok(1, "service inspect web --format {{.UpdateStatus.State}}")?;
        Ok(is(state.trim(), "completed"))
    })?;
    let wanted = bed.runs(1, "web", 4)?;
    equal(
        "tasks given to who is away",
        wanted.iter().filter(|t| t.node == "h4").count(),
        0,
    )?;
    std::thread::sleep(lasts().saturating_sub(began.elapsed()));
    let others = bed.running(1, "web")?;
    bed.hosts.heal()?;
    let back = Instant::now();
    until("what is old ended", PATIENCE, || {
        let now = bed.containers(4, "web")?;
        Ok(is(now.keys().filter(|name| old.contains_key(*name)).count(), 0))
    })?;
    within(
        "back after a while: the old tasks had ended after",
        back.elapsed(),
        ENDED,
    )?;
    bed.settled(1, 3)?;
    equal("tasks of the others", bed.runs(1, "web", 4)?, others)
}
