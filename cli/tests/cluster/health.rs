//! Tasks that are not ready, or not healthy: who sends them connections, and who restarts them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until, within};

/// A web server that says which task it is. It is ready while there is no file /tmp/out, and healthy while it has its page.
const WEB: &str = "service create -q --name web --network back --replicas 3 --publish 8000:80 --health-http 80/index.html \
--health-interval 200ms --health-retries 2 --health-start-period 10s --health-start-interval 50ms --ready-cmd 'test ! -e \
/tmp/out' --ready-interval 100ms --ready-start-interval 50ms --ready-retries 1 --update-monitor 0s --update-delay 0s \
--restart-delay 0s web:v1 sh -c 'busybox mkdir -p /tmp/w; cd /tmp/w; busybox hostname > index.html; exec httpd -f -p 80 -h \
/tmp/w'";
/// In which a task that is not ready is out of names and balancing on every node, and in again (features.md row 27).
const OUT: Duration = Duration::from_secs(1);
/// Requests by which it is seen whom a virtual address leads to: of three tasks one is missed once in 10,000 such looks.
const REQUESTS: usize = 24;
/// An answer that takes longer is none.
const ANSWER: Duration = Duration::from_millis(500);

/// Where a host's own tasks ask from, and the virtual address of the service.
struct Asker {
    namespace: PathBuf,
    vip: Ipv4Addr,
}

/// What a host sees of a service: how many addresses its name `tasks.` has, and who answers at its virtual address.
type View = (usize, BTreeSet<String>);

impl Asker {
    fn on(bed: &Bed, host: u8, service: &str) -> Result<Self, Failed> {
        let containers = bed.containers(host, "ask")?;
        let pid = containers.values().next().ok_or("nobody asks")?;
        let text = bed.ok(1, &format!("service inspect {service}"))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let vip = all[0]["Endpoint"]["VirtualIPs"][0]["Addr"].as_str();
        Ok(Self {
            namespace: format!("/proc/{pid}/ns/net").into(),
            vip: vip.unwrap_or_default().parse()?,
        })
    }

    fn sees(&self, service: &str) -> Result<View, Failed> {
        let name = format!("tasks.{service}");
        let named = match hosts::inside(&self.namespace, move || resolve(&name))? {
            // Who answers begins anew, as after a daemon: it is asked again, as resolvers do.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => usize::MAX,
            named => named?,
        };
        Ok((named, self.answering()?))
    }

    /// Who answers, whether or not the daemon of the host runs.
    fn answering(&self) -> Result<BTreeSet<String>, Failed> {
        let vip = SocketAddr::from((self.vip, 80));
        let all = || (0..REQUESTS).filter_map(|_| get(vip).ok()).collect();
        Ok(hosts::inside(&self.namespace, all)?)
    }
}

/// How many addresses a name has, as the resolver of a container says.
fn resolve(name: &str) -> std::io::Result<usize> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, "127.0.0.11:53")?;
    let mut answer = [0; 1500];
    let got = socket.recv(&mut answer)?;
    Ok(if got < 12 { 0 } else { answer[7].into() })
}

/// Which task answers.
fn get(target: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.lines().last().unwrap_or_default().trim().to_owned())
}

/// The task of `web` on each host: container and process.
fn by_host(bed: &Bed) -> Result<BTreeMap<u8, (String, u64)>, Failed> {
    let mut all = BTreeMap::new();
    for host in 1..=3 {
        let found = bed.containers(host, "web.")?;
        all.extend(found.into_iter().map(|one| (host, one)));
    }
    Ok(all)
}

/// Does something in the task of a host.
fn inside(bed: &Bed, host: u8, command: &str) -> Outcome {
    let found = bed.containers(host, "web.")?;
    let container = found.keys().next().ok_or("no task there")?;
    bed.ok(host, &format!("exec {container} busybox {command}"))?;
    Ok(())
}

fn askers(bed: &Bed, service: &str) -> Result<Vec<Asker>, Failed> {
    (1..=3).map(|host| Asker::on(bed, host, service)).collect()
}

/// Waits until those hosts all see so many tasks, by name and behind the virtual address.
fn all_see(askers: &[Asker], count: usize, what: &str) -> Outcome {
    let took = until(what, PATIENCE, || {
        for asker in askers {
            let (named, answering) = asker.sees("web")?;
            if let Err(not_yet) = is((named, answering.len()), (count, count)) {
                return Ok(Err(not_yet));
            }
        }
        Ok(Ok(()))
    })?;
    within(what, took, OUT)
}

