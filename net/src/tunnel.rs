//! The way to other hosts in the kernel: read, and changed step by step.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use crate::dataplane::{NetError, at, setting};
use crate::overlay::{Paths, Step, mac_of};
use crate::ruleset;
use crate::sys::link::{self, Vxlan};
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, NETDEV};

/// The device in the dataplane's namespace.
pub(crate) const DEVICE: &str = "overlay";
/// Its number (VNI): all networks share it; below those that networks have.
pub(crate) const NUMBER: u32 = 4095;
/// Bytes of what VXLAN puts around a packet over IPv4: Ethernet, IP, UDP, VXLAN.
const OVERHEAD: u32 = 50;
/// Table of the route for answers, and the neighbour it leads to, whom nobody is.
const TABLE: u32 = 1000;
const NOBODY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// Where the interface of the host's address is not found.
const MTU: u32 = 1500;

/// What is there.
pub(crate) fn found(links: &mut Socket, tables: &mut Socket) -> Result<Paths, NetError> {
    let mut paths = Paths::default();
    // Made last: without it the device is made anew.
    if !nft::table_exists_in(tables, NETDEV, ruleset::BACK).map_err(at("list tables"))? {
        return Ok(paths);
    }
    let Some(index) = link::index(links, DEVICE).map_err(at("list links"))? else {
        return Ok(paths);
    };
    paths.own = link::vxlan_local(links, index).map_err(at(format!("read the link {DEVICE}")))?;
    let hosts = link::neighbours(links, index).map_err(at("list neighbours"))?;
    paths.hosts = hosts.into_iter().filter(|host| *host != NOBODY).collect();
    let routes = link::routes_over(links, index).map_err(at("list routes"))?;
    paths.routes = routes.into_iter().collect();
    Ok(paths)
}

/// The sockets and namespaces that steps need.
pub(crate) struct Tunnel<'a> {
    /// Netlink in the host's namespace, through which the packets of the device pass.
    pub(crate) host: &'a mut Socket,
    /// Netlink in the dataplane's.
    pub(crate) links: &'a mut Socket,
    /// Its tables.
    pub(crate) tables: &'a mut Socket,
    /// The dataplane's namespace.
    pub(crate) inside: &'a File,
    /// Number of the device, once it was looked for.
    pub(crate) index: Option<u32>,
}

impl Tunnel<'_> {
    /// Takes one step.
    pub(crate) fn take(&mut self, step: Step) -> Result<(), NetError> {
        match step {
            Step::RemoveDevice => {
                self.index = None;
                link::delete(self.links, DEVICE).map_err(at(format!("remove the link {DEVICE}")))
            }
            Step::AddDevice(own) => self.add_device(own),
            Step::AddHost(host) => {
                let index = self.index()?;
                // First what is found last, when it is read again.
                link::forwarding(self.links, index, (mac_of(host), host), true)
                    .and_then(|()| link::neighbour(self.links, index, host, mac_of(host)))
                    .map_err(at(format!("know the host {host}")))
            }
            Step::RemoveHost(host) => {
                let index = self.index()?;
                link::remove_neighbour(self.links, index, host)
                    .and_then(|()| link::forwarding(self.links, index, (mac_of(host), host), false))
                    .map_err(at(format!("forget the host {host}")))
            }
            Step::AddRoute(address, host) => {
                let index = self.index()?;
                link::route(self.links, (address, 32), index, Some(host))
                    .map_err(at(format!("route to {address} at {host}")))
            }
            Step::RemoveRoute(address) => {
                let index = self.index()?;
                link::remove_route(self.links, address, index)
                    .map_err(at(format!("remove the route to {address}")))
            }
        }
    }

    fn index(&mut self) -> Result<u32, NetError> {
        if self.index.is_none() {
            self.index = link::index(self.links, DEVICE).map_err(at("list links"))?;
        }
        self.index
            .ok_or_else(|| at(format!("find the link {DEVICE}"))(io::ErrorKind::NotFound.into()))
    }

    fn add_device(&mut self, own: Ipv4Addr) -> Result<(), NetError> {
        // One that was made in part.
        self.index = None;
        link::delete(self.links, DEVICE).map_err(at(format!("remove the link {DEVICE}")))?;
        let mtu = link::mtu_at(self.host, own).map_err(at("list the host's addresses"))?;
        let device = Vxlan {
            name: DEVICE,
            namespace: self.inside,
            mac: mac_of(own),
            mtu: mtu.unwrap_or(MTU).saturating_sub(OVERHEAD),
            number: NUMBER,
            local: own,
            port: ruleset::PORT,
        };
        link::vxlan(self.host, &device).map_err(at(format!("make the link {DEVICE} for {own}")))?;
        let index = self.index()?;
        // A host that cannot take large packets says so, and it is believed.
        setting("ip_forward_use_pmtu", "1")?;
        // Clients of published ports come over it, too.
        setting(&format!("conf/{DEVICE}/rp_filter"), "0")?;
        link::up(self.links, index).map_err(at(format!("put the link {DEVICE} up")))?;
        self.lead_back(index)
            .map_err(at("lead answers back to the host that was asked"))
    }

    /// Leads what has the mark of a host to the device, which sends it there.
    fn lead_back(&mut self, index: u32) -> io::Result<()> {
        link::neighbour(self.links, index, NOBODY, mac_of(Ipv4Addr::UNSPECIFIED))?;
        link::default_route(self.links, TABLE, index, NOBODY)?;
        link::rule_for_marks(self.links, TABLE)?;
        let mut batch = ruleset::back(DEVICE);
        if nft::table_exists_in(self.tables, NETDEV, ruleset::BACK)? {
            batch = batch.instead();
        }
        batch.commit(self.tables)
    }
}
