//! What carries encrypted networks to other hosts: VXLAN within WireGuard (<https://www.wireguard.com/papers/wireguard.pdf>).
//!
//! A device beside the plain one, of the same shape: a MAC for each host, and routes to containers by way of it. With the
//! kernel's WireGuard there is a namespace that has nothing but that device; the VXLAN device is made there, so what it sends
//! can go no other way and what it hears came no other way. Without, the tunnel is in this process ([`engine`]). Both are the
//! same on the wire.

mod engine;
mod frames;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use boringtun::x25519::{PublicKey, StaticSecret};

use crate::dataplane::{NETLINK_ROUTE, NetError, at};
use crate::overlay::mac_of;
use crate::ruleset;
use crate::sys;
use crate::sys::link::{self, Vxlan};
use crate::sys::netlink::Socket;
use crate::sys::tun;
use crate::sys::wireguard as kernel;
use engine::Engine;

/// A public or private key (Curve25519).
pub type Key = [u8; 32];

/// The port of every host that WireGuard uses: beside VXLAN's, and the only other one.
pub(crate) const PORT: u16 = 4790;
/// Number of the VXLAN device within.
pub(crate) const NUMBER: u32 = 4094;
/// The device in the dataplane's namespace.
pub(crate) const DEVICE: &str = "encrypted";
/// Bytes around a packet: VXLAN's, and WireGuard's over IPv4.
const OVERHEAD: u32 = VXLAN + CIPHER;
const VXLAN: u32 = 50;
const CIPHER: u32 = 60;
/// The kernel's device in the namespace of its own.
const INNER: &str = "wireguard";

/// How networks are encrypted on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// By the kernel where it can, in this process otherwise.
    #[default]
    Auto,
    /// In this process.
    Userspace,
}

/// What a step needs beside this.
pub(crate) struct Place<'a> {
    /// Netlink in the host's namespace.
    pub(crate) host_links: &'a mut Socket,
    /// The host's namespace, and the dataplane's, in which the thread is.
    pub(crate) host: &'a File,
    pub(crate) inside: &'a File,
    /// The largest packet of the host's interface.
    pub(crate) mtu: u32,
}

/// The encrypted way of one host.
pub(crate) struct Wireguard {
    secret: StaticSecret,
    by: By,
}

enum By {
    /// The namespace's file, and netlink in it once it is there.
    Kernel(PathBuf, Option<Inner>),
    Userspace(Option<Engine>),
}

struct Inner {
    links: Socket,
    devices: kernel::Wireguard,
}

impl Inner {
    /// Opens the namespace of a file for a thread that is in `inside`.
    fn open(path: &Path, inside: &File) -> Result<Self, NetError> {
        let file = File::open(path).map_err(at("open the namespace of WireGuard"))?;
        sys::enter(&file).map_err(at("enter the namespace of WireGuard"))?;
        let opened = Socket::open(NETLINK_ROUTE).and_then(|links| {
            let devices = kernel::Wireguard::open()?;
            Ok(Self { links, devices })
        });
        sys::enter(inside).map_err(at("return to the dataplane's namespace"))?;
        opened.map_err(at("open netlink for WireGuard"))
    }
}

impl Wireguard {
    /// Looks how it can be done here, with the key that is in use or a new one. The thread is in `inside`.
    ///
    /// # Errors
    /// A text for the operator where it cannot be done.
    pub(crate) fn open(path: PathBuf, inside: &File, how: Encryption) -> Result<Self, String> {
        let fresh = new_secret().map_err(|e| format!("no random numbers for a key: {e}"))?;
        let in_kernel = how == Encryption::Auto && kernel::Wireguard::open().is_ok();
        if !in_kernel {
            File::open("/dev/net/tun").map_err(|e| {
                format!("the kernel has no WireGuard, and /dev/net/tun cannot be opened ({e}): load the module wireguard or tun")
            })?;
            // One that the kernel made before has the port.
            if crate::dataplane::is_namespace(&path) {
                let mut left = Inner::open(&path, inside).ok();
                drop_inner(&path, &mut left).map_err(|e| e.to_string())?;
            }
            return Ok(Self {
                secret: fresh,
                by: By::Userspace(None),
            });
        }
        // One that is there goes on with the key by which the others know it.
        let there = crate::dataplane::is_namespace(&path);
        let mut inner = there.then(|| Inner::open(&path, inside).ok()).flatten();
        let known = inner.as_mut().and_then(|i| i.devices.read(INNER).ok()?.0);
        Ok(Self {
            secret: known.map_or(fresh, StaticSecret::from),
            by: By::Kernel(path, inner),
        })
    }

