//! Addresses of a network, subnets of the pools, and network numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use model::ClusterId;
use model::object::{Cluster, Network};
use model::spec::Family;
use sha2::{Digest, Sha256};

use crate::state::State;

/// First network number given; lower ones are kept for operators (as Docker does).
const VNI_FIRST: u32 = 4096;
/// Numbers have 24 bits (RFC 7348).
const VNI_END: u32 = 1 << 24;
/// Bits of an IPv6 subnet that the cluster chooses (RFC 4291).
const IPV6_PREFIX: u8 = 64;

/// A free address of a family in a network: in its first subnet with one, found from a place that `seed` chooses.
///
/// The place spreads over the subnet, so that an address just given back is seldom given again at once.
pub(crate) fn free_address(state: &State, network: &Network, family: Family, seed: u128) -> Option<IpAddr> {
    let subnets = network.subnets.iter().filter(|s| Family::of_subnet(s) == family);
    for subnet in subnets {
        let (first, count) = hosts(subnet);
        let start = seed.checked_rem(count).unwrap_or(0);
        // Ends after one step more than there are addresses held.
        for step in 0..count {
            let address = address(family, first + (start + step) % count);
            if address.is_some_and(|address| !state.address_in_use(network.id, address)) {
                return address;
            }
        }
    }
    None
}

/// Whether an address is one that a network may give.
pub(crate) fn can_be_given(network: &Network, address: IpAddr) -> bool {
    let number = match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => u128::from(address),
    };
    network.subnets.iter().any(|subnet| {
        let (first, count) = hosts(subnet);
        Family::of_subnet(subnet) == Family::of(address) && (first..first + count).contains(&number)
    })
}

/// Addresses of a subnet that can be given, as a number: the first, and how many. The address of the network (in IPv6 of
/// all its routers), the one after it (kept as gateway) and the broadcast address of IPv4 are never given.
fn hosts(subnet: &IpNet) -> (u128, u128) {
    let size = |bits: u8| 1u128.checked_shl(bits.into()).unwrap_or(0);
    match subnet {
        IpNet::V4(net) => {
            let first = u128::from(u32::from(net.network())) + 2;
            (first, size(32 - net.prefix_len()).saturating_sub(3))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()).saturating_add(2);
            (first, size(128 - net.prefix_len()).saturating_sub(2))
        }
    }
}

/// The address of a family with a number.
fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(Ipv4Addr::from(u32::try_from(number).ok()?).into()),
        Family::V6 => Some(Ipv6Addr::from(number).into()),
    }
}

/// The network that a subnet overlaps with, if any.
pub(crate) fn overlaps<'a>(state: &'a State, subnet: &IpNet) -> Option<&'a str> {
    state
        .networks()
        .find(|n| {
            n.subnets
                .iter()
                .any(|s| s.contains(&subnet.network()) || subnet.contains(&s.network()))
        })
        .map(|n| n.spec.name.as_str())
}

/// Addresses that no network may have now, and by whom: tasks of a network that was removed hold theirs until they have
/// ended, and a host that is at one could not be reached by it any more.
fn held(state: &State) -> impl Iterator<Item = (IpAddr, String)> + '_ {
    let live = state.tasks().filter(|t| !t.status.state.is_terminal());
    let left = live.flat_map(|t| {
        t.addresses
            .iter()
            .map(move |(network, address)| (t, network, *address))
    });
    let left = left.filter(|(_, network, _)| state.network(**network).is_none());
    let left = left.map(|(t, _, address)| {
        (
            address,
            format!("task {}, which is being stopped, still holds", t.name()),
        )
    });
    let hosts = state.nodes().filter_map(|n| {
        let at = n.description.address.parse::<SocketAddr>().ok()?;
        Some((at.ip(), format!("is the one of node {}", n.description.hostname)))
    });
    left.chain(hosts)
}

/// Why a subnet cannot be a network's now, if it cannot.
pub(crate) fn held_within(state: &State, subnet: &IpNet) -> Option<String> {
    held(state)
        .find(|(address, _)| subnet.contains(address))
        .map(|(_, who)| who)
}

