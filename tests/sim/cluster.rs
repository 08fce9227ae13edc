//! The leader and its hosts, moved on event by event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use manager_core::{Action, Dirty, State, Txn, admit, node_health, plan};
use model::assignment::AssignmentSet;
use model::object::{Availability, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Object};
use model::spec::{Platform, ServiceMode};
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, NanoCpus, NodeId, ServiceId, Timestamp};

use super::host::Host;
use super::log::Source;
use super::rng::Rng;

/// Events kept to explain a failure.
const LAST_MAX: usize = 40;
/// Plans until nothing is left to do at one time; more are a plan that never settles.
const PLANS_MAX: u32 = 40;
/// Simulated time within which everything runs once faults have ended.
const HEAL: Duration = Duration::from_secs(240);
/// CPUs of a node.
pub const NODE_CPUS: u64 = 4_000_000_000;

/// Everything simulated.
#[derive(Debug)]
pub struct Cluster {
    /// The replicated state.
    pub state: State,
    /// The time.
    pub now: Timestamp,
    /// Whether faults happen.
    pub faults: bool,
    /// The hosts.
    pub hosts: BTreeMap<NodeId, Host>,
    /// What each node knows, from diffs.
    pub views: BTreeMap<NodeId, AssignmentSet>,
    /// Services whose rollout began while all was well and that nothing has disturbed since.
    pub healthy_updates: BTreeSet<ServiceId>,
    /// Services that ever had a start-first rollout among their knobs.
    pub start_first: BTreeSet<ServiceId>,
    /// How often each kind of thing happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Hash over every event.
    pub trace: u64,
    /// The last events.
    pub last: VecDeque<String>,
    pub(super) rng: Rng,
    pub(super) dirty: Dirty,
    pub(super) wake: BTreeMap<ServiceId, Timestamp>,
    pub(super) seen: BTreeMap<NodeId, Timestamp>,
}