    /// The public key by which other hosts know this one.
    pub(crate) fn key(&self) -> Key {
        PublicKey::from(&self.secret).to_bytes()
    }

    /// Makes the device anew.
    pub(crate) fn add_device(&mut self, own: Ipv4Addr, place: &mut Place<'_>) -> Result<(), NetError> {
        match &mut self.by {
            By::Kernel(path, inner) => {
                drop_inner(path, inner)?;
                sys::make_namespace(path).map_err(at("make the namespace of WireGuard"))?;
                let mut made = Inner::open(path, place.inside)?;
                kernel_device(&mut made, path, &self.secret, own, place)?;
                *inner = Some(made);
                Ok(())
            }
            By::Userspace(engine) => {
                *engine = None;
                let frames = tun::tap(DEVICE).map_err(at(format!("make the link {DEVICE}")))?;
                sys::enter(place.host).map_err(at("enter the host's namespace"))?;
                let socket = tun::socket(PORT);
                sys::enter(place.inside).map_err(at("return to the dataplane's namespace"))?;
                let socket = socket.map_err(at(format!("open UDP port {PORT} for encrypted networks")))?;
                let started = Engine::start(own, self.secret.clone(), frames, socket)
                    .map_err(at("start the threads of WireGuard"))?;
                *engine = Some(started);
                Ok(())
            }
        }
    }

    /// Gives the device, once it is there, the shape of the plain one: `links` is netlink in the dataplane's namespace.
    pub(crate) fn shape(
        &self,
        links: &mut Socket,
        index: u32,
        own: Ipv4Addr,
        mtu: u32,
    ) -> Result<(), NetError> {
        link::shape(links, index, mac_of(own), mtu.saturating_sub(OVERHEAD))
            .map_err(at(format!("shape the link {DEVICE}")))
    }

    /// Takes what is behind the device away; the device itself is the caller's.
    pub(crate) fn remove_device(&mut self) -> Result<(), NetError> {
        match &mut self.by {
            By::Kernel(path, inner) => drop_inner(path, inner),
            By::Userspace(engine) => {
                *engine = None;
                Ok(())
            }
        }
    }

    /// Makes a host known by its key, in the place of the one it had.
    pub(crate) fn add_host(
        &mut self,
        host: Ipv4Addr,
        key: Key,
        old: Option<Key>,
        links: &mut Socket,
        index: u32,
    ) -> io::Result<()> {
        match &mut self.by {
            By::Kernel(_, inner) => {
                let devices = &mut inner.as_mut().ok_or(io::ErrorKind::NotFound)?.devices;
                devices.add_peer(INNER, &key, host, PORT)?;
                if let Some(old) = old.filter(|old| *old != key) {
                    devices.remove_peer(INNER, &old)?;
                }
                link::forwarding(links, index, (mac_of(host), host), true)
            }
            By::Userspace(engine) => {
                engine.as_ref().ok_or(io::ErrorKind::NotFound)?.add(host, key);
                Ok(())
            }
        }
    }

    /// Forgets a host.
    pub(crate) fn remove_host(
        &mut self,
        host: Ipv4Addr,
        key: Key,
        links: &mut Socket,
        index: u32,
    ) -> io::Result<()> {
        match &mut self.by {
            By::Kernel(_, inner) => {
                link::forwarding(links, index, (mac_of(host), host), false)?;
                let devices = &mut inner.as_mut().ok_or(io::ErrorKind::NotFound)?.devices;
                devices.remove_peer(INNER, &key)
            }
            By::Userspace(engine) => {
                engine.as_ref().ok_or(io::ErrorKind::NotFound)?.remove(host);
                Ok(())
            }
        }
    }

