//! Encrypted networks over several hosts, by the tunnel in this process: what is on the wire is read. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

#[path = "hosts/bed.rs"]
mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bed::{Bed, ENCRYPTED, FAMILIES, PORT, PUBLISHED, ask, ask_udp, ip, serve, serve_udp, wanted};
use net::{Key, Overheard, Probe, Wanted, Wire, inside, overhear};

/// How soon what was lost for a moment must be there again.
const AGAIN: Duration = Duration::from_secs(1);

/// The keys of all hosts with a dataplane.
fn keys(bed: &Bed) -> BTreeMap<Ipv4Addr, Key> {
    let key = |(at, plane): (usize, &net::Dataplane)| {
        let host = u8::try_from(at + 1).unwrap();
        (Wire::address(host), bed.runtime.block_on(plane.key()).unwrap())
    };
    bed.planes.iter().enumerate().map(key).collect()
}

fn apply(bed: &Bed, all: &[(u8, u8, u32)], keys: &BTreeMap<Ipv4Addr, Key>) -> usize {
    let hosts = u8::try_from(bed.planes.len()).unwrap();
    let told = |host| {
        let mut wanted: Wanted = wanted(host, hosts, all);
        wanted.overlay.keys = keys.clone();
        wanted
    };
    (1..=hosts).map(|host| bed.apply(host, &told(host))).sum()
}

/// What is seen of a text between the hosts while something is asked.
fn overheard<T>(bed: &Bed, text: &str, work: impl FnOnce() -> T) -> (T, Overheard) {
    let hosts = (1..=u8::try_from(bed.planes.len()).unwrap())
        .map(Wire::address)
        .collect();
    overhear(&bed.wire.namespace(2), &hosts, text, work).unwrap()
}

/// Sends a container's datagram to another host as its plain VXLAN device would, from a namespace.
fn forge(from: &Path, to_host: u8, source: IpAddr, target: IpAddr) {
    let udp = [&[0x30, 0x39][..], &PORT.to_be_bytes(), &[0, 11, 0, 0], b"who"].concat();
    let (kind, inner) = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let mut inner = vec![0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0];
            inner.extend([source.octets(), target.octets()].concat());
            let sum = folded(&inner);
            inner[10..12].copy_from_slice(&sum.to_be_bytes());
            ([8, 0], [inner, udp].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let addresses = [source.octets(), target.octets()].concat();
            // UDP has no checksum of none with IPv6: it is over the addresses, the length and the protocol as well.
            let mut sealed = udp.clone();
            let sum = folded(&[&addresses[..], &[0, 11, 0, 17], &udp, &[0]].concat());
            sealed[6..8].copy_from_slice(&sum.to_be_bytes());
            let inner = [&[0x60, 0, 0, 0, 0, 11, 17, 64][..], &addresses, &sealed].concat();
            ([0x86, 0xdd], inner)
        }
        _ => panic!("{source} and {target} are of two families"),
    };
    let [a, b, c, d] = Wire::address(to_host).octets();
    let mut frame = vec![8, 0, 0, 0, 0, 0x0f, 0xff, 0];
    frame.extend_from_slice(&[2, 0x52, a, b, c, d, 2, 0x52, 10, 99, 0, 1]);
    frame.extend([&kind[..], &inner].concat());
    inside(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&frame, (Wire::address(to_host), 4789)).unwrap();
    })
    .unwrap();
}

