//! The replicated log: what is proposed here is durable, in one order, and applied to the state.
//!
//! Types of openraft stay inside this folder.

mod answer;
mod backup;
mod clock;
mod codec;
mod disk;
mod error;
mod identity;
mod keys;
mod level;
mod log;
mod log_writer;
mod mark;
mod members;
mod memory;
pub(crate) mod network;
mod pledge;
mod record;
mod replace;
mod revive;
mod seal;
mod segment;
mod serve;
mod snapshot;
mod state_machine;
pub(crate) mod unlock_key;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manager_core::{Changes, Stale, State, Txn};
use model::{NodeId, Timestamp};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, Config, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{broadcast, watch};

use log::LogStore;
use members::Count;
use network::Links;
use state_machine::{Outcome, Published, StateMachine};

pub use backup::BackupError;
pub use disk::DiskState;
pub use error::LogError;
pub use keys::{KeyError, KeyRing, LockedRing, Opened};
pub use network::Route;
pub(crate) use revive::Restore;
pub use segment::TornTail;
pub use serve::RaftRpc;
pub use state_machine::Event;
pub use unlock_key::{UnlockKey, UnlockKeyError};

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
type Snapshot = openraft::Snapshot<Clid, u64, BasicNode, snapshot::SnapshotFile>;

/// Largest transaction: a stack with all its secrets and configs fits, and a frame of the log holds two.
const TXN_MAX: usize = 31 * 1024 * 1024;
/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 10_000;
/// Entries kept behind a snapshot for managers that are a little late.
const KEPT_ENTRIES: u64 = 1_000;
/// While a proposal is not decided, whether it can be is looked at so often.
const QUORUM_LOOK: Duration = Duration::from_millis(250);
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
    /// Enough managers answer, and yet this one could follow none that leads for as long as a call waits: the lines lose
    /// much, one of them stands still again and again, or this one is far behind.
    #[error(
        "E_NO_LEADER: enough managers answer, but for {} s this one could follow none that leads: look whether a change \
         took effect before trying again, or ask another manager. If it stays so, look at the lines between the managers; running tasks go on",
        waited.as_secs()
    )]
    NoLeader {
        /// How long.
        waited: Duration,
    },
    /// Too few managers answer for anything to be decided. Running tasks go on.
    #[error(
        "E_NO_QUORUM: {answered} of {voters} managers answer, which is no quorum: nothing can be changed or read \
         reliably until more are back; running tasks go on. Not answering: {silent}. If they are lost for good: \
         rswarm swarm init --force-new-cluster"
    )]
    NoQuorum {
        /// How many answer, this one included.
        answered: usize,
        /// How many there are.
        voters: usize,
        /// Addresses of the others.
        silent: String,
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
    /// The disk of the log is full.
    #[error(
        "E_DISK_FULL: the disk of this manager's raft log is full, and {}; free space there and it goes on by itself",
        if *pending { "the change waits: it may still take effect, so look before trying again" } else { "nothing was changed" }
    )]
    DiskFull {
        /// Whether it was on its way already when the disk became full.
        pending: bool,
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
    /// Who leads, if that is known.
    pub leader_id: Option<u64>,
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
    id: u64,
    dir: PathBuf,
    links: Links,
    count: tokio::sync::Mutex<Count>,
    pledges: pledge::Pledges,
}

/// Changes from one moment on.
pub struct Subscription {
    /// The state at that moment.
    pub state: Arc<State>,
    events: broadcast::Receiver<Event>,
    seen: u64,
}

impl Log {
    /// Whether `dir` holds the log of a manager, whole or not.
    pub fn exists(dir: &Path) -> bool {
        identity::path_in(dir).exists() || (mark::Mark::proves_writes(dir) && !identity::was_left(dir))
    }

    /// The level the log in `dir` is written at, without opening it: a build that knows less may not.
    ///
    /// # Errors
    /// [`LogError`] when that cannot be read.
    pub fn level(dir: &Path) -> Result<model::Level, LogError> {
        level::read(dir)
    }

