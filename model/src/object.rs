//! What the cluster remembers: spec + status + version.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::job::JobStatus;
use crate::spec::{
    ConfigSpec, GenericResources, Labels, Names, NetworkSpec, Platform, PortSpec, SecretSpec, ServiceMode,
    ServiceSpec, TaskSpec, UpdateOrder,
};
use crate::task_state::{DesiredState, TaskState};
use crate::{
    Bytes, ClusterId, ConfigId, Level, NanoCpus, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp,
};

/// When an object was made and last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Index of the log entry that last wrote the object; a write based on an older one is refused.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// The cluster itself; one a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// Finished tasks kept per slot; negative: all that fit [`Cluster::HISTORY_MAX`].
    pub task_history_limit: i32,
    /// Time between two heartbeats of a node.
    pub heartbeat: Duration,
    /// Where networks without a subnet of IPv4 take theirs from; those of IPv6 follow from the cluster's id.
    pub address_pools: Vec<IpNet>,
    /// Prefix length of such a subnet.
    pub subnet_prefix: u8,
    /// Who may be part of it.
    pub security: Security,
    /// What its log and messages may contain.
    pub level: Level,
}

impl Cluster {
    /// Most finished tasks kept per slot, whatever the limit says.
    pub const HISTORY_MAX: usize = 100;
}

/// What the certificates and tokens of a cluster are made with. Its texts say nothing of the keys.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// The authority that signs certificates of nodes.
    pub authority: Authority,
    /// The authority that takes its place, while every node is being given a new certificate.
    pub next: Option<NextAuthority>,
    /// Lifetime of a node's certificate.
    pub certificate_expiry: Duration,
    /// From which the secrets of join tokens are derived (HMAC-SHA-256).
    pub token_key: Vec<u8>,
    /// Join tokens that are valid.
    pub tokens: Vec<JoinToken>,
    /// Number of the token made last.
    pub last_token: u64,
    /// With autolock, what the keys on a manager's disk are sealed with; empty: none.
    pub unlock_key: Vec<u8>,
    /// Grows when the cluster is made anew from one manager's state; managers of an earlier epoch are refused.
    pub epoch: u64,
}

impl Security {
    /// The authority that signs now: during a rotation the new one.
    pub fn signing(&self) -> &Authority {
        (self.next.as_ref()).map_or(&self.authority, |next| &next.authority)
    }

    /// Most join tokens at a time: two stand, the others are handed out for single hosts.
    pub const TOKENS_MAX: usize = 1000;
}

impl std::fmt::Debug for Security {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (out.debug_struct("Security"))
            .field("certificate_expiry", &self.certificate_expiry)
            .field("tokens", &self.tokens)
            .field("rotating", &self.next.is_some())
            .field("autolock", &!self.unlock_key.is_empty())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// A certificate authority (X.509, RFC 5280).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PKCS#8 in PEM. It never leaves the managers.
    pub key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Authority")
    }
}

/// An authority that is being introduced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextAuthority {
    /// The authority.
    pub authority: Authority,
    /// Its key signed by the old authority, PEM: who trusts only the old one follows it.
    pub cross_signed: String,
    /// When the rotation began.
    pub since: Timestamp,
}

/// Lets hosts into the cluster. The secret itself is derived, see [`Security::token_key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Number from which its secret is derived.
    pub serial: u64,
    /// As what a host joins with it.
    pub role: NodeRole,
    /// Whether it is the one that `join-token` shows and rotates; the others are made for an occasion.
    pub standing: bool,
    /// Until when it can be used; absent: for ever.
    pub expires_at: Option<Timestamp>,
    /// How many more hosts it lets in; absent: any number.
    pub uses_left: Option<u32>,
    /// Whether a host may bring labels of its own.
    pub labels: bool,
}

/// A host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What operators set.
    pub spec: NodeSpec,
    /// What the host says of itself.
    pub description: NodeDescription,
    /// What the manager sees of it.
    pub status: NodeStatus,
    /// Who it is to others.
    pub identity: NodeIdentity,
}

/// Who a node is to others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeIdentity {
    /// SHA-256 of the public key its certificates are made for, in hex.
    pub key: String,
    /// SHA-256 of the authority that signed its newest certificate, in hex.
    pub issuer: String,
    /// When that certificate ends.
    pub expires_at: Timestamp,
    /// Its number among the managers; absent before it has a log. Numbers are never used twice.
    pub raft_id: Option<u64>,
}

