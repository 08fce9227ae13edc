//! Assignments: a set or a difference as one message, and one frame back into a difference.

use std::sync::Arc;

use model::assignment as m;
use model::object::Key;
use model::spec::EndpointMode;

use super::object::{addresses, wire_addresses};
use super::{WireError, all, parse, wire};
use crate::dispatch as w;

impl From<&m::ServiceEndpoints> for w::ServiceEndpoints {
    fn from(s: &m::ServiceEndpoints) -> Self {
        Self {
            id: s.id.to_string(),
            name: s.name.clone(),
            dnsrr: s.mode == EndpointMode::DnsRr,
            networks: s
                .networks
                .iter()
                .map(|n| w::ServiceNetwork {
                    network: n.network.to_string(),
                    aliases: n.aliases.clone(),
                    vip: n.vips.first().map(|v| v.to_string()).unwrap_or_default(),
                    more_vips: n.vips.iter().skip(1).map(|v| v.to_string()).collect(),
                })
                .collect(),
            ports: wire(&s.ports),
            backends: s.backends.iter().map(backend).collect(),
            others: s.others.iter().map(backend).collect(),
            encrypted: s.encrypted.iter().map(ToString::to_string).collect(),
        }
    }
}

fn backend(b: &m::Backend) -> w::Backend {
    w::Backend {
        task: b.task.to_string(),
        name: b.name.clone(),
        addresses: wire_addresses(&b.addresses),
        node: b.node.map(|node| node.to_string()).unwrap_or_default(),
    }
}

impl TryFrom<w::ServiceEndpoints> for m::ServiceEndpoints {
    type Error = WireError;
    fn try_from(s: w::ServiceEndpoints) -> Result<Self, WireError> {
        let network = |n: w::ServiceNetwork| {
            Ok(m::ServiceNetwork {
                network: parse(&n.network, "services.networks.network")?,
                aliases: n.aliases,
                vips: (Some(&n.vip).filter(|vip| !vip.is_empty()).into_iter())
                    .chain(&n.more_vips)
                    .map(|vip| parse(vip, "services.networks.vip"))
                    .collect::<Result<_, _>>()?,
            })
        };
        let backend = |b: w::Backend| {
            Ok(m::Backend {
                task: parse(&b.task, "services.backends.task")?,
                node: if b.node.is_empty() {
                    None
                } else {
                    Some(parse(&b.node, "services.backends.node")?)
                },
                name: b.name,
                addresses: addresses(b.addresses)?,
            })
        };
        let backends =
            |list: Vec<w::Backend>| list.into_iter().map(backend).collect::<Result<_, WireError>>();
        Ok(Self {
            id: parse(&s.id, "services.id")?,
            name: s.name,
            mode: if s.dnsrr {
                EndpointMode::DnsRr
            } else {
                EndpointMode::Vip
            },
            networks: s
                .networks
                .into_iter()
                .map(network)
                .collect::<Result<_, WireError>>()?,
            ports: all(s.ports)?,
            backends: backends(s.backends)?,
            others: backends(s.others)?,
            encrypted: (s.encrypted.iter())
                .map(|id| parse(id, "services.encrypted"))
                .collect::<Result<_, WireError>>()?,
        })
    }
}

/// A difference as one message; the sender splits it into frames where it is large.
impl From<&m::AssignmentDiff> for w::AssignmentsMessage {
    fn from(d: &m::AssignmentDiff) -> Self {
        let keys = (d.remove_tasks.iter().map(|id| Key::Task(*id)))
            .chain(d.remove_networks.iter().map(|id| Key::Network(*id)))
            .chain(d.remove_secrets.iter().map(|id| Key::Secret(*id)))
            .chain(d.remove_configs.iter().map(|id| Key::Config(*id)))
            .chain(d.remove_services.iter().map(|id| Key::Service(*id)));
        Self {
            index: 0,
            full: false,
            more: false,
            tasks: wire(d.update.tasks.values().map(|x| &**x)),
            networks: wire(d.update.networks.values().map(|x| &**x)),
            secrets: wire(d.update.secrets.values().map(|x| &**x)),
            configs: wire(d.update.configs.values().map(|x| &**x)),
            services: wire(d.update.services.values().map(|x| &**x)),
            removed: wire(keys),
            peers: (d.update.peers.iter())
                .map(|(node, peer)| crate::types::Peer {
                    node_id: node.to_string(),
                    address: peer.address.clone(),
                    tunnel_key: super::key_bytes(peer.key),
                    answers: peer.answers,
                })
                .collect(),
            removed_peers: d.remove_peers.iter().map(ToString::to_string).collect(),
            held: d.update.held.iter().map(ToString::to_string).collect(),
            released: d.release.iter().map(ToString::to_string).collect(),
            acknowledge: 0,
        }
    }
}

/// One frame; whether it is part of a full set the receiver sees from `full` and `more`.
impl TryFrom<w::AssignmentsMessage> for m::AssignmentDiff {
    type Error = WireError;
    fn try_from(f: w::AssignmentsMessage) -> Result<Self, WireError> {
        let mut diff = Self::default();
        for t in all::<_, model::object::Task>(f.tasks)? {
            diff.update.tasks.insert(t.id, Arc::new(t));
        }
        for n in all::<_, model::object::Network>(f.networks)? {
            diff.update.networks.insert(n.id, Arc::new(n));
        }
        for s in all::<_, model::object::Secret>(f.secrets)? {
            diff.update.secrets.insert(s.id, Arc::new(s));
        }
        for c in all::<_, model::object::Config>(f.configs)? {
            diff.update.configs.insert(c.id, Arc::new(c));
        }
        for s in all::<_, m::ServiceEndpoints>(f.services)? {
            diff.update.services.insert(s.id, Arc::new(s));
        }
        for peer in f.peers {
            let node = parse(&peer.node_id, "peers.node_id")?;
            let peer = m::Peer {
                key: super::key_of(&peer.tunnel_key),
                address: peer.address,
                answers: peer.answers,
            };
            Arc::make_mut(&mut diff.update.peers).insert(node, peer);
        }
        for node in f.removed_peers {
            diff.remove_peers.push(parse(&node, "removed_peers")?);
        }
        for task in f.held {
            diff.update.held.insert(parse(&task, "held")?);
        }
        for task in f.released {
            diff.release.push(parse(&task, "released")?);
        }
        for key in f.removed {
            match Key::try_from(key)? {
                Key::Task(id) => diff.remove_tasks.push(id),
                Key::Network(id) => diff.remove_networks.push(id),
                Key::Secret(id) => diff.remove_secrets.push(id),
                Key::Config(id) => diff.remove_configs.push(id),
                Key::Service(id) => diff.remove_services.push(id),
                Key::Cluster | Key::Node(_) => {
                    return Err(WireError {
                        field: "removed",
                        problem: "names a node or the cluster".into(),
                    });
                }
            }
        }
        Ok(diff)
    }
}