/// The Internet's checksum (RFC 1071) of an even number of bytes.
fn folded(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// A server that tells what it hears.
fn hears(namespace: &Path) -> UdpSocket {
    let socket = inside(namespace, || UdpSocket::bind(("::", PORT)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

#[test]
fn nothing_of_an_encrypted_network_is_on_the_wire_in_the_open() {
    let Some(bed) = Bed::new(3) else { return };
    // Host, container, network: the first two encrypted, the others not.
    let all = [(1, 2, ENCRYPTED), (2, 3, ENCRYPTED), (1, 4, 1), (2, 5, 1)];
    let spaces: Vec<PathBuf> = (all.iter().zip(["a", "b", "c", "d"]))
        .map(|((host, container, _), name)| bed.attach(*host, name, *container))
        .collect();
    for (space, name) in [(&spaces[1], "the-secret"), (&spaces[3], "the-open")] {
        serve(space, name);
        serve_udp(space, name);
    }
    let keys = keys(&bed);
    assert!(apply(&bed, &all, &keys) > 0);
    assert_eq!(apply(&bed, &all, &keys), 0, "again");
    let (a, c) = (&spaces[0], &spaces[2]);
    let client = bed.wire.namespace(4);
    for (ip, host_ip) in FAMILIES {
        let (answer, seen) = overheard(&bed, "the-open", || ask(c, ip(5), PORT).unwrap());
        assert_eq!(answer, format!("the-open {}", ip(4)));
        assert!(
            seen.with > 0 && seen.packets > 4,
            "what is open is seen: {seen:?}"
        );
        let (answer, seen) = overheard(&bed, "the-secret", || ask(a, ip(3), PORT).unwrap());
        assert_eq!(answer, format!("the-secret {}", ip(2)));
        assert!(seen.with == 0 && seen.packets > 4, "{seen:?}");
        assert_eq!(ask_udp(a, ip(3), PORT).unwrap(), answer);
        assert!(ask(c, ip(3), PORT).is_err(), "another network");
        // A client of a published port is seen as it is, whichever host it asks; between hosts it is encrypted.
        for host in 1..=3u8 {
            let ((tcp, udp), seen) = overheard(&bed, "the-secret", || {
                let to = host_ip(host);
                (
                    ask(&client, to, PUBLISHED).unwrap(),
                    ask_udp(&client, to, PUBLISHED).unwrap(),
                )
            });
            let as_it_is = format!("the-secret {}", host_ip(4));
            assert_eq!((&tcp, &udp), (&as_it_is, &as_it_is), "host {host}");
            assert_eq!((seen.with, seen.packets > 4), (0, host != 2), "host {host}");
        }
    }
    bed.end();
}

#[test]
fn what_comes_in_the_open_for_an_encrypted_network_is_dropped() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, ENCRYPTED), (2, 3, ENCRYPTED), (1, 4, 1), (2, 5, 1)];
    let spaces: Vec<PathBuf> = (all.iter().zip(["a", "b", "c", "d"]))
        .map(|((host, container, _), name)| bed.attach(*host, name, *container))
        .collect();
    apply(&bed, &all, &keys(&bed));
    let (secret, open) = (hears(&spaces[1]), hears(&spaces[3]));
    let (host, stranger) = (bed.wire.namespace(1), bed.wire.namespace(3));
    for (ip, _) in FAMILIES {
        forge(&host, 2, ip(4), ip(5));
        assert!(open.recv_from(&mut [0; 16]).is_ok(), "a host is heard");
        forge(&stranger, 2, ip(4), ip(5));
        assert!(open.recv_from(&mut [0; 16]).is_err(), "nobody else is");
        for from in [&host, &stranger] {
            forge(from, 2, ip(2), ip(3));
        }
        assert!(
            secret.recv_from(&mut [0; 16]).is_err(),
            "not even a host, in the open"
        );
    }
    // What is no WireGuard is nothing there, however much of it comes.
    inside(&stranger, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for kind in 0..=255u8 {
            for length in [0, 1, 4, 32, 92, 148, 1400] {
                let mut bytes = vec![kind; length];
                bytes.iter_mut().skip(1).take(3).for_each(|b| *b = 0);
                let _ = socket.send_to(&bytes, (Wire::address(2), 4790));
            }
        }
    })
    .unwrap();
    inside(&spaces[0], || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"hello", (ip(3), PORT)).unwrap();
    })
    .unwrap();
    let mut bytes = [0; 16];
    assert_eq!(
        secret.recv_from(&mut bytes).unwrap().0,
        5,
        "it works all the same"
    );
    bed.end();
}

