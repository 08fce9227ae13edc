//! `network`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::object::{Network, Node, Object, Service, Task};
use model::spec::{Family, NetworkSpec};
use model::{NetworkId, NodeId, ServiceId};
use proto::control::{CreateRequest, RemoveRequest, Spec, UpdateRequest, spec};
use proto::types::Kind;
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::inspect;
use crate::render::{self, InspectArgs, ListArgs};

/// Manage networks.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a network.
    Create {
        #[arg(long, short, default_value = "overlay")]
        driver: String,
        /// Containers outside of services may join.
        #[arg(long)]
        attachable: bool,
        /// Without a way out.
        #[arg(long)]
        internal: bool,
        /// With IPv6 addresses beside those of IPv4.
        #[arg(long)]
        ipv6: bool,
        /// Where its addresses are taken from (repeatable; with --ipv6 of either kind). Without one, it is chosen.
        #[arg(long)]
        subnet: Vec<String>,
        #[arg(long)]
        label: Vec<String>,
        /// `encrypted`: nothing of it passes between hosts in the open (WireGuard, 4790/udp).
        #[arg(long, short)]
        opt: Vec<String>,
        name: String,
    },
    /// List networks.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show networks.
    Inspect {
        #[arg(required = true)]
        networks: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Give a network more subnets, or other labels.
    Update {
        /// Addresses are taken from it when those before it are used up; what runs reaches it at once.
        #[arg(long)]
        subnet_add: Vec<String>,
        /// Add or change a label.
        #[arg(long)]
        label_add: Vec<String>,
        /// Remove a label.
        #[arg(long)]
        label_rm: Vec<String>,
        network: String,
    },
    /// Remove networks.
    Rm {
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

/// `NAME=VALUE` texts as a map.
pub(crate) fn pairs(list: &[String]) -> std::collections::BTreeMap<String, String> {
    list.iter()
        .map(|l| {
            l.split_once('=')
                .map_or((l.clone(), String::new()), |(k, v)| (k.into(), v.into()))
        })
        .collect()
}

fn subnets(flag: &str, texts: &[String]) -> Result<Vec<IpNet>, Fail> {
    let one = |s: &String| {
        s.parse().map_err(|_| {
            Fail::new(format!(
                "{flag} {s}: write a network such as 10.1.0.0/16 or fd12:3456::/64"
            ))
        })
    };
    texts.iter().map(one).collect()
}

/// Addresses in a network.
fn within(addresses: &[(NetworkId, IpAddr)], network: &Network) -> Vec<IpAddr> {
    let those = addresses.iter().filter(|(n, _)| *n == network.id);
    those.map(|(_, address)| *address).collect()
}

/// The address of a family; empty where there is none, as in Docker.
fn shown(addresses: &[IpAddr], family: Family) -> String {
    let one = addresses.iter().find(|a| Family::of(**a) == family);
    one.map(ToString::to_string).unwrap_or_default()
}

/// A network with the services and tasks in it, and the nodes they are on, as `network inspect --verbose` of Docker.
pub(crate) async fn whole(client: &Client, network: &Network) -> Result<Value, Fail> {
    let objects = |list: Vec<Object>| list.into_iter();
    let nodes: BTreeMap<_, _> = objects(client.list(Kind::Node, &[]).await?)
        .filter_map(|o| {
            if let Object::Node(n) = o {
                Some((n.id, n))
            } else {
                None
            }
        })
        .collect();
    let services: BTreeMap<_, _> = objects(client.list(Kind::Service, &[]).await?)
        .filter_map(|o| {
            if let Object::Service(s) = o {
                Some((s.id, s))
            } else {
                None
            }
        })
        .collect();
    let tasks = objects(client.list(Kind::Task, &[]).await?)
        .filter_map(|o| if let Object::Task(t) = o { Some(t) } else { None })
        .collect();
    Ok(picture(network, &nodes, &services, tasks))
}

/// The same, of these objects.
fn picture(
    network: &Network,
    nodes: &BTreeMap<NodeId, Arc<Node>>,
    services: &BTreeMap<ServiceId, Arc<Service>>,
    tasks: Vec<Arc<Task>>,
) -> Value {
    let mut members: Vec<(Vec<IpAddr>, Arc<Task>)> = (tasks.into_iter())
        .filter(|t| !t.status.state.is_terminal())
        .map(|t| (within(&t.addresses, network), t))
        .filter(|(addresses, _)| !addresses.is_empty())
        .collect();
    members.sort_by_key(|(addresses, task)| (task.service_name.clone(), task.slot, addresses.clone()));
    let peers: BTreeSet<_> = members.iter().filter_map(|(_, task)| task.node).collect();
    let host = |node: &Node| {
        let address = &node.description.address;
        address
            .rsplit_once(':')
            .map_or(address.clone(), |(host, _)| host.to_owned())
    };
    let peers: Vec<Value> = (peers.iter().filter_map(|id| nodes.get(id)))
        .map(|node| json!({"Name": node.description.hostname, "IP": host(node)}))
        .collect();
    let containers: serde_json::Map<String, Value> = (members.iter())
        .map(|(addresses, task)| {
            let node = task.node.and_then(|id| nodes.get(&id));
            let shown = json!({
                "Name": task.container_name(),
                "IPv4Address": shown(addresses, Family::V4), "IPv6Address": shown(addresses, Family::V6),
                "Node": node.map(|n| n.description.hostname.clone()),
                "EndpointIP": node.map(|n| host(n)),
                "State": task.status.state.as_str(),
            });
            (task.id.to_string(), shown)
        })
        .collect();
    let balanced: serde_json::Map<String, Value> = (services.values())
        .filter_map(|service| {
            let vips = within(&service.endpoint.vips, network);
            if vips.is_empty() {
                return None;
            }
            let tasks = members.iter().filter(|(_, t)| t.service == service.id);
            let tasks: Vec<Value> = tasks
                .map(|(addresses, t)| {
                    json!({
                        "Name": t.name(), "EndpointID": t.id.to_string(),
                        "IPv4Address": shown(addresses, Family::V4), "IPv6Address": shown(addresses, Family::V6),
                    })
                })
                .collect();
            let shown = json!({"VIP": shown(&vips, Family::V4), "VIP6": shown(&vips, Family::V6), "Tasks": tasks});
            Some((service.spec.name.clone(), shown))
        })
        .collect();
    let mut shown = inspect::network(network);
    shown["Peers"] = peers.into();
    shown["Containers"] = containers.into();
    shown["Services"] = balanced.into();
    shown
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Create {
            driver,
            attachable,
            internal,
            ipv6,
            subnet,
            label,
            opt,
            name,
        } => {
            let subnets = subnets("--subnet", &subnet)?;
            let network = NetworkSpec {
                name,
                labels: pairs(&label),
                driver,
                options: pairs(&opt),
                internal,
                attachable,
                ipv6,
                subnets,
                ..NetworkSpec::default()
            };
            let spec = Some(Spec {
                spec: Some(spec::Spec::Network((&network).into())),
            });
            let reply = client
                .control()
                .await?
                .create(CreateRequest {
                    spec,
                    ..CreateRequest::default()
                })
                .await?
                .into_inner();
            render::line(reply.id);
        }
        Command::Ls(args) => {
            let rows: Vec<_> = client
                .list(Kind::Network, &args.filter)
                .await?
                .iter()
                .filter_map(|o| if let Object::Network(n) = o { Some(n) } else { None })
                .map(|n| json!({"ID": n.id.to_string(), "Shown": render::short(&n.id.to_string(), args.no_trunc), "Name": n.spec.name, "Driver": n.spec.driver, "Scope": "swarm", "IPv4": true, "IPv6": n.spec.ipv6, "Internal": n.spec.internal}))
                .collect();
            render::list(
                &rows,
                &[
                    ("NETWORK ID", "Shown"),
                    ("NAME", "Name"),
                    ("DRIVER", "Driver"),
                    ("SCOPE", "Scope"),
                ],
                &args,
            )?;
        }
        Command::Inspect { networks, how } => {
            let mut values = Vec::new();
            for name in &networks {
                if let Object::Network(n) = client.get(Kind::Network, name).await? {
                    values.push(whole(client, &n).await?);
                }
            }
            render::inspect(&values, &how)?;
        }
        Command::Update {
            subnet_add,
            label_add,
            label_rm,
            network,
        } => {
            let Object::Network(known) = client.get(Kind::Network, &network).await? else {
                return Err(Fail::new("the manager answered something else than a network"));
            };
            let mut spec = known.spec.clone();
            spec.labels.extend(pairs(&label_add));
            label_rm.iter().for_each(|label| drop(spec.labels.remove(label)));
            if !subnet_add.is_empty() {
                spec.subnets = [known.subnets.clone(), subnets("--subnet-add", &subnet_add)?].concat();
            }
            let request = UpdateRequest {
                reference: known.id.to_string(),
                version: known.meta.version,
                spec: Some(Spec {
                    spec: Some(spec::Spec::Network((&spec).into())),
                }),
                ..UpdateRequest::default()
            };
            client.control().await?.update(request).await?;
            render::line(network);
        }
        Command::Rm { networks } => {
            client
                .control()
                .await?
                .remove(RemoveRequest {
                    kind: Kind::Network.into(),
                    references: networks.clone(),
                    force: false,
                })
                .await?;
            networks.iter().for_each(render::line);
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use model::object::{Endpoint, Meta, SlotKey, TaskStatus};
    use model::task_state::DesiredState;
    use model::{TaskId, Timestamp};

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn ipv6_is_asked_for_when_a_network_is_made() {
        let words = "network create --ipv6 --subnet fd12:3456::/64 --subnet 10.9.0.0/24 n";
        let line = Line::try_parse_from(words.split(' ')).expect("a line");
        let Command::Create { ipv6, subnet, .. } = line.command else {
            panic!("another command");
        };
        assert!(ipv6);
        let read = subnets("--subnet", &subnet).unwrap();
        let read: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(read, ["fd12:3456::/64", "10.9.0.0/24"]);
        let plain = Line::try_parse_from(["network", "create", "n"]).expect("a line");
        assert!(matches!(plain.command, Command::Create { ipv6: false, .. }));
    }

    #[test]
    fn a_network_of_both_families_shows_both_addresses_of_all_in_it() {
        let network = |id: u128, ipv6: bool| Network {
            id: NetworkId(id),
            meta: Meta::default(),
            spec: NetworkSpec {
                ipv6,
                ..NetworkSpec::default()
            },
            subnets: Vec::new(),
            vni: 1,
        };
        let addresses = |last: u8| {
            [
                (1, format!("10.0.0.{last}")),
                (2, format!("10.0.1.{last}")),
                (2, format!("fd00::{last}")),
            ]
            .map(|(n, a)| (NetworkId(n), a.parse().unwrap()))
            .to_vec()
        };
        let service = Service {
            endpoint: Endpoint {
                ports: Vec::new(),
                vips: addresses(9),
            },
            ..Service::new(ServiceId(9), Meta::default(), Default::default())
        };
        let task = Task {
            id: TaskId(1),
            meta: Meta::default(),
            service: ServiceId(9),
            service_name: "web".into(),
            slot: SlotKey::Replica(1),
            spec: Arc::default(),
            spec_version: 1,
            node: None,
            desired: DesiredState::Running,
            run_at: Timestamp(0),
            status: TaskStatus::new(Timestamp(0)),
            running_at: None,
            unready_at: None,
            ended_at: None,
            addresses: addresses(2),
            host_ports: Vec::new(),
            iteration: 0,
            fence: 0,
            granted: Default::default(),
            moving: 0,
        };
        let id = task.id.to_string();
        for (network, four, six) in [
            (network(1, false), ["10.0.0.2", "10.0.0.9"], ["", ""]),
            (network(2, true), ["10.0.1.2", "10.0.1.9"], ["fd00::2", "fd00::9"]),
        ] {
            let services = BTreeMap::from([(service.id, Arc::new(service.clone()))]);
            let tasks = vec![Arc::new(task.clone())];
            let shown = picture(&network, &BTreeMap::new(), &services, tasks);
            assert_eq!(shown["EnableIPv6"], network.spec.ipv6);
            let container = &shown["Containers"][&id];
            assert_eq!(container["IPv4Address"], four[0]);
            assert_eq!(container["IPv6Address"], six[0]);
            let balanced = &shown["Services"][""];
            assert_eq!(balanced["VIP"], four[1]);
            assert_eq!(balanced["VIP6"], six[1]);
            assert_eq!(balanced["Tasks"].as_array().map(Vec::len), Some(1));
            assert_eq!(balanced["Tasks"][0]["IPv6Address"], six[0]);
        }
        let attachments = &inspect::task(&task)["NetworksAttachments"];
        assert_eq!(attachments.as_array().map(Vec::len), Some(2), "one a network");
        assert_eq!(attachments[1]["Addresses"], json!(["10.0.1.2", "fd00::2"]));
    }
}
