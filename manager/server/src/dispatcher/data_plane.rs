//! Writes to the log whom the others do not reach, as the core decides.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use manager_core::admit::level::written;
use manager_core::data_plane::{LOOK_EVERY, SAID_MAX, Watch};
use manager_core::{Action, State, Txn};
use model::object::{Key, NodeStatus};
use model::{Level, NodeId};

use super::{Dispatcher, while_leading};

/// Runs until the log stops. Each leadership begins anew.
pub(super) async fn watch(dispatcher: Arc<Dispatcher>) {
    let begin = || *dispatcher.who_reaches() = Watch::default();
    while_leading(&dispatcher, begin, || lead(&dispatcher)).await;
}

async fn lead(dispatcher: &Dispatcher) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let state = dispatcher.log.read();
        let heard = dispatcher.in_time(&state);
        let changes = dispatcher.who_reaches().review(&state, &heard);
        // Older builds would not see it, and take a node for unchanged that others know as changed.
        if changes.is_empty() || written(&state) < Level::ENCRYPTED {
            continue;
        }
        for (node, status) in &changes {
            match status.unreached.len() {
                0 => tracing::info!(%node, "the data plane of the node works again"),
                count => tracing::warn!(
                    %node,
                    "data_plane=degraded: the node is heard of, but with {count} others no packets of networks are exchanged (UDP \
                     4789, 4790): see rswarm node inspect"
                ),
            }
        }
        dispatcher
            .write_seen(&state, changes, "whose data plane is degraded")
            .await;
    }
}

impl Dispatcher {
    /// Writes what was found of nodes, where they are as it was read: one that is down meanwhile is.
    pub(super) async fn write_seen(&self, state: &State, changes: Vec<(NodeId, NodeStatus)>, what: &str) {
        if changes.is_empty() {
            return;
        }
        let expect = changes
            .iter()
            .map(|(id, _)| (Key::Node(*id), state.version(Key::Node(*id))));
        let expect = expect.collect();
        let action = |(node, status)| Action::NodeSeen {
            node,
            description: None,
            status,
        };
        let txn = Txn {
            expect,
            actions: changes.into_iter().map(action).collect(),
        };
        if let Err(error) = self.log.propose(txn).await {
            tracing::warn!("cannot write {what}: {error}");
        }
    }

    fn who_reaches(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.unreached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_time(&self, state: &State) -> BTreeSet<NodeId> {
        let (nodes, now) = (self.nodes(), self.uptime());
        let ids = state.nodes().map(|n| n.id);
        ids.filter(|id| nodes.watch.is_heard(*id, now)).collect()
    }

    /// Takes what a node says of the others.
    pub(crate) fn unreached(&self, node: NodeId, others: &[String]) {
        let others = others.iter().take(SAID_MAX).filter_map(|id| id.parse().ok());
        self.who_reaches().say(node, others);
    }
}
