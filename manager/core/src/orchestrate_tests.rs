//! A cluster in memory for tests: the real state and plan, and a node that does what it is told.

use std::collections::BTreeSet;
use std::time::Duration;

use model::ids::IdSource;
use model::object::{
    Availability, Key, Meta, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Object, Service,
    SlotKey, Task, TaskStatus, UpdateState,
};
use model::spec::{
    FailureAction, NetworkAttachment, NetworkSpec, Platform, PortSpec, PublishMode, RestartCondition,
    STACK_LABEL, ServiceMode, ServiceSpec, StackSpec, UpdateOrder,
};
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, Level, NanoCpus, NodeId, ServiceId, Timestamp};

use crate::admit::{self, Admitted, ClusterRequest, Refusal, StackVerdict};
use crate::node_health::Unheard;
use crate::plan::{Dirty, Plan, plan};
use crate::state::State;
use crate::txn::{Action, Entry, Txn};

/// A ready worker.
pub(crate) fn node(id: u128, hostname: &str) -> Node {
    Node {
        id: NodeId(id),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: hostname.into(),
            platform: Platform {
                os: "linux".into(),
                arch: "amd64".into(),
            },
            cpus: NanoCpus(4_000_000_000),
            memory: Bytes(8 << 30),
            ..NodeDescription::default()
        },
        identity: Default::default(),
        status: NodeStatus::ready(),
    }
}

/// Where tests begin.
pub(crate) const START: Timestamp = Timestamp(1_000_000);

/// Ids in the order in which they are asked for.
#[derive(Default)]
pub(crate) struct Counter(u128);

impl IdSource for Counter {
    fn next_id(&mut self) -> u128 {
        self.0 += 1;
        self.0 + 1_000
    }
}

/// Most plans until nothing is left to do; a plan that never settles is a bug.
const PLANS_MAX: usize = 50;

/// A cluster whose nodes do what they are told. What a container does follows from the name of its image:
/// `missing` cannot be had, `crash` fails a second after it started, `exit` ends well, `slow` is never prepared, `unready`
/// is never ready.
pub(crate) struct Sim {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) ids: Counter,
    dead: BTreeSet<NodeId>,
    dirty: Dirty,
    /// Fewest running tasks seen at any time since the last reset.
    pub(crate) fewest: usize,
    pub(crate) most: usize,
}

impl Sim {
    pub(crate) fn new(nodes: u128) -> Self {
        let mut sim = Self {
            state: State::new(),
            now: START,
            ids: Counter::default(),
            dead: BTreeSet::new(),
            dirty: Dirty::default(),
            fewest: usize::MAX,
            most: 0,
        };
        let request = ClusterRequest {
            availability: Availability::Drain,
            description: NodeDescription {
                level: Level::OURS,
                ..NodeDescription::default()
            },
            ..ClusterRequest::default()
        };
        let first = admit::init_cluster(&sim.state, &request, NodeId(99), sim.now, &mut sim.ids);
        sim.admit(first);
        for id in 1..=nodes {
            let node = node(id, &format!("n{id}"));
            sim.commit(Txn {
                expect: Vec::new(),
                actions: vec![Action::Put(Object::Node(node.into()))],
            });
        }
        sim
    }

    /// The cluster writes as if every build but this one were older.
    pub(crate) fn write_at(&mut self, level: Level) {
        let mut cluster = (**self.state.cluster().expect("there")).clone();
        cluster.level = level;
        self.commit(Txn {
            expect: Vec::new(),
            actions: vec![Action::Put(Object::Cluster(cluster.into()))],
        });
    }

    pub(crate) fn commit(&mut self, txn: Txn) {
        let entry = Entry {
            index: self.state.index() + 1,
            now: self.now,
            txn,
        };
        let changes = self.state.apply(&entry).expect("decided on this very state");
        self.dirty.add(&changes);
        self.state.check().expect("sound after every entry");
    }

    pub(crate) fn admit(&mut self, what: Result<Admitted, Refusal>) -> Admitted {
        let admitted = what.expect("admitted");
        self.commit(admitted.txn.clone());
        admitted
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) {
        let made = admit::create_service(&self.state, spec, self.now, &mut self.ids);
        self.admit(made);
        self.run(10);
    }

    pub(crate) fn update(&mut self, change: impl FnOnce(&mut ServiceSpec)) {
        let mut spec = (*self.web().spec).clone();
        change(&mut spec);
        let made = admit::update_service(&self.state, "web", None, spec, self.now);
        self.admit(made);
    }

    pub(crate) fn scale(&mut self, replicas: u32) {
        let made = admit::scale_services(&self.state, &[("web".into(), replicas)]);
        self.admit(made);
    }

    pub(crate) fn node_spec(&mut self, id: u128, change: impl FnOnce(&mut NodeSpec)) {
        let mut spec = self.state.node(NodeId(id)).expect("there").spec.clone();
        change(&mut spec);
        let made = admit::update_node(
            &self.state,
            &format!("n{id}"),
            None,
            spec,
            &Default::default(),
            self.now,
        );
        self.admit(made);
    }

    pub(crate) fn node_seen(&mut self, id: u128, state: NodeState) {
        let status = NodeStatus {
            state,
            ..NodeStatus::default()
        };
        self.commit(Txn {
            expect: Vec::new(),
            actions: vec![Action::NodeSeen {
                node: NodeId(id),
                description: None,
                status,
            }],
        });
    }

    /// Plans everything, for a leader that has heard of every node.
    fn plan(&mut self) -> Plan {
        let mut dirty = self.dirty.take();
        dirty.add_everything();
        plan(&self.state, &dirty, &Unheard::default(), self.now, &mut self.ids)
    }

    /// Plans until nothing is left; then planning once more must say the same.
    pub(crate) fn settle(&mut self) {
        for _ in 0..PLANS_MAX {
            let next = self.plan();
            if next.txn.is_empty() {
                return;
            }
            self.commit(next.txn);
        }
        panic!("{PLANS_MAX} plans were not enough: {:?}", self.tasks("web"));
    }

