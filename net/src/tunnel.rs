//! The way to other hosts in the kernel: read, and changed step by step.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use crate::dataplane::{NetError, at};
use crate::family::Family;
use crate::overlay::{Paths, Step, Way, Ways, gateway_of, host_of, mac_of};
use crate::ruleset;
use crate::sys::link::{self, Vxlan};
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, NETDEV};
use crate::uplink::setting;
use crate::wireguard::{self, Place, Wireguard};

/// The device in the dataplane's namespace.
pub(crate) const DEVICE: &str = "overlay";
/// Its number (VNI): all networks share it; below those that networks have.
pub(crate) const NUMBER: u32 = 4095;
/// Bytes of what VXLAN puts around a packet over IPv4: Ethernet, IP, UDP, VXLAN.
const OVERHEAD: u32 = 50;
/// The neighbour that the route for answers leads to, whom nobody is.
const NOBODY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// Where the interface of the host's address is not found.
const MTU: u32 = 1500;
/// An interface that takes no packet of this size has no IPv6 (RFC 8200).
const IPV6_MTU_MIN: u32 = 1280;

/// The address that stands for a host as a gateway.
fn gateway(host: Ipv4Addr, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.into(),
        Family::V6 => gateway_of(host).into(),
    }
}

/// The host that a gateway stands for.
fn behind(gateway: IpAddr) -> Option<Ipv4Addr> {
    match gateway {
        IpAddr::V4(host) => Some(host),
        IpAddr::V6(gateway) => host_of(gateway),
    }
}

/// What of the kernel's families a device carries.
fn carried(links: &mut Socket, index: u32, known: &'static [Family]) -> io::Result<&'static [Family]> {
    let mtu = link::mtu(links, index)?.unwrap_or(0);
    Ok(if mtu < IPV6_MTU_MIN { &[Family::V4] } else { known })
}

impl Way {
    /// Its device in the dataplane's namespace.
    pub(crate) const fn device(self) -> &'static str {
        match self {
            Self::Plain => DEVICE,
            Self::Encrypted => wireguard::DEVICE,
        }
    }

    /// Table of the route for its answers, and the mark that leads there.
    const fn table(self) -> (u32, u32) {
        match self {
            Self::Plain => (1000, ruleset::ANSWER),
            Self::Encrypted => (1001, ruleset::ENCRYPTED_ANSWER),
        }
    }

    /// The table of its rules.
    const fn back(self) -> &'static str {
        match self {
            Self::Plain => "rswarm-back",
            Self::Encrypted => "rswarm-back-encrypted",
        }
    }
}

/// Gives devices that are there what leads answers back, in every family: one that an earlier version made has IPv4 alone.
pub(crate) fn complete(links: &mut Socket, families: &'static [Family]) -> Result<(), NetError> {
    for way in [Way::Plain, Way::Encrypted] {
        let device = way.device();
        let Some(index) = link::index(links, device).map_err(at("list links"))? else {
            continue;
        };
        let own = match way {
            Way::Plain => link::vxlan_local(links, index),
            Way::Encrypted => Ok(None),
        };
        carried(links, index, families)
            .and_then(|families| {
                if let Some(own) = own?.filter(|_| families.contains(&Family::V6)) {
                    link::address(links, index, gateway_of(own), 64)?;
                }
                lead_back(links, way, index, families)
            })
            .map_err(at(format!("lead answers back over {device}")))?;
    }
    Ok(())
}

/// Leads answers to clients of another host to the device, which sends them there.
fn lead_back(links: &mut Socket, way: Way, index: u32, families: &[Family]) -> io::Result<()> {
    let (table, mark) = way.table();
    for family in families {
        let nobody = gateway(NOBODY, *family);
        link::neighbour(links, index, nobody, mac_of(Ipv4Addr::UNSPECIFIED))?;
        link::default_route(links, table, index, nobody)?;
        link::rule_for_mark(links, *family, mark, table)?;
    }
    Ok(())
}

/// What is there.
pub(crate) fn found(
    links: &mut Socket,
    tables: &mut Socket,
    wireguard: Option<&mut Wireguard>,
    families: &'static [Family],
) -> Result<Ways, NetError> {
    Ok(Ways {
        plain: paths(links, tables, Way::Plain, None, families)?,
        encrypted: match wireguard {
            Some(wireguard) => paths(links, tables, Way::Encrypted, Some(wireguard), families)?,
            None => Paths::default(),
        },
    })
}

