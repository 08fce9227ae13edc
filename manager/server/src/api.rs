//! Control rpc: convert, admit, propose, answer with the version.

mod cluster;
mod filter;
mod order;
mod pins;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;

use manager_core::admit::{self, StackVerdict};
use manager_core::schedule::explain;
use manager_core::{Admitted, FindError, Kind, Refusal, RefusalKind, RequestId, State};
use model::Timestamp;
use model::object::{Key, Object, Revision, Service};
use proto::control as wire;
use proto::control::control_server::Control;
use proto::convert::WireError;
use proto::status;
use proto::types;
use tonic::{Request, Response, Status, Streaming};

use crate::dispatcher::Streamed;
use crate::front::{OPERATOR, REQUEST};
use crate::join::JoinError;
use crate::raft::ProposeError;
use crate::server::{
    Cluster, ClusterError, Manager, Membership, NEEDS_UNLOCKING, NOT_A_MANAGER, NOT_IN_CLUSTER,
};
use crate::writer::{RandomIds, WriteError};

/// The Control service of a manager.
pub struct Api {
    manager: Manager,
}

pub(crate) type Reply<T> = Result<Response<T>, Status>;

impl Api {
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        self.manager.cluster().ok_or_else(|| {
            Status::failed_precondition(match *self.manager.membership().borrow() {
                Membership::None => NOT_IN_CLUSTER,
                Membership::Locked => NEEDS_UNLOCKING,
                Membership::Worker | Membership::Manager => NOT_A_MANAGER,
            })
        })
    }

    /// The state with all that was acknowledged before the call.
    async fn read(&self) -> Result<Arc<State>, Status> {
        self.cluster()?.writer.log.read_latest().await.map_err(proposing)
    }

    async fn write(
        &self,
        asked: Asked,
        mut decide: impl FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal> + Send + 'static,
    ) -> Result<(Admitted, u64), Status> {
        let cluster = self.cluster()?;
        let by = asked.by;
        cluster
            .writer
            .write_once(asked.id, move |state, now, ids| {
                decide(state, now, ids).map(|admitted| admitted.signed(&by, now))
            })
            .await
            .map_err(|e| match e {
                WriteError::Log(ProposeError::NotLeader { .. }) => {
                    status::not_leader(e.to_string(), cluster.writer.log.leader())
                }
                e => writing(e),
            })
    }
}

pub(crate) fn writing(error: WriteError) -> Status {
    match error {
        WriteError::Refused(refusal) => refused(&refusal),
        WriteError::Log(error) => proposing(error),
    }
}

fn refused(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal.kind() {
        RefusalKind::NotFound => Status::not_found(text),
        RefusalKind::AlreadyExists => Status::already_exists(text),
        RefusalKind::Invalid => Status::invalid_argument(text),
        RefusalKind::InUse => Status::failed_precondition(text),
        RefusalKind::Conflict => Status::aborted(text),
        RefusalKind::Denied => Status::unauthenticated(text),
    }
}

fn proposing(error: ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::Stale(_) => Status::aborted(text),
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
        ProposeError::NotLeader { .. } | ProposeError::Unknown => {
            status::may_retry(Status::unavailable(text))
        }
        ProposeError::NoQuorum { .. }
        | ProposeError::NoLeader { .. }
        | ProposeError::DiskFull { .. }
        | ProposeError::Stopped { .. } => Status::unavailable(text),
    }
}

fn finding(error: &FindError) -> Status {
    match error {
        FindError::Missing { .. } => Status::not_found(error.to_string()),
        FindError::Ambiguous { .. } => Status::invalid_argument(error.to_string()),
    }
}

