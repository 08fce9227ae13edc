//! What networks cost: dataplanes of several hosts on one machine, and a cluster of real daemons.
//!
//! `cargo bench --bench network` prints one JSON object at the end; figures are of one run, ratios where they compare, each
//! the median of rounds in which what is compared takes turns (streams: the mean, as each flow may be carried by another CPU). Needs root. `--only NAME,…` runs some parts: overlay,
//! encrypted (in userspace), vip, update, mesh, reach, rolling or docker (its overlay, where Docker Engine is installed). The way that hides clients behind their host (SNAT), with which `mesh` compares, is made
//! by one rule of `nft` (Debian: nftables). `--packet-steering sender` measures dataplanes of daemons that were started with it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench stops where something is not as it should be"
)]

#[path = "../tests/cluster/bed.rs"]
#[allow(dead_code, reason = "scenarios have more")]
mod bed;
#[path = "network/docker.rs"]
mod docker;
#[path = "../tests/cluster/rolling.rs"]
#[allow(dead_code, reason = "its scenario is not run here")]
mod rolling;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bed::Bed;
use net::{
    Dataplane, DataplaneConfig, Encryption, Endpoint, EndpointAddress, EndpointConfig, Key, Overlay,
    Protocol, Remote, Steering, Wanted, Wire, inside,
};

const PORT: u16 = 8080;
const PUBLISHED: u16 = 80;
/// Rounds of everything that is compared.
const ROUNDS: usize = 7;
/// Streams of everything that is compared, and how long bytes are sent by each.
const STREAMS: usize = 16;
const STREAM: Duration = Duration::from_millis(600);
/// Round trips for a latency, and connections for a rate.
const TRIPS: usize = 3000;
const CONNECTIONS: usize = 1500;
/// A large cluster: services with endpoints each.
const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 10;
/// Rolling updates of each order.
const UPDATES: u32 = 10;
/// Services that are made for the time until they are reached.
const REACHES: usize = 10;

/// An address of the only network.
fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 7, 0, 0)) + number).into()
}

/// Hosts 1 to 3 with dataplanes, and host 4 without; containers `a` on host 1 and `b` on host 2.
struct Fabric {
    wire: Wire,
    planes: Vec<Dataplane>,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    a: PathBuf,
    b: PathBuf,
}

const A: u32 = 2;
const B: u32 = 3;
/// Containers of an encrypted network.
const C: u32 = 4;
const D: u32 = 5;
const VIP: u32 = 100;
/// The address behind which clients are hidden for a comparison.
const HIDDEN: u32 = 99;

impl Fabric {
    fn new(steering: Steering) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut wire = Wire::make(&dir.path().join("wire")).unwrap();
        (1..=4).for_each(|host| wire.add(host).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let planes: Vec<Dataplane> = (1..=3)
            .map(|host| {
                let config = DataplaneConfig {
                    name: "bench".into(),
                    state_dir: dir.path().join(format!("h{host}")),
                    upstream: vec![],
                    encryption: Encryption::Userspace,
                    steering,
                };
                inside(&wire.namespace(host), || {
                    runtime.block_on(Dataplane::open(config)).unwrap()
                })
                .unwrap()
            })
            .collect();
        let mut fabric = Self {
            wire,
            planes,
            runtime,
            dir,
            a: PathBuf::new(),
            b: PathBuf::new(),
        };
        (fabric.a, fabric.b) = (fabric.attach(1, "a", A), fabric.attach(2, "b", B));
        (1..=3).for_each(|host| fabric.apply(host, &wanted(host, 1)));
        fabric
    }

    fn attach(&self, host: usize, id: &str, number: u32) -> PathBuf {
        let endpoint = EndpointConfig {
            id: id.into(),
            addresses: vec![EndpointAddress {
                address: ip(number),
                subnets: vec![(ip(0), 16)],
                internal: false,
            }],
        };
        self.runtime
            .block_on(self.planes[host - 1].attach(endpoint))
            .unwrap()
    }

    fn apply(&self, host: u8, wanted: &Wanted) {
        let plane = &self.planes[usize::from(host) - 1];
        let applied = self.runtime.block_on(plane.apply(wanted.clone())).unwrap();
        assert!(applied.unreachable.is_none(), "{:?}", applied.unreachable);
    }

    fn host(&self, number: u8) -> PathBuf {
        self.wire.namespace(number)
    }

