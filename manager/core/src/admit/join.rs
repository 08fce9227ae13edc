//! Who comes into the cluster and who leaves it: tokens, nodes, and the authority that vouches for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::object::{
    Authority, Availability, JoinToken, Key, Meta, NextAuthority, Node, NodeDescription, NodeIdentity,
    NodeRole, NodeSpec, NodeState, Object, Security,
};
use model::spec::Labels;
use model::task_state::{DesiredState, TaskState};
use model::{Level, NodeId, Timestamp};

use super::cluster::edit_cluster;
use super::{Admitted, Refusal, RefusalKind, level, validate};
use crate::members;
use crate::state::{Scratch, State};

/// Most nodes of a cluster.
const NODES_MAX: usize = 10_000;

/// A host that showed the secret of a token and gave a key that is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// The token's number.
    pub serial: u64,
    /// The id the host chose for itself, at random.
    pub node: NodeId,
    /// Its key and the certificate made for it.
    pub identity: NodeIdentity,
    /// Its name.
    pub hostname: String,
    /// Where it is reached.
    pub address: String,
    /// Labels it brings.
    pub labels: Labels,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Managers that the leader heard of a moment ago.
    pub heard: BTreeSet<NodeId>,
    /// What its build knows.
    pub level: Level,
}

/// Lets a host in. Asked again by the same host with the same key, it changes nothing but the certificate, so that a
/// join that was cut off can be repeated.
///
/// An address is one host's. One that joins as a manager at the address of a manager that is silent is that host, set up
/// anew: the manager it was votes no more, so that nothing waits for it.
///
/// # Errors
/// [`Refusal`] when the token is not valid any more, does not allow the labels, or the id is another host's;
/// [`RefusalKind::InUse`] when a manager that was heard of a moment ago has the address, or any manager that a worker
/// would take the place of: a worker's token costs nobody the log.
pub fn join(state: &State, request: &JoinRequest, now: Timestamp) -> Result<Admitted, Refusal> {
    let Some(cluster) = state.cluster() else {
        return Err(Refusal::new(RefusalKind::NotFound, "there is no cluster"));
    };
    let mut scratch = Scratch::new(state);
    if let Some(known) = state.node(request.node) {
        if known.identity.key != request.identity.key {
            return Err(Refusal::new(
                RefusalKind::AlreadyExists,
                format!("another host has joined as node {}", request.node),
            ));
        }
        let mut node = (**known).clone();
        node.identity.issuer.clone_from(&request.identity.issuer);
        node.identity.expires_at = request.identity.expires_at;
        scratch.put(Object::Node(Arc::new(node)));
        return Ok(Admitted::new(scratch, vec![Key::Node(request.node)]));
    }
    let token = usable(&cluster.security, request.serial, now)?.clone();
    level::knows(level::written(state), &request.hostname, request.level)?;
    if !request.labels.is_empty() && !token.labels {
        return Err(Refusal::invalid(
            "E_ROLE_DENIED: this token does not let a host bring labels: make one with \
             `rswarm swarm join-token --allow-labels`, or set them with `rswarm node update --label-add`",
        ));
    }
    validate::labels("node", &request.hostname, &request.labels)?;
    if state.node_count() >= NODES_MAX {
        return Err(Refusal::invalid(format!(
            "the cluster has {NODES_MAX} nodes already"
        )));
    }
    let replaced = state
        .managers()
        .find(|n| n.description.address == request.address);
    if let Some(old) = replaced {
        if token.role != NodeRole::Manager || request.heard.contains(&old.id) {
            return Err(Refusal::new(
                RefusalKind::InUse,
                format!(
                    "E_ADDRESS_IN_USE: the manager {} (node {}) has the address {}: give this host its own with \
                     --advertise-addr. If it was that manager and was set up anew, join with a manager's token once the \
                     old one is silent, or remove that first with `rswarm node rm --force {}`",
                    old.description.hostname, old.id, request.address, old.id
                ),
            ));
        }
        let mut old = (**old).clone();
        old.spec.role = NodeRole::Worker;
        scratch.put(Object::Node(Arc::new(old)));
    } else if token.role == NodeRole::Manager && state.managers().count() >= members::MANAGERS_MAX {
        return Err(Refusal::invalid(format!(
            "the cluster has {} managers already: join with the token of workers",
            members::MANAGERS_MAX
        )));
    }
    if token.uses_left.is_some() {
        let mut cluster = (**cluster).clone();
        for known in cluster
            .security
            .tokens
            .iter_mut()
            .filter(|t| t.serial == token.serial)
        {
            known.uses_left = known.uses_left.map(|left| left.saturating_sub(1));
        }
        scratch.put(Object::Cluster(Arc::new(cluster)));
    } else {
        scratch.rely_on(Key::Cluster);
    }
    scratch.put(Object::Node(Arc::new(Node {
        id: request.node,
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec: NodeSpec {
            labels: request.labels.clone(),
            availability: request.availability,
            role: token.role,
            drain: None,
        },
        description: NodeDescription {
            hostname: request.hostname.clone(),
            address: request.address.clone(),
            level: request.level,
            ..NodeDescription::default()
        },
        status: Default::default(),
        identity: request.identity.clone(),
    })));
    Ok(Admitted::new(scratch, vec![Key::Node(request.node)]))
}

