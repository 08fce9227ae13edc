//! The dataplane against the real kernel: real namespaces, links, tables and connections. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use net::{
    Dataplane, DataplaneConfig, Encryption, Endpoint, EndpointAddress, EndpointConfig, Protocol, Steering,
    Wanted, Zone,
};

/// Runs something in a container's namespace, on a thread of its own.
fn within<T: Send + 'static>(namespace: &Path, job: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(namespace).expect("a namespace");
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).expect("enter it");
        job()
    })
    .join()
    .expect("the job")
}

/// A server in a container that answers each connection with its name and the address of its client.
fn serve(namespace: &Path, name: &'static str, port: u16) {
    let listener = within(namespace, move || {
        TcpListener::bind(("0.0.0.0", port)).expect("listen")
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let peer = stream.peer_addr().map(|p| p.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

fn ask(to: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_from(namespace: &Path, to: (IpAddr, u16)) -> std::io::Result<String> {
    within(namespace, move || ask(to))
}

/// A question by hand for the IPv4 addresses of one name.
fn resolve(namespace: &Path, name: &str) -> Vec<IpAddr> {
    resolve_as(namespace, name, 1)
}

/// A question by hand for a type of record: A (1) or AAAA (28).
fn resolve_as(namespace: &Path, name: &str, kind: u8) -> Vec<IpAddr> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, kind, 0, 1]);
    within(namespace, move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a time limit");
        socket.send_to(&query, "127.0.0.11:53").expect("ask");
        let mut buffer = [0u8; 1500];
        let len = socket.recv(&mut buffer).expect("an answer");
        let count = usize::from(buffer[7]);
        // Answers stand last, each with 12 bytes of pointer, type, class, time and length before its address.
        let each = if kind == 1 { 16 } else { 28 };
        let end = &buffer[len - count * each..len];
        end.chunks(each)
            .map(|a| match a.len() {
                16 => IpAddr::from(<[u8; 4]>::try_from(&a[12..]).expect("IPv4")),
                _ => IpAddr::from(<[u8; 16]>::try_from(&a[12..]).expect("IPv6")),
            })
            .collect()
    })
}

struct Bed {
    plane: Dataplane,
    dir: tempfile::TempDir,
    name: &'static str,
}

impl Bed {
    async fn new(name: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: the dataplane's kernel tests need root");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let plane = Dataplane::open(Self::config(name, dir.path()))
            .await
            .expect("a dataplane");
        Some(Self { plane, dir, name })
    }

    fn config(name: &str, dir: &Path) -> DataplaneConfig {
        DataplaneConfig {
            name: name.into(),
            state_dir: dir.to_owned(),
            upstream: vec![],
            encryption: Encryption::Auto,
            steering: Steering::default(),
        }
    }

    async fn attach(&self, id: &str, address: IpAddr) -> PathBuf {
        let endpoint = EndpointConfig {
            id: id.into(),
            addresses: vec![EndpointAddress {
                address,
                subnets: Vec::new(),
                internal: false,
            }],
        };
        self.plane.attach(endpoint).await.expect("attach")
    }
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 99, 0, last).into()
}

