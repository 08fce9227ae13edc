//! WireGuard devices of the kernel (linux/wireguard.h) over generic netlink.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{self, ACK, DUMP, Message, REQUEST, Socket};
use crate::wireguard::Key;

/// Generic netlink, and the family that knows the others.
pub(crate) const NETLINK_GENERIC: i32 = 16;
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const NAME: u16 = 2;
const PRIVATE_KEY: u16 = 3;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
/// The longest there is, in seconds: a sign of life is sent when it is set, and that begins a handshake. Of two hosts one
/// learns of the other first; what it sends meanwhile is for nobody, and it would try again after 5 s only.
const GREET: u16 = u16::MAX;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;

/// A socket and the number the kernel gave the family.
#[derive(Debug)]
pub(crate) struct Wireguard {
    socket: Socket,
    family: u16,
}

/// Header of a message of generic netlink: command and version.
const fn command(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

/// Keys, and the address that each may have.
type Peers = Vec<(Key, Option<Ipv4Addr>)>;

impl Wireguard {
    /// Opens it in the thread's namespace.
    ///
    /// # Errors
    /// `NotFound` where the kernel has no WireGuard.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::open(NETLINK_GENERIC)?;
        let mut m = Message::new(CONTROL, REQUEST | ACK, &command(GET_FAMILY));
        m.text(2, "wireguard");
        let bodies = socket.dump(m)?;
        let number = bodies.iter().find_map(|body| {
            let number = netlink::find(body.get(4..)?, 1)?;
            Some(u16::from_ne_bytes(number.try_into().ok()?))
        });
        let family = number.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { socket, family })
    }

    fn change(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut m = Message::new(self.family, REQUEST | ACK, &command(SET_DEVICE));
        m.text(NAME, name);
        fill(&mut m);
        self.socket.request(m)
    }

    /// Gives a device its private key and its port.
    pub(crate) fn set_key(&mut self, name: &str, secret: &Key, port: u16) -> io::Result<()> {
        self.change(name, |m| {
            m.put(PRIVATE_KEY, secret).put(LISTEN_PORT, &port.to_ne_bytes());
        })
    }

    /// Makes a host known: everything for its address goes to its port, encrypted for its key, and from it comes nothing
    /// else. One that had the address before loses it.
    pub(crate) fn add_peer(&mut self, name: &str, key: &Key, host: Ipv4Addr, port: u16) -> io::Result<()> {
        const INET: u16 = 2;
        let mut endpoint = [0u8; 16];
        endpoint[..2].copy_from_slice(&INET.to_ne_bytes());
        endpoint[2..4].copy_from_slice(&port.to_be_bytes());
        endpoint[4..8].copy_from_slice(&host.octets());
        self.change(name, |m| {
            m.nest(PEERS, |m| {
                m.nest(0, |m| {
                    m.put(PEER_KEY, key)
                        .ne32(PEER_FLAGS, REPLACE_ALLOWED)
                        .put(PEER_ENDPOINT, &endpoint)
                        .put(PEER_KEEPALIVE, &GREET.to_ne_bytes())
                        .nest(PEER_ALLOWED, |m| {
                            m.nest(0, |m| {
                                m.put(1, &INET.to_ne_bytes()).put(2, &host.octets()).put(3, &[32]);
                            });
                        });
                });
            });
        })
    }

    /// Forgets a host; one that is gone is no error.
    pub(crate) fn remove_peer(&mut self, name: &str, key: &Key) -> io::Result<()> {
        self.change(name, |m| {
            m.nest(PEERS, |m| {
                m.nest(0, |m| {
                    m.put(PEER_KEY, key).ne32(PEER_FLAGS, REMOVE);
                });
            });
        })
    }

    /// The private key of a device, and whom it knows: keys, and the address that each may have.
    pub(crate) fn read(&mut self, name: &str) -> io::Result<(Option<Key>, Peers)> {
        let mut m = Message::new(self.family, REQUEST | DUMP, &command(GET_DEVICE));
        m.text(NAME, name);
        let (mut secret, mut peers) = (None, Peers::new());
        for body in self.socket.dump(m)? {
            let all = body.get(4..).unwrap_or_default();
            let key = |bytes: &[u8], kind| netlink::find(bytes, kind)?.try_into().ok();
            secret = secret.or_else(|| key(all, PRIVATE_KEY));
            let list = netlink::find(all, PEERS).unwrap_or_default();
            for (_, peer) in netlink::attributes(&list) {
                let Some(of): Option<Key> = key(peer, PEER_KEY) else {
                    continue;
                };
                let allowed = netlink::find(peer, PEER_ALLOWED).unwrap_or_default();
                let first = netlink::attributes(&allowed).first().and_then(|(_, allowed)| {
                    let octets: [u8; 4] = netlink::find(allowed, 2)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets))
                });
                // A long list comes in several messages, and one who stands in two of them is one.
                match peers.iter_mut().find(|(known, _)| *known == of) {
                    Some((_, address)) => *address = address.or(first),
                    None => peers.push((of, first)),
                }
            }
        }
        Ok((secret, peers))
    }
}
