//! Ports with their numbers, and virtual addresses, of a service.

use model::ServiceId;
use model::object::Endpoint;
use model::spec::{EndpointMode, PortSpec, Protocol, PublishMode, ServiceSpec};

use super::port::free_port;
use super::vips;
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
        "service {service}: network {network} has no free address for it: remove tasks, or recreate the network with a larger subnet"
    )]
    NoAddress { service: String, network: String },
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
        if port.mode == PublishMode::Host {
            if port.published == 0 {
                port.published = port.target;
            }
            continue;
        }
        if spec.endpoint.mode == EndpointMode::DnsRr {
            return Err(EndpointError::NeedsVip { service: service() });
        }
        let holder = state
            .port_holder(port.protocol, port.published)
            .filter(|s| s.id != id);
        if let Some(holder) = holder {
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
    let vips = vips(state, spec, &have.vips, id.0).map_err(|network| EndpointError::NoAddress {
        service: service(),
        network,
    })?;
    Ok(Endpoint { ports, vips })
}
