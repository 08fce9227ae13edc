//! WireGuard in this process, for kernels that have none: boringtun's handshakes and ciphers (`Tunn`) between a device of
//! Ethernet frames and a UDP socket. On the wire it is what a kernel's WireGuard with a kernel's VXLAN in it sends.
//!
//! Two threads, one each way. It ends with the daemon: until that is back, encrypted networks of this host stand still.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::frames::{self, FRAME_MAX, Merger, NOTE, WRAP, Wrap};
use super::{Key, NUMBER, PORT};
use crate::overlay::mac_of;
use crate::ruleset;
use crate::sys::tun;

/// How often handshakes and keys are looked at (`Tunn::update_timers`), and how long a thread waits at most.
const TICK: Duration = Duration::from_millis(250);
/// Handshakes a second that are answered before their senders must show that they receive (cookies).
const HANDSHAKES_MAX: u64 = 100;
/// Bytes of datagrams sent at once: what a UDP packet holds, and so many of them (UDP_MAX_SEGMENTS of old kernels).
const BURST: usize = 65_000;
const BURST_COUNT: usize = 64;
/// Bytes that WireGuard adds, and those it needs at least to answer with a handshake.
const CIPHER: usize = 32;
const HANDSHAKE: usize = 148;
const DATAGRAMS: usize = 1 << 16;

/// Another host.
struct Peer {
    key: Key,
    to: SocketAddrV4,
    index: u32,
    tunnel: Mutex<Tunn>,
    /// What it sends, and what is sent to it.
    from: Wrap,
    wrap: Wrap,
}

/// The key of this host, and other hosts as they are looked for.
#[derive(Clone)]
struct Peers {
    own: Ipv4Addr,
    secret: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
    by_host: BTreeMap<Ipv4Addr, Arc<Peer>>,
    by_index: BTreeMap<u32, Arc<Peer>>,
    next_index: u32,
}

impl Peers {
    fn new(own: Ipv4Addr, secret: StaticSecret) -> Self {
        let public = PublicKey::from(&secret);
        Self {
            own,
            secret,
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_MAX)),
            public,
            by_host: BTreeMap::new(),
            by_index: BTreeMap::new(),
            next_index: 0,
        }
    }

    fn insert(&mut self, host: Ipv4Addr, key: Key) {
        self.remove(host);
        // The tunnel's number stands in 24 bits of what it is sent.
        while {
            self.next_index = (self.next_index + 1) % (1 << 24);
            self.by_index.contains_key(&self.next_index)
        } {}
        let tunnel = Tunn::new(
            self.secret.clone(),
            PublicKey::from(key),
            None,
            None,
            self.next_index,
            Some(self.limiter.clone()),
        );
        let wrap = |from, to| Wrap {
            from,
            to,
            port: ruleset::PORT,
            number: NUMBER,
        };
        let peer = Arc::new(Peer {
            key,
            to: SocketAddrV4::new(host, PORT),
            index: self.next_index,
            tunnel: Mutex::new(tunnel),
            from: wrap(host, self.own),
            wrap: wrap(self.own, host),
        });
        self.by_index.insert(peer.index, peer.clone());
        self.by_host.insert(host, peer);
    }

    fn remove(&mut self, host: Ipv4Addr) {
        if let Some(old) = self.by_host.remove(&host) {
            self.by_index.remove(&old.index);
        }
    }

    fn keys(&self) -> BTreeMap<Ipv4Addr, Key> {
        self.by_host
            .iter()
            .map(|(host, peer)| (*host, peer.key))
            .collect()
    }
}

struct Shared {
    peers: ArcSwap<Peers>,
    frames: File,
    socket: UdpSocket,
    ended: AtomicBool,
}

