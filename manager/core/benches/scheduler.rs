//! What placing tasks costs, in memory: nodes with labels, services with constraints, reservations and spread.
//!
//! `cargo bench --bench scheduler` prints one JSON object at the end: tasks placed in a second in two sizes of cluster, bytes that a
//! task takes in the state, and the milliseconds in which one change in the larger cluster is planned.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench stops where something is not as it should be"
)]

use std::sync::Arc;
use std::time::Instant;

use manager_core::node_health::Unheard;
use manager_core::{Dirty, Entry, State, plan};
use model::ids::IdSource;
use model::object::{
    Meta, Node, NodeDescription, NodeSpec, NodeStatus, Object, Service, SlotKey, Task, TaskStatus,
};
use model::spec::{Labels, ServiceMode, ServiceSpec};
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, NanoCpus, NodeId, ServiceId, TaskId, Timestamp};

/// Tasks of one service.
const REPLICAS: u32 = 500;
/// Most tasks in one plan: what is placed at once is one entry.
const AT_ONCE: u32 = 10_000;

struct Counter(u128);

impl IdSource for Counter {
    fn next_id(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

/// One in three zones, ten racks and two classes.
fn node(id: u32) -> Object {
    let labels = [("zone", id % 3), ("rack", id % 10), ("class", id % 2)];
    Object::Node(Arc::new(Node {
        id: NodeId(u128::from(id) + 1),
        meta: Meta::default(),
        spec: NodeSpec {
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_string()))
                .into(),
            ..NodeSpec::default()
        },
        description: NodeDescription {
            hostname: format!("h{id}"),
            cpus: NanoCpus(64_000_000_000),
            memory: Bytes(256 << 30),
            ..NodeDescription::default()
        },
        status: NodeStatus::ready(),
        identity: Default::default(),
    }))
}

fn service(id: u32) -> Arc<Service> {
    let mut spec = ServiceSpec {
        name: format!("s{id}"),
        mode: ServiceMode::Replicated { replicas: REPLICAS },
        labels: Labels::new(),
        ..ServiceSpec::default()
    };
    spec.task.container.image = "web:v1".into();
    spec.task.placement.constraints = vec![format!("node.labels.class=={}", id % 2)];
    spec.task.placement.spread = vec!["node.labels.zone".into()];
    spec.task.resources.reservations.cpu = NanoCpus(100_000_000);
    spec.task.resources.reservations.memory = Bytes(64 << 20);
    let id = ServiceId(u128::from(id) + 1);
    Arc::new(Service::new(id, Meta::default(), spec))
}

fn task(service: &Service, spec: &Arc<model::spec::TaskSpec>, slot: u32, id: u128) -> Object {
    Object::Task(Arc::new(Task {
        id: TaskId(id),
        meta: Meta::default(),
        service: service.id,
        service_name: service.spec.name.clone(),
        slot: SlotKey::Replica(slot),
        spec: spec.clone(),
        spec_version: 1,
        node: None,
        desired: DesiredState::Running,
        run_at: Timestamp(0),
        status: TaskStatus {
            state: TaskState::Pending,
            ..TaskStatus::new(Timestamp(0))
        },
        running_at: None,
        unready_at: None,
        ended_at: None,
        fence: 0,
        granted: Default::default(),
        moving: 0,
        addresses: Vec::new(),
        host_ports: Vec::new(),
        iteration: 0,
    }))
}

/// Resident memory of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Places all tasks, in entries as a leader makes them; answers the state, tasks a second, and bytes a task.
fn place(nodes: u32, tasks: u32) -> (State, f64, f64) {
    let services: Vec<Arc<Service>> = (0..tasks / REPLICAS).map(service).collect();
    let objects = (0..nodes)
        .map(node)
        .chain(services.iter().cloned().map(Object::Service));
    let mut state = State::from_objects(1, objects);
    let mut ids = Counter(1 << 100);
    let before = resident();
    let mut seconds = 0.0;
    let mut last = Vec::new();
    for some in services.chunks(usize::try_from(AT_ONCE / REPLICAS).unwrap()) {
        let mut actions = Vec::new();
        for service in some {
            let spec = Arc::new(service.spec.task.clone());
            actions.extend(
                (1..=REPLICAS)
                    .map(|slot| manager_core::Action::Put(task(service, &spec, slot, ids.next_id()))),
            );
        }
        commit(&mut state, actions);
        let mut dirty = Dirty::default();
        dirty.add_room();
        let began = Instant::now();
        let next = plan(&state, &dirty, &Unheard::default(), Timestamp(10), &mut ids);
        seconds += began.elapsed().as_secs_f64();
        assert_eq!(next.report.len(), 0, "every task fits");
        last.push(next.txn.actions.len());
        commit(&mut state, next.txn.actions);
    }
    let placed: usize = last.iter().sum();
    assert_eq!(placed, usize::try_from(tasks).unwrap());
    let bytes = (resident() - before) as f64 / f64::from(tasks);
    (state, f64::from(tasks) / seconds, bytes)
}

fn commit(state: &mut State, actions: Vec<manager_core::Action>) {
    let entry = Entry {
        index: state.index() + 1,
        now: Timestamp(10),
        txn: manager_core::Txn {
            expect: Vec::new(),
            actions,
        },
    };
    state.apply(&entry).unwrap();
}

/// Milliseconds in which a service with one replica more is planned; the median.
fn replan(state: &mut State) -> f64 {
    let mut ids = Counter(1 << 110);
    let mut times: Vec<f64> = (0..21u32)
        .map(|round| {
            let id = ServiceId(u128::from(round) * 7 + 1);
            let mut more = (**state.service(id).unwrap()).clone();
            let mut spec = (*more.spec).clone();
            spec.mode = ServiceMode::Replicated {
                replicas: REPLICAS + 1,
            };
            more.spec = Arc::new(spec);
            commit(
                state,
                vec![manager_core::Action::Put(Object::Service(Arc::new(more)))],
            );
            let mut dirty = Dirty::default();
            dirty.add_service(id);
            let began = Instant::now();
            let next = plan(state, &dirty, &Unheard::default(), Timestamp(20), &mut ids);
            let took = began.elapsed().as_secs_f64() * 1e3;
            assert!(!next.txn.actions.is_empty());
            commit(state, next.txn.actions);
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let (_, small, _) = place(1_000, 100_000);
    println!("1,000 nodes, 100,000 tasks: {small:.0} placements/s");
    let (mut state, large, bytes) = place(10_000, 1_000_000);
    println!("10,000 nodes, 1,000,000 tasks: {large:.0} placements/s, {bytes:.0} bytes a task");
    let took = replan(&mut state);
    println!("one change in it is planned in {took:.2} ms");
    println!(
        "{{\"placements_per_s_1k_100k\":{small:.0},\"placements_per_s_10k_1m\":{large:.0},\"bytes_per_task\":{bytes:.0},\"replan_ms\":{took:.3}}}"
    );
}
