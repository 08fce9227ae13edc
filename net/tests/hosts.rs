//! Dataplanes of several hosts against the real kernel: what is on one is reached from the others. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

#[path = "hosts/bed.rs"]
mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bed::{Bed, FAMILIES, PORT, PUBLISHED, ask, ask_udp, ip, serve, serve_udp, subnet, wanted};
use net::{Endpoint, EndpointAddress, EndpointConfig, Overlay, Probe, Protocol, Wanted, Wire, inside};

#[test]
fn containers_of_several_hosts_meet_in_their_networks_and_clients_are_seen_as_they_are() {
    let Some(mut bed) = Bed::new(3) else { return };
    // Host, container, network.
    let all = [(1, 2, 1), (2, 3, 1), (2, 4, 2), (1, 5, 2)];
    let names = ["a", "b", "c", "d"];
    let spaces: Vec<PathBuf> = (all.iter().zip(names))
        .map(|((host, container, _), name)| bed.attach(*host, name, *container))
        .collect();
    for (space, name) in spaces.iter().zip(names) {
        serve(space, name);
        serve_udp(space, name);
    }
    for host in 1..=3 {
        assert!(bed.apply(host, &wanted(host, 3, &all)) > 0);
        assert_eq!(bed.apply(host, &wanted(host, 3, &all)), 0, "again");
    }
    let (a, b) = (&spaces[0], &spaces[1]);
    let client = bed.wire.namespace(4);
    for (ip, host_ip) in FAMILIES {
        let seen_as = |name: &str, client: u8| format!("{name} {}", ip(client));
        assert_eq!(ask(a, ip(3), PORT).unwrap(), seen_as("b", 2));
        assert_eq!(ask_udp(a, ip(3), PORT).unwrap(), seen_as("b", 2));
        assert_eq!(ask(b, ip(2), PORT).unwrap(), seen_as("a", 3));
        // Its own network, on both hosts, and no other.
        assert_eq!(ask(&spaces[2], ip(5), PORT).unwrap(), seen_as("d", 4));
        assert!(ask(a, ip(4), PORT).is_err(), "another network");
        assert!(ask(&spaces[2], ip(2), PORT).is_err(), "another network");
        let seen: BTreeSet<String> = (0..60).map(|_| ask(a, ip(100), PORT).unwrap()).collect();
        assert!(seen.contains(&seen_as("b", 2)) && seen.len() == 2, "{seen:?}");
        let seen: BTreeSet<String> = (0..60).filter_map(|_| ask_udp(a, ip(100), PORT).ok()).collect();
        assert!(seen.contains(&seen_as("b", 2)), "{seen:?}");
        // A published port answers on every host, whichever the container is on, and it sees who asks.
        let told = format!("b {}", host_ip(4));
        for host in 1..=3 {
            for _ in 0..3 {
                let to = host_ip(host);
                assert_eq!(ask(&client, to, PUBLISHED).unwrap(), told, "h{host}");
                assert_eq!(ask_udp(&client, to, PUBLISHED).unwrap(), told, "h{host}");
            }
        }
        assert!(
            ask(&client, host_ip(1), PORT).is_err(),
            "nothing else is published"
        );
    }
    // No container can speak to a host as if it were one.
    for (port, arrives) in [(4788, true), (4789, false)] {
        let heard = inside(&client, || {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            inside(a, || {
                let from = UdpSocket::bind("0.0.0.0:0").unwrap();
                from.send_to(b"forged", (Wire::address(4), port)).unwrap();
            })
            .unwrap();
            socket.recv_from(&mut [0; 16]).is_ok()
        });
        assert_eq!(heard.unwrap(), arrives, "port {port}");
    }
    // An agent that starts anew finds everything as it left it.
    bed.planes.remove(0);
    let again = bed.open(1);
    bed.planes.insert(0, again);
    assert_eq!(bed.apply(1, &wanted(1, 3, &all)), 0, "adopted");
    for (ip, _) in FAMILIES {
        assert_eq!(ask(a, ip(3), PORT).unwrap(), format!("b {}", ip(2)));
    }
    // It moves to another host.
    let moved = [(1, 2, 1), (3, 3, 1)];
    let there = bed.attach(3, "e", 3);
    serve(&there, "e");
    for host in 1..=3 {
        bed.apply(host, &wanted(host, 3, &moved));
    }
    for (ip, host_ip) in FAMILIES {
        assert_eq!(ask(a, ip(3), PORT).unwrap(), format!("e {}", ip(2)));
        let told = format!("e {}", host_ip(4));
        assert_eq!(ask(&client, host_ip(2), PUBLISHED).unwrap(), told);
    }
    // A host alone has no way to others, and needs none.
    assert!(bed.apply(2, &Wanted::default()) > 0);
    assert_eq!(bed.apply(2, &Wanted::default()), 0);
    bed.end();
}

