//! Dataplanes of several hosts against the real kernel: what is on one is reached from the others. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

#[path = "hosts/bed.rs"]
mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bed::{Bed, FAMILIES, PORT, PUBLISHED, ask, ask_udp, ip, serve, serve_udp, wanted};
use net::{Endpoint, EndpointAddress, EndpointConfig, Overlay, Protocol, Wanted, Wire, inside};

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
    let listener = inside(&b, || TcpListener::bind(("0.0.0.0", PORT)).unwrap()).unwrap();
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    const BYTES: usize = 8 << 20;
    inside(&a, || {
        let mut stream = TcpStream::connect((ip(3), PORT)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
    })
    .unwrap();
    assert_eq!(sink.join().unwrap(), BYTES as u64);
    bed.end();
}

#[test]
fn a_container_speaks_in_each_of_its_networks_as_their_member_and_to_nobody_in_vain() {
    let Some(bed) = Bed::new(2) else { return };
    let second = |last: u8| IpAddr::from([10, 7, 1, last]);
    let both = bed.attach_in(1, "both", &[ip(2), second(2)], true);
    serve(&bed.attach_in(2, "a", &[ip(3)], false), "a");
    serve(&bed.attach_in(2, "b", &[second(3)], false), "b");
    serve(&bed.wire.namespace(3), "outside");
    let endpoint = |network, internal| Endpoint {
        network,
        internal,
        encrypted: false,
    };
    let overlay = |host: u8, remote: [(IpAddr, (u32, Ipv4Addr)); 2]| Overlay {
        own: Some(Wire::address(host)),
        hosts: (1..=2).map(Wire::address).collect(),
        keys: BTreeMap::new(),
        remote: (remote.into_iter())
            .map(|(address, (network, host))| (address, bed::remote(network, host)))
            .collect(),
    };
    let subnets = [(ip(0), 24), (second(0), 24)];
    let one = Wanted {
        endpoints: [(ip(2), endpoint(1, true)), (second(2), endpoint(2, false))].into(),
        vips: [(ip(100), (1, vec![]))].into(),
        overlay: overlay(
            1,
            [ip(3), second(3)].map(|a| (a, (if a == ip(3) { 1 } else { 2 }, Wire::address(2)))),
        ),
        subnets: subnets.into(),
        ..Wanted::default()
    };
    let two = Wanted {
        endpoints: [(ip(3), endpoint(1, true)), (second(3), endpoint(2, false))].into(),
        overlay: overlay(
            2,
            [ip(2), second(2)].map(|a| (a, (if a == ip(2) { 1 } else { 2 }, Wire::address(1)))),
        ),
        subnets: subnets.into(),
        ..Wanted::default()
    };
    for (host, wanted) in [(1, &one), (2, &two)] {
        bed.apply(host, wanted);
        assert_eq!(bed.apply(host, wanted), 0, "again");
    }
    assert_eq!(ask(&both, ip(3), PORT).unwrap(), "a 10.7.0.2");
    assert_eq!(ask(&both, second(3), PORT).unwrap(), "b 10.7.1.2");
    // To the world it speaks by the network that has a way out.
    assert_eq!(ask(&both, Wire::address(3), PORT).unwrap(), "outside 10.99.0.1");
    // Its second network grows: it speaks to what is new from its address there.
    let third = IpAddr::from([10, 7, 2, 3]);
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
        subnets: subnets.iter().map(|n| ([10, 7, *n, 0].into(), 24)).collect(),
        internal,
    };
    let grown = EndpointConfig {
        id: "both".into(),
        addresses: vec![address(ip(2), &[0, 2], true), address(second(2), &[1], false)],
    };
    bed.runtime.block_on(bed.planes[0].reroute(grown)).unwrap();
    assert!(
        ask(&both, third, PORT).is_err(),
        "from its address that is of another network"
    );
    for (address, kind) in [
        (ip(77), std::io::ErrorKind::HostUnreachable),
        (second(77), std::io::ErrorKind::HostUnreachable),
        (ip(100), std::io::ErrorKind::ConnectionRefused),
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
    assert!(ask(&a, ip(3), PORT).is_err());
    assert!(ask(&client, Wire::address(1), PUBLISHED).is_err());
    let repaired = repair();
    assert!(
        repaired.unreachable.is_none() && repaired.changed >= gone.changed,
        "{repaired:?} of {gone:?}"
    );
    assert_eq!(ask(&a, ip(3), PORT).unwrap(), "b 10.7.0.2");
    assert!(ask(&b, ip(100), PORT).is_ok());
    assert_eq!(ask(&client, Wire::address(1), PUBLISHED).unwrap(), "b 10.99.0.3");
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
    let connected = |those: &[u8]| {
        let addresses = those.iter().map(|n| ip(*n)).collect();
        bed.runtime
            .block_on(bed.planes[1].is_connected(addresses))
            .unwrap()
    };
    assert!(!connected(&[3]));
    let held = inside(&b, || TcpListener::bind(("0.0.0.0", 9)).unwrap()).unwrap();
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
    bed.end();
}