    fn end(self) {
        for plane in &self.planes {
            self.runtime.block_on(plane.destroy()).unwrap();
        }
    }
}

/// What a host is to do: one network with the two containers, a virtual address and a port with `b` behind them, and more
/// services beside, with endpoints that are on host 3.
fn wanted(host: u8, services: u32) -> Wanted {
    let endpoint = Endpoint {
        network: 1,
        internal: false,
        encrypted: false,
    };
    let others = (1..services).flat_map(|s| (0..ENDPOINTS).map(move |e| ip(1000 + s * ENDPOINTS + e)));
    let places = [(A, 1), (B, 2), (HIDDEN, 1)].map(|(n, h)| (ip(n), h));
    let places: Vec<(IpAddr, u8)> = places.into_iter().chain(others.map(|a| (a, 3))).collect();
    let behind = |s: u32| {
        (0..ENDPOINTS)
            .map(move |e| ip(1000 + s * ENDPOINTS + e))
            .collect()
    };
    let mut vips: BTreeMap<IpAddr, (u32, Vec<IpAddr>)> =
        (1..services).map(|s| (ip(30_000 + s), (1, behind(s)))).collect();
    vips.insert(ip(VIP), (1, vec![ip(B)]));
    let here = places
        .iter()
        .filter(|(address, h)| *h == host && *address != ip(HIDDEN));
    Wanted {
        endpoints: here.map(|(address, _)| (*address, endpoint)).collect(),
        vips,
        ports: [((Protocol::Tcp, PUBLISHED), vec![(ip(B), PORT)])].into(),
        published: [(ip(B), Protocol::Tcp, PORT)].into(),
        overlay: Overlay {
            own: Some(Wire::address(host)),
            hosts: (1..=3).map(Wire::address).collect(),
            keys: BTreeMap::new(),
            remote: (places.iter())
                .filter(|(_, h)| *h != host)
                .map(|(address, h)| {
                    let remote = Remote {
                        network: 1,
                        host: Wire::address(*h),
                        encrypted: false,
                    };
                    (*address, remote)
                })
                .collect(),
        },
        subnets: [(ip(0), 16)].into(),
        ..Wanted::default()
    }
}

/// What a server does with each connection.
#[derive(Clone, Copy)]
enum Serve {
    /// Takes everything.
    Sink,
    /// Sends back what comes.
    Echo,
}

