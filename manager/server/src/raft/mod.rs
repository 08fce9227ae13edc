//! The replicated log: what is proposed here is durable, in one order, and applied to the state.
//!
//! Types of openraft stay inside this folder.

mod clock;
mod codec;
mod log;
mod network;
mod record;
mod segment;
mod state_machine;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manager_core::{Changes, Stale, State, Txn};
use model::Timestamp;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::{BasicNode, Config, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{broadcast, watch};

use log::LogStore;
use state_machine::{Outcome, Published, StateMachine};

pub use segment::{LogError, TornTail};
pub use state_machine::Event;

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcome,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

type Clid = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
type Membership = openraft::Membership<u64, BasicNode>;
type StoredMembership = openraft::StoredMembership<Clid, u64, BasicNode>;
type SnapshotMeta = openraft::SnapshotMeta<Clid, u64, BasicNode>;
type Snapshot = openraft::Snapshot<Clid, u64, BasicNode, state_machine::SnapshotFile>;

/// Largest transaction: a stack with all its secrets and configs fits, and a frame of the log holds two.
const TXN_MAX: usize = 31 * 1024 * 1024;
/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 10_000;
/// Entries kept behind a snapshot for managers that are a little late.
const KEPT_ENTRIES: u64 = 1_000;
/// Within this a manager on its own must lead; it needs two syncs.
const ELECTION_LIMIT: Duration = Duration::from_secs(30);

/// The bytes of a transaction. Its text says nothing of them, as they hold secrets.
#[derive(Clone)]
pub(crate) struct Proposal(Arc<[u8]>);

impl std::fmt::Debug for Proposal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "transaction of {} bytes", self.0.len())
    }
}

impl std::fmt::Display for Proposal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, out)
    }
}

/// Why the log did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The folder tells who this manager is, but its log is gone: it must not vote again.
    #[error(
        "the raft log in {path} is gone although this manager was a member: restore it from a backup, or remove the \
         folder and join the cluster again as a new node"
    )]
    Lost {
        /// The folder.
        path: PathBuf,
    },
    /// The file with the manager's number cannot be read.
    #[error("{path} does not hold the number of this manager")]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// openraft refused.
    #[error("the raft protocol did not start: {why}")]
    Raft {
        /// What it said.
        why: String,
    },
}

/// Why a transaction was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Decided on something old. Deciding again helps.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// Another manager leads, or none.
    #[error("this manager does not lead the cluster; {}", leader.map_or("no manager does at the moment: try again".into(), |l| format!("manager {l} does")))]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// It may or may not take effect.
    #[error(
        "this manager stopped leading before the change was certain; look whether it took effect before trying again"
    )]
    Unknown,
    /// Too large.
    #[error("the change has {bytes} bytes, at most {TXN_MAX} fit in one; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The log stopped for good.
    #[error("this manager stopped: {why}")]
    Stopped {
        /// Why.
        why: String,
    },
}

/// A transaction that is durable and applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its place in the log: the version of what it wrote.
    pub index: u64,
    /// What it changed.
    pub changes: Arc<Changes>,
}

/// What this manager is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Role {
    /// Whether it leads.
    pub leader: bool,
    /// In which term.
    pub term: u64,
    /// Whether the protocol stopped for good.
    pub stopped: bool,
}

/// The replicated log of one manager.
pub struct Log {
    raft: Raft<TypeConfig, StateMachine>,
    store: LogStore,
    published: Arc<Published>,
    role: watch::Receiver<Role>,
    torn: Option<TornTail>,
}

/// Changes from one moment on.
pub struct Subscription {
    /// The state at that moment.
    pub state: Arc<State>,
    events: broadcast::Receiver<Event>,
    seen: u64,
}

impl Log {
    /// Whether `dir` holds the log of a manager.
    pub fn exists(dir: &Path) -> bool {
        dir.join("identity").exists()
    }

    /// Makes the log of the first manager of a new cluster. `raft_id` is random: ids are never used twice.
    ///
    /// # Errors
    /// [`OpenError`]; trying again is safe.
    pub async fn bootstrap(dir: &Path, raft_id: u64) -> Result<Self, OpenError> {
        // The log first: a folder with an identity and without a log is taken for a lost log.
        drop(LogStore::open(dir, log::exit_on_fatal())?);
        segment::replace_file(&dir.join("identity"), format!("{raft_id}\n").as_bytes())?;
        Self::open(dir).await
    }