/// A token that lets a host in now.
fn usable(security: &Security, serial: u64, now: Timestamp) -> Result<&JoinToken, Refusal> {
    let token = (security.tokens.iter().find(|t| t.serial == serial)).ok_or_else(|| {
        Refusal::new(
            RefusalKind::Denied,
            "E_TOKEN_INVALID: the join token is not valid: ask a manager with `rswarm swarm join-token`",
        )
    })?;
    let used_up = token.uses_left == Some(0);
    if used_up || token.expires_at.is_some_and(|at| at <= now) {
        let why = if used_up {
            "was used as often as it may be"
        } else {
            "has expired"
        };
        return Err(Refusal::new(
            RefusalKind::Denied,
            format!(
                "E_TOKEN_EXPIRED: the join token {why}: ask a manager for another with `rswarm swarm join-token`"
            ),
        ));
    }
    Ok(token)
}

/// Takes a node out that says good-bye; what it still ran is Orphaned.
///
/// # Errors
/// [`Refusal`] for a manager, which is demoted first.
pub fn leave(state: &State, id: NodeId) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    if let Some(node) = state.node(id) {
        if node.spec.role == NodeRole::Manager {
            return Err(Refusal::new(
                RefusalKind::InUse,
                format!(
                    "node {} is a manager: demote it before it leaves",
                    node.description.hostname
                ),
            ));
        }
        orphan(&mut scratch, id, "its node left the cluster");
        scratch.delete(Key::Node(id));
    }
    Ok(Admitted::new(scratch, vec![Key::Node(id)]))
}

/// Remembers which certificate a node has now.
///
/// # Errors
/// [`Refusal`] when the node is gone.
pub fn renewed(state: &State, id: NodeId, identity: &NodeIdentity) -> Result<Admitted, Refusal> {
    edit_node(state, id, |node| {
        node.identity = NodeIdentity {
            raft_id: node.identity.raft_id,
            ..identity.clone()
        };
    })
}

/// Remembers the number a manager has in the log, and where it is reached.
///
/// # Errors
/// [`Refusal`] when the node is gone.
pub fn registered(state: &State, id: NodeId, raft_id: u64) -> Result<Admitted, Refusal> {
    edit_node(state, id, |node| {
        if node.spec.role == NodeRole::Manager && raft_id != 0 {
            node.identity.raft_id = Some(raft_id);
        }
    })
}

fn edit_node(state: &State, id: NodeId, edit: impl FnOnce(&mut Node)) -> Result<Admitted, Refusal> {
    let Some(known) = state.node(id) else {
        return Err(Refusal::new(
            RefusalKind::NotFound,
            format!("E_NODE_REMOVED: node {id} is not part of this cluster any more"),
        ));
    };
    let mut node = (**known).clone();
    edit(&mut node);
    let mut scratch = Scratch::new(state);
    scratch.put(Object::Node(Arc::new(node)));
    Ok(Admitted::new(scratch, vec![Key::Node(id)]))
}

/// A manager that goes on alone with a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revival {
    /// Its node.
    pub node: NodeId,
    /// Its certificate and its number in the new log.
    pub identity: NodeIdentity,
    /// Its name and address.
    pub description: NodeDescription,
    /// Whether the other nodes stay, as workers. Of a backup nobody knows which of them are still there: they have to
    /// join again.
    pub keep_nodes: bool,
}

