//! Whether the disk of the raft log has room and keeps up, and a leader whose disk does not that hands over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::{Raft, ServerState};
use tokio::sync::watch;

use super::state_machine::StateMachine;
use super::{LogId, TypeConfig};

/// How often a full disk is tried again: well within the 10 s in which a manager is back once space is free.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How long an election may take before another manager is asked to lead, or the same once more.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(6);
/// A sync that takes so long is that of a disk that is failing or overrun: others should lead.
const SLOW: Duration = Duration::from_secs(2);
/// How often it is looked at how long a sync takes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Pause after leadership was handed over for a slow disk: where all disks are slow it would only go round.
const SLOW_AGAIN: Duration = Duration::from_secs(60);

/// How long the sync that is under way has taken. The thread that writes sets it, anybody reads it.
#[derive(Debug, Clone)]
pub(super) struct SyncClock {
    began: Instant,
    /// Milliseconds from `began` to the begin of the sync, and one; 0: there is none.
    since: Arc<AtomicU64>,
}

impl SyncClock {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            since: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// A sync begins.
    pub(super) fn begins(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn ended(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long it takes already; zero when there is none.
    fn taken(&self) -> Duration {
        match self.since.load(Ordering::Relaxed).checked_sub(1) {
            Some(since) => Duration::from_millis(self.now().saturating_sub(since)),
            None => Duration::ZERO,
        }
    }
}

/// Whether the raft log can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskState {
    /// It can.
    #[default]
    Ok,
    /// E_DISK_FULL: the next segment cannot be made. What waits is kept, nothing is acknowledged, and it is tried
    /// again every 500 ms.
    Full,
}

/// The voter that is to lead instead of `me`: the one that has most of the log. None: there is no other.
fn heir(
    me: u64,
    voters: impl IntoIterator<Item = u64>,
    replicated: &BTreeMap<u64, Option<LogId>>,
) -> Option<u64> {
    let has = |id: &u64| replicated.get(id).copied().flatten().map(|log| log.index);
    voters.into_iter().filter(|id| *id != me).max_by_key(has)
}

/// Asks another manager to lead, when this one leads and there is another.
async fn ask_another(raft: &Raft<TypeConfig, StateMachine>, why: &str) -> bool {
    let to = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().voter_ids();
        let replicated = metrics.replication.clone().unwrap_or_default();
        (metrics.state == ServerState::Leader)
            .then(|| heir(metrics.id, voters, &replicated))
            .flatten()
    };
    if let Some(to) = to {
        tracing::warn!(
            to,
            "asking another manager to lead, as the disk of the raft log {why}"
        );
        // An error means that the protocol has stopped, and so will whoever asks.
        let _ = raft.trigger().transfer_leader(to).await;
    }
    to.is_some()
}

/// Hands over when a sync takes too long; returns when the log is closed.
pub(super) async fn hand_over_when_slow(
    raft: Raft<TypeConfig, StateMachine>,
    sync: SyncClock,
    mut disk: watch::Receiver<DiskState>,
) {
    let mut pause = LOOK_EVERY;
    // It only ends when the log is closed.
    while tokio::time::timeout(pause, disk.wait_for(|_| false))
        .await
        .is_err()
    {
        let taken = sync.taken();
        let slow = taken >= SLOW;
        let why = format!("has been syncing for {:.1} s", taken.as_secs_f64());
        pause = if slow && ask_another(&raft, &why).await {
            SLOW_AGAIN
        } else {
            LOOK_EVERY
        };
    }
}

/// While the disk is full, asks another manager to lead; returns when the log is closed.
pub(super) async fn hand_over(raft: Raft<TypeConfig, StateMachine>, mut disk: watch::Receiver<DiskState>) {
    loop {
        if disk.wait_for(|state| *state == DiskState::Full).await.is_err() {
            return;
        }
        ask_another(&raft, "is full").await;
        let room = disk.wait_for(|state| *state == DiskState::Ok);
        if let Ok(Err(_)) = tokio::time::timeout(HAND_OVER_AGAIN, room).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_timed_while_it_lasts() {
        let clock = SyncClock::new();
        assert_eq!(clock.taken(), Duration::ZERO, "none");
        clock.begins();
        std::thread::sleep(Duration::from_millis(20));
        let taken = clock.clone().taken();
        assert!(
            taken >= Duration::from_millis(19) && taken < Duration::from_secs(10),
            "{taken:?}"
        );
        clock.ended();
        assert_eq!(clock.taken(), Duration::ZERO, "over");
    }

    #[test]
    fn the_voter_with_most_of_the_log_is_to_lead_and_never_oneself() {
        let log = |index| Some(LogId::new(1.into(), index));
        type Row<'a> = (&'a str, &'a [u64], &'a [(u64, Option<LogId>)], Option<u64>);
        let rows: &[Row<'_>] = &[
            ("alone", &[1], &[(1, log(9))], None),
            (
                "the longest log",
                &[1, 2, 3],
                &[(1, log(9)), (2, log(4)), (3, log(8))],
                Some(3),
            ),
            (
                "one that was heard of",
                &[1, 2, 3],
                &[(1, log(9)), (2, log(0)), (3, None)],
                Some(2),
            ),
            (
                "a learner never",
                &[1, 2],
                &[(1, log(9)), (2, None), (3, log(9))],
                Some(2),
            ),
        ];
        for (name, voters, replicated, expected) in rows {
            let replicated = replicated.iter().copied().collect();
            assert_eq!(heir(1, voters.iter().copied(), &replicated), *expected, "{name}");
        }
    }
}