    /// Opens the log in `dir`; returns once this manager leads or follows and has applied what it knew.
    ///
    /// # Errors
    /// [`OpenError`], when the folder is damaged or in use.
    pub async fn open(dir: &Path) -> Result<Self, OpenError> {
        let identity = dir.join("identity");
        let text = std::fs::read_to_string(&identity).map_err(segment::io_error("read", &identity))?;
        let id: u64 = text
            .trim()
            .parse()
            .map_err(|_| OpenError::Identity { path: identity })?;
        if segment::list(dir)?.is_empty() {
            return Err(OpenError::Lost {
                path: dir.to_path_buf(),
            });
        }
        let (store, torn) = LogStore::open(dir, log::exit_on_fatal())?;
        if let Some(torn) = &torn {
            tracing::warn!(path = %torn.path.display(), offset = torn.offset, "removed a write that a crash cut off");
        }
        let (machine, published) = StateMachine::open(dir)?;
        let raft = Raft::new(id, Arc::new(config()?), network::Peers, store.clone(), machine)
            .await
            .map_err(raft_error)?;
        let role = watch_role(&raft);
        let log = Self {
            raft,
            store,
            published,
            role,
            torn,
        };
        log.begin(id).await?;
        Ok(log)
    }

    async fn begin(&self, id: u64) -> Result<(), OpenError> {
        let alone = if self.raft.is_initialized().await.map_err(raft_error)? {
            // Asked of the core, as the metrics may not be filled in yet.
            let voters = self.raft.with_raft_state(|state| {
                state
                    .membership_state
                    .effective()
                    .membership()
                    .voter_ids()
                    .collect::<Vec<u64>>()
            });
            let alone = voters.await.map_err(raft_error)? == [id];
            if alone && !self.role.borrow().leader {
                // Nobody else can lead, so there is nothing to wait for.
                self.raft.trigger().elect(false).await.map_err(raft_error)?;
            }
            alone
        } else {
            let members = std::collections::BTreeMap::from([(id, BasicNode::default())]);
            self.raft.initialize(members).await.map_err(raft_error)?;
            true
        };
        if alone {
            let mut role = self.role.clone();
            let leads = role.wait_for(|r| r.leader || r.stopped);
            tokio::time::timeout(ELECTION_LIMIT, leads)
                .await
                .map_err(|_| OpenError::Raft {
                    why: "this manager did not become leader within 30 s".into(),
                })?
                .map_err(raft_error)?;
            self.read_latest().await.map_err(raft_error)?;
        }
        Ok(())
    }

    /// What a crash had left of the last write, when this log was opened.
    pub fn torn(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Makes a transaction durable and applies it. Calls at the same time share a sync.
    ///
    /// # Errors
    /// [`ProposeError`]; of all but `Unknown` it is certain that nothing changed.
    pub async fn propose(&self, txn: Txn) -> Result<Applied, ProposeError> {
        let bytes = codec::encode_txn(self.now(), &txn);
        if bytes.len() > TXN_MAX {
            return Err(ProposeError::TooLarge { bytes: bytes.len() });
        }
        let written = self.raft.client_write(Proposal(codec::share(bytes))).await;
        let response = written.map_err(|e| match e {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                ProposeError::NotLeader { leader: to.leader_id }
            }
            RaftError::APIError(_) => ProposeError::Unknown,
            RaftError::Fatal(fatal) => ProposeError::Stopped {
                why: fatal.to_string(),
            },
        })?;
        match response.data {
            Outcome::Applied(changes) => Ok(Applied {
                index: response.log_id.index,
                changes,
            }),
            Outcome::Stale(stale) => Err(stale.into()),
            Outcome::Nothing => Ok(Applied {
                index: response.log_id.index,
                changes: Arc::default(),
            }),
        }
    }

    /// The state as this manager knows it.
    pub fn read(&self) -> Arc<State> {
        self.published.state.load_full()
    }

    /// The state with everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] or [`ProposeError::Stopped`].
    pub async fn read_latest(&self) -> Result<Arc<State>, ProposeError> {
        self.raft
            .ensure_linearizable(ReadPolicy::ReadIndex)
            .await
            .map_err(|e| match e {
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
        Ok(self.read())
    }

    /// The state and every change after it.
    pub fn subscribe(&self) -> Subscription {
        // In this order: an event between the two is seen twice rather than never, and its index tells.
        let events = self.published.events.subscribe();
        let state = self.read();
        Subscription {
            seen: state.index(),
            state,
            events,
        }
    }

    /// Whether this manager leads, and whether it stopped.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// The time for the next entry: the wall clock, but for its leaps (see [`manager_core::log_time`]).
    pub fn now(&self) -> Timestamp {
        self.published.clock.now()
    }

    /// Stops, with everything written.
    pub async fn close(&self) {
        // A core that panicked has nothing left to stop.
        let _ = self.raft.shutdown().await;
        let store = self.store.clone();
        // It fails only when the runtime itself is going down.
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

impl Subscription {
    /// The next change. Changes that are in [`Subscription::state`] already are left out.
    ///
    /// Returns none when the log was closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.events.recv().await {
                Ok(event) => {
                    if let Some(event) = self.take(event) {
                        return Some(event);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => return Some(Event::Replaced),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// A change that has happened already, if there is one.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    if let Some(event) = self.take(event) {
                        return Some(event);
                    }
                }
                Err(broadcast::error::TryRecvError::Lagged(_)) => return Some(Event::Replaced),
                Err(_) => return None,
            }
        }
    }

    fn take(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Applied(changes) if changes.index <= self.seen => None,
            event => Some(event),
        }
    }
}

