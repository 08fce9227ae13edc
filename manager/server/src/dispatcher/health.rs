//! Declares nodes down that are not heard of.

use std::sync::Arc;
use std::time::Duration;

use manager_core::{Action, Txn, node_health};
use model::object::{NodeState, NodeStatus};
use model::{NodeId, Timestamp};
use tokio::sync::Notify;

use super::{Dispatcher, Session};

/// Wait before a node is declared down again after the log refused it.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the log stops. Only a leader hears nodes: another one begins without sessions.
pub(super) async fn watch(dispatcher: Arc<Dispatcher>) {
    let mut role = dispatcher.log.role();
    while role
        .wait_for(|r| r.leader || r.stopped)
        .await
        .is_ok_and(|r| r.leader)
    {
        while role.borrow().leader {
            dispatcher.expect_all();
            let next = dispatcher.declare().await;
            tokio::select! {
                () = dispatcher.health_changed.notified() => {}
                () = sleep(next) => {}
                changed = role.changed() => if changed.is_err() { return },
            }
        }
        dispatcher.close();
    }
}

async fn sleep(next: Option<Duration>) {
    match next {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

impl Dispatcher {
    /// Waits from now on for nodes that count as Ready and have not registered with this leader.
    fn expect_all(&self) {
        let state = self.log.read();
        let mut nodes = self.nodes();
        for node in state.nodes().filter(|n| n.status.state != NodeState::Down) {
            nodes.entry(node.id).or_insert_with(|| Session {
                id: String::new(),
                seen: self.uptime(),
                wake: Arc::new(Notify::new()),
                open: None,
                told: None,
                leaving: false,
            });
        }
        nodes.retain(|id, _| state.node(*id).is_some());
    }

    /// Declares down whoever is silent for too long; answers when to look again.
    async fn declare(&self) -> Option<Duration> {
        let heartbeat = self.log.read().cluster()?.heartbeat;
        let now = self.uptime();
        let silent: Vec<(NodeId, Timestamp)> = (self.nodes().iter())
            .filter(|(_, s)| node_health::status(s.seen, heartbeat, now).state == NodeState::Down)
            .map(|(id, s)| (*id, s.seen))
            .collect();
        let mut wait = None;
        for (node, seen) in silent {
            let status: NodeStatus = node_health::status(seen, heartbeat, now);
            tracing::warn!(%node, "node is down: {}", status.message);
            let action = Action::NodeSeen {
                node,
                description: None,
                status,
            };
            match self
                .log
                .propose(Txn {
                    expect: Vec::new(),
                    actions: vec![action],
                })
                .await
            {
                Ok(_) => self.end(node, seen),
                Err(error) => {
                    tracing::warn!(%node, "cannot declare the node down: {error}");
                    wait = Some(RETRY);
                }
            }
        }
        let earliest = self
            .nodes()
            .values()
            .map(|s| node_health::down_at(s.seen, heartbeat))
            .min();
        wait.or(earliest.map(|at| at.since(self.uptime())))
    }

    /// Ends a session, unless the node was heard of again.
    fn end(&self, node: NodeId, seen: Timestamp) {
        let mut nodes = self.nodes();
        if nodes.get(&node).is_some_and(|s| s.seen == seen)
            && let Some(session) = nodes.remove(&node)
        {
            session.wake.notify_one();
        }
    }
}
