//! How the agent reaches other nodes; the daemon knows, since it holds the keys.

use std::fmt;

use model::NodeId;
use proto::channel::{self, Expect};
use proto::identity::Keychain;
use tonic::transport::Channel;

/// Connections to other nodes of the cluster.
#[tonic::async_trait]
pub trait Peers: Send + Sync {
    /// Connects to a node, at the address the manager has of it. That it is this node, the channel proves.
    ///
    /// # Errors
    /// Why it cannot be reached, for people.
    async fn connect(&self, node: NodeId, address: &str) -> Result<Channel, String>;
}

#[tonic::async_trait]
impl Peers for Keychain {
    async fn connect(&self, node: NodeId, address: &str) -> Result<Channel, String> {
        let channel = channel::connect_bulk(self, address, Expect::Node(node)).await;
        channel.map_err(|e| e.chain())
    }
}

impl fmt::Debug for dyn Peers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Peers")
    }
}
