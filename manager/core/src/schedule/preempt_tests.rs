//! Room is made as if every node and everybody on it had been looked at for each task, and they are not.

use std::cell::Cell;

use model::Timestamp;
use model::object::{Meta, Object, SlotKey, TaskStatus};
use model::spec::{PortSpec, PublishMode, TaskSpec};
use model::task_state::TaskState;
use proptest::prelude::*;

use super::*;
use crate::orchestrate_tests::node;
use crate::schedule::{Closed, Load, next, schedule};

thread_local! {
    /// Nodes whose tasks were looked at.
    pub(super) static LOOKED: Cell<usize> = const { Cell::new(0) };
}

const WEB: u128 = 9;

#[derive(Debug, Clone)]
struct Host {
    zone: u8,
    cpus: u64,
    gpus: u64,
}

#[derive(Debug, Clone)]
struct Wish {
    service: u128,
    node: u128,
    priority: u32,
    cpus: u64,
    gpus: u64,
    port: bool,
    leaves: bool,
    /// Of these what is asked of others and of nodes.
    most: u32,
    affinity: usize,
    constraint: usize,
}

fn host() -> impl Strategy<Value = Host> {
    (0u8..2, 1u64..5, 0u64..3).prop_map(|(zone, cpus, gpus)| Host { zone, cpus, gpus })
}

fn wish() -> impl Strategy<Value = Wish> {
    let who = (prop_oneof![3 => 1u128..4, 1 => Just(WEB)], 1u128..5, 0u32..4);
    let takes = (0u64..3, 0u64..2, prop::bool::weighted(0.2));
    let asks = (prop::bool::weighted(0.2), 0u32..3, 0usize..4, 0usize..4);
    (who, takes, asks).prop_map(
        |((service, node, priority), (cpus, gpus, port), (leaves, most, affinity, constraint))| Wish {
            service,
            node,
            priority,
            cpus,
            gpus,
            port,
            leaves,
            most,
            affinity,
            constraint,
        },
    )
}

fn spec(wish: &Wish) -> TaskSpec {
    let mut spec = TaskSpec {
        priority: wish.priority,
        ..TaskSpec::default()
    };
    spec.resources.reservations.cpu.0 = wish.cpus * 1_000_000_000;
    if wish.gpus > 0 {
        spec.resources
            .reservations
            .generic
            .insert("gpu".into(), wish.gpus);
    }
    spec
}

fn task(id: u128, slot: u32, wish: &Wish, spec: &Arc<TaskSpec>) -> Task {
    let port = PortSpec {
        name: String::new(),
        protocol: Default::default(),
        target: 80,
        published: 80,
        mode: PublishMode::Host,
        host_ip: String::new(),
        proxy: false,
    };
    Task {
        id: TaskId(id),
        meta: Meta::default(),
        service: ServiceId(wish.service),
        service_name: format!("s{}", wish.service),
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
        host_ports: wish.port.then_some(port).into_iter().collect(),
        iteration: 0,
    }
}

fn running(id: u128, wish: &Wish) -> Object {
    let mut task = task(id, u32::try_from(id).unwrap(), wish, &Arc::new(spec(wish)));
    task.node = Some(NodeId(wish.node));
    task.status.state = TaskState::Running;
    if wish.leaves {
        task.desired = DesiredState::Shutdown;
        task.status.error = format!("{PREEMPTED}s9.1 (priority {})", wish.priority);
    }
    Object::Task(task.into())
}

fn hosts(hosts: &[Host]) -> impl Iterator<Item = Object> {
    (1u128..).zip(hosts).map(|(id, h)| {
        let mut n = node(id, &format!("h{id}"));
        n.spec.labels.insert("zone".into(), h.zone.to_string());
        n.description.cpus.0 = h.cpus * 1_000_000_000;
        n.description.generic.counted.insert("gpu".into(), h.gpus);
        Object::Node(n.into())
    })
}

/// Tasks of one service that are alike and wait for a node.
fn pending(wish: &Wish, count: u32, first: u128) -> Vec<Arc<Task>> {
    let mut spec = spec(wish);
    spec.placement.max_replicas_per_node = wish.most;
    let affinity = [None, Some("service==s1"), Some("service!=s2"), None];
    spec.placement.affinity = affinity[wish.affinity].iter().map(|a| (*a).into()).collect();
    let constraint = [None, Some("node.labels.zone==1"), Some("node.hostname!=h1"), None];
    spec.placement.constraints = constraint[wish.constraint].iter().map(|c| (*c).into()).collect();
    let spec = Arc::new(spec);
    let task = |slot| Arc::new(task(first + u128::from(slot), 1000 + slot, wish, &spec));
    (0..count).map(task).collect()
}

