//! What is wanted → the elements of each set, and the difference to what the kernel has.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::balance::{SLOTS, assign};
use crate::dns::Zone;
use crate::overlay::{Overlay, Ways};

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
    /// Nothing reaches it from another host that is not encrypted.
    pub encrypted: bool,
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
    /// Those of them that are published on one address of the host only.
    pub bound: BTreeMap<(Protocol, u16), Ipv4Addr>,
    /// What other hosts may send clients to: address and port of containers of this host, also of those that take no
    /// connections any more, as not everybody knows that at once.
    pub published: BTreeSet<(Ipv4Addr, Protocol, u16)>,
    /// Names.
    pub zone: Zone,
    /// What is on other hosts.
    pub overlay: Overlay,
    /// Subnets of the networks here: address and bits. Nothing that a container sends to them goes out, and what is for an
    /// address in them that nobody has is refused at once.
    pub subnets: BTreeSet<(Ipv4Addr, u8)>,
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
    ("secret", 4, None),
    ("selves", 8, None),
    ("published", 12, None),
    // Of ranges: where one begins, and, with an empty value, where it has ended.
    (SUBNETS, 4, None),
];

/// The set of ranges.
pub(crate) const SUBNETS: &str = "subnets";

/// Sets of the host's table: name, bytes of the key. None is a map.
pub(crate) const HOST_SETS: &[(&str, u32)] = &[("ports", 8), ("bound", 12), ("hosts", 4)];

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
        .filter(|(_, remote)| remote.network != 0);
    for (address, remote) in near {
        let network = remote.network.to_ne_bytes();
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
        if endpoint.encrypted {
            put("secret", address.octets().to_vec(), None);
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
    for (begin, end) in ranges(&wanted.subnets) {
        put(SUBNETS, begin.octets().to_vec(), None);
        if let Some(end) = end {
            put(SUBNETS, end.octets().to_vec(), Some(Vec::new()));
        }
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

/// The host's sets that make `wanted` so, where other hosts are known as in `ways`.
pub(crate) fn host_elements(wanted: &Wanted, ways: &Ways) -> Elements {
    let (bound, free): (Vec<_>, Vec<_>) = (wanted.ports.keys()).partition(|p| wanted.bound.contains_key(p));
    let at = |p: &(Protocol, u16)| wanted.bound.get(p).map_or([0; 4], Ipv4Addr::octets);
    let port = |(protocol, port): &(Protocol, u16)| [[*protocol as u8, 0, 0, 0], port_word(*port)].concat();
    let hosts = ways.plain.hosts.keys().map(|host| host.octets().to_vec());
    Elements::from([
        ("ports", free.into_iter().map(|p| (port(p), None)).collect()),
        (
            "bound",
            (bound.into_iter())
                .map(|p| ([&at(p)[..], &port(p)].concat(), None))
                .collect(),
        ),
        ("hosts", hosts.map(|host| (host, None)).collect()),
    ])
}

/// Subnets as ranges that do not touch: the first address, and the first after them, unless there is none.
fn ranges(subnets: &BTreeSet<(Ipv4Addr, u8)>) -> Vec<(Ipv4Addr, Option<Ipv4Addr>)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (address, bits) in subnets {
        let begin = u64::from(u32::from(*address));
        let end = begin + (1 << 32u32.saturating_sub(u32::from(*bits)));
        match ranges.last_mut() {
            Some((_, last)) if *last >= begin => *last = end.max(*last),
            Some(_) | None => ranges.push((begin, end)),
        }
    }
    let address = |n: u64| u32::try_from(n).ok().map(Ipv4Addr::from);
    let both = ranges
        .into_iter()
        .filter_map(|(begin, end)| Some((address(begin)?, address(end))));
    both.collect()
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

/// Changes by set; sets that stay as they are have none.
pub(crate) type Changes = BTreeMap<&'static str, Change>;

/// What `new` needs beyond `old`, which is what the kernel has, as in `now`: worked out of what differs alone.
pub(crate) fn between(old: &Wanted, new: &Wanted, now: &Elements) -> Changes {
    let addresses: BTreeSet<Ipv4Addr> = differing(&old.endpoints, &new.endpoints)
        .chain(differing(&old.overlay.remote, &new.overlay.remote))
        .collect();
    let vips: BTreeSet<Ipv4Addr> = differing(&old.vips, &new.vips).collect();
    let ports: BTreeSet<(Protocol, u16)> = differing(&old.ports, &new.ports).collect();
    let part = |of: &Wanted, other: &Wanted| Wanted {
        endpoints: some(&of.endpoints, &addresses),
        vips: some(&of.vips, &vips),
        ports: some(&of.ports, &ports),
        published: of.published.difference(&other.published).copied().collect(),
        bound: BTreeMap::new(),
        zone: Zone::default(),
        overlay: Overlay {
            remote: some(&of.overlay.remote, &addresses),
            ..Overlay::default()
        },
        // Ranges may touch what has not changed.
        subnets: if old.subnets == new.subnets {
            BTreeSet::new()
        } else {
            of.subnets.clone()
        },
    };
    let (gone, come) = (part(old, new), part(new, old));
    diff(&elements(&come, now), &elements(&gone, now))
}

/// Keys of two maps that are in one alone, or have another value in the other.
fn differing<'a, K: Ord + Copy, V: PartialEq>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    let (mut ones, mut others) = (one.iter().peekable(), other.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (ones.peek(), others.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            match order {
                Ordering::Less => return ones.next().map(|(key, _)| *key),
                Ordering::Greater => return others.next().map(|(key, _)| *key),
                Ordering::Equal => {
                    let ((key, a), (_, b)) = ones.next().zip(others.next())?;
                    if a != b {
                        return Some(*key);
                    }
                }
            }
        }
    })
}