    pub(crate) fn agents(&mut self) {
        let mut actions = Vec::new();
        for task in self.state.tasks().filter(|t| !t.status.state.is_terminal()) {
            let Some(node) = task.node.filter(|n| !self.dead.contains(n)) else {
                continue;
            };
            if let Some(state) = self.step(task) {
                let error = if state == TaskState::Rejected {
                    "No such image"
                } else {
                    ""
                };
                let status = TaskStatus {
                    state,
                    at: self.now,
                    error: error.into(),
                    ..TaskStatus::new(self.now)
                };
                actions.push(Action::TaskStatus {
                    node,
                    task: task.id,
                    status,
                });
            }
        }
        self.commit(Txn {
            expect: Vec::new(),
            actions,
        });
    }

    fn step(&self, task: &Task) -> Option<TaskState> {
        let image = task.spec.container.image.as_str();
        let image = match image.strip_prefix("fates:") {
            Some(fates) => fate(fates, task.slot),
            None => image,
        };
        let since = self.now.since(task.status.at);
        let old_enough = since >= Duration::from_secs(1);
        if !task.desired.is_live() {
            return Some(TaskState::Shutdown);
        }
        match task.status.state {
            TaskState::Preparing if image == "missing" => Some(TaskState::Rejected),
            TaskState::Preparing if image == "slow" => None,
            TaskState::Assigned => Some(TaskState::Accepted),
            TaskState::Accepted => Some(TaskState::Preparing),
            TaskState::Preparing => Some(TaskState::Ready),
            TaskState::Ready if task.desired == DesiredState::Running => Some(TaskState::Starting),
            TaskState::Starting if image == "unready" => None,
            TaskState::Starting => Some(TaskState::Running),
            TaskState::Running if image == "crash" && old_enough => Some(TaskState::Failed),
            TaskState::Running if image == "late" && since >= Duration::from_secs(6) => {
                Some(TaskState::Failed)
            }
            TaskState::Running if image == "exit" && old_enough => Some(TaskState::Complete),
            TaskState::Running
            | TaskState::Ready
            | TaskState::New
            | TaskState::Pending
            | TaskState::Complete
            | TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Remove
            | TaskState::Orphaned => None,
        }
    }

    /// Lets time pass, in steps of a quarter of a second.
    pub(crate) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.settle();
            self.agents();
            self.settle();
            let running = self.running().len();
            self.fewest = self.fewest.min(running);
            let with_process = self
                .tasks("web")
                .iter()
                .filter(|t| t.status.state == TaskState::Running)
                .count();
            self.most = self.most.max(with_process);
            self.now = self.now + Duration::from_millis(250);
        }
        self.settle();
    }

    /// One step of every agent, and a quarter of a second.
    pub(crate) fn step_agents(&mut self) {
        self.agents();
        self.now = self.now + Duration::from_millis(250);
    }

    pub(crate) fn watch(&mut self) {
        (self.fewest, self.most) = (usize::MAX, 0);
    }

    pub(crate) fn web(&self) -> &Service {
        self.state
            .services()
            .find(|s| s.spec.name == "web")
            .expect("there")
    }

    pub(crate) fn tasks(&self, service: &str) -> Vec<&Task> {
        self.state
            .tasks()
            .filter(|t| t.service_name == service)
            .map(|t| &**t)
            .collect()
    }

    pub(crate) fn running(&self) -> Vec<&Task> {
        let all = self.tasks("web").into_iter();
        all.filter(|t| t.status.state == TaskState::Running && t.desired == DesiredState::Running)
            .collect()
    }

    /// Image of each running task, by slot.
    pub(crate) fn images(&self) -> Vec<&str> {
        let mut tasks = self.running();
        tasks.sort_by_key(|t| (t.slot, t.id));
        tasks
            .into_iter()
            .map(|t| t.spec.container.image.as_str())
            .collect()
    }

    fn slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = self
            .running()
            .iter()
            .map(|t| match t.slot {
                SlotKey::Replica(n) => n,
                SlotKey::Node(n) => u32::try_from(n.0).unwrap(),
            })
            .collect();
        slots.sort_unstable();
        slots
    }

    fn nodes(&self) -> Vec<u128> {
        let mut nodes: Vec<u128> = self
            .running()
            .iter()
            .filter_map(|t| t.node)
            .map(|n| n.0)
            .collect();
        nodes.sort_unstable();
        nodes
    }

    pub(crate) fn rollout(&self) -> Option<UpdateState> {
        self.web().update.as_ref().map(|u| u.state)
    }
}

/// What the task of a slot does, where each has a letter of its own.
fn fate(fates: &str, slot: SlotKey) -> &'static str {
    let SlotKey::Replica(number) = slot else {
        return "a";
    };
    match fates.chars().nth(number as usize - 1) {
        Some('m') => "missing",
        Some('c') => "crash",
        Some('l') => "late",
        Some('u') => "unready",
        Some('s') => "slow",
        _ => "a",
    }
}

pub(crate) fn spec(image: &str, replicas: u32) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: "web".into(),
        mode: ServiceMode::Replicated { replicas },
        ..ServiceSpec::default()
    };
    spec.task.container.image = image.into();
    spec
}

pub(crate) fn image(image: &str) -> impl FnOnce(&mut ServiceSpec) + use<> {
    let image = image.to_owned();
    move |s| s.task.container.image = image
}

