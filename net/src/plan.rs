//! What is wanted → the elements of each set, and the difference to what the kernel has.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::balance::{SLOTS, assign};
use crate::dns::Zone;
use crate::family::{Family, octets};
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

/// Everything the dataplane is to do. Addresses of both families stand side by side; what leads to others leads to those of
/// its own family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Addresses of containers of this host.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Virtual addresses: their network, and the addresses behind them.
    pub vips: BTreeMap<IpAddr, (u32, Vec<IpAddr>)>,
    /// Published ports: address and port of what is behind them. With IPv6 a port is open where a container behind it has
    /// such an address.
    pub ports: BTreeMap<(Protocol, u16), Vec<(IpAddr, u16)>>,
    /// Those of them (TCP) whose connections are made by this process and begin with who the client is: PROXY protocol v2.
    pub proxied: BTreeSet<u16>,
    /// Those of them that are published on one address of the host only.
    pub bound: BTreeMap<(Protocol, u16), IpAddr>,
    /// What other hosts may send clients to: address and port of containers of this host, also of those that take no
    /// connections any more, as not everybody knows that at once.
    pub published: BTreeSet<(IpAddr, Protocol, u16)>,
    /// A container of an encrypted network is here, or comes: others may send to it at any time.
    pub encrypts: bool,
    /// Names.
    pub zone: Zone,
    /// What is on other hosts.
    pub overlay: Overlay,
    /// Subnets of the networks here: address and bits. Nothing that a container sends to them goes out, and what is for an
    /// address in them that nobody has is refused at once.
    pub subnets: BTreeSet<(IpAddr, u8)>,
}

impl Wanted {
    /// The same without IPv6, for a kernel that has none: what leads nowhere has no name either.
    pub(crate) fn without_ipv6(mut self) -> Self {
        self.endpoints.retain(|address, _| address.is_ipv4());
        self.vips.retain(|address, _| address.is_ipv4());
        self.bound.retain(|_, address| address.is_ipv4());
        self.published.retain(|(address, ..)| address.is_ipv4());
        self.overlay.remote.retain(|address, _| address.is_ipv4());
        self.subnets.retain(|(address, _)| address.is_ipv4());
        for behind in self.ports.values_mut() {
            behind.retain(|(address, _)| address.is_ipv4());
        }
        for addresses in self.zone.names.values_mut() {
            addresses.retain(IpAddr::is_ipv4);
        }
        self
    }

    fn is_proxied(&self, protocol: Protocol, port: u16) -> bool {
        protocol == Protocol::Tcp && self.proxied.contains(&port)
    }

    /// What is behind proxied ports. Containers have an IPv4 address in any case.
    pub(crate) fn behind_proxied(&self) -> BTreeMap<u16, Vec<SocketAddr>> {
        let led = |port: &u16| {
            let behind = self.ports.get(&(Protocol::Tcp, *port))?;
            let four = behind.iter().filter(|(address, _)| address.is_ipv4());
            Some((*port, four.map(|at| SocketAddr::from(*at)).collect()))
        };
        self.proxied.iter().filter_map(led).collect()
    }

    /// Whether the host itself has to pass IPv6 on: a container here has such an address, or a port leads to one.
    pub(crate) fn passes_ipv6(&self) -> bool {
        let mut behind = self.ports.values().flatten();
        self.endpoints.keys().any(IpAddr::is_ipv6) || behind.any(|(address, _)| address.is_ipv6())
    }
}

