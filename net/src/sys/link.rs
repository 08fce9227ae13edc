//! rtnetlink(7): veth pairs, bridges, addresses, routes, neighbours.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use crate::family::{Family, octets};

use super::netlink::{self, ACK, CREATE, DUMP, EXCL, Message, REPLACE, REQUEST, Socket};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;
/// The main table of routes, and their kind.
const MAIN: u8 = 254;
const UNICAST: u8 = 1;

fn interface(index: u32, up: bool) -> Vec<u8> {
    // struct ifinfomsg: family, type, index, flags, change mask.
    let mut fixed = vec![0u8; 4];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let flag = u32::from(up);
    fixed.extend_from_slice(&flag.to_ne_bytes());
    fixed.extend_from_slice(&flag.to_ne_bytes());
    fixed
}

/// Makes a veth pair: one end here, the other made directly in `namespace` (a pair that is moved costs 20 ms more).
pub(crate) fn veth(
    socket: &mut Socket,
    here: &str,
    (there, namespace): (&str, &File),
    macs: ([u8; 6], [u8; 6]),
    mtu: u32,
) -> io::Result<()> {
    // Neither end can be put up before both exist.
    let mut m = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &interface(0, false));
    m.text(3, here).put(1, &macs.0).ne32(4, mtu);
    m.nest(18, |m| {
        m.text(1, "veth");
        m.nest(2, |m| {
            m.nest(1, |m| {
                m.bytes.extend_from_slice(&interface(0, false));
                m.text(3, there).put(1, &macs.1).ne32(4, mtu);
                m.put(28, &namespace.as_raw_fd().to_ne_bytes());
            });
        });
    });
    socket.request(m)
}

/// Makes a bridge here.
pub(crate) fn bridge(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut m = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &interface(0, false));
    m.text(3, name);
    m.nest(18, |m| {
        m.text(1, "bridge");
    });
    socket.request(m)
}

/// What a VXLAN device is made with (RFC 7348).
pub(crate) struct Vxlan<'a> {
    pub(crate) name: &'a str,
    /// Where it is seen; its packets pass through the namespace of the socket that makes it.
    pub(crate) namespace: &'a File,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) number: u32,
    pub(crate) local: Ipv4Addr,
    pub(crate) port: u16,
}

/// Makes a VXLAN device that learns nothing and lets no packet be cut in pieces on its way.
pub(crate) fn vxlan(socket: &mut Socket, device: &Vxlan<'_>) -> io::Result<()> {
    let mut m = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &interface(0, false));
    m.text(3, device.name).put(1, &device.mac).ne32(4, device.mtu);
    m.put(28, &device.namespace.as_raw_fd().to_ne_bytes());
    m.nest(18, |m| {
        m.text(1, "vxlan");
        m.nest(2, |m| {
            // id, local, learning, port, checksum, df. What is inside has its own checksums, and RFC 7348 wants no other: a
            // host that has to work it out of every packet takes a third of the bytes.
            m.ne32(1, device.number)
                .put(4, &device.local.octets())
                .put(7, &[0])
                .put(15, &device.port.to_be_bytes())
                .put(18, &[0])
                .put(29, &[1]);
        });
    });
    socket.request(m)
}

/// Makes a WireGuard device in a namespace; its packets pass through the namespace of the socket that makes it.
pub(crate) fn wireguard(socket: &mut Socket, name: &str, namespace: &File, mtu: u32) -> io::Result<()> {
    let mut m = Message::new(NEW_LINK, REQUEST | ACK | CREATE | EXCL, &interface(0, false));
    m.text(3, name).ne32(4, mtu);
    m.put(28, &namespace.as_raw_fd().to_ne_bytes());
    m.nest(18, |m| {
        m.text(1, "wireguard");
    });
    socket.request(m)
}

/// Gives an interface a MAC and the largest packet it takes.
pub(crate) fn shape(socket: &mut Socket, index: u32, mac: [u8; 6], mtu: u32) -> io::Result<()> {
    let mut m = Message::new(NEW_LINK, REQUEST | ACK, &interface(index, false));
    m.put(1, &mac).ne32(4, mtu);
    socket.request(m)
}

/// The host's address a VXLAN device sends from.
pub(crate) fn vxlan_local(socket: &mut Socket, index: u32) -> io::Result<Option<Ipv4Addr>> {
    let all = attributes_of(socket, index)?;
    let data = netlink::find(&all, 18).and_then(|info| netlink::find(&info, 2));
    Ok(match data.and_then(|data| ip(&data, 4)) {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    })
}

