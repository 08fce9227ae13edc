//! The Ca service: certificates for hosts that join and for nodes that stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manager_core::State;
use manager_core::admit::{self, JoinRequest};
use model::NodeId;
use model::object::{Cluster as ClusterObject, NodeRole};
use proto::authz::Caller;
use proto::ca as w;
use proto::ca::ca_server::Ca;
use proto::listener::Remote;
use proto::status;
use proto::types;
use tonic::{Request, Response, Status};

use crate::api::{Reply, writing};
use crate::ca::{self, CaError};
use crate::init::{self, now};
use crate::server::{Cluster, Manager, identity_of};
use crate::strangers::Strangers;

/// A host that joins at the address of a manager waits so long for that to be found silent; less than its own patience.
const SILENT_LIMIT: Duration = Duration::from_secs(7);
/// Looks at which it has to be silent, one after the other, by a leader that hears a quorum: for a moment, after an
/// election or a stall, a leader has heard of nobody.
const SILENT_LOOKS: u32 = 8;
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The Ca service of a manager.
pub struct CaRpc {
    manager: Manager,
    strangers: Strangers,
}

impl CaRpc {
    pub(crate) fn new(manager: Manager) -> Self {
        Self {
            manager,
            strangers: Strangers::default(),
        }
    }

    /// The cluster, where this manager leads it.
    fn leading(&self) -> Result<Arc<Cluster>, Status> {
        let cluster = self.manager.cluster();
        let cluster = cluster.ok_or_else(|| Status::unavailable("this node is not a manager"))?;
        if cluster.writer.log.role().borrow().leader {
            return Ok(cluster);
        }
        let leader = cluster.writer.log.leader();
        Err(status::not_leader(
            "this manager does not lead the cluster",
            leader,
        ))
    }
}

impl From<CaError> for Status {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Request(_) | CaError::Signature => Self::invalid_argument(error.to_string()),
            CaError::Authority(_) => Self::internal(error.to_string()),
        }
    }
}

fn cluster_of(cluster: &Cluster) -> Result<Arc<ClusterObject>, Status> {
    let state = cluster.writer.log.read();
    let object = state.cluster().cloned();
    object.ok_or_else(|| Status::unavailable("this manager does not know the cluster yet"))
}

/// Everyone who leads or follows, for nodes to remember.
pub(crate) fn managers(state: &State) -> Vec<types::Peer> {
    (state.managers())
        .map(|n| types::Peer {
            node_id: n.id.to_string(),
            address: n.description.address.clone(),
            ..types::Peer::default()
        })
        .collect()
}

fn reply(
    cluster: &Cluster,
    object: &ClusterObject,
    certificates: String,
    node: NodeId,
) -> Result<w::IssueReply, Status> {
    let state = cluster.writer.log.read();
    let node = state
        .node(node)
        .ok_or_else(|| Status::internal("the node is gone again"))?;
    Ok(w::IssueReply {
        certificates,
        authorities: ca::authorities(&object.security),
        cluster_id: object.id.to_string(),
        manager: node.spec.role == NodeRole::Manager,
        managers: managers(&state),
        address: node.description.address.clone(),
    })
}

impl CaRpc {
    /// A new certificate for a node whose own has ended while it was away. It shows no certificate and needs none: what
    /// it gets is of use only to who has the key that the node joined with.
    async fn recover(
        &self,
        cluster: &Cluster,
        object: &ClusterObject,
        request: &w::IssueRequest,
    ) -> Reply<w::IssueReply> {
        let wrong = |e: model::IdError| Status::invalid_argument(format!("the node's id: {e}"));
        let node: NodeId = request.node_id.parse().map_err(wrong)?;
        let state = cluster.writer.log.read();
        let removed = || {
            Status::permission_denied(format!(
                "E_NODE_REMOVED: node {node} is not part of this cluster: leave with rswarm swarm leave, and join again"
            ))
        };
        let known = state.node(node).ok_or_else(removed)?;
        let issued = ca::sign(
            &object.security,
            &request.csr,
            node,
            known.spec.role,
            object.id,
            now(),
        )?;
        if issued.key != known.identity.key {
            return Err(removed());
        }
        let identity = identity_of(&issued, None);
        let decide =
            move |state: &State, _, _: &mut crate::writer::RandomIds| admit::renewed(state, node, &identity);
        cluster.writer.write(decide).await.map_err(writing)?;
        tracing::info!(%node, "a node whose certificate had ended has a new one");
        Ok(Response::new(reply(cluster, object, issued.certificates, node)?))
    }
}