    /// Says durably that there is no log in `dir` any more, whatever of it is still there; it is about to be removed.
    ///
    /// # Errors
    /// [`LogError`]; trying again is safe.
    pub fn disown(dir: &Path) -> Result<(), LogError> {
        identity::leave(dir)
    }

    /// Makes the log of the first manager of a new cluster. `raft_id` is random: ids are never used twice.
    ///
    /// # Errors
    /// [`OpenError`]; trying again is safe.
    pub(crate) async fn bootstrap(
        dir: &Path,
        raft_id: u64,
        links: Links,
        keys: KeyRing,
        node: NodeId,
        address: &str,
    ) -> Result<Self, OpenError> {
        let log = Self::make(dir, raft_id, links, keys).await?;
        let members = BTreeMap::from([(raft_id, network::member(node, address))]);
        log.raft.initialize(members).await.map_err(raft_error)?;
        log.lead_alone().await?;
        Ok(log)
    }

    /// Makes the empty log of a manager that joins others; they fill it.
    ///
    /// # Errors
    /// [`OpenError`]; trying again is safe.
    pub(crate) async fn blank(
        dir: &Path,
        raft_id: u64,
        links: Links,
        keys: KeyRing,
    ) -> Result<Self, OpenError> {
        Self::make(dir, raft_id, links, keys).await
    }

    async fn make(dir: &Path, raft_id: u64, links: Links, keys: KeyRing) -> Result<Self, OpenError> {
        // The log first: a folder with an identity and without a log is taken for a lost log.
        drop(LogStore::open(dir, &keys, log::exit_on_fatal())?);
        identity::write(dir, raft_id)?;
        Self::start(dir, raft_id, links, keys).await
    }

    /// Opens the log in `dir`. A manager that is the only one leads when this returns; others are waited for later.
    ///
    /// # Errors
    /// [`OpenError`], when the folder is damaged or in use.
    pub(crate) async fn open(dir: &Path, links: Links, keys: KeyRing) -> Result<Self, OpenError> {
        let id = identity::read(dir)?;
        if segment::list(dir)?.is_empty() {
            return Err(OpenError::Lost {
                path: dir.to_path_buf(),
            });
        }
        let log = Self::start(dir, id, links, keys).await?;
        // Where it is not initialized, others are yet to fill it.
        if log.raft.is_initialized().await.map_err(raft_error)? {
            // Asked of the core, as the metrics may not be filled in yet.
            let voters = log.raft.with_raft_state(|state| {
                let effective = state.membership_state.effective();
                effective.membership().voter_ids().collect::<Vec<u64>>()
            });
            if voters.await.map_err(raft_error)? == [id] {
                log.lead_alone().await?;
            }
        }
        Ok(log)
    }

    async fn start(dir: &Path, id: u64, links: Links, keys: KeyRing) -> Result<Self, OpenError> {
        let (store, torn) = LogStore::open(dir, &keys, log::exit_on_fatal())?;
        if let Some(torn) = &torn {
            tracing::warn!(path = %torn.path.display(), offset = torn.offset, "removed a write that a crash cut off");
        }
        let (machine, published) = StateMachine::open(dir, &keys)?;
        machine.reaches(store.purged())?;
        links.follow(published.clone());
        let peers = network::Peers { links: links.clone() };
        let raft = Raft::new(id, Arc::new(config()?), peers, store.clone(), machine)
            .await
            .map_err(raft_error)?;
        let role = watch_role(&raft);
        let log = Self {
            raft,
            store,
            published,
            role,
            torn,
            id,
            dir: dir.to_owned(),
            links,
            count: tokio::sync::Mutex::default(),
            pledges: pledge::Pledges::default(),
        };
        tokio::spawn(disk::hand_over(log.raft.clone(), log.disk()));
        let sync = log.store.sync();
        tokio::spawn(disk::hand_over_when_slow(log.raft.clone(), sync, log.disk()));
        Ok(log)
    }

