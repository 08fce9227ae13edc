//! Who the members of the log are, which of them answer, and how they change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use manager_core::State;
use manager_core::members::{Found, Step, quorum};
use model::NodeId;
use openraft::ChangeMembers;
use openraft::Instant as _;
use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use proto::raft as w;
use tonic::Status;

use super::network::{member, parse_member};
use super::snapshot::SnapshotWriter;
use super::{Log, ProposeError, TypeConfig};

/// A member that was heard of within this counts as reached: eight heartbeats.
const REACHED: Duration = Duration::from_secs(2);
/// A leader that was not heard by a quorum for so long, six heartbeats, may have been replaced already. With the time to
/// ask everybody ([`STATUS_LIMIT`](super::network)) it is less than the 3 s after which an operator is told.
const QUORUM_LATE: Duration = Duration::from_millis(1500);
/// Entries a listener may lack when it begins to vote.
const LAG_MAX: u64 = 10;
/// How long a quorum may take to confirm a leader, for the same reason.
const CONFIRM_LIMIT: Duration = Duration::from_millis(1500);
/// How long a reader waits for a leader.
const READ_LIMIT: Duration = Duration::from_secs(12);
/// No quorum is only looked for after so long without a leader: most elections are over then.
const DOUBT: Duration = Duration::from_millis(1000);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a count of the managers that answer is good.
const COUNT_GOOD: Duration = Duration::from_millis(500);

/// A count of the managers that answer, and when it was made.
pub(super) type Count = Option<(Instant, Option<ProposeError>)>;

impl Log {
    pub(super) fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    /// This manager's number in the log.
    pub(crate) fn raft_id(&self) -> u64 {
        self.id
    }

