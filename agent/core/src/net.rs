//! What the network of this host has to be: assignments, and the truth about this host's own tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::assignment::{AssignmentSet, Peer, ServiceEndpoints};
use model::object::{Network, Task};
use model::spec::{EndpointMode, PortSpec, Protocol};
use model::{NetworkId, NodeId, TaskId};

/// The wanted network, in plain words; the worker translates it for the dataplane. Addresses of tasks and services are of both
/// families; those of hosts are IPv4.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WantedNet {
    /// Addresses of this host's containers.
    pub endpoints: BTreeMap<IpAddr, Here>,
    /// Virtual addresses: network number and addresses behind, of the same family.
    pub vips: BTreeMap<IpAddr, (u32, Vec<IpAddr>)>,
    /// Published ports: addresses and ports behind.
    pub ports: BTreeMap<(Protocol, u16), Vec<(IpAddr, u16)>>,
    /// Those of them whose connections begin with who the client is (PROXY protocol).
    pub proxied: BTreeSet<(Protocol, u16)>,
    /// Those of them that are published on one address of the host only.
    pub bound: BTreeMap<(Protocol, u16), IpAddr>,
    /// Addresses and ports of this host's tasks to which any host may send clients.
    pub published: BTreeSet<(IpAddr, Protocol, u16)>,
    /// Tasks by id: their network numbers, and whether all are without a way out.
    pub askers: BTreeMap<TaskId, (Vec<u32>, bool)>,
    /// Names by network number, with addresses of both families.
    pub names: BTreeMap<(u32, String), Vec<IpAddr>>,
    /// Names of addresses.
    pub reverse: BTreeMap<IpAddr, String>,
    /// Names of ports, such as `_http._tcp.web`, by network number: the names and ports they stand for (RFC 2782).
    pub located: BTreeMap<(u32, String), Vec<(String, u16)>>,
    /// Where this host is for the others; none while nobody has said so.
    pub own: Option<Ipv4Addr>,
    /// Where all hosts are.
    pub hosts: BTreeSet<Ipv4Addr>,
    /// What is encrypted with, for those hosts that can.
    pub keys: BTreeMap<Ipv4Addr, [u8; 32]>,
    /// Addresses of tasks on other hosts.
    pub remote: BTreeMap<IpAddr, There>,
    /// Subnets of the networks of this host's tasks: address and bits.
    pub subnets: BTreeSet<(IpAddr, u8)>,
    /// Hosts that are not reached, as they said no IPv4 address: what they said.
    pub unreached: BTreeMap<NodeId, String>,
    /// A task of this host is in an encrypted network, or will be: others may send to it at any time.
    pub encrypts: bool,
    /// Hosts that answer when they are asked over the data plane.
    pub answering: BTreeSet<Ipv4Addr>,
    /// Hosts with tasks in encrypted networks that cannot encrypt: those are not reached.
    pub keyless: BTreeSet<NodeId>,
}

/// An address of a container of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// Number of its network.
    pub network: u32,
    /// That has no way out.
    pub internal: bool,
    /// Nothing of it passes between hosts in the open.
    pub encrypted: bool,
}

/// An address of a task on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct There {
    /// Number of its network; zero for one that this host is not in.
    pub network: u32,
    /// Where its host is.
    pub host: Ipv4Addr,
    /// Nothing goes there in the open.
    pub encrypted: bool,
}

/// Subnets of a network: address and bits.
pub fn subnets(network: &Network) -> Vec<(IpAddr, u8)> {
    let subnets = network.subnets.iter();
    subnets.map(|s| (s.network(), s.prefix_len())).collect()
}