#[test]
fn large_packets_find_their_size() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
    }
    for (ip, _) in FAMILIES {
        sends(&a, &b, ip(3), 8 << 20);
        // A datagram that does not fit comes in pieces.
        let got = inside(&b, || UdpSocket::bind((ip(3), PORT)).unwrap()).unwrap();
        got.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        inside(&a, || {
            let socket = UdpSocket::bind((ip(2), 0)).unwrap();
            // The first tells what the size of the way is.
            for _ in 0..3 {
                let _ = socket.send_to(&[7; 4000], (ip(3), PORT));
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .unwrap();
        assert_eq!(got.recv_from(&mut [0; 5000]).unwrap().0, 4000, "{}", ip(3));
    }
    bed.end();
}

#[test]
fn a_way_that_is_narrower_than_its_ends_say_is_found_out() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    for (host, other) in [(1, 2), (2, 1)] {
        bed.apply(host, &wanted(host, 2, &all));
        let line = format!("route add {}/32 dev eth0 mtu 1400", Wire::address(other));
        ip_says(&bed.wire.namespace(host), &line);
    }
    for (ip, _) in FAMILIES {
        sends(&a, &b, ip(3), 8 << 20);
    }
    bed.end();
}

/// Sends so many bytes from one container to another.
fn sends(from: &Path, to: &Path, address: IpAddr, bytes: usize) {
    let listener = inside(to, || TcpListener::bind((address, PORT)).unwrap()).unwrap();
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    inside(from, || {
        let mut stream = TcpStream::connect((address, PORT)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    })
    .unwrap();
    assert_eq!(sink.join().unwrap(), bytes as u64);
}

#[test]
fn a_container_speaks_in_each_of_its_networks_as_their_member_and_to_nobody_in_vain() {
    // Three networks, and the address of a host outside.
    let four = |network: u8, last: u8| IpAddr::from([10, 7, network, last]);
    let six = |network: u8, last: u8| -> IpAddr {
        Ipv6Addr::new(0xfd07, 0, 0, network.into(), 0, 0, 0, last.into()).into()
    };
    speaks_as_a_member(four, |host| Wire::address(host).into());
    speaks_as_a_member(six, |host| Wire::address_ipv6(host).into());
}

fn speaks_as_a_member(ip: fn(u8, u8) -> IpAddr, host_ip: fn(u8) -> IpAddr) {
    let Some(bed) = Bed::new(2) else { return };
    let both = bed.attach_in(1, "both", &[ip(0, 2), ip(1, 2)], true);
    serve(&bed.attach_in(2, "a", &[ip(0, 3)], false), "a");
    serve(&bed.attach_in(2, "b", &[ip(1, 3)], false), "b");
    serve(&bed.wire.namespace(3), "outside");
    let endpoint = |network, internal| Endpoint {
        network,
        internal,
        encrypted: false,
    };
    let overlay = |host: u8, other: u8, last: u8| Overlay {
        own: Some(Wire::address(host)),
        hosts: (1..=2).map(Wire::address).collect(),
        keys: BTreeMap::new(),
        remote: ([0, 1].into_iter())
            .map(|n| (ip(n, last), bed::remote(u32::from(n) + 1, Wire::address(other))))
            .collect(),
    };
    let subnets = [subnet(ip(0, 0)), subnet(ip(1, 0))];
    let one = Wanted {
        endpoints: [(ip(0, 2), endpoint(1, true)), (ip(1, 2), endpoint(2, false))].into(),
        vips: [(ip(0, 100), (1, vec![]))].into(),
        overlay: overlay(1, 2, 3),
        subnets: subnets.into(),
        ..Wanted::default()
    };
    let two = Wanted {
        endpoints: [(ip(0, 3), endpoint(1, true)), (ip(1, 3), endpoint(2, false))].into(),
        overlay: overlay(2, 1, 2),
        subnets: subnets.into(),
        ..Wanted::default()
    };
    for (host, wanted) in [(1, &one), (2, &two)] {
        bed.apply(host, wanted);
        assert_eq!(bed.apply(host, wanted), 0, "again");
    }
    assert_eq!(ask(&both, ip(0, 3), PORT).unwrap(), format!("a {}", ip(0, 2)));
    assert_eq!(ask(&both, ip(1, 3), PORT).unwrap(), format!("b {}", ip(1, 2)));
    // To the world it speaks by the network that has a way out.
    assert_eq!(
        ask(&both, host_ip(3), PORT).unwrap(),
        format!("outside {}", host_ip(1))
    );
    // Its second network grows: it speaks to what is new from its address there.
    let third = ip(2, 3);
    serve(&bed.attach_in(2, "c", &[third], false), "c");
    let mut more = (one.clone(), two.clone());
    more.0
        .overlay
        .remote
        .insert(third, bed::remote(2, Wire::address(2)));
    more.1.endpoints.insert(third, endpoint(2, false));
    bed.apply(1, &more.0);
    bed.apply(2, &more.1);
    assert!(
        ask(&both, third, PORT).is_ok(),
        "from its address that has a way out"
    );
    let address = |address: IpAddr, subnets: &[u8], internal: bool| EndpointAddress {
        address,
        subnets: subnets.iter().map(|n| subnet(ip(*n, 0))).collect(),
        internal,
    };
    let grown = EndpointConfig {
        id: "both".into(),
        addresses: vec![address(ip(0, 2), &[0, 2], true), address(ip(1, 2), &[1], false)],
    };
    bed.runtime.block_on(bed.planes[0].reroute(grown)).unwrap();
    assert!(
        ask(&both, third, PORT).is_err(),
        "from its address that is of another network"
    );
    let prohibited = match ip(0, 77) {
        IpAddr::V4(_) => std::io::ErrorKind::HostUnreachable,
        IpAddr::V6(_) => std::io::ErrorKind::PermissionDenied,
    };
    for (address, kind) in [
        (ip(0, 77), prohibited),
        (ip(1, 77), std::io::ErrorKind::HostUnreachable),
        (ip(0, 100), std::io::ErrorKind::ConnectionRefused),
    ] {
        let error = ask(&both, address, PORT).unwrap_err();
        assert_eq!(error.kind(), kind, "{address}");
    }
    bed.end();
}

/// A datagram from a container to port 9 of another, in Ethernet from a host to another, in VXLAN (RFC 7348).
fn forged(from: (Ipv4Addr, Ipv4Addr), to: (Ipv4Addr, Ipv4Addr), number: u32) -> Vec<u8> {
    let mac = |host: Ipv4Addr| [&[0x02, 0x52][..], &host.octets()].concat();
    let udp = [&[0x30, 0x39, 0, 9, 0, 14, 0, 0][..], b"forged"].concat();
    let mut ipv4 = vec![0x45, 0, 0, 34, 0, 0, 0, 0, 64, 17, 0, 0];
    ipv4.extend([from.1.octets(), to.1.octets()].concat());
    let sum: u32 = (ipv4.chunks(2))
        .map(|b| u32::from(b[0]) << 8 | u32::from(b[1]))
        .sum();
    let check = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ipv4[10..12].copy_from_slice(&check.to_be_bytes());
    let vxlan = [[8, 0, 0, 0], (number << 8).to_be_bytes()].concat();
    [vxlan, mac(to.0), mac(from.0), vec![8, 0], ipv4, udp].concat()
}

#[test]
fn only_hosts_of_the_cluster_are_heard() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let a = bed.attach(1, "a", 2);
    bed.attach(2, "b", 3);
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
    }
    let socket = inside(&a, || UdpSocket::bind(("0.0.0.0", 9)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let task = |last| Ipv4Addr::new(10, 7, 0, last);
    let packet = forged((Wire::address(2), task(3)), (Wire::address(1), task(2)), 4095);
    // The third host is a stranger, whoever it says its packet is from.
    for (host, arrives) in [(2, true), (3, false)] {
        inside(&bed.wire.namespace(host), || {
            let from = UdpSocket::bind("0.0.0.0:0").unwrap();
            from.send_to(&packet, (Wire::address(1), 4789)).unwrap();
        })
        .unwrap();
        let heard = socket.recv_from(&mut [0; 16]).is_ok();
        assert_eq!(heard, arrives, "from host {host}");
    }
    // What the cluster forgets is a stranger as well.
    bed.apply(1, &wanted(1, 1, &all));
    inside(&bed.wire.namespace(2), || {
        let from = UdpSocket::bind("0.0.0.0:0").unwrap();
        from.send_to(&packet, (Wire::address(1), 4789)).unwrap();
    })
    .unwrap();
    assert!(
        socket.recv_from(&mut [0; 16]).is_err(),
        "from a host that is gone"
    );
    bed.end();
}

#[test]
fn what_somebody_else_has_changed_is_repaired_and_counted() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve(&a, "a");
    serve(&b, "b");
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
    }
    let repair = || bed.runtime.block_on(bed.planes[0].repair()).unwrap();
    assert_eq!(repair().changed, 0, "nothing to do");
    // Another one on the same tables wants nothing of all that.
    let other = bed.open(1);
    let gone = bed.runtime.block_on(other.apply(Wanted::default())).unwrap();
    let client = bed.wire.namespace(3);
    for (ip, host_ip) in FAMILIES {
        assert!(ask(&a, ip(3), PORT).is_err());
        assert!(ask(&client, host_ip(1), PUBLISHED).is_err());
    }
    let repaired = repair();
    assert!(
        repaired.unreachable.is_none() && repaired.changed >= gone.changed,
        "{repaired:?} of {gone:?}"
    );
    for (ip, host_ip) in FAMILIES {
        assert_eq!(ask(&a, ip(3), PORT).unwrap(), format!("b {}", ip(2)));
        assert!(ask(&b, ip(100), PORT).is_ok());
        let told = format!("b {}", host_ip(3));
        assert_eq!(ask(&client, host_ip(1), PUBLISHED).unwrap(), told);
    }
    assert_eq!(repair().changed, 0, "again");
    bed.end();
}

