//! The cluster itself: its first transaction, and its settings.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::ids::IdSource;
use model::object::{
    Availability, Cluster, Key, Meta, Network, Node, NodeDescription, NodeIdentity, NodeRole, NodeSpec,
    Object, Security,
};
use model::spec::{Family, Labels, NetworkSpec};
use model::{ClusterId, Level, NetworkId, NodeId, Timestamp};

use super::{Admitted, Refusal, RefusalKind, level};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRequest {
    /// Its id; the zero id: one is made.
    pub id: ClusterId,
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
    /// Authority and keys, freshly made.
    pub security: Security,
    /// Who the first node is.
    pub identity: NodeIdentity,
    /// Its name and address.
    pub description: NodeDescription,
    /// Its labels.
    pub labels: Labels,
}

impl Default for ClusterRequest {
    fn default() -> Self {
        Self {
            id: ClusterId::NIL,
            task_history_limit: None,
            heartbeat: Duration::ZERO,
            address_pools: Vec::new(),
            subnet_prefix: 0,
            availability: Availability::default(),
            security: Security::default(),
            identity: NodeIdentity::default(),
            description: NodeDescription::default(),
            labels: Labels::default(),
        }
    }
}

/// Changes of the cluster's settings; absent: as before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterChanges {
    /// Finished tasks kept per slot.
    pub task_history_limit: Option<i32>,
    /// Time between two heartbeats.
    pub heartbeat: Option<Duration>,
    /// Lifetime of certificates made from now on.
    pub certificate_expiry: Option<Duration>,
    /// Key to lock managers with from now on; empty: they are not locked.
    pub unlock_key: Option<Vec<u8>>,
    /// Level to write at from now on.
    pub level: Option<Level>,
}

/// Shortest and longest lifetime of a certificate (Docker's minimum; ten years).
const EXPIRY_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(3600), Duration::from_secs(3650 * 24 * 3600));
/// Lifetime of a certificate (Docker's: 90 days).
pub const EXPIRY_DEFAULT: Duration = Duration::from_secs(90 * 24 * 3600);

fn check_heartbeat(heartbeat: Duration) -> Result<(), Refusal> {
    if heartbeat < HEARTBEAT_BOUNDS.0 || heartbeat > HEARTBEAT_BOUNDS.1 {
        return Err(Refusal::invalid(
            "the dispatcher heartbeat must be between 100ms and 1m",
        ));
    }
    Ok(())
}

fn check_expiry(expiry: Duration) -> Result<(), Refusal> {
    if expiry < EXPIRY_BOUNDS.0 || expiry > EXPIRY_BOUNDS.1 {
        return Err(Refusal::invalid(
            "the lifetime of certificates must be between 1h and 3650 days",
        ));
    }
    Ok(())
}

/// Changes the cluster's settings.
///
/// # Errors
/// [`Refusal`] when there is no cluster, it changed meanwhile, or a value is out of range.
pub fn update_cluster(
    state: &State,
    expected: Option<u64>,
    changes: &ClusterChanges,
) -> Result<Admitted, Refusal> {
    edit_cluster(state, expected, |cluster| {
        if let Some(limit) = changes.task_history_limit {
            cluster.task_history_limit = limit;
        }
        if let Some(heartbeat) = changes.heartbeat {
            check_heartbeat(heartbeat)?;
            cluster.heartbeat = heartbeat;
        }
        if let Some(expiry) = changes.certificate_expiry {
            check_expiry(expiry)?;
            cluster.security.certificate_expiry = expiry;
        }
        if let Some(key) = &changes.unlock_key {
            cluster.security.unlock_key.clone_from(key);
        }
        if let Some(level) = changes.level {
            level::may_become(state, cluster.level, level)?;
            cluster.level = level;
        }
        Ok(())
    })
}

/// Changes the one cluster object.
pub(super) fn edit_cluster(
    state: &State,
    expected: Option<u64>,
    edit: impl FnOnce(&mut Cluster) -> Result<(), Refusal>,
) -> Result<Admitted, Refusal> {
    let Some(known) = state.cluster() else {
        return Err(Refusal::new(RefusalKind::NotFound, "there is no cluster"));
    };
    if let Some(expected) = expected.filter(|e| *e != known.meta.version) {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            format!(
                "update out of sequence: the cluster has version {}, the request was based on {expected}; look again and repeat",
                known.meta.version
            ),
        ));
    }
    let mut cluster = (**known).clone();
    edit(&mut cluster)?;
    let mut scratch = Scratch::new(state);
    scratch.put(Object::Cluster(Arc::new(cluster)));
    Ok(Admitted::new(scratch, vec![Key::Cluster]))
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
    check_heartbeat(heartbeat)?;
    let mut security = request.security.clone();
    if security.certificate_expiry.is_zero() {
        security.certificate_expiry = EXPIRY_DEFAULT;
    }
    check_expiry(security.certificate_expiry)?;
    super::validate::labels("node", &request.description.hostname, &request.labels)?;
    let mut pools = request.address_pools.clone();
    if pools.is_empty() {
        pools.extend(POOL_DEFAULT.parse::<IpNet>());
    }
    let prefix = if request.subnet_prefix == 0 {
        PREFIX_DEFAULT
    } else {
        request.subnet_prefix
    };
    if let Some(pool) = pools.iter().find(|p| Family::of_subnet(p) == Family::V6) {
        return Err(Refusal::invalid(format!(
            "address pool {pool} is of IPv6: leave it out, as networks with IPv6 have a prefix that the cluster makes, or the subnet that they ask for"
        )));
    }
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
        id: if request.id == ClusterId::NIL {
            ClusterId::new(ids)
        } else {
            request.id
        },
        meta,
        task_history_limit: request.task_history_limit.unwrap_or(HISTORY_DEFAULT),
        heartbeat,
        address_pools: pools,
        subnet_prefix: prefix,
        security,
        level: request.description.level,
    };
    let mut scratch = Scratch::new(state);
    scratch.put(Object::Node(Arc::new(Node {
        id: node,
        meta,
        spec: NodeSpec {
            role: NodeRole::Manager,
            availability: request.availability,
            labels: request.labels.clone(),
            drain: None,
        },
        description: request.description.clone(),
        status: Default::default(),
        identity: request.identity.clone(),
    })));
    let subnet = allocate::free_subnet(&scratch, &cluster, Family::V4, &[])
        .ok_or_else(|| Refusal::invalid("the address pools hold no IPv4 subnet"))?;
    scratch.put(Object::Cluster(Arc::new(cluster)));
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
