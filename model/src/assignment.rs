//! What one node is told: its tasks, and only what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::object::{Config, Network, Secret, Task, TunnelKey};
use crate::spec::{EndpointMode, PortSpec};
use crate::{ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};

/// Everything a node may see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignmentSet {
    /// Its tasks, those that are to stop included, until they are removed.
    pub tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Networks of its live tasks.
    pub networks: BTreeMap<NetworkId, Arc<Network>>,
    /// Secrets of its live tasks.
    pub secrets: BTreeMap<SecretId, Arc<Secret>>,
    /// Configs of its live tasks.
    pub configs: BTreeMap<ConfigId, Arc<Config>>,
    /// Services that share a network with its tasks, or publish a port on every node.
    pub services: BTreeMap<ServiceId, Arc<ServiceEndpoints>>,
    /// Where the nodes of the cluster are, itself included.
    pub peers: Arc<BTreeMap<NodeId, Peer>>,
    /// Tasks of this node that are to stop while other nodes may still send them connections: they wait before they are
    /// asked to end, for a bounded time.
    pub held: BTreeSet<TaskId>,
}

/// Where a node is for the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// `IP:port`.
    pub address: String,
    /// What is encrypted for it with.
    pub key: Option<TunnelKey>,
    /// Its kernel answers when it is asked whether it is reached.
    pub answers: bool,
}

/// How a service is reached from a node: names, virtual addresses, ports and the tasks behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// The service.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// What its name resolves to.
    pub mode: EndpointMode,
    /// In each network: more names, and the virtual addresses if it has them.
    pub networks: Vec<ServiceNetwork>,
    /// Ports published on every node.
    pub ports: Vec<PortSpec>,
    /// Tasks that take connections: running, healthy, ready, and wanted to run.
    pub backends: Vec<Backend>,
    /// Its other tasks that have a node and have not ended: they may ask before they are asked.
    pub others: Vec<Backend>,
    /// Those networks of its tasks that are encrypted.
    pub encrypted: Vec<NetworkId>,
}

/// A service in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNetwork {
    /// The network.
    pub network: NetworkId,
    /// More names of the service there.
    pub aliases: Vec<String>,
    /// Virtual addresses, of IPv4 first; none with `dnsrr`.
    pub vips: Vec<IpAddr>,
}

/// A task and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The task.
    pub task: TaskId,
    /// Its node; none where a manager of an earlier version did not say.
    pub node: Option<NodeId>,
    /// Name of the task, such as `web.1`.
    pub name: String,
    /// Its address in each network, of IPv4 and, where it has that, then of IPv6.
    pub addresses: Vec<(NetworkId, IpAddr)>,
}

/// What changed in an [`AssignmentSet`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignmentDiff {
    /// New or changed objects.
    pub update: AssignmentSet,
    /// Tasks the node may forget.
    pub remove_tasks: Vec<TaskId>,
    /// Networks it no longer needs.
    pub remove_networks: Vec<NetworkId>,
    /// Secrets it must forget.
    pub remove_secrets: Vec<SecretId>,
    /// Configs it may forget.
    pub remove_configs: Vec<ConfigId>,
    /// Services it no longer reaches.
    pub remove_services: Vec<ServiceId>,
    /// Nodes that are gone.
    pub remove_peers: Vec<NodeId>,
    /// Tasks that wait no longer.
    pub release: Vec<TaskId>,
}

impl AssignmentDiff {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