/// A set by the family of its table and its name.
pub(crate) type Set = (Family, &'static str);

/// Elements by set: key and, in a map, value.
pub(crate) type Elements = BTreeMap<Set, BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// What a key or a value has: how many addresses, and how many bytes beside them.
pub(crate) type Size = (u32, u32);

/// Sets of the dataplane's tables: name, key, value.
pub(crate) const SETS: &[(&str, Size, Option<Size>)] = &[
    ("vips", (1, 0), None),
    ("eps", (1, 4), Some((1, 0))),
    ("ports", (0, 12), Some((1, 4))),
    ("nets", (1, 0), Some((0, 4))),
    ("members", (1, 4), None),
    ("internal", (1, 0), None),
    ("secret", (1, 0), None),
    ("face", (1, 0), Some((1, 0))),
    ("selves", (2, 0), None),
    ("published", (1, 8), None),
    // Of ranges: where one begins, and, with an empty value, where it has ended.
    (SUBNETS, (1, 0), None),
];

/// The set of ranges.
pub(crate) const SUBNETS: &str = "subnets";

/// Sets of the host's table of a family: name, key. None is a map. Hosts have IPv4 addresses for each other.
pub(crate) const fn host_sets(family: Family) -> &'static [(&'static str, Size)] {
    match family {
        Family::V4 => &[("ports", (0, 8)), ("bound", (1, 8)), ("hosts", (1, 0))],
        Family::V6 => &[("ports", (0, 8)), ("bound", (1, 8))],
    }
}

/// Its bytes in a family.
pub(crate) const fn bytes((addresses, beside): Size, family: Family) -> u32 {
    addresses * family.bytes() + beside
}

/// The sets that make `wanted` so. Slots that lead to a backend that is still wanted stay where `now` has them.
pub(crate) fn elements(wanted: &Wanted, now: &Elements) -> Elements {
    let both = Family::ALL.iter();
    let sets = both.flat_map(|family| SETS.iter().map(|(name, ..)| (*family, *name)));
    let mut all: Elements = sets.map(|set| (set, BTreeMap::new())).collect();
    let mut put = |set: Set, key: Vec<u8>, value: Option<Vec<u8>>| {
        all.entry(set).or_default().insert(key, value);
    };
    // Addresses of networks that nobody here is in have no number.
    let near = wanted
        .overlay
        .remote
        .iter()
        .filter(|(_, remote)| remote.network != 0);
    for (address, remote) in near {
        let (family, key) = (Family::of(*address), octets(*address));
        let network = remote.network.to_ne_bytes();
        put((family, "members"), [&network[..], &key].concat(), None);
        put((family, "nets"), key, Some(network.to_vec()));
    }
    for (address, endpoint) in &wanted.endpoints {
        let (family, key) = (Family::of(*address), octets(*address));
        let network = endpoint.network.to_ne_bytes();
        put((family, "members"), [&network[..], &key].concat(), None);
        put((family, "selves"), [&key[..], &key].concat(), None);
        if endpoint.internal {
            put((family, "internal"), key.clone(), None);
        }
        if endpoint.encrypted {
            put((family, "secret"), key.clone(), None);
        }
        put((family, "nets"), key, Some(network.to_vec()));
    }
    let empty = BTreeMap::new();
    let had = |set: Set| now.get(&set).unwrap_or(&empty);
    for (vip, (_, backends)) in &wanted.vips {
        let (family, key) = (Family::of(*vip), octets(*vip));
        let same = backends.iter().filter(|b| Family::of(**b) == family);
        let values: Vec<Vec<u8>> = same.map(|b| octets(*b)).collect();
        for (key, value) in slots(&key, &values, had((family, "eps"))) {
            put((family, "eps"), key, Some(value));
        }
        put((family, "vips"), key, None);
    }
    for (ip, protocol, port) in &wanted.published {
        let key = [octets(*ip), port_key(*protocol, *port)].concat();
        put((Family::of(*ip), "published"), key, None);
    }
    for (begin, end) in ranges(&wanted.subnets) {
        put((Family::of(begin), SUBNETS), octets(begin), None);
        if let Some(end) = end {
            put((Family::of(end), SUBNETS), octets(end), Some(Vec::new()));
        }
    }
    // By its address other hosts know who made a connection here.
    if let Some(own) = wanted.overlay.own {
        let nobody = octets(Family::V4.unspecified());
        put((Family::V4, "face"), nobody, Some(own.octets().to_vec()));
    }
    let led = (wanted.ports.iter()).filter(|((protocol, port), _)| !wanted.is_proxied(*protocol, *port));
    for ((protocol, port), backends) in led {
        for family in Family::ALL {
            let values: Vec<Vec<u8>> = behind(backends, *family)
                .map(|(ip, port)| [octets(*ip), port_word(*port).to_vec()].concat())
                .collect();
            let prefix = port_key(*protocol, *port);
            for (key, value) in slots(&prefix, &values, had((*family, "ports"))) {
                put((*family, "ports"), key, Some(value));
            }
        }
    }
    all
}

