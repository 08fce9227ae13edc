//! Writes to the log what nodes use, as the core decides.

use std::sync::{Arc, PoisonError};

use manager_core::admit::level::written;
use manager_core::node_use::{LOOK_EVERY, Watch};
use model::object::NodeUse;
use model::{Level, NodeId};

use super::{Dispatcher, while_leading};

/// Runs until the log stops. Each leadership begins anew.
pub(super) async fn watch(dispatcher: Arc<Dispatcher>) {
    let begin = || *dispatcher.node_use() = Watch::default();
    while_leading(&dispatcher, begin, || lead(&dispatcher)).await;
}

async fn lead(dispatcher: &Dispatcher) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let state = dispatcher.log.read();
        let changes = dispatcher.node_use().review(&state);
        // Older builds would not see it, and place tasks elsewhere.
        if written(&state) >= Level::PLACEMENT {
            dispatcher.write_seen(&state, changes, "what nodes use").await;
        }
    }
}

impl Dispatcher {
    fn node_use(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.node_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a node says that its tasks use.
    pub(crate) fn node_uses(&self, node: NodeId, used: NodeUse) {
        self.node_use().say(node, used);
    }
}