/// Derives the network of a node. `attached` tasks have their namespace; of those, `serving` ones take connections.
pub fn wanted(
    set: &AssignmentSet,
    node: NodeId,
    attached: &BTreeSet<TaskId>,
    serving: &BTreeSet<TaskId>,
) -> WantedNet {
    let mut net = WantedNet {
        own: set.peers.get(&node).and_then(|peer| host(&peer.address)),
        subnets: (set.networks.values()).flat_map(|n| subnets(n)).collect(),
        unreached: unreached(&set.peers),
        ..WantedNet::default()
    };
    let number = |id: &NetworkId| set.networks.get(id).map_or(0, |n| n.vni);
    let internal = |id: &NetworkId| set.networks.get(id).is_some_and(|n| n.spec.internal);
    // A task knows it, also of a network that is gone.
    let encrypted =
        |task: &Task, id: &NetworkId| task.spec.networks.iter().any(|n| n.network == *id && n.encrypted);
    net.encrypts = set
        .tasks
        .values()
        .any(|t| t.spec.networks.iter().any(|n| n.encrypted));
    for task in set.tasks.values().filter(|t| attached.contains(&t.id)) {
        let mut asker = (Vec::new(), true);
        for (network, address) in &task.addresses {
            let here = Here {
                network: number(network),
                internal: internal(network),
                encrypted: encrypted(task, network),
            };
            net.endpoints.insert(*address, here);
            // Of one network it may have addresses of both families.
            if !asker.0.contains(&here.network) {
                asker.0.push(here.network);
            }
            asker.1 &= here.internal;
            net.name(here.network, &task.name(), task.container_name(), *address);
        }
        net.askers.insert(task.id, asker);
    }
    for service in set.services.values() {
        add_service(&mut net, set, service, serving, &number);
        let own = set
            .tasks
            .values()
            .filter(|t| t.service == service.id && attached.contains(&t.id));
        for address in own.flat_map(|t| outward(&t.addresses)) {
            let ports = service.ports.iter();
            net.published
                .extend(ports.map(|p| (address, p.protocol, p.target)));
        }
    }
    for task in set.tasks.values().filter(|t| serving.contains(&t.id)) {
        for port in &task.host_ports {
            publish(&mut net, port, outward(&task.addresses));
        }
    }
    add_remote(&mut net, set, node, &number);
    net
}

/// Tasks with a namespace of which a network has other subnets than before.
pub fn grown(old: &AssignmentSet, new: &AssignmentSet, attached: &BTreeSet<TaskId>) -> Vec<TaskId> {
    let grew = |id: &NetworkId| {
        let (old, new) = (old.networks.get(id), new.networks.get(id));
        old.zip(new).is_some_and(|(old, new)| old.subnets != new.subnets)
    };
    let here = new.tasks.values().filter(|t| attached.contains(&t.id));
    let concerned = here.filter(|t| t.addresses.iter().any(|(network, _)| grew(network)));
    concerned.map(|t| t.id).collect()
}

/// Which node is at which address.
pub fn nodes_at(peers: &BTreeMap<NodeId, Peer>) -> BTreeMap<Ipv4Addr, NodeId> {
    peers
        .iter()
        .filter_map(|(id, peer)| Some((host(&peer.address)?, *id)))
        .collect()
}

/// Hosts that cannot be reached at the address they said.
pub fn unreached(peers: &BTreeMap<NodeId, Peer>) -> BTreeMap<NodeId, String> {
    let those = peers.iter().filter(|(_, peer)| host(&peer.address).is_none());
    those.map(|(id, peer)| (*id, peer.address.clone())).collect()
}

/// The host's part of an address such as `10.0.0.1:2377`.
fn host(address: &str) -> Option<Ipv4Addr> {
    match address.parse::<SocketAddr>().ok()?.ip() {
        IpAddr::V4(ip) if !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()) => Some(ip),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Tasks of other hosts in networks that this one has, and their names.
fn add_remote(net: &mut WantedNet, set: &AssignmentSet, node: NodeId, number: &dyn Fn(&NetworkId) -> u32) {
    let hosts: BTreeMap<NodeId, Ipv4Addr> = (set.peers.iter())
        .filter_map(|(id, peer)| Some((*id, host(&peer.address)?)))
        .collect();
    net.hosts = hosts.values().copied().collect();
    let answers = set.peers.iter().filter(|(_, peer)| peer.answers);
    net.answering = answers.filter_map(|(id, _)| hosts.get(id).copied()).collect();
    net.keys = (set.peers.iter())
        .filter_map(|(id, peer)| Some((*hosts.get(id)?, peer.key?.0)))
        .collect();
    let tasks = set.services.values().flat_map(|s| {
        let all = s.backends.iter().chain(&s.others);
        // One without networks or ports is gone, and clients of its ports may still have connections to its tasks.
        let gone = s.networks.is_empty() && s.ports.is_empty();
        all.map(move |task| (task, s, gone))
    });
    for (task, service, gone) in tasks {
        let published = !service.ports.is_empty();
        let Some(host) = task.node.filter(|n| *n != node).and_then(|n| hosts.get(&n)) else {
            continue;
        };
        for (network, address) in &task.addresses {
            let near = set.networks.contains_key(network);
            let here = number(network);
            let there = There {
                network: here,
                host: *host,
                encrypted: service.encrypted.contains(network),
            };
            if there.encrypted && !net.keys.contains_key(host) {
                net.keyless.extend(task.node);
            }
            if gone {
                // Its address may have been given again since.
                net.remote.entry(*address).or_insert(there);
            } else if near || published {
                net.remote.insert(*address, there);
            }
            if near {
                let container = format!("{}.{}", task.name, task.task);
                net.name(here, &task.name, container, *address);
            }
        }
    }
}

impl WantedNet {
    /// Lets the name of a task lead to an address of it in a network, and that to its container.
    fn name(&mut self, network: u32, task: &str, container: String, address: IpAddr) {
        let name = (network, task.to_ascii_lowercase());
        self.names.entry(name).or_default().push(address);
        self.reverse.insert(address, container);
    }
}

/// The addresses by which a task is reached from outside: the first of each family.
fn outward(addresses: &[(NetworkId, IpAddr)]) -> impl Iterator<Item = IpAddr> + '_ {
    let first = |is: fn(&IpAddr) -> bool| addresses.iter().map(|(_, a)| *a).find(is);
    first(IpAddr::is_ipv4).into_iter().chain(first(IpAddr::is_ipv6))
}

