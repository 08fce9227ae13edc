//! One network over many hosts: tasks find each other by name, and clients reach them on every host.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until, within};

/// A web server that says which task it is, and by cgi-bin/who whom it sees as well.
pub(crate) const WEB: &str = "service create -q --name web --network back --replicas 3 --publish 8000:80 web:v1 sh -c 'busybox mkdir -p \
/tmp/w/cgi-bin; cd /tmp/w; busybox hostname > index.html; echo \"#!/bin/sh\" > cgi-bin/who; echo \"echo Content-Type: \
text/plain; echo; echo $(busybox hostname) \\$REMOTE_ADDR\" >> cgi-bin/who; busybox chmod 755 cgi-bin/who; exec httpd -f -p \
80 -h /tmp/w'";
/// The machine outside, as busybox's httpd writes it.
const CLIENT: &str = "[::ffff:10.99.0.200]";
/// Until a name leads only to what is there, once a host is back (features.md row 41).
const CORRECT: Duration = Duration::from_secs(2);
/// Until the task of a lost host runs elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(8);
/// How often a host is lost without `RSWARM_CUTS`.
const CUTS: u32 = 1;
/// A request that has no answer by then has none.
const ANSWER: Duration = Duration::from_secs(2);

/// What a task sees of the service, asked many times by a name.
pub(crate) fn asked(
    bed: &Bed,
    host: u8,
    task: &str,
    name: &str,
    times: u8,
) -> Result<BTreeSet<String>, Failed> {
    let containers = bed.containers(host, task)?;
    let Some(container) = containers.keys().next() else {
        return fail(format!("no task {task} on h{host}"));
    };
    let ask = format!("busybox timeout 2 wget -q -O - http://{name}/ || echo failed");
    let line = format!("exec {container} sh -c 'i=0; while test $i -lt {times}; do i=$((i+1)); {ask}; done'");
    Ok(bed.ok(host, &line)?.lines().map(str::to_owned).collect())
}

