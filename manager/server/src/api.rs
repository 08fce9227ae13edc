//! Control rpc: convert, admit, propose, answer with the version.

mod filter;
mod pins;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use manager_core::admit::{self, ClusterRequest, StackVerdict};
use manager_core::schedule::explain;
use manager_core::{Admitted, FindError, Kind, Refusal, RefusalKind, State};
use model::Timestamp;
use model::object::{Key, NodeRole, Object};
use proto::control as wire;
use proto::control::control_server::Control;
use proto::convert::WireError;
use proto::types;
use tonic::{Request, Response, Status};

use crate::dispatcher::Streamed;
use crate::raft::ProposeError;
use crate::server::{Cluster, ClusterError, Manager, NOT_IN_CLUSTER};
use crate::writer::{RandomIds, WriteError};

/// The Control service of a manager.
pub struct Api {
    manager: Manager,
}

type Reply<T> = Result<Response<T>, Status>;

impl Api {
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        self.manager
            .cluster()
            .ok_or_else(|| Status::failed_precondition(NOT_IN_CLUSTER))
    }

    /// The state with all that was acknowledged before the call.
    async fn read(&self) -> Result<Arc<State>, Status> {
        self.cluster()?.writer.log.read_latest().await.map_err(proposing)
    }

    async fn write(
        &self,
        decide: impl FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal> + Send + 'static,
    ) -> Result<(Admitted, u64), Status> {
        self.cluster()?.writer.write(decide).await.map_err(writing)
    }
}

fn writing(error: WriteError) -> Status {
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
    }
}

fn proposing(error: ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::Stale(_) => Status::aborted(text),
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
        ProposeError::NotLeader { .. } | ProposeError::Unknown | ProposeError::Stopped { .. } => {
            Status::unavailable(text)
        }
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
        ClusterError::Active | ClusterError::Inactive | ClusterError::LastManager => {
            Status::failed_precondition(error.to_string())
        }
        ClusterError::Open(_) | ClusterError::Wipe { .. } => {
            let cause = std::error::Error::source(&error)
                .map(|s| format!(": {s}"))
                .unwrap_or_default();
            Status::internal(format!("{error}{cause}"))
        }
    }
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
    wire
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

fn cluster_request(request: &wire::InitClusterRequest) -> Result<ClusterRequest, Status> {
    let pool = |text: &String| {
        text.parse()
            .map_err(|e| Status::invalid_argument(format!("the address pool \"{text}\" cannot be read: {e}")))
    };
    Ok(ClusterRequest {
        task_history_limit: request.task_history_limit,
        heartbeat: Duration::from_nanos(request.heartbeat_ns),
        address_pools: request.address_pools.iter().map(pool).collect::<Result<_, _>>()?,
        subnet_prefix: u8::try_from(request.subnet_prefix)
            .map_err(|_| Status::invalid_argument("the length of a subnet's prefix is at most 128"))?,
        availability: request.availability().into(),
    })
}

#[tonic::async_trait]
impl Control for Api {
    type WatchStream = Streamed<wire::WatchEvent>;

