//! The cluster itself: making, joining and leaving it, its settings, tokens and authority.

use std::collections::BTreeMap;
use std::time::Duration;

use manager_core::State;
use manager_core::admit::{self, ClusterChanges, ClusterRequest, TokenRequest};
use model::object::NodeRole;
use model::{Level, NodeId};
use proto::control as wire;
use proto::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, Reply, changing};
use crate::ca;
use crate::dispatcher::Streamed;
use crate::init::{self, InitRequest, Made, listen_address, now};
use crate::join;
use crate::raft::{UnlockKey, UnlockKeyError};
use crate::server::Membership;
use crate::writer::{RandomIds, random};

/// Pieces of a backup under way.
const PIECES_QUEUED: usize = 4;
/// Managers a joining host may name.
const NAMED_MAX: usize = 16;

fn unlock_text(key: &[u8]) -> String {
    UnlockKey::from_bytes(key)
        .map(|k| k.to_string())
        .unwrap_or_default()
}

fn init_request(request: &wire::InitClusterRequest) -> Result<InitRequest, Status> {
    let pool = |text: &String| {
        text.parse()
            .map_err(|e| Status::invalid_argument(format!("the address pool \"{text}\" cannot be read: {e}")))
    };
    let mut cluster = ClusterRequest {
        task_history_limit: request.task_history_limit,
        heartbeat: Duration::from_nanos(request.heartbeat_ns),
        address_pools: request.address_pools.iter().map(pool).collect::<Result<_, _>>()?,
        subnet_prefix: u8::try_from(request.subnet_prefix)
            .map_err(|_| Status::invalid_argument("the length of a subnet's prefix is at most 128"))?,
        availability: request.availability().into(),
        labels: init::labels(&request.labels),
        ..ClusterRequest::default()
    };
    cluster.security.certificate_expiry = Duration::from_nanos(request.certificate_expiry_ns);
    if request.autolock {
        cluster.security.unlock_key = random::<32>().to_vec();
    }
    Ok(InitRequest {
        cluster,
        listen: request.listen_addr.clone(),
        advertise: request.advertise_addr.clone(),
    })
}

fn made(made: Made, unlock_key: String) -> wire::InitClusterReply {
    wire::InitClusterReply {
        node_id: made.node.to_string(),
        cluster_id: made.cluster.to_string(),
        token: made.token,
        address: made.address,
        unlock_key,
    }
}

fn read_key(text: &str) -> Result<UnlockKey, Status> {
    text.parse()
        .map_err(|e: UnlockKeyError| Status::invalid_argument(e.to_string()))
}

impl Api {
    pub(super) fn info(&self) -> wire::Info {
        let config = self.manager.config();
        let keychain = self.manager.keychain();
        let mut info = wire::Info {
            engine_version: env!("CARGO_PKG_VERSION").into(),
            hostname: config.hostname.clone(),
            data_dir: config.data_dir.display().to_string(),
            level_known: config.level.number(),
            ..wire::Info::default()
        };
        info.locked = *self.manager.membership().borrow() == Membership::Locked;
        let Some(identity) = keychain.identity() else {
            return info;
        };
        let place = keychain.place();
        info.active = true;
        info.node_id = identity.subject.node.to_string();
        info.cluster_id = identity.subject.cluster.to_string();
        info.node_address = place.address;
        info.manager = *self.manager.membership().borrow() == Membership::Manager;
        info.known_managers = (place.managers.into_iter())
            .map(|(node, address)| types::Peer {
                node_id: node.to_string(),
                address,
                ..types::Peer::default()
            })
            .collect();
        if keychain.clock().now().1 {
            info.warnings.push(
                "E_CLOCK_SKEW: the clock of this host is more than a day from the cluster's; certificates are judged by the \
                 cluster's. Set the clock"
                    .into(),
            );
        }
        let Some(cluster) = self.manager.cluster() else {
            return info;
        };
        let role = *cluster.writer.log.role().borrow();
        let state = cluster.writer.log.read();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        info.leader = role.leader;
        info.raft_term = role.term;
        info.nodes = count(state.node_count());
        info.managers = count(state.managers().count());
        info.services = count(state.service_count());
        info.tasks = count(state.task_count());
        info.index = state.index();
        info.warnings
            .extend(manager_core::members::advice(info.managers as usize));
        info.level = state.cluster().map_or(0, |c| c.level.number());
        info.warnings.extend(admit::level::advice(&state));
        info
    }

    pub(super) async fn init(
        &self,
        request: Request<wire::InitClusterRequest>,
    ) -> Reply<wire::InitClusterReply> {
        if request.get_ref().force_new {
            return Ok(Response::new(made(
                self.manager.force_new().await.map_err(changing)?,
                String::new(),
            )));
        }
        let request = init_request(request.get_ref())?;
        let unlock_key = unlock_text(&request.cluster.security.unlock_key);
        let made = self.manager.init(request).await.map_err(changing)?;
        Ok(Response::new(self::made(made, unlock_key)))
    }