#[test]
fn scaling_opens_and_closes_slots() {
    let mut sim = Sim::new(3);
    sim.create(spec("a", 2));
    for (name, replicas, want) in [
        ("up", 5, vec![1, 2, 3, 4, 5]),
        ("down", 2, vec![1, 2]),
        ("to nothing", 0, vec![]),
        ("and up again", 3, vec![1, 2, 3]),
    ] {
        sim.scale(replicas);
        sim.run(10);
        assert_eq!(sim.slots(), want, "{name}");
        assert_eq!(sim.rollout(), None, "{name}: scaling is no rollout");
    }
    assert_eq!(sim.nodes(), [1, 2, 3], "spread over the nodes");
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut sim = Sim::new(2);
    sim.create(ServiceSpec {
        mode: ServiceMode::Global,
        ..spec("a", 0)
    });
    assert_eq!(sim.nodes(), [1, 2], "one a node, none on the drained manager");
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Node(node(3, "n3").into()))],
    });
    sim.run(5);
    assert_eq!(sim.nodes(), [1, 2, 3], "a new node gets one");
    sim.node_spec(2, |n| n.availability = Availability::Drain);
    sim.run(5);
    assert_eq!(sim.nodes(), [1, 3], "a drained one loses it");
    sim.node_spec(2, |n| n.availability = Availability::Active);
    sim.node_spec(3, |n| n.availability = Availability::Pause);
    sim.run(5);
    assert_eq!(sim.nodes(), [1, 2, 3], "a paused one keeps it");
}

#[test]
fn the_restart_policy_has_four_knobs() {
    let rows: &[(&str, &str, RestartCondition, u64, u64, u64, usize)] = &[
        // image, condition, delay, attempts, window → tasks made within 60 s, a waiting one included
        ("never", "crash", RestartCondition::None, 1, 0, 0, 1),
        (
            "not after a good end",
            "exit",
            RestartCondition::OnFailure,
            1,
            0,
            0,
            1,
        ),
        ("always, thrice", "exit", RestartCondition::Any, 1, 3, 0, 4),
        (
            "after failures, twice",
            "crash",
            RestartCondition::OnFailure,
            1,
            2,
            0,
            3,
        ),
        (
            "a missing image counts as well",
            "missing",
            RestartCondition::OnFailure,
            1,
            2,
            0,
            3,
        ),
        (
            "old attempts leave the window",
            "crash",
            RestartCondition::Any,
            10,
            2,
            5,
            6,
        ),
    ];
    for (name, image, condition, delay, attempts, window, want) in rows {
        let mut sim = Sim::new(1);
        let mut spec = spec(image, 1);
        spec.task.restart.condition = *condition;
        spec.task.restart.delay = Duration::from_secs(*delay);
        spec.task.restart.max_attempts = *attempts;
        spec.task.restart.window = Duration::from_secs(*window);
        sim.create(spec);
        sim.run(50);
        let tasks = sim.tasks("web");
        assert_eq!(tasks.len(), *want, "{name}: {tasks:?}");
        let mut times: Vec<_> = tasks.iter().map(|t| t.run_at).collect();
        times.sort();
        let waits = (times.windows(2)).all(|pair| pair[1].since(pair[0]) >= Duration::from_secs(*delay));
        assert!(waits, "{name}: the delay is kept: {times:?}");
    }
}

#[test]
fn a_missing_image_leaves_the_old_task_alone_and_pauses() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let mut spec = spec("a", 2);
        spec.update.order = order;
        sim.create(spec);
        sim.watch();
        sim.update(image("missing"));
        sim.run(60);
        assert_eq!(sim.images(), ["a", "a"], "{order:?}");
        assert_eq!(sim.fewest, 2, "{order:?}: nothing was ever down");
        assert_eq!(sim.rollout(), Some(UpdateState::Paused), "{order:?}");
        let message = &sim.web().update.as_ref().unwrap().message;
        assert!(message.contains("No such image"), "{message}");
    }
}

#[test]
fn the_monitor_gates_the_next_slot() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 4));
    sim.watch();
    sim.update(image("crash"));
    sim.run(60);
    let old = sim.images().iter().filter(|i| **i == "a").count();
    assert_eq!(old, 3, "only the first slot was touched: {:?}", sim.images());
    assert_eq!(sim.rollout(), Some(UpdateState::Paused));
}

#[test]
fn scaling_while_paused_spreads_no_bad_spec() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 2));
    sim.update(image("missing"));
    sim.run(30);
    sim.scale(5);
    sim.run(30);
    assert_eq!(sim.images(), ["a"; 5]);
    assert_eq!(sim.rollout(), Some(UpdateState::Paused));
}

#[test]
fn new_tasks_are_withdrawn_only_while_the_old_ones_go_on() {
    let mut sim = Sim::new(1);
    let mut web = spec("a", 2);
    web.update.order = model::spec::UpdateOrder::StartFirst;
    web.update.parallelism = 2;
    sim.create(web);
    sim.run(10);
    sim.update(image("slow"));
    sim.run(2);
    let version = sim.web().spec_version;
    let of_rollout = |sim: &Sim, new: bool| -> Vec<Task> {
        let tasks = sim
            .tasks("web")
            .into_iter()
            .filter(|t| (t.spec_version == version) == new);
        tasks.cloned().collect()
    };
    let new = of_rollout(&sim, true);
    assert_eq!(new.len(), 2, "both are prepared");
    let mut failed = new[0].clone();
    failed.status.state = TaskState::Failed;
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Task(failed.into()))],
    });
    let txn = sim.plan().txn;
    let withdrawn =
        |a: &Action| matches!(a, Action::Put(Object::Task(t)) if t.id == new[1].id && !t.desired.is_live());
    assert!(txn.actions.iter().any(withdrawn), "{:?}", txn.actions);
    let old = of_rollout(&sim, false);
    let old = old.iter().find(|t| t.slot == new[1].slot).expect("the old one");
    let relied = txn.expect.iter().any(|(key, _)| *key == Key::Task(old.id));
    assert!(relied, "if the old one ends first, this is decided anew");
}

#[test]
fn a_rollback_keeps_the_replicas() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 2));
    sim.update(image("b"));
    sim.run(60);
    assert_eq!(sim.images(), ["b", "b"]);
    assert_eq!(sim.rollout(), Some(UpdateState::Completed));
    sim.scale(4);
    sim.run(10);
    let back = admit::rollback_service(&sim.state, "web", None, None, sim.now);
    sim.admit(back);
    sim.run(60);
    assert_eq!(sim.images(), ["a"; 4]);
    assert_eq!(sim.rollout(), Some(UpdateState::RollbackCompleted));
}