#[test]
fn a_host_without_a_key_gets_nothing_and_a_new_key_is_taken() {
    let Some(mut bed) = Bed::new(2) else { return };
    let all = [(1, 2, ENCRYPTED), (2, 3, ENCRYPTED)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve(&b, "the-secret");
    let known = keys(&bed);
    for without in [vec![], vec![Wire::address(1)], vec![Wire::address(2)]] {
        let some = known
            .iter()
            .filter(|(host, _)| without.contains(host))
            .map(|(h, k)| (*h, *k))
            .collect();
        apply(&bed, &all, &some);
        for (ip, _) in FAMILIES {
            let (answer, seen) = overheard(&bed, "the-secret", || ask(&a, ip(3), PORT));
            assert!(answer.is_err() && seen.with == 0, "{without:?}: {answer:?}");
        }
    }
    apply(&bed, &all, &known);
    assert_eq!(ask(&a, ip(3), PORT).unwrap(), "the-secret 10.7.0.2");
    // What is open when there is no way any more is not led another.
    let listener = inside(&b, || TcpListener::bind(("0.0.0.0", PORT + 2)).unwrap()).unwrap();
    let (mut stream, datagrams) = inside(&a, || {
        let stream = TcpStream::connect((ip(3), PORT + 2)).unwrap();
        let datagrams = UdpSocket::bind("0.0.0.0:0").unwrap();
        datagrams.connect((ip(3), PORT + 2)).unwrap();
        datagrams.send(b"first").unwrap();
        (stream, datagrams)
    })
    .unwrap();
    let _accepted = listener.accept().unwrap();
    apply(&bed, &all, &BTreeMap::new());
    let hosts = [1, 2].map(Wire::address).into();
    let ((), seen) = overhear(&bed.wire.namespace(1), &hosts, "the-secret", || {
        let _ = stream.write_all(b"the-secret");
        for _ in 0..5 {
            let _ = datagrams.send(b"the-secret");
            std::thread::sleep(Duration::from_millis(100));
        }
    })
    .unwrap();
    assert_eq!(seen.anywhere, 0, "{seen:?}");
    apply(&bed, &all, &known);
    within(AGAIN, || ask(&a, ip(3), PORT).is_ok());
    // A key that is not the host's.
    let mut wrong = known.clone();
    wrong.insert(Wire::address(1), [7; 32]);
    apply(&bed, &all, &wrong);
    assert!(ask(&a, ip(3), PORT).is_err());
    // A new one: while the others do not know it nothing passes, and then it does.
    bed.runtime.block_on(bed.planes[0].renew_key()).unwrap();
    let renewed = keys(&bed);
    assert_ne!(known[&Wire::address(1)], renewed[&Wire::address(1)]);
    assert_eq!(known[&Wire::address(2)], renewed[&Wire::address(2)]);
    apply(&bed, &all, &known);
    assert!(ask(&a, ip(3), PORT).is_err());
    apply(&bed, &all, &renewed);
    within(AGAIN, || ask(&a, ip(3), PORT).is_ok());
    // A daemon that is started anew has another.
    bed.planes.remove(0);
    // Its threads end, as a process would.
    std::thread::sleep(Duration::from_millis(600));
    let again = bed.open(1);
    bed.planes.insert(0, again);
    apply(&bed, &all, &keys(&bed));
    within(AGAIN, || ask(&a, ip(3), PORT).is_ok());
    bed.end();
}

#[test]
fn hosts_are_felt_on_each_way_also_without_a_daemon() {
    let Some(mut bed) = Bed::new(3) else { return };
    let all = [(1, 2, ENCRYPTED), (2, 3, ENCRYPTED), (3, 4, 1)];
    apply(&bed, &all, &keys(&bed));
    let probe = |host: u8, encrypted, large| Probe {
        host: Wire::address(host),
        encrypted,
        large,
    };
    let probes: BTreeSet<Probe> = [2, 3, 9]
        .into_iter()
        .flat_map(|host| {
            [(false, false), (false, true), (true, false), (true, true)].map(|(e, l)| probe(host, e, l))
        })
        .collect();
    let ask = |bed: &Bed| {
        let asked = bed.planes[0].ask(probes.clone(), Duration::from_millis(300));
        bed.runtime.block_on(asked).unwrap()
    };
    let but = |lost: &[(u8, bool)]| -> BTreeSet<Probe> {
        let is_lost = |p: &&Probe| {
            lost.iter()
                .any(|(h, e)| p.host == Wire::address(*h) && p.encrypted == *e)
        };
        probes.iter().filter(|p| !is_lost(p)).copied().collect()
    };
    let nobody = [(9, false), (9, true)];
    assert_eq!(ask(&bed), but(&nobody));
    bed.wire.lose_udp(2, 4789, true).unwrap();
    assert_eq!(ask(&bed), but(&[&nobody[..], &[(2, false)]].concat()));
    bed.wire.lose_udp(3, 4790, true).unwrap();
    assert_eq!(ask(&bed), but(&[&nobody[..], &[(2, false), (3, true)]].concat()));
    bed.wire.lose_udp(2, 4789, false).unwrap();
    bed.wire.lose_udp(3, 4790, false).unwrap();
    assert_eq!(ask(&bed), but(&nobody));
    // The tunnel in a daemon ends with it; what the kernel does goes on.
    bed.planes.pop();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(ask(&bed), but(&[&nobody[..], &[(3, true)]].concat()));
    let again = bed.open(3);
    bed.planes.push(again);
    bed.end();
}

fn within(limit: Duration, works: impl Fn() -> bool) {
    let began = Instant::now();
    while !works() {
        assert!(began.elapsed() < limit, "not within {limit:?}");
    }
    println!("again after {:?}", began.elapsed());
}

#[test]
fn much_comes_through_as_it_was() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, ENCRYPTED), (2, 3, ENCRYPTED)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    apply(&bed, &all, &keys(&bed));
    const BYTES: usize = 64 << 20;
    let pattern: Vec<u8> = (0..1u32 << 20)
        .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap())
        .collect();
    for (ip, _) in FAMILIES {
        let listener = inside(&b, || TcpListener::bind((ip(3), PORT)).unwrap()).unwrap();
        let expected = pattern.clone();
        let sink = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut part = vec![0; expected.len()];
            for _ in 0..BYTES / expected.len() {
                stream.read_exact(&mut part).unwrap();
                assert!(part == expected, "it is as it was");
            }
            // And the other way.
            stream.write_all(&expected).unwrap();
        });
        let began = Instant::now();
        inside(&a, || {
            let mut stream = TcpStream::connect((ip(3), PORT)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            for _ in 0..BYTES / pattern.len() {
                stream.write_all(&pattern).unwrap();
            }
            let mut back = vec![0; pattern.len()];
            stream.read_exact(&mut back).unwrap();
            assert!(back == pattern);
        })
        .unwrap();
        println!("{} MiB in {:?}", BYTES >> 20, began.elapsed());
        sink.join().unwrap();
    }
    // Datagrams up to what fits in none, and so comes in pieces.
    let lengths = [1usize, 1300, 1342, 1343, 1362, 1363, 1472, 4000, 20_000];
    for (ip, length) in FAMILIES.iter().flat_map(|(ip, _)| lengths.map(|l| (ip, l))) {
        let got = inside(&b, || UdpSocket::bind((ip(3), PORT + 1)).unwrap()).unwrap();
        got.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        inside(&a, || {
            let socket = UdpSocket::bind((ip(2), 0)).unwrap();
            // The first tells what the size of the way is.
            for _ in 0..3 {
                let _ = socket.send_to(&pattern[..length], (ip(3), PORT + 1));
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .unwrap();
        let mut bytes = vec![0; 1 << 16];
        let (count, _) = got.recv_from(&mut bytes).unwrap();
        assert!(bytes[..count] == pattern[..length], "{length} bytes");
    }
    bed.end();
}
