//! Networks.

use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use model::ids::IdSource;
use model::object::{Key, Meta, Network, Object};
use model::spec::{Family, NetworkSpec, check_name};
use model::{Level, NetworkId, Timestamp};

use super::file::{gone, in_use};
use super::{Admitted, Refusal, RefusalKind, check_version, level, user_of, validate};
use crate::allocate;
use crate::state::{Kind, Scratch, State};

/// Subnets of a network.
const SUBNETS_MAX: usize = 64;
/// Most bits of an IPv4 subnet: it has addresses for five.
const PREFIX_MAX: u8 = 29;
/// Bits of an IPv6 subnet: no more than a site is given (RFC 6177), and addresses for more than a few.
const IPV6_PREFIXES: std::ops::RangeInclusive<u8> = 48..=120;
/// Where no network over several hosts can be.
const IPV6_RESERVED: [(&str, &str); 3] = [
    (
        "::/8",
        "loopback, addresses of IPv4 and others that are reserved (RFC 4291)",
    ),
    ("fe80::/10", "addresses of one link (RFC 4291)"),
    ("ff00::/8", "multicast (RFC 4291)"),
];

/// Makes a network.
///
/// # Errors
/// [`Refusal`] when its name is taken, its driver or subnet cannot be used, or the pools are empty.
pub fn create_network(
    state: &State,
    spec: NetworkSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let id = add(&mut scratch, spec, now, ids)?;
    Ok(Admitted::new(scratch, vec![Key::Network(id)]))
}

pub(super) fn add(
    scratch: &mut Scratch,
    mut spec: NetworkSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<NetworkId, Refusal> {
    check_name("network", &spec.name)?;
    validate::labels("network", &spec.name, &spec.labels)?;
    let name = spec.name.clone();
    if scratch.named(Kind::Network, &name).is_some() {
        return Err(Refusal::taken(Kind::Network, &name));
    }
    if spec.driver.is_empty() {
        spec.driver = "overlay".into();
    }
    if spec.driver != "overlay" {
        return Err(Refusal::invalid(format!(
            "network {name}: there is no driver {}; overlay is the only one",
            spec.driver
        )));
    }
    let what = format!("network {name}");
    match spec.encrypted() {
        Ok(false) => {}
        Ok(true) => level::needs(scratch, Level::ENCRYPTED, &what, "send in the open")?,
        Err(value) => {
            return Err(Refusal::invalid(format!(
                "{what}: the option encrypted is \"{value}\": write encrypted, encrypted=true or encrypted=false"
            )));
        }
    }
    if spec.ipv6 {
        level::needs(scratch, Level::IPV6, &what, "give its tasks no IPv6")?;
    }
    if spec.ingress && scratch.ingress().is_some() {
        return Err(Refusal::new(
            RefusalKind::AlreadyExists,
            "there is an ingress network already",
        ));
    }
    let subnets = subnets(scratch, &spec)?;
    let vni = allocate::free_vni(scratch).ok_or_else(|| Refusal::invalid("every network number is taken"))?;
    let id = NetworkId::new(ids);
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    scratch.put(Object::Network(Arc::new(Network {
        id,
        meta,
        spec,
        subnets,
        vni,
    })));
    Ok(id)
}

/// The subnets asked for, and one of each family of which none was.
fn subnets(state: &State, spec: &NetworkSpec) -> Result<Vec<IpNet>, Refusal> {
    if spec.subnets.len() > SUBNETS_MAX {
        return Err(too_many(&spec.name));
    }
    for (at, subnet) in spec.subnets.iter().enumerate() {
        check_subnet(state, spec, subnet, &spec.subnets[..at])?;
    }
    let mut subnets = spec.subnets.clone();
    for family in spec.families() {
        if subnets.iter().any(|s| Family::of_subnet(s) == *family) {
            continue;
        }
        let cluster = state
            .cluster()
            .ok_or_else(|| Refusal::invalid("there is no cluster"))?;
        let subnet = allocate::free_subnet(state, cluster, *family, &subnets).ok_or_else(|| {
            Refusal::invalid(format!(
                "network {}: the {} address pools of the cluster are used up; name a subnet of your own or remove a network",
                spec.name,
                family.as_str()
            ))
        })?;
        subnets.push(subnet);
    }
    Ok(subnets)
}

fn too_many(name: &str) -> Refusal {
    Refusal::invalid(format!("network {name}: more than {SUBNETS_MAX} subnets"))
}

/// Refuses a subnet that no network of this spec can have.
fn check_shape(spec: &NetworkSpec, subnet: &IpNet) -> Result<(), Refusal> {
    let name = &spec.name;
    let is_network = subnet.trunc() == *subnet;
    let problem = match subnet {
        IpNet::V4(net) if !is_network || net.prefix_len() > PREFIX_MAX => format!(
            "{subnet} cannot be its subnet; write an IPv4 network of at least 8 addresses, such as {}",
            subnet.trunc()
        ),
        IpNet::V4(_) => return Ok(()),
        IpNet::V6(_) if !spec.ipv6 => format!(
            "{subnet} is an IPv6 subnet, and it has IPv4 only: make it with --ipv6 (in a stack file enable_ipv6: true)"
        ),
        IpNet::V6(net) if !is_network || !IPV6_PREFIXES.contains(&net.prefix_len()) => format!(
            "{subnet} cannot be its subnet; write an IPv6 network of /48 to /120, such as {}",
            Ipv6Net::new_assert(net.network(), 64).trunc()
        ),
        IpNet::V6(net) => match reserved(net) {
            Some(what) => format!(
                "{subnet} cannot be its subnet, as there are {what}; leave it out to have one chosen, or write one such as \
                 fd12:3456:789a::/64"
            ),
            None => return Ok(()),
        },
    };
    Err(Refusal::invalid(format!("network {name}: {problem}")))
}

/// What is in a subnet that is of no use to a network, if that is so.
fn reserved(net: &Ipv6Net) -> Option<&'static str> {
    let within = |range: &str| {
        let range: Result<Ipv6Net, _> = range.parse();
        range.is_ok_and(|range| range.contains(net))
    };
    (IPV6_RESERVED.iter().find(|(range, _)| within(range))).map(|(_, what)| *what)
}