fn wanted(port: u16) -> Wanted {
    let endpoint = |network, internal| Endpoint {
        network,
        internal,
        encrypted: false,
    };
    let asker = |networks: &[u32], internal| (networks.to_vec(), internal);
    Wanted {
        endpoints: BTreeMap::from([
            (ip(2), endpoint(1, false)),
            (ip(3), endpoint(1, false)),
            (ip(4), endpoint(2, true)),
        ]),
        vips: BTreeMap::from([(ip(100), (1, vec![ip(2), ip(3)])), (ip(101), (1, vec![]))]),
        ports: BTreeMap::from([((Protocol::Tcp, port), vec![(ip(2), 8080), (ip(3), 8080)])]),
        zone: Zone {
            askers: BTreeMap::from([("a".into(), asker(&[1], false)), ("c".into(), asker(&[2], true))]),
            names: BTreeMap::from([
                (
                    (1, "web".into()),
                    vec![ip(100), "fd07::64".parse().expect("an address")],
                ),
                ((1, "tasks.web".into()), vec![ip(2), ip(3)]),
            ]),
            reverse: BTreeMap::new(),
            located: BTreeMap::new(),
        },
        ..Wanted::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_meet_by_address_virtual_address_name_and_port_and_nothing_else() {
    let Some(bed) = Bed::new("tst1").await else { return };
    let (a, b, c) = (
        bed.attach("a", ip(2)).await,
        bed.attach("b", ip(3)).await,
        bed.attach("c", ip(4)).await,
    );
    bed.plane.apply(wanted(18_091)).await.expect("apply");
    assert_eq!(
        bed.plane.apply(wanted(18_091)).await.expect("apply").changed,
        0,
        "again it changes nothing"
    );
    serve(&a, "a", 8080);
    serve(&b, "b", 8080);
    serve(&c, "c", 8080);

    assert_eq!(ask_from(&a, (ip(3), 8080)).expect("same network"), "b 10.99.0.2");
    assert!(ask_from(&a, (ip(4), 8080)).is_err(), "another network");
    assert!(ask_from(&c, (ip(2), 8080)).is_err(), "another network");
    assert!(
        ask_from(&c, (ip(100), 8080)).is_err(),
        "a virtual address of another network"
    );

    let seen: BTreeSet<String> = (0..40)
        .map(|_| ask_from(&b, (ip(100), 8080)).expect("virtual address"))
        .collect();
    // b reaches itself too; then it sees the gateway as its client.
    assert_eq!(
        seen,
        BTreeSet::from(["a 10.99.0.3".to_owned(), "b 169.254.1.1".to_owned()])
    );

    let began = Instant::now();
    assert!(ask_from(&a, (ip(101), 8080)).is_err(), "nothing stands behind it");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "and that is said at once: {:?}",
        began.elapsed()
    );

    let seen: BTreeSet<String> = (0..40)
        .map(|_| ask(([127, 0, 0, 1], 18_091)).expect("published")[..1].to_owned())
        .collect();
    assert_eq!(seen.len(), 2, "a published port reaches both");

    assert_eq!(resolve(&a, "web"), [ip(100)]);
    assert_eq!(
        resolve_as(&a, "web", 28),
        ["fd07::64".parse::<IpAddr>().expect("an address")]
    );
    assert!(resolve_as(&a, "tasks.web", 28).is_empty(), "it has none");
    assert_eq!(
        BTreeSet::from_iter(resolve(&a, "TASKS.web")),
        BTreeSet::from([ip(2), ip(3)])
    );
    assert!(resolve(&c, "web").is_empty(), "not a name of its network");
    bed.plane.destroy().await.expect("destroy");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_drop_no_connection() {
    let Some(bed) = Bed::new("tst2").await else { return };
    let (a, b) = (bed.attach("a", ip(2)).await, bed.attach("b", ip(3)).await);
    bed.plane.apply(wanted(18_092)).await.expect("apply");
    serve(&a, "a", 8080);
    serve(&b, "b", 8080);
    let client = std::thread::spawn(|| {
        let (mut done, mut failed) = (0, 0);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            match ask(([127, 0, 0, 1], 18_092)) {
                Ok(text) if !text.is_empty() => done += 1,
                Ok(_) | Err(_) => failed += 1,
            }
        }
        (done, failed)
    });
    let mut changes = 0;
    while !client.is_finished() {
        let mut next = wanted(18_092);
        let only = if changes % 2 == 0 { ip(2) } else { ip(3) };
        next.ports.insert((Protocol::Tcp, 18_092), vec![(only, 8080)]);
        bed.plane.apply(next).await.expect("apply");
        changes += 1;
    }
    let (done, failed) = client.join().expect("the client");
    println!("{done} connections over {changes} changes");
    assert!(
        done > 100 && changes > 20,
        "{done} connections, {changes} changes"
    );
    assert_eq!(failed, 0);
    bed.plane.destroy().await.expect("destroy");
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_are_carried_by_the_cpus_that_were_asked_for() {
    let Some(bed) = Bed::new("tst4").await else { return };
    let steered = |bed: &Bed| {
        let inner = bed.dir.path().join("dataplane");
        let mask = within(&inner, || {
            std::fs::read_to_string("/proc/sys/net/core/rps_default_mask")
        });
        mask.map(|m| m.trim().chars().any(|c| !matches!(c, '0' | ',')))
    };
    let Ok(spread) = steered(&bed) else {
        println!("skipped: this kernel has no net.core.rps_default_mask");
        return;
    };
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").expect("the CPUs");
    let many = online.contains(['-', ',']);
    assert_eq!(spread, many, "by all CPUs, where there are several");
    let sender = DataplaneConfig {
        steering: Steering::Sender,
        ..Bed::config(bed.name, bed.dir.path())
    };
    let again = Dataplane::open(sender).await.expect("it is adopted");
    assert!(!steered(&bed).expect("the setting"), "by the sender's alone");
    again.destroy().await.expect("destroy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_is_adopted_and_leaves_nothing() {
    let counts = |name: &str| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let links = std::fs::read_to_string("/proc/net/dev").expect("links");
        (
            mounts.lines().filter(|l| l.contains("nsfs")).count(),
            links.contains(&format!("rs-{name}")),
        )
    };
    let Some(bed) = Bed::new("tst3").await else { return };
    let a = bed.attach("a", ip(2)).await;
    bed.plane.apply(wanted(18_093)).await.expect("apply");
    serve(&a, "a", 8080);
    let again = Dataplane::open(Bed::config(bed.name, bed.dir.path()))
        .await
        .expect("it is adopted");
    assert_eq!(again.attached(), ["a"]);
    assert_eq!(
        again.apply(wanted(18_093)).await.expect("apply").changed,
        0,
        "the kernel has it all"
    );
    // Half of the port's slots lead to b, which is not there.
    assert!(ask(([127, 0, 0, 1], 18_093)).map_or(true, |t| t.starts_with('a')));
    let began = Instant::now();
    for i in 0..50u8 {
        bed.attach(&format!("x{i}"), ip(10 + i)).await;
    }
    println!("attach: {:.1} ms each", began.elapsed().as_secs_f64() * 20.0);
    for i in 0..50 {
        bed.plane.detach(&format!("x{i}")).await.expect("detach");
    }
    again.destroy().await.expect("destroy");
    bed.plane.destroy().await.expect("destroy is idempotent");
    let (_, link) = counts(bed.name);
    assert!(!link, "the host's link is gone");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(
        !mounts.contains(&bed.dir.path().display().to_string()),
        "no namespace is kept"
    );
}

#[test]
fn hosts_on_a_wire_are_cut_off_one_way_both_ways_and_by_their_cable() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let mut wire = net::Wire::make(dir.path()).expect("a wire");
    for host in 1..=3 {
        wire.add(host).expect("a host");
    }
    let listen = |host: u8| {
        net::inside(&wire.namespace(host), || {
            let socket = UdpSocket::bind((net::Wire::address(host), 7)).expect("bind");
            socket
                .set_read_timeout(Some(Duration::from_millis(300)))
                .expect("a timeout");
            socket
        })
        .expect("inside")
    };
    let sockets = [listen(1), listen(2), listen(3)];
    // Whether what `from` sends reaches `to` in 300 ms, one in `tries` of it. What comes late of an earlier one is no answer.
    let mut sent = 0u16;
    let mut hears = |from: u8, to: u8, tries: usize| {
        (0..tries).any(|_| {
            sent += 1;
            let what = [sent.to_be_bytes().as_slice(), &[from, to]].concat();
            let socket = &sockets[usize::from(from) - 1];
            let _ = socket.send_to(&what, (net::Wire::address(to), 7));
            let mut bytes = [0u8; 4];
            while sockets[usize::from(to) - 1].recv_from(&mut bytes).is_ok() {
                if bytes == *what {
                    return true;
                }
            }
            false
        })
    };
    let mut all = |lost: &[(u8, u8)]| {
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
            let cut = lost.contains(&(from, to));
            // A busy machine loses or delays a datagram; a cut loses every one.
            let heard = hears(from, to, if cut { 1 } else { 10 });
            assert_eq!(heard, !cut, "{from} -> {to}, lost: {lost:?}");
        }
    };
    all(&[]);
    wire.lose(1, 2, true).expect("lose");
    wire.lose(1, 2, true).expect("again it changes nothing");
    all(&[(1, 2)]);
    wire.lose(2, 1, true).expect("lose");
    all(&[(1, 2), (2, 1)]);
    wire.lose(1, 2, false).expect("heal");
    wire.lose(2, 1, false).expect("heal");
    all(&[]);
    wire.cable(3, false).expect("pull");
    all(&[(1, 3), (3, 1), (2, 3), (3, 2)]);
    wire.cable(3, true).expect("plug");
    all(&[]);
    // Of forty datagrams over a noisy way some are lost and some are not, and over the others nearly none.
    let mut arrive = |from: u8, to: u8| (0..40).filter(|_| hears(from, to, 1)).count();
    wire.noise(2, &[1].into(), 50).expect("noise");
    let noisy = arrive(1, 2);
    assert!((6..=34).contains(&noisy), "{noisy} of 40 with half of them lost");
    wire.noise(2, &[1].into(), 100).expect("noise");
    let (none, quiet) = (arrive(1, 2), arrive(3, 2));
    assert!(
        none == 0 && quiet > 34,
        "{none} and {quiet} of 40 with all of one lost"
    );
    wire.noise(2, &[].into(), 0).expect("quiet");
    let quiet = arrive(1, 2);
    assert!(quiet > 34, "{quiet} of 40 afterwards");
    drop(sockets);
    drop(wire);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(
        !mounts.contains(&dir.path().display().to_string()),
        "no namespace is kept"
    );
}