/// Serves in a namespace until the process ends.
fn serve(namespace: &Path, port: u16, how: Serve) {
    let listener = inside(namespace, || TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut buffer = vec![0; 256 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if matches!(how, Serve::Echo) && stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// Gbit/s of one stream.
fn throughput(from: &Path, to: (IpAddr, u16)) -> f64 {
    inside(from, || {
        let mut stream = TcpStream::connect(to).unwrap();
        let bytes = vec![7u8; 128 << 10];
        let (began, mut sent) = (Instant::now(), 0usize);
        while began.elapsed() < STREAM {
            stream.write_all(&bytes).unwrap();
            sent += bytes.len();
        }
        sent as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
    })
    .unwrap()
}

/// Microseconds of a round trip, the median.
fn latency(from: &Path, to: (IpAddr, u16)) -> f64 {
    inside(from, || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut times: Vec<f64> = (0..TRIPS)
            .map(|_| {
                let began = Instant::now();
                stream.write_all(&[1]).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                began.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        median(&mut times)
    })
    .unwrap()
}

/// Connections a second, one after another, each with a request; and the median of how long one takes to be set up (µs).
fn connections(from: &Path, to: (IpAddr, u16)) -> (f64, f64) {
    inside(from, || {
        let began = Instant::now();
        let mut times: Vec<f64> = (0..CONNECTIONS)
            .map(|_| {
                let one = Instant::now();
                let mut stream = TcpStream::connect(to).unwrap();
                let setup = one.elapsed().as_secs_f64() * 1e6;
                stream.write_all(&[1]).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                // Ports do not run out: none waits (TIME_WAIT).
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                setup
            })
            .collect();
        (
            CONNECTIONS as f64 / began.elapsed().as_secs_f64(),
            median(&mut times),
        )
    })
    .unwrap()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Medians of two figures that take turns.
fn in_turn(mut one: impl FnMut() -> f64, mut other: impl FnMut() -> f64) -> (f64, f64) {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ones.push(one());
        others.push(other());
    }
    (median(&mut ones), median(&mut others))
}

/// Means of two figures that take turns.
fn streams_in_turn(mut one: impl FnMut() -> f64, mut other: impl FnMut() -> f64) -> (f64, f64) {
    let (ones, others): (Vec<f64>, Vec<f64>) = (0..STREAMS).map(|_| (one(), other())).unzip();
    (mean(&ones), mean(&others))
}

/// Overlay over underlay: throughput, and latency.
fn overlay(fabric: &Fabric) -> (f64, f64) {
    for (namespace, base) in [(&fabric.host(2), 9000), (&fabric.b, 9000)] {
        serve(namespace, base, Serve::Sink);
        serve(namespace, base + 1, Serve::Echo);
    }
    let h1 = fabric.host(1);
    let under = |port| (Wire::address(2).into(), port);
    let over = |port| (ip(B), port);
    let (plain, tunnel) = streams_in_turn(
        || throughput(&h1, under(9000)),
        || throughput(&fabric.a, over(9000)),
    );
    println!("one TCP stream between hosts: {plain:.1} Gbit/s, between containers {tunnel:.1} Gbit/s");
    let (near, far) = in_turn(|| latency(&h1, under(9001)), || latency(&fabric.a, over(9001)));
    println!("a round trip between hosts: {near:.1} µs, between containers {far:.1} µs");
    (tunnel / plain, far / near)
}

/// An encrypted network over one that is not, both between containers: throughput, and latency.
fn encrypted(fabric: &Fabric) -> (f64, f64) {
    let keys: BTreeMap<Ipv4Addr, Key> = (1..=3u8)
        .zip(&fabric.planes)
        .map(|(host, plane)| (Wire::address(host), fabric.runtime.block_on(plane.key()).unwrap()))
        .collect();
    let (c, d) = (ip(C), ip(D));
    let (from, to) = (fabric.attach(1, "c", C), fabric.attach(2, "d", D));
    for host in 1..=3 {
        let mut wanted = wanted(host, 1);
        wanted.overlay.keys = keys.clone();
        for (address, at) in [(c, 1), (d, 2)] {
            if at == host {
                let endpoint = Endpoint {
                    network: 2,
                    internal: false,
                    encrypted: true,
                };
                wanted.endpoints.insert(address, endpoint);
            } else {
                let remote = Remote {
                    network: 2,
                    host: Wire::address(at),
                    encrypted: true,
                };
                wanted.overlay.remote.insert(address, remote);
            }
        }
        fabric.apply(host, &wanted);
    }
    for namespace in [&fabric.b, &to] {
        serve(namespace, 9002, Serve::Sink);
        serve(namespace, 9003, Serve::Echo);
    }
    let (plain, secret) = streams_in_turn(
        || throughput(&fabric.a, (ip(B), 9002)),
        || throughput(&from, (d, 9002)),
    );
    println!(
        "one TCP stream between containers: {plain:.1} Gbit/s, encrypted in userspace {secret:.2} Gbit/s"
    );
    let (near, far) = in_turn(|| latency(&fabric.a, (ip(B), 9003)), || latency(&from, (d, 9003)));
    println!("a round trip between containers: {near:.1} µs, encrypted in userspace {far:.1} µs");
    (secret / plain, far / near)
}

/// Connections through a virtual address over those without, with so many services.
fn vip(fabric: &Fabric, services: u32) -> f64 {
    (1..=3).for_each(|host| fabric.apply(host, &wanted(host, services)));
    let (direct, through) = in_turn(
        || connections(&fabric.a, (ip(B), PORT)).0,
        || connections(&fabric.a, (ip(VIP), PORT)).0,
    );
    println!(
        "{services} services: {direct:.0} connections/s to an address, {through:.0} through a virtual address"
    );
    through / direct
}

/// Microseconds of an endpoint more or less among many services: in the kernel, and from what is wanted to its end.
fn endpoint_update(fabric: &Fabric) -> (f64, f64) {
    let few = wanted(1, SERVICES);
    let mut many = few.clone();
    let more = ip(60_000);
    let far = few.overlay.remote.values().next().copied().unwrap();
    many.overlay.remote.insert(more, far);
    many.vips
        .entry(ip(30_001))
        .and_modify(|(_, behind)| behind.push(more));
    fabric.apply(1, &few);
    let (mut kernel, mut whole) = (Vec::new(), Vec::new());
    for round in 0..200 {
        let next = if round % 2 == 0 { &many } else { &few };
        let next = next.clone();
        let began = Instant::now();
        let applied = fabric.runtime.block_on(fabric.planes[0].apply(next)).unwrap();
        whole.push(began.elapsed().as_secs_f64() * 1e6);
        kernel.push(applied.kernel.as_secs_f64() * 1e6);
    }
    let (kernel, whole) = (median(&mut kernel), median(&mut whole));
    println!(
        "one endpoint more or less among {SERVICES} services: {kernel:.0} µs in the kernel's maps, {whole:.0} µs in all"
    );
    (kernel, whole)
}

/// A published port through a host without the task, over the way that hides its clients: throughput, and setup.
fn mesh(fabric: &Fabric) -> Option<(f64, f64)> {
    let client = fabric.host(4);
    serve(&fabric.b, PORT + 1, Serve::Sink);
    let mut plain = (Vec::new(), Vec::new());
    let mut hidden = (Vec::new(), Vec::new());
    let sink = |host: u8| {
        let mut sink = wanted(host, 1);
        sink.ports
            .insert((Protocol::Tcp, PUBLISHED + 1), vec![(ip(B), PORT + 1)]);
        sink.published.insert((ip(B), Protocol::Tcp, PORT + 1));
        sink
    };
    (1..=3).for_each(|host| fabric.apply(host, &sink(host)));
    let inner = fabric.dir.path().join("h1/dataplane");
    let rule = format!(
        "table ip hide {{ chain post {{ type nat hook postrouting priority 90; oifname \"overlay\" ip saddr {} snat to {}; }}; }}",
        Wire::address(4),
        ip(HIDDEN)
    );
    for _ in 0..STREAMS {
        for (hide, figures) in [(false, &mut plain), (true, &mut hidden)] {
            if hide && !nft(&inner, &rule) {
                println!("skipped: the way that hides clients needs nft (apt-get install nftables)");
                return None;
            }
            figures
                .0
                .push(throughput(&client, (Wire::address(1).into(), PUBLISHED + 1)));
            figures
                .1
                .push(connections(&client, (Wire::address(1).into(), PUBLISHED)).1);
            if hide {
                nft(&inner, "delete table ip hide");
            }
        }
    }
    let [plain_stream, plain_setup] = [mean(&plain.0), median(&mut plain.1)];
    let [hidden_stream, hidden_setup] = [mean(&hidden.0), median(&mut hidden.1)];
    println!(
        "a published port through another host: {plain_stream:.1} Gbit/s, set up in {plain_setup:.0} µs; with clients hidden \
         {hidden_stream:.1} Gbit/s, {hidden_setup:.0} µs"
    );
    Some((plain_stream / hidden_stream, plain_setup / hidden_setup))
}

fn nft(namespace: &Path, text: &str) -> bool {
    let run = || Command::new("nft").arg(text).status().is_ok_and(|s| s.success());
    inside(namespace, run).unwrap()
}

/// Milliseconds from when managers hear that a task runs until it answers on each of five hosts: the median over services
/// of the last host.
fn reach() -> Result<f64, libtest_mimic::Failed> {
    let bed = Bed::hosts(5)?;
    let result = bed.form(1, 4).and_then(|()| {
        let mut last = Vec::new();
        for round in 0..REACHES {
            let port = 8100 + u16::try_from(round).unwrap_or(0);
            let targets: Vec<(PathBuf, SocketAddr)> = (bed.hosts.all().iter())
                .map(|h| (h.namespace().to_owned(), SocketAddr::from((h.address(), port))))
                .collect();
            let clients: Vec<_> = (targets.into_iter())
                .map(|(namespace, target)| std::thread::spawn(move || first_answer(&namespace, target)))
                .collect();
            bed.ok(
                1,
                &format!("service create -q --name r{round} --publish {port}:8080 web:v1"),
            )?;
            let answers: Vec<f64> = clients.into_iter().map(|c| c.join().unwrap()).collect();
            let ran = running_since(&bed, &format!("r{round}"))?;
            last.push(answers.iter().fold(f64::MIN, |a, b| a.max(*b)) - ran);
            bed.ok(1, &format!("service rm r{round}"))?;
        }
        println!("from Running to an answer on each of five hosts: {last:.0?} ms");
        Ok(median(&mut last))
    });
    bed.end()?;
    result
}

/// Milliseconds since 1970 at which a port answers for the first time.
fn first_answer(namespace: &Path, target: SocketAddr) -> f64 {
    inside(namespace, || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if rolling::ask_at_once(target).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        now_ms()
    })
    .unwrap()
}

fn now_ms() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64() * 1000.0
}

/// When the only task of a service ran, as its node said.
fn running_since(bed: &Bed, service: &str) -> Result<f64, libtest_mimic::Failed> {
    let task = bed.runs(1, service, 1)?.swap_remove(0);
    let text = bed.ok(1, &format!("inspect --type task {}", task.id))?;
    let found: serde_json::Value = serde_json::from_str(&text)?;
    let stamp = found[0]["Status"]["Timestamp"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let time = Command::new("date").args(["-d", &stamp, "+%s.%N"]).output()?;
    let seconds: f64 = String::from_utf8_lossy(&time.stdout).trim().parse()?;
    Ok(seconds * 1000.0)
}

fn updates() -> Result<(usize, usize), libtest_mimic::Failed> {
    let bed = Bed::hosts(3)?;
    let result = bed.form(1, 2).and_then(|()| rolling::updates(&bed, UPDATES));
    bed.end()?;
    let (sent, failed) = result?;
    failed.iter().take(5).for_each(|why| println!("failed: {why}"));
    Ok((sent, failed.len()))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    // `cargo test --benches` only asks whether it starts.
    if args.iter().any(|a| a == "--test") {
        println!("network: run with cargo bench");
        return;
    }
    let only = args
        .iter()
        .position(|a| a == "--only")
        .and_then(|at| args.get(at + 1))
        .cloned();
    let wanted = |part: &str| {
        only.as_deref()
            .is_none_or(|o| o.split(',').any(|one| one == part))
    };
    let mut figures: Vec<(&str, f64)> = Vec::new();
    let parts: BTreeSet<&str> = ["overlay", "encrypted", "vip", "update", "mesh"]
        .into_iter()
        .filter(|p| wanted(p))
        .collect();
    if !parts.is_empty() {
        let sender = args.windows(2).any(|w| w == ["--packet-steering", "sender"]);
        let fabric = Fabric::new(if sender {
            Steering::Sender
        } else {
            Steering::Spread
        });
        serve(&fabric.b, PORT, Serve::Echo);
        if parts.contains("overlay") {
            let (tcp, latency) = overlay(&fabric);
            figures.extend([("overlay_tcp_ratio", tcp), ("overlay_latency_ratio", latency)]);
        }
        if parts.contains("encrypted") {
            let (tcp, latency) = encrypted(&fabric);
            figures.extend([("encrypted_tcp_ratio", tcp), ("encrypted_latency_ratio", latency)]);
        }
        if parts.contains("update") {
            let (kernel, whole) = endpoint_update(&fabric);
            figures.extend([
                ("endpoint_update_us", kernel),
                ("endpoint_update_whole_us", whole),
            ]);
        }
        if parts.contains("vip") {
            figures.push(("vip_conn_ratio_1", vip(&fabric, 1)));
            figures.push(("vip_conn_ratio_1000", vip(&fabric, SERVICES)));
        }
        if parts.contains("mesh")
            && let Some((stream, setup)) = mesh(&fabric)
        {
            figures.extend([("mesh_ratio", stream), ("mesh_setup_ratio", setup)]);
        }
        fabric.end();
    }
    if wanted("reach") {
        figures.push(("running_to_reachable_ms", reach().unwrap_or_else(|e| stop(&e))));
    }
    if wanted("rolling") {
        let (sent, failed) = updates().unwrap_or_else(|e| stop(&e));
        println!(
            "{} rolling updates: {failed} of {sent} requests failed",
            2 * UPDATES
        );
        figures.push(("rolling_failed_requests", failed as f64));
    }
    if wanted("docker") {
        let measured = docker::overlay().unwrap_or_else(|e| stop(&e.into()));
        if let Some(ratios) = measured {
            figures.extend([
                ("docker_overlay_tcp_ratio", ratios.tcp),
                ("docker_overlay_latency_ratio", ratios.latency),
            ]);
            figures.extend(ratios.encrypted.map(|r| ("docker_encrypted_tcp_ratio", r)));
        }
    }
    let text: Vec<String> = figures
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value:.3}"))
        .collect();
    println!("{{{}}}", text.join(","));
}

#[allow(
    clippy::panic,
    reason = "a bench stops where something is not as it should be"
)]
fn stop(failed: &libtest_mimic::Failed) -> ! {
    panic!("{}", bed::text_of(failed))
}