/// The first subnet of a family in the cluster's pools that no network and no task still uses, and none of the `others`.
pub(crate) fn free_subnet(
    state: &State,
    cluster: &Cluster,
    family: Family,
    others: &[IpNet],
) -> Option<IpNet> {
    let used = state.networks().flat_map(|n| &n.subnets).chain(others);
    let used: Vec<IpNet> = used.copied().collect();
    let held: Vec<IpAddr> = held(state).map(|(address, _)| address).collect();
    let is_free = |c: &IpNet| {
        let overlaps = |u: &IpNet| u.contains(&c.network()) || c.contains(&u.network());
        !used.iter().any(overlaps) && !held.iter().any(|a| c.contains(a))
    };
    let own = IpNet::V6(unique_local(cluster.id));
    let (pools, prefix) = match family {
        Family::V4 => (cluster.address_pools.as_slice(), cluster.subnet_prefix),
        Family::V6 => (std::slice::from_ref(&own), IPV6_PREFIX),
    };
    let pools = pools.iter().filter(|p| Family::of_subnet(p) == family);
    pools
        .filter_map(|pool| pool.subnets(prefix.max(pool.prefix_len())).ok())
        .find_map(|mut candidates| candidates.find(is_free))
}

/// The prefix of a cluster's IPv6 networks, which no other is likely to have: 40 bits of it are as good as chance
/// (RFC 4193).
fn unique_local(cluster: ClusterId) -> Ipv6Net {
    let digest: [u8; 32] = Sha256::digest(cluster.0.to_be_bytes()).into();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    Ipv6Net::new_assert(octets.into(), 48)
}

/// The lowest free network number.
pub(crate) fn free_vni(state: &State) -> Option<u32> {
    let used: std::collections::BTreeSet<u32> = state.networks().map(|n| n.vni).collect();
    (VNI_FIRST..VNI_END).find(|v| !used.contains(v))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::NetworkId;
    use model::object::Meta;

    use super::*;

    fn network(subnets: &[&str]) -> Network {
        Network {
            id: NetworkId(1),
            meta: Meta::default(),
            spec: model::spec::NetworkSpec::default(),
            subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
            vni: 1,
        }
    }

    #[test]
    fn every_address_of_a_subnet_is_found_but_those_that_are_kept() {
        let state = State::new();
        for (subnet, family, first, last, count) in [
            ("10.0.0.0/29", Family::V4, "10.0.0.2", "10.0.0.6", 5),
            ("10.0.0.0/24", Family::V4, "10.0.0.2", "10.0.0.254", 253),
            (
                "255.255.255.0/24",
                Family::V4,
                "255.255.255.2",
                "255.255.255.254",
                253,
            ),
            ("fd00::/120", Family::V6, "fd00::2", "fd00::ff", 254),
            ("fd00::ff00/120", Family::V6, "fd00::ff02", "fd00::ffff", 254),
        ] {
            let network = network(&[subnet]);
            let found: BTreeSet<IpAddr> = (1 << 64..(1 << 64) + 600)
                .filter_map(|seed| free_address(&state, &network, family, seed))
                .collect();
            let ends = (found.first().copied(), found.last().copied());
            assert_eq!(ends, (first.parse().ok(), last.parse().ok()), "{subnet}");
            assert_eq!(found.len(), count, "{subnet}");
            assert!(found.iter().all(|a| can_be_given(&network, *a)), "{subnet}");
            let net = network.subnets[0];
            let all: BTreeSet<IpAddr> = net.hosts().chain([net.network(), net.broadcast()]).collect();
            let given = all.iter().filter(|a| can_be_given(&network, **a)).count();
            assert_eq!(given, count, "{subnet}: and no other");
        }
    }

    #[test]
    fn the_place_where_the_search_begins_is_spread_over_large_subnets_too() {
        let (state, network) = (State::new(), network(&["10.0.0.0/24", "fd00:0:0:9::/64"]));
        let six = |seed| free_address(&state, &network, Family::V6, seed);
        assert_eq!(six(0), "fd00:0:0:9::2".parse().ok());
        assert_eq!(
            six(0x1234_5678_0000_0000),
            "fd00:0:0:9:1234:5678:0:2".parse().ok()
        );
        assert_eq!(six((1 << 64) - 3), "fd00:0:0:9:ffff:ffff:ffff:ffff".parse().ok());
        assert_eq!(six((1 << 64) - 2), six(0), "begins again");
        assert_eq!(
            free_address(&state, &self::network(&["10.0.0.0/24"]), Family::V6, 0),
            None
        );
        let four = free_address(&state, &network, Family::V4, 1);
        assert_eq!(four, "10.0.0.3".parse().ok(), "of its own subnet");
    }

    #[test]
    fn the_prefix_of_a_cluster_follows_from_its_id() {
        let one = unique_local(ClusterId(1));
        assert_eq!(one, unique_local(ClusterId(1)));
        assert_ne!(one, unique_local(ClusterId(2)));
        assert_eq!(
            one.to_string(),
            "fd7c:3ccd:10bb::/48",
            "fd, and the first 40 bits of the SHA-256 of the id"
        );
    }
}
