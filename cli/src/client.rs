//! Connections to the daemon, and how its refusals read.

use std::path::PathBuf;
use std::sync::Arc;

use model::NodeId;
use model::object::{Cluster, Node, Object, Service};
use proto::control::control_client::ControlClient;
use proto::control::{Filter, GetRequest, ListRequest};
use proto::host::host_client::HostClient;
use proto::types::{JobTally, Kind, ManagerStatus, ServiceStatus};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

/// Largest answer taken: a list of 20,000 tasks has some 30 MB.
const ANSWER_MAX: usize = 256 << 20;

/// Why a command failed: one line.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) message: String,
    /// Of a call that was refused.
    pub(crate) code: Option<tonic::Code>,
}

impl Fail {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
        }
    }
}

impl From<tonic::Status> for Fail {
    fn from(status: tonic::Status) -> Self {
        if status.message() == "transport error" {
            return Self::new(
                "the daemon closed the connection before it answered: look at its log; whether the command took effect is not known",
            );
        }
        Self {
            message: status.message().into(),
            code: Some(status.code()),
        }
    }
}

impl From<String> for Fail {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<proto::channel::ConnectError> for Fail {
    fn from(error: proto::channel::ConnectError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<proto::convert::WireError> for Fail {
    fn from(error: proto::convert::WireError) -> Self {
        Self::new(format!("the daemon answered what cannot be read: {error}"))
    }
}

/// A client of a node's host.
pub(crate) type RemoteHost = HostClient<InterceptedService<Channel, Aim>>;

/// Says with every call which node's host is meant.
#[derive(Clone)]
pub(crate) struct Aim {
    node: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Aim {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(node) = &self.node {
            request.metadata_mut().insert(manager_server::NODE, node.clone());
        }
        Ok(request)
    }
}

/// The daemon at a socket.
pub(crate) struct Client {
    pub(crate) socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) async fn control(&self) -> Result<ControlClient<Channel>, Fail> {
        let channel = proto::channel::connect(&self.socket).await?;
        Ok(ControlClient::new(channel).max_decoding_message_size(ANSWER_MAX))
    }

    pub(crate) async fn host(&self) -> Result<HostClient<Channel>, Fail> {
        let channel = proto::channel::connect(&self.socket).await?;
        Ok(HostClient::new(channel).max_decoding_message_size(ANSWER_MAX))
    }

    /// The host of a node: this one's, or another's through the managers.
    pub(crate) async fn host_of(&self, node: Option<NodeId>) -> Result<RemoteHost, Fail> {
        let channel = proto::channel::connect(&self.socket).await?;
        let aim = Aim {
            node: node.and_then(|n| n.to_string().parse().ok()),
        };
        Ok(HostClient::with_interceptor(channel, aim).max_decoding_message_size(ANSWER_MAX))
    }

    /// The cluster.
    pub(crate) async fn cluster(&self) -> Result<Arc<Cluster>, Fail> {
        match self.get(Kind::Cluster, "").await? {
            Object::Cluster(cluster) => Ok(cluster),
            _ => Err(Fail::new("the manager answered something else than the cluster")),
        }
    }

    /// Nodes that match filters, each with what is known of it as a manager.
    pub(crate) async fn nodes(
        &self,
        filters: &[String],
    ) -> Result<Vec<(Arc<Node>, Option<ManagerStatus>)>, Fail> {
        let mut nodes = Vec::new();
        for object in self.list_wire(Kind::Node, filters).await? {
            let manager = match &object.object {
                Some(proto::types::object::Object::Node(node)) => node.manager.clone(),
                _ => None,
            };
            if let Object::Node(node) = object.try_into()? {
                nodes.push((node, manager));
            }
        }
        Ok(nodes)
    }

    /// Services that match filters, each with how many of its tasks run and, of a job, completed.
    pub(crate) async fn services(
        &self,
        filters: &[String],
    ) -> Result<Vec<(Arc<Service>, ServiceStatus, Option<JobTally>)>, Fail> {
        let mut services = Vec::new();
        for object in self.list_wire(Kind::Service, filters).await? {
            let (status, tally) = match &object.object {
                Some(proto::types::object::Object::Service(service)) => (service.status, service.tally),
                _ => (None, None),
            };
            if let Object::Service(service) = object.try_into()? {
                services.push((service, status.unwrap_or_default(), tally));
            }
        }
        Ok(services)
    }

    /// Objects of a kind that match filters `key=value`.
    pub(crate) async fn list(&self, kind: Kind, filters: &[String]) -> Result<Vec<Object>, Fail> {
        let objects = self.list_wire(kind, filters).await?;
        Ok(objects
            .into_iter()
            .map(Object::try_from)
            .collect::<Result<_, _>>()?)
    }

    async fn list_wire(&self, kind: Kind, filters: &[String]) -> Result<Vec<proto::types::Object>, Fail> {
        let mut list = Vec::new();
        for filter in filters {
            let (key, value) = filter.split_once('=').ok_or_else(|| {
                Fail::new(format!("the filter \"{filter}\" cannot be read: write KEY=VALUE"))
            })?;
            list.push(Filter {
                key: key.into(),
                value: value.into(),
            });
        }
        let request = ListRequest {
            kind: kind.into(),
            filters: list,
        };
        Ok(self.control().await?.list(request).await?.into_inner().objects)
    }

    pub(crate) async fn get(&self, kind: Kind, reference: &str) -> Result<Object, Fail> {
        let request = GetRequest {
            kind: kind.into(),
            reference: reference.into(),
        };
        Ok(self
            .control()
            .await?
            .get(request)
            .await?
            .into_inner()
            .try_into()?)
    }
}
