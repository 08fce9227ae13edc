//! Many tasks at once find the nodes that each by itself would find.

use model::object::{Meta, NodeState, Object, TaskStatus};
use model::spec::{Labels, TaskSpec};
use proptest::prelude::*;

use super::*;
use crate::orchestrate_tests::{Sim, node};

/// What [`schedule`] has to do, in its simplest form: every task looks at every node.
fn one_by_one(
    scratch: &mut Scratch,
    open: &[TaskId],
    unheard: &BTreeSet<NodeId>,
    now: Timestamp,
) -> BTreeMap<TaskId, Result<NodeId, String>> {
    let mut pending: Vec<Arc<Task>> = open.iter().filter_map(|id| scratch.task(*id)).cloned().collect();
    pending.sort_by_key(|t| (t.service, t.slot, t.id));
    let mut found = BTreeMap::new();
    for task in pending {
        let load = Load::of(scratch, task.service, now);
        let kept = BTreeSet::new();
        let closed = Closed { unheard, kept: &kept };
        let chosen = choose(scratch, closed, &task, &load);
        if let Ok(node) = chosen {
            scratch.edit_task(task.id, |t| {
                t.node = Some(node);
                t.status.state = TaskState::Assigned;
            });
        }
        found.insert(task.id, chosen);
    }
    found
}