/// What of a family is behind a published port.
fn behind(backends: &[(IpAddr, u16)], family: Family) -> impl Iterator<Item = &(IpAddr, u16)> {
    let same = move |(address, _): &&(IpAddr, u16)| Family::of(*address) == family;
    backends.iter().filter(same)
}

/// The host's sets that make `wanted` so, where other hosts are known as in `ways`.
pub(crate) fn host_elements(wanted: &Wanted, ways: &Ways) -> Elements {
    let both = Family::ALL.iter();
    let sets = both.flat_map(|family| host_sets(*family).iter().map(|(name, _)| (*family, *name)));
    let mut all: Elements = sets.map(|set| (set, BTreeMap::new())).collect();
    let mut put = |set: Set, key: Vec<u8>| all.entry(set).or_default().insert(key, None);
    for (place, backends) in &wanted.ports {
        let key = port_key(place.0, place.1);
        match wanted.bound.get(place) {
            Some(address) => {
                put((Family::of(*address), "bound"), [octets(*address), key].concat());
            }
            None => {
                if behind(backends, Family::V6).next().is_some() {
                    put((Family::V6, "ports"), key.clone());
                }
                put((Family::V4, "ports"), key);
            }
        }
    }
    for host in ways.plain.hosts.keys() {
        put((Family::V4, "hosts"), host.octets().to_vec());
    }
    all
}

/// Subnets as ranges that do not touch: the first address, and the first after them, unless there is none.
fn ranges(subnets: &BTreeSet<(IpAddr, u8)>) -> Vec<(IpAddr, Option<IpAddr>)> {
    let mut ranges: Vec<(Family, u128, Option<u128>)> = Vec::new();
    for (address, bits) in subnets {
        let family = Family::of(*address);
        let begin = number(*address);
        let size = 1u128.checked_shl(u32::from(family.bits().saturating_sub(*bits)));
        let end = size.and_then(|size| begin.checked_add(size));
        match ranges.last_mut() {
            Some((of, _, last)) if *of == family && last.is_none_or(|last| last >= begin) => {
                *last = last.zip(end).map(|(last, end)| last.max(end));
            }
            Some(_) | None => ranges.push((family, begin, end)),
        }
    }
    let both = ranges.into_iter().filter_map(|(family, begin, end)| {
        Some((address(family, begin)?, end.and_then(|n| address(family, n))))
    });
    both.collect()
}

/// An address as a number, and the address of a number, unless there is none.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}
fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(number).ok().map(|n| Ipv4Addr::from(n).into()),
        Family::V6 => Some(Ipv6Addr::from(number).into()),
    }
}

/// A protocol and a port as words of a key.
fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    [[protocol as u8, 0, 0, 0], port_word(port)].concat()
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
pub(crate) type Changes = BTreeMap<Set, Change>;

