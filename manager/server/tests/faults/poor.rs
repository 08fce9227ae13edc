//! Poor lines between managers: one of 1 Mbit/s to one of them, or long ones that lose much.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::control::control_client::ControlClient;
use proto::control::{CreateRequest, Spec, spec};
use proto::dispatch::{AssignmentsRequest, HeartbeatRequest};
use tokio::runtime::Runtime;

use super::clients;
use super::lines::{Grid, SITES};
use super::site::{self, Site};
use crate::Dice;

/// Bytes a second of a line of 1 Mbit/s.
const NARROW: u64 = 125_000;
/// Configs of a snapshot, and their bytes: 2 MB in all, which takes such a line 16 s.
const LARGE: (usize, usize) = (200, 10 << 10);
/// Entries after which a snapshot is made, and the log before it is cut.
const COMPACTED_AFTER: usize = 11_200;
/// Bytes sent to it: two snapshots of 2 to 6 MB, and what came after.
const SENT_MAX: u64 = 12_000_000;
/// Until the manager that was away has everything.
const CAUGHT_UP: Duration = Duration::from_secs(180);

/// Managers that agree, on lines that can be made narrow.
fn formed(seed: u64) -> (Runtime, Grid, Vec<Arc<Site>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let grid = Grid::new(seed, runtime.handle());
    let sites: Vec<Arc<Site>> = (0..SITES).map(|n| Arc::new(Site::new(n, grid.clone()))).collect();
    for site in &sites {
        site.start();
    }
    site::form(&sites, &runtime).unwrap();
    (runtime, grid, sites)
}

/// Bytes that do not compress.
fn noise(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut dice = Dice::new(200);
    let one = |_| (0..bytes).map(|_| dice.below(256).to_le_bytes()[0]).collect();
    (0..count).map(one).collect()
}

