//! Whether the disk of the raft log has room, and a leader without room that hands over.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Raft, ServerState};
use tokio::sync::watch;

use super::state_machine::StateMachine;
use super::{LogId, TypeConfig};

/// How often a full disk is tried again: well within the 10 s in which a manager is back once space is free.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How long an election may take before another manager is asked to lead, or the same once more.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(6);

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

/// While the disk is full, asks another manager to lead; returns when the log is closed.
pub(super) async fn hand_over(raft: Raft<TypeConfig, StateMachine>, mut disk: watch::Receiver<DiskState>) {
    loop {
        if disk.wait_for(|state| *state == DiskState::Full).await.is_err() {
            return;
        }
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
                "asking another manager to lead, as the disk of the raft log is full"
            );
            // An error means that the protocol has stopped, and so will this.
            let _ = raft.trigger().transfer_leader(to).await;
        }
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