/// Who would go on which node, and whether somebody goes there for this task: everybody is asked, one after the other.
fn simply(
    room: &Room,
    state: &State,
    unheard: &BTreeSet<NodeId>,
    task: &Task,
) -> BTreeMap<NodeId, (bool, Vec<TaskId>)> {
    let asked = filter::Asked::of(state, task);
    let offer = |node: &Arc<Node>| {
        let there = || {
            let tasks = state.tasks_of_node(node.id);
            tasks.filter(|t| !t.status.state.is_terminal())
        };
        let mut gone: Vec<TaskId> = there().filter(|t| !t.desired.is_live()).map(|t| t.id).collect();
        let waiting = || {
            let all = room.waiting.values();
            all.filter(|t| t.node == Some(node.id)).cloned()
        };
        let fits =
            |gone: &[TaskId]| filter::check_by(&state.as_if(gone, waiting()), node, task, &asked).is_none();
        let lower = |t: &&Arc<Task>| {
            t.desired.is_live() && t.service != task.service && t.spec.priority < task.spec.priority
        };
        let mut victims: Vec<&Arc<Task>> = there().filter(lower).collect();
        victims.sort_by_key(|t| (t.spec.priority, Reverse(t.meta.created_at), t.id));
        let mut going: Vec<TaskId> = Vec::new();
        let mut rest = victims.into_iter();
        while !fits(&gone) {
            let next = rest.next()?;
            gone.push(next.id);
            going.push(next.id);
        }
        for at in (0..going.len()).rev() {
            let without: Vec<TaskId> = gone.iter().copied().filter(|id| *id != going[at]).collect();
            if fits(&without) {
                gone = without;
                going.remove(at);
            }
        }
        let mine = there().any(|t| !t.desired.is_live() && t.status.error == reason(task));
        Some((node.id, (mine, going)))
    };
    candidates(state, task)
        .filter(|n| !unheard.contains(&n.id))
        .filter_map(offer)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_was_seen_for_one_holds_for_those_that_are_alike(
        nodes in prop::collection::vec(host(), 4),
        there in prop::collection::vec(wish(), 0..16),
        mut web in wish(),
    ) {
        (web.service, web.priority) = (WEB, web.priority.max(1));
        let tasks = pending(&web, 5, 1000);
        let objects = hosts(&nodes)
            .chain((1..).zip(&there).map(|(id, wish)| running(id, wish)))
            .chain(tasks.iter().cloned().map(Object::Task));
        let state = State::from_objects(1, objects);
        let mut scratch = Scratch::new(&state);
        let unheard = BTreeSet::from([NodeId(4)]);
        let mut room = Room::default();
        let load = Load::of(&scratch, ServiceId(WEB), Timestamp(10));
        let closed = Closed { unheard: &unheard, kept: &BTreeSet::new() };
        let mut choice = Choice::of(&scratch, closed, Arc::new(next(&tasks[0])), &load);
        for task in &tasks[..4] {
            let plain = simply(&room, &scratch, &unheard, task);
            let best = plain.iter().min_by_key(|(node, (mine, going))| {
                let priority = |id: &TaskId| scratch.task(*id).map(|t| t.spec.priority);
                (!mine, going.iter().map(priority).max(), going.len(), **node)
            });
            let best = best.map(|(node, (_, going))| (format!("h{}", node.0), going.clone()));
            let before: BTreeSet<TaskId> = live(&scratch);
            let host = room.make(&mut scratch, &unheard, task, &mut choice);
            let told: BTreeSet<TaskId> = before.difference(&live(&scratch)).copied().collect();
            let made = host.map(|host| (host, told));
            prop_assert_eq!(made, best.map(|(host, going)| (host, going.into_iter().collect())));
            let seen = choice.offers.iter().flatten();
            let seen: BTreeMap<_, Vec<_>> =
                seen.map(|(node, o)| (*node, o.victims.iter().map(|t| t.id).collect())).collect();
            let then = simply(&room, &scratch, &unheard, &tasks[4]);
            let then: BTreeMap<_, _> = then.into_iter().map(|(node, (_, going))| (node, going)).collect();
            prop_assert_eq!(seen, then);
        }
    }
}