/// What operators set on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSpec {
    /// Labels, for placement.
    pub labels: Labels,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Whether it is one of the managers.
    pub role: NodeRole,
    /// Of a node that is drained: how. Absent: its tasks are stopped at once, as builds below [`Level::MOVES`] do.
    pub drain: Option<Drain>,
}

/// How a node is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drain {
    /// Whether a task that serves goes on until its successor runs elsewhere.
    pub order: UpdateOrder,
    /// After this time what is left is stopped at once: [`Drain::DEADLINE_MIN`] to [`Drain::DEADLINE_MAX`]. Absent: what finds no
    /// other node stays.
    pub deadline: Option<Duration>,
    /// When that is, by the clock of the log; set where the drain is admitted.
    pub deadline_at: Option<Timestamp>,
}

impl Drain {
    /// The shortest deadline.
    pub const DEADLINE_MIN: Duration = Duration::from_secs(1);
    /// The longest deadline: a week.
    pub const DEADLINE_MAX: Duration = Duration::from_secs(7 * 86_400);
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// It keeps those it has and takes no more.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

/// Part a node plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeRole {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and keeps the state.
    Manager,
}

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeDescription {
    /// Host name.
    pub hostname: String,
    /// Operating system and processor.
    pub platform: Platform,
    /// CPUs.
    pub cpus: NanoCpus,
    /// Memory.
    pub memory: Bytes,
    /// Version of rswarm.
    pub engine_version: String,
    /// Labels of the engine, for placement.
    pub engine_labels: Labels,
    /// Address at which it is reached; empty while it has none.
    pub address: String,
    /// What its build knows.
    pub level: Level,
    /// What others encrypt for it with; none: it cannot be in encrypted networks.
    pub tunnel_key: Option<TunnelKey>,
    /// Its kernel answers when others ask over the data plane whether it is reached.
    pub answers: bool,
    /// What it has beside CPU and memory.
    pub generic: GenericResources,
}

/// The public key of a host's end of encrypted networks (WireGuard: Curve25519).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey(pub [u8; 32]);

/// What the manager sees of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeStatus {
    /// State.
    pub state: NodeState,
    /// Why.
    pub message: String,
    /// How long a node that is down has been silent at least, by the clock of its leaders that nobody sets; zero
    /// otherwise. Written again when it passes a time for which a task of the node waits.
    pub silent: Duration,
    /// Of a node that is Ready: others that it does not reach over the data plane, or they do not reach it. None: it is well.
    pub unreached: Vec<NodeId>,
    /// What its tasks use, as it was when that last changed much.
    pub used: NodeUse,
}

/// How much of a node is used, in thousandths of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeUse {
    /// Of its CPUs.
    pub cpu: u16,
    /// Of its memory.
    pub memory: u16,
}

impl NodeUse {
    /// No more than there is: what is counted a moment later may be.
    #[must_use]
    pub fn within_bounds(self) -> Self {
        Self {
            cpu: self.cpu.min(1_000),
            memory: self.memory.min(1_000),
        }
    }
}

impl NodeStatus {
    /// A node that is heard of.
    pub fn ready() -> Self {
        Self {
            state: NodeState::Ready,
            ..Self::default()
        }
    }
}

/// Whether a node is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeState {
    /// Not yet, since this leader began.
    #[default]
    Unknown,
    /// Yes.
    Ready,
    /// Not for three heartbeats.
    Down,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: Arc<ServiceSpec>,
    /// Number of the spec: grows by one with every change of `spec`. Tasks carry the number they were made from.
    pub spec_version: u64,
    /// The spec to go back to: the last one that was not still being rolled out when it was changed.
    pub previous_spec: Option<Arc<ServiceSpec>>,
    /// Its number; 0: one less than the present one's.
    pub previous_version: u64,
    /// Where the present spec comes from; absent: it was written below [`Level::ROLLOUTS`].
    pub made: Option<Made>,
    /// Specs before the present one, oldest first; see [`Service::push_revision`]. Written where the log is applied: what writes a
    /// service has none.
    pub history: Vec<Arc<Revision>>,
    /// The rollout of the last change, if there was one.
    pub update: Option<UpdateStatus>,
    /// What the cluster itself scaled last.
    pub scaled: Option<Scaled>,
    /// Published ports, with the chosen numbers, and virtual addresses.
    pub endpoint: Endpoint,
    /// Of a job: its runs.
    pub job: Option<JobStatus>,
}

