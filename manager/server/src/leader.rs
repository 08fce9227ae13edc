//! The one loop of a leader: what changed → plan → propose, until nothing is left to do or a time has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use manager_core::node_health::Unheard;
use manager_core::{Dirty, plan};
use model::{ServiceId, Timestamp};

use crate::dispatcher::Dispatcher;
use crate::raft::{DiskState, Event, ProposeError, Subscription};
use crate::writer::{RandomIds, Writer};

/// Longest sleep: the time of the log, which counts, leans towards the wall clock and may run a tenth faster.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// After so long a leader that could not make sure that it leads tries again: nothing tells it when it hears a quorum again.
const AGAIN: Duration = Duration::from_millis(500);
/// Least time between two looks at which nodes were heard of: after an election thousands are within seconds, and each look
/// plans anew for what waits for a place.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Leads whenever this manager is the leader; returns when the log has stopped.
pub(crate) async fn run(writer: Arc<Writer>, dispatcher: Arc<Dispatcher>) {
    let mut role = writer.log.role();
    loop {
        let term = match role.wait_for(|r| r.leader || r.stopped).await {
            Ok(r) if r.leader => r.term,
            _ => return,
        };
        // What an earlier leader had committed must be seen before anything is decided.
        if writer.log.confirm().await.is_err() {
            // Whether it still leads is seen above.
            let _ = tokio::time::timeout(AGAIN, role.changed()).await;
            continue;
        }
        tracing::info!(term, "leading the cluster");
        tokio::select! {
            () = async { dispatcher.begun(term).await; lead(&writer, &dispatcher).await } => {}
            _ = role.wait_for(|r| !r.leader || r.term != term) => {}
        }
    }
}

/// Decides until the log refuses a proposal.
async fn lead(writer: &Writer, dispatcher: &Dispatcher) {
    let log = &writer.log;
    let mut subscription = log.subscribe();
    let mut dirty = Dirty::everything();
    dirty.add_joined();
    let mut timers: BTreeMap<ServiceId, Timestamp> = BTreeMap::new();
    let mut heard = dispatcher.heard();
    let mut unheard = Unheard::default();
    let (mut looked, mut look_at) = (Timestamp(0), Some(Timestamp(0)));
    loop {
        if dirty.is_empty() {
            tokio::select! {
                event = subscription.next() => match event {
                    Some(event) => add(&mut dirty, event),
                    None => return,
                },
                // It fails only when the dispatcher is gone, and then so is the log.
                _ = heard.changed(), if look_at.is_none() => look_at = Some(looked + LOOK_EVERY),
                () = sleep_until(look_at, dispatcher.uptime()) => {}
                () = sleep_until(unheard.settles_at, dispatcher.uptime()) => {}
                () = sleep_until(timers.values().min().copied(), log.now()) => {}
            }
        }
        // Also when something else woke it.
        if heard.has_changed().unwrap_or(false) {
            heard.mark_unchanged();
            look_at.get_or_insert(looked + LOOK_EVERY);
        }
        let uptime = dispatcher.uptime();
        if [look_at, unheard.settles_at]
            .into_iter()
            .flatten()
            .any(|at| at <= uptime)
        {
            (looked, look_at) = (uptime, None);
            let newest = dispatcher.unheard();
            if newest != unheard {
                unheard = newest;
                dirty.add_room();
                dirty.add_joined();
            }
        }
        ring(&mut timers, &mut dirty, log.now());
        if dirty.is_empty() {
            continue;
        }
        let turn = writer.turn().await;
        drain(&mut subscription, &mut dirty);
        let next = plan(&log.read(), &dirty, &unheard, log.now(), &mut RandomIds);
        timers.extend(next.wake);
        if next.txn.is_empty() {
            dirty.take();
            continue;
        }
        crash::point("leader.before_plan_commit");
        let written = log.propose(next.txn).await;
        crash::point("leader.after_plan_commit");
        match written {
            // Its own changes come back through the subscription, and a plan of them shows whether more is to be done.
            Ok(_) => drop(dirty.take()),
            // Still dirty, and planned again on what changed meanwhile.
            Err(ProposeError::Stale(stale)) => tracing::debug!(%stale, "planning again"),
            Err(error @ ProposeError::TooLarge { .. }) => {
                tracing::error!("what has to be done cannot be written: {error}");
                dirty.take();
            }
            Err(error @ ProposeError::DiskFull { .. }) => {
                tracing::warn!("the leader loop waits: {error}");
                drop(turn);
                if log.disk().wait_for(|disk| *disk == DiskState::Ok).await.is_err() {
                    return; // The log was closed.
                }
                continue;
            }
            Err(error) => {
                tracing::warn!("the leader loop stops: {error}");
                return;
            }
        }
        drop(turn);
    }
}

fn add(dirty: &mut Dirty, event: Event) {
    match event {
        Event::Applied(changes) => dirty.add(&changes),
        Event::Replaced => dirty.add_everything(),
    }
}

fn drain(subscription: &mut Subscription, dirty: &mut Dirty) {
    while let Some(event) = subscription.try_next() {
        add(dirty, event);
    }
}

/// Makes the services dirty whose time has come.
fn ring(timers: &mut BTreeMap<ServiceId, Timestamp>, dirty: &mut Dirty, now: Timestamp) {
    timers.retain(|service, at| {
        let due = *at <= now;
        if due {
            dirty.add_service(*service);
        }
        !due
    });
}

/// Sleeps until a time of the clock that shows `now`; for ever when there is none.
pub(crate) async fn sleep_until(at: Option<Timestamp>, now: Timestamp) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now).min(SLEEP_MAX)).await,
        None => std::future::pending().await,
    }
}