    async fn get_info(&self, _request: Request<wire::GetInfoRequest>) -> Reply<wire::Info> {
        let config = self.manager.config();
        let mut info = wire::Info {
            node_id: config.node_id.to_string(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            hostname: config.hostname.clone(),
            data_dir: config.data_dir.display().to_string(),
            ..wire::Info::default()
        };
        let Some(cluster) = self.manager.cluster() else {
            return Ok(Response::new(info));
        };
        let role = *cluster.writer.log.role().borrow();
        let state = cluster.writer.log.read();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        info.active = true;
        info.cluster_id = state.cluster().map(|c| c.id.to_string()).unwrap_or_default();
        info.leader = role.leader;
        info.raft_term = role.term;
        info.nodes = count(state.nodes().count());
        info.managers = count(state.nodes().filter(|n| n.spec.role == NodeRole::Manager).count());
        info.services = count(state.services().count());
        info.tasks = count(state.tasks().count());
        info.index = state.index();
        info.node_address = state
            .node(config.node_id)
            .map(|n| n.description.address.clone())
            .unwrap_or_default();
        Ok(Response::new(info))
    }

    async fn init_cluster(
        &self,
        request: Request<wire::InitClusterRequest>,
    ) -> Reply<wire::InitClusterReply> {
        let request = request.into_inner();
        let id = self
            .manager
            .init(&cluster_request(&request)?, &request.advertise_addr)
            .await
            .map_err(changing)?;
        Ok(Response::new(wire::InitClusterReply {
            node_id: self.manager.node_id().to_string(),
            cluster_id: id.to_string(),
        }))
    }

    async fn leave_cluster(
        &self,
        request: Request<wire::LeaveClusterRequest>,
    ) -> Reply<wire::LeaveClusterReply> {
        self.manager
            .leave(request.get_ref().force)
            .await
            .map_err(changing)?;
        Ok(Response::new(wire::LeaveClusterReply {}))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Reply<wire::ListReply> {
        let request = request.into_inner();
        let state = self.read().await?;
        let objects = filter::list(&state, kind_of(request.kind)?, &request.filters)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(wire::ListReply {
            objects: objects.iter().map(shown).collect(),
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
        Ok(Response::new(shown(&object)))
    }

    async fn create(&self, request: Request<wire::CreateRequest>) -> Reply<wire::CreateReply> {
        let request = request.into_inner();
        let spec = spec_of(request.spec)?;
        if matches!(spec, Spec::Node(_)) {
            return Err(Status::invalid_argument(
                "a node is made by joining the cluster, not by a request",
            ));
        }
        let pinning = self.pinning_of(&spec, request.no_resolve_image)?;
        let written = self
            .write(move |state, now, ids| match &spec {
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
        let request = request.into_inner();
        let spec = spec_of(request.spec)?;
        let (reference, version) = (request.reference, expected(request.version));
        if matches!(spec, Spec::Network(_)) {
            return Err(Status::invalid_argument(
                "a network cannot be changed: remove it and make it again",
            ));
        }
        let pinning = self.pinning_of(&spec, request.no_resolve_image)?;
        let written = self
            .write(move |state, now, _| match &spec {
                Spec::Service(spec) => {
                    let mut spec = (**spec).clone();
                    let warning = pinning.as_ref().and_then(|p| p.apply(state, &mut spec));
                    let admitted = admit::update_service(state, &reference, version, spec, now);
                    pins::warned(admitted, warning)
                }
                Spec::Secret(spec) => admit::update_secret_labels(state, &reference, version, spec),
                Spec::Config(spec) => admit::update_config_labels(state, &reference, version, spec),
                Spec::Node(spec) => admit::update_node(state, &reference, version, spec.clone()),
                Spec::Network(_) => Ok(Admitted::default()),
            })
            .await?;
        Ok(updated(written))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Reply<wire::RemoveReply> {
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
            .write(move |state, _, _| match kind {
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
        let scales: Vec<(String, u32)> = request
            .into_inner()
            .scales
            .into_iter()
            .map(|s| (s.reference, s.replicas))
            .collect();
        Ok(updated(
            self.write(move |state, _, _| admit::scale_services(state, &scales))
                .await?,
        ))
    }

    async fn rollback_service(
        &self,
        request: Request<wire::RollbackServiceRequest>,
    ) -> Reply<wire::UpdateReply> {
        let request = request.into_inner();
        let version = expected(request.version);
        let written = self
            .write(move |state, now, _| admit::rollback_service(state, &request.reference, version, now))
            .await?;
        Ok(updated(written))
    }

    async fn deploy_stack(
        &self,
        request: Request<wire::DeployStackRequest>,
    ) -> Reply<wire::DeployStackReply> {
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
            .write(move |state, now, ids| {
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
        let namespaces = request.into_inner().namespaces;
        Ok(deployed(
            self.write(move |state, _, _| admit::remove_stacks(state, &namespaces))
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
        let key = state
            .find(Kind::Service, &request.get_ref().reference)
            .map_err(|e| finding(&e))?;
        let Key::Service(id) = key else {
            return Err(Status::not_found("no such service"));
        };
        let node = |n: explain::NodeReason| wire::NodeWhy {
            node: n.node.to_string(),
            hostname: n.hostname,
            reason: n.reason,
        };
        let tasks = explain::service_why(&state, id)
            .into_iter()
            .map(|(task, nodes)| wire::TaskWhy {
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
            tasks: tasks.collect(),
        }))
    }
}