/// Asks a published port from outside; answers which task it was, and whom that saw.
pub(crate) fn from_outside(bed: &Bed, host: impl Into<IpAddr>) -> Result<String, Failed> {
    let host = host.into();
    let asked = hosts::inside(&bed.hosts.outside(), || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((host, 8000)), ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = asked?.map_err(|e| format!("{host} does not answer: {e}"))?;
    Ok(text.lines().last().unwrap_or_default().trim().to_owned())
}

/// Asks the port of a host until each of three tasks has answered; all of them see who asks.
pub(crate) fn all_behind_the_port(bed: &Bed, host: impl Into<IpAddr>, client: &str) -> Outcome {
    let host = host.into();
    let mut tasks = BTreeSet::new();
    for _ in 0..40 {
        let said = from_outside(bed, host)?;
        let Some((task, seen)) = said.split_once(' ') else {
            return fail(format!("{host} says \"{said}\""));
        };
        equal("the client's address", seen, client)?;
        tasks.insert(task.to_owned());
    }
    equal(&format!("tasks behind the port of {host}"), tasks.len(), 3)
}

/// Tasks of a service are found by name on every host, and by their port on every host with the client's address; other
/// networks are apart; what a lost host had is found elsewhere, and what it has when it is back as well.
pub(crate) fn tasks_meet_over_hosts(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay back")?;
    bed.ok(1, "network create -d overlay front")?;
    bed.ok(1, WEB)?;
    bed.ok(
        1,
        "service create -q --name ask --mode global --network back web:v1 sleep 1000000",
    )?;
    bed.ok(
        1,
        "service create -q --name other --mode global --network front web:v1 sleep 1000000",
    )?;
    let web = bed.runs(1, "web", 3)?;
    let nodes: BTreeSet<&str> = web.iter().map(|t| t.node.as_str()).collect();
    equal("hosts with a task of web", nodes.len(), 3)?;
    bed.runs(1, "ask", 3)?;
    bed.runs(1, "other", 3)?;
    for host in 1..=3 {
        let balanced = asked(bed, host, "ask", "web", 40)?;
        equal("requests that failed", balanced.contains("failed"), false)?;
        equal(&format!("tasks that h{host} reaches by name"), balanced.len(), 3)?;
        let mut all = BTreeSet::new();
        for slot in 1..=3 {
            all.extend(asked(bed, host, "ask", &format!("web.{slot}"), 1)?);
        }
        equal(
            &format!("tasks that h{host} reaches by their names"),
            all,
            balanced,
        )?;
        let apart = asked(bed, host, "other", "web", 1)?;
        equal(
            "from another network",
            apart,
            BTreeSet::from(["failed".to_owned()]),
        )?;
        // The client is the machine outside, whatever host it asks and whatever task answers.
        all_behind_the_port(bed, bed.host(host).address(), CLIENT)?;
    }
    let rounds: u32 = std::env::var("RSWARM_CUTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(CUTS);
    for round in 1..=rounds {
        a_host_is_lost(bed)?;
        if round < rounds {
            bed.ok(1, "service update -q --force --update-monitor 0s web")?;
            until("each host has a task again", PATIENCE, || {
                let tasks = bed.running(1, "web")?;
                let nodes: BTreeSet<&str> = tasks.iter().map(|t| t.node.as_str()).collect();
                Ok(is((nodes.len(), tasks.len()), (3, 3)))
            })?;
        }
    }
    Ok(())
}

/// A server that sends back what it is sent, so that whatever a connection begins with is seen.
const ECHO: &str = "services:
  echo:
    image: web:v1
    command: [busybox, nc, -ll, -p, '80', -e, busybox, cat]
    ports: [{target: 80, published: 8000, proxy_protocol: v2}]
    deploy: {replicas: 1}
";

/// A stack's port with the PROXY protocol: whichever host a client asks, the task is told who it is; a service's port without it
/// is not touched, and one can be changed into the other.
pub(crate) fn tasks_are_told_of_their_clients(bed: &Bed) -> Outcome {
    let file = bed.host(1).dir().join("echo.yml");
    std::fs::write(&file, ECHO)?;
    bed.ok(1, &format!("stack deploy -c {} s", file.display()))?;
    bed.runs(1, "s_echo", 1)?;
    let shown = bed.ok(1, "service inspect s_echo --format '{{json .Endpoint.Ports}}'")?;
    contains(&shown, "\"ProxyProtocol\":\"v2\"")?;
    let asked = |host: Ipv4Addr, count: usize| {
        let answer = hosts::inside(&bed.hosts.outside(), || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((host, 8000)), ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(b"hello")?;
            let mut bytes = vec![0; count];
            stream.read_exact(&mut bytes)?;
            Ok(bytes)
        });
        answer?.map_err(|e| Failed::from(format!("{host} does not answer: {e}")))
    };
    for host in 1..=2 {
        let host = bed.host(host).address();
        let bytes = asked(host, 16 + 12 + 5)?;
        let (head, said) = bytes.split_at(28);
        equal("signature", head.get(..12), Some(&b"\r\n\r\n\0\r\nQUIT\n"[..]))?;
        equal(
            "the client's address",
            head.get(16..20),
            Some(&[10, 99, 0, 200][..]),
        )?;
        equal("whom it asked", head.get(20..24), Some(&host.octets()[..]))?;
        equal("port", head.get(26..28), Some(&8000u16.to_be_bytes()[..]))?;
        equal("what it said", said, b"hello")?;
    }
    let change = "service update -q --publish-rm 80 --publish-add published=8000,target=80 s_echo";
    bed.ok(1, change)?;
    until("nothing comes before what a client says", PATIENCE, || {
        Ok(is(asked(bed.host(2).address(), 5).ok(), Some(b"hello".to_vec())))
    })?;
    bed.refused(
        1,
        "service create --name x -p published=53,target=53,protocol=udp,proxy_protocol=v2 web:v1",
        "for tcp",
    )?;
    Ok(())
}

/// Constraints on what a node really says of itself, and why a task has no node.
pub(crate) fn nodes_are_chosen_and_say_why_not(bed: &Bed) -> Outcome {
    let on = |name: &str, constraint: &str, nodes: &[&str]| -> Outcome {
        let made = format!(
            "service create -q -d --name {name} --mode global --constraint '{constraint}' web:v1 sleep 1000000"
        );
        bed.ok(1, &made)?;
        let tasks = bed.runs(1, name, nodes.len())?;
        let mut there: Vec<&str> = tasks.iter().map(|t| t.node.as_str()).collect();
        there.sort_unstable();
        equal(constraint, there, nodes.to_vec())
    };
    bed.ok(1, "node update --label-add disks=12 h2")?;
    on("by-ip", "node.ip==10.99.0.2", &["h2"])?;
    on("by-net", "node.ip in 10.99.0.0/24", &["h1", "h2"])?;
    on("by-number", "node.labels.disks>9", &["h2"])?;
    on("by-name", "node.hostname=~^h[13]$", &["h1"])?;
    on("by-label", "node.labels.disks is_not_set", &["h1"])?;
    bed.refused(
        1,
        "service create --name x --constraint node.labels.a=~( web:v1",
        "no regular expression",
    )?;
    bed.ok(
        1,
        "service create -q -d --name stuck --constraint 'node.labels.disks in 1,2' web:v1",
    )?;
    until("it waits", PATIENCE, || {
        let why = bed.ok(1, "service why stuck")?;
        let asked = "scheduling constraints not satisfied (node.labels.disks in 1,2)";
        Ok(is(
            (why.contains("no suitable node"), why.matches(asked).count()),
            (true, 3),
        ))
    })?;
    contains(
        &bed.ok(1, "service why by-ip --format '{{.Node}}={{.Fits}}'")?,
        "h2=yes",
    )
}

/// How soon it is seen and acted upon that packets of networks do not pass, or pass again (M15).
const FELT: Duration = Duration::from_secs(15);
/// The port of VXLAN.
const DATA: u16 = 4789;

/// A host hears no packets of networks, and everything else: it stays Ready, it is said, and clients of the others are not sent
/// there, also after another manager leads.
pub(crate) fn packets_of_networks_are_lost(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay back")?;
    bed.ok(1, WEB)?;
    bed.runs(1, "web", 3)?;
    let shown = || -> Result<Vec<(String, String)>, Failed> {
        let line = "node ls --format '{{.Hostname}} {{.Status}} {{.DataPlane}}'";
        let mut rows: Vec<(String, String)> = (bed.ok(1, line)?.lines())
            .filter_map(|l| l.split_once(' ').map(|(h, s)| (h.to_owned(), s.to_owned())))
            .collect();
        rows.sort();
        Ok(rows)
    };
    let all = |of: [&str; 3]| -> Vec<(String, String)> {
        let row = |(n, state): (usize, &str)| (format!("h{}", n + 1), format!("Ready {state}"));
        of.into_iter().enumerate().map(row).collect()
    };
    // Tasks that answer at h1's port, asked many times; a request without an answer fails.
    let behind = || -> Result<BTreeSet<String>, Failed> {
        (0..30)
            .map(|_| {
                Ok(from_outside(bed, bed.host(1).address())?
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned())
            })
            .collect()
    };
    equal("at first", shown()?, all(["ok"; 3]))?;
    equal("tasks that answer", behind()?.len(), 3)?;
    bed.hosts.lose_udp(bed.host(3), DATA, true)?;
    let began = Instant::now();
    until("h3 is found out", FELT, || {
        Ok(is(shown()?, all(["ok", "ok", "degraded"])))
    })?;
    println!("    seen after {:.1} s", began.elapsed().as_secs_f64());
    equal("tasks that answer", behind()?.len(), 2)?;
    let inspected = bed.ok(1, "node inspect h3 --format '{{len .Status.Unreached}}'")?;
    equal("nodes that h3 does not reach", inspected.trim(), "2")?;
    bed.ok(1, "node ls")?
        .contains("DATA PLANE")
        .then_some(())
        .ok_or("node ls does not show it")?;
    // Clients of h3 itself have its own task.
    equal(
        "tasks that answer there",
        from_outside(bed, bed.host(3).address()).is_ok(),
        true,
    )?;
    let leader = bed.leader()?;
    leader.kill();
    leader.boot()?;
    leader.answers()?;
    bed.settled(3, 0)?;
    equal("with another leader", shown()?, all(["ok", "ok", "degraded"]))?;
    bed.hosts.lose_udp(bed.host(3), DATA, false)?;
    let began = Instant::now();
    until("all is well again", FELT, || Ok(is(shown()?, all(["ok"; 3]))))?;
    println!("    well again after {:.1} s", began.elapsed().as_secs_f64());
    equal("tasks that answer", behind()?.len(), 3)
}

fn a_host_is_lost(bed: &Bed) -> Outcome {
    let failed = |host: u8, times: u8| -> Result<bool, Failed> {
        Ok(asked(bed, host, "ask", "web", times)?.contains("failed"))
    };
    let lost = bed.host(3);
    bed.hosts.isolate(&[lost])?;
    let began = Instant::now();
    until("web runs on the others", PATIENCE, || {
        let tasks = bed.running(1, "web")?;
        Ok(is(tasks.iter().filter(|t| t.node != lost.name).count(), 3))
    })?;
    within("its task ran elsewhere after", began.elapsed(), ELSEWHERE)?;
    for host in 1..=2 {
        equal("requests that failed", failed(host, 40)?, false)?;
    }
    bed.hosts.heal()?;
    let back = Instant::now();
    until("the host that is back reaches all", PATIENCE, || {
        // Its task may be one that was replaced, and is being stopped.
        Ok(is(failed(3, 10).unwrap_or(true), false))
    })?;
    within("it reached all after", back.elapsed(), CORRECT)?;
    bed.settled(1, 2)?;
    for host in 1..=3 {
        equal("requests that failed", failed(host, 40)?, false)?;
    }
    Ok(())
}

/// A network without a free address says so where one looks, and is well once it has more.
pub(crate) fn a_network_is_used_up(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay --subnet 10.66.0.0/29 small")?;
    bed.ok(
        1,
        "service create -q --detach --name web --network small --replicas 8 web:v1",
    )?;
    let look = |what: &str| -> Result<(), Failed> {
        until(what, PATIENCE, || {
            let said = bed.ok(1, "service ps --no-trunc web")?;
            Ok(is(said.contains("no free address"), true))
        })?;
        Ok(())
    };
    look("service ps says why")?;
    let before = bed.running(1, "web")?.len();
    equal("some run", before < 8, true)?;
    for (subnet, why) in [
        ("10.66.0.0/24", "overlaps with its subnet"),
        ("10.66.0.1/24", "write an IPv4 network"),
        ("10.66.1.0/33", "write a network such as"),
    ] {
        bed.refused(1, &format!("network update --subnet-add {subnet} small"), why)?;
    }
    bed.ok(
        1,
        "network update --subnet-add 10.66.1.0/24 --label-add site=a small",
    )?;
    let began = Instant::now();
    bed.runs(1, "web", 8)?;
    within("all ran after", began.elapsed(), CORRECT)?;
    // Those of before and those of after reach each other, over hosts.
    let tasks: Vec<(u8, String)> = (1..=2)
        .map(|host| Ok((host, bed.containers(host, "web")?.into_keys().collect::<Vec<_>>())))
        .collect::<Result<Vec<_>, Failed>>()?
        .into_iter()
        .flat_map(|(host, names)| names.into_iter().map(move |n| (host, n)))
        .collect();
    equal("containers", tasks.len(), 8)?;
    for (host, container) in &tasks {
        let line = format!(
            "exec {container} sh -c 'for i in 1 2 3 4 5 6 7 8; do busybox timeout 2 wget -q -O - http://web.$i:8080/ || echo failed; done'"
        );
        let said = bed.ok(*host, &line)?;
        equal(
            &format!("answers to {container}"),
            said.matches("hello").count(),
            8,
        )?;
    }
    let shown: serde_json::Value = serde_json::from_str(&bed.ok(1, "network inspect small")?)?;
    let small = &shown[0];
    let count = |field: &str| small[field].as_object().map_or(0, serde_json::Map::len);
    equal("containers shown", count("Containers"), 8)?;
    equal("peers shown", small["Peers"].as_array().map_or(0, Vec::len), 2)?;
    equal(
        "subnets",
        small["IPAM"]["Config"].as_array().map_or(0, Vec::len),
        2,
    )?;
    equal("label", small["Labels"]["site"].as_str(), Some("a"))?;
    let behind = small["Services"]["web"]["Tasks"].as_array().map_or(0, Vec::len);
    equal("tasks behind the virtual address", behind, 8)?;
    // The same by `inspect`, which finds a task as well.
    let again = bed.ok(1, "inspect --type network small")?;
    equal(
        "inspect shows the same",
        serde_json::from_str::<serde_json::Value>(&again)? == shown,
        true,
    )?;
    let task = bed.running(1, "web")?.swap_remove(0);
    let inspected = bed.ok(
        1,
        &format!(
            "inspect --format '{{{{.Name}}}} {{{{.Status.State}}}}' {}",
            task.id
        ),
    )?;
    equal(
        "a task",
        inspected.trim(),
        format!("{} running", task.name).as_str(),
    )?;
    bed.refused(
        1,
        "inspect nothing",
        "no service, task, node, network, secret or config is called nothing",
    )?;
    // A service has the address it asks for, and no other gets it. Which ones are free nobody knows before.
    let taken = shown.to_string();
    let mut all = (100..200).map(|n| format!("10.66.1.{n}"));
    let free = all.find(|address| !taken.contains(address.as_str()));
    let free = free.ok_or("no address is free")?;
    let create =
        |name: &str| format!("service create -q --name {name} --network name=small,ip={free} web:v1");
    bed.ok(1, &create("fixed"))?;
    let line = format!(
        "exec {} busybox timeout 2 wget -q -O - http://{free}:8080/",
        tasks[0].1
    );
    equal("from its address", bed.ok(tasks[0].0, &line)?.trim(), "hello")?;
    bed.refused(1, &create("again"), "held by service fixed")?;
    bed.ok(1, "service rm fixed")?;
    // Room comes back when tasks go.
    bed.ok(1, "service scale web=1")?;
    bed.ok(1, "service rm web")?;
    Ok(())
}

/// Tasks come and go while a third of all packets is lost: in the end every host's kernel has the ways that the state says.
pub(crate) fn tasks_churn_under_loss(bed: &Bed) -> Outcome {
    let rounds: u32 = std::env::var("RSWARM_CHURN")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(CHURN);
    bed.ok(1, "network create -d overlay back")?;
    let create = format!(
        "service create -q --name web --network back --replicas {CHURNING} --update-parallelism 0 --update-monitor 0s \
         --stop-grace-period 0s web:v1 sleep 1000000"
    );
    bed.ok(1, &create)?;
    let first = bed.runs(1, "web", CHURNING)?;
    let mut seen: BTreeSet<String> = first.into_iter().map(|t| t.id).collect();
    let all: Vec<&hosts::Host> = bed.hosts.all().iter().collect();
    bed.hosts.noise(&all, 30)?;
    let began = Instant::now();
    for round in 0..rounds {
        bed.ok(
            1,
            &format!("service update -q --detach --env-add ROUND={round} web"),
        )?;
        let mut running = Vec::new();
        until("all are new", Duration::from_secs(120), || {
            running = bed.running(1, "web")?;
            let new = running.iter().filter(|t| !seen.contains(&t.id)).count();
            Ok(is((new, running.len()), (CHURNING, CHURNING)))
        })?;
        seen.extend(running.into_iter().map(|t| t.id));
    }
    println!(
        "    {} tasks made in {:.0?} while 30 of 100 packets were lost",
        rounds as usize * CHURNING,
        began.elapsed()
    );
    bed.hosts.heal()?;
    bed.settled(1, 2)?;
    for host in 1..=3 {
        until(
            &format!("h{host} has the ways that the state says"),
            CORRECT,
            || Ok(is(ways(bed, host)?, said_ways(bed, host)?)),
        )?;
    }
    Ok(())
}

/// Tasks of a round, and rounds without `RSWARM_CHURN`.
const CHURNING: usize = 20;
const CHURN: u32 = 3;

/// Where a host's kernel sends what is for containers of other hosts.
fn ways(bed: &Bed, host: u8) -> Result<BTreeMap<Ipv4Addr, Ipv4Addr>, Failed> {
    let plane = bed.host(host).data().join("net/dataplane");
    let text = hosts::inside(&plane, || std::fs::read_to_string("/proc/thread-self/net/route"))??;
    let address = |hex: &str| {
        u32::from_str_radix(hex, 16)
            .ok()
            .map(|n| Ipv4Addr::from(n.to_le_bytes()))
    };
    let way = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, to, through, ..] = fields.as_slice() else {
            return None;
        };
        (*device == "overlay").then(|| Some((address(to)?, address(through)?)))?
    };
    Ok(text.lines().filter_map(way).collect())
}

/// The same by the state.
fn said_ways(bed: &Bed, host: u8) -> Result<BTreeMap<Ipv4Addr, Ipv4Addr>, Failed> {
    let shown: serde_json::Value = serde_json::from_str(&bed.ok(1, "network inspect back")?)?;
    let own = bed.host(host).name.clone();
    let tasks = shown[0]["Containers"].as_object().cloned().unwrap_or_default();
    let field = |task: &serde_json::Value, name: &str| task[name].as_str().unwrap_or_default().to_owned();
    if !tasks.values().any(|t| field(t, "Node") == own) {
        // It has no part in the network.
        return Ok(BTreeMap::new());
    }
    let elsewhere = tasks.values().filter(|t| field(t, "Node") != own);
    let way = |task: &serde_json::Value| -> Result<_, Failed> {
        Ok((
            field(task, "IPv4Address").parse()?,
            field(task, "EndpointIP").parse()?,
        ))
    };
    elsewhere.map(way).collect()
}