/// The dataplane's own address, towards its host: the one address of its namespace that is no gateway.
fn inner_address(plane: &Path) -> Ipv4Addr {
    let trie = inside(plane, || {
        std::fs::read_to_string("/proc/thread-self/net/fib_trie")
    })
    .unwrap()
    .unwrap();
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    let local = lines.windows(2).filter(|pair| pair[1].contains("/32 host LOCAL"));
    let mut addresses = local.filter_map(|pair| pair[0].strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok());
    let own = |a: &Ipv4Addr| a.is_link_local() && a.octets()[2] != 1;
    addresses.find(own).unwrap()
}

#[test]
fn a_port_of_one_address_is_open_there_and_nowhere_else() {
    let Some(bed) = Bed::new(1) else { return };
    let a = bed.attach(1, "a", 2);
    serve(&a, "a");
    let (host, client) = (bed.wire.namespace(1), bed.wire.namespace(2));
    let (local, outer) = (Ipv4Addr::LOCALHOST, Wire::address(1));
    for (bound, reached) in [
        (Some(local), [true, false, false]),
        (Some(outer), [false, true, true]),
        (None, [true, true, true]),
        (Some(Wire::address(9)), [false, false, false]),
    ] {
        let mut wanted = wanted(1, 1, &[(1, 2, 1)]);
        wanted.ports = [((Protocol::Tcp, PUBLISHED), vec![(ip(2), PORT)])].into();
        wanted.bound = bound
            .map(|address| ((Protocol::Tcp, PUBLISHED), address.into()))
            .into_iter()
            .collect();
        bed.apply(1, &wanted);
        assert_eq!(bed.apply(1, &wanted), 0, "again");
        let asked = [(&host, local), (&host, outer), (&client, outer)];
        let got = asked.map(|(from, to)| ask(from, to, PUBLISHED).is_ok());
        assert_eq!(got, reached, "{bound:?}");
    }
    // Nor by the address of the dataplane itself, for a machine that knows the way there.
    let inner = inner_address(&bed.dir.path().join("h1/dataplane"));
    let route = inside(&client, || {
        let words = ["route", "add", &inner.to_string(), "via", &outer.to_string()];
        std::process::Command::new("ip").args(words).status()
    });
    match route.unwrap() {
        Ok(status) if status.success() => assert!(ask(&client, inner, PUBLISHED).is_err(), "by {inner}"),
        other => println!("skipped: no route to {inner} can be added ({other:?})"),
    }
    let mut open = wanted(1, 1, &[(1, 2, 1)]);
    open.ports = [((Protocol::Tcp, PUBLISHED), vec![(ip(2), PORT)])].into();
    bed.apply(1, &open);
    assert!(
        ask(&client, inner, PUBLISHED).is_err(),
        "although the port is open"
    );
    assert!(ask(&client, outer, PUBLISHED).is_ok());
    bed.end();
}

