//! Connections to the daemon, and how its refusals read.

use std::path::PathBuf;

use model::object::Object;
use proto::control::control_client::ControlClient;
use proto::control::{Filter, GetRequest, ListRequest};
use proto::host::host_client::HostClient;
use proto::types::Kind;
use tonic::transport::Channel;

/// Largest answer taken: a list of 20,000 tasks has some 30 MB.
const ANSWER_MAX: usize = 256 << 20;

/// Why a command failed: one line.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) message: String,
}

impl Fail {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
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
        Self::new(status.message())
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

    /// Objects of a kind that match filters `key=value`.
    pub(crate) async fn list(&self, kind: Kind, filters: &[String]) -> Result<Vec<Object>, Fail> {
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
        let reply = self.control().await?.list(request).await?.into_inner();
        Ok(reply
            .objects
            .into_iter()
            .map(Object::try_from)
            .collect::<Result<_, _>>()?)
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
