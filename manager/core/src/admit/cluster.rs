//! The first transaction of a cluster.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::ids::IdSource;
use model::object::{Availability, Cluster, Key, Meta, Network, Node, NodeRole, NodeSpec, Object};
use model::spec::NetworkSpec;
use model::{ClusterId, NetworkId, NodeId, Timestamp};

use super::{Admitted, Refusal, RefusalKind};
use crate::allocate;
use crate::state::{Scratch, State};

/// Pool of networks without a subnet (Docker's).
const POOL_DEFAULT: &str = "10.0.0.0/8";
/// Prefix of such networks: 4,093 tasks and services, where Docker's /24 is full at about 200.
const PREFIX_DEFAULT: u8 = 20;
/// Finished tasks kept per slot (Docker's).
const HISTORY_DEFAULT: i32 = 5;
/// Time between two heartbeats: a lost node is Down within 6 s.
const HEARTBEAT_DEFAULT: Duration = Duration::from_millis(1500);
/// Bounds of the heartbeat: below, it costs more than it tells; above, nobody waits so long for a replacement.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// What a new cluster is made with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterRequest {
    /// Finished tasks kept per slot; absent: 5.
    pub task_history_limit: Option<i32>,
    /// Time between two heartbeats; zero: 1.5 s.
    pub heartbeat: Duration,
    /// Pools for subnets; empty: 10.0.0.0/8.
    pub address_pools: Vec<IpNet>,
    /// Prefix of a subnet; 0: 20.
    pub subnet_prefix: u8,
    /// Whether the first node takes tasks.
    pub availability: Availability,
}

/// Makes the cluster, its first node and the network of published ports.
///
/// # Errors
/// [`Refusal`] when there is a cluster already, or a pool or time cannot be used.
pub fn init_cluster(
    state: &State,
    request: &ClusterRequest,
    node: NodeId,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    if state.cluster().is_some() {
        return Err(Refusal::new(
            RefusalKind::InUse,
            "there is a cluster already: leave it first",
        ));
    }
    let heartbeat = if request.heartbeat.is_zero() {
        HEARTBEAT_DEFAULT
    } else {
        request.heartbeat
    };
    if heartbeat < HEARTBEAT_BOUNDS.0 || heartbeat > HEARTBEAT_BOUNDS.1 {
        return Err(Refusal::invalid(
            "the dispatcher heartbeat must be between 100ms and 1m",
        ));
    }
    let mut pools = request.address_pools.clone();
    if pools.is_empty() {
        pools.extend(POOL_DEFAULT.parse::<IpNet>());
    }
    let prefix = if request.subnet_prefix == 0 {
        PREFIX_DEFAULT
    } else {
        request.subnet_prefix
    };
    if prefix > 29 || pools.iter().any(|p| p.prefix_len() > prefix) {
        return Err(Refusal::invalid(format!(
            "subnets of /{prefix} do not fit: each address pool must be at least that large, and a subnet at least a /29"
        )));
    }
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    let cluster = Cluster {
        id: ClusterId::new(ids),
        meta,
        task_history_limit: request.task_history_limit.unwrap_or(HISTORY_DEFAULT),
        heartbeat,
        address_pools: pools,
        subnet_prefix: prefix,
    };
    let mut scratch = Scratch::new(state);
    let subnet = allocate::free_subnet(&scratch, &cluster)
        .ok_or_else(|| Refusal::invalid("the address pools hold no IPv4 subnet"))?;
    scratch.put(Object::Cluster(Arc::new(cluster)));
    scratch.put(Object::Node(Arc::new(Node {
        id: node,
        meta,
        spec: NodeSpec {
            role: NodeRole::Manager,
            availability: request.availability,
            ..NodeSpec::default()
        },
        description: Default::default(),
        status: Default::default(),
    })));
    let ingress = NetworkSpec {
        name: "ingress".into(),
        driver: "overlay".into(),
        ingress: true,
        ..NetworkSpec::default()
    };
    let vni = allocate::free_vni(&scratch).unwrap_or_default();
    scratch.put(Object::Network(Arc::new(Network {
        id: NetworkId::new(ids),
        meta,
        spec: ingress,
        subnets: vec![subnet],
        vni,
    })));
    Ok(Admitted::new(scratch, vec![Key::Cluster]))
}