/// The tunnel of a host.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts it between a device and a socket.
    pub(crate) fn start(
        own: Ipv4Addr,
        secret: StaticSecret,
        frames: File,
        socket: UdpSocket,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            peers: ArcSwap::from_pointee(Peers::new(own, secret)),
            frames,
            socket,
            ended: AtomicBool::new(false),
        });
        let thread = |name: &str, work: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || work(&shared))
        };
        let threads = vec![
            thread("encrypt", Shared::encrypt)?,
            thread("decrypt", Shared::decrypt)?,
        ];
        Ok(Self { shared, threads })
    }

    /// Makes a host known by its key; one that is known by it keeps its connection.
    pub(crate) fn add(&self, host: Ipv4Addr, key: Key) {
        let known = self.shared.peers.load();
        if known.by_host.get(&host).is_none_or(|peer| peer.key != key) {
            let mut peers = Peers::clone(&known);
            peers.insert(host, key);
            let peer = peers.by_host.get(&host).cloned();
            self.shared.peers.store(Arc::new(peers));
            peer.into_iter().for_each(|peer| self.shared.greet(&peer));
        }
    }

    /// Forgets a host.
    pub(crate) fn remove(&self, host: Ipv4Addr) {
        let mut peers = Peers::clone(&self.shared.peers.load());
        peers.remove(host);
        self.shared.peers.store(Arc::new(peers));
    }

    /// Takes another key, with which all connections begin anew.
    pub(crate) fn renew(&self, secret: StaticSecret) {
        let known = self.shared.peers.load();
        let mut peers = Peers::new(known.own, secret);
        peers.next_index = known.next_index;
        for (host, key) in known.keys() {
            peers.insert(host, key);
        }
        let all: Vec<Arc<Peer>> = peers.by_host.values().cloned().collect();
        self.shared.peers.store(Arc::new(peers));
        all.iter().for_each(|peer| self.shared.greet(peer));
    }

    /// This host's address, and the others' with their keys.
    pub(crate) fn known(&self) -> (Ipv4Addr, BTreeMap<Ipv4Addr, Key>) {
        let peers = self.shared.peers.load();
        (peers.own, peers.keys())
    }

    /// Whether both ways still work.
    pub(crate) fn runs(&self) -> bool {
        self.threads.iter().all(|t| !t.is_finished())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Datagrams of one size that wait to be sent together.
struct Burst {
    bytes: Vec<u8>,
    used: usize,
    size: usize,
    count: usize,
}

impl Burst {
    fn new() -> Self {
        Self {
            bytes: vec![0; BURST + DATAGRAMS],
            used: 0,
            size: 0,
            count: 0,
        }
    }

    /// Where the next datagram is written.
    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    fn send(&mut self, socket: &UdpSocket, to: SocketAddrV4) {
        if self.used > 0 {
            send(socket, &self.bytes[..self.used], self.size, to);
        }
        (self.used, self.size, self.count) = (0, 0, 0);
    }

    /// Keeps what was written to [`Burst::room`], and sends where nothing may follow.
    fn add(&mut self, length: usize, socket: &UdpSocket, to: SocketAddrV4) {
        if self.count > 0 && (length > self.size || self.used + length > BURST) {
            // It does not fit with those before: they go, and it is the first of the next.
            let start = self.used;
            send(socket, &self.bytes[..start], self.size, to);
            self.bytes.copy_within(start..start + length, 0);
            (self.used, self.size, self.count) = (0, 0, 0);
        }
        if self.count == 0 {
            self.size = length;
        }
        self.used += length;
        self.count += 1;
        if length < self.size || self.count == BURST_COUNT {
            self.send(socket, to);
        }
    }
}

/// Sends datagrams together, or one by one where that cannot be. What cannot be sent is lost, as on any wire.
fn send(socket: &UdpSocket, bytes: &[u8], size: usize, to: SocketAddrV4) {
    match tun::send(socket, bytes, size, to) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            // A moment for the device to send what it has; then it is lost.
            std::thread::sleep(Duration::from_micros(100));
            let _ = tun::send(socket, bytes, size, to);
        }
        Err(_) if bytes.len() > size => {
            // A way that takes no packets of this size takes them in pieces, each by itself.
            for datagram in bytes.chunks(size) {
                let _ = tun::send(socket, datagram, size, to);
            }
        }
        Err(_) => {}
    }
}

impl Shared {
    /// Begins a handshake at once. Of two hosts one learns of the other first, and what it sent meanwhile was for nobody:
    /// it would try again after 5 s, and the other comes before.
    fn greet(&self, peer: &Peer) {
        let mut scratch = [0u8; HANDSHAKE];
        let mut tunnel = peer.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
        if let TunnResult::WriteToNetwork(datagram) = tunnel.format_handshake_initiation(&mut scratch, false)
        {
            let _ = tun::send(&self.socket, datagram, datagram.len(), peer.to);
        }
    }

    /// Frames of this host to the others.
    fn encrypt(&self) {
        let mut buffer = vec![0u8; NOTE + FRAME_MAX + 4];
        let (mut scratch, mut burst) = (Vec::with_capacity(WRAP + FRAME_MAX), Burst::new());
        while !self.ended.load(Ordering::Relaxed) {
            let read = (&self.frames).read(&mut buffer);
            let length = match read {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let _ = tun::readable(&self.frames, TICK);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The device is gone.
                Err(_) => return,
            };
            let Some(peer) = self.peer_of(&buffer[..length]) else {
                continue;
            };
            let mut tunnel = peer.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
            frames::cut(&mut buffer[..length], &peer.wrap, &mut scratch, |packet| {
                if packet.len() + CIPHER > DATAGRAMS {
                    return;
                }
                if let TunnResult::WriteToNetwork(datagram) = tunnel.encapsulate(packet, burst.room()) {
                    let length = datagram.len();
                    burst.add(length, &self.socket, peer.to);
                }
            });
            drop(tunnel);
            burst.send(&self.socket, peer.to);
        }
    }

