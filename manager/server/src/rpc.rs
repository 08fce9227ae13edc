//! The Dispatcher service: messages in and out of [`crate::dispatcher`].

use proto::convert::WireError;
use proto::dispatch as wire;
use proto::dispatch::dispatcher_server::Dispatcher;
use tonic::{Request, Response, Status};

use std::sync::Arc;

use manager_core::autoscale::Usage;
use manager_core::{State, admit};
use model::{Bytes, NanoCpus, NodeId};
use proto::authz::Caller;
use proto::status;

use crate::api::writing;
use crate::dispatcher::Streamed;
use crate::server::{Cluster, Manager, NOT_IN_CLUSTER};
use crate::writer::RandomIds;

/// The Dispatcher service of a manager.
pub struct DispatcherRpc {
    manager: Manager,
}

impl DispatcherRpc {
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        self.manager
            .cluster()
            .ok_or_else(|| Status::failed_precondition(NOT_IN_CLUSTER))
    }
}

/// The node that calls, as its certificate says.
fn node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Node(node)) => Ok(*node),
        Some(Caller::Anyone | Caller::Operator) | None => {
            Err(Status::unauthenticated("this needs the certificate of a node"))
        }
    }
}

#[tonic::async_trait]
impl Dispatcher for DispatcherRpc {
    type SessionStream = Streamed<wire::SessionMessage>;
    type AssignmentsStream = Streamed<wire::AssignmentsMessage>;

    async fn session(
        &self,
        request: Request<wire::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = node(&request)?;
        let request = request.into_inner();
        let description = request.description.unwrap_or_default().into();
        let cluster = self.cluster()?;
        Ok(Response::new(
            cluster
                .dispatcher
                .session(node, description, request.raft_id)
                .await?,
        ))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatReply>, Status> {
        let node = node(&request)?;
        let request = request.get_ref();
        let dispatcher = &self.cluster()?.dispatcher;
        let period = dispatcher.beat(node, &request.session)?;
        if let Some(unreached) = &request.unreached {
            dispatcher.unreached(node, &unreached.nodes);
        }
        if let Some(used) = request.used {
            dispatcher.node_uses(node, used.into());
        }
        let heartbeat_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let measure = dispatcher.measures();
        Ok(Response::new(wire::HeartbeatReply {
            heartbeat_ns,
            measure,
        }))
    }

    async fn report_usage(
        &self,
        request: Request<wire::ReportUsageRequest>,
    ) -> Result<Response<wire::ReportUsageReply>, Status> {
        let node = node(&request)?;
        let request = request.into_inner();
        let dispatcher = &self.cluster()?.dispatcher;
        dispatcher.check(node, &request.session)?;
        let usage = request.usage.into_iter().filter_map(|used| {
            let usage = Usage {
                cpu: NanoCpus(used.nano_cpus),
                memory: Bytes(used.memory_bytes),
            };
            Some((used.task.parse().ok()?, usage))
        });
        dispatcher.used(node, usage);
        Ok(Response::new(wire::ReportUsageReply {}))
    }

    async fn assignments(
        &self,
        request: Request<wire::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let node = node(&request)?;
        let request = request.into_inner();
        let stream = self.cluster()?.dispatcher.assignments(node, request.session)?;
        Ok(Response::new(stream))
    }

    async fn acknowledge(
        &self,
        request: Request<wire::AcknowledgeRequest>,
    ) -> Result<Response<wire::AcknowledgeReply>, Status> {
        let node = node(&request)?;
        let request = request.get_ref();
        let dispatcher = &self.cluster()?.dispatcher;
        dispatcher.acknowledged(node, &request.session, request.number)?;
        Ok(Response::new(wire::AcknowledgeReply {}))
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveReply>, Status> {
        let node = node(&request)?;
        let cluster = self.cluster()?;
        if !cluster.writer.log.role().borrow().leader {
            return Err(status::not_leader(
                "this manager does not lead the cluster",
                cluster.writer.log.leader(),
            ));
        }
        let decide = move |state: &State, _, _: &mut RandomIds| admit::leave(state, node);
        cluster.writer.write(decide).await.map_err(writing)?;
        tracing::info!(%node, "a node left the cluster");
        Ok(Response::new(wire::LeaveReply {}))
    }

    async fn update_task_status(
        &self,
        request: Request<wire::UpdateTaskStatusRequest>,
    ) -> Result<Response<wire::UpdateTaskStatusReply>, Status> {
        let node = node(&request)?;
        let request = request.into_inner();
        let update = |u: wire::TaskUpdate| {
            let task = u
                .task
                .parse()
                .map_err(|e: model::IdError| Status::invalid_argument(e.to_string()))?;
            let status = u
                .status
                .ok_or_else(|| Status::invalid_argument("a report without a status"))?;
            Ok((task, status.try_into().map_err(|e: WireError| Status::from(e))?))
        };
        let updates = request
            .updates
            .into_iter()
            .map(update)
            .collect::<Result<Vec<_>, Status>>()?;
        let cluster = self.cluster()?;
        cluster.dispatcher.report(node, &request.session, updates).await?;
        Ok(Response::new(wire::UpdateTaskStatusReply {}))
    }

    async fn report_images(
        &self,
        request: Request<wire::ReportImagesRequest>,
    ) -> Result<Response<wire::ReportImagesReply>, Status> {
        let node = node(&request)?;
        let r = request.into_inner();
        let cluster = self.cluster()?;
        cluster.dispatcher.report_images(node, &r.session, r.images)?;
        Ok(Response::new(wire::ReportImagesReply {}))
    }

    async fn find_image(
        &self,
        request: Request<wire::FindImageRequest>,
    ) -> Result<Response<wire::FindImageReply>, Status> {
        let node = node(&request)?;
        let r = request.into_inner();
        let cluster = self.cluster()?;
        let found = cluster.dispatcher.find_image(node, &r.session, &r.reference)?;
        Ok(Response::new(found))
    }

    async fn vouch(
        &self,
        request: Request<wire::VouchRequest>,
    ) -> Result<Response<wire::VouchReply>, Status> {
        let node = node(&request)?;
        let r = request.into_inner();
        let other = r.node_id.parse();
        let other =
            other.map_err(|e: model::IdError| Status::invalid_argument(format!("the node's id: {e}")))?;
        let member = self.cluster()?.dispatcher.vouch(node, &r.session, other).await?;
        Ok(Response::new(wire::VouchReply { member }))
    }
}
