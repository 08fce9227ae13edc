//! What of the networks is on other hosts → the routes and neighbours that lead there; pure.
//!
//! Addresses are unique in the cluster, and which may reach which is decided by the tables of both ends. So one VXLAN device
//! (RFC 7348) carries all networks: for each host it has one neighbour and one entry of its forwarding table, and for each
//! task there is one route. A host is its own gateway there: its address stands for it and is never asked for (ARP), and
//! what its device is called on the wire follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What is on other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlay {
    /// Address of this host for the others; none: it reaches nobody.
    pub own: Option<Ipv4Addr>,
    /// Addresses of all hosts for each other.
    pub hosts: BTreeSet<Ipv4Addr>,
    /// Addresses of containers elsewhere: number of their network, and address of their host. Zero: only reached by a
    /// published port.
    pub remote: BTreeMap<Ipv4Addr, (u32, Ipv4Addr)>,
}

/// The device of a host and what it has; of what is wanted, and of what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Paths {
    /// The host's own address, when there is a device.
    pub(crate) own: Option<Ipv4Addr>,
    /// Other hosts.
    pub(crate) hosts: BTreeSet<Ipv4Addr>,
    /// Containers' addresses: their hosts.
    pub(crate) routes: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// One change in the kernel. Each may be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// With everything that hangs on it.
    RemoveDevice,
    AddDevice(Ipv4Addr),
    AddHost(Ipv4Addr),
    RemoveHost(Ipv4Addr),
    /// A container's address and its host; it takes the place of another way.
    AddRoute(Ipv4Addr, Ipv4Addr),
    RemoveRoute(Ipv4Addr),
}

/// What has to be there: a device where there is another host, which may ask at any time.
pub(crate) fn paths(overlay: &Overlay, is_here: impl Fn(&Ipv4Addr) -> bool) -> Paths {
    let other = |host: &Ipv4Addr| overlay.own.is_some_and(|own| own != *host);
    let hosts: BTreeSet<Ipv4Addr> = overlay.hosts.iter().copied().filter(other).collect();
    Paths {
        own: overlay.own.filter(|_| !hosts.is_empty()),
        routes: (overlay.remote.iter())
            .map(|(address, (_, host))| (*address, *host))
            // What is told of as elsewhere and is here has been given again since.
            .filter(|(address, host)| hosts.contains(host) && !is_here(address))
            .collect(),
        hosts,
    }
}

/// What leads from `found` to `wanted`: what is to be done before anything is sent there, and after nothing is any more.
pub(crate) fn steps(wanted: &Paths, found: &Paths) -> (Vec<Step>, Vec<Step>) {
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
    before.extend(wanted.hosts.difference(&have.hosts).map(|h| Step::AddHost(*h)));
    let moved = |(address, host): &(&Ipv4Addr, &Ipv4Addr)| have.routes.get(*address) != Some(*host);
    before
        .extend((wanted.routes.iter().filter(moved)).map(|(address, host)| Step::AddRoute(*address, *host)));
    let gone = |address: &&Ipv4Addr| !wanted.routes.contains_key(*address);
    after.extend((have.routes.keys().filter(gone)).map(|address| Step::RemoveRoute(*address)));
    after.extend(have.hosts.difference(&wanted.hosts).map(|h| Step::RemoveHost(*h)));
    (before, after)
}

impl Paths {
    /// Remembers a step that was taken.
    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::RemoveDevice => {
                self.own = None;
                self.hosts.clear();
                self.routes.clear();
            }
            Step::AddDevice(own) => self.own = Some(own),
            Step::AddHost(host) => drop(self.hosts.insert(host)),
            Step::RemoveHost(host) => drop(self.hosts.remove(&host)),
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

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    const TWO: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
    const THREE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

    fn task(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn overlay(own: Option<Ipv4Addr>, hosts: &[Ipv4Addr], remote: &[(u8, Ipv4Addr)]) -> Overlay {
        Overlay {
            own,
            hosts: hosts.iter().copied().collect(),
            remote: remote.iter().map(|(n, host)| (task(*n), (7, *host))).collect(),
        }
    }

    /// Takes all steps, in order; answers them.
    fn reach(now: &mut Paths, overlay: &Overlay) -> (Vec<Step>, Vec<Step>) {
        let wanted = paths(overlay, |address| *address == task(77));
        let all = steps(&wanted, now);
        for step in all.0.iter().chain(&all.1) {
            now.take(*step);
        }
        assert_eq!(*now, wanted);
        assert_eq!(steps(&wanted, now), (vec![], vec![]), "again");
        all
    }

    #[test]
    fn what_is_new_comes_before_it_is_used_and_what_is_gone_goes_after() {
        let mut now = Paths::default();
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
                    Step::AddHost(TWO),
                    Step::AddRoute(task(2), TWO),
                    Step::AddRoute(task(3), TWO),
                ],
                &[],
            ),
            (
                overlay(Some(OWN), &all, &[(2, THREE), (4, TWO)]),
                &[
                    Step::AddHost(THREE),
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
                    Step::AddHost(OWN),
                    Step::AddHost(TWO),
                    Step::AddRoute(task(4), TWO),
                ],
                &[],
            ),
            (
                overlay(Some(THREE), &[OWN, THREE], &[]),
                &[],
                &[Step::RemoveRoute(task(4)), Step::RemoveHost(TWO)],
            ),
            (Overlay::default(), &[Step::RemoveDevice], &[]),
        ];
        for (at, (overlay, before, after)) in rows.iter().enumerate() {
            let (got_before, got_after) = reach(&mut now, overlay);
            assert_eq!(
                (got_before.as_slice(), got_after.as_slice()),
                (*before, *after),
                "row {at}"
            );
        }
    }
}
