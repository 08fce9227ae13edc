//! What of the networks is on other hosts → the routes and neighbours that lead there; pure.
//!
//! Addresses are unique in the cluster, and which may reach which is decided by the tables of both ends. So one VXLAN device
//! (RFC 7348) carries all networks, and a second one, within WireGuard, all that are encrypted: for each host a device has one
//! neighbour and one entry of its forwarding table, and for each task there is one route. A host is its own gateway there: its
//! address stands for it and is never asked for (ARP), and what its device is called on the wire follows from it. Hosts have IPv4
//! addresses alone; IPv6 of containers goes by way of the same address, written as one of the link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wireguard::Key;

/// What is on other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlay {
    /// Address of this host for the others; none: it reaches nobody.
    pub own: Option<Ipv4Addr>,
    /// Addresses of all hosts for each other.
    pub hosts: BTreeSet<Ipv4Addr>,
    /// Public keys of those that can encrypt.
    pub keys: BTreeMap<Ipv4Addr, Key>,
    /// Addresses of containers elsewhere.
    pub remote: BTreeMap<IpAddr, Remote>,
}

/// A container elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Number of its network; zero: only reached by a published port.
    pub network: u32,
    /// Address of its host.
    pub host: Ipv4Addr,
    /// Nothing goes there that is not encrypted.
    pub encrypted: bool,
}

/// The two ways to other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    Encrypted,
}

/// What there is on both; wanted, or found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ways {
    pub(crate) plain: Paths,
    pub(crate) encrypted: Paths,
}

/// The device of a host and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Paths {
    /// The host's own address, when there is a device.
    pub(crate) own: Option<Ipv4Addr>,
    /// Other hosts, with the keys they are known by on the encrypted way.
    pub(crate) hosts: BTreeMap<Ipv4Addr, Option<Key>>,
    /// Containers' addresses: their hosts.
    pub(crate) routes: BTreeMap<IpAddr, Ipv4Addr>,
}

/// One change in the kernel. Each may be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// With everything that hangs on it.
    RemoveDevice,
    AddDevice(Ipv4Addr),
    AddHost {
        host: Ipv4Addr,
        key: Option<Key>,
        /// The one that it had.
        old: Option<Key>,
    },
    RemoveHost(Ipv4Addr, Option<Key>),
    /// A container's address and its host; it takes the place of another way.
    AddRoute(IpAddr, Ipv4Addr),
    RemoveRoute(IpAddr),
}

/// What has to be there: a plain device where there is another host, which may ask at any time, and an encrypted one where
/// `encrypts`, as a container here is in such a network, or one is elsewhere.
pub(crate) fn ways(overlay: &Overlay, encrypts: bool, is_here: impl Fn(&IpAddr) -> bool) -> Ways {
    let other = |host: &Ipv4Addr| overlay.own.is_some_and(|own| own != *host);
    let paths = |hosts: BTreeMap<Ipv4Addr, Option<Key>>, encrypted: bool| Paths {
        own: overlay.own.filter(|_| !hosts.is_empty()),
        routes: (overlay.remote.iter())
            .filter(|(_, remote)| remote.encrypted == encrypted)
            .map(|(address, remote)| (*address, remote.host))
            // What is told of as elsewhere and is here has been given again since.
            .filter(|(address, host)| hosts.contains_key(host) && !is_here(address))
            .collect(),
        hosts,
    };
    let plain = overlay
        .hosts
        .iter()
        .filter(|h| other(h))
        .map(|host| (*host, None));
    let keyed = overlay
        .keys
        .iter()
        .filter(|(h, _)| other(h) && overlay.hosts.contains(h));
    let needed = encrypts || overlay.remote.values().any(|r| r.encrypted);
    Ways {
        plain: paths(plain.collect(), false),
        encrypted: if needed {
            paths(keyed.map(|(host, key)| (*host, Some(*key))).collect(), true)
        } else {
            Paths::default()
        },
    }
}

/// Changes in order, each on its way.
pub(crate) type Steps = Vec<(Way, Step)>;

/// What leads from `found` to `wanted`: what is to be done before anything is sent there, and after nothing is any more.
pub(crate) fn steps(wanted: &Ways, found: &Ways) -> (Steps, Steps) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (way, wanted, found) in [
        (Way::Plain, &wanted.plain, &found.plain),
        (Way::Encrypted, &wanted.encrypted, &found.encrypted),
    ] {
        let (first, last) = steps_of(wanted, found);
        before.extend(first.into_iter().map(|step| (way, step)));
        after.extend(last.into_iter().map(|step| (way, step)));
    }
    (before, after)
}