/// What the kernel says of an interface; nothing of one that is not there.
fn attributes_of(socket: &mut Socket, index: u32) -> io::Result<Vec<u8>> {
    let bodies = socket.dump(Message::new(GET_LINK, REQUEST | DUMP, &interface(0, false)))?;
    let read = |body: &Vec<u8>| {
        let of = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        (of == index).then(|| body.get(16..).unwrap_or_default().to_vec())
    };
    Ok(bodies.iter().find_map(read).unwrap_or_default())
}

/// An attribute that is an address.
fn ip(bytes: &[u8], kind: u16) -> Option<IpAddr> {
    let octets = netlink::find(bytes, kind)?;
    match octets.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => None,
    }
}

/// The largest packet of the interface that has an address.
pub(crate) fn mtu_at(socket: &mut Socket, address: Ipv4Addr) -> io::Result<Option<u32>> {
    let mut fixed = vec![2u8];
    fixed.resize(8, 0);
    let bodies = socket.dump(Message::new(GET_ADDRESS, REQUEST | DUMP, &fixed))?;
    let has = |body: &Vec<u8>| {
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        (netlink::find(body.get(8..)?, 2)? == address.octets()).then_some(index)
    };
    let Some(index) = bodies.iter().find_map(has) else {
        return Ok(None);
    };
    mtu(socket, index)
}

/// The largest packet of an interface.
pub(crate) fn mtu(socket: &mut Socket, index: u32) -> io::Result<Option<u32>> {
    let mtu = netlink::find(&attributes_of(socket, index)?, 4);
    Ok(mtu.and_then(|mtu| Some(u32::from_ne_bytes(mtu.try_into().ok()?))))
}

/// Makes an interface a port of a bridge.
pub(crate) fn join_bridge(socket: &mut Socket, index: u32, bridge: u32) -> io::Result<()> {
    let mut m = Message::new(NEW_LINK, REQUEST | ACK, &interface(index, false));
    m.ne32(10, bridge);
    socket.request(m)
}

/// The number of an interface.
pub(crate) fn index(socket: &mut Socket, name: &str) -> io::Result<Option<u32>> {
    Ok(list(socket)?.into_iter().find(|(_, n)| n == name).map(|(i, _)| i))
}

/// Number and name of every interface.
pub(crate) fn list(socket: &mut Socket) -> io::Result<Vec<(u32, String)>> {
    let bodies = socket.dump(Message::new(GET_LINK, REQUEST | DUMP, &interface(0, false)))?;
    let read = |body: &Vec<u8>| {
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let name = netlink::attributes(body.get(16..)?)
            .into_iter()
            .find(|(k, _)| *k == 3)?
            .1;
        Some((
            index,
            String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned(),
        ))
    };
    Ok(bodies.iter().filter_map(read).collect())
}

/// Whether an interface carries packets: its carrier was noticed (RFC 2863, "up") and, as a port of a bridge, it forwards.
///
/// The kernel notices in its own time (`linkwatch`), after the call that put the interface up has returned.
pub(crate) fn carries(socket: &mut Socket, index: u32) -> io::Result<bool> {
    const OPERSTATE: u16 = 16;
    const INFO: u16 = 18;
    const INFO_PORT: u16 = 5;
    const PORT_STATE: u16 = 1;
    const UP: u8 = 6;
    const FORWARDING: u8 = 3;
    let find = netlink::find;
    let all = attributes_of(socket, index)?;
    let up = find(&all, OPERSTATE).is_some_and(|state| state.first() == Some(&UP));
    let port = find(&all, INFO)
        .and_then(|i| find(&i, INFO_PORT))
        .and_then(|p| find(&p, PORT_STATE));
    Ok(up && port.is_none_or(|state| state.first() == Some(&FORWARDING)))
}

/// Takes an interface away; one that is gone is no error.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> io::Result<()> {
    let Some(index) = index(socket, name)? else {
        return Ok(());
    };
    socket.request(Message::new(DELETE_LINK, REQUEST | ACK, &interface(index, false)))
}

/// Puts an interface up.
pub(crate) fn up(socket: &mut Socket, index: u32) -> io::Result<()> {
    socket.request(Message::new(NEW_LINK, REQUEST | ACK, &interface(index, true)))
}