    pub(super) async fn make_backup(
        &self,
        request: Request<wire::BackupRequest>,
    ) -> Reply<Streamed<wire::BackupPiece>> {
        let key = read_key(&request.get_ref().key)?;
        // With all that was acknowledged before.
        self.read().await?;
        let mut pieces = self.cluster()?.writer.log.backup(key);
        let (send, stream) = mpsc::channel(PIECES_QUEUED);
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                let piece = piece
                    .map(|data| wire::BackupPiece { data })
                    .map_err(Status::internal);
                if send.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    pub(super) async fn restore(
        &self,
        request: Request<Streaming<wire::RestoreRequest>>,
    ) -> Reply<wire::InitClusterReply> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let key = read_key(&first.key)?;
        let listen = listen_address(&first.listen_addr).map_err(changing)?;
        let (send, pieces) = mpsc::channel(PIECES_QUEUED);
        let mut data = first.data;
        tokio::spawn(async move {
            // What is cut off here is seen as a backup without its end.
            while send.send(data).await.is_ok() {
                match messages.message().await {
                    Ok(Some(message)) => data = message.data,
                    Ok(None) | Err(_) => return,
                }
            }
        });
        let done = self
            .manager
            .restore(&key, pieces, &listen, &first.advertise_addr)
            .await;
        Ok(Response::new(made(done.map_err(changing)?, String::new())))
    }