#[tonic::async_trait]
impl Ca for CaRpc {
    async fn get_authority(&self, _request: Request<w::GetAuthorityRequest>) -> Reply<w::GetAuthorityReply> {
        let cluster = self.manager.cluster();
        let cluster = cluster.ok_or_else(|| Status::unavailable("this node is not a manager"))?;
        Ok(Response::new(w::GetAuthorityReply {
            certificate: cluster_of(&cluster)?.security.signing().certificate.clone(),
        }))
    }

    async fn issue(&self, request: Request<w::IssueRequest>) -> Reply<w::IssueReply> {
        let from = request.extensions().get::<Remote>().map(|r| r.address);
        let cluster = self.leading()?;
        let object = cluster_of(&cluster)?;
        if let Some(from) = from {
            self.strangers.may_try(from.ip())?;
        }
        let request = request.into_inner();
        if request.token.is_empty() {
            return self.recover(&cluster, &object, &request).await;
        }
        let Some(serial) = ca::serial_of(&object.security, &request.token) else {
            if let Some(from) = from {
                self.strangers.failed(from.ip());
            }
            return Err(Status::unauthenticated(
                "E_TOKEN_INVALID: the join token is not valid: it may have been rotated; ask a manager with \
                 `rswarm swarm join-token`",
            ));
        };
        let wrong = |e: model::IdError| Status::invalid_argument(format!("the node's id: {e}"));
        let node: NodeId = request.node_id.parse().map_err(wrong)?;
        let token = object.security.tokens.iter().find(|t| t.serial == serial);
        let role = token.map_or(NodeRole::Worker, |t| t.role);
        let address = match (request.address.strip_prefix(':'), from) {
            (Some(port), Some(from)) => format!("{}:{port}", bracketed(from.ip())),
            _ => request.address.clone(),
        };
        init::with_port(&address, init::PORT).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let issued = ca::sign(&object.security, &request.csr, node, role, object.id, now())?;
        let mut join = JoinRequest {
            serial,
            node,
            identity: identity_of(&issued, None),
            hostname: request.hostname.clone(),
            address,
            labels: init::labels(&request.labels),
            availability: request.availability().into(),
            heard: BTreeSet::new(),
            level: model::Level::new(request.level),
        };
        if role == NodeRole::Manager {
            join.heard = heard_at(&cluster, &join.address, node).await;
        }
        let decide =
            move |state: &State, now, _: &mut crate::writer::RandomIds| admit::join(state, &join, now);
        crash::point("ca.before_join_commit");
        cluster.writer.write(decide).await.map_err(writing)?;
        crash::point("ca.after_join_commit");
        tracing::info!(%node, hostname = %request.hostname, ?role, "a host joined the cluster");
        Ok(Response::new(reply(
            &cluster,
            &object,
            issued.certificates,
            node,
        )?))
    }

    async fn renew(&self, request: Request<w::RenewRequest>) -> Reply<w::IssueReply> {
        let Some(Caller::Node(node)) = request.extensions().get::<Caller>().copied() else {
            return Err(Status::unauthenticated("this needs the certificate of a node"));
        };
        let cluster = self.leading()?;
        let object = cluster_of(&cluster)?;
        let state = cluster.writer.log.read();
        let known = state
            .node(node)
            .ok_or_else(|| Status::permission_denied("E_NODE_REMOVED"))?;
        let role = known.spec.role;
        let csr = request.into_inner().csr;
        let issued = ca::sign(&object.security, &csr, node, role, object.id, now())?;
        let identity = identity_of(&issued, None);
        let decide =
            move |state: &State, _, _: &mut crate::writer::RandomIds| admit::renewed(state, node, &identity);
        crash::point("ca.before_renew_commit");
        cluster.writer.write(decide).await.map_err(writing)?;
        crash::point("ca.after_renew_commit");
        Ok(Response::new(reply(
            &cluster,
            &object,
            issued.certificates,
            node,
        )?))
    }
}

/// The managers that are heard of, all of them unless the one at `address` was silent for two seconds. One that asks again
/// to join as `node` takes no other's place.
async fn heard_at(cluster: &Cluster, address: &str, node: NodeId) -> BTreeSet<NodeId> {
    let log = &cluster.writer.log;
    let began = Instant::now();
    let mut silent = 0;
    loop {
        let state = log.read();
        let there = (state.managers()).find(|n| n.description.address == address && n.id != node);
        let Some(known) = there else {
            return BTreeSet::new();
        };
        let reached = log.reached().await;
        silent = if log.quorum_is_late() || reached.contains(&known.id) {
            0
        } else {
            silent + 1
        };
        if silent >= SILENT_LOOKS {
            return reached;
        }
        if began.elapsed() > SILENT_LIMIT {
            return state.managers().map(|n| n.id).collect();
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn bracketed(ip: std::net::IpAddr) -> String {
    match ip {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    }
}
