//! Several hosts on one machine: namespaces on a bridge in a namespace of its own, whose links can be cut and healed.
//!
//! Nothing of it is seen outside its namespaces, so any number of wires use the same addresses side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::dataplane::{NETLINK_NETFILTER, NETLINK_ROUTE, NetError, at};
use crate::family::Family;
use crate::plan;
use crate::ruleset;
use crate::sys;
use crate::sys::link;
use crate::sys::netlink::Socket;
use crate::sys::nft::Batch;
use crate::uplink;

/// Largest packet on it, as on Ethernet.
const MTU: u32 = 1500;
const BRIDGE: &str = "bridge";
/// How long the kernel may take to notice that a link is up; a busy one takes hundreds of milliseconds.
const CARRIER: Duration = Duration::from_secs(10);
/// Host number that every host's default route leads to.
const GATEWAY: u8 = 254;

/// Does something in a network namespace, on a thread of its own; processes started by it are in there as well.
///
/// # Errors
/// [`NetError`] when there is no such namespace, or the work panicked.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    let file = File::open(namespace).map_err(at(format!("open the namespace {}", namespace.display())))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::enter(&file).map_err(at("enter a namespace"))?;
            Ok(work())
        });
        let panicked = || at("work in a namespace")(std::io::Error::other("the thread panicked"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// What was seen of packets between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overheard {
    /// Packets from one of them to another.
    pub packets: usize,
    /// Those in which a text was.
    pub with: usize,
    /// Packets with the text of the whole namespace, whoever they are from and for.
    pub anywhere: usize,
}

/// Looks at what passes between some hosts, from the namespace of one of them, while something is done.
///
/// # Errors
/// [`NetError`] when nothing can be seen there.
pub fn overhear<T>(
    namespace: &Path,
    hosts: &BTreeSet<Ipv4Addr>,
    text: &str,
    work: impl FnOnce() -> T,
) -> Result<(T, Overheard), NetError> {
    use rustix::net::{AddressFamily, RecvFlags, SocketType, eth, sockopt};
    const LOOK: Duration = Duration::from_millis(50);
    let listen = || -> Result<_, rustix::io::Errno> {
        let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LOOK))?;
        Ok(socket)
    };
    let socket = inside(namespace, listen)?.map_err(|e| at("listen to a wire")(e.into()))?;
    let done = AtomicBool::new(false);
    let between = |packet: &[u8]| {
        // Ethernet, then IPv4.
        let address = |at: usize| {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets)).filter(|a| hosts.contains(a))
        };
        packet.get(12..14) == Some(&[8, 0]) && address(26).zip(address(30)).is_some_and(|(a, b)| a != b)
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut buffer, mut seen) = (vec![0u8; 1 << 17], Overheard::default());
            while !done.load(Ordering::Relaxed) {
                let received = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty());
                let packet = received.ok().and_then(|(_, length)| buffer.get(..length));
                let Some(packet) = packet else { continue };
                let with = usize::from(packet.windows(text.len()).any(|w| w == text.as_bytes()));
                seen.anywhere += with;
                if between(packet) {
                    seen.packets += 1;
                    seen.with += with;
                }
            }
            seen
        });
        let result = work();
        // What is on its way.
        std::thread::sleep(2 * LOOK);
        done.store(true, Ordering::Relaxed);
        let seen = reader.join();
        let seen = seen.map_err(|_| at("listen to a wire")(std::io::Error::other("the thread panicked")))?;
        Ok((result, seen))
    })
}

/// One wire and what hangs on it. It is taken down when it is dropped; processes in it keep theirs until they end.
#[derive(Debug)]
pub struct Wire {
    dir: PathBuf,
    links: Socket,
    hosts: BTreeMap<u8, Plug>,
}

#[derive(Debug)]
struct Plug {
    /// Netlink in the host's namespace.
    tables: Socket,
    /// Whom it does not hear.
    deaf_to: BTreeSet<u8>,
    /// Of whom it loses some packets, and how many of a hundred.
    noisy: (BTreeSet<u8>, u8),
}

