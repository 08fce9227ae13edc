//! rtnetlink(7): veth pairs, bridges, addresses, routes, neighbours.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use super::netlink::{self, ACK, CREATE, DUMP, EXCL, Message, REPLACE, REQUEST, Socket};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

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
    let find = |bytes: &[u8], kind: u16| {
        let found = netlink::attributes(bytes).into_iter().find(|(k, _)| *k == kind)?;
        Some(found.1.to_vec())
    };
    let read = |body: &Vec<u8>| {
        if u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?) != index {
            return None;
        }
        let all = body.get(16..)?;
        let up = find(all, OPERSTATE)?.first() == Some(&UP);
        let port = find(all, INFO)
            .and_then(|i| find(&i, INFO_PORT))
            .and_then(|p| find(&p, PORT_STATE));
        Some(up && port.is_none_or(|state| state.first() == Some(&FORWARDING)))
    };
    let bodies = socket.dump(Message::new(GET_LINK, REQUEST | DUMP, &interface(0, false)))?;
    Ok(bodies.iter().find_map(read).unwrap_or(false))
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

/// Gives an interface an address; one it has is no error.
pub(crate) fn address(socket: &mut Socket, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut fixed = vec![2, prefix, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut m = Message::new(NEW_ADDRESS, REQUEST | ACK | CREATE | REPLACE, &fixed);
    m.put(2, &address.octets()).put(1, &address.octets());
    socket.request(m)
}

/// Adds a route: to `to` over an interface, through a gateway where there is one.
pub(crate) fn route(
    socket: &mut Socket,
    (to, prefix): (Ipv4Addr, u8),
    index: u32,
    gateway: Option<Ipv4Addr>,
) -> io::Result<()> {
    // struct rtmsg: family, dst_len, src_len, tos, table main, protocol static, scope, type unicast, flags.
    let scope = if gateway.is_some() { 0 } else { 253 };
    let on_link = if gateway.is_some() { 4u32 } else { 0 };
    let mut fixed = vec![2, prefix, 0, 0, 254, 4, scope, 1];
    fixed.extend_from_slice(&on_link.to_ne_bytes());
    let mut m = Message::new(NEW_ROUTE, REQUEST | ACK | CREATE | REPLACE, &fixed);
    if prefix > 0 {
        m.put(1, &to.octets());
    }
    if let Some(gateway) = gateway {
        m.put(5, &gateway.octets());
    }
    m.ne32(4, index);
    socket.request(m)
}

/// Adds a neighbour for good, so that nobody has to ask.
pub(crate) fn neighbour(socket: &mut Socket, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    // struct ndmsg: family, pad, index, state permanent, flags, type.
    let mut fixed = vec![2, 0, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&0x80u16.to_ne_bytes());
    fixed.extend_from_slice(&[0, 0]);
    let mut m = Message::new(NEW_NEIGHBOUR, REQUEST | ACK | CREATE | REPLACE, &fixed);
    m.put(1, &address.octets()).put(2, &mac);
    socket.request(m)
}
