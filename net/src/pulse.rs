//! Asking the kernels of other hosts over the data plane (ICMPv6 echo, RFC 4443 §4): they answer whether a daemon runs or not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::dataplane::{NETLINK_ROUTE, NetError, at};
use crate::overlay::{Way, gateway_of, host_of};
use crate::sys::echo::{Echo, HEADERS};
use crate::sys::netlink::Socket;
use crate::sys::{self, link};

/// One of two ways to a host, and the size of what is sent: as small or as large as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Its address.
    pub host: Ipv4Addr,
    /// By the encrypted device.
    pub encrypted: bool,
    /// As large as the device takes.
    pub large: bool,
}

/// Room for what is in a packet on the narrowest device with IPv6.
const IPV6_MIN: u32 = 1280 - HEADERS;

struct Round {
    probes: BTreeSet<Probe>,
    limit: Duration,
    answer: oneshot::Sender<Result<BTreeSet<Probe>, NetError>>,
}

/// The thread that asks. It lives in the dataplane's namespace.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    rounds: mpsc::Sender<Round>,
}

impl Pulse {
    pub(crate) fn start(inside: File) -> Result<Self, NetError> {
        let (rounds, queue) = mpsc::channel::<Round>();
        std::thread::Builder::new()
            .name("pulse".into())
            .spawn(move || {
                let entered = sys::enter(&inside);
                drop(inside);
                let mut number = 0u16;
                while let Ok(round) = queue.recv() {
                    number = number.wrapping_add(1);
                    let answered = match &entered {
                        Ok(()) => ask(&round.probes, round.limit, number),
                        Err(e) => Err(io::Error::from(e.kind())),
                    };
                    let _ = round.answer.send(answered.map_err(at("ask other hosts")));
                }
            })
            .map_err(at("start the thread that asks other hosts"))?;
        Ok(Self { rounds })
    }

    /// Asks; answers what came back within a time.
    pub(crate) async fn ask(
        &self,
        probes: BTreeSet<Probe>,
        limit: Duration,
    ) -> Result<BTreeSet<Probe>, NetError> {
        let (answer, answered) = oneshot::channel();
        let round = Round {
            probes,
            limit,
            answer,
        };
        self.rounds.send(round).map_err(|_| NetError::Gone)?;
        answered.await.map_err(|_| NetError::Gone)?
    }
}

/// One round. A way without a device, or that takes nothing, has no answer.
fn ask(probes: &BTreeSet<Probe>, limit: Duration, number: u16) -> io::Result<BTreeSet<Probe>> {
    let mut links = Socket::open(NETLINK_ROUTE)?;
    let mut echo = Echo::open()?;
    let mut devices = Vec::new();
    for way in [Way::Plain, Way::Encrypted] {
        if let Some(index) = link::index(&mut links, way.device())? {
            let mtu = link::mtu(&mut links, index)?.unwrap_or(0);
            devices.push((way == Way::Encrypted, index, mtu.saturating_sub(HEADERS)));
        }
    }
    let device = |encrypted: bool| devices.iter().find(|(e, ..)| *e == encrypted);
    let (mut waiting, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for probe in probes {
        if let Some((_, index, room)) = device(probe.encrypted) {
            let size = if probe.large { *room } else { 0 };
            // The number says which round and which size it is.
            let sent = echo.ask(
                gateway_of(probe.host),
                *index,
                (number, u16::from(probe.large)),
                size,
            );
            match sent {
                Ok(()) => drop(waiting.insert(*probe)),
                // A device that carries no IPv6 (RFC 8200: 1,280 bytes) says nothing of the way.
                Err(_) if *room < IPV6_MIN => drop(answered.insert(*probe)),
                Err(_) => {}
            }
        }
    }
    let began = Instant::now();
    while !waiting.is_empty() {
        let Some(rest) = limit.checked_sub(began.elapsed()).filter(|r| !r.is_zero()) else {
            break;
        };
        let Some((from, index, (round, size))) = echo.answer(rest)? else {
            break;
        };
        let Some((encrypted, ..)) = devices.iter().find(|(_, i, _)| *i == index) else {
            continue;
        };
        let Some(host) = host_of(from) else { continue };
        let probe = Probe {
            host,
            encrypted: *encrypted,
            large: size == 1,
        };
        if round == number && waiting.remove(&probe) {
            answered.insert(probe);
        }
    }
    Ok(answered)
}