    /// Becomes leader at once: nobody else can lead, so there is nothing to wait for.
    async fn lead_alone(&self) -> Result<(), OpenError> {
        if !self.role.borrow().leader {
            self.raft.trigger().elect(false).await.map_err(raft_error)?;
        }
        let mut role = self.role.clone();
        let leads = role.wait_for(|r| r.leader || r.stopped);
        tokio::time::timeout(ELECTION_LIMIT, leads)
            .await
            .map_err(|_| OpenError::Raft {
                why: "this manager did not become leader within 30 s".into(),
            })?
            .map_err(raft_error)?;
        self.confirm().await.map_err(raft_error)?;
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
        if self.quorum_is_late() && self.role.borrow().leader {
            // Certain to change nothing, which a proposal that nobody hears is not.
            return Err(match self.lacks_quorum().await {
                Some(none) => none,
                None => ProposeError::NotLeader { leader: None },
            });
        }
        // What waits for a full disk waits in memory: a few, and no more are let in.
        let mut disk = self.disk();
        if *disk.borrow() == DiskState::Full {
            return Err(ProposeError::DiskFull { pending: false });
        }
        let mut write = std::pin::pin!(self.raft.client_write(Proposal(codec::share(bytes))));
        let written = loop {
            tokio::select! {
                biased;
                written = &mut write => break written,
                Ok(_) = disk.wait_for(|state| *state == DiskState::Full) => {
                    return Err(ProposeError::DiskFull { pending: true });
                }
                () = tokio::time::sleep(QUORUM_LOOK) => {
                    if self.quorum_is_late() {
                        return Err(ProposeError::Unknown);
                    }
                }
            }
        };
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

    /// Whether the disk of the log has room. While it is full nothing is acknowledged, and it is tried again.
    pub fn disk(&self) -> watch::Receiver<DiskState> {
        self.store.disk()
    }

    /// The data keys of this log: to lock them, and to change them.
    pub fn keys(&self) -> &KeyRing {
        self.store.keys()
    }

    /// The time for the next entry: the wall clock, but for its leaps (see [`manager_core::log_time`]).
    pub fn now(&self) -> Timestamp {
        self.published.clock.now()
    }

    /// Stops, with everything written.
    pub async fn close(&self) {
        // The core would wait with what waits for a full disk.
        self.store.give_up();
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
        // A lost leader is missed after its lease, which is the longer one, and replaced within the shorter one.
        election_timeout_min: 800,
        election_timeout_max: 1_300,
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
        leader_id: m.current_leader,
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
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod seal_tests;

#[cfg(test)]
mod tests {
    use super::network::links;
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

    fn ring(dir: &Path) -> KeyRing {
        match KeyRing::open(dir).unwrap() {
            Opened::Ready(ring) => ring,
            Opened::Locked(ring) => panic!("{ring:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restart_reads_the_snapshot_and_the_entries_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::bootstrap(dir.path(), 5, links(), ring(dir.path()), NodeId(1), "")
            .await
            .unwrap();
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

        let log = Log::open(dir.path(), links(), ring(dir.path())).await.unwrap();
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
            Log::open(dir.path(), links(), ring(dir.path())).await,
            Err(OpenError::Log(LogError::Corrupt { .. }))
        ));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stale_or_too_large_transaction_changes_nothing_and_a_lost_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::bootstrap(dir.path(), 5, links(), ring(dir.path()), NodeId(1), "")
            .await
            .unwrap();
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
        log.confirm().await.unwrap();
        assert_eq!(log.read().configs().count(), 1);
        log.close().await;
        assert!(matches!(
            log.propose(config(3, 1)).await,
            Err(ProposeError::Stopped { .. })
        ));
        drop(log);
        for number in segment::list(dir.path()).unwrap() {
            std::fs::remove_file(segment::segment_path(dir.path(), number)).unwrap();
        }
        assert!(matches!(
            Log::open(dir.path(), links(), ring(dir.path())).await,
            Err(OpenError::Lost { .. })
        ));
    }
}