/// Refuses a subnet that cannot be used, or that overlaps with another network or the `others` of its own.
fn check_subnet(state: &State, spec: &NetworkSpec, subnet: &IpNet, others: &[IpNet]) -> Result<(), Refusal> {
    check_shape(spec, subnet)?;
    let name = &spec.name;
    let own = |other: &&IpNet| other.contains(&subnet.network()) || subnet.contains(&other.network());
    if let Some(other) = others.iter().find(own) {
        return Err(Refusal::invalid(format!(
            "network {name}: {subnet} overlaps with its subnet {other}"
        )));
    }
    if let Some(other) = allocate::overlaps(state, subnet) {
        return Err(Refusal::new(
            RefusalKind::AlreadyExists,
            format!("network {name}: {subnet} overlaps with network {other}"),
        ));
    }
    if let Some(holder) = allocate::held_within(state, subnet) {
        return Err(Refusal::new(
            RefusalKind::InUse,
            format!(
                "network {name}: {subnet} has an address that {holder}: wait a moment, or choose another subnet"
            ),
        ));
    }
    Ok(())
}

/// Gives a network other labels, and more subnets after those it has.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, anything else differs, or a subnet cannot be used.
pub fn update_network(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    spec: &NetworkSpec,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Network, reference)?;
    let mut scratch = Scratch::new(state);
    let Some(Object::Network(known)) = state.object(key) else {
        return Err(gone("network", reference));
    };
    let name = &known.spec.name;
    check_version(Kind::Network, name, expected, known.meta.version)?;
    validate::labels("network", name, &spec.labels)?;
    let alike = NetworkSpec {
        labels: spec.labels.clone(),
        subnets: spec.subnets.clone(),
        ..known.spec.clone()
    };
    let kept = spec.subnets == known.spec.subnets;
    let more = if kept {
        Some(&[][..])
    } else {
        spec.subnets.strip_prefix(&*known.subnets)
    };
    let (true, Some(more)) = (alike == *spec, more) else {
        return Err(Refusal::invalid(format!(
            "network {name}: of a network labels can be changed and subnets added, nothing else: make another"
        )));
    };
    let mut subnets = known.subnets.clone();
    if subnets.len() + more.len() > SUBNETS_MAX {
        return Err(too_many(name));
    }
    for subnet in more {
        check_subnet(state, spec, subnet, &subnets)?;
        subnets.push(*subnet);
    }
    scratch.put(Object::Network(Arc::new(Network {
        spec: spec.clone(),
        subnets,
        meta: Meta {
            updated_at: now,
            ..known.meta
        },
        ..(*known).clone()
    })));
    Ok(Admitted::new(scratch, vec![key]))
}

/// Removes networks, all or none.
///
/// # Errors
/// [`Refusal`] when one is missing, predefined, or used by a service.
pub fn remove_networks(state: &State, references: &[String]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for reference in references {
        let key = scratch.find(Kind::Network, reference)?;
        let Key::Network(id) = key else { continue };
        let Some(network) = scratch.network(id).cloned() else {
            continue;
        };
        if network.spec.ingress {
            return Err(Refusal::invalid(
                "network ingress belongs to the cluster and cannot be removed",
            ));
        }
        if let Some(user) = user_of(&scratch, |t| t.networks.iter().any(|n| n.network == id)) {
            return Err(in_use("network", &network.spec.name, &user));
        }
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}