fn changing(error: ClusterError) -> Status {
    match error {
        ClusterError::Write(error) => writing(error),
        ClusterError::Active
        | ClusterError::Inactive
        | ClusterError::LastManager
        | ClusterError::NoManager
        | ClusterError::TooOld(_)
        | ClusterError::Manager(_) => Status::failed_precondition(error.to_string()),
        ClusterError::Locked | ClusterError::NotLocked => Status::failed_precondition(error.to_string()),
        ClusterError::WrongKey => Status::unauthenticated(error.to_string()),
        ClusterError::Address(_) | ClusterError::Backup(_) => Status::invalid_argument(error.to_string()),
        ClusterError::State(_) => Status::data_loss(error.to_string()),
        ClusterError::Ca(error) => error.into(),
        ClusterError::Join(error) => match error {
            JoinError::Token(_) | JoinError::Nowhere => Status::invalid_argument(error.to_string()),
            JoinError::Foreign { .. } => Status::failed_precondition(error.to_string()),
            JoinError::Remote(_) => Status::unavailable(error.to_string()),
            JoinError::Refused(_) => Status::unauthenticated(error.to_string()),
            JoinError::Pending { .. } => Status::internal(error.to_string()),
        },
        ClusterError::Open(_)
        | ClusterError::Keys(_)
        | ClusterError::Wipe { .. }
        | ClusterError::Identity(_) => {
            let cause = std::error::Error::source(&error)
                .map(|s| format!(": {s}"))
                .unwrap_or_default();
            Status::internal(format!("{error}{cause}"))
        }
    }
}

/// Which request it is, and whose.
#[derive(Clone)]
pub(crate) struct Asked {
    id: Option<RequestId>,
    by: String,
}

impl Asked {
    fn of<T>(request: &Request<T>) -> Self {
        let by = request.metadata().get(OPERATOR).and_then(|by| by.to_str().ok());
        Self {
            id: request_id(request),
            by: by.unwrap_or_default().to_owned(),
        }
    }
}

/// What identifies a request over all tries, if it came with it.
fn request_id<T>(request: &Request<T>) -> Option<RequestId> {
    let text = request.metadata().get(REQUEST)?.to_str().ok()?;
    let (id, digest) = text.split_once('-')?;
    let id = u128::from_str_radix(id, 16).ok().filter(|id| *id != 0)?;
    Some(RequestId {
        id,
        digest: u64::from_str_radix(digest, 16).ok()?,
    })
}

fn kind_of(number: i32) -> Result<types::Kind, Status> {
    types::Kind::try_from(number)
        .map_err(|_| Status::invalid_argument(format!("{number} is no kind of object this manager knows")))
}

/// Kinds that are named by people; the cluster is not.
fn named(kind: types::Kind) -> Option<Kind> {
    match kind {
        types::Kind::Cluster => None,
        types::Kind::Node => Some(Kind::Node),
        types::Kind::Service => Some(Kind::Service),
        types::Kind::Task => Some(Kind::Task),
        types::Kind::Network => Some(Kind::Network),
        types::Kind::Secret => Some(Kind::Secret),
        types::Kind::Config => Some(Kind::Config),
    }
}

/// An object as clients see it: the bytes of a secret never leave the managers but for the nodes that need them.
pub(crate) fn shown(object: &Object) -> types::Object {
    let mut wire = types::Object::from(object);
    if let Some(types::object::Object::Secret(secret)) = &mut wire.object
        && let Some(spec) = &mut secret.spec
    {
        spec.data.clear();
    }
    if let Some(types::object::Object::Service(service)) = &mut wire.object {
        service.history.clear();
    }
    cluster::hide_keys(&mut wire);
    wire
}

/// Fills in how many tasks of a service run, so that clients need not ask for all of them.
fn count_tasks(state: &State, object: &mut types::Object) {
    if let Some(types::object::Object::Service(shown)) = &mut object.object
        && let Some(service) = shown.id.parse().ok().and_then(|id| state.service(id))
    {
        let (running, desired) = service.count(state.tasks_of_service(service.id).map(|t| &**t));
        shown.status = Some(types::ServiceStatus {
            running: running as u64,
            desired: desired as u64,
        });
        let tally = service.tally(state.tasks_of_service(service.id).map(|t| &**t));
        shown.tally = tally.map(|(completed, total)| types::JobTally { completed, total });
    }
}