fn paths(
    links: &mut Socket,
    tables: &mut Socket,
    way: Way,
    wireguard: Option<&mut Wireguard>,
    families: &'static [Family],
) -> Result<Paths, NetError> {
    let mut paths = Paths::default();
    // Made last: without it the device is made anew.
    if !nft::table_exists_in(tables, NETDEV, way.back()).map_err(at("list tables"))? {
        return Ok(paths);
    }
    let device = way.device();
    let Some(index) = link::index(links, device).map_err(at("list links"))? else {
        return Ok(paths);
    };
    let families = carried(links, index, families).map_err(at("list links"))?;
    // A host is known where it is known in every family.
    let mut known: Option<BTreeSet<Ipv4Addr>> = None;
    for family in families {
        let all = link::neighbours(links, *family, index).map_err(at("list neighbours"))?;
        let all: BTreeSet<Ipv4Addr> = all.into_iter().filter_map(behind).collect();
        known = Some(known.map_or(all.clone(), |known| known.intersection(&all).copied().collect()));
    }
    let hosts = known
        .unwrap_or_default()
        .into_iter()
        .filter(|host| *host != NOBODY);
    match wireguard {
        None => {
            paths.own = link::vxlan_local(links, index).map_err(at(format!("read the link {device}")))?;
            paths.hosts = hosts.map(|host| (host, None)).collect();
        }
        Some(wireguard) => {
            let (own, keys) = (wireguard.found(links, index)).map_err(at("read what WireGuard has"))?;
            paths.own = own;
            paths.hosts = hosts
                .filter_map(|host| Some((host, Some(*keys.get(&host)?))))
                .collect();
        }
    }
    for family in families {
        let routes = link::routes_over(links, *family, index).map_err(at("list routes"))?;
        let led = routes
            .into_iter()
            .filter_map(|(to, gateway)| Some((to, behind(gateway)?)));
        paths.routes.extend(led);
    }
    Ok(paths)
}

/// A device that is there.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    index: u32,
    /// What it carries.
    families: &'static [Family],
}

/// The sockets and namespaces that steps need.
pub(crate) struct Tunnel<'a> {
    /// Netlink in the host's namespace, through which the packets of the devices pass.
    pub(crate) host_links: &'a mut Socket,
    /// Netlink in the dataplane's.
    pub(crate) links: &'a mut Socket,
    /// Its tables.
    pub(crate) tables: &'a mut Socket,
    /// The host's namespace.
    pub(crate) host: &'a File,
    /// The dataplane's namespace.
    pub(crate) inside: &'a File,
    /// Where this host can encrypt.
    pub(crate) wireguard: Option<&'a mut Wireguard>,
    /// What the kernel knows.
    pub(crate) families: &'static [Family],
    /// A device, once it was looked for.
    pub(crate) device: Option<(Way, Device)>,
}