/// Publishes a port, whether or not anything is behind it. Of one address of the host it leads to addresses of that family.
fn publish(net: &mut WantedNet, port: &PortSpec, addresses: impl Iterator<Item = IpAddr>) {
    let place = (port.protocol, port.published);
    let host_ip = port.host_ip.parse::<IpAddr>().ok();
    let behind = net.ports.entry(place).or_default();
    if port.proxy {
        net.proxied.insert(place);
    }
    let led = addresses.filter(|a| host_ip.is_none_or(|host| host.is_ipv4() == a.is_ipv4()));
    behind.extend(led.map(|a| (a, port.target)));
    if let Some(address) = host_ip.filter(|a| !a.is_unspecified()) {
        net.bound.insert(place, address);
    }
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
    let others = (service.backends.iter()).filter(|b| !set.tasks.contains_key(&b.task));
    let tasks: Vec<(String, &[(NetworkId, IpAddr)])> = (own.iter())
        .map(|t| (t.name(), t.addresses.as_slice()))
        .chain(others.map(|b| (b.name.clone(), b.addresses.as_slice())))
        .collect();
    for network in &service.networks {
        let here = number(&network.network);
        let in_it = |(n, _): &(NetworkId, IpAddr)| *n == network.network;
        let behind: Vec<IpAddr> = (tasks.iter().flat_map(|(_, list)| *list).filter(|t| in_it(t)))
            .map(|(_, address)| *address)
            .collect();
        let vips: &[IpAddr] = match service.mode {
            EndpointMode::Vip => &network.vips,
            EndpointMode::DnsRr => &[],
        };
        for vip in vips {
            let servers = behind.iter().copied().filter(|a| a.is_ipv4() == vip.is_ipv4());
            net.vips.insert(*vip, (here, servers.collect()));
            net.reverse.insert(*vip, service.name.clone());
        }
        let direct = if vips.is_empty() {
            behind.clone()
        } else {
            vips.to_vec()
        };
        let called = network.aliases.iter().chain(Some(&service.name));
        let called: BTreeSet<String> = called.map(|name| name.to_ascii_lowercase()).collect();
        for name in called {
            for port in service.ports.iter().filter(|p| !p.name.is_empty()) {
                let asked = format!("_{}._{}", port.name.to_ascii_lowercase(), port.protocol.as_str());
                let each = tasks.iter().filter(|(_, list)| list.iter().any(in_it));
                let each: Vec<(String, u16)> = each
                    .map(|(task, _)| (task.to_ascii_lowercase(), port.target))
                    .collect();
                let direct = if vips.is_empty() {
                    each.clone()
                } else {
                    vec![(name.clone(), port.target)]
                };
                // Several services may share an alias.
                for (name, places) in [
                    (format!("{asked}.{name}"), direct),
                    (format!("{asked}.tasks.{name}"), each),
                ] {
                    net.located.entry((here, name)).or_default().extend(places);
                }
            }
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
        publish(net, port, tasks.iter().flat_map(|(_, list)| outward(list)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::ServiceId;
    use model::assignment::{Backend, ServiceNetwork};
    use model::object::{Meta, Network, TunnelKey};
    use model::spec::PublishMode;

    use super::*;

    const NEAR: NetworkId = NetworkId(1);
    const FAR: NetworkId = NetworkId(2);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host_ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, last)
    }

    fn task(id: u128, node: u128, network: NetworkId, address: &str) -> Backend {
        Backend {
            task: TaskId(id),
            node: (node != 0).then_some(NodeId(node)),
            name: format!("web.{id}"),
            addresses: vec![(network, ip(address))],
        }
    }

    fn peer(address: &str) -> Peer {
        Peer {
            address: address.to_owned(),
            key: None,
            answers: false,
        }
    }

    fn service(
        id: u128,
        network: NetworkId,
        ports: Vec<PortSpec>,
        backends: Vec<Backend>,
    ) -> ServiceEndpoints {
        ServiceEndpoints {
            id: ServiceId(id),
            name: format!("s{id}"),
            mode: EndpointMode::DnsRr,
            networks: vec![ServiceNetwork {
                network,
                aliases: Vec::new(),
                vips: Vec::new(),
            }],
            ports,
            backends,
            others: Vec::new(),
            encrypted: Vec::new(),
        }
    }

    #[test]
    fn what_is_on_other_hosts_is_reached_where_a_network_or_a_port_leads_there() {
        let network = Network {
            id: NEAR,
            meta: Meta::default(),
            spec: model::spec::NetworkSpec::default(),
            vni: 7,
            subnets: ["10.0.0.0/24", "fd00::/64"].map(|s| s.parse().unwrap()).into(),
        };
        let port = PortSpec {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published: 8080,
            mode: PublishMode::Ingress,
            host_ip: String::new(),
            proxy: false,
        };
        let mut near = service(
            1,
            NEAR,
            Vec::new(),
            vec![task(1, 1, NEAR, "10.0.0.1"), task(2, 2, NEAR, "10.0.0.2")],
        );
        near.others = vec![
            task(3, 3, NEAR, "10.0.0.3"),
            task(4, 0, NEAR, "10.0.0.4"),
            task(5, 9, NEAR, "10.0.0.5"),
        ];
        let mut published = service(
            2,
            FAR,
            vec![port],
            vec![task(6, 2, FAR, "10.0.1.6"), task(9, 3, FAR, "10.0.1.9")],
        );
        published.encrypted = vec![FAR];
        let far = service(3, FAR, Vec::new(), vec![task(7, 2, FAR, "10.0.1.7")]);
        let mut gone = service(4, FAR, Vec::new(), Vec::new());
        gone.networks.clear();
        gone.others = vec![task(8, 2, FAR, "10.0.1.8"), task(10, 2, NEAR, "10.0.0.10")];
        let address = |n: u128, text: &str| (NodeId(n), text.to_owned());
        let peer = |(node, address): (NodeId, String)| {
            let key = (node == NodeId(2)).then_some(TunnelKey([2; 32]));
            (
                node,
                Peer {
                    address,
                    key,
                    answers: node == NodeId(3),
                },
            )
        };
        let set = AssignmentSet {
            networks: BTreeMap::from([(NEAR, Arc::new(network))]),
            services: [near, published, far, gone].map(|s| (s.id, Arc::new(s))).into(),
            peers: Arc::new(BTreeMap::from(
                [
                    address(1, "10.99.0.1:2377"),
                    address(2, "10.99.0.2:2377"),
                    address(3, "10.99.0.3:1"),
                    address(4, "[fd00::4]:2377"),
                    address(5, ""),
                ]
                .map(peer),
            )),
            ..AssignmentSet::default()
        };
        let net = wanted(&set, NodeId(1), &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(net.subnets, [(ip("10.0.0.0"), 24), (ip("fd00::"), 64)].into());
        assert_eq!(net.own, Some(host_ip(1)));
        assert_eq!(net.hosts, [1, 2, 3].map(|n| Ipv4Addr::new(10, 99, 0, n)).into());
        assert_eq!(
            net.unreached,
            [address(4, "[fd00::4]:2377"), address(5, "")].into()
        );
        let there = |address: &str, network, host, encrypted| {
            let there = There {
                network,
                host: host_ip(host),
                encrypted,
            };
            (ip(address), there)
        };
        assert_eq!(
            net.remote,
            BTreeMap::from([
                there("10.0.0.2", 7, 2, false),
                there("10.0.0.3", 7, 3, false),
                there("10.0.1.6", 0, 2, true),
                there("10.0.1.9", 0, 3, true),
                there("10.0.1.8", 0, 2, false),
                there("10.0.0.10", 7, 2, false),
            ]),
            "not its own, nor where nobody has said, nor in networks that are not its"
        );
        assert_eq!(net.keys, [(host_ip(2), [2; 32])].into());
        assert_eq!(net.keyless, [NodeId(3)].into());
        assert_eq!(net.answering, [host_ip(3)].into());
        let name = |name: &str| net.names.get(&(7, name.to_owned())).cloned();
        assert_eq!(
            name("web.3"),
            Some(vec![ip("10.0.0.3")]),
            "a task has its name before it serves"
        );
        let both = ["10.0.0.1", "10.0.0.2"].map(ip);
        assert_eq!(name("s1"), Some(both.into()));
        let located: Vec<_> = net
            .located
            .iter()
            .map(|((n, name), to)| (*n, name.as_str(), to.clone()))
            .collect();
        assert_eq!(located, [], "no port has a name");
        assert_eq!(name("web.6"), None);
        assert_eq!(net.reverse[&ip("10.0.0.2")], format!("web.2.{}", TaskId(2)));
    }

    #[test]
    fn names_and_virtual_addresses_and_ports_lead_to_both_families() {
        let network = Network {
            id: NEAR,
            meta: Meta::default(),
            spec: model::spec::NetworkSpec {
                ipv6: true,
                ..Default::default()
            },
            vni: 7,
            subnets: ["10.0.0.0/24", "fd00::/64"].map(|s| s.parse().unwrap()).into(),
        };
        let both = |last: u8| -> Vec<(NetworkId, IpAddr)> {
            let texts = [format!("10.0.0.{last}"), format!("fd00::{last}")];
            texts.map(|a| (NEAR, a.parse().unwrap())).into()
        };
        let here: Task = Task {
            id: TaskId(1),
            meta: Meta::default(),
            service: ServiceId(1),
            service_name: "s1".into(),
            slot: model::object::SlotKey::Replica(1),
            spec: Arc::default(),
            spec_version: 1,
            node: Some(NodeId(1)),
            desired: model::task_state::DesiredState::Running,
            run_at: model::Timestamp(0),
            status: model::object::TaskStatus::new(model::Timestamp(0)),
            running_at: None,
            unready_at: None,
            ended_at: None,
            addresses: both(2),
            host_ports: Vec::new(),
            iteration: 0,
            fence: 0,
            granted: Default::default(),
            moving: 0,
        };
        let there = Backend {
            addresses: both(3),
            name: "s1.2".into(),
            ..task(2, 2, NEAR, "10.0.0.3")
        };
        let port = |host_ip: &str| PortSpec {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published: 8080,
            mode: PublishMode::Ingress,
            host_ip: host_ip.into(),
            proxy: false,
        };
        let published = |host_ip: &str, mode, vips: &[&str]| {
            let mut web = service(1, NEAR, vec![port(host_ip)], vec![there.clone()]);
            web.mode = mode;
            web.networks[0].vips = vips.iter().map(|v| v.parse().unwrap()).collect();
            let set = AssignmentSet {
                tasks: [(here.id, Arc::new(here.clone()))].into(),
                networks: [(NEAR, Arc::new(network.clone()))].into(),
                services: [(web.id, Arc::new(web))].into(),
                peers: Arc::new(BTreeMap::from([
                    (NodeId(1), peer("10.99.0.1:1")),
                    (NodeId(2), peer("10.99.0.2:1")),
                ])),
                ..AssignmentSet::default()
            };
            let own = BTreeSet::from([here.id]);
            wanted(&set, NodeId(1), &own, &own)
        };
        let all = |mode, vips: &[&str]| published("", mode, vips);
        let here_in = Here {
            network: 7,
            internal: false,
            encrypted: false,
        };
        let there_in = There {
            network: 7,
            host: host_ip(2),
            encrypted: false,
        };
        let texts = |net: &WantedNet, name: &str| -> Vec<String> {
            let all = &net.names[&(7, name.to_owned())];
            all.iter().map(ToString::to_string).collect()
        };
        let net = all(EndpointMode::Vip, &["10.0.0.9", "fd00::9"]);
        assert_eq!(texts(&net, "s1"), ["10.0.0.9", "fd00::9"]);
        let tasks = ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"];
        assert_eq!(texts(&net, "tasks.s1"), tasks);
        assert_eq!(texts(&net, "s1.1"), ["10.0.0.2", "fd00::2"]);
        assert_eq!(texts(&net, "s1.2"), ["10.0.0.3", "fd00::3"]);
        for (address, name) in [
            ("10.0.0.9", "s1".to_owned()),
            ("fd00::9", "s1".to_owned()),
            ("fd00::2", here.container_name()),
            ("fd00::3", format!("s1.2.{}", TaskId(2))),
        ] {
            assert_eq!(
                net.reverse[&address.parse::<IpAddr>().unwrap()],
                name,
                "{address}"
            );
        }
        assert_eq!(
            net.askers[&here.id],
            (vec![7], false),
            "in one network, not in two"
        );
        let behind = |texts: [&str; 2]| (7, texts.map(ip).to_vec());
        assert_eq!(
            net.vips,
            [
                (ip("10.0.0.9"), behind(["10.0.0.2", "10.0.0.3"])),
                (ip("fd00::9"), behind(["fd00::2", "fd00::3"])),
            ]
            .into()
        );
        let own = ["10.0.0.2", "fd00::2"].map(ip);
        assert_eq!(net.endpoints, own.map(|a| (a, here_in)).into());
        let others = ["10.0.0.3", "fd00::3"].map(ip);
        assert_eq!(net.remote, others.map(|a| (a, there_in)).into());
        assert_eq!(net.published, own.map(|a| (a, Protocol::Tcp, 80)).into());
        let place = (Protocol::Tcp, 8080);
        let open = |host_ip: &str| {
            let net = published(host_ip, EndpointMode::DnsRr, &[]);
            let led: Vec<String> = net.ports[&place].iter().map(|(a, _)| a.to_string()).collect();
            (led.join(" "), net.bound.get(&place).copied())
        };
        for (host_ip, led, bound) in [
            ("", "10.0.0.2 fd00::2 10.0.0.3 fd00::3", None),
            ("0.0.0.0", "10.0.0.2 10.0.0.3", None),
            ("10.99.0.1", "10.0.0.2 10.0.0.3", Some(ip("10.99.0.1"))),
        ] {
            assert_eq!(open(host_ip), (led.to_owned(), bound), "{host_ip}");
        }
        assert_eq!(texts(&all(EndpointMode::DnsRr, &[]), "s1"), tasks);
    }

    #[test]
    fn ports_with_a_name_are_found_by_it() {
        let port = PortSpec {
            name: "HTTP".into(),
            protocol: Protocol::Tcp,
            target: 80,
            published: 8080,
            mode: PublishMode::Ingress,
            host_ip: String::new(),
            proxy: false,
        };
        let nameless = PortSpec {
            name: String::new(),
            published: 9090,
            ..port.clone()
        };
        let tasks = vec![task(1, 2, NEAR, "10.0.0.1"), task(2, 2, FAR, "10.0.1.2")];
        let mut web = service(1, NEAR, vec![port, nameless], tasks);
        web.networks[0].aliases = vec!["Web".into(), "s1".into()];
        let with = |mode, vip: Option<&str>| {
            let mut web = web.clone();
            web.mode = mode;
            web.networks[0].vips = vip.iter().map(|v| ip(v)).collect();
            let set = AssignmentSet {
                services: [(web.id, Arc::new(web))].into(),
                ..AssignmentSet::default()
            };
            let net = wanted(&set, NodeId(1), &BTreeSet::new(), &BTreeSet::new());
            assert_eq!(
                net.names[&(0, "tasks.s1".to_owned())],
                [ip("10.0.0.1")],
                "once, although it is named twice"
            );
            net.located
        };
        let to = |name: &str| vec![(name.to_owned(), 80)];
        let all = |direct: [&str; 2]| {
            BTreeMap::from([
                ((0, "_http._tcp.s1".to_owned()), to(direct[0])),
                ((0, "_http._tcp.web".to_owned()), to(direct[1])),
                ((0, "_http._tcp.tasks.s1".to_owned()), to("web.1")),
                ((0, "_http._tcp.tasks.web".to_owned()), to("web.1")),
            ])
        };
        assert_eq!(with(EndpointMode::Vip, Some("10.0.0.9")), all(["s1", "web"]));
        assert_eq!(with(EndpointMode::DnsRr, None), all(["web.1", "web.1"]));
    }
}