/// A spec a service had, as it was when it was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Its number, which its tasks carry as well.
    pub number: u64,
    /// The spec.
    pub spec: Arc<ServiceSpec>,
    /// Where it came from.
    pub made: Made,
}

/// Where a spec comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made {
    /// When, by the clock of the log.
    pub at: Timestamp,
    /// Who asked for it, such as `root@host1`; empty: the cluster itself.
    pub by: String,
    /// By what, such as `update` or `rollback to 3`.
    pub cause: String,
}

/// A change of the replicas by the cluster itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaled {
    /// When, by the clock of the log.
    pub at: Timestamp,
    /// Replicas before.
    pub from: u32,
    /// Replicas since.
    pub to: u32,
    /// What was seen.
    pub why: String,
}

/// Most specs kept beside the present one.
pub const REVISIONS_MAX: usize = 20;
/// Most bytes of them all, roughly.
pub const REVISIONS_BYTES: usize = 256 << 10;

impl Service {
    /// One that was just made.
    pub fn new(id: ServiceId, meta: Meta, spec: ServiceSpec) -> Self {
        Self {
            id,
            meta,
            spec: Arc::new(spec),
            spec_version: 1,
            previous_spec: None,
            previous_version: 0,
            made: None,
            history: Vec::new(),
            update: None,
            job: None,
            scaled: None,
            endpoint: Endpoint::default(),
        }
    }

    /// Keeps a spec that is being replaced; the oldest ones go where there are more than [`REVISIONS_MAX`], or they have more than
    /// [`REVISIONS_BYTES`].
    pub fn push_revision(&mut self, revision: Revision) {
        self.history.push(Arc::new(revision));
        let mut bytes = 0;
        let fit = (self.history.iter().rev().take(REVISIONS_MAX))
            .take_while(|r| {
                bytes += r.spec.weight();
                bytes <= REVISIONS_BYTES
            })
            .count();
        self.history.drain(..self.history.len() - fit);
    }

    /// Number of [`Service::previous_spec`].
    pub fn previous_number(&self) -> u64 {
        match self.previous_version {
            0 => self.spec_version.saturating_sub(1),
            known => known,
        }
    }

    /// The spec with a number, where it is still known.
    pub fn revision(&self, number: u64) -> Option<&Arc<ServiceSpec>> {
        if number == self.spec_version {
            return Some(&self.spec);
        }
        let kept = (self.history.iter().rev()).find(|r| r.number == number);
        let previous = || {
            self.previous_spec
                .as_ref()
                .filter(|_| number == self.previous_number())
        };
        kept.map(|r| &r.spec).or_else(previous)
    }

    /// Whether a rollout has changed some of its tasks and not the others: also one that is paused or waits with its canaries.
    pub fn is_between_specs(&self) -> bool {
        (self.update.as_ref())
            .is_some_and(|u| !matches!(u.state, UpdateState::Completed | UpdateState::RollbackCompleted))
    }

    /// Whether a task runs what the service wants now.
    ///
    /// The spec decides, not its number: going back to an earlier spec leaves the tasks alone that still run it.
    pub fn is_current(&self, task: &Task) -> bool {
        task.spec_version == self.spec_version || *task.spec == self.spec.task
    }
}

impl Service {
    /// How many of these tasks of it run, are ready and are wanted to, and how many there should be: as many as it has
    /// replicas, or one for each node that has one; of a job, as many as run at a
    /// time.
    pub fn count<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) -> (usize, usize) {
        let (mut running, mut slots) = (0, BTreeSet::new());
        for task in tasks {
            let up = task.desired == DesiredState::Running && task.is_ready();
            running += usize::from(up);
            if self.spec.mode.is_global() && task.desired.is_live() {
                slots.insert(task.slot);
            }
        }
        match self.spec.mode {
            ServiceMode::Replicated { replicas } => (running, replicas as usize),
            ServiceMode::Global | ServiceMode::GlobalJob => (running, slots.len()),
            ServiceMode::ReplicatedJob { .. } => {
                (running, self.spec.mode.concurrent().unwrap_or_default() as usize)
            }
        }
    }
}