/// The best node for a task, or one line that counts which filter refused how many: one look at every node.
fn choose(state: &State, closed: Closed<'_>, task: &Task, load: &Load) -> Result<NodeId, String> {
    let asked = filter::Asked::of(state, task);
    let mut refused: BTreeMap<filter::Refused, usize> = BTreeMap::new();
    let mut fits: Vec<&Arc<Node>> = Vec::new();
    for node in candidates(state, task) {
        match refusal(state, node, closed, (task, &asked)) {
            None => fits.push(node),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    let others = |node: NodeId| load.others(task.slot, node);
    narrow(&mut fits, &task.spec.placement.spread, &others);
    let rank = |n: &Arc<Node>| {
        let fullness = state.standing(n.id).fullness;
        Rank::of((n.id, others(n.id)), fullness, &Kind::of(n, task), task, load)
    };
    let best = fits.into_iter().min_by_key(|n| rank(n));
    best.map(|n| n.id).ok_or_else(|| explain::no_node(&refused, task))
}

/// Keeps the nodes of the branches that have the fewest tasks of the service, one preference after the other.
fn narrow(nodes: &mut Vec<&Arc<Node>>, preferences: &[String], tasks: &dyn Fn(NodeId) -> usize) {
    for preference in preferences {
        let mut branches: BTreeMap<&str, usize> = BTreeMap::new();
        for node in nodes.iter() {
            *branches.entry(spread::value(node, preference)).or_default() += tasks(node.id);
        }
        let Some(fewest) = branches.values().min().copied() else {
            return;
        };
        let Some((branch, _)) = branches.into_iter().find(|(_, count)| *count == fewest) else {
            return;
        };
        let branch = branch.to_owned();
        nodes.retain(|n| spread::value(n, preference) == branch);
    }
}

#[derive(Debug, Clone)]
struct Host {
    zone: u8,
    rack: u8,
    cpus: u64,
    down: bool,
    unreached: bool,
    unheard: bool,
}

#[derive(Debug, Clone)]
struct Wish {
    replicas: u32,
    /// Of those, how many run somewhere, and how many replace one.
    running: u32,
    replacing: u32,
    spread: usize,
    cpus: u64,
    most: u32,
    port: bool,
    only_zone: Option<u8>,
    binpack: bool,
    /// Generic resources.
    gpus: u64,
    /// A service that it does not want beside it.
    shuns: Option<u8>,
}

fn host() -> impl Strategy<Value = Host> {
    let rare = || prop::bool::weighted(0.1);
    (0u8..3, 0u8..2, 1u64..4, rare(), rare(), rare()).prop_map(
        |(zone, rack, cpus, down, unreached, unheard)| Host {
            zone,
            rack,
            cpus,
            down,
            unreached,
            unheard,
        },
    )
}

fn wish() -> impl Strategy<Value = Wish> {
    let numbers = (0u32..12, 0u32..6, 0u32..3);
    let asks = (
        0usize..3,
        0u64..3,
        0u32..3,
        prop::bool::weighted(0.2),
        prop::option::weighted(0.3, 0u8..3),
        prop::bool::weighted(0.4),
        0u64..2,
        prop::option::weighted(0.3, 1u8..4),
    );
    (numbers, asks).prop_map(
        |((replicas, running, replacing), (spread, cpus, most, port, only_zone, binpack, gpus, shuns))| {
            Wish {
                replicas,
                running,
                replacing,
                spread,
                cpus,
                most,
                port,
                only_zone,
                binpack,
                gpus,
                shuns,
            }
        },
    )
}

fn state(hosts: &[Host], wishes: &[Wish]) -> (State, Vec<TaskId>, BTreeSet<NodeId>) {
    let mut objects: Vec<Object> = Sim::new(0).state.objects().collect();
    objects.retain(|o| !matches!(o, Object::Node(_)));
    let mut unheard = BTreeSet::new();
    for (id, h) in (1u128..).zip(hosts) {
        let mut n = node(id, &format!("h{id}"));
        n.spec.labels = Labels::from([
            ("zone".into(), h.zone.to_string()),
            ("rack".into(), h.rack.to_string()),
        ]);
        n.description.cpus.0 = h.cpus * 1_000_000_000;
        n.description.generic.counted.insert("gpu".into(), h.cpus);
        if h.down {
            n.status.state = NodeState::Down;
        }
        if h.unreached {
            n.status.unreached = vec![NodeId(77)];
        }
        if h.unheard {
            unheard.insert(n.id);
        }
        objects.push(Object::Node(n.into()));
    }
    let mut open = Vec::new();
    let count = u128::try_from(hosts.len()).unwrap();
    for (service, w) in (1u128..).zip(wishes) {
        let mut spec = TaskSpec::default();
        spec.placement.spread = ["node.labels.zone", "node.labels.rack"][..w.spread]
            .iter()
            .map(|s| (*s).into())
            .collect();
        spec.placement.max_replicas_per_node = w.most;
        spec.placement.constraints = w
            .only_zone
            .iter()
            .map(|z| format!("node.labels.zone=={z}"))
            .collect();
        if w.binpack {
            spec.placement.strategy = PlacementStrategy::Binpack;
        }
        spec.placement.affinity = w.shuns.iter().map(|s| format!("service!=s{s}")).collect();
        if w.gpus > 0 {
            spec.resources.reservations.generic.insert("gpu".into(), w.gpus);
        }
        spec.resources.reservations.cpu.0 = w.cpus * 1_000_000_000;
        let spec = Arc::new(spec);
        for slot in 0..w.replicas {
            let host_ports = w.port.then(|| model::spec::PortSpec {
                name: String::new(),
                protocol: Default::default(),
                target: 80,
                published: 80,
                mode: model::spec::PublishMode::Host,
                host_ip: String::new(),
                proxy: false,
            });
            let task = |id: u128, desired, state, node| Task {
                id: TaskId(service * 1_000 + id),
                meta: Meta::default(),
                service: ServiceId(service),
                service_name: format!("s{service}"),
                slot: SlotKey::Replica(slot),
                spec: spec.clone(),
                spec_version: 1,
                node,
                desired,
                run_at: Timestamp(0),
                status: TaskStatus {
                    state,
                    ..TaskStatus::new(Timestamp(0))
                },
                running_at: None,
                unready_at: None,
                ended_at: None,
                fence: 0,
                granted: Default::default(),
                moving: 0,
                addresses: Vec::new(),
                host_ports: host_ports.clone().into_iter().collect(),
                iteration: 0,
            };
            let id = u128::from(slot) * 2;
            let runs = slot < w.running;
            if runs {
                let on = NodeId(1 + (service * 7 + id) % count);
                let old = task(id, DesiredState::Running, TaskState::Running, Some(on));
                objects.push(Object::Task(old.into()));
            }
            if !runs || slot < w.replacing {
                let desired = if runs {
                    DesiredState::Ready
                } else {
                    DesiredState::Running
                };
                let new = task(id + 1, desired, TaskState::Pending, None);
                open.push(new.id);
                objects.push(Object::Task(new.into()));
            }
        }
    }
    (State::from_objects(1, objects), open, unheard)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn many_find_what_each_by_itself_finds(
        hosts in prop::collection::vec(host(), 1..16),
        wishes in prop::collection::vec(wish(), 1..4),
    ) {
        let (state, open, unheard) = state(&hosts, &wishes);
        let now = Timestamp(10);
        let mut simple = Scratch::new(&state);
        let expected = one_by_one(&mut simple, &open, &unheard, now);
        let (mut scratch, mut report) = (Scratch::new(&state), BTreeMap::new());
        let tasks = open.iter().filter_map(|id| state.task(*id)).cloned().collect();
        schedule(&mut scratch, tasks, &unheard, now, &mut report);
        for id in &open {
            let found = match scratch.task(*id).and_then(|t| t.node) {
                Some(node) => Ok(node),
                None => Err(report.get(id).cloned().unwrap_or_default()),
            };
            // Why not is said of the end, when all that could be placed are.
            let known = |r: &Result<NodeId, String>| r.as_ref().map_err(|why| !why.is_empty()).copied();
            prop_assert_eq!(known(&found), known(&expected[id]), "task {}", id);
        }
    }
}