fn some<K: Ord + Copy, V: Clone>(of: &BTreeMap<K, V>, keys: &BTreeSet<K>) -> BTreeMap<K, V> {
    let found = keys.iter().filter_map(|key| Some((*key, of.get(key)?.clone())));
    found.collect()
}

/// Remembers changes that were made.
pub(crate) fn take(elements: &mut Elements, changes: &Changes) {
    for (set, (gone, new)) in changes {
        let set = elements.entry(set).or_default();
        gone.iter().for_each(|(key, _)| drop(set.remove(key)));
        set.extend(new.iter().cloned());
    }
}

/// Elements in one transaction: what is more takes several, as the kernel takes a transaction in one piece.
const PART_MAX: usize = 16_384;

/// Changes in pieces that fit. A key with a new value is not without one in between.
pub(crate) fn parts(changes: Changes) -> Vec<Changes> {
    let (mut done, mut open, mut room) = (Vec::new(), Changes::new(), PART_MAX);
    for (set, (gone, new)) in changes {
        let mut keys: BTreeMap<Vec<u8>, (Option<_>, Option<_>)> = BTreeMap::new();
        for (key, value) in gone {
            keys.entry(key).or_default().0 = Some(value);
        }
        for (key, value) in new {
            keys.entry(key).or_default().1 = Some(value);
        }
        for (key, (gone, new)) in keys {
            let part: &mut Change = open.entry(set).or_default();
            part.0.extend(gone.map(|value| (key.clone(), value)));
            part.1.extend(new.map(|value| (key, value)));
            room -= 1;
            if room == 0 {
                done.push(std::mem::take(&mut open));
                room = PART_MAX;
            }
        }
    }
    if !open.is_empty() {
        done.push(open);
    }
    done
}

/// Addresses behind virtual addresses and ports that changes take away and nothing else leads to.
pub(crate) fn left(changes: &Changes, wanted: &Wanted) -> BTreeSet<Ipv4Addr> {
    let balanced = ["eps", "ports"].into_iter().filter_map(|set| changes.get(set));
    let values = balanced.flat_map(|(gone, _)| gone.iter().filter_map(|(_, value)| value.as_deref()));
    let mut left: BTreeSet<Ipv4Addr> = values
        .filter_map(|value| Some(Ipv4Addr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?)))
        .collect();
    if !left.is_empty() {
        let behind_vips = wanted.vips.values().flat_map(|(_, behind)| behind.iter());
        let behind_ports = wanted
            .ports
            .values()
            .flat_map(|behind| behind.iter().map(|(a, _)| a));
        for address in behind_vips.chain(behind_ports) {
            left.remove(address);
        }
    }
    left
}