fn service_named<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Service>, Status> {
    let key = (state.find(Kind::Service, reference)).map_err(|e| finding(&e))?;
    let service = match key {
        Key::Service(id) => state.service(id),
        _ => None,
    };
    service.ok_or_else(|| Status::not_found(format!("service {reference} not found")))
}

fn id_text(key: Key) -> String {
    types::Key::from(key).id
}

fn expected(version: u64) -> Option<u64> {
    (version != 0).then_some(version)
}

fn created((admitted, version): (Admitted, u64)) -> Response<wire::CreateReply> {
    let id = admitted.keys.first().map(|k| id_text(*k)).unwrap_or_default();
    Response::new(wire::CreateReply {
        id,
        version,
        warnings: admitted.warnings,
    })
}

fn updated((admitted, version): (Admitted, u64)) -> Response<wire::UpdateReply> {
    Response::new(wire::UpdateReply {
        version,
        warnings: admitted.warnings,
    })
}

fn deployed((admitted, version): (Admitted, u64)) -> Response<wire::DeployStackReply> {
    let change = |c: admit::StackChange| wire::StackChange {
        kind: types::Key::from(c.key).kind,
        name: c.name,
        id: id_text(c.key),
        change: match c.verdict {
            StackVerdict::Created => wire::Change::Created,
            StackVerdict::Updated => wire::Change::Updated,
            StackVerdict::Unchanged => wire::Change::Unchanged,
            StackVerdict::Removed => wire::Change::Removed,
        }
        .into(),
    };
    Response::new(wire::DeployStackReply {
        changes: admitted.changes.into_iter().map(change).collect(),
        version,
        warnings: admitted.warnings,
    })
}

/// A spec of a request, in the model's types.
enum Spec {
    Service(Box<model::spec::ServiceSpec>),
    Network(model::spec::NetworkSpec),
    Secret(model::spec::SecretSpec),
    Config(model::spec::ConfigSpec),
    Node(model::object::NodeSpec),
}

fn spec_of(spec: Option<wire::Spec>) -> Result<Spec, Status> {
    use wire::spec::Spec as W;
    let spec = spec
        .and_then(|s| s.spec)
        .ok_or_else(|| Status::invalid_argument("the request has no spec"))?;
    Ok(match spec {
        W::Service(s) => Spec::Service(Box::new(s.try_into().map_err(|e: WireError| Status::from(e))?)),
        W::Network(s) => Spec::Network(s.try_into().map_err(|e: WireError| Status::from(e))?),
        W::Secret(s) => Spec::Secret(s.into()),
        W::Config(s) => Spec::Config(s.into()),
        W::Node(s) => Spec::Node(s.into()),
    })
}

#[tonic::async_trait]
impl Control for Api {
    type WatchStream = Streamed<wire::WatchEvent>;
    type BackupStream = Streamed<wire::BackupPiece>;

    async fn get_info(&self, _request: Request<wire::GetInfoRequest>) -> Reply<wire::Info> {
        Ok(Response::new(self.info()))
    }

    async fn init_cluster(
        &self,
        request: Request<wire::InitClusterRequest>,
    ) -> Reply<wire::InitClusterReply> {
        self.init(request).await
    }

    async fn join_cluster(
        &self,
        request: Request<wire::JoinClusterRequest>,
    ) -> Reply<wire::JoinClusterReply> {
        self.join(request).await
    }

    async fn unlock(&self, request: Request<wire::UnlockRequest>) -> Reply<wire::UnlockReply> {
        let key = (request.get_ref().key.parse())
            .map_err(|e: crate::raft::UnlockKeyError| Status::invalid_argument(e.to_string()))?;
        self.manager.unlock(&key).await.map_err(changing)?;
        Ok(Response::new(wire::UnlockReply {}))
    }

    async fn update_cluster(
        &self,
        request: Request<wire::UpdateClusterRequest>,
    ) -> Reply<wire::UpdateClusterReply> {
        self.change_cluster(request).await
    }

    async fn join_token(&self, request: Request<wire::JoinTokenRequest>) -> Reply<wire::JoinTokenReply> {
        self.token(request).await
    }