/// How a service is reached, as allocated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Published ports; `published` is never 0.
    pub ports: Vec<PortSpec>,
    /// Virtual address in each network, of IPv4 and, where it has that, then of IPv6; none with `dnsrr`.
    pub vips: Vec<(NetworkId, IpAddr)>,
}

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateStatus {
    /// State.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Why it is in this state.
    pub message: String,
    /// Slots that failed so far, each counted once; in the log, so that a new leader goes on counting.
    pub failed_slots: Vec<SlotKey>,
    /// Slots it has to change in all.
    pub total_slots: u32,
    /// When the last group of slots was finished, for `delay`.
    pub last_slot_at: Option<Timestamp>,
    /// An operator has seen the canaries, and wants the rest.
    pub promoted: bool,
    /// It is paused because a new task did not run in time.
    pub timed_out: bool,
}

impl UpdateStatus {
    /// One that begins.
    pub fn begun(state: UpdateState, at: Timestamp, message: impl Into<String>) -> Self {
        Self {
            state,
            started_at: at,
            completed_at: None,
            message: message.into(),
            failed_slots: Vec::new(),
            total_slots: 0,
            last_slot_at: None,
            promoted: false,
            timed_out: false,
        }
    }
}

/// State of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateState {
    /// In progress.
    Updating,
    /// Stopped by failures.
    Paused,
    /// Done.
    Completed,
    /// Going back.
    RollbackStarted,
    /// Going back was stopped by failures.
    RollbackPaused,
    /// Went back.
    RollbackCompleted,
    /// Its canaries run the new spec; the rest waits for an operator.
    Canary,
}

impl UpdateState {
    /// Docker's name of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
            Self::Canary => "canary",
        }
    }

    /// Whether it is still changing tasks.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }
}

/// The place of a task in its service: tasks that follow one another share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotKey {
    /// Replica number, from 1.
    Replica(u32),
    /// The node, of a global service.
    Node(NodeId),
}

/// One attempt to run one container of a service. It never changes its spec or its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// Its service.
    pub service: ServiceId,
    /// Name of the service when the task was made.
    pub service_name: String,
    /// Its place in the service.
    pub slot: SlotKey,
    /// What it runs.
    pub spec: Arc<TaskSpec>,
    /// Number of the service's spec it was made from.
    pub spec_version: u64,
    /// Its node, once assigned.
    pub node: Option<NodeId>,
    /// What the manager wants.
    pub desired: DesiredState,
    /// When `desired` became Running, or not before this while it is Ready (restart delay).
    pub run_at: Timestamp,
    /// What the agent saw.
    pub status: TaskStatus,
    /// When it was first seen Running, by the clock of the log.
    pub running_at: Option<Timestamp>,
    /// Since when it runs and is not ready any more, by the clock of the log.
    pub unready_at: Option<Timestamp>,
    /// When it was first seen over, by the clock of the log: its node's clock may be wrong by years.
    pub ended_at: Option<Timestamp>,
    /// Index of the log entry that made it: grows from each task of a slot to the next, so that storage outside the
    /// cluster can refuse the one that was replaced. Its container finds it as `RSWARM_FENCE`.
    pub fence: u64,
    /// Address in each network, of IPv4 and, where it has that, then of IPv6.
    pub addresses: Vec<(NetworkId, IpAddr)>,
    /// Ports published on its node (mode host).
    pub host_ports: Vec<PortSpec>,
    /// Of a job: the run it is part of; else 0.
    pub iteration: u64,
    /// Which generic resources of its node are its own, of those that have names.
    pub granted: Names,
    /// It is to give its slot to a task on another node, with at most so many of its service at once; 0: it is not.
    pub moving: u32,
}

impl Task {
    /// When it ended, by the clock of the log where that is known.
    pub fn over_at(&self) -> Timestamp {
        self.ended_at.unwrap_or(self.status.at)
    }

    /// Whether it runs, and its readiness check does not say that it takes no connections.
    pub fn is_ready(&self) -> bool {
        self.status.state == TaskState::Running && !self.status.unready
    }

