//! What is wanted → the elements of each set, and the difference to what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::balance::{SLOTS, assign};
use crate::dns::Zone;
use crate::overlay::{Overlay, Paths};

/// Protocol of a published port, by its number (IANA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// A container's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of its network; addresses of equal numbers reach each other.
    pub network: u32,
    /// Without a way out.
    pub internal: bool,
}

/// Everything the dataplane is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Addresses of containers of this host.
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    /// Virtual addresses: their network, and the addresses behind them.
    pub vips: BTreeMap<Ipv4Addr, (u32, Vec<Ipv4Addr>)>,
    /// Published ports: address and port of what is behind them.
    pub ports: BTreeMap<(Protocol, u16), Vec<(Ipv4Addr, u16)>>,
    /// What other hosts may send clients to: address and port of containers of this host, also of those that take no
    /// connections any more, as not everybody knows that at once.
    pub published: BTreeSet<(Ipv4Addr, Protocol, u16)>,
    /// Names.
    pub zone: Zone,
    /// What is on other hosts.
    pub overlay: Overlay,
}

/// Elements by set: key and, in a map, value.
pub(crate) type Elements = BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// Sets of the dataplane's table: name, bytes of the key, bytes of the value.
pub(crate) const SETS: &[(&str, u32, Option<u32>)] = &[
    ("vips", 4, None),
    ("eps", 8, Some(4)),
    ("ports", 12, Some(8)),
    ("nets", 4, Some(4)),
    ("members", 8, None),
    ("internal", 4, None),
    ("selves", 8, None),
    ("published", 12, None),
];

/// Sets of the host's table: name, bytes of the key. None is a map.
pub(crate) const HOST_SETS: &[(&str, u32)] = &[("ports", 8), ("hosts", 4)];

/// The sets that make `wanted` so. Slots that lead to a backend that is still wanted stay where `now` has them.
pub(crate) fn elements(wanted: &Wanted, now: &Elements) -> Elements {
    let mut all: Elements = SETS.iter().map(|(name, _, _)| (*name, BTreeMap::new())).collect();
    let mut put = |set: &'static str, key: Vec<u8>, value: Option<Vec<u8>>| {
        all.entry(set).or_default().insert(key, value);
    };
    // Addresses of networks that nobody here is in have no number.
    let near = wanted
        .overlay
        .remote
        .iter()
        .filter(|(_, (network, _))| *network != 0);
    for (address, (network, _)) in near {
        let network = network.to_ne_bytes();
        put("nets", address.octets().to_vec(), Some(network.to_vec()));
        put("members", [network, address.octets()].concat(), None);
    }
    for (address, endpoint) in &wanted.endpoints {
        let network = endpoint.network.to_ne_bytes();
        put("nets", address.octets().to_vec(), Some(network.to_vec()));
        put("members", [network, address.octets()].concat(), None);
        put("selves", [address.octets(), address.octets()].concat(), None);
        if endpoint.internal {
            put("internal", address.octets().to_vec(), None);
        }
    }
    let empty = BTreeMap::new();
    let had = |set: &str| now.get(set).unwrap_or(&empty);
    for (vip, (_, backends)) in &wanted.vips {
        put("vips", vip.octets().to_vec(), None);
        let values: Vec<Vec<u8>> = backends.iter().map(|b| b.octets().to_vec()).collect();
        for (key, value) in slots(&vip.octets(), &values, had("eps")) {
            put("eps", key, Some(value));
        }
    }
    for (ip, protocol, port) in &wanted.published {
        let key = [ip.octets(), [*protocol as u8, 0, 0, 0], port_word(*port)].concat();
        put("published", key, None);
    }
    for ((protocol, port), backends) in &wanted.ports {
        let values: Vec<Vec<u8>> = backends
            .iter()
            .map(|(ip, port)| [ip.octets(), port_word(*port)].concat())
            .collect();
        let prefix = [[*protocol as u8, 0, 0, 0], port_word(*port)].concat();
        for (key, value) in slots(&prefix, &values, had("ports")) {
            put("ports", key, Some(value));
        }
    }
    all
}