/// A manager that was away is given a snapshot over a line of 1 Mbit/s, while the log is cut once more (M32): it gets
/// there, and nothing is begun again and again.
#[test]
fn a_snapshot_gets_over_a_narrow_line_while_the_log_is_cut() {
    let (runtime, grid, sites) = formed(200);
    let sockets: Vec<_> = sites.iter().map(|s| s.socket()).collect();
    sites[2].kill();
    let noise = noise(LARGE.0, LARGE.1);
    let make = |prefix: &str, count, data: &dyn Fn(usize) -> Vec<u8>| {
        let made = runtime.block_on(clients::make(&sockets[0], prefix, count, data));
        made.unwrap();
    };
    make("large", LARGE.0, &|n| noise[n].clone());
    // One by one, so that there are as many entries.
    let entries = |prefix: &str, count: usize| {
        let one_by_one = clients::one_by_one(&sockets[0], prefix, count);
        runtime.block_on(one_by_one).unwrap();
    };
    entries("before", COMPACTED_AFTER);
    grid.narrow(2, NARROW);
    let sent_before = grid.carried_to(2);
    sites[2].start();
    let began = Instant::now();
    entries("during", COMPACTED_AFTER);
    let cut_after = began.elapsed();
    loop {
        match runtime.block_on(clients::histories(&sockets)) {
            Ok(()) => break,
            Err(why) => assert!(began.elapsed() < CAUGHT_UP, "not after {CAUGHT_UP:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let sent = grid.carried_to(2) - sent_before;
    // Each of the two snapshots once, and the entries after them.
    assert!(sent < SENT_MAX, "{sent} bytes were sent");
    println!(
        "a manager had everything {:.1} s after it came back over 1 Mbit/s, the log being cut {:.1} s after that as well; {:.1} MB \
         were sent to it",
        began.elapsed().as_secs_f64(),
        cut_after.as_secs_f64(),
        sent as f64 / 1e6
    );
    for site in &sites {
        site.kill();
    }
}

/// Configs of a task, and their bytes: 1 MB in all, which takes such a line 8 s.
const TOLD: (usize, usize) = (10, 100 << 10);
/// The period of heartbeats; an agent gives up one that is not answered within it.
const PERIOD: Duration = Duration::from_millis(1500);
/// Entries that are written then, and their bytes: 8 s on the line each.
const ENTRIES: (usize, usize) = (2, 990 << 10);

/// Over a line of 1 Mbit/s a node is told of its tasks with all their configs, and a manager given large entries: heartbeats
/// of both kinds pass meanwhile, no session ends and nobody else leads.
#[test]
fn heartbeats_pass_what_is_large_on_a_narrow_line() {
    let (runtime, grid, sites) = formed(201);
    let sockets: Vec<_> = sites.iter().map(|s| s.socket()).collect();
    let told = noise(TOLD.0, TOLD.1);
    runtime
        .block_on(clients::make(&sockets[0], "told", TOLD.0, |n| told[n].clone()))
        .unwrap();
    runtime
        .block_on(async {
            let channel = proto::channel::connect(&sockets[0]).await.unwrap();
            let request = service("told", model::spec::ServiceMode::Global, TOLD.0);
            ControlClient::new(channel).create(request).await
        })
        .unwrap();
    let term = runtime.block_on(clients::term(&sockets[0])).unwrap();
    grid.narrow(2, NARROW);
    let (beats, took) = sites[2].run(async |manager| {
        let (mut client, session, _messages) = site::session(manager, &grid.way(2, 0)).await.unwrap();
        let mut asked = client.clone();
        let request = AssignmentsRequest {
            session: session.clone(),
        };
        let began = Instant::now();
        let all = async {
            let mut stream = asked.assignments(request).await.unwrap().into_inner();
            let mut bytes = 0;
            while bytes < TOLD.0 * TOLD.1 {
                let frame = stream.message().await.unwrap().unwrap();
                bytes += prost::Message::encoded_len(&frame);
            }
        };
        let mut all = std::pin::pin!(all);
        let mut beats = 0;
        loop {
            tokio::select! {
                () = &mut all => return (beats, began.elapsed()),
                () = tokio::time::sleep(PERIOD) => {}
            }
            let request = HeartbeatRequest {
                used: None,
                session: session.clone(),
                unreached: None,
            };
            let beat = async { tokio::time::timeout(PERIOD, client.heartbeat(request)).await };
            // The assignments are taken meanwhile.
            tokio::select! {
                biased;
                answer = beat => { answer.expect("a heartbeat is answered within its period").unwrap(); }
                () = &mut all => return (beats, began.elapsed()),
            }
            beats += 1;
        }
    });
    assert!(beats >= 3, "{beats} heartbeats in {took:?}");
    // From here on nothing is decided without the one that is behind the line.
    sites[1].kill();
    let entries = noise(ENTRIES.0, ENTRIES.1);
    let began = Instant::now();
    let mut reads = Vec::new();
    for (n, entry) in entries.iter().enumerate() {
        let name = format!("entry{n}");
        let made = runtime.block_on(async {
            let mut make = std::pin::pin!(clients::make(&sockets[0], &name, 1, |_| entry.clone()));
            loop {
                let asked = Instant::now();
                tokio::select! {
                    made = &mut make => return made,
                    // It is certain only once the one behind the line has said so.
                    read = clients::read(&sockets[0]) => read?,
                };
                reads.push(asked.elapsed());
            }
        });
        made.unwrap();
    }
    let slowest = reads.iter().max().unwrap();
    assert!(*slowest < Duration::from_secs(1), "a read took {slowest:?}");
    loop {
        match runtime.block_on(clients::histories(&[sockets[0].clone(), sockets[2].clone()])) {
            Ok(()) => break,
            Err(why) => assert!(began.elapsed() < CAUGHT_UP, "not after {CAUGHT_UP:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "over 1 Mbit/s {beats} heartbeats of a node were answered while it was told of its tasks for {:.1} s; {} entries of 1 MB \
         took {:.1} s, and the slowest of {} reads meanwhile {slowest:?}",
        took.as_secs_f64(),
        ENTRIES.0,
        began.elapsed().as_secs_f64(),
        reads.len()
    );
    let now = runtime.block_on(clients::term(&sockets[0])).unwrap();
    assert_eq!(now, term, "somebody else was elected");
    for site in &sites {
        site.kill();
    }
}

/// A service with so many of the configs that are to be told.
fn service(name: &str, mode: model::spec::ServiceMode, configs: usize) -> CreateRequest {
    let file = |n| model::spec::ConfigRef {
        id: model::ConfigId::NIL,
        name: format!("told-{n}"),
        target: model::spec::FileTarget {
            name: format!("told-{n}"),
            uid: 0,
            gid: 0,
            mode: 0o444,
        },
    };
    let mut service = model::spec::ServiceSpec {
        name: name.into(),
        mode,
        ..model::spec::ServiceSpec::default()
    };
    service.task.container.image = "web:1".into();
    service.task.container.configs = (0..configs).map(file).collect();
    CreateRequest {
        spec: Some(Spec {
            spec: Some(spec::Spec::Service((&service).into())),
        }),
        ..CreateRequest::default()
    }
}

/// What lines between managers lose, and how long a way takes (M18).
const LOST_PERCENT: usize = 30;
const WAY: Duration = Duration::from_millis(100);
/// How long that lasts; `RSWARM_POOR_SECONDS=300` for the five minutes of the promise.
const LASTS: u64 = 40;
/// Until every service has its task, once lines are good.
const PLANNED: Duration = Duration::from_secs(5);
/// Elections in five minutes, or in less than a third of that.
const ELECTIONS_MAX: (u64, u64) = (3, 1);

/// Lines lose 30 % and take 200 ms there and back (M18): hardly an election, writes go on, and no history is lost.
#[test]
fn managers_agree_over_long_lines_that_lose_much() {
    let (runtime, grid, sites) = formed(202);
    let sockets: Vec<_> = sites.iter().map(|s| s.socket()).collect();
    let asked = std::env::var("RSWARM_POOR_SECONDS").ok();
    let lasts = Duration::from_secs(asked.map_or(LASTS, |s| s.parse().unwrap()));
    let term = runtime.block_on(clients::term(&sockets[0])).unwrap();
    grid.slow(WAY);
    grid.lose(LOST_PERCENT);
    let (began, mut slowest, mut carried, mut refused) = (Instant::now(), Duration::ZERO, 0, 0);
    while began.elapsed() < lasts {
        let (site, name) = ((carried + refused) % SITES, format!("poor{carried}-{refused}"));
        let asked = Instant::now();
        let one = service(&name, model::spec::ServiceMode::Replicated { replicas: 1 }, 0);
        match runtime.block_on(clients::create(&sockets[site], one)) {
            Ok(()) => carried += 1,
            Err(why) => {
                assert!(
                    why.contains("E_NO_QUORUM") || why.contains("E_NO_LEADER"),
                    "a write says: {why}"
                );
                refused += 1;
            }
        }
        slowest = slowest.max(asked.elapsed());
    }
    grid.heal();
    loop {
        match runtime.block_on(clients::histories(&sockets)) {
            Ok(()) => break,
            Err(why) => assert!(
                began.elapsed() < lasts + CAUGHT_UP,
                "not after {CAUGHT_UP:?}: {why}"
            ),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // Whoever leads has gone on planning.
    let planned = Instant::now();
    loop {
        let (services, planned_for) = runtime.block_on(clients::planned(&sockets[0])).unwrap();
        if services == planned_for {
            break;
        }
        assert!(
            planned.elapsed() < PLANNED,
            "of {services} services {planned_for} have tasks {PLANNED:?} after the lines are good again"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let elections = runtime.block_on(clients::term(&sockets[0])).unwrap() - term;
    println!(
        "lines that lose {LOST_PERCENT} % and take {:?} there and back: {carried} writes in {lasts:?}, the slowest {slowest:.1?}, \
         {refused} refused, {elections} elections",
        WAY * 2
    );
    assert!(carried > refused, "{carried} writes, {refused} refused");
    let most = match lasts.as_secs() {
        ..100 => ELECTIONS_MAX.1,
        seconds => ELECTIONS_MAX.0 * seconds.div_ceil(300),
    };
    assert!(elections <= most, "{elections} elections");
    for site in &sites {
        site.kill();
    }
}