    /// Whom a frame is for, by the name of the other host's device.
    fn peer_of(&self, bytes: &[u8]) -> Option<Arc<Peer>> {
        let mac = bytes.get(NOTE..NOTE + 6)?;
        let host = Ipv4Addr::from(<[u8; 4]>::try_from(&mac[2..]).ok()?);
        let peers = self.peers.load();
        let peer = peers.by_host.get(&host)?;
        (mac == mac_of(host)).then(|| peer.clone())
    }

    /// What other hosts send, to this one.
    fn decrypt(&self) {
        let (mut buffer, mut plain) = (vec![0u8; DATAGRAMS], vec![0u8; DATAGRAMS + HANDSHAKE]);
        let mut merger = Merger::default();
        let mut ticked = Instant::now();
        let mut out = |bytes: &[u8]| {
            // A device that is down or gone takes nothing.
            let _ = (&self.frames).write(bytes);
        };
        while !self.ended.load(Ordering::Relaxed) {
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick(&mut plain);
            }
            match tun::receive(&self.socket, &mut buffer) {
                Ok((length, from, size)) => {
                    let peers = self.peers.load();
                    for datagram in buffer[..length].chunks(size) {
                        self.take(&peers, datagram, from, &mut plain, &mut |frame| {
                            merger.push(frame, &mut out)
                        });
                    }
                    merger.flush(&mut out);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let _ = tun::readable(&self.socket, TICK);
                }
                // What an earlier datagram met (ICMP) is told here.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// One datagram.
    fn take(
        &self,
        peers: &Peers,
        datagram: &[u8],
        from: SocketAddrV4,
        plain: &mut [u8],
        frame: &mut impl FnMut(&[u8]),
    ) {
        let mut cookie = [0u8; HANDSHAKE];
        let checked = (peers.limiter).verify_packet(Some(IpAddr::V4(*from.ip())), datagram, &mut cookie);
        let packet = match checked {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(answer)) => {
                let _ = tun::send(&self.socket, answer, answer.len(), from);
                return;
            }
            Err(_) => return,
        };
        let index = |receiver: u32| peers.by_index.get(&(receiver >> 8));
        let peer = match &packet {
            Packet::HandshakeInit(init) => parse_handshake_anon(&peers.secret, &peers.public, init)
                .ok()
                .and_then(|half| peers.by_host.values().find(|p| p.key == half.peer_static_public)),
            Packet::HandshakeResponse(p) => index(p.receiver_idx),
            Packet::PacketCookieReply(p) => index(p.receiver_idx),
            Packet::PacketData(p) => index(p.receiver_idx),
        };
        let Some(peer) = peer else { return };
        let mut tunnel = peer.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
        match tunnel.decapsulate(Some(IpAddr::V4(*from.ip())), datagram, plain) {
            TunnResult::WriteToTunnelV4(packet, _) => {
                drop(tunnel);
                if let Some(inner) = peer
                    .from
                    .open(packet)
                    .filter(|inner| is_between(inner, &peer.from))
                {
                    frame(inner);
                }
            }
            TunnResult::WriteToNetwork(answer) => {
                let _ = tun::send(&self.socket, answer, answer.len(), peer.to);
                // Then what waited for the handshake.
                while let TunnResult::WriteToNetwork(answer) = tunnel.decapsulate(None, &[], plain) {
                    let _ = tun::send(&self.socket, answer, answer.len(), peer.to);
                }
            }
            TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV6(..) => {}
        }
    }

    /// Keys that are too old, handshakes without an answer.
    fn tick(&self, scratch: &mut [u8]) {
        let peers = self.peers.load();
        peers.limiter.reset_count();
        for peer in peers.by_host.values() {
            let mut tunnel = peer.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
            if let TunnResult::WriteToNetwork(datagram) = tunnel.update_timers(scratch) {
                let _ = tun::send(&self.socket, datagram, datagram.len(), peer.to);
            }
        }
    }
}

/// Whether a frame says that it goes the way it was wrapped for.
fn is_between(frame: &[u8], way: &Wrap) -> bool {
    frame.get(..6) == Some(&mac_of(way.to)) && frame.get(6..12) == Some(&mac_of(way.from))
}