/// The host's sets that make `wanted` so, where other hosts are known as in `paths`.
pub(crate) fn host_elements(wanted: &Wanted, paths: &Paths) -> Elements {
    let ports = wanted.ports.keys();
    let port = |(protocol, port): &(Protocol, u16)| [[*protocol as u8, 0, 0, 0], port_word(*port)].concat();
    let hosts = paths.hosts.iter().map(|host| host.octets().to_vec());
    Elements::from([
        ("ports", ports.map(|p| (port(p), None)).collect()),
        ("hosts", hosts.map(|host| (host, None)).collect()),
    ])
}

/// A port as a word of a key: network order, then zeros.
pub(crate) fn port_word(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn slots(
    prefix: &[u8],
    backends: &[Vec<u8>],
    now: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = |slot: usize| [prefix, &u32::try_from(slot).unwrap_or(0).to_ne_bytes()].concat();
    let have: Vec<Option<Vec<u8>>> = (0..SLOTS).map(|s| now.get(&key(s)).cloned().flatten()).collect();
    let next = assign(&have, backends);
    next.into_iter()
        .enumerate()
        .filter_map(|(slot, b)| b.map(|b| (key(slot), b)))
        .collect()
}

/// What has to be removed from, then added to, one set. A value that changes is both.
pub(crate) type Change = (Vec<(Vec<u8>, Option<Vec<u8>>)>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

/// The changes from `found` to `wanted`, by set; empty for equal ones.
pub(crate) fn diff(wanted: &Elements, found: &Elements) -> BTreeMap<&'static str, Change> {
    let empty = BTreeMap::new();
    let mut changes = BTreeMap::new();
    for name in wanted.keys().chain(found.keys()) {
        let (want, have) = (
            wanted.get(name).unwrap_or(&empty),
            found.get(name).unwrap_or(&empty),
        );
        let other = |a: &BTreeMap<Vec<u8>, Option<Vec<u8>>>, b: &BTreeMap<Vec<u8>, Option<Vec<u8>>>| {
            a.iter()
                .filter(|(k, v)| b.get(*k) != Some(v))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<Vec<_>>()
        };
        let change = (other(have, want), other(want, have));
        if change != (Vec::new(), Vec::new()) {
            changes.insert(*name, change);
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let ip = |n| Ipv4Addr::new(10, 0, 0, n);
        let endpoint = |network, internal| Endpoint { network, internal };
        Wanted {
            endpoints: BTreeMap::from([(ip(2), endpoint(1, false)), (ip(3), endpoint(1, true))]),
            vips: BTreeMap::from([(ip(9), (1, vec![ip(2), ip(3)])), (ip(8), (1, vec![]))]),
            ports: BTreeMap::from([((Protocol::Tcp, 80), vec![(ip(2), 8080)])]),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_plan_applied_to_its_own_result_is_empty() {
        let first = elements(&wanted(), &Elements::new());
        assert_eq!(first["eps"].len(), SLOTS);
        assert_eq!(first["ports"].len(), SLOTS);
        assert_eq!(
            (
                first["vips"].len(),
                first["members"].len(),
                first["internal"].len()
            ),
            (2, 2, 1)
        );
        assert!(diff(&elements(&wanted(), &first), &first).is_empty());
    }

    #[test]
    fn a_backend_that_goes_moves_only_its_own_slots() {
        let first = elements(&wanted(), &Elements::new());
        let mut less = wanted();
        less.vips
            .insert(Ipv4Addr::new(10, 0, 0, 9), (1, vec![Ipv4Addr::new(10, 0, 0, 2)]));
        let change = diff(&elements(&less, &first), &first);
        assert_eq!(change.keys().copied().collect::<Vec<_>>(), ["eps"]);
        assert_eq!(change["eps"].1.len(), SLOTS / 2);
    }
}
