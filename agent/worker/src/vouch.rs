//! Whether a node that calls is still part of the cluster: its certificate is good for weeks after it was removed, and a
//! host that is no manager has no list of nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::NodeId;
use tokio::sync::Semaphore;
use tonic::Status;

/// A manager's word is good for so long; a removed node is refused within a second.
const GOOD: Duration = Duration::from_millis(500);
/// Questions to a manager at once.
const ASKING_MAX: usize = 16;
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
    known: Mutex<BTreeMap<NodeId, (Instant, bool)>>,
    asking: Semaphore,
}

impl Vouched {
    pub(crate) fn new(voucher: Arc<dyn Voucher>) -> Self {
        Self {
            voucher,
            known: Mutex::default(),
            asking: Semaphore::new(ASKING_MAX),
        }
    }

    /// Lets a node of the cluster pass.
    ///
    /// # Errors
    /// PERMISSION_DENIED for another; UNAVAILABLE when no manager says who it is; RESOURCE_EXHAUSTED when too many wait
    /// for that.
    pub(crate) async fn check(&self, node: NodeId) -> Result<(), Status> {
        self.check_at(node, Instant::now()).await
    }

    async fn check_at(&self, node: NodeId, now: Instant) -> Result<(), Status> {
        let remembered = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&node).copied()
        };
        let member = match remembered.filter(|(at, _)| now.saturating_duration_since(*at) < GOOD) {
            Some((_, member)) => member,
            None => self.ask(node, now).await?,
        };
        if member {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "E_NODE_REMOVED: node {node} is not part of this cluster any more"
        )))
    }

    async fn ask(&self, node: NodeId, asked: Instant) -> Result<bool, Status> {
        let _turn = (self.asking.try_acquire()).map_err(|_| {
            Status::resource_exhausted("too many nodes ask for images at once: ask another, or again later")
        })?;
        let member = self.voucher.is_member(node).await?;
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        // From when it was asked: it may have been removed since.
        all.insert(node, (asked, member));
        Ok(member)
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
        let now = Instant::now();
        for _ in 0..3 {
            vouched.check_at(NodeId(1), now).await.unwrap();
        }
        assert_eq!(manager.asked.load(Ordering::SeqCst), 1, "remembered");
        for (node, code) in [(2, Code::PermissionDenied), (0, Code::Unavailable)] {
            for _ in 0..2 {
                assert_eq!(
                    vouched.check_at(NodeId(node), now).await.unwrap_err().code(),
                    code
                );
            }
        }
        assert_eq!(
            manager.asked.load(Ordering::SeqCst),
            4,
            "a refusal is remembered, no answer is not"
        );
        vouched.check_at(NodeId(1), now + GOOD).await.unwrap();
        assert_eq!(manager.asked.load(Ordering::SeqCst), 5, "a word that is old");
        for node in 0..KNOWN_MAX as u128 + 2 {
            vouched.check_at(NodeId(2 * node + 1), now).await.unwrap();
        }
        assert!(vouched.known.lock().unwrap().len() <= KNOWN_MAX);
    }
}