/// Makes one manager the only one, in a new epoch: managers of the old one are refused from then on.
///
/// # Errors
/// [`Refusal`] when there is no cluster in the state.
pub fn revive(state: &State, request: &Revival, now: Timestamp) -> Result<Admitted, Refusal> {
    let Some(cluster) = state.cluster() else {
        return Err(Refusal::new(RefusalKind::NotFound, "there is no cluster"));
    };
    let mut scratch = Scratch::new(state);
    let mut cluster = (**cluster).clone();
    cluster.security.epoch += 1;
    scratch.put(Object::Cluster(Arc::new(cluster)));
    for other in state.nodes().filter(|n| n.id != request.node) {
        if request.keep_nodes {
            let mut other = (**other).clone();
            other.spec.role = NodeRole::Worker;
            other.identity.raft_id = None;
            scratch.put(Object::Node(Arc::new(other)));
        } else {
            orphan(
                &mut scratch,
                other.id,
                "the cluster was restored without its node",
            );
            scratch.delete(Key::Node(other.id));
        }
    }
    let known = state.node(request.node);
    let mut spec = known.map(|n| n.spec.clone()).unwrap_or_default();
    spec.role = NodeRole::Manager;
    scratch.put(Object::Node(Arc::new(Node {
        id: request.node,
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec,
        description: known.map_or_else(|| request.description.clone(), |n| n.description.clone()),
        status: known.map(|n| n.status.clone()).unwrap_or_default(),
        identity: request.identity.clone(),
    })));
    Ok(Admitted::new(
        scratch,
        vec![Key::Cluster, Key::Node(request.node)],
    ))
}

/// Ends what a node still runs when it goes for good.
pub(super) fn orphan(scratch: &mut Scratch, id: NodeId, why: &str) {
    let tasks: Vec<_> = scratch.tasks_of_node(id).map(|t| t.id).collect();
    for task in tasks {
        scratch.edit_task(task, |t| {
            if !t.status.state.is_terminal() {
                t.status.state = TaskState::Orphaned;
                t.status.error = why.into();
            }
            t.desired = t.desired.max(DesiredState::Shutdown);
        });
    }
}

/// A token to be made for an occasion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// As what hosts join with it.
    pub role: NodeRole,
    /// Until when; absent: for ever.
    pub expires_at: Option<Timestamp>,
    /// For how many hosts; absent: any number.
    pub uses: Option<u32>,
    /// Whether they may bring labels.
    pub labels: bool,
}

/// Makes a further token beside the standing one.
///
/// # Errors
/// [`Refusal`] when there are too many, or it would never be valid.
pub fn make_token(state: &State, request: &TokenRequest, now: Timestamp) -> Result<Admitted, Refusal> {
    edit_cluster(state, None, |cluster| {
        if request.uses == Some(0) || request.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::invalid(
                "a token must be good for at least one host and some time",
            ));
        }
        let security = &mut cluster.security;
        security.tokens.retain(|t| usable_later(t, now));
        if security.tokens.len() >= Security::TOKENS_MAX {
            return Err(Refusal::invalid(format!(
                "there are {} join tokens already: rotate them first",
                Security::TOKENS_MAX
            )));
        }
        add(security, request, false);
        Ok(())
    })
}

fn usable_later(token: &JoinToken, now: Timestamp) -> bool {
    token.standing || (token.uses_left != Some(0) && token.expires_at.is_none_or(|at| at > now))
}

fn add(security: &mut Security, request: &TokenRequest, standing: bool) {
    security.last_token += 1;
    security.tokens.push(JoinToken {
        serial: security.last_token,
        role: request.role,
        standing,
        expires_at: request.expires_at,
        uses_left: request.uses,
        labels: request.labels,
    });
}

/// Makes every token of a role invalid, and a new standing one. Nodes that joined with them stay.
///
/// # Errors
/// [`Refusal`] when there is no cluster.
pub fn rotate_token(state: &State, role: NodeRole) -> Result<Admitted, Refusal> {
    edit_cluster(state, None, |cluster| {
        let security = &mut cluster.security;
        security.tokens.retain(|t| t.role != role);
        let request = TokenRequest {
            role,
            expires_at: None,
            uses: None,
            labels: false,
        };
        add(security, &request, true);
        Ok(())
    })
}

/// Begins to replace the authority. A rotation under way is replaced as well.
///
/// # Errors
/// [`Refusal`] when there is no cluster.
pub fn begin_rotation(
    state: &State,
    authority: &Authority,
    cross_signed: &str,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    edit_cluster(state, None, |cluster| {
        cluster.security.next = Some(NextAuthority {
            authority: authority.clone(),
            cross_signed: cross_signed.to_owned(),
            since: now,
        });
        Ok(())
    })
}