/// Puts an interface down; the other end of a pair loses its carrier.
pub(crate) fn down(socket: &mut Socket, index: u32) -> io::Result<()> {
    // The mask says which flags the message is about: "up", which is not set.
    let mut fixed = interface(index, false);
    fixed[12..16].copy_from_slice(&1u32.to_ne_bytes());
    socket.request(Message::new(NEW_LINK, REQUEST | ACK, &fixed))
}

/// Gives an interface an address; one it has is no error. Nobody is asked whether another has it (DAD, RFC 4862).
pub(crate) fn address(
    socket: &mut Socket,
    index: u32,
    address: impl Into<IpAddr>,
    prefix: u8,
) -> io::Result<()> {
    const NODAD: u8 = 2;
    let address = address.into();
    let (family, bytes) = (Family::of(address), octets(address));
    let flags = if family == Family::V6 { NODAD } else { 0 };
    let mut fixed = vec![family.number(), prefix, flags, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut m = Message::new(NEW_ADDRESS, REQUEST | ACK | CREATE | REPLACE, &fixed);
    m.put(2, &bytes).put(1, &bytes);
    socket.request(m)
}

/// Adds a route: to `to` over an interface, through a gateway where there is one.
pub(crate) fn route<A: Into<IpAddr>>(
    socket: &mut Socket,
    to: (A, u8),
    index: u32,
    gateway: Option<A>,
) -> io::Result<()> {
    route_from(socket, to, index, gateway, None)
}

/// The same; what has no source yet gets `source`.
pub(crate) fn route_from<A: Into<IpAddr>>(
    socket: &mut Socket,
    (to, prefix): (A, u8),
    index: u32,
    gateway: Option<A>,
    source: Option<A>,
) -> io::Result<()> {
    // struct rtmsg: family, dst_len, src_len, tos, table main, protocol static, scope, type unicast, flags.
    let to = to.into();
    let family = Family::of(to);
    let scope = if gateway.is_some() { 0 } else { 253 };
    let mut fixed = vec![family.number(), prefix, 0, 0, MAIN, 4, scope, UNICAST];
    fixed.extend_from_slice(&on_link(family, gateway.is_some()).to_ne_bytes());
    let mut m = Message::new(NEW_ROUTE, REQUEST | ACK | CREATE | REPLACE, &fixed);
    if prefix > 0 {
        m.put(1, &octets(to));
    }
    if let Some(gateway) = gateway {
        m.put(5, &octets(gateway.into()));
    }
    if let Some(source) = source {
        m.put(7, &octets(source.into()));
    }
    m.ne32(4, index);
    socket.request(m)
}

/// The flag by which a gateway is taken to be there. An IPv6 one that is of the link needs none, and another is looked for.
const fn on_link(family: Family, gateway: bool) -> u32 {
    match (family, gateway) {
        (Family::V4, true) => 4,
        (Family::V4, false) | (Family::V6, _) => 0,
    }
}

fn all_routes(socket: &mut Socket, family: Family) -> io::Result<Vec<Vec<u8>>> {
    let mut fixed = vec![family.number()];
    fixed.resize(12, 0);
    socket.dump(Message::new(GET_ROUTE, REQUEST | DUMP, &fixed))
}

/// Adds a neighbour for good, so that nobody has to ask.
pub(crate) fn neighbour(
    socket: &mut Socket,
    index: u32,
    address: impl Into<IpAddr>,
    mac: [u8; 6],
) -> io::Result<()> {
    let address = address.into();
    let fixed = neighbour_of(Family::of(address).number(), index, 0);
    let mut m = Message::new(NEW_NEIGHBOUR, REQUEST | ACK | CREATE | REPLACE, &fixed);
    m.put(1, &octets(address)).put(2, &mac);
    socket.request(m)
}

/// Removes the route to an address over an interface; one that is gone is no error.
pub(crate) fn remove_route(socket: &mut Socket, to: IpAddr, index: u32) -> io::Result<()> {
    let family = Family::of(to);
    let fixed = [family.number(), family.bits(), 0, 0, MAIN, 0, 255, 0, 0, 0, 0, 0];
    let mut m = Message::new(DELETE_ROUTE, REQUEST | ACK, &fixed);
    m.put(1, &octets(to)).ne32(4, index);
    gone_is_fine(socket.request(m), false)
}

fn gone_is_fine(result: io::Result<()>, there: bool) -> io::Result<()> {
    const NO_SUCH_PROCESS: i32 = 3;
    const NO_ENTRY: i32 = 2;
    match result {
        Err(e) if !there && matches!(e.raw_os_error(), Some(NO_SUCH_PROCESS | NO_ENTRY)) => Ok(()),
        result => result,
    }
}

/// Routes of the main table over an interface: addresses, and the gateway each is reached through.
pub(crate) fn routes_over(
    socket: &mut Socket,
    family: Family,
    index: u32,
) -> io::Result<Vec<(IpAddr, IpAddr)>> {
    let read = |body: &Vec<u8>| {
        let rest = body.get(12..)?;
        let over = u32::from_ne_bytes(netlink::find(rest, 4)?.try_into().ok()?);
        if *body.get(4)? != MAIN || over != index {
            return None;
        }
        Some((ip(rest, 1)?, ip(rest, 5)?))
    };
    Ok(all_routes(socket, family)?.iter().filter_map(read).collect())
}

/// Addresses of the neighbours of an interface that are known for good.
pub(crate) fn neighbours(socket: &mut Socket, family: Family, index: u32) -> io::Result<Vec<IpAddr>> {
    let mut fixed = vec![family.number()];
    fixed.resize(12, 0);
    let bodies = socket.dump(Message::new(GET_NEIGHBOUR, REQUEST | DUMP, &fixed))?;
    let read = |body: &Vec<u8>| {
        let of = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
        if of != index || state != PERMANENT {
            return None;
        }
        ip(body.get(12..)?, 1)
    };
    Ok(bodies.iter().filter_map(read).collect())
}

/// Removes a neighbour; one that is gone is no error.
pub(crate) fn remove_neighbour(
    socket: &mut Socket,
    index: u32,
    address: impl Into<IpAddr>,
) -> io::Result<()> {
    let address = address.into();
    let fixed = neighbour_of(Family::of(address).number(), index, 0);
    let mut m = Message::new(DELETE_NEIGHBOUR, REQUEST | ACK, &fixed);
    m.put(1, &octets(address));
    gone_is_fine(socket.request(m), false)
}

/// Sends what is for a MAC on a VXLAN device to a host, or no more.
pub(crate) fn forwarding(
    socket: &mut Socket,
    index: u32,
    (mac, host): ([u8; 6], Ipv4Addr),
    there: bool,
) -> io::Result<()> {
    const BRIDGE: u8 = 7;
    const SELF: u8 = 2;
    let fixed = neighbour_of(BRIDGE, index, SELF);
    let mut m = if there {
        Message::new(NEW_NEIGHBOUR, REQUEST | ACK | CREATE | REPLACE, &fixed)
    } else {
        Message::new(DELETE_NEIGHBOUR, REQUEST | ACK, &fixed)
    };
    m.put(2, &mac).put(1, &host.octets());
    gone_is_fine(socket.request(m), there)
}

/// Known for good, as nobody asks.
const PERMANENT: u16 = 0x80;

fn neighbour_of(family: u8, index: u32, flags: u8) -> Vec<u8> {
    // struct ndmsg: family, pad, index, state, flags, type.
    let mut fixed = vec![family, 0, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&PERMANENT.to_ne_bytes());
    fixed.extend_from_slice(&[flags, 0]);
    fixed
}

/// Makes the default route of a table of routes, over an interface, through a gateway that is taken to be there.
pub(crate) fn default_route(socket: &mut Socket, table: u32, index: u32, gateway: IpAddr) -> io::Result<()> {
    let family = Family::of(gateway);
    let mut fixed = vec![family.number(), 0, 0, 0, 0, 4, 0, UNICAST];
    fixed.extend_from_slice(&on_link(family, true).to_ne_bytes());
    let mut m = Message::new(NEW_ROUTE, REQUEST | ACK | CREATE | REPLACE, &fixed);
    m.put(5, &octets(gateway)).ne32(4, index).ne32(15, table);
    socket.request(m)
}

/// Leads packets with a mark to a table of routes; a rule that is there is no error.
pub(crate) fn rule_for_mark(socket: &mut Socket, family: Family, mark: u32, table: u32) -> io::Result<()> {
    const NEW_RULE: u16 = 32;
    const TO_TABLE: u8 = 1;
    // struct fib_rule_hdr: family, lengths, service, table, reserved, action, flags.
    let fixed = [family.number(), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let mut m = Message::new(NEW_RULE, REQUEST | ACK | CREATE | EXCL, &fixed);
    // Before one of an earlier version (1000), which took all marks for its own. Priority, mark, mask, table.
    m.ne32(6, table - 100)
        .ne32(10, mark)
        .ne32(16, u32::MAX)
        .ne32(15, table);
    match socket.request(m) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
