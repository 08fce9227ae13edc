//! Whether nobody else can lead yet: a quorum is asked whether it has voted in a later term.
//!
//! openraft 0.10.0-alpha.37 confirms a leader by the time at which it sent what a quorum has answered since. Of two
//! requests that end with the same entry it takes an answer to the first for one to both
//! (`InflightAppendQueue::drain_acked`); so a leader that was replaced while it stood still, or was cut off, may take an
//! old answer that reaches it late for a new one, and read what is out of date. Here an answer belongs to its question.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use manager_core::members::quorum;
use openraft::Instant as _;
use openraft::RaftState;
use openraft::async_runtime::WatchReceiver;

use super::{Log, TypeConfig};

/// A leader that was not heard of for so long, by heartbeats every 250 ms, is probably gone.
const SILENT: Duration = Duration::from_millis(600);

/// One question to everybody at a time: who asks while one is under way waits for the next, and shares it.
#[derive(Default)]
pub(super) struct Pledges {
    begun: AtomicU64,
    last: tokio::sync::Mutex<Asked>,
}

/// The last question: its number, the term it was about, and whether a quorum had voted in no later one.
#[derive(Default)]
struct Asked {
    number: u64,
    term: u64,
    held: bool,
}

/// Whether those that `pledged` are a quorum of each of the sets of voters.
fn enough(pledged: &BTreeSet<u64>, voters: &[BTreeSet<u64>]) -> bool {
    (voters.iter()).all(|set| set.intersection(pledged).count() >= quorum(set.len()))
}

impl Log {
    /// Whether a quorum had not voted in a term after `term` at some moment after this was called: until then nobody
    /// can have written anything as a later leader.
    pub(super) async fn is_held(&self, term: u64) -> bool {
        let arrived = self.pledges.begun.load(Ordering::SeqCst);
        let mut last = self.pledges.last.lock().await;
        if last.number > arrived && last.term == term {
            return last.held;
        }
        let number = self.pledges.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let held = self.ask_quorum(term).await;
        *last = Asked { number, term, held };
        held
    }

    async fn ask_quorum(&self, term: u64) -> bool {
        let voters = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().clone()
        };
        let mut pledged = BTreeSet::new();
        // As the protocol has it now; what it publishes of itself is a moment late.
        if self.term().await.is_some_and(|own| own <= term) {
            pledged.insert(self.id);
        }
        if enough(&pledged, &voters) {
            return true;
        }
        let mut asked: FuturesUnordered<_> = (self.members().into_iter())
            .filter(|(id, ..)| *id != self.id && voters.iter().any(|set| set.contains(id)))
            .map(|(id, node, address, _)| async move {
                let reply = self.links.status(node, &address, false).await?;
                (reply.raft_id == id && reply.term <= term).then_some(id)
            })
            .collect();
        while let Some(answer) = asked.next().await {
            pledged.extend(answer);
            if enough(&pledged, &voters) {
                return true;
            }
        }
        false
    }

    /// The last term this manager has voted in.
    pub(super) async fn term(&self) -> Option<u64> {
        self.in_core(|state| state.vote_ref().leader_id.term).await
    }

    /// Whether the leader this manager follows, if there is one, was not heard of for longer than two heartbeats.
    pub(crate) async fn leader_is_silent(&self) -> bool {
        let heard = self.in_core(|state| state.vote_last_modified()).await.flatten();
        heard.is_none_or(|at| at.elapsed() > SILENT)
    }

    /// Reads the protocol's own state; none when it has stopped.
    async fn in_core<T: Send + 'static>(
        &self,
        read: impl FnOnce(&RaftState<TypeConfig>) -> T + Send + 'static,
    ) -> Option<T> {
        let raft = self.raft.clone();
        // By a task of its own: whoever asks may leave, and an answer that nobody takes is an error to openraft.
        let asked = tokio::spawn(async move { raft.with_raft_state(read).await });
        asked.await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_of_every_set_of_voters_is_enough() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        type Row<'a> = (&'a str, &'a [u64], Vec<BTreeSet<u64>>, bool);
        let rows: [Row<'_>; 6] = [
            ("alone", &[1], vec![set(&[1])], true),
            ("one of two", &[1], vec![set(&[1, 2])], false),
            ("two of three", &[1, 3], vec![set(&[1, 2, 3])], true),
            ("one who does not vote", &[1, 4], vec![set(&[1, 2, 3])], false),
            (
                "of both",
                &[1, 2, 4],
                vec![set(&[1, 2, 3]), set(&[1, 4, 5])],
                true,
            ),
            (
                "of one only",
                &[1, 2],
                vec![set(&[1, 2, 3]), set(&[1, 4, 5])],
                false,
            ),
        ];
        for (name, pledged, voters, wanted) in rows {
            assert_eq!(enough(&set(pledged), &voters), wanted, "{name}");
        }
    }
}
