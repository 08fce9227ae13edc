//! What nodes hold of images: reports in, answers out. In the memory of the leader only.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use manager_core::images::{Found, HeldImage, Inventory, InventoryError, sources};
use model::object::NodeState;
use model::spec::{IMAGE_MAX, ImageId};
use model::{NodeId, Timestamp};
use proto::dispatch as wire;
use proto::status;
use tonic::Status;

use super::Dispatcher;

/// Time in which a new leader hears of the nodes; until then an image nobody named may still be named.
const SETTLE: Duration = Duration::from_secs(5);

impl Dispatcher {
    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what an earlier leadership heard.
    pub(super) fn forget_images(&self) {
        *self.inventory() = Inventory::default();
    }

    /// Nodes with a session: whoever is silent is not asked, and its names do not count.
    fn heard_of(&self) -> BTreeSet<NodeId> {
        let nodes = self.nodes();
        let heard = nodes.sessions.iter().filter(|(_, s)| !s.leaving);
        heard.map(|(id, _)| *id).collect()
    }

    /// Takes all that a node holds.
    pub(crate) fn report_images(
        &self,
        node: NodeId,
        session: &str,
        images: Vec<wire::HeldImage>,
    ) -> Result<(), Status> {
        self.check(node, session)?;
        let held = |image: wire::HeldImage| {
            let id = image.id.parse::<ImageId>();
            Ok(HeldImage {
                id: id.map_err(|e| Status::invalid_argument(e.to_string()))?,
                created: Timestamp(image.created_ms),
                names: image.references,
            })
        };
        let images = images.into_iter().map(held).collect::<Result<Vec<_>, Status>>()?;
        let state = self.log.read();
        let mut inventory = self.inventory();
        // Nodes that were removed are forgotten here, since only here the inventory grows.
        inventory.retain(|id| state.node(id).is_some());
        inventory.report(node, images).map_err(|error| match error {
            InventoryError::Node => Status::invalid_argument(error.to_string()),
            InventoryError::Cluster => Status::resource_exhausted(error.to_string()),
        })
    }

    /// Which image a reference means.
    pub(crate) fn resolve_image(&self, reference: &str) -> Option<Found> {
        let heard = self.heard_of();
        self.inventory().resolve(reference, |node| heard.contains(&node))
    }

    /// Whether another node is part of the cluster, for one that it asks for an image.
    pub(crate) async fn vouch(&self, node: NodeId, session: &str, other: NodeId) -> Result<bool, Status> {
        self.check(node, session)?;
        // One that others have replaced may know of nodes that were removed since.
        let newest = self.log.confirm().await;
        newest.map_err(|e| status::may_retry(Status::unavailable(e.to_string())))?;
        Ok(self.log.read().node(other).is_some())
    }

    /// Which image a reference means, and whom a node that lacks it asks.
    pub(crate) fn find_image(
        &self,
        node: NodeId,
        session: &str,
        reference: &str,
    ) -> Result<wire::FindImageReply, Status> {
        self.check(node, session)?;
        let state = self.log.read();
        let found = self.resolve_image(reference).ok_or_else(|| {
            let short: String = reference.chars().take(IMAGE_MAX).collect();
            let inventory = self.inventory();
            let mut ready = state.nodes().filter(|n| n.status.state == NodeState::Ready);
            if self.uptime() < self.nodes().watch.since() + SETTLE && ready.any(|n| !inventory.has_heard(n.id)) {
                return Status::unavailable(format!(
                    "this manager leads since a moment and has not heard of all nodes yet: ask again for {short}"
                ));
            }
            Status::not_found(format!("no node of the cluster has the image {short}"))
        })?;
        let source = |id: NodeId| {
            Some(wire::ImageSource {
                address: state.node(id)?.description.address.clone(),
                node_id: id.to_string(),
            })
        };
        Ok(wire::FindImageReply {
            id: found.id.to_string(),
            sources: sources(node, &found.nodes)
                .into_iter()
                .filter_map(source)
                .collect(),
        })
    }
}