#[test]
fn too_many_failures_do_what_the_service_says() {
    for (name, action, ratio, bad, state, images) in [
        (
            "back after a crash",
            FailureAction::Rollback,
            0.0,
            "crash",
            UpdateState::RollbackCompleted,
            "aaa",
        ),
        (
            "back after a missing image",
            FailureAction::Rollback,
            0.0,
            "missing",
            UpdateState::RollbackCompleted,
            "aaa",
        ),
        (
            "on to the end",
            FailureAction::Continue,
            0.0,
            "b",
            UpdateState::Completed,
            "bbb",
        ),
        (
            "fewer than the ratio",
            FailureAction::Pause,
            0.9,
            "b",
            UpdateState::Completed,
            "bbb",
        ),
    ] {
        let mut sim = Sim::new(2);
        let mut spec = spec("a", 3);
        spec.update.failure_action = action;
        spec.update.max_failure_ratio = ratio;
        sim.create(spec);
        sim.update(image(bad));
        sim.run(90);
        assert_eq!(sim.rollout(), Some(state), "{name}");
        assert_eq!(sim.images().concat(), images, "{name}");
    }
}

#[test]
fn a_failed_rollback_is_paused_not_completed() {
    let mut sim = Sim::new(1);
    let mut bad = spec("missing", 1);
    bad.update.failure_action = FailureAction::Rollback;
    bad.rollback.failure_action = FailureAction::Pause;
    sim.create(bad);
    sim.update(image("crash"));
    sim.run(120);
    assert_eq!(sim.rollout(), Some(UpdateState::RollbackPaused));
}

#[test]
fn the_order_of_an_update_bounds_what_runs() {
    for (name, order, fewest, most) in [
        ("stop first", UpdateOrder::StopFirst, 2, 3),
        ("start first", UpdateOrder::StartFirst, 3, 4),
    ] {
        let mut sim = Sim::new(2);
        let mut spec = spec("a", 3);
        spec.update.order = order;
        sim.create(spec);
        sim.watch();
        sim.update(image("b"));
        sim.run(60);
        assert_eq!(sim.images(), ["b"; 3], "{name}");
        assert_eq!((sim.fewest, sim.most), (fewest, most), "{name}");
    }
}

#[test]
fn tasks_leave_nodes_that_may_not_have_them() {
    type Change = fn(&mut Sim);
    let rows: &[(&str, Change)] = &[
        ("drained", |s| {
            s.node_spec(1, |n| n.availability = Availability::Drain)
        }),
        ("down", |s| {
            s.dead.insert(NodeId(1));
            s.node_seen(1, NodeState::Down);
        }),
        ("its label is gone", |s| s.node_spec(1, |n| n.labels.clear())),
    ];
    for (name, change) in rows {
        let mut sim = Sim::new(2);
        for id in [1, 2] {
            sim.node_spec(id, |n| drop(n.labels.insert("disk".into(), "ssd".into())));
        }
        let mut spec = spec("a", 4);
        spec.task.placement.constraints = vec!["node.labels.disk==ssd".into()];
        sim.create(spec);
        assert_eq!(sim.nodes(), [1, 1, 2, 2], "{name}: before");
        change(&mut sim);
        sim.run(20);
        assert_eq!(sim.nodes(), [2, 2, 2, 2], "{name}: after");
    }
}

#[test]
fn a_node_that_returns_takes_no_lost_task_back() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 2));
    sim.dead.insert(NodeId(1));
    sim.node_seen(1, NodeState::Down);
    sim.run(5);
    sim.dead.clear();
    sim.node_seen(1, NodeState::Ready);
    sim.run(5);
    assert_eq!(sim.nodes(), [2, 2]);
    let lost = sim
        .tasks("web")
        .iter()
        .filter(|t| t.status.state == TaskState::Orphaned)
        .count();
    assert_eq!(lost, 1);
}

#[test]
fn a_report_that_says_only_later_changes_nothing() {
    let mut sim = Sim::new(1);
    sim.create(spec("a", 1));
    let task = sim.running()[0].clone();
    let report = |at: u64, message: &str| Txn {
        expect: Vec::new(),
        actions: vec![Action::TaskStatus {
            node: task.node.expect("a node"),
            task: task.id,
            status: TaskStatus {
                at: Timestamp(task.status.at.0 + at),
                message: message.into(),
                ..task.status.clone()
            },
        }],
    };
    for (name, txn, changes) in [
        ("later", report(5, &task.status.message), 0),
        ("later with other words", report(6, "unpausing"), 1),
    ] {
        let entry = Entry {
            index: sim.state.index() + 1,
            now: sim.now,
            txn,
        };
        let done = sim.state.apply(&entry).expect("nothing was expected");
        assert_eq!(done.items.len(), changes, "{name}");
    }
}

#[test]
fn history_has_a_limit() {
    let mut sim = Sim::new(1);
    let mut spec = spec("crash", 1);
    spec.task.restart.delay = Duration::from_secs(1);
    sim.create(spec);
    sim.run(60);
    let ended = sim
        .tasks("web")
        .iter()
        .filter(|t| t.status.state.is_terminal())
        .count();
    assert_eq!(ended, 5);
}

/// A service joins a network by its name.
pub(crate) fn joined(name: &str) -> NetworkAttachment {
    NetworkAttachment {
        encrypted: false,
        network: model::NetworkId::NIL,
        name: name.into(),
        aliases: Vec::new(),
        address: None,
        address6: None,
    }
}

/// Makes a network with one subnet; answers what it is to be.
fn network(sim: &mut Sim, name: &str, subnet: &str) -> NetworkSpec {
    let spec = NetworkSpec {
        name: name.into(),
        driver: "overlay".into(),
        subnets: vec![subnet.parse().unwrap()],
        ..NetworkSpec::default()
    };
    let made = admit::create_network(&sim.state, spec.clone(), sim.now, &mut sim.ids);
    sim.admit(made);
    spec
}