#[test]
fn connections_are_seen_while_a_client_has_them() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve(&b, "b");
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
    }
    for (ip, _) in FAMILIES {
        let connected = |those: &[u8]| {
            let addresses = those.iter().map(|n| ip(*n)).collect();
            bed.runtime
                .block_on(bed.planes[1].is_connected(addresses))
                .unwrap()
        };
        assert!(!connected(&[3]));
        let held = inside(&b, || TcpListener::bind((ip(3), 9)).unwrap()).unwrap();
        // By a virtual address it is the one behind that has the connection.
        let mut vip = wanted(1, 2, &all);
        vip.vips = [(ip(100), (1, vec![ip(3)]))].into();
        bed.apply(1, &vip);
        let client = inside(&a, || TcpStream::connect((ip(100), 9)).unwrap()).unwrap();
        let server = held.accept().unwrap();
        for (those, is) in [
            (&[3][..], true),
            (&[2], false),
            (&[2, 4, 5, 3], true),
            (&[2, 4, 5, 6, 7, 8], false),
            (&[2, 4, 5, 6, 7, 3], true),
            (&[], false),
        ] {
            assert_eq!(connected(those), is, "{those:?}");
        }
        // Half closed is not closed; after both ends it is.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(connected(&[3]));
        drop((client, server));
        assert!((0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !connected(&[3])
        }));
    }
    bed.end();
}