/// What `new` needs beyond `old`, which is what the kernel has, as in `now`: worked out of what differs alone.
pub(crate) fn between(old: &Wanted, new: &Wanted, now: &Elements) -> Changes {
    let addresses: BTreeSet<IpAddr> = differing(&old.endpoints, &new.endpoints)
        .chain(differing(&old.overlay.remote, &new.overlay.remote))
        .collect();
    let vips: BTreeSet<IpAddr> = differing(&old.vips, &new.vips).collect();
    let proxied = old.proxied.symmetric_difference(&new.proxied);
    let ports: BTreeSet<(Protocol, u16)> = differing(&old.ports, &new.ports)
        .chain(proxied.map(|port| (Protocol::Tcp, *port)))
        .collect();
    let part = |of: &Wanted, other: &Wanted| Wanted {
        endpoints: some(&of.endpoints, &addresses),
        vips: some(&of.vips, &vips),
        ports: some(&of.ports, &ports),
        published: of.published.difference(&other.published).copied().collect(),
        proxied: of.proxied.clone(),
        bound: BTreeMap::new(),
        encrypts: false,
        zone: Zone::default(),
        overlay: Overlay {
            own: of.overlay.own.filter(|_| old.overlay.own != new.overlay.own),
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
        let set = elements.entry(*set).or_default();
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
pub(crate) fn left(changes: &Changes, wanted: &Wanted) -> BTreeSet<IpAddr> {
    let mut left = BTreeSet::new();
    for ((family, set), (gone, _)) in changes {
        if !["eps", "ports"].contains(set) {
            continue;
        }
        let values = gone.iter().filter_map(|(_, value)| value.as_deref());
        left.extend(values.filter_map(|value| first_address(*family, value)));
    }
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

/// The address that a value begins with.
fn first_address(family: Family, value: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(IpAddr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?)),
        Family::V6 => Some(IpAddr::from(<[u8; 16]>::try_from(value.get(..16)?).ok()?)),
    }
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
        let ip = |n| IpAddr::from([10, 0, 0, n]);
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
        assert_eq!(first[&(Family::V4, "eps")].len(), SLOTS);
        assert_eq!(first[&(Family::V4, "ports")].len(), SLOTS);
        assert_eq!(
            (
                first[&(Family::V4, "vips")].len(),
                first[&(Family::V4, "members")].len(),
                first[&(Family::V4, "internal")].len(),
                first[&(Family::V4, "secret")].len()
            ),
            (2, 2, 1, 1)
        );
        assert!(diff(&elements(&wanted(), &first), &first).is_empty());
    }

    fn six(n: u16) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
    }

    #[test]
    fn each_family_has_its_sets_and_leads_to_its_own() {
        let mut dual = wanted();
        dual.endpoints
            .insert(six(2), dual.endpoints[&[10, 0, 0, 2].into()]);
        dual.vips.insert(six(9), (1, vec![six(2), [10, 0, 0, 2].into()]));
        let of = |family, dual: &Wanted| {
            let mut all = elements(dual, &Elements::new());
            all.retain(|(of, _), _| *of == family);
            all
        };
        assert_eq!(
            of(Family::V4, &dual),
            of(Family::V4, &wanted()),
            "as without IPv6"
        );
        let of_six = of(Family::V6, &dual);
        for ((_, name), elements) in &of_six {
            let (_, key, value) = SETS.iter().find(|(set, ..)| set == name).unwrap();
            for (k, v) in elements {
                assert_eq!(k.len(), bytes(*key, Family::V6) as usize, "{name}");
                let wide = value.map(|value| bytes(value, Family::V6) as usize);
                assert_eq!(v.as_ref().map(Vec::len), wide, "{name}");
            }
        }
        let eps = &of_six[&(Family::V6, "eps")];
        assert!(eps.len() == SLOTS && eps.values().all(|v| *v == Some(octets(six(2)))));
        assert!(of_six[&(Family::V6, "ports")].is_empty());
        // What its slots led to is known by its whole address.
        let gone = diff(
            &elements(&wanted(), &Elements::new()),
            &elements(&dual, &Elements::new()),
        );
        assert_eq!(left(&gone, &wanted()), [six(2)].into());
        let only_four = dual.without_ipv6();
        assert_eq!(only_four, wanted());
    }

    #[test]
    fn a_port_is_open_on_a_host_where_something_of_that_family_is_behind_it() {
        let host = |wanted: &Wanted| -> Vec<(Set, Vec<u8>)> {
            let all = host_elements(wanted, &Ways::default());
            let keys = all
                .into_iter()
                .flat_map(|(set, keys)| keys.into_keys().map(move |k| (set, k)));
            keys.collect()
        };
        let place = (Protocol::Tcp, 80);
        let key = port_key(place.0, place.1);
        let mut wanted = wanted();
        let free = |family| ((family, "ports"), key.clone());
        assert_eq!(host(&wanted), [free(Family::V4)]);
        assert!(!wanted.passes_ipv6());
        wanted.ports.insert(place, vec![(six(2), 8080)]);
        assert_eq!(host(&wanted), [free(Family::V4), free(Family::V6)]);
        assert!(wanted.passes_ipv6());
        for address in [[10, 99, 0, 1].into(), six(1)] {
            wanted.bound.insert(place, address);
            let bound = [octets(address), key.clone()].concat();
            assert_eq!(host(&wanted), [((Family::of(address), "bound"), bound)]);
        }
    }

    #[test]
    fn what_differs_is_worked_out_as_the_whole_is() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
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
        type Edit = fn(&mut Wanted, &dyn Fn(u8) -> IpAddr);
        let edits: [(&str, Edit); 15] = [
            ("nothing", |_, _| {}),
            ("a network comes", |w, ip| w.subnets.extend([(ip(0), 24)])),
            ("one that touches it comes", |w, _| {
                w.subnets.insert(([10, 0, 1, 0].into(), 24));
            }),
            ("a backend goes", |w, ip| {
                drop(w.vips.insert(ip(9), (1, vec![ip(2)])))
            }),
            ("a virtual address goes", |w, ip| drop(w.vips.remove(&ip(9)))),
            ("a port comes", |w, ip| {
                drop(w.ports.insert((Protocol::Udp, 53), vec![(ip(3), 5353)]))
            }),
            ("a port goes", |w, _| w.ports.clear()),
            ("a port is proxied", |w, _| w.proxied.extend([80])),
            ("the host has another address", |w, _| {
                w.overlay.own = Some(Ipv4Addr::new(10, 0, 0, 201));
            }),
            ("one is published", |w, ip| {
                w.published = [(ip(2), Protocol::Tcp, 80)].into()
            }),
            ("a container moves away", |w, ip| {
                w.endpoints.remove(&ip(2));
                w.overlay.remote.insert(ip(2), THERE);
            }),
            ("a container has IPv6", |w, ip| {
                let endpoint = w.endpoints[&ip(3)];
                w.endpoints.insert(six(3), endpoint);
                w.subnets.insert((six(0), 64));
                w.published.insert((six(3), Protocol::Tcp, 80));
            }),
            ("a virtual address of IPv6 comes", |w, ip| {
                w.vips.insert(six(9), (1, vec![six(2), six(3), ip(2)]));
            }),
            ("a port leads to IPv6 as well", |w, _| {
                let behind = w.ports.entry((Protocol::Tcp, 80)).or_default();
                behind.push((six(2), 8080));
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
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
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
            (
                vec![
                    subnet("255.255.255.0", 24),
                    subnet("::", 64),
                    subnet("0:0:0:1::", 64),
                    subnet("fd00::", 120),
                ],
                vec![
                    ("255.255.255.0", None),
                    ("::", Some("0:0:0:2::")),
                    ("fd00::", Some("fd00::100")),
                ],
            ),
            (vec![subnet("ffff::", 16)], vec![("ffff::", None)]),
            (vec![subnet("::", 0), subnet("fd00::", 64)], vec![("::", None)]),
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
        let ip = |n: u32| IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n));
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
            let (gone, new) = &part[&(Family::V4, "eps")];
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
            .insert([10, 0, 0, 9].into(), (1, vec![[10, 0, 0, 2].into()]));
        let change = diff(&elements(&less, &first), &first);
        assert_eq!(change.keys().copied().collect::<Vec<_>>(), [(Family::V4, "eps")]);
        assert_eq!(change[&(Family::V4, "eps")].1.len(), SLOTS / 2);
    }
}