    /// Takes another key: from then on the others must know this host by it.
    pub(crate) fn renew(&mut self) -> Result<(), NetError> {
        let fresh = new_secret().map_err(at("make a key"))?;
        match &mut self.by {
            By::Kernel(_, Some(inner)) => {
                let set = inner.devices.set_key(INNER, &fresh.to_bytes(), PORT);
                set.map_err(at("give WireGuard another key"))?;
            }
            By::Userspace(Some(engine)) => engine.renew(fresh.clone()),
            By::Kernel(_, None) | By::Userspace(None) => {}
        }
        self.secret = fresh;
        Ok(())
    }

    /// The host's own address, where there is a device, and those of the hosts it knows, with their keys. `index` is the
    /// device's number in the dataplane's namespace.
    pub(crate) fn found(
        &mut self,
        links: &mut Socket,
        index: u32,
    ) -> io::Result<(Option<Ipv4Addr>, BTreeMap<Ipv4Addr, Key>)> {
        match &mut self.by {
            By::Kernel(_, None) | By::Userspace(None) => Ok((None, BTreeMap::new())),
            By::Kernel(_, Some(inner)) => {
                let own = link::vxlan_local(links, index)?;
                let (secret, peers) = match inner.devices.read(INNER) {
                    // Somebody took it away: it is made anew.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                        return Ok((None, BTreeMap::new()));
                    }
                    read => read?,
                };
                // Who has our key is told of it; another's device would be of no use.
                let own = own.filter(|_| secret == Some(self.secret.to_bytes()));
                let known = peers.into_iter().filter_map(|(key, host)| Some((host?, key)));
                Ok((own, known.collect()))
            }
            By::Userspace(Some(engine)) if engine.runs() => {
                let (own, known) = engine.known();
                Ok((Some(own), known))
            }
            By::Userspace(Some(_)) => Ok((None, BTreeMap::new())),
        }
    }
}

fn new_secret() -> io::Result<StaticSecret> {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    // As the kernel keeps it (RFC 7748 §5), by which it is known again.
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 127 | 64;
    Ok(StaticSecret::from(bytes))
}

fn drop_inner(path: &Path, inner: &mut Option<Inner>) -> Result<(), NetError> {
    if let Some(mut there) = inner.take() {
        // At once, as its port is taken in the host's namespace until it is gone.
        link::delete(&mut there.links, INNER).map_err(at("remove the link of WireGuard"))?;
    }
    sys::drop_namespace(path).map_err(at("let go of the namespace of WireGuard"))
}

/// The kernel's WireGuard in its namespace, whose packets pass through the host's, and a VXLAN device over it.
fn kernel_device(
    inner: &mut Inner,
    path: &Path,
    secret: &StaticSecret,
    own: Ipv4Addr,
    place: &mut Place<'_>,
) -> Result<(), NetError> {
    let space = File::open(path).map_err(at("open the namespace of WireGuard"))?;
    let step = || at(format!("make WireGuard at UDP port {PORT} for {own}"));
    link::wireguard(place.host_links, INNER, &space, place.mtu.saturating_sub(CIPHER)).map_err(step())?;
    let index = link::index(&mut inner.links, INNER).map_err(step())?.unwrap_or(0);
    (inner.devices)
        .set_key(INNER, &secret.to_bytes(), PORT)
        .map_err(step())?;
    link::up(&mut inner.links, index).map_err(step())?;
    link::address(&mut inner.links, index, own, 32).map_err(step())?;
    link::route(&mut inner.links, (Ipv4Addr::UNSPECIFIED, 0), index, None).map_err(step())?;
    let device = Vxlan {
        name: DEVICE,
        namespace: place.inside,
        mac: mac_of(own),
        mtu: place.mtu.saturating_sub(OVERHEAD),
        number: NUMBER,
        local: own,
        port: ruleset::PORT,
    };
    link::vxlan(&mut inner.links, &device).map_err(at(format!("make the link {DEVICE} for {own}")))
}