    pub(super) async fn join(
        &self,
        request: Request<wire::JoinClusterRequest>,
    ) -> Reply<wire::JoinClusterReply> {
        let request = request.into_inner();
        if request.managers.len() > NAMED_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {NAMED_MAX} managers are named"
            )));
        }
        let (cluster, role) = self
            .manager
            .join(join::Request {
                listen: listen_address(&request.listen_addr).map_err(changing)?,
                advertise: request.advertise_addr.clone(),
                availability: request.availability().into(),
                labels: init::labels(&request.labels),
                managers: request.managers,
                token: request.token,
            })
            .await
            .map_err(changing)?;
        Ok(Response::new(wire::JoinClusterReply {
            node_id: self.manager.node_id().to_string(),
            cluster_id: cluster.to_string(),
            manager: role == NodeRole::Manager,
        }))
    }

    pub(super) async fn change_cluster(
        &self,
        request: Request<wire::UpdateClusterRequest>,
    ) -> Reply<wire::UpdateClusterReply> {
        let id = super::Asked::of(&request);
        let request = request.into_inner();
        let locked = self.cluster()?.writer.log.read();
        let locked = locked
            .cluster()
            .is_some_and(|c| !c.security.unlock_key.is_empty());
        let unlock_key = match (request.autolock, request.rotate_unlock_key) {
            (Some(false), _) => Some(Vec::new()),
            (Some(true), _) if !locked => Some(random::<32>().to_vec()),
            (_, true) if locked || request.autolock == Some(true) => Some(random::<32>().to_vec()),
            (_, true) => {
                return Err(Status::failed_precondition(
                    "there is no unlock key to rotate: managers are not locked; rswarm swarm update --autolock",
                ));
            }
            _ => None,
        };
        let level = request.level;
        let mut changes = ClusterChanges {
            task_history_limit: request.task_history_limit,
            heartbeat: request.heartbeat_ns.map(Duration::from_nanos),
            certificate_expiry: request.certificate_expiry_ns.map(Duration::from_nanos),
            unlock_key,
            level: None,
        };
        let asks_for_key =
            changes.unlock_key.as_ref().is_some_and(|key| !key.is_empty()) || request.autolock == Some(true);
        let expected = super::expected(request.version);
        let (_, version) = self
            .write(id, move |state, _, _| {
                changes.level = level.map(|level| match level {
                    0 => admit::level::known_by_all(state),
                    level => Level::new(level),
                });
                admit::update_cluster(state, expected, &changes)
            })
            .await?;
        // What stands, not what was chosen here: a repeated request is answered by what its first try wrote.
        let state = self.cluster()?.writer.log.read();
        let cluster = state.cluster();
        let key = cluster.filter(|_| asks_for_key).map(|c| &c.security.unlock_key);
        Ok(Response::new(wire::UpdateClusterReply {
            version,
            unlock_key: key.map(|key| unlock_text(key)).unwrap_or_default(),
            level: cluster.map_or(0, |c| c.level.number()),
        }))
    }

    pub(super) async fn token(
        &self,
        request: Request<wire::JoinTokenRequest>,
    ) -> Reply<wire::JoinTokenReply> {
        let id = super::Asked::of(&request);
        let request = request.into_inner();
        let role = if request.manager {
            NodeRole::Manager
        } else {
            NodeRole::Worker
        };
        if request.rotate {
            self.write(id.clone(), move |state, _, _| admit::rotate_token(state, role))
                .await?;
        }
        let mut serial = None;
        if request.make {
            let ttl = Duration::from_nanos(request.ttl_ns);
            let (uses, labels) = ((request.uses != 0).then_some(request.uses), request.labels);
            let decide = move |state: &State, now, _: &mut RandomIds| {
                let wanted = TokenRequest {
                    role,
                    expires_at: (!ttl.is_zero()).then_some(now + ttl),
                    uses,
                    labels,
                };
                admit::make_token(state, &wanted, now)
            };
            let (_, version) = self.write(id, decide).await?;
            // Of requests that shared an entry the newest of the wanted kind may be another's: both are good tokens.
            let _ = version;
            let state = self.read().await?;
            let made = state.cluster().and_then(|c| {
                let mut wanted = c.security.tokens.iter().rev();
                wanted.find(|t| {
                    t.role == role
                        && !t.standing
                        && t.labels == labels
                        && (uses.is_none() || t.uses_left == uses)
                })
            });
            serial = made.map(|t| t.serial);
        }
        let state = self.read().await?;
        let cluster = state
            .cluster()
            .ok_or_else(|| Status::not_found("there is no cluster"))?;
        let token = match serial {
            Some(serial) => cluster.security.tokens.iter().find(|t| t.serial == serial),
            None => ca::standing(&cluster.security, role),
        };
        let token = token.ok_or_else(|| Status::not_found("there is no such join token"))?;
        let own = state.node(self.manager.node_id());
        Ok(Response::new(wire::JoinTokenReply {
            token: ca::token_text(&cluster.security, token)?,
            address: own.map(|n| n.description.address.clone()).unwrap_or_default(),
        }))
    }

    pub(super) async fn key(&self) -> Reply<wire::UnlockKeyReply> {
        let state = self.read().await?;
        let key = state.cluster().map(|c| unlock_text(&c.security.unlock_key));
        Ok(Response::new(wire::UnlockKeyReply {
            key: key.unwrap_or_default(),
        }))
    }

    pub(super) async fn rotate(
        &self,
        request: Request<wire::RotateAuthorityRequest>,
    ) -> Reply<wire::RotateAuthorityReply> {
        let id = super::Asked::of(&request);
        let request = request.into_inner();
        let next = if request.certificate.is_empty() {
            ca::new_authority(now())?
        } else {
            ca::given_authority(&request.certificate, &request.key)
                .map_err(|e| Status::invalid_argument(e.to_string()))?
        };
        let state = self.read().await?;
        let cluster = state
            .cluster()
            .ok_or_else(|| Status::not_found("there is no cluster"))?;
        // Always by the authority that every node trusts already, however many rotations are begun.
        let cross_signed = ca::cross_sign(&cluster.security.authority, &next, now())?;
        self.write(id, move |state, now, _| {
            admit::begin_rotation(state, &next, &cross_signed, now)
        })
        .await?;
        Ok(Response::new(wire::RotateAuthorityReply {}))
    }

    /// Fills in what is known of managers and does not stand in the state.
    pub(super) async fn with_managers(&self, objects: &mut [types::Object]) {
        let Some(cluster) = self.manager.cluster() else {
            return;
        };
        let log = &cluster.writer.log;
        let members: BTreeMap<NodeId, (String, bool)> = (log.members().into_iter())
            .map(|(_, node, address, votes)| (node, (address, votes)))
            .collect();
        let leader = match log.leader() {
            Some((node, _)) => Some(node),
            None => log.role().borrow().leader.then(|| self.manager.node_id()),
        };
        let reached = self.manager.reached().await;
        for object in objects {
            let Some(types::object::Object::Node(node)) = &mut object.object else {
                continue;
            };
            let Ok(id) = node.id.parse::<NodeId>() else {
                continue;
            };
            if let Some((address, votes)) = members.get(&id) {
                node.manager = Some(types::ManagerStatus {
                    leader: leader == Some(id),
                    reachable: reached.contains(&id),
                    voter: *votes,
                    address: address.clone(),
                });
            }
        }
    }
}

/// Takes the keys of the cluster out of what a client is shown.
pub(super) fn hide_keys(object: &mut types::Object) {
    if let Some(types::object::Object::Cluster(cluster)) = &mut object.object
        && let Some(security) = &mut cluster.security
    {
        security.token_key.clear();
        security.unlock_key.clear();
        for authority in security.authority.iter_mut().chain(security.next.iter_mut()) {
            authority.key.clear();
        }
    }
}