impl Wire {
    /// Makes the bridge. Namespaces are kept as files in `dir`.
    ///
    /// # Errors
    /// [`NetError`] with the step that failed.
    pub fn make(dir: &Path) -> Result<Self, NetError> {
        let path = dir.join(BRIDGE);
        sys::make_namespace(&path).map_err(at("make the namespace of a bridge"))?;
        let links = inside(&path, || {
            let mut links = Socket::open(NETLINK_ROUTE).map_err(at("open netlink"))?;
            link::bridge(&mut links, BRIDGE).map_err(at("make a bridge"))?;
            let index = find(&mut links, BRIDGE)?;
            link::up(&mut links, index).map_err(at("put a bridge up"))?;
            Ok(links)
        })
        .and_then(|made| made);
        match links {
            Ok(links) => Ok(Self {
                dir: dir.to_owned(),
                links,
                hosts: BTreeMap::new(),
            }),
            Err(error) => {
                let _ = sys::drop_namespace(&path);
                Err(error)
            }
        }
    }

    /// The address of a host.
    pub const fn address(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, host)
    }

    /// Its IPv6 address.
    pub const fn address_ipv6(host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host as u16)
    }

    /// The file of a host's namespace.
    pub fn namespace(&self, host: u8) -> PathBuf {
        self.dir.join(format!("host{host}"))
    }

    fn port(host: u8) -> String {
        format!("host{host}")
    }

    /// Makes a host, 1 to 253, and connects it. What it sends arrives from when this returns.
    ///
    /// # Errors
    /// [`NetError`] with the step that failed; what was made of it goes with the wire.
    pub fn add(&mut self, host: u8) -> Result<(), NetError> {
        let path = self.namespace(host);
        sys::make_namespace(&path).map_err(at("make the namespace of a host"))?;
        let file = File::open(&path).map_err(at("open the namespace of a host"))?;
        let port = Self::port(host);
        let macs = ([2, 0x52, 0, 0, 1, host], [2, 0x52, 0, 0, 2, host]);
        link::veth(&mut self.links, &port, ("eth0", &file), macs, MTU)
            .map_err(at(format!("make the link {port}")))?;
        let (index, bridge) = (find(&mut self.links, &port)?, find(&mut self.links, BRIDGE)?);
        link::join_bridge(&mut self.links, index, bridge)
            .map_err(at(format!("put the link {port} on the bridge")))?;
        link::up(&mut self.links, index).map_err(at(format!("put the link {port} up")))?;
        let tables = inside(&path, || {
            let mut links = Socket::open(NETLINK_ROUTE).map_err(at("open netlink"))?;
            for name in ["lo", "eth0"] {
                let index = find(&mut links, name)?;
                link::up(&mut links, index).map_err(at(format!("put {name} up")))?;
                if name == "eth0" {
                    link::address(&mut links, index, Self::address(host), 24)
                        .map_err(at("give a host its address"))?;
                    if uplink::families().contains(&Family::V6) {
                        link::address(&mut links, index, Self::address_ipv6(host), 64)
                            .map_err(at("give a host its IPv6 address"))?;
                    }
                    // Nobody answers there; but a host that has a way out finds its own address by it.
                    link::route(
                        &mut links,
                        (Ipv4Addr::UNSPECIFIED, 0),
                        index,
                        Some(Self::address(GATEWAY)),
                    )
                    .map_err(at("give a host a way out"))?;
                }
            }
            let mut tables = Socket::open(NETLINK_NETFILTER).map_err(at("open netlink"))?;
            (ruleset::cuts().commit(&mut tables)).map_err(at("make a host's table of cuts"))?;
            let index = find(&mut links, "eth0")?;
            carries(&mut links, index, "eth0")?;
            Ok(tables)
        })??;
        carries(&mut self.links, index, &port)?;
        let plug = Plug {
            tables,
            deaf_to: BTreeSet::new(),
            noisy: (BTreeSet::new(), 0),
        };
        self.hosts.insert(host, plug);
        Ok(())
    }

    /// Loses what one host sends to another from now on, or no more. Neither is told.
    ///
    /// # Errors
    /// [`NetError`]; then it is as before.
    pub fn lose(&mut self, from: u8, to: u8, lost: bool) -> Result<(), NetError> {
        let Some(plug) = self.hosts.get_mut(&to) else {
            return Ok(());
        };
        if plug.deaf_to.contains(&from) == lost {
            return Ok(());
        }
        let mut batch = Batch::new(Family::V4, ruleset::CUTS);
        let element = [(Self::address(from).octets().to_vec(), None)];
        if lost {
            batch.add(ruleset::CUT_FROM, &element);
        } else {
            batch.remove(ruleset::CUT_FROM, &element);
        }
        (batch.commit(&mut plug.tables)).map_err(at(format!("change what host {to} hears")))?;
        if lost {
            plug.deaf_to.insert(from);
        } else {
            plug.deaf_to.remove(&from);
        }
        Ok(())
    }

    /// Loses all datagrams for a UDP port of a host from now on, as a firewall does, or no more.
    ///
    /// # Errors
    /// [`NetError`]; then it is as before.
    pub fn lose_udp(&mut self, to: u8, port: u16, lost: bool) -> Result<(), NetError> {
        let Some(plug) = self.hosts.get_mut(&to) else {
            return Ok(());
        };
        let mut batch = Batch::new(Family::V4, ruleset::CUTS);
        let element = [(plan::port_word(port).to_vec(), None)];
        if lost {
            batch.add(ruleset::LOST_UDP, &element);
        } else {
            batch.remove(ruleset::LOST_UDP, &element);
        }
        (batch.commit(&mut plug.tables)).map_err(at(format!("change what host {to} hears")))
    }

    /// Loses so many of a hundred packets, by chance, of what a host is sent by these others, and none of anybody else.
    ///
    /// # Errors
    /// [`NetError`]; then it is as before.
    pub fn noise(&mut self, to: u8, from: &BTreeSet<u8>, percent: u8) -> Result<(), NetError> {
        let Some(plug) = self.hosts.get_mut(&to) else {
            return Ok(());
        };
        let percent = if from.is_empty() { 0 } else { percent.min(100) };
        let addresses = |hosts: &BTreeSet<u8>| -> Vec<_> {
            let address = |host: &u8| (Self::address(*host).octets().to_vec(), None);
            hosts.iter().map(address).collect()
        };
        let numbers = |below: u8| -> Vec<_> {
            let number = |n: u8| (u32::from(n).to_ne_bytes().to_vec(), None);
            (0..below).map(number).collect()
        };
        let mut batch = Batch::new(Family::V4, ruleset::CUTS);
        batch.remove(ruleset::NOISY_FROM, &addresses(&plug.noisy.0));
        batch.remove(ruleset::LOST, &numbers(plug.noisy.1));
        batch.add(ruleset::NOISY_FROM, &addresses(from));
        batch.add(ruleset::LOST, &numbers(percent));
        (batch.commit(&mut plug.tables)).map_err(at(format!("change what host {to} hears")))?;
        plug.noisy = (from.clone(), percent);
        Ok(())
    }

    /// Pulls the cable of a host, or puts it back: its end sees that there is no carrier.
    /// Once put back, it forwards when this returns; the host's own end may notice a moment later.
    ///
    /// # Errors
    /// [`NetError`]; then it is as before.
    pub fn cable(&mut self, host: u8, plugged: bool) -> Result<(), NetError> {
        let port = Self::port(host);
        let index = find(&mut self.links, &port)?;
        let change = if plugged { link::up } else { link::down };
        change(&mut self.links, index).map_err(at(format!("change the link {port}")))?;
        if plugged {
            carries(&mut self.links, index, &port)?;
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for host in self.hosts.keys() {
            let _ = sys::drop_namespace(&self.namespace(*host));
        }
        let _ = sys::drop_namespace(&self.dir.join(BRIDGE));
    }
}

fn find(links: &mut Socket, name: &str) -> Result<u32, NetError> {
    link::index(links, name)
        .map_err(at("list links"))?
        .ok_or_else(|| at(format!("find the link {name}"))(std::io::ErrorKind::NotFound.into()))
}

/// Waits until a link that was put up carries packets.
fn carries(links: &mut Socket, index: u32, name: &str) -> Result<(), NetError> {
    let deadline = Instant::now() + CARRIER;
    while !link::carries(links, index).map_err(at("list links"))? {
        if Instant::now() >= deadline {
            return Err(at(format!("wait for the carrier of {name}"))(
                std::io::ErrorKind::TimedOut.into(),
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
