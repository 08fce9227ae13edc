//! The Dispatcher service: messages in and out of [`crate::dispatcher`].

use proto::convert::WireError;
use proto::dispatch as wire;
use proto::dispatch::dispatcher_server::Dispatcher;
use tonic::{Request, Response, Status};

use std::sync::Arc;

use model::NodeId;

use crate::dispatcher::Streamed;
use crate::server::{Cluster, Manager, NOT_IN_CLUSTER};

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

fn node(text: &str) -> Result<NodeId, Status> {
    text.parse()
        .map_err(|e: model::IdError| Status::invalid_argument(format!("the node's id: {e}")))
}

#[tonic::async_trait]
impl Dispatcher for DispatcherRpc {
    type SessionStream = Streamed<wire::SessionMessage>;
    type AssignmentsStream = Streamed<wire::AssignmentsMessage>;

    async fn session(
        &self,
        request: Request<wire::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let request = request.into_inner();
        let description = request.description.unwrap_or_default().into();
        let cluster = self.cluster()?;
        Ok(Response::new(
            cluster
                .dispatcher
                .session(node(&request.node_id)?, description)
                .await?,
        ))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatReply>, Status> {
        let request = request.get_ref();
        let period = self
            .cluster()?
            .dispatcher
            .beat(node(&request.node_id)?, &request.session)?;
        let heartbeat_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::HeartbeatReply { heartbeat_ns }))
    }

    async fn assignments(
        &self,
        request: Request<wire::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        let request = request.into_inner();
        let stream = self
            .cluster()?
            .dispatcher
            .assignments(node(&request.node_id)?, request.session)?;
        Ok(Response::new(stream))
    }

    async fn update_task_status(
        &self,
        request: Request<wire::UpdateTaskStatusRequest>,
    ) -> Result<Response<wire::UpdateTaskStatusReply>, Status> {
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
        cluster
            .dispatcher
            .report(node(&request.node_id)?, &request.session, updates)
            .await?;
        Ok(Response::new(wire::UpdateTaskStatusReply {}))
    }

    async fn report_images(
        &self,
        request: Request<wire::ReportImagesRequest>,
    ) -> Result<Response<wire::ReportImagesReply>, Status> {
        let r = request.into_inner();
        let cluster = self.cluster()?;
        let node = node(&r.node_id)?;
        cluster.dispatcher.report_images(node, &r.session, r.images)?;
        Ok(Response::new(wire::ReportImagesReply {}))
    }

    async fn find_image(
        &self,
        request: Request<wire::FindImageRequest>,
    ) -> Result<Response<wire::FindImageReply>, Status> {
        let r = request.into_inner();
        let cluster = self.cluster()?;
        let node = node(&r.node_id)?;
        let found = cluster.dispatcher.find_image(node, &r.session, &r.reference)?;
        Ok(Response::new(found))
    }
}