#[test]
fn a_flow_of_datagrams_follows_its_virtual_address() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 4, 1), (2, 5, 1)];
    let a = bed.attach(1, "a", 2);
    serve_udp(&bed.attach(2, "b", 4), "b");
    serve_udp(&bed.attach(2, "c", 5), "c");
    bed.apply(2, &wanted(2, 2, &all));
    for (ip, _) in FAMILIES {
        let led = |to: u8| {
            let mut wanted = wanted(1, 2, &all);
            wanted.vips = [(ip(100), (1, vec![ip(to)]))].into();
            bed.apply(1, &wanted);
        };
        led(4);
        let socket = inside(&a, || UdpSocket::bind((ip(2), 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let ask = || {
            socket.send_to(b"who", (ip(100), PORT)).unwrap();
            let mut bytes = [0; 64];
            let (len, _) = socket.recv_from(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        };
        assert_eq!(ask(), format!("b {}", ip(2)));
        led(5);
        assert_eq!(ask(), format!("c {}", ip(2)), "the same socket");
    }
    bed.end();
}

#[test]
fn no_container_speaks_as_another() {
    let Some(bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1), (1, 4, 1), (1, 5, 2)];
    let spaces = [(1, "a", 2), (2, "b", 3), (1, "c", 4), (1, "d", 5)].map(|(h, id, n)| bed.attach(h, id, n));
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
    }
    for (ip, host_ip) in FAMILIES {
        let got = inside(&spaces[1], || UdpSocket::bind((ip(3), 9)).unwrap()).unwrap();
        got.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // As itself, as its neighbour on the same host, and as one elsewhere: from within its own network and from another.
        for (from, source, arrives) in [
            (&spaces[0], ip(2), true),
            (&spaces[0], ip(4), false),
            (&spaces[0], ip(77), false),
            (&spaces[0], host_ip(1), false),
            (&spaces[3], ip(2), false),
        ] {
            if !give(from, source) {
                continue;
            }
            inside(from, || {
                let socket = UdpSocket::bind((source, 0)).unwrap();
                let _ = socket.send_to(b"who", (ip(3), 9));
            })
            .unwrap();
            let heard = got.recv_from(&mut [0; 8]).is_ok();
            assert_eq!(heard, arrives, "as {source}");
        }
    }
    bed.end();
}

/// Gives a container an address as its own root could; not where there is no ip(8).
fn give(namespace: &Path, address: IpAddr) -> bool {
    let (bits, nodad) = if address.is_ipv4() {
        (32, "")
    } else {
        (128, " nodad")
    };
    let line = format!("address replace {address}/{bits} dev eth0{nodad}");
    ip_says(namespace, &line).is_some()
}

/// What ip(8) says in a namespace; nothing where there is no such program.
fn ip_says(namespace: &Path, line: &str) -> Option<String> {
    let run = || std::process::Command::new("ip").args(line.split(' ')).output();
    match inside(namespace, run).unwrap() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no ip(8)");
            None
        }
        said => {
            let said = said.unwrap();
            assert!(said.status.success(), "{line}: {said:?}");
            Some(String::from_utf8(said.stdout).unwrap())
        }
    }
}