impl Tunnel<'_> {
    /// Takes one step.
    pub(crate) fn take(&mut self, way: Way, step: Step) -> Result<(), NetError> {
        match step {
            Step::RemoveDevice => self.remove_device(way),
            Step::AddDevice(own) => self.add_device(way, own),
            Step::AddHost { host, key, old } => {
                let Device { index, families } = self.device(way)?;
                // Last what it is found by, when it is read again.
                match (way, key) {
                    (Way::Plain, _) => link::forwarding(self.links, index, (mac_of(host), host), true),
                    (Way::Encrypted, Some(key)) => {
                        let links = &mut *self.links;
                        let with = |w: &mut Wireguard| w.add_host(host, key, old, links, index);
                        self.wireguard.as_deref_mut().map_or(Ok(()), with)
                    }
                    (Way::Encrypted, None) => Err(io::ErrorKind::InvalidInput.into()),
                }
                .and_then(|()| {
                    let mut each = families.iter().map(|family| gateway(host, *family));
                    each.try_for_each(|at| link::neighbour(self.links, index, at, mac_of(host)))
                })
                .map_err(at(format!("know the host {host}")))
            }
            Step::RemoveHost(host, key) => {
                let Device { index, families } = self.device(way)?;
                let mut each = families.iter().map(|family| gateway(host, *family));
                each.try_for_each(|at| link::remove_neighbour(self.links, index, at))
                    .and_then(|()| match (way, key) {
                        (Way::Encrypted, Some(key)) => {
                            let links = &mut *self.links;
                            let with = |w: &mut Wireguard| w.remove_host(host, key, links, index);
                            self.wireguard.as_deref_mut().map_or(Ok(()), with)
                        }
                        _ => link::forwarding(self.links, index, (mac_of(host), host), false),
                    })
                    .map_err(at(format!("forget the host {host}")))
            }
            Step::AddRoute(address, host) => {
                let Device { index, families } = self.device(way)?;
                let family = Family::of(address);
                if !families.contains(&family) {
                    let device = way.device();
                    let why = format!(
                        "route to {address} at {host}: {device} takes no packet of the {IPV6_MTU_MIN} bytes that IPv6 needs: \
                         raise the MTU between the hosts"
                    );
                    return Err(at(why)(io::ErrorKind::Unsupported.into()));
                }
                let to = (address, family.bits());
                link::route(self.links, to, index, Some(gateway(host, family)))
                    .map_err(at(format!("route to {address} at {host}")))
            }
            Step::RemoveRoute(address) => {
                let index = self.device(way)?.index;
                link::remove_route(self.links, address, index)
                    .map_err(at(format!("remove the route to {address}")))
            }
        }
    }

    fn device(&mut self, way: Way) -> Result<Device, NetError> {
        if let Some((_, device)) = self.device.filter(|(of, _)| *of == way) {
            return Ok(device);
        }
        let name = way.device();
        let found = link::index(self.links, name).map_err(at("list links"))?;
        let index =
            found.ok_or_else(|| at(format!("find the link {name}"))(io::ErrorKind::NotFound.into()))?;
        let families = carried(self.links, index, self.families).map_err(at("list links"))?;
        self.device = Some((way, Device { index, families }));
        Ok(Device { index, families })
    }

    fn remove_device(&mut self, way: Way) -> Result<(), NetError> {
        self.device = None;
        let device = way.device();
        link::delete(self.links, device).map_err(at(format!("remove the link {device}")))?;
        match (way, self.wireguard.as_deref_mut()) {
            (Way::Encrypted, Some(wireguard)) => wireguard.remove_device(),
            _ => Ok(()),
        }
    }

    fn add_device(&mut self, way: Way, own: Ipv4Addr) -> Result<(), NetError> {
        // One that was made in part.
        self.remove_device(way)?;
        let mtu = link::mtu_at(self.host_links, own).map_err(at("list the host's addresses"))?;
        let mtu = mtu.unwrap_or(MTU);
        let device = way.device();
        match way {
            Way::Plain => {
                let vxlan = Vxlan {
                    name: device,
                    namespace: self.inside,
                    mac: mac_of(own),
                    mtu: mtu.saturating_sub(OVERHEAD),
                    number: NUMBER,
                    local: own,
                    port: ruleset::PORT,
                };
                link::vxlan(self.host_links, &vxlan)
                    .map_err(at(format!("make the link {device} for {own}")))?;
            }
            Way::Encrypted => {
                let cannot = || at("encrypt networks")(io::ErrorKind::Unsupported.into());
                let wireguard = self.wireguard.as_deref_mut().ok_or_else(cannot)?;
                let mut place = Place {
                    host_links: &mut *self.host_links,
                    host: self.host,
                    inside: self.inside,
                    mtu,
                };
                wireguard.add_device(own, &mut place)?;
            }
        }
        let index = self.device(way)?.index;
        if let (Way::Encrypted, Some(wireguard)) = (way, self.wireguard.as_deref()) {
            wireguard.shape(self.links, index, own, mtu)?;
            // It may carry less than it did.
            self.device = None;
        }
        // A host that cannot take large packets says so, and it is believed.
        setting(Family::V4, "ip_forward_use_pmtu", "1")?;
        // Clients of published ports come over it, too.
        setting(Family::V4, &format!("conf/{device}/rp_filter"), "0")?;
        link::up(self.links, index).map_err(at(format!("put the link {device} up")))?;
        if self.device(way)?.families.contains(&Family::V6) {
            // Asked there, the kernel answers whether a daemon runs or not.
            link::address(self.links, index, gateway_of(own), 64)
                .map_err(at(format!("give the link {device} an address")))?;
        }
        self.lead_back(way)
    }

    /// Leads answers to clients of another host to the device, and from it to the host that was asked.
    fn lead_back(&mut self, way: Way) -> Result<(), NetError> {
        let Device { index, families } = self.device(way)?;
        lead_back(self.links, way, index, families)
            .and_then(|()| {
                let mut batch = ruleset::back(way.back(), way.device());
                if nft::table_exists_in(self.tables, NETDEV, way.back())? {
                    batch = batch.instead();
                }
                batch.commit(self.tables)
            })
            .map_err(at("lead answers back to the host that was asked"))
    }
}
