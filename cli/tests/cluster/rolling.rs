//! Clients do not notice that the tasks behind a service come and go.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, equal, fail};

/// Its process is killed at once when it is asked to stop (STOPSIGNAL of the image), so whatever reaches it then fails.
const WEB: &str = "service create -q --name web --network back --replicas 4 --publish 8000:8080 --health-cmd 'wget -q -O \
- http://127.0.0.1:8080/' --health-interval 1s --health-start-period 10s --health-start-interval 100ms --update-monitor 0s \
--update-delay 0s web:v1";
/// Clients at each place: together they send about 500 requests a second.
const CLIENTS: usize = 3;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// Between its connection and its request: whoever is stopped meanwhile has not answered.
const THINKS: Duration = Duration::from_millis(25);
/// What the third host hears it hears late.
const LATE: (&str, &str) = ("FAILPOINTS", "agent.before_assign=sleep(150)");
/// A request that has no answer by then has none. Before the kernel tries to connect again (1 s) it is not late yet.
const ANSWER: Duration = Duration::from_secs(5);
/// Updates of each kind.
const ROUNDS: u32 = 2;
/// Failures that are shown.
const SHOWN: usize = 5;

/// Somebody who asks again and again.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Clients {
    /// Clients in each namespace, for its address.
    fn start(all: Vec<(PathBuf, SocketAddr)>) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let failed = Arc::<Mutex<Vec<String>>>::default();
        let client = |(namespace, target): (PathBuf, SocketAddr)| {
            let (stop, sent, failed) = (stop.clone(), sent.clone(), failed.clone());
            std::thread::spawn(move || {
                let note = |text: String| failed.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                let asking = hosts::inside(&namespace, || {
                    let began = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = ask(target) {
                            let at = began.elapsed().as_millis();
                            note(format!("{at} ms: {target} from {}: {error}", namespace.display()));
                        }
                        sent.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(PAUSE);
                    }
                });
                if let Err(error) = asking {
                    note(format!("in {}: {error}", namespace.display()));
                }
            })
        };
        let many = all.into_iter().flat_map(|one| vec![one; CLIENTS]);
        let threads = many.map(client).collect();
        Self {
            stop,
            sent,
            failed,
            threads,
        }
    }

    /// How many requests there were, and what was wrong with those that failed.
    pub(crate) fn end(mut self) -> (usize, Vec<String>) {
        self.stop();
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.sent.load(Ordering::Relaxed), failed)
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ask(target: SocketAddr) -> std::io::Result<()> {
    ask_after(THINKS, target)
}

/// A client who knows at once what it wants.
#[allow(dead_code, reason = "the bench has it")]
pub(crate) fn ask_at_once(target: SocketAddr) -> std::io::Result<()> {
    ask_after(Duration::ZERO, target)
}

fn ask_after(thinks: Duration, target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    std::thread::sleep(thinks);
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.contains("hello") {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("the answer was {text:?}")))
    }
}

/// Updates of both orders, scaling up and down, and a drain, under requests from all hosts, from outside and from a
/// container: none fails.
pub(crate) fn no_request_is_lost(bed: &Bed) -> Outcome {
    let late = bed.host(3);
    equal("h3's daemon ended with", late.stop(), Some(0))?;
    late.boot_with(&[LATE])?;
    bed.settled(1, 2)?;
    let clients = begin(bed, "")?;
    let began = Instant::now();
    for round in 0..ROUNDS {
        update(bed, round)?;
        bed.ok(1, "service scale web=6")?;
        bed.ok(1, "service scale web=3")?;
    }
    bed.ok(1, "node update --availability drain h2")?;
    bed.runs(1, "web", 3)?;
    bed.ok(1, "node update --availability active h2")?;
    let took = began.elapsed();
    none_failed(clients, took)
}

/// Ends the clients, of whose requests none may have failed.
pub(crate) fn none_failed(clients: Clients, took: Duration) -> Outcome {
    let (sent, failed) = clients.end();
    println!("    {sent} requests in {took:.1?}, {} failed", failed.len());
    if let Some(shown) = failed.get(..failed.len().min(SHOWN)).filter(|s| !s.is_empty()) {
        return fail(format!("{} of {sent} requests failed: {shown:#?}", failed.len()));
    }
    equal("enough requests", sent > 100, true)
}

/// A new version, the old task first and then the new one first.
fn update(bed: &Bed, round: u32) -> Outcome {
    for order in ["stop-first", "start-first"] {
        let change = format!("--update-order {order} --env-add ROUND={round}-{order}");
        bed.ok(1, &format!("service update -q {change} web"))?;
    }
    Ok(())
}

/// So many updates of each kind; answers the requests and what was wrong with those that failed.
#[allow(dead_code, reason = "the bench has it, where the scenario has less")]
pub(crate) fn updates(bed: &Bed, rounds: u32) -> Result<(usize, Vec<String>), Failed> {
    let clients = begin(bed, "")?;
    for round in 0..rounds {
        update(bed, round)?;
    }
    Ok(clients.end())
}

/// A service on three hosts, in a network with such options, and clients who ask it.
pub(crate) fn begin(bed: &Bed, options: &str) -> Result<Clients, Failed> {
    bed.ok(1, &format!("network create -d overlay {options} back"))?;
    bed.ok(1, WEB)?;
    bed.ok(
        1,
        "service create -q --name ask --mode global --network back web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 4)?;
    bed.runs(1, "ask", 3)?;
    let vip = virtual_address(bed)?;
    let mut clients: Vec<(PathBuf, SocketAddr)> = (1..=3)
        .map(|host| {
            let host = bed.host(host);
            (
                host.namespace().to_owned(),
                SocketAddr::from((host.address(), 8000)),
            )
        })
        .collect();
    clients.push((
        bed.hosts.outside(),
        SocketAddr::from((bed.host(2).address(), 8000)),
    ));
    let containers = bed.containers(3, "ask")?;
    let Some(pid) = containers.values().next() else {
        return fail("no container asks");
    };
    clients.push((
        PathBuf::from(format!("/proc/{pid}/ns/net")),
        SocketAddr::from((vip, 8080)),
    ));
    for (namespace, target) in &clients {
        let target = *target;
        let answer = hosts::inside(namespace, move || ask(target));
        answer?.map_err(|e| format!("before: {target} from {}: {e}", namespace.display()))?;
    }
    Ok(Clients::start(clients))
}

fn virtual_address(bed: &Bed) -> Result<Ipv4Addr, Failed> {
    let text = bed.ok(1, "service inspect web")?;
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let vip = all[0]["Endpoint"]["VirtualIPs"][0]["Addr"]
        .as_str()
        .unwrap_or_default();
    let address = vip.split('/').next().unwrap_or_default();
    address
        .parse()
        .map_err(|e| format!("no virtual address ({e}):\n{text}").into())
}