/// A setting of a namespace.
fn setting(namespace: &Path, path: &str) -> String {
    let read = || std::fs::read_to_string(format!("/proc/sys/net/ipv6/{path}"));
    inside(namespace, read).unwrap().unwrap().trim().to_owned()
}

#[test]
fn a_host_passes_ipv6_on_once_it_has_to_and_believes_its_router_all_the_same() {
    let Some(bed) = Bed::new(2) else { return };
    let host = bed.wire.namespace(1);
    let a = bed.attach_in(1, "a", &[ip(2)], false);
    let told = |path: &str| setting(&host, path);
    assert_eq!(told("conf/eth0/accept_ra"), "1");
    let mut four = wanted(1, 2, &[(1, 2, 1)]);
    four.endpoints.retain(|address, _| address.is_ipv4());
    four.vips.retain(|address, _| address.is_ipv4());
    four.ports.insert((Protocol::Tcp, PUBLISHED), vec![(ip(2), PORT)]);
    four.ports.remove(&(Protocol::Udp, PUBLISHED));
    bed.apply(1, &four);
    // Neither does a container without IPv6 addresses look another than before.
    assert_eq!(setting(&a, "conf/eth0/accept_ra"), "1");
    assert_eq!(told("conf/all/forwarding"), "0");
    serve(&a, "a");
    let client = bed.wire.namespace(3);
    assert!(ask(&client, Wire::address(1), PUBLISHED).is_ok());
    assert!(
        ask(&client, Wire::address_ipv6(1), PUBLISHED).is_err(),
        "open to IPv4 only"
    );
    // A container elsewhere is enough, where a port leads to it.
    let all = [(1, 2, 1), (2, 3, 1)];
    serve(&bed.attach(2, "b", 3), "b");
    let mut six = wanted(1, 2, &all);
    six.endpoints.retain(|address, _| address.is_ipv4());
    bed.apply(1, &six);
    assert_eq!(bed.apply(1, &six), 0, "again");
    bed.apply(2, &wanted(2, 2, &all));
    assert_eq!(told("conf/all/forwarding"), "1");
    assert_eq!(told("conf/eth0/accept_ra"), "2");
    let seen = format!("b {}", Wire::address_ipv6(3));
    assert_eq!(ask(&client, Wire::address_ipv6(1), PUBLISHED).unwrap(), seen);
    // From the host itself, by each of its addresses but that from which no connection can be led on: there it is refused at
    // once, and who asks for localhost goes on to the next.
    let own: [IpAddr; 3] = [
        Wire::address(1).into(),
        Ipv4Addr::LOCALHOST.into(),
        Wire::address_ipv6(1).into(),
    ];
    for to in own {
        let said = ask(&host, to, PUBLISHED).unwrap();
        assert!(said.starts_with("b "), "{to}: {said}");
    }
    let refused = ask(&host, Ipv6Addr::LOCALHOST, PUBLISHED).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    bed.end();
}

