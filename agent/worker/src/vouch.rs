//! Whether a node that calls is still part of the cluster: its certificate is good for weeks after it was removed, and a
//! host that is no manager has no list of nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::NodeId;
use tonic::Status;

/// A manager's word is good for so long; a removed node is refused within a second.
const GOOD: Duration = Duration::from_millis(500);
/// Nodes whose word is remembered.
const KNOWN_MAX: usize = 1024;

/// Who knows the nodes of the cluster.
#[tonic::async_trait]
pub(crate) trait Voucher: Send + Sync {
    /// Whether a node is part of it.
    ///
    /// # Errors
    /// [`Status`] when nobody can say so now.
    async fn is_member(&self, node: NodeId) -> Result<bool, Status>;
}

/// Asks, and remembers for a moment.
pub(crate) struct Vouched {
    voucher: Arc<dyn Voucher>,
    known: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Vouched {
    pub(crate) fn new(voucher: Arc<dyn Voucher>) -> Self {
        Self {
            voucher,
            known: Mutex::default(),
        }
    }

    /// Lets a node of the cluster pass.
    ///
    /// # Errors
    /// PERMISSION_DENIED for another; UNAVAILABLE when no manager says who it is.
    pub(crate) async fn check(&self, node: NodeId) -> Result<(), Status> {
        let asked = Instant::now();
        let known = |at: &Instant| asked.duration_since(*at) < GOOD;
        let remembered = |known: &Mutex<BTreeMap<NodeId, Instant>>| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&node).copied()
        };
        if remembered(&self.known).as_ref().is_some_and(known) {
            return Ok(());
        }
        if !self.voucher.is_member(node).await? {
            return Err(Status::permission_denied(format!(
                "E_NODE_REMOVED: node {node} is not part of this cluster any more"
            )));
        }
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        // From when it was asked: it may have been removed since.
        all.insert(node, asked);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tonic::Code;

    struct Manager {
        asked: AtomicUsize,
    }

    #[tonic::async_trait]
    impl Voucher for Manager {
        async fn is_member(&self, node: NodeId) -> Result<bool, Status> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            match node.0 {
                0 => Err(Status::unavailable("no manager")),
                n => Ok(n % 2 == 1),
            }
        }
    }

    #[tokio::test]
    async fn a_node_is_asked_for_once_in_a_while_and_a_removed_one_never_passes() {
        let manager = Arc::new(Manager {
            asked: AtomicUsize::new(0),
        });
        let vouched = Vouched::new(manager.clone());
        for _ in 0..3 {
            vouched.check(NodeId(1)).await.unwrap();
        }
        assert_eq!(manager.asked.load(Ordering::SeqCst), 1, "remembered");
        for (node, code) in [(2, Code::PermissionDenied), (0, Code::Unavailable)] {
            for _ in 0..2 {
                assert_eq!(vouched.check(NodeId(node)).await.unwrap_err().code(), code);
            }
        }
        assert_eq!(
            manager.asked.load(Ordering::SeqCst),
            5,
            "a refusal is asked for again"
        );
        tokio::time::sleep(GOOD).await;
        vouched.check(NodeId(1)).await.unwrap();
        assert_eq!(manager.asked.load(Ordering::SeqCst), 6, "and a word that is old");
        for node in 0..KNOWN_MAX as u128 + 2 {
            vouched.check(NodeId(2 * node + 1)).await.unwrap();
        }
        assert!(vouched.known.lock().unwrap().len() <= KNOWN_MAX);
    }
}
