//! Declares nodes down that are not heard of, as the core decides.

use std::sync::Arc;
use std::time::Duration;

use manager_core::node_health::Watch;
use manager_core::{Action, Txn};
use model::Timestamp;

use super::Dispatcher;

/// Wait before nodes are declared down again after the log refused it.
const RETRY: Duration = Duration::from_secs(1);
/// How often a leader looks whether it still hears a quorum.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while it does not: who registers as soon as it does again is not to be asked twice.
const LOOK_LATE_EVERY: Duration = Duration::from_millis(10);

/// Runs until the log stops. Each leadership begins anew: what an earlier one heard is too old to judge by.
pub(super) async fn watch(dispatcher: Arc<Dispatcher>) {
    let mut role = dispatcher.log.role();
    while let Ok(now) = role.wait_for(|r| r.leader || r.stopped).await.map(|r| *r)
        && now.leader
    {
        dispatcher.begin(Watch::new);
        dispatcher.forget_images();
        dispatcher.ready.send_replace(now.term);
        let mut same = dispatcher.log.role();
        tokio::select! {
            () = lead(&dispatcher) => {}
            _ = same.wait_for(|r| !r.leader || r.term != now.term) => {}
        }
    }
}

async fn lead(dispatcher: &Dispatcher) {
    // Right after an election nobody has answered yet, and the leadership still begins.
    let mut counts: fn(Timestamp) -> Watch = Watch::new;
    loop {
        if dispatcher.log.quorum_is_late() {
            while dispatcher.log.quorum_is_late() {
                tokio::time::sleep(LOOK_LATE_EVERY).await;
            }
            // No node was listened to meanwhile: their silence is not theirs.
            dispatcher.begin(counts);
        }
        counts = Watch::again;
        let next = dispatcher.declare().await;
        tokio::select! {
            () = dispatcher.health_changed.notified() => {}
            () = sleep(next) => {}
            () = quorum_late(dispatcher) => {}
        }
    }
}

async fn quorum_late(dispatcher: &Dispatcher) {
    while !dispatcher.log.quorum_is_late() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn sleep(next: Option<Duration>) {
    match next {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

impl Dispatcher {
    /// Ends all sessions, and counts anew who is heard of.
    fn begin(&self, watch: impl FnOnce(Timestamp) -> Watch) {
        self.close();
        self.nodes().watch = watch(self.uptime());
        self.heard.send_replace(());
    }

    /// Declares down whoever is silent for too long; answers when to look again.
    async fn declare(&self) -> Option<Duration> {
        let state = self.log.read();
        let configured = state.cluster()?.heartbeat;
        let mute = self.log.mute();
        let review = (self.nodes().watch).review(&state, configured, &mute, self.uptime());
        if !review.declare.is_empty() {
            let mut actions = Vec::with_capacity(review.declare.len());
            for (node, status) in &review.declare {
                tracing::warn!(%node, "node is down: {}", status.message);
                actions.push(Action::NodeSeen {
                    node: *node,
                    description: None,
                    status: status.clone(),
                });
            }
            let txn = Txn {
                expect: Vec::new(),
                actions,
            };
            if let Err(error) = self.log.propose(txn).await {
                tracing::warn!("cannot declare nodes down: {error}");
                return Some(RETRY);
            }
            let mut nodes = self.nodes();
            for (node, _) in &review.declare {
                if nodes.watch.end_silent(*node, self.uptime())
                    && let Some(session) = nodes.sessions.remove(node)
                {
                    session.wake.notify_one();
                }
            }
            return Some(Duration::ZERO);
        }
        review.look_at.map(|at| at.since(self.uptime()))
    }
}