    /// `web.1`, or `web.<node id>` of a global service.
    pub fn name(&self) -> String {
        match self.slot {
            SlotKey::Replica(n) => format!("{}.{n}", self.service_name),
            SlotKey::Node(node) => format!("{}.{node}", self.service_name),
        }
    }

    /// Name of its container, as Docker has it: `web.1.<task id>`.
    pub fn container_name(&self) -> String {
        format!("{}.{}", self.name(), self.id)
    }
}

/// What was seen of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    /// How far it came.
    pub state: TaskState,
    /// When it came there.
    pub at: Timestamp,
    /// What is being done, such as `preparing`.
    pub message: String,
    /// What went wrong; empty: nothing.
    pub error: String,
    /// Of the container, once there is one.
    pub container: Option<ContainerStatus>,
    /// It runs, and was ready before, and its readiness check says that it takes no connections for now: `message` says why.
    pub unready: bool,
}

impl TaskStatus {
    /// Whether it says more than `known` does. Time alone is no news: its report would come back as an assignment, and
    /// that would be reported again.
    pub fn is_news_to(&self, known: &Self) -> bool {
        let Self {
            state,
            at: _,
            message,
            error,
            container,
            unready,
        } = self;
        let told = (&known.state, &known.message, &known.error, &known.container);
        (state, message, error, container) != told || *unready != known.unready
    }

    /// A task that was just made.
    pub fn new(at: Timestamp) -> Self {
        Self {
            state: TaskState::New,
            at,
            message: "created".into(),
            error: String::new(),
            container: None,
            unready: false,
        }
    }
}

/// What was seen of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Process id on the node; 0: none.
    pub pid: u32,
    /// Exit code, once it ended; 128 + signal when a signal ended it.
    pub exit_code: Option<i32>,
    /// The kernel killed it because of its memory limit.
    pub oom_killed: bool,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: NetworkSpec,
    /// Its subnets, of IPv4 and, where it has that, of IPv6; the first address of each is kept as gateway.
    pub subnets: Vec<IpNet>,
    /// Its number on the wire (VXLAN network identifier, RFC 7348), unique in the cluster.
    pub vni: u32,
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its id.
    pub id: SecretId,
    /// Version and times.
    pub meta: Meta,
    /// What the user gave.
    pub spec: Arc<SecretSpec>,
}

/// A config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its id.
    pub id: ConfigId,
    /// Version and times.
    pub meta: Meta,
    /// What the user gave.
    pub spec: Arc<ConfigSpec>,
}

/// Any object of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The cluster.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// A task.
    Task(Arc<Task>),
    /// A network.
    Network(Arc<Network>),
    /// A secret.
    Secret(Arc<Secret>),
    /// A config.
    Config(Arc<Config>),
}

/// Names any object of the replicated state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
    /// A network.
    Network(NetworkId),
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
}

impl Object {
    /// Its key.
    pub fn key(&self) -> Key {
        match self {
            Self::Cluster(_) => Key::Cluster,
            Self::Node(o) => Key::Node(o.id),
            Self::Service(o) => Key::Service(o.id),
            Self::Task(o) => Key::Task(o.id),
            Self::Network(o) => Key::Network(o.id),
            Self::Secret(o) => Key::Secret(o.id),
            Self::Config(o) => Key::Config(o.id),
        }
    }

    /// Its version and times.
    pub fn meta(&self) -> Meta {
        match self {
            Self::Cluster(o) => o.meta,
            Self::Node(o) => o.meta,
            Self::Service(o) => o.meta,
            Self::Task(o) => o.meta,
            Self::Network(o) => o.meta,
            Self::Secret(o) => o.meta,
            Self::Config(o) => o.meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_alone_is_no_news() {
        let known = TaskStatus::new(Timestamp(1));
        let later = TaskStatus::new(Timestamp(2));
        assert!(!later.is_news_to(&known));
        let further = TaskStatus {
            state: TaskState::Running,
            ..later.clone()
        };
        assert!(further.is_news_to(&known));
        let said = TaskStatus {
            message: "pulling".into(),
            ..later.clone()
        };
        assert!(said.is_news_to(&known));
        let unready = TaskStatus {
            unready: true,
            ..later
        };
        assert!(unready.is_news_to(&known));
    }
}
