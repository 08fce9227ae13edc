//! Managers and hosts, moved on event by event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use manager_core::drains::Drains;
use manager_core::node_health::Unheard;
use manager_core::{Action, Dirty, State, Txn, admit};
use model::assignment::AssignmentSet;
use model::object::{Availability, Key, Node, NodeDescription, NodeSpec, NodeStatus, Object, SlotKey};
use model::spec::{GenericResources, Platform};
use model::{Bytes, Level, NanoCpus, NodeId, ServiceId, TaskId, Timestamp};

use super::Plant;
use super::host::Host;
use super::log::Source;
use super::manager::Managers;
use super::rng::Rng;
use super::session::Flight;
use crate::invariants;

/// Events kept to explain a failure.
const LAST_MAX: usize = 40;
/// CPUs of a node.
pub const NODE_CPUS: u64 = 4_000_000_000;
/// Longest time between two looks at everything.
const TICK: Duration = Duration::from_millis(450);

/// Everything simulated.
#[derive(Debug)]
pub struct Cluster {
    /// The state after every entry of the log, as the leader has it.
    pub state: State,
    /// The time, by a clock that nobody sets.
    pub now: Timestamp,
    /// Whether faults happen.
    pub faults: bool,
    /// Whether only those happen that must not touch a task.
    pub quiet: bool,
    /// A bug that was put in.
    pub plant: Option<Plant>,
    /// Time between two heartbeats; zero: what a cluster has by itself.
    pub heartbeat: Duration,
    /// The managers.
    pub managers: Managers,
    /// The hosts.
    pub hosts: BTreeMap<NodeId, Host>,
    /// What each node with a session is to know, and the number of that.
    pub views: BTreeMap<NodeId, (u64, AssignmentSet)>,
    /// Which tasks the leader lets wait.
    pub drains: Drains,
    /// What a node is to acknowledge once it knows its view.
    pub asked: BTreeMap<NodeId, u64>,
    pub(super) streams: BTreeMap<NodeId, u64>,
    /// When the leader last heard of a node, by the time itself.
    pub heard: BTreeMap<NodeId, Timestamp>,
    /// Objects a user wrote and was told so, with the entry that did.
    pub acked: BTreeMap<Key, u64>,
    /// Every task that ever was.
    pub ids: BTreeSet<TaskId>,
    /// Term, time in the log and time itself of the last entry.
    pub last_entry: Option<(u64, Timestamp, Timestamp)>,
    /// The session whose report is being written.
    pub reporting: Option<(NodeId, String)>,
    /// Services whose rollout began while all was well and that nothing has disturbed since.
    pub healthy_updates: BTreeSet<ServiceId>,
    /// Services of which tasks were to move while all was well and that nothing has disturbed since.
    pub healthy_moves: BTreeSet<ServiceId>,
    /// Services that ever had a start-first rollout among their knobs.
    pub start_first: BTreeSet<ServiceId>,
    /// Slots of which a task ever went to another node once its successor ran.
    pub moved: BTreeSet<(ServiceId, SlotKey)>,
    /// How often each kind of thing happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Hash over every event.
    pub trace: u64,
    /// The last events.
    pub last: VecDeque<String>,
    pub(super) rng: Rng,
    // What the leader has in memory.
    pub(super) dirty: Dirty,
    pub(super) unheard: Unheard,
    pub(super) wake: BTreeMap<ServiceId, Timestamp>,
    pub(super) counters: BTreeMap<ServiceId, (Timestamp, Vec<SlotKey>)>,
    // What is under way.
    pub(super) flights: Vec<Flight>,
    pub(super) serial: u64,
    pub(super) told: u64,
    pub(super) back_on_at: Option<Timestamp>,
    /// In a quiet run: the tasks that must still run at its end.
    pub(super) untouched: BTreeSet<TaskId>,
}

impl Cluster {
    /// The cluster of a seed, empty.
    pub fn new(seed: u64) -> Self {
        Self {
            state: State::new(),
            now: Timestamp(1_700_000_000_000),
            faults: false,
            quiet: false,
            plant: None,
            heartbeat: Duration::ZERO,
            managers: Managers::default(),
            hosts: BTreeMap::new(),
            views: BTreeMap::new(),
            drains: Drains::default(),
            asked: BTreeMap::new(),
            streams: BTreeMap::new(),
            heard: BTreeMap::new(),
            acked: BTreeMap::new(),
            ids: BTreeSet::new(),
            last_entry: None,
            reporting: None,
            healthy_updates: BTreeSet::new(),
            healthy_moves: BTreeSet::new(),
            start_first: BTreeSet::new(),
            moved: BTreeSet::new(),
            counts: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            last: VecDeque::new(),
            rng: Rng::new(seed),
            dirty: Dirty::everything(),
            unheard: Unheard::default(),
            wake: BTreeMap::new(),
            counters: BTreeMap::new(),
            flights: Vec::new(),
            serial: 0,
            told: 0,
            back_on_at: None,
            untouched: BTreeSet::new(),
        }
    }