fn steps_of(wanted: &Paths, found: &Paths) -> (Vec<Step>, Vec<Step>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let none = Paths::default();
    let mut have = found;
    if wanted.own != found.own {
        if found.own.is_some() {
            before.push(Step::RemoveDevice);
        }
        before.extend(wanted.own.map(Step::AddDevice));
        have = &none;
    }
    let new = |(host, key): &(&Ipv4Addr, &Option<Key>)| have.hosts.get(*host) != Some(*key);
    before.extend(
        (wanted.hosts.iter().filter(new)).map(|(host, key)| Step::AddHost {
            host: *host,
            key: *key,
            old: have.hosts.get(host).copied().flatten(),
        }),
    );
    let moved = |(address, host): &(&IpAddr, &Ipv4Addr)| have.routes.get(*address) != Some(*host);
    before
        .extend((wanted.routes.iter().filter(moved)).map(|(address, host)| Step::AddRoute(*address, *host)));
    let gone = |address: &&IpAddr| !wanted.routes.contains_key(*address);
    after.extend((have.routes.keys().filter(gone)).map(|address| Step::RemoveRoute(*address)));
    let left = |(host, _): &(&Ipv4Addr, &Option<Key>)| !wanted.hosts.contains_key(*host);
    after.extend((have.hosts.iter().filter(left)).map(|(host, key)| Step::RemoveHost(*host, *key)));
    (before, after)
}

impl Ways {
    /// Remembers a step that was taken.
    pub(crate) fn take(&mut self, way: Way, step: Step) {
        match way {
            Way::Plain => self.plain.take(step),
            Way::Encrypted => self.encrypted.take(step),
        }
    }
}

impl Paths {
    fn take(&mut self, step: Step) {
        match step {
            Step::RemoveDevice => {
                self.own = None;
                self.hosts.clear();
                self.routes.clear();
            }
            Step::AddDevice(own) => self.own = Some(own),
            Step::AddHost { host, key, .. } => drop(self.hosts.insert(host, key)),
            Step::RemoveHost(host, _) => drop(self.hosts.remove(&host)),
            Step::AddRoute(address, host) => drop(self.routes.insert(address, host)),
            Step::RemoveRoute(address) => drop(self.routes.remove(&address)),
        }
    }
}

/// What the device of a host is called on the wire: a locally administered address made of the host's.
pub(crate) fn mac_of(host: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = host.octets();
    [0x02, 0x52, a, b, c, d]
}

/// Addresses of one link whose last four bytes are an IPv4 address (RFC 4291).
const LINK: u128 = 0xfe80 << 112;

/// The gateway for a host's IPv6: its IPv4 address as one of the link. What it is called on the wire is the same.
pub(crate) fn gateway_of(host: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(LINK | u128::from(u32::from(host)))
}

