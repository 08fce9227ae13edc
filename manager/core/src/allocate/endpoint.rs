//! Ports with their numbers, and virtual addresses, of a service.

use std::net::IpAddr;
use std::sync::Arc;

use model::ServiceId;
use model::object::{Endpoint, Service};
use model::spec::{EndpointMode, Family, PortSpec, Protocol, PublishMode, ServiceMode, ServiceSpec};

use super::port::free_port;
use super::{VipError, no_free_address, vips};
use crate::state::State;

/// Why a service cannot be reached in the way its spec asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("service {service}: a port in ingress mode needs endpoint mode vip; use mode=host with dnsrr")]
    NeedsVip { service: String },
    #[error("service {service}: every port from 30000 to 32767 is taken")]
    NoPort { service: String },
    #[error(
        "service {service}: port {port}/{} is already published by service {holder}: choose another",
        protocol.as_str()
    )]
    Taken {
        service: String,
        port: u16,
        protocol: Protocol,
        holder: String,
    },
    #[error(
        "service {service}: network {network} has {} for it: remove tasks, or add a subnet (rswarm network update --subnet-add)",
        no_free_address(*family)
    )]
    NoAddress {
        service: String,
        network: String,
        family: Family,
    },
    #[error(
        "service {service}: network {network} has no IPv6, so not the address {address}: leave it out, or make another network with --ipv6 (in a stack file enable_ipv6: true)"
    )]
    NoIpv6 {
        service: String,
        network: String,
        address: IpAddr,
    },
    #[error(
        "service {service}: an address of its own in network {network} is the one that its name leads to and its tasks share: use endpoint mode vip"
    )]
    Fixed { service: String, network: String },
    #[error("service {service}: address {address} of network {network} is held by {holder}: choose another")]
    AddressTaken {
        service: String,
        network: String,
        address: IpAddr,
        holder: String,
    },
    #[error(
        "service {service}: network {network} has no address {address} to give: choose one of its subnets (rswarm network inspect {network}), not the first two, nor of IPv4 the last"
    )]
    AddressOutside {
        service: String,
        network: String,
        address: IpAddr,
    },
}

/// Another service that has a port wherever this one would: on all nodes, or, both being global, on each.
fn holder<'a>(
    state: &'a State,
    spec: &ServiceSpec,
    id: ServiceId,
    port: &PortSpec,
) -> Option<&'a Arc<Service>> {
    if port.published == 0 {
        return None;
    }
    let clash = |other: &Service, p: &PortSpec| {
        let same = (p.protocol, p.published) == (port.protocol, port.published);
        let everywhere = p.mode == PublishMode::Ingress || port.mode == PublishMode::Ingress;
        let on_each = other.spec.mode == ServiceMode::Global && spec.mode == ServiceMode::Global;
        same && (everywhere || on_each)
    };
    state
        .services()
        .filter(|s| s.id != id)
        .find(|s| s.endpoint.ports.iter().any(|p| clash(s, p)))
}

/// What the service has already it keeps; numbers that were asked for come before those that are chosen.
pub(crate) fn endpoint(
    state: &State,
    spec: &ServiceSpec,
    id: ServiceId,
    have: &Endpoint,
) -> Result<Endpoint, EndpointError> {
    let service = || spec.name.clone();
    let mut ports = spec.endpoint.ports.clone();
    for port in &mut ports {
        if port.mode == PublishMode::Host && port.published == 0 {
            port.published = port.target;
        }
        if port.mode == PublishMode::Ingress && spec.endpoint.mode == EndpointMode::DnsRr {
            return Err(EndpointError::NeedsVip { service: service() });
        }
        if let Some(holder) = holder(state, spec, id, port) {
            return Err(EndpointError::Taken {
                service: service(),
                port: port.published,
                protocol: port.protocol,
                holder: holder.spec.name.clone(),
            });
        }
    }
    for at in 0..ports.len() {
        if ports[at].published != 0 {
            continue;
        }
        let (target, protocol) = (ports[at].target, ports[at].protocol);
        let used = |p: &PortSpec| p.protocol == protocol && p.published != 0;
        let taken: Vec<u16> = ports.iter().filter(|p| used(p)).map(|p| p.published).collect();
        let kept = have.ports.iter().find(|p| {
            let same = p.target == target && p.protocol == protocol && p.mode == PublishMode::Ingress;
            same && !taken.contains(&p.published)
        });
        ports[at].published = match kept {
            Some(p) => p.published,
            None => free_port(state, protocol, &taken)
                .ok_or_else(|| EndpointError::NoPort { service: service() })?,
        };
    }
    let fixed = spec
        .task
        .networks
        .iter()
        .find(|n| n.address.is_some() || n.address6.is_some());
    if let Some(attachment) = fixed.filter(|_| spec.endpoint.mode == EndpointMode::DnsRr) {
        return Err(EndpointError::Fixed {
            service: service(),
            network: attachment.name.clone(),
        });
    }
    let vips = vips(state, spec, &have.vips, id.0).map_err(|e| match e {
        VipError::Full { network, family } => EndpointError::NoAddress {
            service: service(),
            network,
            family,
        },
        VipError::NoIpv6 { network, address } => EndpointError::NoIpv6 {
            service: service(),
            network,
            address,
        },
        VipError::Taken {
            network,
            address,
            holder,
        } => EndpointError::AddressTaken {
            service: service(),
            network,
            address,
            holder,
        },
        VipError::Outside { network, address } => EndpointError::AddressOutside {
            service: service(),
            network,
            address,
        },
    })?;
    Ok(Endpoint { ports, vips })
}
