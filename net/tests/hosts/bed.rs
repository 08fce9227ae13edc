//! Hosts on a wire, with a dataplane each, and what is asked there.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use net::{
    Dataplane, DataplaneConfig, Encryption, Endpoint, EndpointAddress, EndpointConfig, Overlay, Protocol,
    Remote, Steering, Wanted, Wire, inside,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
pub(crate) const PORT: u16 = 8080;
/// The port published for it on every host.
pub(crate) const PUBLISHED: u16 = 80;
/// Networks of this number and above are encrypted.
pub(crate) const ENCRYPTED: u32 = 10;

pub(crate) fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 7, 0, last).into()
}

/// The IPv6 address of the same container.
pub(crate) fn ip6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, last.into()).into()
}

/// The address of what has a number.
type Numbered = fn(u8) -> IpAddr;

/// Both families: a container's address, and a host's.
pub(crate) const FAMILIES: [(Numbered, Numbered); 2] = [
    (ip, |host| Wire::address(host).into()),
    (ip6, |host| Wire::address_ipv6(host).into()),
];

/// The subnet of an address: /24, or /64.
pub(crate) fn subnet(address: IpAddr) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(a) => (Ipv4Addr::from(u32::from(a) & !0xff).into(), 24),
        IpAddr::V6(a) => (Ipv6Addr::from(u128::from(a) >> 64 << 64).into(), 64),
    }
}

/// A server in a namespace that answers each connection with its name and the address of its client.
pub(crate) fn serve(namespace: &Path, name: &'static str) {
    let listener = inside(namespace, || TcpListener::bind(("::", PORT)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

/// The same for datagrams.
pub(crate) fn serve_udp(namespace: &Path, name: &'static str) {
    let socket = inside(namespace, || UdpSocket::bind(("::", PORT)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(format!("{name} {}", peer.ip().to_canonical()).as_bytes(), peer);
        }
    });
}

pub(crate) fn ask(namespace: &Path, address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let address = address.into();
    inside(namespace, || {
        let to = SocketAddr::from((address, port));
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .unwrap()
}

pub(crate) fn ask_udp(namespace: &Path, address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let address = address.into();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    inside(namespace, || {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"who", (address, port))?;
        let mut bytes = [0; 64];
        let (len, _) = socket.recv_from(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    })
    .unwrap()
}

/// Hosts on one wire, with a dataplane each.
pub(crate) struct Bed {
    pub(crate) wire: Wire,
    pub(crate) planes: Vec<Dataplane>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Bed {
    /// Hosts 1 to `count` with dataplanes, and one more without.
    pub(crate) fn new(count: u8) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: the dataplane's kernel tests need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut wire = Wire::make(&dir.path().join("wire")).unwrap();
        for host in 1..=count + 1 {
            wire.add(host).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut bed = Self {
            wire,
            planes: Vec::new(),
            dir,
            runtime,
        };
        for host in 1..=count {
            bed.planes.push(bed.open(host));
        }
        Some(bed)
    }

    pub(crate) fn open(&self, host: u8) -> Dataplane {
        let config = DataplaneConfig {
            name: "t".into(),
            state_dir: self.dir.path().join(format!("h{host}")),
            upstream: vec![],
            encryption: Encryption::Userspace,
            steering: Steering::default(),
        };
        inside(&self.wire.namespace(host), || {
            self.runtime.block_on(Dataplane::open(config)).unwrap()
        })
        .unwrap()
    }

    /// A container of a network that has both families.
    pub(crate) fn attach(&self, host: u8, id: &str, last: u8) -> PathBuf {
        self.attach_in(host, id, &[ip(last), ip6(last)], false)
    }

    /// A container with an address in each of some networks; the first without a way out, or not.
    pub(crate) fn attach_in(
        &self,
        host: u8,
        id: &str,
        addresses: &[IpAddr],
        first_is_internal: bool,
    ) -> PathBuf {
        let endpoint = EndpointConfig {
            id: id.into(),
            addresses: (addresses.iter().enumerate())
                .map(|(at, address)| EndpointAddress {
                    address: *address,
                    subnets: vec![subnet(*address)],
                    internal: at == 0 && first_is_internal,
                })
                .collect(),
        };
        let plane = &self.planes[usize::from(host) - 1];
        self.runtime.block_on(plane.attach(endpoint)).unwrap()
    }

    pub(crate) fn apply(&self, host: u8, wanted: &Wanted) -> usize {
        let plane = &self.planes[usize::from(host) - 1];
        let applied = self.runtime.block_on(plane.apply(wanted.clone())).unwrap();
        assert!(applied.unreachable.is_none(), "{:?}", applied.unreachable);
        applied.changed
    }

    pub(crate) fn end(self) {
        for plane in &self.planes {
            self.runtime.block_on(plane.destroy()).unwrap();
        }
    }
}

/// A container elsewhere, in a network that is not encrypted.
pub(crate) fn remote(network: u32, host: Ipv4Addr) -> Remote {
    Remote {
        network,
        host,
        encrypted: false,
    }
}

/// What a host is told: containers with their networks, by host. All have both families.
pub(crate) fn wanted(host: u8, hosts: u8, all: &[(u8, u8, u32)]) -> Wanted {
    let here = |h: &u8| *h == host;
    let networks: BTreeSet<u32> = all.iter().filter(|(h, ..)| here(h)).map(|c| c.2).collect();
    let servers = |ip: fn(u8) -> IpAddr| -> Vec<IpAddr> {
        (all.iter())
            .filter(|(_, _, n)| *n == 1 || *n == ENCRYPTED)
            .map(|(_, c, _)| ip(*c))
            .collect()
    };
    let behind: Vec<(IpAddr, u16)> = vec![(ip(3), PORT), (ip6(3), PORT)];
    Wanted {
        endpoints: (all.iter())
            .filter(|(h, ..)| here(h))
            .flat_map(|(_, c, network)| {
                let endpoint = Endpoint {
                    network: *network,
                    internal: false,
                    encrypted: *network >= ENCRYPTED,
                };
                [(ip(*c), endpoint), (ip6(*c), endpoint)]
            })
            .collect(),
        vips: BTreeMap::from([(ip(100), (1, servers(ip))), (ip6(100), (1, servers(ip6)))]),
        ports: BTreeMap::from([
            ((Protocol::Tcp, PUBLISHED), behind.clone()),
            ((Protocol::Udp, PUBLISHED), behind),
        ]),
        published: [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|p| [(ip(3), p, PORT), (ip6(3), p, PORT)])
            .collect(),
        overlay: Overlay {
            own: Some(Wire::address(host)),
            hosts: (1..=hosts).map(Wire::address).collect(),
            keys: BTreeMap::new(),
            remote: (all.iter())
                .filter(|(h, ..)| !here(h))
                .flat_map(|(h, c, network)| {
                    let known = if networks.contains(network) { *network } else { 0 };
                    let remote = Remote {
                        network: known,
                        host: Wire::address(*h),
                        encrypted: *network >= ENCRYPTED,
                    };
                    [(ip(*c), remote), (ip6(*c), remote)]
                })
                .collect(),
        },
        subnets: [subnet(ip(0)), subnet(ip6(0))].into(),
        ..Wanted::default()
    }
}