fn live(state: &State) -> BTreeSet<TaskId> {
    let live = state.tasks().filter(|t| t.desired.is_live());
    live.map(|t| t.id).collect()
}

#[test]
fn tasks_that_fit_nowhere_look_at_no_node_or_once_at_each() {
    let nodes = vec![
        Host {
            zone: 0,
            cpus: 4,
            gpus: 1
        };
        2_000
    ];
    let low = Wish {
        service: 1,
        node: 0,
        priority: 0,
        cpus: 4,
        gpus: 0,
        port: true,
        leaves: false,
        most: 0,
        affinity: 0,
        constraint: 0,
    };
    let full = (1..=2_000).map(|id| {
        running(
            id,
            &Wish {
                node: id,
                ..low.clone()
            },
        )
    });
    let state = State::from_objects(1, hosts(&nodes).chain(full));
    let web = Wish {
        service: WEB,
        priority: 9,
        cpus: 1,
        port: false,
        ..low
    };
    type Change = fn(&mut TaskSpec);
    let rows: [(&str, u32, Change, usize); 6] = [
        (
            "a constraint of no node",
            9,
            |t| t.placement.constraints = vec!["node.labels.zone==x".into()],
            0,
        ),
        (
            "a kind of no node",
            9,
            |t| _ = t.resources.reservations.generic.insert("gqu".into(), 1),
            0,
        ),
        (
            "more of a kind than any has",
            9,
            |t| _ = t.resources.reservations.generic.insert("gpu".into(), 2),
            0,
        ),
        (
            "larger than any",
            9,
            |t| t.resources.reservations.cpu.0 = 5_000_000_000,
            0,
        ),
        (
            "company that is nowhere",
            9,
            |t| t.placement.affinity = vec!["service==none".into()],
            2_000,
        ),
        ("no priority", 0, |t| t.priority = 0, 0),
    ];
    for (name, priority, change, most) in rows {
        let mut open = pending(
            &Wish {
                priority,
                ..web.clone()
            },
            200,
            10_000,
        );
        let mut spec = (*open[0].spec).clone();
        change(&mut spec);
        let spec = Arc::new(spec);
        for task in &mut open {
            Arc::make_mut(task).spec = spec.clone();
        }
        let all = state.objects().chain(open.iter().cloned().map(Object::Task));
        let state = State::from_objects(1, all);
        let open = open.iter().filter_map(|t| state.task(t.id)).cloned().collect();
        let (mut scratch, mut report) = (Scratch::new(&state), BTreeMap::new());
        LOOKED.set(0);
        let evicted = schedule(&mut scratch, open, &BTreeSet::new(), Timestamp(10), &mut report);
        assert_eq!((evicted.len(), report.len()), (0, 200), "{name}");
        assert_eq!(LOOKED.get(), most, "{name}");
    }
}

#[test]
fn each_that_makes_room_looks_again_at_one_node_alone() {
    let nodes = vec![
        Host {
            zone: 0,
            cpus: 4,
            gpus: 0
        };
        500
    ];
    let low = Wish {
        service: 1,
        node: 0,
        priority: 0,
        cpus: 4,
        gpus: 0,
        port: false,
        leaves: false,
        most: 0,
        affinity: 0,
        constraint: 0,
    };
    let web = Wish {
        service: WEB,
        priority: 9,
        ..low.clone()
    };
    let full = (1..=500).map(|id| {
        running(
            id,
            &Wish {
                node: id,
                ..low.clone()
            },
        )
    });
    let open = pending(&web, 200, 10_000);
    let all = hosts(&nodes)
        .chain(full)
        .chain(open.iter().cloned().map(Object::Task));
    let state = State::from_objects(1, all);
    let (mut scratch, mut report) = (Scratch::new(&state), BTreeMap::new());
    LOOKED.set(0);
    schedule(&mut scratch, open, &BTreeSet::new(), Timestamp(10), &mut report);
    assert_eq!(scratch.tasks().filter(|t| !t.desired.is_live()).count(), 200);
    assert_eq!(LOOKED.get(), 500 + 200);
}