#[test]
fn running_out_of_addresses_is_said_and_heals() {
    let mut sim = Sim::new(2);
    network(&mut sim, "small", "10.99.0.0/29");
    let mut spec = spec("a", 9);
    spec.task.networks = vec![joined("small")];
    sim.create(spec);
    let stuck: Vec<_> = sim
        .tasks("web")
        .into_iter()
        .filter(|t| t.status.state == TaskState::New)
        .collect();
    assert!(!stuck.is_empty() && stuck.len() < 9);
    assert!(
        stuck.iter().all(|t| t.status.error.contains("no free address")),
        "{stuck:?}"
    );
    let fits = u32::try_from(9 - stuck.len()).unwrap();
    sim.scale(fits);
    sim.run(10);
    assert_eq!(sim.running().len(), fits as usize);
    sim.update(|s| s.task.force_update += 1);
    sim.run(90);
    assert!(
        sim.tasks("web")
            .iter()
            .all(|t| t.status.state != TaskState::Orphaned)
    );
    sim.scale(2);
    sim.run(30);
    assert_eq!(sim.running().len(), 2, "room came back");
    sim.run(60);
    assert_eq!(
        sim.rollout(),
        Some(UpdateState::Completed),
        "and the rollout went on"
    );
}

#[test]
fn every_node_says_why_it_takes_no_task_and_whether_it_takes_one_more() {
    let mut sim = Sim::new(2);
    sim.node_spec(2, |s| drop(s.labels.insert("zone".into(), "b".into())));
    let mut web = spec("a", 1);
    web.task.placement.constraints = vec!["node.labels.zone in b".into()];
    web.task.placement.max_replicas_per_node = 1;
    sim.create(web);
    sim.run(10);
    let said = |sim: &Sim| -> (usize, usize, Vec<(u128, String)>) {
        let id = sim.web().id;
        let (tasks, waiting) = crate::schedule::explain::service_why(&sim.state, id);
        let first = tasks
            .first()
            .map(|(_, nodes)| nodes.as_slice())
            .unwrap_or_default();
        let nodes = first.iter().filter(|n| n.node != NodeId(99));
        let nodes = nodes.map(|n| (n.node.0, n.reason.clone())).collect();
        (tasks.len(), waiting, nodes)
    };
    let constraint = || {
        (
            1,
            "scheduling constraints not satisfied (node.labels.zone in b)".to_owned(),
        )
    };
    let full = || (2, "max replicas per node limit exceeded (1)".to_owned());
    assert_eq!(said(&sim), (1, 0, vec![constraint(), full()]), "one more");
    sim.scale(9);
    sim.run(10);
    assert_eq!(
        said(&sim),
        (5, 8, vec![constraint(), full()]),
        "the first of eight"
    );
    sim.update(|s| s.task.placement.max_replicas_per_node = 0);
    sim.run(60);
    assert_eq!(said(&sim), (1, 0, vec![constraint(), (2, String::new())]));
}

#[test]
fn a_node_says_what_of_it_is_in_the_way() {
    let mut sim = Sim::new(3);
    let mut db = spec("a", 1);
    db.name = "db".into();
    db.task.resources.reservations.memory = Bytes(3 << 30);
    db.task.placement.constraints = vec!["node.hostname==n1".into()];
    sim.create(db);
    sim.run(5);
    sim.node_spec(2, |s| s.availability = Availability::Drain);
    sim.node_spec(3, |s| s.availability = Availability::Pause);
    let mut web = spec("a", 1);
    web.task.resources.reservations.memory = Bytes(6 << 30);
    sim.create(web);
    sim.run(5);
    let (tasks, _) = crate::schedule::explain::service_why(&sim.state, sim.web().id);
    let nodes = tasks.iter().flat_map(|(_, nodes)| nodes);
    let said: Vec<String> = (nodes.filter(|n| n.node != NodeId(99)))
        .map(|n| format!("{}: {}", n.hostname, n.reason))
        .collect();
    assert_eq!(
        said,
        [
            "n1: insufficient resources (reserves 6GiB): it has 5GiB of 8GiB free",
            "n2: it is drained",
            "n3: it is paused",
        ]
    );
}

#[test]
fn a_node_that_others_do_not_reach_comes_last() {
    let mut sim = Sim::new(3);
    let mut alone = sim.state.node(NodeId(1)).unwrap().as_ref().clone();
    alone.status.unreached = vec![NodeId(2), NodeId(3)];
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Node(alone.into()))],
    });
    sim.create(spec("a", 4));
    sim.run(10);
    assert_eq!(sim.nodes(), [2, 2, 3, 3]);
    let task = sim.tasks("web").len();
    assert_eq!(task, 4, "and nothing leaves it for that");
}

#[test]
fn an_encrypted_network_needs_a_cluster_and_nodes_that_know_of_it() {
    let mut sim = Sim::new(2);
    sim.write_at(Level::FIRST);
    let asking = |sim: &mut Sim, value: &str| {
        let spec = NetworkSpec {
            name: "dark".into(),
            options: [("encrypted".to_owned(), value.to_owned())].into(),
            ..NetworkSpec::default()
        };
        admit::create_network(&sim.state, spec, sim.now, &mut sim.ids)
    };
    let refused = asking(&mut sim, "perhaps")
        .map_err(|e| e.to_string())
        .expect_err("refused");
    assert!(refused.contains("encrypted=true"), "{refused}");
    let refused = asking(&mut sim, "")
        .map_err(|e| e.to_string())
        .expect_err("level 1");
    assert!(refused.contains("swarm update --level newest"), "{refused}");
    assert!(asking(&mut sim, "false").is_ok());
    sim.write_at(Level::ENCRYPTED);
    let put = |object| Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(object)],
    };
    let made = asking(&mut sim, "");
    sim.admit(made);
    let mut spec = spec("a", 2);
    spec.task.networks = vec![joined("dark")];
    sim.create(spec);
    sim.run(10);
    let why: Vec<&str> = sim.tasks("web").iter().map(|t| t.status.error.as_str()).collect();
    assert!(
        why.iter()
            .all(|w| w.contains("cannot encrypt networks on 2 nodes")),
        "{why:?}"
    );
    let mut able = sim.state.node(NodeId(2)).unwrap().as_ref().clone();
    able.description.tunnel_key = Some(model::object::TunnelKey([7; 32]));
    sim.commit(put(Object::Node(able.into())));
    sim.run(10);
    assert_eq!(sim.nodes(), [2, 2]);
    // While its tasks stop, nothing of a network that is gone goes in the open.
    let network = sim.tasks("web")[0].addresses[0].0;
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    let gone = admit::remove_networks(&sim.state, &["dark".into()]);
    sim.admit(gone);
    let told = crate::assignments::Common::of(&sim.state).leaving;
    assert_eq!(
        told.iter().map(|s| &s.encrypted).collect::<Vec<_>>(),
        [&vec![network]]
    );
}

