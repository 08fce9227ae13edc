//! The leader's loop over who takes part in the log, and over the rotation of the authority.

use std::sync::Arc;
use std::time::Duration;

use manager_core::admit;
use manager_core::members::{self, Step};

use crate::ca;
use crate::dispatcher::Dispatcher;
use crate::writer::Writer;

/// How often the members are looked at: what there is to see (who answers, who has caught up) has no event.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs until the log stops.
pub(crate) async fn run(writer: Arc<Writer>, dispatcher: Arc<Dispatcher>) {
    let mut role = writer.log.role();
    while role
        .wait_for(|r| r.leader || r.stopped)
        .await
        .is_ok_and(|r| r.leader)
    {
        let mut last = Step::Nothing;
        while role.borrow().leader {
            step(&writer, &mut last).await;
            rotation(&writer).await;
            // Roles, addresses, the authority, who takes part in the log: what came of entries and of steps alike.
            dispatcher.tell_news();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn step(writer: &Writer, last: &mut Step) {
    let log = &writer.log;
    let state = log.read();
    if state.cluster().is_none() {
        return;
    }
    let next = members::plan(&state, &log.found());
    if next == Step::Nothing {
        *last = next;
        return;
    }
    let address = match &next {
        Step::Listen { node, .. } => state.node(*node).map(|n| n.description.address.clone()),
        Step::Nothing | Step::Vote { .. } | Step::Forget { .. } | Step::Transfer { .. } => None,
    };
    if next != *last {
        tracing::info!(step = ?next, "the members of the log change");
    }
    crash::point("members.before_change");
    let changed = log.change(&next, &address.unwrap_or_default()).await;
    crash::point("members.after_change");
    match changed {
        Err(error) if next != *last => {
            tracing::warn!(step = ?next, "the members of the log did not change: {error}")
        }
        Ok(()) | Err(_) => {}
    }
    *last = next;
}

/// Ends a rotation of the authority once every node has a certificate of the new one.
async fn rotation(writer: &Writer) {
    let state = writer.log.read();
    let Some(cluster) = state.cluster().filter(|c| c.security.next.is_some()) else {
        return;
    };
    let issuer = ca::current_issuer(&cluster.security);
    if admit::end_rotation(&state, &issuer).is_ok_and(|a| !a.txn.is_empty()) {
        let ended = writer
            .write(move |state, _, _| admit::end_rotation(state, &issuer))
            .await;
        crash::point("ca.after_rotation");
        match ended {
            Ok(_) => tracing::info!(
                "the certificate authority was replaced: every node has a certificate of the new one"
            ),
            Err(error) => tracing::warn!("the rotation of the authority does not end: {error}"),
        }
    }
}