/// The changes from `found` to `wanted`, by set; empty for equal ones.
pub(crate) fn diff(wanted: &Elements, found: &Elements) -> Changes {
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
    use crate::overlay::Remote;

    fn wanted() -> Wanted {
        let ip = |n| Ipv4Addr::new(10, 0, 0, n);
        let endpoint = |network, internal| Endpoint {
            network,
            internal,
            encrypted: internal,
        };
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
                first["internal"].len(),
                first["secret"].len()
            ),
            (2, 2, 1, 1)
        );
        assert!(diff(&elements(&wanted(), &first), &first).is_empty());
    }

    #[test]
    fn what_differs_is_worked_out_as_the_whole_is() {
        let ip = |n: u8| Ipv4Addr::new(10, 0, 0, n);
        let endpoint = |network| Endpoint {
            network,
            internal: false,
            encrypted: false,
        };
        const THERE: Remote = Remote {
            network: 1,
            host: Ipv4Addr::new(10, 0, 0, 200),
            encrypted: false,
        };
        type Edit = fn(&mut Wanted, &dyn Fn(u8) -> Ipv4Addr);
        let edits: [(&str, Edit); 10] = [
            ("nothing", |_, _| {}),
            ("a network comes", |w, ip| w.subnets.extend([(ip(0), 24)])),
            ("one that touches it comes", |w, _| {
                w.subnets.insert((Ipv4Addr::new(10, 0, 1, 0), 24));
            }),
            ("a backend goes", |w, ip| {
                drop(w.vips.insert(ip(9), (1, vec![ip(2)])))
            }),
            ("a virtual address goes", |w, ip| drop(w.vips.remove(&ip(9)))),
            ("a port comes", |w, ip| {
                drop(w.ports.insert((Protocol::Udp, 53), vec![(ip(3), 5353)]))
            }),
            ("a port goes", |w, _| w.ports.clear()),
            ("one is published", |w, ip| {
                w.published = [(ip(2), Protocol::Tcp, 80)].into()
            }),
            ("a container moves away", |w, ip| {
                w.endpoints.remove(&ip(2));
                w.overlay.remote.insert(ip(2), THERE);
            }),
            ("a container is here and told of as elsewhere", |w, ip| {
                w.overlay.remote.insert(ip(3), THERE);
            }),
        ];
        let base = wanted();
        for (first, edit) in &edits {
            let mut old = base.clone();
            edit(&mut old, &ip);
            let now = elements(&old, &Elements::new());
            for (second, edit) in &edits {
                let mut new = old.clone();
                edit(&mut new, &ip);
                new.endpoints.insert(ip(77), endpoint(3));
                for (old, new) in [(&old, &new), (&old, &base)] {
                    let whole = diff(&elements(new, &now), &now);
                    assert_eq!(between(old, new, &now), whole, "{first}, then {second}");
                    let mut after = now.clone();
                    take(&mut after, &whole);
                    assert!(diff(&elements(new, &after), &after).is_empty());
                }
            }
        }
    }

    #[test]
    fn subnets_are_ranges_that_do_not_touch() {
        let subnet = |text: &str, bits| (text.parse().unwrap(), bits);
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        for (subnets, want) in [
            (vec![], vec![]),
            (vec![subnet("10.0.0.0", 24)], vec![("10.0.0.0", Some("10.0.1.0"))]),
            (
                vec![
                    subnet("10.0.0.0", 24),
                    subnet("10.0.1.0", 24),
                    subnet("10.0.3.0", 29),
                ],
                vec![("10.0.0.0", Some("10.0.2.0")), ("10.0.3.0", Some("10.0.3.8"))],
            ),
            (
                vec![subnet("10.0.0.0", 16), subnet("10.0.9.0", 24)],
                vec![("10.0.0.0", Some("10.1.0.0"))],
            ),
            (vec![subnet("255.255.255.0", 24)], vec![("255.255.255.0", None)]),
            (vec![subnet("0.0.0.0", 0)], vec![("0.0.0.0", None)]),
        ] {
            let want: Vec<_> = want
                .into_iter()
                .map(|(a, b)| (address(a), b.map(address)))
                .collect();
            assert_eq!(ranges(&subnets.into_iter().collect()), want);
        }
    }

    #[test]
    fn what_is_too_much_for_one_transaction_takes_several_and_leaves_no_key_without_a_value() {
        let ip = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n);
        let with = |backend: u32| Wanted {
            vips: (0..100).map(|vip| (ip(vip), (1, vec![ip(backend)]))).collect(),
            ..Wanted::default()
        };
        let first = elements(&with(1000), &Elements::new());
        let second = elements(&with(1001), &first);
        let all = diff(&second, &first);
        let parts = parts(all);
        assert_eq!(parts.len(), 2);
        let mut now = first;
        for part in &parts {
            let (gone, new) = &part["eps"];
            assert!(gone.iter().map(|(key, _)| key).eq(new.iter().map(|(key, _)| key)));
            assert!(gone.len() <= PART_MAX);
            take(&mut now, part);
        }
        assert_eq!(now, second);
        assert_eq!(left(&parts[0], &with(1001)), [ip(1000)].into());
        assert_eq!(left(&parts[0], &with(1000)), BTreeSet::new());
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