#[test]
fn no_network_has_the_address_of_a_host_or_one_that_is_still_held() {
    let mut sim = Sim::new(1);
    let mut host = node(9, "h9");
    host.description.address = "10.50.0.5:2377".into();
    let put = Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Node(host.into()))],
    };
    sim.commit(put);
    let asking = |sim: &mut Sim, subnet: &str| {
        let spec = NetworkSpec {
            name: "other".into(),
            subnets: vec![subnet.parse().unwrap()],
            ..NetworkSpec::default()
        };
        admit::create_network(&sim.state, spec, sim.now, &mut sim.ids).map_err(|e| e.to_string())
    };
    let refused = asking(&mut sim, "10.50.0.0/16").expect_err("refused");
    assert!(refused.contains("is the one of node h9"), "{refused}");
    assert!(asking(&mut sim, "10.51.0.0/16").is_ok());
    network(&mut sim, "back", "10.66.0.0/24");
    let mut spec = spec("a", 1);
    spec.task.networks = vec![joined("back")];
    sim.create(spec);
    sim.run(10);
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    let gone = admit::remove_networks(&sim.state, &["back".into()]);
    sim.admit(gone);
    let refused = asking(&mut sim, "10.66.0.0/24").expect_err("refused");
    assert!(
        refused.contains("task web.1, which is being stopped, still holds"),
        "{refused}"
    );
    sim.run(30);
    assert!(asking(&mut sim, "10.66.0.0/24").is_ok(), "once it has ended");
}

#[test]
fn a_service_has_the_address_it_asks_for_through_all_its_updates() {
    let mut sim = Sim::new(2);
    network(&mut sim, "back", "10.66.0.0/24");
    let asking = |name: &str, address: &str| {
        let mut spec = spec("a", 2);
        spec.name = name.into();
        spec.task.networks = vec![NetworkAttachment {
            address: address.parse().ok(),
            address6: address.parse().ok(),
            ..joined("back")
        }];
        spec
    };
    sim.create(asking("web", "10.66.0.77"));
    sim.run(10);
    let vip = |sim: &Sim| -> Vec<String> {
        let web = sim.state.services().find(|s| s.spec.name == "web").unwrap();
        web.endpoint.vips.iter().map(|(_, a)| a.to_string()).collect()
    };
    assert_eq!(vip(&sim), ["10.66.0.77"]);
    sim.update(|s| s.task.force_update += 1);
    sim.run(60);
    assert_eq!(vip(&sim), ["10.66.0.77"]);
    let task = sim.running()[0].addresses[0].1.to_string();
    for (address, why) in [
        ("10.66.0.77", "held by service web"),
        (task.as_str(), "held by task web."),
        ("10.66.0.0", "no address 10.66.0.0 to give"),
        ("10.66.0.1", "no address"),
        ("10.66.0.255", "no address"),
        ("10.66.1.5", "no address"),
        ("fd00::5", "has no IPv6, so not the address fd00::5"),
    ] {
        let refused = admit::create_service(&sim.state, asking("other", address), sim.now, &mut sim.ids);
        let text = refused.expect_err(address).to_string();
        assert!(text.contains(why), "{address}: {text}");
    }
    let mut without = asking("other", "10.66.0.78");
    without.endpoint.mode = model::spec::EndpointMode::DnsRr;
    let refused = admit::create_service(&sim.state, without, sim.now, &mut sim.ids);
    assert!(
        refused
            .expect_err("refused")
            .to_string()
            .contains("endpoint mode vip")
    );
    sim.update(|s| s.task.networks[0].address = Some("10.66.0.200".parse().unwrap()));
    assert_eq!(vip(&sim), ["10.66.0.200"], "another one on request");
    sim.run(60);
    sim.create(asking("other", "10.66.0.77"));
    assert_eq!(sim.state.check(), Ok(()));
}

#[test]
fn a_network_grows_and_nothing_else_of_it_changes() {
    let mut sim = Sim::new(2);
    let subnet = |text: &str| -> ipnet::IpNet { text.parse().unwrap() };
    let small = network(&mut sim, "small", "10.99.0.0/29");
    let mut spec = spec("a", 9);
    spec.task.networks = vec![joined("small")];
    sim.create(spec);
    sim.run(10);
    assert!(sim.running().len() < 9);
    let with = |subnets: &[&str], internal: bool| NetworkSpec {
        subnets: subnets.iter().map(|s| subnet(s)).collect(),
        internal,
        ..small.clone()
    };
    for (name, spec, refused) in [
        ("a subnet fewer", with(&[], false), "nothing else"),
        (
            "another first",
            with(&["10.98.0.0/24", "10.99.0.0/29"], false),
            "nothing else",
        ),
        ("no way out", with(&["10.99.0.0/29"], true), "nothing else"),
        (
            "the same again",
            with(&["10.99.0.0/29", "10.99.0.0/28"], false),
            "its subnet 10.99.0.0/29",
        ),
        (
            "of version six",
            with(&["10.99.0.0/29", "fd00::/64"], false),
            "it has IPv4 only: make it with --ipv6",
        ),
        (
            "no network",
            with(&["10.99.0.0/29", "10.98.0.1/24"], false),
            "10.98.0.0/24",
        ),
    ] {
        let refusal = admit::update_network(&sim.state, "small", None, &spec, sim.now).expect_err(name);
        assert!(refusal.to_string().contains(refused), "{name}: {refusal}");
    }
    let grown = with(&["10.99.0.0/29", "10.98.0.0/24"], false);
    let outdated = admit::update_network(&sim.state, "small", Some(1), &grown, sim.now);
    assert!(
        outdated
            .expect_err("outdated")
            .to_string()
            .contains("out of sequence")
    );
    let done = admit::update_network(&sim.state, "small", None, &grown, sim.now);
    sim.admit(done);
    sim.run(10);
    assert_eq!(sim.running().len(), 9, "those that waited have an address");
    assert_eq!(sim.state.check(), Ok(()));
}