fn begin(bed: &Bed) -> Result<Vec<Asker>, Failed> {
    bed.ok(1, "network create -d overlay back")?;
    bed.ok(1, WEB)?;
    bed.ok(
        1,
        "service create -q --name ask --mode global --network back web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 3)?;
    bed.runs(1, "ask", 3)?;
    equal("hosts with a task", by_host(bed)?.len(), 3)?;
    askers(bed, "web")
}

/// A task whose readiness comes and goes is out of names and balancing and in again within a second on every node, and
/// nothing else happens to it: also where its host reaches no manager, and where its agent starts anew meanwhile.
pub(crate) fn readiness_comes_and_goes(bed: &Bed) -> Outcome {
    let askers = begin(bed)?;
    all_see(&askers, 3, "all three serve")?;
    let before = by_host(bed)?;
    let tasks = bed.tasks(1, "web")?;
    for host in [2, 3, 1] {
        inside(bed, host, "touch /tmp/out")?;
        all_see(&askers, 2, &format!("h{host}'s task is out on every node"))?;
        let shown = bed.ok(1, "service ps web")?;
        contains(&shown, "(not ready")?;
        contains(&bed.ok(1, "service ls")?, "2/3")?;
        inside(bed, host, "rm /tmp/out")?;
        all_see(&askers, 3, &format!("h{host}'s task is back on every node"))?;
    }
    equal("tasks after that", bed.tasks(1, "web")?, tasks.clone())?;

    // Nobody is ready: clients are refused, and do not wait.
    (1..=3).try_for_each(|host| inside(bed, host, "touch /tmp/out"))?;
    all_see(&askers, 0, "none is ready")?;
    let outside = SocketAddr::from((bed.host(2).address(), 8000));
    for (namespace, target) in [
        (askers[0].namespace.clone(), SocketAddr::from((askers[0].vip, 80))),
        (bed.hosts.outside(), outside),
    ] {
        let began = Instant::now();
        let refused = hosts::inside(&namespace, move || TcpStream::connect_timeout(&target, PATIENCE))?;
        equal("somebody answers", refused.is_ok(), false)?;
        within("a client is refused", began.elapsed(), ANSWER)?;
    }
    (1..=3).try_for_each(|host| inside(bed, host, "rm /tmp/out"))?;
    all_see(&askers, 3, "all are ready again")?;

    // The agent of one that is not ready starts anew: it serves nobody meanwhile.
    inside(bed, 3, "touch /tmp/out")?;
    all_see(&askers, 2, "h3's task is out on every node")?;
    // What it knows is on its disk after a second.
    std::thread::sleep(Duration::from_millis(1500));
    equal("h3's daemon ended with", bed.host(3).stop(), Some(0))?;
    bed.host(3).boot()?;
    let until_then = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until_then {
        let answering = askers[2].answering()?;
        equal("tasks that h3 sends connections to", answering.len() <= 2, true)?;
    }
    bed.settled(1, 2)?;
    all_see(&askers, 2, "it is still out")?;
    inside(bed, 3, "rm /tmp/out")?;
    all_see(&askers, 3, "and back")?;

    // Without a manager its own host obeys at once, the others once they are told.
    bed.host(1).kill();
    inside(bed, 2, "touch /tmp/out")?;
    let own = until("h2 sends it nothing without a manager", PATIENCE, || {
        Ok(is(askers[1].sees("web")?.1.len(), 2))
    })?;
    within("h2 sends it nothing without a manager", own, OUT)?;
    bed.host(1).boot()?;
    bed.settled(1, 2)?;
    until("all know once there is a manager", PATIENCE, || {
        let counts: Result<Vec<usize>, Failed> = askers.iter().map(|a| Ok(a.sees("web")?.0)).collect();
        Ok(is(counts?, vec![2; 3]))
    })?;
    inside(bed, 2, "rm /tmp/out")?;
    until("and once it is ready again", PATIENCE, || {
        Ok(is(askers[0].sees("web")?.1.len(), 3))
    })?;
    equal("processes", by_host(bed)?, before)?;
    equal("tasks at the end", bed.tasks(1, "web")?, tasks)
}

/// What fails its health check over HTTP is replaced, with the answer as the reason; what is never healthy is never sent
/// a connection; a check over TCP needs no program in the image.
pub(crate) fn health_is_apart(bed: &Bed) -> Outcome {
    let askers = begin(bed)?;
    let before = by_host(bed)?;
    inside(bed, 2, "rm /tmp/w/index.html")?;
    until("the task without its page is replaced", PATIENCE, || {
        let now = by_host(bed)?;
        let replaced = now.get(&2).is_some_and(|task| before.get(&2) != Some(task));
        Ok(is((replaced, bed.running(1, "web")?.len()), (true, 3)))
    })?;
    let shown = bed.ok(1, "service ps --no-trunc web")?;
    contains(&shown, "unhealthy container: GET http://")?;
    contains(&shown, "404")?;
    let now = by_host(bed)?;
    equal(
        "the others",
        (now.get(&1), now.get(&3)),
        (before.get(&1), before.get(&3)),
    )?;
    all_see(&askers, 3, "the new one serves")?;

    bed.ok(
        1,
        "service create -q -d --name sick --network back --health-tcp 4444 --health-interval 300ms --health-retries 3 \
         --restart-delay 500ms web:v1 httpd -f -p 80 -h /www",
    )?;
    let asker = Asker::on(bed, 1, "sick")?;
    let mut failed = 0;
    until("it was restarted twice", PATIENCE, || {
        let (named, answering) = asker.sees("sick")?;
        equal(
            "what is sent to a task that was never healthy",
            (named, answering.len()),
            (0, 0),
        )?;
        let tasks = bed.tasks(1, "sick")?;
        equal(
            "tasks that ever ran",
            tasks.iter().any(|t| t.state == "Running"),
            false,
        )?;
        failed = tasks.iter().filter(|t| t.state == "Failed").count();
        Ok(is(failed >= 2, true))
    })?;
    contains(&bed.ok(1, "service ps --no-trunc sick")?, "Connection refused")?;

    // The start interval counts, not the interval (30 s; a command waits 5 s more to see that it stays so); neither probe needs a program, and neither waits for a reader.
    let began = Instant::now();
    bed.ok(
        1,
        "service create -q --name well --network back --health-tcp 80 --health-start-interval 50ms --health-start-period 20s \
         --ready-http 80/index.html --ready-start-interval 50ms web:v1 httpd -f -p 80 -h /www",
    )?;
    bed.ok(
        1,
        "service create -q --name loud --network back --health-start-interval 50ms --health-start-period 20s --health-cmd \
         'busybox yes | busybox head -c 300000; busybox yes | busybox head -c 300000 >&2' web:v1 sleep 1000000",
    )?;
    within("two services are well", began.elapsed(), Duration::from_secs(20))?;
    bed.runs(1, "well", 1)?;
    bed.runs(1, "loud", 1)?;

    // A probe that takes too long is ended, whoever it runs as.
    bed.ok(
        1,
        "service create -q -d --name slow --network back --user 1000 --ready-cmd 'sleep 4321' --ready-timeout 200ms \
         --ready-start-interval 50ms --constraint node.hostname==h1 web:v1 sleep 1000000",
    )?;
    until("it is said that the probe is slow", PATIENCE, || {
        let shown = bed.ok(1, "service ps slow")?;
        Ok(is(
            shown.contains("(not ready: the probe took longer than 200ms)"),
            true,
        )
        .map_err(|_| shown))
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let slow = bed.containers(1, "slow.")?;
    let container = slow.keys().next().ok_or("no slow task")?;
    let processes = bed.ok(1, &format!("exec {container} busybox ps -o args"))?;
    let probes = processes.lines().filter(|l| l.contains("4321")).count();
    equal("probes at a time (a shell and its sleep)", probes <= 4, true)?;
    let text = bed.ok(1, "service inspect well")?;
    contains(&text, "\"Readiness\"")?;
    Ok(())
}

/// A version that is never ready takes the place of no task (start first), or of one slot's (stop first), and says why.
pub(crate) fn never_ready_stops_nothing(bed: &Bed) -> Outcome {
    let askers = begin(bed)?;
    let before = by_host(bed)?;
    for (order, lost) in [("start-first", 0), ("stop-first", 1)] {
        bed.ok(
            1,
            &format!("service update -q -d --update-order {order} --ready-tcp 4444 web"),
        )?;
        let mut shown = String::new();
        until(
            "the new task starts and says why it is not ready",
            PATIENCE,
            || {
                shown = bed.ok(1, "service ps --no-trunc web")?;
                let starting = shown.lines().find(|l| l.contains("Starting"));
                Ok(
                    is(starting.is_some_and(|l| l.contains("Connection refused")), true)
                        .map_err(|_| shown.clone()),
                )
            },
        )?;
        // Long enough for the next slot, and for every slot after that.
        std::thread::sleep(Duration::from_secs(3));
        let now = by_host_all(bed)?;
        let kept = before.values().filter(|task| now.contains(task)).count();
        equal(&format!("tasks that were stopped ({order})"), 3 - kept, lost)?;
        all_see(&askers, 3 - lost, "those that are left serve")?;
        if lost > 0 {
            break;
        }
        bed.ok(1, "service update -q --ready-cmd 'test ! -e /tmp/out' web")?;
        until("after going back only the old ones run", PATIENCE, || {
            Ok(is(by_host_all(bed)?, before.values().cloned().collect()))
        })?;
    }
    bed.ok(1, "service update -q --no-readiness web")?;
    bed.runs(1, "web", 3)?;
    all_see(&askers, 3, "without a check they are ready")?;
    fail_if_unready(bed)
}

/// Containers of `web`, several on a host.
fn by_host_all(bed: &Bed) -> Result<BTreeSet<(String, u64)>, Failed> {
    Ok(bed.all_containers("web.")?.into_iter().collect())
}

fn fail_if_unready(bed: &Bed) -> Outcome {
    let shown = bed.ok(1, "service ps web")?;
    let unready = shown
        .lines()
        .any(|l| l.contains("Running") && l.contains("not ready"));
    if unready { fail(shown) } else { Ok(()) }
}