    async fn unlock_key(&self, _request: Request<wire::UnlockKeyRequest>) -> Reply<wire::UnlockKeyReply> {
        self.key().await
    }

    async fn rotate_authority(
        &self,
        request: Request<wire::RotateAuthorityRequest>,
    ) -> Reply<wire::RotateAuthorityReply> {
        self.rotate(request).await
    }

    async fn backup(&self, request: Request<wire::BackupRequest>) -> Reply<Self::BackupStream> {
        self.make_backup(request).await
    }

    async fn restore_cluster(
        &self,
        request: Request<Streaming<wire::RestoreRequest>>,
    ) -> Reply<wire::InitClusterReply> {
        self.restore(request).await
    }

    async fn leave_cluster(
        &self,
        request: Request<wire::LeaveClusterRequest>,
    ) -> Reply<wire::LeaveClusterReply> {
        let warning = self
            .manager
            .leave(request.get_ref().force)
            .await
            .map_err(changing)?;
        Ok(Response::new(wire::LeaveClusterReply {
            warning: warning.unwrap_or_default(),
        }))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Reply<wire::ListReply> {
        let request = request.into_inner();
        let state = self.read().await?;
        let objects = filter::list(&state, kind_of(request.kind)?, &request.filters)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut objects: Vec<types::Object> = objects.iter().map(shown).collect();
        objects.iter_mut().for_each(|o| order::say(&state, o));
        match request.kind() {
            types::Kind::Node => self.with_managers(&mut objects).await,
            types::Kind::Service => objects.iter_mut().for_each(|o| count_tasks(&state, o)),
            _ => {}
        }
        Ok(Response::new(wire::ListReply {
            objects,
            index: state.index(),
        }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Reply<types::Object> {
        let request = request.into_inner();
        let state = self.read().await?;
        let key = match named(kind_of(request.kind)?) {
            None => Key::Cluster,
            // As in Docker, "self" is the node one asks.
            Some(Kind::Node) if request.reference == "self" => Key::Node(self.manager.node_id()),
            Some(kind) => state.find(kind, &request.reference).map_err(|e| finding(&e))?,
        };
        let object = state
            .object(key)
            .ok_or_else(|| Status::not_found(NOT_IN_CLUSTER))?;
        let mut objects = [shown(&object)];
        if matches!(object, Object::Node(_)) {
            self.with_managers(&mut objects).await;
        }
        objects.iter_mut().for_each(|o| {
            count_tasks(&state, o);
            order::say(&state, o);
        });
        let [object] = objects;
        Ok(Response::new(object))
    }

    async fn create(&self, request: Request<wire::CreateRequest>) -> Reply<wire::CreateReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let spec = spec_of(request.spec)?;
        if matches!(spec, Spec::Node(_)) {
            return Err(Status::invalid_argument(
                "a node is made by joining the cluster, not by a request",
            ));
        }
        let pinning = self.pinning_of(&spec, request.no_resolve_image)?;
        let written = self
            .write(id, move |state, now, ids| match &spec {
                Spec::Service(spec) => {
                    let mut spec = (**spec).clone();
                    let warning = pinning.as_ref().and_then(|p| p.apply(state, &mut spec));
                    pins::warned(admit::create_service(state, spec, now, ids), warning)
                }
                Spec::Network(spec) => admit::create_network(state, spec.clone(), now, ids),
                Spec::Secret(spec) => admit::create_secret(state, spec.clone(), now, ids),
                Spec::Config(spec) => admit::create_config(state, spec.clone(), now, ids),
                Spec::Node(_) => Ok(Admitted::default()),
            })
            .await?;
        Ok(created(written))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Reply<wire::UpdateReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let spec = spec_of(request.spec)?;
        let reached = match &spec {
            Spec::Node(_) => self.manager.reached().await,
            Spec::Service(_) | Spec::Network(_) | Spec::Secret(_) | Spec::Config(_) => BTreeSet::new(),
        };
        let (reference, version) = (request.reference, expected(request.version));
        let pinning = self.pinning_of(&spec, request.no_resolve_image)?;
        let written = self
            .write(id, move |state, now, _| match &spec {
                Spec::Service(spec) => {
                    let mut spec = (**spec).clone();
                    let warning = pinning.as_ref().and_then(|p| p.apply(state, &mut spec));
                    let admitted = admit::update_service(state, &reference, version, spec, now);
                    pins::warned(admitted, warning)
                }
                Spec::Secret(spec) => admit::update_secret_labels(state, &reference, version, spec),
                Spec::Config(spec) => admit::update_config_labels(state, &reference, version, spec),
                Spec::Node(spec) => {
                    admit::update_node(state, &reference, version, spec.clone(), &reached, now)
                }
                Spec::Network(spec) => admit::update_network(state, &reference, version, spec, now),
            })
            .await?;
        Ok(updated(written))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Reply<wire::RemoveReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let kind = match named(kind_of(request.kind)?) {
            Some(Kind::Task) | None => {
                return Err(Status::invalid_argument(
                    "only nodes, services, networks, secrets and configs are removed",
                ));
            }
            Some(kind) => kind,
        };
        let (refs, force) = (request.references, request.force);
        let (admitted, _) = self
            .write(id, move |state, _, _| match kind {
                Kind::Node => admit::remove_nodes(state, &refs, force),
                Kind::Service => admit::remove_services(state, &refs),
                Kind::Network => admit::remove_networks(state, &refs),
                Kind::Secret => admit::remove_secrets(state, &refs),
                Kind::Config => admit::remove_configs(state, &refs),
                Kind::Task => Ok(Admitted::default()),
            })
            .await?;
        Ok(Response::new(wire::RemoveReply {
            ids: admitted.keys.into_iter().map(id_text).collect(),
        }))
    }

    async fn scale_services(&self, request: Request<wire::ScaleServicesRequest>) -> Reply<wire::UpdateReply> {
        let id = Asked::of(&request);
        let scales: Vec<(String, u32)> = request
            .into_inner()
            .scales
            .into_iter()
            .map(|s| (s.reference, s.replicas))
            .collect();
        Ok(updated(
            self.write(id, move |state, _, _| admit::scale_services(state, &scales))
                .await?,
        ))
    }

    async fn rollback_service(
        &self,
        request: Request<wire::RollbackServiceRequest>,
    ) -> Reply<wire::UpdateReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let version = expected(request.version);
        let written = self
            .write(id, move |state, now, _| {
                let to = Some(request.revision).filter(|number| *number != 0);
                admit::rollback_service(state, &request.reference, version, to, now)
            })
            .await?;
        Ok(updated(written))
    }

    async fn rebalance_service(
        &self,
        request: Request<wire::RebalanceServiceRequest>,
    ) -> Reply<wire::RebalanceServiceReply> {
        let id = Asked::of(&request);
        let wanted = request.into_inner();
        let (admitted, _) = self
            .write(id, move |state, _, _| {
                admit::rebalance_service(state, &wanted.reference, wanted.parallelism, wanted.dry_run)
            })
            .await?;
        Ok(Response::new(wire::RebalanceServiceReply {
            tasks: admitted.keys.into_iter().map(id_text).collect(),
        }))
    }

    async fn steer_rollout(&self, request: Request<wire::SteerRolloutRequest>) -> Reply<wire::UpdateReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let version = expected(request.version);
        let steer = match request.steer() {
            wire::Steer::Pause => admit::Steer::Pause,
            wire::Steer::Resume => admit::Steer::Resume,
            wire::Steer::Promote => admit::Steer::Promote,
            wire::Steer::Abort => admit::Steer::Abort,
        };
        let written = self
            .write(id, move |state, now, _| {
                admit::steer_rollout(state, &request.reference, version, steer, now)
            })
            .await?;
        Ok(updated(written))
    }

    async fn run_job(&self, request: Request<wire::RunJobRequest>) -> Reply<wire::UpdateReply> {
        let id = Asked::of(&request);
        let reference = request.into_inner().reference;
        let written = self
            .write(id, move |state, now, _| admit::run_job(state, &reference, now))
            .await?;
        Ok(updated(written))
    }

    async fn service_history(&self, request: Request<wire::GetRequest>) -> Reply<wire::ServiceHistoryReply> {
        let state = self.read().await?;
        let service = service_named(&state, &request.get_ref().reference)?;
        let present = Revision {
            number: service.spec_version,
            spec: service.spec.clone(),
            made: service.made.clone().unwrap_or_default(),
        };
        let kept = service.history.iter().map(|r| types::Revision::from(&**r));
        let previous = service.previous_spec.as_ref().map(|_| service.previous_number());
        Ok(Response::new(wire::ServiceHistoryReply {
            revisions: kept.chain([(&present).into()]).collect(),
            previous: previous.unwrap_or(0),
        }))
    }

    async fn deploy_stack(
        &self,
        request: Request<wire::DeployStackRequest>,
    ) -> Reply<wire::DeployStackReply> {
        let id = Asked::of(&request);
        let request = request.into_inner();
        let when = request.resolve_image();
        let stack: model::spec::StackSpec = request
            .stack
            .ok_or_else(|| Status::invalid_argument("the request has no stack"))?
            .try_into()
            .map_err(|e: WireError| Status::from(e))?;
        let (prune, when) = (request.prune, pins::when(when));
        let pinning = self.pinning(&stack.services, when)?;
        let written = self
            .write(id, move |state, now, ids| {
                let mut stack = stack.clone();
                let pin = |spec| pinning.apply(state, spec);
                let warnings: Vec<String> = stack.services.iter_mut().filter_map(pin).collect();
                pins::warned(admit::deploy_stack(state, stack, prune, now, ids), warnings)
            })
            .await?;
        Ok(deployed(written))
    }

    async fn remove_stacks(
        &self,
        request: Request<wire::RemoveStacksRequest>,
    ) -> Reply<wire::DeployStackReply> {
        let id = Asked::of(&request);
        let namespaces = request.into_inner().namespaces;
        Ok(deployed(
            self.write(id, move |state, _, _| admit::remove_stacks(state, &namespaces))
                .await?,
        ))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Reply<Self::WatchStream> {
        let request = request.into_inner();
        let cluster = self.cluster()?;
        // So that the first event has what the caller wrote before.
        let state = self.read().await?;
        let kinds = request
            .kinds
            .iter()
            .map(|k| kind_of(*k))
            .collect::<Result<Vec<_>, _>>()?;
        let service = match request.service.as_str() {
            "" => None,
            reference => match state.find(Kind::Service, reference).map_err(|e| finding(&e))? {
                Key::Service(id) => Some(id),
                _ => None,
            },
        };
        let wanted = watch::Wanted { kinds, service };
        Ok(Response::new(watch::start(&cluster.writer.log, wanted)))
    }

    async fn service_why(&self, request: Request<wire::GetRequest>) -> Reply<wire::ServiceWhyReply> {
        let state = self.read().await?;
        let id = service_named(&state, &request.get_ref().reference)?.id;
        let node = |n: explain::NodeReason| wire::NodeWhy {
            node: n.node.to_string(),
            hostname: n.hostname,
            reason: n.reason,
        };
        let (said, waiting) = explain::service_why(&state, id);
        let held = state.service(id).and_then(|s| {
            Some(wire::TaskWhy {
                message: order::why(&state, s)?,
                name: s.spec.name.clone(),
                ..wire::TaskWhy::default()
            })
        });
        let tasks = said.into_iter().map(|(task, nodes)| wire::TaskWhy {
            task: task.id.to_string(),
            name: task.name(),
            message: if task.status.error.is_empty() {
                task.status.message
            } else {
                task.status.error
            },
            nodes: nodes.into_iter().map(node).collect(),
        });
        Ok(Response::new(wire::ServiceWhyReply {
            tasks: held.into_iter().chain(tasks).collect(),
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
        }))
    }
}