    /// Something happened for which any service may serve less.
    pub fn disturbed(&mut self) {
        self.healthy_updates.clear();
        self.healthy_moves.clear();
    }

    /// Something happened for which a service may serve less.
    pub fn disturbed_by(&mut self, id: ServiceId) {
        self.healthy_updates.remove(&id);
        self.healthy_moves.remove(&id);
    }

    /// Counts, hashes (FNV-1a) and remembers an event.
    pub fn note(&mut self, kind: &'static str, text: String) {
        *self.counts.entry(kind).or_default() += 1;
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.last.len() == LAST_MAX {
            self.last.pop_front();
        }
        self.last.push_back(format!("{:?} {text}", self.now));
    }

    /// Makes the cluster and its nodes; in a quiet run services as well, and waits until they run.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn begin(&mut self) -> Result<(), String> {
        let nodes = 1 + self.rng.below(6);
        let managers = self.rng.pick(&[1, 2, 3, 3, 3, 5]).unwrap_or(1);
        self.heartbeat = Duration::from_millis(self.rng.pick(&[0, 0, 5_000]).unwrap_or(0));
        self.begin_with(nodes, managers)?;
        if self.quiet {
            self.begin_quietly()?;
        }
        self.faults = true;
        Ok(())
    }

    /// Makes the cluster with so many managers and so many nodes, `n1`, `n2`, …; no faults happen by themselves.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn begin_with(&mut self, nodes: u64, managers: usize) -> Result<(), String> {
        self.managers = Managers::new(managers, self.now);
        self.elect()?;
        let request = admit::ClusterRequest {
            availability: Availability::Drain,
            heartbeat: self.heartbeat,
            // All of this build, so that it may do whatever this build can.
            description: NodeDescription {
                level: Level::OURS,
                ..NodeDescription::default()
            },
            ..Default::default()
        };
        let manager = NodeId(100);
        let first = admit::init_cluster(&self.state, &request, manager, self.now, &mut self.rng);
        self.commit(Source::Admit, first.map_err(|r| r.to_string())?.txn)?;
        for id in 1..=nodes {
            let mut spec = NodeSpec::default();
            if id % 2 == 0 {
                spec.labels.insert("disk".into(), "ssd".into());
            }
            let node = Node {
                id: NodeId(id.into()),
                meta: Default::default(),
                spec,
                description: NodeDescription {
                    hostname: format!("n{id}"),
                    platform: Platform {
                        os: "linux".into(),
                        arch: "amd64".into(),
                    },
                    cpus: NanoCpus(NODE_CPUS),
                    memory: Bytes(8 << 30),
                    level: Level::OURS,
                    generic: generic(id),
                    ..NodeDescription::default()
                },
                identity: Default::default(),
                status: NodeStatus::ready(),
            };
            self.hosts.insert(node.id, Host::new());
            let put = Action::Put(Object::Node(node.into()));
            self.commit(
                Source::Admit,
                Txn {
                    expect: Vec::new(),
                    actions: vec![put],
                },
            )?;
        }
        // They register with the leader.
        self.agents()
    }

    /// Time passes without faults.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn advance(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while self.now < end {
            self.tick(Duration::from_millis(200))?;
        }
        Ok(())
    }

    /// One event and what follows from it.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn step(&mut self) -> Result<(), String> {
        match self.rng.below(100) {
            0..=19 if !self.quiet => self.work()?,
            20..=31 => self.fault(),
            _ => {}
        }
        let slow = self.rng.percent(10);
        let mut left = Duration::from_millis(50 + self.rng.below(if slow { 8_000 } else { 900 }));
        while !left.is_zero() {
            let time = left.min(TICK);
            left -= time;
            self.tick(time)?;
        }
        Ok(())
    }

    /// Time passes, and everybody does what is due.
    fn tick(&mut self, time: Duration) -> Result<(), String> {
        self.now = self.now + time;
        self.power_on();
        self.manage()?;
        self.agents()?;
        self.health()?;
        self.lead()?;
        invariants::check_moment(self).map_or(Ok(()), Err)
    }
}

/// Two that have names, or of every other node three that are counted.
fn generic(node: u64) -> GenericResources {
    let (mut own, gpu) = (GenericResources::default(), "gpu".to_owned());
    if node.is_multiple_of(2) {
        own.counted.insert(gpu, 3);
    } else {
        own.named.insert(gpu, ["A", "B"].map(str::to_owned).into());
    }
    own
}