/// Ends a rotation: the old authority is trusted no more. `issuer` is the digest of the new one; while a node that is
/// not Down still has a certificate of another, nothing changes.
///
/// # Errors
/// [`Refusal`] when there is no cluster.
pub fn end_rotation(state: &State, issuer: &str) -> Result<Admitted, Refusal> {
    let waits = (state.nodes()).any(|n| n.status.state != NodeState::Down && n.identity.issuer != issuer);
    if waits || state.cluster().is_none_or(|c| c.security.next.is_none()) {
        return Ok(Admitted::default());
    }
    edit_cluster(state, None, |cluster| {
        if let Some(next) = cluster.security.next.take() {
            cluster.security.authority = next.authority;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrate_tests::node;
    use model::object::Cluster;

    const OLD: NodeId = NodeId(1);
    const NEW: NodeId = NodeId(9);

    fn cluster(managers: &[(u128, NodeState)]) -> State {
        let mut security = Security::default();
        for role in [NodeRole::Manager, NodeRole::Worker] {
            let request = TokenRequest {
                role,
                expires_at: None,
                uses: None,
                labels: false,
            };
            add(&mut security, &request, true);
        }
        let cluster = Cluster {
            id: model::ClusterId(7),
            meta: Meta::default(),
            task_history_limit: 5,
            heartbeat: std::time::Duration::from_secs(1),
            address_pools: Vec::new(),
            subnet_prefix: 20,
            level: Level::FIRST,
            security,
        };
        let managers = managers.iter().map(|(id, state)| {
            let mut n = node(*id, &format!("m{id}"));
            n.spec.role = NodeRole::Manager;
            n.status.state = *state;
            n.description.address = format!("10.0.0.{id}:2377");
            Object::Node(Arc::new(n))
        });
        State::from_objects(1, managers.chain([Object::Cluster(Arc::new(cluster))]))
    }

    fn request(serial: u64, address: &str, heard: &[u128]) -> JoinRequest {
        JoinRequest {
            serial,
            node: NEW,
            identity: NodeIdentity::default(),
            hostname: "new".into(),
            address: address.into(),
            labels: Labels::default(),
            availability: Availability::Active,
            level: Level::FIRST,
            heard: heard.iter().copied().map(NodeId).collect(),
        }
    }

    #[test]
    fn a_host_takes_the_place_of_a_silent_manager_at_its_address_and_of_no_other() {
        use NodeState::{Down, Ready};
        const MANAGER: u64 = 1;
        const WORKER: u64 = 2;
        let (own, other) = ("10.0.0.1:2377", "10.0.0.7:2377");
        // What it was, which token, where, who was heard; whether it comes in, and whether the old one still manages.
        let rows = [
            ("silent, not yet Down", Ready, MANAGER, own, &[2][..], true, false),
            ("Down", Down, MANAGER, own, &[2], true, false),
            (
                "its agent is Down, it votes",
                Down,
                MANAGER,
                own,
                &[1, 2],
                false,
                true,
            ),
            ("it answers", Ready, MANAGER, own, &[1, 2], false, true),
            (
                "it answers, to a worker",
                Ready,
                WORKER,
                own,
                &[1, 2],
                false,
                true,
            ),
            (
                "a worker where a manager was",
                Ready,
                WORKER,
                own,
                &[2],
                false,
                true,
            ),
            ("another address", Down, MANAGER, other, &[2], true, true),
        ];
        for (name, was, token, address, heard, comes, manages) in rows {
            let mut state = cluster(&[(1, was), (2, Ready)]);
            match join(&state, &request(token, address, heard), Timestamp(5)) {
                Ok(admitted) => {
                    assert!(comes, "{name}");
                    let entry = crate::Entry {
                        index: 2,
                        now: Timestamp(5),
                        txn: admitted.txn,
                    };
                    state.apply(&entry).expect(name);
                    assert!(state.node(NEW).is_some(), "{name}");
                }
                Err(refusal) => {
                    assert!(!comes, "{name}: {refusal}");
                    assert_eq!(refusal.kind(), RefusalKind::InUse, "{name}");
                    assert!(
                        refusal.to_string().contains("--advertise-addr"),
                        "{name}: {refusal}"
                    );
                }
            }
            let old = state.node(OLD).expect("nobody is forgotten");
            assert_eq!(old.spec.role == NodeRole::Manager, manages, "{name}");
        }
    }

    #[test]
    fn managers_have_a_bound_and_one_that_is_replaced_does_not_count() {
        let all: Vec<_> = (1..=7).map(|id| (id, NodeState::Ready)).collect();
        assert_eq!(all.len(), members::MANAGERS_MAX);
        let state = cluster(&all);
        let refused = join(&state, &request(1, "10.0.0.8:2377", &[]), Timestamp(5)).expect_err("an eighth");
        assert_eq!(refused.kind(), RefusalKind::Invalid);
        join(&state, &request(2, "10.0.0.8:2377", &[]), Timestamp(5)).expect("a worker");
        join(&state, &request(1, "10.0.0.7:2377", &[]), Timestamp(5)).expect("the seventh again");
    }
}