fn port(published: u16, mode: PublishMode) -> PortSpec {
    PortSpec {
        name: String::new(),
        protocol: Default::default(),
        target: 80,
        published,
        mode,
        host_ip: String::new(),
        proxy: false,
    }
}

#[test]
fn a_port_has_one_owner() {
    let mut sim = Sim::new(2);
    let mut first = spec("a", 1);
    first.endpoint.ports = vec![port(8080, PublishMode::Ingress)];
    sim.create(first.clone());
    let other = ServiceSpec {
        name: "other".into(),
        ..first
    };
    let refused = admit::create_service(&sim.state, other.clone(), sim.now, &mut sim.ids).unwrap_err();
    assert!(refused.to_string().contains("web"), "{refused}");
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    let made = admit::create_service(&sim.state, other, sim.now, &mut sim.ids);
    sim.admit(made);
    sim.run(5);

    let mut host = spec("a", 3);
    host.endpoint.ports = vec![port(9000, PublishMode::Host)];
    sim.create(host);
    assert_eq!(sim.nodes(), [1, 2], "a host port once a node");
    let waiting = sim
        .tasks("web")
        .into_iter()
        .find(|t| t.node.is_none())
        .expect("the third waits");
    assert!(waiting.status.error.contains("port"), "{}", waiting.status.error);
}

#[test]
fn a_host_port_meets_no_other_owner() {
    let mut sim = Sim::new(2);
    let with = |name: &str, mode: ServiceMode, publish: PublishMode| ServiceSpec {
        name: name.into(),
        mode,
        endpoint: model::spec::EndpointSpec {
            ports: vec![port(9000, publish)],
            ..Default::default()
        },
        ..spec("a", 1)
    };
    let one = ServiceMode::Replicated { replicas: 1 };
    sim.create(with("web", ServiceMode::Global, PublishMode::Host));
    for (name, mode, publish, refused) in [
        ("everywhere too", ServiceMode::Global, PublishMode::Host, true),
        ("on every node", one.clone(), PublishMode::Ingress, true),
        ("where there is room", one, PublishMode::Host, false),
    ] {
        let made = admit::create_service(&sim.state, with("b", mode, publish), sim.now, &mut sim.ids);
        assert_eq!(made.is_err(), refused, "{name}: {made:?}");
        if let Err(e) = made {
            assert!(
                e.to_string().contains("9000") && e.to_string().contains("web"),
                "{e}"
            );
        }
    }
}

#[test]
fn what_a_port_cannot_do_is_said() {
    let mut sim = Sim::new(1);
    let mut spec = spec("a", 1);
    spec.endpoint.ports = vec![PortSpec {
        host_ip: "127.0.0.1".into(),
        proxy: false,
        ..port(80, PublishMode::Ingress)
    }];
    let made = admit::create_service(&sim.state, spec.clone(), sim.now, &mut sim.ids);
    assert_eq!(made.expect("it is made").warnings, Vec::<String>::new());
    for address in ["fd00::1", "h1", "127.0.0.1:80"] {
        spec.endpoint.ports[0].host_ip = address.into();
        let refused = admit::create_service(&sim.state, spec.clone(), sim.now, &mut sim.ids);
        let text = refused.expect_err("refused").to_string();
        assert!(text.contains(address) && text.contains("IPv4"), "{text}");
    }
    spec.endpoint.ports[0].host_ip.clear();
    spec.endpoint.ports[0].protocol = model::spec::Protocol::Sctp;
    let refused = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids);
    assert!(refused.expect_err("refused").to_string().contains("sctp"));
}

#[test]
fn no_more_restarts_are_allowed_than_are_counted() {
    let mut sim = Sim::new(1);
    for (attempts, refused) in [(99, false), (100, true)] {
        let mut spec = spec("a", 1);
        spec.task.restart.max_attempts = attempts;
        let made = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids);
        assert_eq!(made.is_err(), refused, "{attempts}: {made:?}");
    }
}

#[test]
fn a_host_port_rolls_although_start_first_was_asked() {
    let mut sim = Sim::new(1);
    let mut spec = spec("a", 1);
    spec.endpoint.ports = vec![port(9000, PublishMode::Host)];
    spec.update.order = UpdateOrder::StartFirst;
    spec.update.monitor = Duration::ZERO;
    sim.create(spec);
    sim.run(5);
    sim.update(|s| s.task.container.image = "b".into());
    sim.run(30);
    let images: Vec<_> = (sim.tasks("web").into_iter())
        .filter(|t| t.desired.is_live())
        .map(|t| (t.spec.container.image.clone(), t.status.state))
        .collect();
    assert_eq!(images, [("b".to_owned(), TaskState::Running)]);
}

#[test]
fn an_unknown_constraint_is_refused() {
    let mut sim = Sim::new(1);
    for bad in ["node.lables.disk==ssd", "node.role=manager", "nonsense"] {
        let mut spec = spec("a", 1);
        spec.task.placement.constraints = vec![bad.into()];
        let refused = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids);
        let text = refused.expect_err(bad).to_string();
        assert!(text.contains(bad) || text.contains("node.lables"), "{text}");
    }
}

