//! Addresses of a network, subnets of the pools, and network numbers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use model::object::{Cluster, Network};

use crate::state::State;

/// First network number given; lower ones are kept for operators (as Docker does).
const VNI_FIRST: u32 = 4096;
/// Numbers have 24 bits (RFC 7348).
const VNI_END: u32 = 1 << 24;

/// A free address of the network's first IPv4 subnet, found from a place that `seed` chooses.
///
/// The place spreads over the subnet, so that an address just given back is seldom given again at once. The network
/// address, the first host (kept as gateway) and the broadcast address are never given.
pub(crate) fn free_address(state: &State, network: &Network, seed: u128) -> Option<IpAddr> {
    for subnet in &network.subnets {
        let IpNet::V4(net) = subnet else { continue };
        let size = host_count(net);
        if size == 0 {
            continue;
        }
        let base = u32::from(net.network()) + 2;
        let start = u32::try_from(seed % u128::from(size)).unwrap_or(0);
        for step in 0..size {
            let address = IpAddr::V4(Ipv4Addr::from(base + (start + step) % size));
            if !state.address_in_use(network.id, address) {
                return Some(address);
            }
        }
    }
    None
}

/// Whether an address is one that a network may give.
pub(crate) fn can_be_given(network: &Network, address: IpAddr) -> bool {
    let within = |subnet: &IpNet| match (subnet, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => {
            let first = u32::from(net.network()) + 2;
            (first..first + host_count(net)).contains(&u32::from(address))
        }
        (IpNet::V4(_) | IpNet::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => false,
    };
    network.subnets.iter().any(within)
}

/// Addresses of a subnet that can be given.
fn host_count(net: &Ipv4Net) -> u32 {
    let bits = 32 - u32::from(net.prefix_len());
    if bits < 2 {
        0
    } else {
        (1u32.checked_shl(bits).map_or(u32::MAX, |n| n - 1)) - 2
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

/// The first subnet of the cluster's pools that no network and no task still uses.
pub(crate) fn free_subnet(state: &State, cluster: &Cluster) -> Option<IpNet> {
    let used: Vec<IpNet> = state.networks().flat_map(|n| n.subnets.iter().copied()).collect();
    let held: Vec<IpAddr> = held(state).map(|(address, _)| address).collect();
    for pool in &cluster.address_pools {
        let IpNet::V4(pool) = pool else { continue };
        let Ok(mut candidates) = pool.subnets(cluster.subnet_prefix.max(pool.prefix_len())) else {
            continue;
        };
        let free = candidates.find(|c| {
            let c = IpNet::V4(*c);
            !used
                .iter()
                .any(|u| u.contains(&c.network()) || c.contains(&u.network()))
                && !held.iter().any(|a| c.contains(a))
        });
        if let Some(net) = free {
            return Some(IpNet::V4(net));
        }
    }
    None
}

/// The lowest free network number.
pub(crate) fn free_vni(state: &State) -> Option<u32> {
    let used: std::collections::BTreeSet<u32> = state.networks().map(|n| n.vni).collect();
    (VNI_FIRST..VNI_END).find(|v| !used.contains(v))
}