fn raft_error(e: impl std::fmt::Display) -> OpenError {
    OpenError::Raft { why: e.to_string() }
}

fn config() -> Result<Config, OpenError> {
    Config {
        cluster_name: "rswarm".into(),
        heartbeat_interval: 250,
        election_timeout_min: 1_500,
        election_timeout_max: 3_000,
        // It is the deadline of a whole snapshot.
        install_snapshot_timeout: 60_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        replication_lag_threshold: 2 * SNAPSHOT_EVERY,
        enable_pre_vote: Some(true),
        ..Config::default()
    }
    .validate()
    .map_err(raft_error)
}

fn watch_role(raft: &Raft<TypeConfig, StateMachine>) -> watch::Receiver<Role> {
    let mut metrics = raft.metrics();
    let read = |m: &openraft::RaftMetrics<TypeConfig>| Role {
        leader: m.state == ServerState::Leader && m.running_state.is_ok(),
        term: m.current_term,
        stopped: m.running_state.is_err(),
    };
    let (send, receive) = watch::channel(read(&metrics.borrow_watched()));
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let role = read(&metrics.borrow_watched());
            send.send_if_modified(|old| std::mem::replace(old, role) != role);
        }
        send.send_modify(|role| {
            *role = Role {
                leader: false,
                stopped: true,
                ..*role
            }
        });
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;
    use manager_core::Action;
    use model::ConfigId;
    use model::object::{Config, Meta, Object};
    use model::spec::ConfigSpec;

    fn config(id: u128, data: usize) -> Txn {
        let spec = ConfigSpec {
            name: format!("c{id}"),
            data: vec![1; data],
            ..ConfigSpec::default()
        };
        let config = Config {
            id: ConfigId(id),
            meta: Meta::default(),
            spec: Arc::new(spec),
        };
        Txn {
            expect: Vec::new(),
            actions: vec![Action::Put(Object::Config(Arc::new(config)))],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restart_reads_the_snapshot_and_the_entries_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::bootstrap(dir.path(), 5).await.unwrap();
        let mut subscription = log.subscribe();
        for id in 1..=20 {
            let applied = log.propose(config(id, 100)).await.unwrap();
            assert_eq!(
                log.read().config(ConfigId(id)).unwrap().meta.version,
                applied.index
            );
            assert!(matches!(subscription.next().await, Some(Event::Applied(c)) if c.index == applied.index));
        }
        log.raft.trigger().snapshot().await.unwrap();
        log.raft
            .wait(Some(ELECTION_LIMIT))
            .metrics(|m| m.snapshot.is_some(), "a snapshot")
            .await
            .unwrap();
        log.propose(config(21, 100)).await.unwrap();
        let before: Vec<Object> = log.read().objects().collect();
        log.close().await;
        drop(log);
        assert!(dir.path().join("snapshot").exists());

        let log = Log::open(dir.path()).await.unwrap();
        assert_eq!(log.read().objects().collect::<Vec<_>>(), before);
        assert_eq!(before.len(), 21);
        log.close().await;
        drop(log);

        // A snapshot that changed on disk is refused.
        let path = dir.path().join("snapshot");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(
            Log::open(dir.path()).await,
            Err(OpenError::Log(LogError::Corrupt { .. }))
        ));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stale_or_too_large_transaction_changes_nothing_and_a_lost_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::bootstrap(dir.path(), 5).await.unwrap();
        log.propose(config(1, 10)).await.unwrap();
        let stale = Txn {
            expect: vec![(model::object::Key::Config(ConfigId(1)), 999)],
            ..config(1, 20)
        };
        assert!(matches!(log.propose(stale).await, Err(ProposeError::Stale(_))));
        assert!(matches!(
            log.propose(config(2, TXN_MAX)).await,
            Err(ProposeError::TooLarge { .. })
        ));
        assert_eq!(log.read_latest().await.unwrap().configs().count(), 1);
        log.close().await;
        assert!(matches!(
            log.propose(config(3, 1)).await,
            Err(ProposeError::Stopped { .. })
        ));
        drop(log);
        for number in segment::list(dir.path()).unwrap() {
            std::fs::remove_file(segment::segment_path(dir.path(), number)).unwrap();
        }
        assert!(matches!(Log::open(dir.path()).await, Err(OpenError::Lost { .. })));
    }
}