/// A server that says whom the beginning of a connection names, and what else it was sent.
fn serve_proxied(namespace: &Path, name: &'static str) {
    let listener = inside(namespace, || TcpListener::bind(("::", PORT + 1)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 16];
            let _ = stream.read_exact(&mut head);
            let mut rest = vec![0; usize::from(head[15])];
            let _ = stream.read_exact(&mut rest);
            let (client, asked) = match head[13] {
                0x11 => {
                    let at = |n: usize| IpAddr::from(<[u8; 4]>::try_from(&rest[n..n + 4]).unwrap());
                    (at(0), at(4))
                }
                _ => {
                    let at = |n: usize| IpAddr::from(<[u8; 16]>::try_from(&rest[n..n + 16]).unwrap());
                    (at(0).to_canonical(), at(16).to_canonical())
                }
            };
            let mut said = [0; 5];
            let _ = stream.read_exact(&mut said);
            let said = String::from_utf8_lossy(&said);
            let _ = stream.write_all(format!("{name} {client} {asked} {said}").as_bytes());
        }
    });
}

#[test]
fn a_port_tells_of_its_clients_in_the_connection_where_it_is_asked_to() {
    let Some(bed) = Bed::new(3) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve_proxied(&a, "a");
    serve_proxied(&b, "b");
    let told = |host: u8, proxied: bool, behind: &[u8]| {
        let mut wanted = wanted(host, 3, &all);
        let place = (Protocol::Tcp, PUBLISHED + 1);
        wanted
            .ports
            .insert(place, behind.iter().map(|n| (ip(*n), PORT + 1)).collect());
        wanted
            .published
            .extend(behind.iter().map(|n| (ip(*n), Protocol::Tcp, PORT + 1)));
        wanted.proxied.extend(proxied.then_some(PUBLISHED + 1));
        wanted
    };
    for host in 1..=3 {
        bed.apply(host, &told(host, true, &[2, 3]));
    }
    let client = bed.wire.namespace(4);
    let ask = |host: IpAddr| -> std::io::Result<String> {
        inside(&client, || {
            let mut stream =
                TcpStream::connect_timeout(&(host, PUBLISHED + 1).into(), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"hello")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .unwrap()
    };
    for host in 1..=3 {
        let (own, mut seen) = (Wire::address(host), BTreeSet::new());
        for _ in 0..4 {
            let said = ask(own.into()).unwrap();
            let (name, rest) = said.split_at(1);
            assert_eq!(rest, format!(" {} {own} hello", Wire::address(4)), "h{host}");
            seen.insert(name.to_owned());
        }
        assert_eq!(seen.len(), 2, "both take turns at h{host}");
    }
    // No container gets there past the rules of its networks.
    let refused = inside(&a, || {
        let gateway = (Ipv4Addr::new(169, 254, 1, 1), PUBLISHED + 1);
        TcpStream::connect_timeout(&gateway.into(), Duration::from_secs(2)).map(drop)
    });
    let refused = refused.unwrap().expect_err("refused").kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    // One that is gone gets none, and one that does not answer is passed over.
    for host in 1..=3 {
        bed.apply(host, &told(host, true, &[3]));
    }
    for _ in 0..4 {
        assert!(ask(Wire::address(1).into()).unwrap().starts_with("b "));
    }
    // Not asked to: the kernel leads there, and what is sent first is what the client sends.
    for host in 1..=3 {
        bed.apply(host, &told(host, false, &[3]));
    }
    assert!(!ask(Wire::address(1).into()).is_ok_and(|said| said.contains("hello")));
    for host in 1..=3 {
        bed.apply(host, &Wanted::default());
    }
    assert!(ask(Wire::address(1).into()).is_err(), "closed");
    bed.end();
}

#[test]
fn a_container_finds_itself_behind_its_virtual_address_and_nobody_behind_an_empty_one() {
    let Some(bed) = Bed::new(1) else { return };
    let (host, client) = (bed.wire.namespace(1), bed.wire.namespace(2));
    let b = bed.attach(1, "b", 3);
    serve(&b, "b");
    let mut wanted = wanted(1, 1, &[(1, 3, 1)]);
    for (ip, _) in FAMILIES {
        wanted.vips.insert(ip(101), (1, vec![]));
    }
    bed.apply(1, &wanted);
    for (ip, gateway) in [(FAMILIES[0].0, "b 169.254.1.1"), (FAMILIES[1].0, "b fd72:")] {
        assert_eq!(ask(&b, ip(3), PORT).unwrap(), format!("b {}", ip(3)), "by itself");
        let seen = ask(&b, ip(100), PORT).unwrap();
        assert!(seen.starts_with(gateway), "{seen}");
        let began = Instant::now();
        let refused = ask(&b, ip(101), PORT).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(began.elapsed() < Duration::from_secs(1), "it is said at once");
    }
    for (_, host_ip) in FAMILIES {
        assert!(ask(&client, host_ip(1), PUBLISHED).is_ok());
    }
    // Taken down, it leaves nothing that leads anywhere.
    bed.runtime.block_on(bed.planes[0].destroy()).unwrap();
    for (_, host_ip) in FAMILIES {
        let refused = ask(&host, host_ip(1), PUBLISHED).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let addresses = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let addresses = inside(&host, addresses).unwrap();
    assert!(!addresses.contains("fd727377"), "{addresses}");
    bed.end();
}

#[test]
fn containers_have_ipv6_although_their_host_has_turned_its_own_off() {
    let Some(bed) = Bed::new(2) else { return };
    let host = bed.wire.namespace(1);
    let off = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    inside(&host, off).unwrap().unwrap();
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve(&a, "a");
    serve(&b, "b");
    for host in 1..=2 {
        bed.apply(host, &wanted(host, 2, &all));
        assert_eq!(bed.apply(host, &wanted(host, 2, &all)), 0, "again");
    }
    for (ip, _) in FAMILIES {
        assert_eq!(ask(&a, ip(3), PORT).unwrap(), format!("b {}", ip(2)));
        assert!(ask(&a, ip(100), PORT).is_ok());
    }
    let client = bed.wire.namespace(3);
    assert!(ask(&client, Wire::address(1), PUBLISHED).is_ok());
    let out = ask(&a, Wire::address_ipv6(3), PORT).unwrap_err();
    assert_eq!(
        out.kind(),
        std::io::ErrorKind::NetworkUnreachable,
        "and there is no way out"
    );
    bed.end();
}

#[test]
fn what_an_earlier_version_made_for_ipv4_gets_ipv6_and_is_not_made_anew() {
    let Some(mut bed) = Bed::new(2) else { return };
    let all = [(1, 2, 1), (2, 3, 1)];
    let (a, b) = (bed.attach(1, "a", 2), bed.attach(2, "b", 3));
    serve(&a, "a");
    serve(&b, "b");
    let mut four = wanted(2, 2, &all);
    four.overlay.remote.retain(|address, _| address.is_ipv4());
    bed.apply(1, &wanted(1, 2, &all));
    bed.apply(2, &four);
    let plane = bed.dir.path().join("h2/dataplane");
    let number = || {
        let said = ip_says(&plane, "-o link show overlay")?;
        said.split(':').next().map(str::to_owned)
    };
    let before = number();
    for line in [
        "-6 neigh flush dev overlay nud permanent",
        "-6 route flush table 1000",
        "-6 rule del pref 900",
        "rule del pref 900",
        "rule add pref 1000 not fwmark 0/0xffffff00 lookup 1000",
        "-6 address flush dev overlay",
    ] {
        ip_says(&plane, line);
    }
    let probe = Probe {
        host: Wire::address(2),
        encrypted: false,
        large: true,
    };
    let answers = |bed: &Bed| {
        let asked = bed.planes[0].ask([probe].into(), Duration::from_millis(300));
        !bed.runtime.block_on(asked).unwrap().is_empty()
    };
    assert!(!answers(&bed));
    bed.planes.remove(1);
    let again = bed.open(2);
    bed.planes.insert(1, again);
    assert!(bed.apply(2, &wanted(2, 2, &all)) > 0);
    assert_eq!(number(), before, "the same device");
    assert!(answers(&bed), "its kernel answers now");
    assert_eq!(bed.apply(2, &wanted(2, 2, &all)), 0, "again");
    let client = bed.wire.namespace(3);
    for (ip, host_ip) in FAMILIES {
        assert_eq!(ask(&b, ip(2), PORT).unwrap(), format!("a {}", ip(3)));
        let told = format!("b {}", host_ip(3));
        assert_eq!(ask(&client, host_ip(1), PUBLISHED).unwrap(), told);
    }
    bed.end();
}
