//! Scales services by what nodes say their tasks use, as the core decides.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use manager_core::Action;
use manager_core::autoscale::{REPORT_EVERY, Scaler, Usage, measures};
use model::object::Object;
use model::{NodeId, TaskId};

use super::{Dispatcher, while_leading};

/// Runs until the log stops. Each leadership begins anew.
pub(super) async fn watch(dispatcher: Arc<Dispatcher>) {
    let begin = || *dispatcher.scaler() = Scaler::default();
    while_leading(&dispatcher, begin, || lead(&dispatcher)).await;
}

async fn lead(dispatcher: &Dispatcher) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let txn = {
            let state = dispatcher.log.read();
            // Not at each of a hundred heartbeats a second.
            dispatcher.measures.store(measures(&state), Ordering::Relaxed);
            let (now, at) = (dispatcher.uptime(), dispatcher.log.now());
            dispatcher.scaler().review(&state, now, at)
        };
        if txn.is_empty() {
            continue;
        }
        for action in &txn.actions {
            if let Action::Put(Object::Service(service)) = action
                && let Some(scaled) = &service.scaled
            {
                let (from, to) = (scaled.from, scaled.to);
                tracing::info!(service = %service.spec.name, from, to, "scaled: {}", scaled.why);
            }
        }
        // What somebody else changed meanwhile is looked at again.
        if let Err(error) = dispatcher.log.propose(txn).await {
            tracing::debug!("scaling is decided anew: {error}");
        }
    }
}

impl Dispatcher {
    fn scaler(&self) -> std::sync::MutexGuard<'_, Scaler> {
        self.scaler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nodes are to say what their tasks use.
    pub(crate) fn measures(&self) -> bool {
        self.measures.load(Ordering::Relaxed)
    }

    /// Takes what a node says that its tasks use.
    pub(crate) fn used(&self, node: NodeId, usage: impl Iterator<Item = (TaskId, Usage)>) {
        let (state, now) = (self.log.read(), self.uptime());
        self.scaler().say(&state, node, usage, now);
    }
}