/// The host of such a gateway.
pub(crate) fn host_of(gateway: Ipv6Addr) -> Option<Ipv4Addr> {
    let host = u32::try_from(u128::from(gateway) ^ LINK).ok()?;
    Some(host.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    const TWO: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
    const THREE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

    fn task(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    /// Containers of a plain network, 100 and above of an encrypted one.
    fn overlay(own: Option<Ipv4Addr>, hosts: &[Ipv4Addr], remote: &[(u8, Ipv4Addr)]) -> Overlay {
        let place = |(n, host): &(u8, Ipv4Addr)| {
            let remote = Remote {
                network: 7,
                host: *host,
                encrypted: *n >= 100,
            };
            (task(*n), remote)
        };
        Overlay {
            own,
            hosts: hosts.iter().copied().collect(),
            keys: BTreeMap::new(),
            remote: remote.iter().map(place).collect(),
        }
    }

    /// Takes all steps, in order; answers them.
    fn reach(now: &mut Ways, overlay: &Overlay) -> (Steps, Steps) {
        let wanted = ways(overlay, false, |address| *address == task(77));
        let all = steps(&wanted, now);
        for (way, step) in all.0.iter().chain(&all.1) {
            now.take(*way, *step);
        }
        assert_eq!(*now, wanted);
        assert_eq!(steps(&wanted, now), (vec![], vec![]), "again");
        all
    }

    fn add(host: Ipv4Addr) -> Step {
        Step::AddHost {
            host,
            key: None,
            old: None,
        }
    }

    #[test]
    fn what_is_new_comes_before_it_is_used_and_what_is_gone_goes_after() {
        let mut now = Ways::default();
        let all = [OWN, TWO, THREE];
        let rows: [(Overlay, &[Step], &[Step]); 6] = [
            (overlay(Some(OWN), &[OWN], &[]), &[], &[]),
            (
                overlay(
                    Some(OWN),
                    &[OWN, TWO],
                    &[(2, TWO), (3, TWO), (9, THREE), (77, TWO)],
                ),
                &[
                    Step::AddDevice(OWN),
                    add(TWO),
                    Step::AddRoute(task(2), TWO),
                    Step::AddRoute(task(3), TWO),
                ],
                &[],
            ),
            (
                overlay(Some(OWN), &all, &[(2, THREE), (4, TWO)]),
                &[
                    add(THREE),
                    Step::AddRoute(task(2), THREE),
                    Step::AddRoute(task(4), TWO),
                ],
                &[Step::RemoveRoute(task(3))],
            ),
            (
                overlay(Some(THREE), &all, &[(2, THREE), (4, TWO)]),
                &[
                    Step::RemoveDevice,
                    Step::AddDevice(THREE),
                    add(OWN),
                    add(TWO),
                    Step::AddRoute(task(4), TWO),
                ],
                &[],
            ),
            (
                overlay(Some(THREE), &[OWN, THREE], &[]),
                &[],
                &[Step::RemoveRoute(task(4)), Step::RemoveHost(TWO, None)],
            ),
            (Overlay::default(), &[Step::RemoveDevice], &[]),
        ];
        let plain = |steps: &[Step]| steps.iter().map(|s| (Way::Plain, *s)).collect::<Vec<_>>();
        for (at, (overlay, before, after)) in rows.iter().enumerate() {
            let got = reach(&mut now, overlay);
            assert_eq!(got, (plain(before), plain(after)), "row {at}");
        }
    }

    #[test]
    fn ipv6_goes_by_the_same_hosts_under_an_address_of_the_link() {
        let six = |n: u16| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n));
        let mut overlay = overlay(Some(OWN), &[OWN, TWO], &[(2, TWO)]);
        let remote = overlay.remote[&task(2)];
        overlay.remote.insert(six(2), remote);
        let mut now = Ways::default();
        let (before, _) = reach(&mut now, &overlay);
        let plain = |step| (Way::Plain, step);
        assert_eq!(
            before[1..],
            [
                plain(add(TWO)),
                plain(Step::AddRoute(task(2), TWO)),
                plain(Step::AddRoute(six(2), TWO)),
            ]
        );
        overlay.remote.remove(&six(2));
        let (_, after) = reach(&mut now, &overlay);
        assert_eq!(after, [plain(Step::RemoveRoute(six(2)))]);
        assert_eq!(gateway_of(TWO), "fe80::a63:2".parse::<Ipv6Addr>().unwrap());
        for host in [OWN, TWO, Ipv4Addr::BROADCAST] {
            assert_eq!(host_of(gateway_of(host)), Some(host));
        }
        for foreign in ["fe80::1:a63:2", "fd00::a63:2", "fe80:0:0:1::a63:2"] {
            assert_eq!(host_of(foreign.parse().unwrap()), None, "{foreign}");
        }
    }

    /// Keys of hosts, and what is to be done before and after.
    type Row<'a> = (&'a [(Ipv4Addr, u8)], &'a [Step], &'a [Step]);

    #[test]
    fn what_is_encrypted_goes_to_hosts_with_keys_alone() {
        let mut now = Ways::default();
        let all = [OWN, TWO, THREE];
        let remote = [(2, TWO), (102, TWO), (103, THREE)];
        let keyed = |keys: &[(Ipv4Addr, u8)]| Overlay {
            keys: keys.iter().map(|(host, key)| (*host, [*key; 32])).collect(),
            ..overlay(Some(OWN), &all, &remote)
        };
        let encrypted = |steps: Vec<(Way, Step)>| -> Vec<Step> {
            let of = |(way, step): &(Way, Step)| (*way == Way::Encrypted).then_some(*step);
            steps.iter().filter_map(of).collect()
        };
        let key = |host, key: u8, old: Option<u8>| Step::AddHost {
            host,
            key: Some([key; 32]),
            old: old.map(|o| [o; 32]),
        };
        // Nobody can: nothing goes anywhere, and least of all by the other way.
        let (before, after) = reach(&mut now, &keyed(&[]));
        assert!(before.contains(&(Way::Plain, Step::AddRoute(task(2), TWO))));
        assert!(
            !before
                .iter()
                .any(|(_, s)| matches!(s, Step::AddRoute(a, _) if *a != task(2)))
        );
        assert!(after.is_empty());
        let rows: [Row<'_>; 4] = [
            // A stranger with a key is no host.
            (
                &[(OWN, 1), (TWO, 2), (Ipv4Addr::new(10, 0, 0, 9), 9)],
                &[
                    Step::AddDevice(OWN),
                    key(TWO, 2, None),
                    Step::AddRoute(task(102), TWO),
                ],
                &[],
            ),
            (
                &[(OWN, 1), (TWO, 2), (THREE, 3)],
                &[key(THREE, 3, None), Step::AddRoute(task(103), THREE)],
                &[],
            ),
            (&[(TWO, 4), (THREE, 3)], &[key(TWO, 4, Some(2))], &[]),
            (
                &[(THREE, 3)],
                &[],
                &[Step::RemoveRoute(task(102)), Step::RemoveHost(TWO, Some([4; 32]))],
            ),
        ];
        for (at, (keys, before, after)) in rows.iter().enumerate() {
            let got = reach(&mut now, &keyed(keys));
            assert_eq!(encrypted(got.0), *before, "row {at}");
            assert_eq!(encrypted(got.1), *after, "row {at}");
        }
        // A container here may be asked by any host, before any is known elsewhere.
        let alone = Overlay {
            remote: BTreeMap::new(),
            ..keyed(&[(TWO, 2)])
        };
        assert_eq!(ways(&alone, true, |_| false).encrypted.own, Some(OWN));
        assert_eq!(ways(&alone, false, |_| false).encrypted, Paths::default());
    }
}