impl Cluster {
    /// The cluster of a seed, empty.
    pub fn new(seed: u64) -> Self {
        Self {
            state: State::new(),
            now: Timestamp(1_000_000_000),
            faults: false,
            hosts: BTreeMap::new(),
            views: BTreeMap::new(),
            healthy_updates: BTreeSet::new(),
            start_first: BTreeSet::new(),
            counts: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            last: VecDeque::new(),
            rng: Rng::new(seed),
            dirty: Dirty::everything(),
            wake: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
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

    /// Makes the cluster and its nodes.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn begin(&mut self) -> Result<(), String> {
        let nodes = 1 + self.rng.below(6);
        self.begin_with(nodes)?;
        self.faults = true;
        Ok(())
    }

    /// Makes the cluster and so many nodes, `n1`, `n2`, …; no faults happen by themselves.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn begin_with(&mut self, nodes: u64) -> Result<(), String> {
        let request = admit::ClusterRequest {
            availability: Availability::Drain,
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
                    ..NodeDescription::default()
                },
                status: NodeStatus::ready(),
            };
            self.seen.insert(node.id, self.now);
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
        Ok(())
    }

    /// Time passes without faults.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn advance(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(200);
            self.agents()?;
            self.health()?;
            self.lead()?;
        }
        Ok(())
    }

    /// One event and what follows from it.
    ///
    /// # Errors
    /// A broken invariant.
    pub fn step(&mut self) -> Result<(), String> {
        self.now = self.now + Duration::from_millis(50 + self.rng.below(900));
        match self.rng.below(100) {
            0..=19 => self.work()?,
            20..=31 => self.fault(),
            _ => {}
        }
        self.agents()?;
        self.health()?;
        self.lead()
    }

    /// Every agent does what is due and reports what it can.
    fn agents(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            // A node that is cut off goes on with what it knew; it is told nothing, so it is not asked here.
            let (Some(host), Some(view)) = (self.hosts.get_mut(&node), self.views.get(&node)) else {
                continue;
            };
            if !host.connected {
                continue;
            }
            let reports = host.tick(view, self.now, &mut self.rng, self.faults)?;
            let actions: Vec<Action> = reports
                .into_iter()
                .map(|(task, status)| Action::TaskStatus { node, task, status })
                .collect();
            self.commit(
                Source::Agent,
                Txn {
                    expect: Vec::new(),
                    actions,
                },
            )?;
        }
        Ok(())
    }

    /// The leader's watch over nodes.
    fn health(&mut self) -> Result<(), String> {
        let heartbeat = self
            .state
            .cluster()
            .map_or(Duration::from_secs(1), |c| c.heartbeat);
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            let heard = self.hosts.get(&node).is_some_and(|h| h.up && h.connected);
            if heard {
                self.seen.insert(node, self.now);
            }
            // A new leader knows no node yet and gives each its time.
            let seen = *self.seen.entry(node).or_insert(self.now);
            let status = node_health::status(seen, heartbeat, self.now);
            let Some(known) = self.state.node(node) else {
                continue;
            };
            if known.status.state != status.state {
                self.healthy_updates.clear();
                let kind = if status.state == NodeState::Down {
                    "node losses"
                } else {
                    "node returns"
                };
                let action = Action::NodeSeen {
                    node,
                    description: None,
                    status,
                };
                if self.commit(
                    Source::Health,
                    Txn {
                        expect: Vec::new(),
                        actions: vec![action],
                    },
                )? {
                    self.note(kind, format!("{kind}: {}", node.0));
                }
            }
        }
        Ok(())
    }

    /// The leader plans until nothing is left; sometimes something comes between plan and proposal.
    pub(super) fn lead(&mut self) -> Result<(), String> {
        let due: Vec<ServiceId> = self
            .wake
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.wake.remove(&id);
            self.dirty.add_service(id);
        }
        for _ in 0..PLANS_MAX {
            if self.dirty.is_empty() {
                return self.settled();
            }
            let dirty = self.dirty.take();
            let next = plan(&self.state, &dirty, self.now, &mut self.rng);
            for (id, at) in &next.wake {
                self.wake
                    .entry(*id)
                    .and_modify(|w| *w = (*w).min(*at))
                    .or_insert(*at);
            }
            if self.faults && self.rng.percent(3) {
                // Another proposal is first in the log.
                self.work()?;
            }
            if !self.commit(Source::Plan, next.txn)? {
                self.dirty = Dirty::everything();
                if self.faults && self.rng.percent(50) {
                    self.new_leader();
                    return Ok(());
                }
            }
        }
        Err(format!("{PLANS_MAX} plans were not enough"))
    }

    /// What must hold once the leader has nothing left to do.
    fn settled(&mut self) -> Result<(), String> {
        if !self.rng.percent(25) {
            return Ok(());
        }
        let again = plan(&self.state, &Dirty::everything(), self.now, &mut self.rng.clone());
        if !again.txn.is_empty() {
            let mut lines = String::new();
            for action in &again.txn.actions {
                match action {
                    Action::Put(Object::Task(t)) => {
                        let was = self.state.task(t.id).map(|t| (t.desired, t.status.state, t.node));
                        lines.push_str(&format!(
                            "\n  {} {} was {was:?}, becomes {:?} {} {}",
                            t.name(),
                            t.id.short(),
                            (t.desired, t.status.state, t.node),
                            t.status.message,
                            t.status.error
                        ));
                    }
                    Action::Put(Object::Service(s)) => {
                        lines.push_str(&format!("\n  {} becomes {:?}", s.spec.name, s.update));
                    }
                    other => lines.push_str(&format!("\n  {other:?}")),
                }
            }
            return Err(format!(
                "plan_is_settled: the plan of a planned state is not empty:{lines}"
            ));
        }
        for (id, at) in &again.wake {
            if *at > self.now && self.wake.get(id).is_none_or(|known| known > at) {
                return Err(format!(
                    "plan_is_settled: service {id} wants to be woken at {at:?}, but nobody knows"
                ));
            }
        }
        crate::invariants::check_settled(&self.state).map_or(Ok(()), Err)
    }

    /// Ends all faults, repairs what users broke, and demands that everything wanted runs.
    ///
    /// # Errors
    /// A broken invariant, or something that still does not run.
    pub fn heal(&mut self) -> Result<(), String> {
        self.faults = false;
        self.note("heals", "all faults end".into());
        for host in self.hosts.values_mut() {
            (host.up, host.connected) = (true, true);
        }
        self.repair()?;
        let end = self.now + HEAL;
        while self.now < end {
            self.advance(Duration::from_millis(200))?;
            if self.wrong().is_none() {
                return Ok(());
            }
        }
        self.wrong().map_or(Ok(()), |what| {
            Err(format!(
                "converges: {what} {} s after the last fault",
                HEAL.as_secs()
            ))
        })
    }

    /// What is not yet as it is wanted.
    fn wrong(&self) -> Option<String> {
        for service in self.state.services() {
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => replicas as usize,
                ServiceMode::Global => self.hosts.len(),
            };
            let running = self
                .state
                .tasks_of_service(service.id)
                .filter(|t| t.status.state == TaskState::Running && t.desired == DesiredState::Running)
                .filter(|t| *t.spec == service.spec.task)
                .count();
            let update = service.update.as_ref().filter(|u| u.state.is_active());
            if running != wanted || update.is_some() {
                let tasks: Vec<String> = self
                    .state
                    .tasks_of_service(service.id)
                    .map(|t| {
                        format!(
                            "{} {:?} {:?} {}",
                            t.name(),
                            t.desired,
                            t.status.state,
                            t.status.error
                        )
                    })
                    .collect();
                return Some(format!(
                    "tasks {tasks:?}; service {} runs {running} of {wanted}, {:?}",
                    service.spec.name,
                    service.update.as_ref().map(|u| (u.state, &u.message))
                ));
            }
        }
        for (node, host) in &self.hosts {
            let wanted = |id| {
                self.state
                    .task(id)
                    .is_some_and(|t| t.node == Some(*node) && t.desired.is_live())
            };
            if let Some(id) = host.tasks.keys().find(|id| host.runs(**id) && !wanted(**id)) {
                return Some(format!("node {} still runs the container of task {id}", node.0));
            }
        }
        let alone = self
            .state
            .tasks()
            .find(|t| self.state.service(t.service).is_none());
        alone.map(|t| format!("task {} has no service", t.name()))
    }
}