    /// The cluster, once this manager knows it.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        let known = self.links.keychain().identity().map(|i| i.subject.cluster);
        known
            .or_else(|| self.read().cluster().map(|c| c.id))
            .map(|id| id.to_string())
    }

    /// The leader's node and address, when one is known and it is not this one.
    pub(crate) fn leader(&self) -> Option<(NodeId, String)> {
        let metrics = self.metrics();
        let leader = metrics.current_leader.filter(|id| *id != self.id)?;
        let member = metrics.membership_config.membership().get_node(&leader)?;
        let (node, address) = parse_member(member)?;
        let address = self.links.address(node, &address);
        Some((node, address))
    }

    /// Every member: number, node, address, whether it votes.
    pub(crate) fn members(&self) -> Vec<(u64, NodeId, String, bool)> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        (membership.nodes())
            .filter_map(|(id, member)| {
                let (node, address) = parse_member(member)?;
                Some((*id, node, self.links.address(node, &address), voters.contains(id)))
            })
            .collect()
    }

    /// The members as a leader sees them.
    pub(crate) fn found(&self) -> Found {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let heard = |id: &u64| {
            let beat = metrics
                .heartbeat
                .as_ref()
                .and_then(|all| all.get(id).copied().flatten());
            *id == self.id || beat.is_some_and(|at| at.elapsed() <= REACHED)
        };
        let last = metrics.last_log_index.unwrap_or(0);
        let near = |id: &u64| {
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id).copied().flatten());
            *id == self.id || matched.is_some_and(|at| at.index + LAG_MAX >= last)
        };
        let members: std::collections::BTreeMap<u64, NodeId> = (membership.nodes())
            .filter_map(|(id, member)| Some((*id, parse_member(member)?.0)))
            .collect();
        Found {
            voters: membership.voter_ids().collect(),
            caught_up: members.keys().copied().filter(|id| near(id)).collect(),
            reached: members.keys().copied().filter(|id| heard(id)).collect(),
            members,
            leader: self.id,
        }
    }

    /// Nodes whose members have answered nothing since this one leads.
    pub(crate) fn mute(&self) -> BTreeSet<NodeId> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let answered = |id: &u64| {
            let beats = metrics.heartbeat.as_ref();
            *id == self.id || beats.is_none_or(|all| all.get(id).copied().flatten().is_some())
        };
        (membership.nodes())
            .filter(|(id, _)| !answered(id))
            .filter_map(|(_, member)| Some(parse_member(member)?.0))
            .collect()
    }

    /// Carries out one change of the members.
    ///
    /// # Errors
    /// What the protocol said; planning again helps.
    pub(crate) async fn change(&self, step: &Step, address: &str) -> Result<(), String> {
        let said = |e: &dyn std::fmt::Display| e.to_string();
        match step {
            Step::Nothing => {}
            Step::Listen { raft_id, node } => {
                let added = self
                    .raft
                    .add_learner(*raft_id, member(*node, address), false)
                    .await;
                added.map_err(|e| said(&e))?;
            }
            Step::Vote { voters } => {
                // Those that vote no more go on listening, until they are forgotten.
                let changed = self.raft.change_membership(voters.clone(), true).await;
                changed.map_err(|e| said(&e))?;
            }
            Step::Forget { raft_id } => {
                let gone = ChangeMembers::RemoveNodes(BTreeSet::from([*raft_id]));
                self.raft
                    .change_membership(gone, true)
                    .await
                    .map_err(|e| said(&e))?;
            }
            Step::Transfer { to } => {
                self.raft
                    .trigger()
                    .transfer_leader(*to)
                    .await
                    .map_err(|e| said(&e))?;
            }
        }
        Ok(())
    }

    /// Whether no quorum was heard of for so long that what is proposed may never be decided.
    pub(crate) fn quorum_is_late(&self) -> bool {
        let metrics = self.metrics();
        let others = metrics
            .membership_config
            .membership()
            .voter_ids()
            .any(|id| id != self.id);
        others
            && metrics
                .last_quorum_acked
                .is_none_or(|at| at.elapsed() > QUORUM_LATE)
    }

    /// Confirms that this manager leads, by hearing a quorum; answers up to where its state stands then.
    ///
    /// # Errors
    /// [`ProposeError`] when it does not lead, or does not hear a quorum in time.
    pub(crate) async fn confirm(&self) -> Result<u64, ProposeError> {
        let none = ProposeError::NotLeader { leader: None };
        let term = self.role.borrow().term;
        // Beside each other; both are about the time after this was called.
        let confirmed = futures::future::join(
            self.raft.ensure_linearizable(ReadPolicy::ReadIndex),
            self.is_held(term),
        );
        let Ok((read, held)) = tokio::time::timeout(CONFIRM_LIMIT, confirmed).await else {
            return Err(none);
        };
        let read = read.map_err(|e| match e {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
                ProposeError::NotLeader { leader: to.leader_id }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                ProposeError::NotLeader { leader: None }
            }
            RaftError::Fatal(fatal) => ProposeError::Stopped {
                why: fatal.to_string(),
            },
        })?;
        if held { Ok(read.index()) } else { Err(none) }
    }

    /// The state with everything that was acknowledged before the call, on whichever manager.
    ///
    /// It waits for an election.
    ///
    /// # Errors
    /// [`ProposeError::NoQuorum`] when too few managers answer, within about 3 s; [`ProposeError::NoLeader`] after 12 s.
    pub async fn read_latest(&self) -> Result<Arc<State>, ProposeError> {
        let began = Instant::now();
        loop {
            match self.barrier().await {
                Ok(()) => return Ok(self.read()),
                Err(error @ ProposeError::Stopped { .. }) => return Err(error),
                Err(_) => self.bear_with(began, READ_LIMIT).await?,
            }
        }
    }

    async fn barrier(&self) -> Result<(), ProposeError> {
        if self.role().borrow().leader {
            return self.confirm().await.map(drop);
        }
        let none = ProposeError::NotLeader { leader: None };
        let (node, address) = self.leader().ok_or_else(|| none.clone())?;
        let reply = self.links.status(node, &address, true).await.ok_or(none)?;
        let wait = self.raft.wait(Some(CONFIRM_LIMIT));
        wait.applied_index_at_least(Some(reply.index), "what was acknowledged")
            .await
            .map(drop)
            .map_err(|_| ProposeError::NotLeader {
                leader: Some(reply.leader),
            })
    }

    /// After a try failed for want of a leader: waits a moment, or says that it is of no use.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`] after `limit`; [`ProposeError::NoQuorum`] when too few managers answer.
    pub(crate) async fn bear_with(&self, began: Instant, limit: Duration) -> Result<(), ProposeError> {
        if began.elapsed() > DOUBT
            && let Some(none) = self.lacks_quorum().await
        {
            return Err(none);
        }
        if began.elapsed() > limit {
            return Err(ProposeError::NoLeader { waited: limit });
        }
        let mut role = self.role();
        // Whatever changes, and a pause that keeps a leader that is only slow from being asked without end.
        let _ = tokio::time::timeout(PAUSE * 4, role.changed()).await;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Asks every voter whether it is there; an error when those that answer are too few to decide anything.
    pub(crate) async fn lacks_quorum(&self) -> Option<ProposeError> {
        let mut count = self.count.lock().await;
        if let Some((at, known)) = &*count
            && at.elapsed() < COUNT_GOOD
        {
            return known.clone();
        }
        let voters: Vec<_> = self.members().into_iter().filter(|m| m.3).collect();
        // While the members change there are two sets of voters, and either has to agree.
        let sets = (self.metrics().membership_config.membership())
            .get_joint_config()
            .clone();
        let mut asked: FuturesUnordered<_> = (voters.iter())
            .map(|(id, node, address, _)| async move {
                // One that has another number by now lost its log, and cannot vote as the one that is asked for.
                let answers = |reply: w::StatusReply| reply.raft_id == *id;
                let reply = self.links.status(*node, address, false);
                (*id == self.id || reply.await.is_some_and(answers)).then_some(*id)
            })
            .collect();
        let mut answered = BTreeSet::new();
        let lacking = |answered: &BTreeSet<u64>| {
            (sets.iter()).find(|set| set.intersection(answered).count() < quorum(set.len()))
        };
        // One that is cut off answers late, and need not be waited for when the others are enough.
        while lacking(&answered).is_some()
            && let Some(answer) = asked.next().await
        {
            answered.extend(answer);
        }
        let result = lacking(&answered).map(|set| {
            let silent = (voters.iter()).filter(|(id, ..)| set.contains(id) && !answered.contains(id));
            ProposeError::NoQuorum {
                answered: set.intersection(&answered).count(),
                voters: set.len(),
                silent: silent.map(|v| v.2.clone()).collect::<Vec<_>>().join(", "),
            }
        });
        *count = Some((Instant::now(), result.clone()));
        result
    }

    /// What another manager may ask: where this one stands.
    pub(crate) async fn status(&self, barrier: bool) -> Result<w::StatusReply, Status> {
        let index = if barrier {
            self.confirm()
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?
        } else {
            self.read().index()
        };
        let metrics = self.metrics();
        let leads = self.role().borrow().leader;
        let term = (self.term().await).ok_or_else(|| Status::unavailable("this manager has stopped"))?;
        Ok(w::StatusReply {
            raft_id: self.id,
            term,
            leader: metrics.current_leader.unwrap_or(0),
            index,
            reached: if leads {
                self.found().reached.into_iter().collect()
            } else {
                Vec::new()
            },
        })
    }

    /// The nodes of the managers that were heard of a moment ago, as the leader sees them.
    pub(crate) async fn reached(&self) -> BTreeSet<NodeId> {
        let numbers: BTreeSet<u64> = if self.role().borrow().leader {
            self.found().reached
        } else {
            let Some((node, address)) = self.leader() else {
                return BTreeSet::new();
            };
            let reply = self.links.status(node, &address, false).await;
            reply.map(|r| r.reached.into_iter().collect()).unwrap_or_default()
        };
        (self.members().into_iter())
            .filter(|(id, ..)| numbers.contains(id))
            .map(|(_, node, ..)| node)
            .collect()
    }

    /// Begins to take a snapshot from another manager.
    pub(super) fn receive_snapshot(&self) -> Result<SnapshotWriter, Status> {
        let made = SnapshotWriter::create(&self.dir, self.keys());
        made.map_err(|e| Status::resource_exhausted(format!("E_SNAPSHOT: cannot be kept: {e}")))
    }
}
