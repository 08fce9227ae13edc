//! What the network of this host has to be: assignments, and the truth about this host's own tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use model::assignment::{AssignmentSet, ServiceEndpoints};
use model::object::Task;
use model::spec::{EndpointMode, PortSpec, Protocol};
use model::{NetworkId, TaskId};

/// The wanted network, in plain words; the worker translates it for the dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WantedNet {
    /// Addresses of this host's containers: network number, and whether it has no way out.
    pub endpoints: BTreeMap<Ipv4Addr, (u32, bool)>,
    /// Virtual addresses: network number and addresses behind.
    pub vips: BTreeMap<Ipv4Addr, (u32, Vec<Ipv4Addr>)>,
    /// Published ports: addresses and ports behind.
    pub ports: BTreeMap<(Protocol, u16), Vec<(Ipv4Addr, u16)>>,
    /// Tasks by id: their network numbers, and whether all are without a way out.
    pub askers: BTreeMap<TaskId, (Vec<u32>, bool)>,
    /// Names by network number.
    pub names: BTreeMap<(u32, String), Vec<Ipv4Addr>>,
    /// Names of addresses.
    pub reverse: BTreeMap<Ipv4Addr, String>,
}

/// Derives the network. `attached` tasks have their namespace; of those, `serving` ones take connections.
pub fn wanted(set: &AssignmentSet, attached: &BTreeSet<TaskId>, serving: &BTreeSet<TaskId>) -> WantedNet {
    let mut net = WantedNet::default();
    let number = |id: &NetworkId| set.networks.get(id).map_or(0, |n| n.vni);
    let internal = |id: &NetworkId| set.networks.get(id).is_some_and(|n| n.spec.internal);
    for task in set.tasks.values().filter(|t| attached.contains(&t.id)) {
        let mut asker = (Vec::new(), true);
        for (network, address) in v4(&task.addresses) {
            net.endpoints
                .insert(address, (number(&network), internal(&network)));
            net.reverse.insert(address, task.container_name());
            net.names
                .entry((number(&network), task.name().to_ascii_lowercase()))
                .or_default()
                .push(address);
            asker.0.push(number(&network));
            asker.1 &= internal(&network);
        }
        net.askers.insert(task.id, asker);
    }
    for service in set.services.values() {
        add_service(&mut net, set, service, serving, &number);
    }
    for task in set.tasks.values().filter(|t| serving.contains(&t.id)) {
        for port in &task.host_ports {
            publish(&mut net, port, v4(&task.addresses).next().map(|(_, a)| a));
        }
    }
    net
}

fn v4(addresses: &[(NetworkId, IpAddr)]) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> + '_ {
    addresses.iter().filter_map(|(n, a)| match a {
        IpAddr::V4(a) => Some((*n, *a)),
        IpAddr::V6(_) => None,
    })
}

fn publish(net: &mut WantedNet, port: &PortSpec, address: Option<Ipv4Addr>) {
    let behind = net.ports.entry((port.protocol, port.published)).or_default();
    behind.extend(address.map(|a| (a, port.target)));
}

fn add_service(
    net: &mut WantedNet,
    set: &AssignmentSet,
    service: &ServiceEndpoints,
    serving: &BTreeSet<TaskId>,
    number: &dyn Fn(&NetworkId) -> u32,
) {
    // Of this host's own tasks we know better than the manager; of the others it knows better.
    let own: Vec<&Task> = set
        .tasks
        .values()
        .filter(|t| t.service == service.id && serving.contains(&t.id))
        .map(|t| &**t)
        .collect();
    let addresses: Vec<&[(NetworkId, IpAddr)]> = own
        .iter()
        .map(|t| t.addresses.as_slice())
        .chain(
            service
                .backends
                .iter()
                .filter(|b| !set.tasks.contains_key(&b.task))
                .map(|b| b.addresses.as_slice()),
        )
        .collect();
    for network in &service.networks {
        let here = number(&network.network);
        let behind: Vec<Ipv4Addr> = addresses
            .iter()
            .flat_map(|list| v4(list))
            .filter(|(n, _)| *n == network.network)
            .map(|(_, a)| a)
            .collect();
        let vip = match (service.mode, network.vip) {
            (EndpointMode::Vip, Some(IpAddr::V4(vip))) => Some(vip),
            (EndpointMode::Vip | EndpointMode::DnsRr, _) => None,
        };
        if let Some(vip) = vip {
            net.vips.insert(vip, (here, behind.clone()));
            net.reverse.insert(vip, service.name.clone());
        }
        let direct = vip.map_or_else(|| behind.clone(), |v| vec![v]);
        for name in network.aliases.iter().chain(Some(&service.name)) {
            let name = name.to_ascii_lowercase();
            net.names
                .entry((here, name.clone()))
                .or_default()
                .extend(direct.iter());
            net.names
                .entry((here, format!("tasks.{name}")))
                .or_default()
                .extend(behind.iter());
        }
    }
    for port in &service.ports {
        net.ports.entry((port.protocol, port.published)).or_default();
        for list in &addresses {
            publish(net, port, v4(list).next().map(|(_, a)| a));
        }
    }
}