fn stack(images: &[(&str, &str)]) -> StackSpec {
    let labels = || model::spec::Labels::from([(STACK_LABEL.to_owned(), "shop".to_owned())]);
    StackSpec {
        namespace: "shop".into(),
        networks: vec![NetworkSpec {
            name: "shop_net".into(),
            labels: labels(),
            ..NetworkSpec::default()
        }],
        services: images
            .iter()
            .map(|(name, image)| {
                let mut s = ServiceSpec {
                    name: format!("shop_{name}"),
                    labels: labels(),
                    ..spec(image, 1)
                };
                s.task.networks = vec![NetworkAttachment {
                    encrypted: false,
                    network: model::NetworkId::NIL,
                    name: "shop_net".into(),
                    aliases: Vec::new(),
                    address: None,
                    address6: None,
                }];
                s
            })
            .collect(),
        ..StackSpec::default()
    }
}

#[test]
fn a_stack_is_deployed_wholly_or_not_at_all() {
    let mut sim = Sim::new(2);
    let bad = admit::deploy_stack(
        &sim.state,
        stack(&[("a", "x"), ("b", "")]),
        false,
        sim.now,
        &mut sim.ids,
    );
    assert!(bad.is_err(), "a service without an image");
    assert_eq!(sim.state.services().count(), 0);

    let good = stack(&[("a", "x"), ("b", "x")]);
    let made = admit::deploy_stack(&sim.state, good.clone(), false, sim.now, &mut sim.ids);
    sim.admit(made);
    sim.run(5);
    assert_eq!(
        sim.state
            .tasks()
            .filter(|t| t.status.state == TaskState::Running)
            .count(),
        2
    );

    let again = admit::deploy_stack(&sim.state, good, true, sim.now, &mut sim.ids).expect("again");
    assert!(again.txn.is_empty(), "{:?}", again.txn);
    assert!(
        again.changes.iter().all(|c| c.verdict == StackVerdict::Unchanged),
        "{:?}",
        again.changes
    );

    let fewer = admit::deploy_stack(&sim.state, stack(&[("b", "x")]), true, sim.now, &mut sim.ids);
    let fewer = sim.admit(fewer);
    let removed: Vec<_> = fewer
        .changes
        .iter()
        .filter(|c| c.verdict == StackVerdict::Removed)
        .collect();
    assert_eq!(removed.len(), 1, "{removed:?}");
    sim.run(5);

    let gone = admit::remove_stacks(&sim.state, &["shop".into()]);
    sim.admit(gone);
    sim.run(5);
    assert_eq!((sim.state.services().count(), sim.state.tasks().count()), (0, 0));
    assert_eq!(sim.state.networks().count(), 1, "only ingress is left");
    assert!(admit::remove_stacks(&sim.state, &["shop".into()]).is_err());
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 3));
    let id: ServiceId = sim.web().id;
    let gone = admit::remove_services(&sim.state, &["web".into()]);
    sim.admit(gone);
    sim.run(5);
    assert_eq!(sim.state.object(Key::Service(id)), None);
    assert_eq!(sim.state.tasks().count(), 0);
}

#[test]
fn a_changed_constraint_comes_by_the_rollout() {
    let mut sim = Sim::new(2);
    sim.node_spec(2, |n| drop(n.labels.insert("disk".into(), "ssd".into())));
    sim.create(spec("a", 4));
    sim.watch();
    sim.update(|s| s.task.placement.constraints = vec!["node.labels.disk==ssd".into()]);
    sim.run(90);
    assert_eq!(sim.nodes(), [2, 2, 2, 2]);
    assert_eq!(sim.fewest, 3, "one slot at a time");
}

#[test]
fn a_rollout_ends_what_the_one_before_had_begun() {
    let mut sim = Sim::new(2);
    let mut first = spec("a", 1);
    first.update.order = UpdateOrder::StartFirst;
    sim.create(first);
    for next in ["slow", "slow2", "b"] {
        sim.update(image(next));
        sim.settle();
        let wanted = sim
            .tasks("web")
            .iter()
            .filter(|t| t.desired == DesiredState::Running)
            .count();
        assert_eq!(wanted, 2, "{next}: the one that serves and the new one");
    }
    sim.run(20);
    assert_eq!(sim.images(), ["b"]);
}

#[test]
fn addresses_change_hands_within_one_entry() {
    let mut sim = Sim::new(2);
    let net = NetworkSpec {
        name: "small".into(),
        subnets: vec!["10.99.0.0/29".parse().unwrap()],
        ..NetworkSpec::default()
    };
    let made = admit::create_network(&sim.state, net, sim.now, &mut sim.ids);
    sim.admit(made);
    let mut spec = spec("a", 4);
    spec.task.networks = vec![joined("small")];
    sim.create(spec);
    assert_eq!(sim.nodes(), [1, 1, 2, 2], "the subnet is full");
    sim.dead.insert(NodeId(1));
    sim.node_seen(1, NodeState::Down);
    // The lost tasks let go of what their successors take; `commit` checks the index after each entry.
    sim.run(10);
    assert_eq!(sim.nodes(), [2, 2, 2, 2]);
}

#[test]
fn a_plan_is_stale_once_its_node_is_drained() {
    let mut sim = Sim::new(1);
    let made = admit::create_service(&sim.state, spec("a", 1), sim.now, &mut sim.ids);
    sim.admit(made);
    let late = sim.plan();
    sim.node_spec(1, |n| n.availability = Availability::Drain);
    let entry = Entry {
        index: sim.state.index() + 1,
        now: sim.now,
        txn: late.txn,
    };
    assert!(sim.state.apply(&entry).is_err());
}

#[test]
fn starting_first_needs_room_beside_the_old_task() {
    for (name, order, want) in [
        ("stop first", UpdateOrder::StopFirst, "b"),
        ("start first", UpdateOrder::StartFirst, "a"),
    ] {
        let mut sim = Sim::new(1);
        let mut spec = spec("a", 1);
        spec.update.order = order;
        spec.task.resources.reservations.cpu = NanoCpus(3_000_000_000);
        sim.create(spec);
        sim.update(image("b"));
        sim.run(30);
        assert_eq!(sim.images(), [want], "{name}");
    }
}

#[path = "orchestrate/leave_tests.rs"]
mod leaving;
#[path = "rollout_tests.rs"]
mod rollouts;
