//! Strategies, affinities, generic resources and priorities, as tables of clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::object::{Availability, Key, NodeUse, Object, SlotKey, Task};
use model::spec::{
    GenericResources, OnDisconnect, PlacementStrategy, Rebalance, ServiceMode, ServiceSpec, TaskSpec,
    UpdateOrder,
};
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, Level, NanoCpus, NodeId};

use crate::orchestrate::is_live;
use crate::orchestrate::joined::AT_ONCE;
use crate::orchestrate_tests::{Sim, node, spec};
use crate::txn::{Action, Txn};

const GIB: u64 = 1 << 30;

fn named(name: &str, replicas: u32) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        ..spec("a", replicas)
    }
}

/// One that reserves memory, in units of 256 MiB.
fn wants(name: &str, units: u64) -> ServiceSpec {
    let mut spec = named(name, 1);
    spec.task.resources.reservations.memory = Bytes(units * GIB / 4);
    spec
}

fn put(sim: &mut Sim, object: Object) {
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(object)],
    });
}

/// A cluster that writes at the newest level.
fn cluster(nodes: u128) -> Sim {
    let mut sim = Sim::new(nodes);
    let mut cluster = (**sim.state.cluster().expect("made")).clone();
    cluster.level = Level::OURS;
    put(&mut sim, Object::Cluster(cluster.into()));
    sim
}

/// Nodes with so much memory, in GiB.
fn sized(memory: &[u64]) -> Sim {
    let mut sim = cluster(0);
    for (id, gib) in (1u128..).zip(memory) {
        let mut host = node(id, &format!("n{id}"));
        (host.description.memory, host.description.cpus) = (Bytes(gib * GIB), NanoCpus(64_000_000_000));
        put(&mut sim, Object::Node(host.into()));
    }
    sim
}

fn live(sim: &Sim) -> Vec<&Task> {
    let tasks = sim.state.tasks().map(|t| &**t);
    tasks
        .filter(|t| t.desired.is_live() && !t.status.state.is_terminal())
        .collect()
}

/// Hosts of the live tasks of a service, sorted; 0 where it has none.
fn on(sim: &Sim, service: &str) -> Vec<u128> {
    let tasks = live(sim).into_iter().filter(|t| t.service_name == service);
    let mut hosts: Vec<u128> = tasks.map(|t| t.node.map_or(0, |n| n.0)).collect();
    hosts.sort_unstable();
    hosts
}

#[test]
fn thirty_mixed_tasks_fill_unequal_nodes_alike_or_as_few_of_them_as_will_do() {
    let sizes = [8, 16, 32];
    for (strategy, used) in [(PlacementStrategy::Spread, 3), (PlacementStrategy::Binpack, 1)] {
        let mut sim = sized(&sizes);
        for n in 0..30u64 {
            // 1 to 4 units: 75 of them, 18.75 of 56 GiB.
            let mut one = wants(&format!("s{n}"), 1 + n % 4);
            one.task.placement.strategy = strategy;
            sim.create(one);
        }
        let mut taken: BTreeMap<u128, u64> = BTreeMap::new();
        for task in live(&sim) {
            *taken.entry(task.node.expect("all fit").0).or_default() +=
                task.spec.resources.reservations.memory.0;
        }
        assert_eq!(taken.len(), used, "{strategy:?}: {taken:?}");
        let shares = (1u128..)
            .zip(sizes)
            .map(|(id, gib)| taken.get(&id).copied().unwrap_or(0) as f64 / (gib * GIB) as f64);
        let shares: Vec<f64> = shares.collect();
        assert!(shares.iter().all(|s| *s <= 1.0), "{strategy:?}: {shares:?}");
        let mean = taken.values().sum::<u64>() as f64 / (56 * GIB) as f64;
        let most = shares.iter().copied().fold(0.0, f64::max);
        if strategy == PlacementStrategy::Spread {
            assert!(most <= 1.15 * mean, "{shares:?} of {mean}");
        }
    }
}

#[test]
fn binpack_opens_another_node_only_when_one_is_full() {
    let mut sim = sized(&[8, 8, 8]);
    let mut web = wants("web", 8);
    web.mode = ServiceMode::Replicated { replicas: 5 };
    web.task.placement.strategy = PlacementStrategy::Binpack;
    sim.create(web);
    let hosts = on(&sim, "web");
    let used: BTreeSet<u128> = hosts.iter().copied().collect();
    assert_eq!((hosts.len(), used.len()), (5, 2), "four fit on one: {hosts:?}");
}

#[test]
fn twelve_tasks_over_zones_and_racks_are_two_a_rack() {
    let mut sim = cluster(0);
    for id in 1..=12u128 {
        let mut host = node(id, &format!("n{id}"));
        // Two zones of three racks, of unequal size.
        let (zone, rack) = if id <= 9 { (0, id % 3) } else { (1, 3 + id % 3) };
        host.spec.labels = [("zone", zone), ("rack", rack)]
            .map(|(k, v)| (k.to_owned(), v.to_string()))
            .into();
        put(&mut sim, Object::Node(host.into()));
    }
    let mut web = named("web", 12);
    web.task.placement.spread = vec!["node.labels.zone".into(), "node.labels.rack".into()];
    sim.create(web);
    let mut racks: BTreeMap<String, usize> = BTreeMap::new();
    for host in on(&sim, "web") {
        let host = sim.state.node(NodeId(host)).unwrap();
        *racks.entry(host.spec.labels["rack"].clone()).or_default() += 1;
    }
    assert_eq!(racks.into_values().collect::<Vec<_>>(), [2; 6]);
}

#[test]
fn one_a_node_on_every_node_is_updated_start_first() {
    let mut sim = cluster(3);
    let mut web = named("web", 3);
    web.task.placement.max_replicas_per_node = 1;
    web.update.order = UpdateOrder::StartFirst;
    web.update.monitor = std::time::Duration::ZERO;
    sim.create(web);
    sim.update(|s| s.task.container.image = "b".into());
    sim.run(60);
    let images: Vec<&str> = sim
        .running()
        .iter()
        .map(|t| t.spec.container.image.as_str())
        .collect();
    assert_eq!(images, ["b"; 3]);
    assert_eq!(on(&sim, "web"), [1, 2, 3]);
}

#[test]
fn services_are_kept_together_and_apart() {
    let with = |name: &str, replicas: u32, affinity: &[&str]| {
        let mut spec = named(name, replicas);
        spec.task.placement.affinity = affinity.iter().map(|a| (*a).to_owned()).collect();
        spec
    };
    let mut sim = cluster(3);
    sim.create(with("web", 2, &["service==db"]));
    assert_eq!(on(&sim, "web"), [0, 0], "there is no db yet");
    let why = &live(&sim)[0].status.error;
    assert!(
        why.contains("affinity not satisfied (service==db) on 3 nodes"),
        "{why}"
    );
    sim.create(named("db", 1));
    let db = on(&sim, "db");
    assert_eq!(
        on(&sim, "web"),
        [db[0], db[0]],
        "it follows, as soon as there is one"
    );
    sim.create(with("cache", 3, &["service!=db", "service!=cache"]));
    let cache = on(&sim, "cache");
    assert!(!cache.contains(&db[0]), "{cache:?}");
    assert_eq!((cache.len(), cache[0]), (3, 0), "one a node, and the third waits");
    // What was asked before holds for who comes later.
    sim.create(named("more", 1));
    sim.create(with("quiet", 1, &["service!=more", "service!=loud"]));
    let quiet = on(&sim, "quiet");
    sim.create(named("loud", 6));
    assert!(!on(&sim, "loud").contains(&quiet[0]));
}

#[test]
fn generic_resources_are_given_out_and_those_with_names_to_one_each() {
    let mut sim = cluster(0);
    let mut host = node(1, "n1");
    host.description.generic = GenericResources::parse(["gpu=UUID1", "gpu=UUID2", "fpga=3"]).unwrap();
    put(&mut sim, Object::Node(host.into()));
    let mut web = named("web", 3);
    web.task.resources.reservations.generic = [("gpu".to_owned(), 1), ("fpga".to_owned(), 1)].into();
    sim.create(web);
    let mut given: Vec<String> = live(&sim)
        .iter()
        .flat_map(|t| t.granted.get("gpu").cloned().unwrap_or_default())
        .collect();
    given.sort();
    assert_eq!(given, ["UUID1", "UUID2"], "disjoint");
    assert!(
        live(&sim).iter().all(|t| !t.granted.contains_key("fpga")),
        "counted ones have no names"
    );
    let waits: Vec<&Task> = live(&sim).into_iter().filter(|t| t.node.is_none()).collect();
    assert_eq!(waits.len(), 1);
    let why = &waits[0].status.error;
    assert!(
        why.contains("insufficient generic resources (fpga=1, gpu=1) on 1 node"),
        "{why}"
    );
    sim.scale(1);
    sim.run(10);
    sim.scale(2);
    sim.run(10);
    assert_eq!(on(&sim, "web"), [1, 1], "what was given back is given again");
}

/// A service with a priority that reserves CPUs.
fn urgent(name: &str, replicas: u32, priority: u32, cpus: u64) -> ServiceSpec {
    let mut spec = named(name, replicas);
    spec.task.priority = priority;
    spec.task.resources.reservations.cpu = NanoCpus(cpus * 1_000_000_000);
    spec
}

/// Told to make room, by service.
fn preempted(sim: &Sim) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for task in sim
        .state
        .tasks()
        .filter(|t| t.status.error.starts_with("preempted by "))
    {
        assert!(!task.desired.is_live());
        *told.entry(task.service_name.clone()).or_default() += 1;
    }
    told
}

#[test]
fn tasks_of_the_lowest_priority_make_room_and_no_more_of_them_than_needed() {
    // Two nodes of four CPUs.
    let mut sim = cluster(2);
    sim.create(urgent("low", 4, 0, 1));
    sim.create(urgent("mid", 4, 50, 1));
    assert_eq!(live(&sim).len(), 8, "full");
    sim.create(urgent("web", 1, 90, 2));
    assert_eq!(preempted(&sim), BTreeMap::from([("low".into(), 2)]));
    assert!(!on(&sim, "web").contains(&0), "it runs");
    assert_eq!(
        on(&sim, "mid").iter().filter(|n| **n == 0).count(),
        0,
        "untouched"
    );
    assert_eq!(
        on(&sim, "low").iter().filter(|n| **n == 0).count(),
        2,
        "they wait"
    );
    let error = "preempted by web.1 (priority 90)";
    let told = sim
        .state
        .tasks()
        .find(|t| t.status.error == error)
        .expect("says for whom");
    assert_eq!(
        told.status.state,
        TaskState::Shutdown,
        "and keeps it once it ended"
    );
    // Among equals nobody goes, nor for who is lower.
    for priority in [50, 0] {
        sim.create(urgent(&format!("more{priority}"), 4, priority, 4));
    }
    assert_eq!(preempted(&sim), BTreeMap::from([("low".into(), 2)]));
    sim.create(urgent("top", 1, 100, 4));
    let told = preempted(&sim);
    assert_eq!(
        told.get("web"),
        None,
        "lower ones are enough on the other node: {told:?}"
    );
    assert!(!on(&sim, "top").contains(&0));
}

#[test]
fn every_replica_gets_its_room_at_once_and_nobody_else_takes_it() {
    let mut sim = cluster(4);
    sim.create(urgent("low", 16, 1, 1));
    let before = sim.now;
    sim.create(urgent("web", 4, 90, 4));
    assert_eq!(on(&sim, "web"), [1, 2, 3, 4]);
    let began = sim
        .tasks("web")
        .iter()
        .filter_map(|t| t.running_at)
        .max()
        .expect("runs");
    assert!(began.since(before) <= std::time::Duration::from_secs(5));
    assert_eq!(preempted(&sim), BTreeMap::from([("low".into(), 16)]), "each once");
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Delete(Key::Service(sim.tasks("web")[0].service))],
    });
    sim.run(20);
    assert_eq!(
        on(&sim, "low").iter().filter(|n| **n > 0).count(),
        16,
        "back when it is gone"
    );
}

#[test]
fn ports_and_generic_resources_are_room_as_well() {
    let mut sim = cluster(0);
    let mut host = node(1, "n1");
    host.description.generic = GenericResources::parse(["gpu=1"]).unwrap();
    put(&mut sim, Object::Node(host.into()));
    let mut low = named("low", 1);
    low.task.resources.reservations.generic = [("gpu".to_owned(), 1)].into();
    sim.create(low.clone());
    let mut web = ServiceSpec {
        name: "web".into(),
        ..low
    };
    web.task.priority = 1;
    sim.create(web);
    assert_eq!((on(&sim, "web"), on(&sim, "low")), (vec![1], vec![0]));
}

#[test]
fn a_task_that_no_room_would_help_preempts_nobody() {
    let mut sim = cluster(2);
    sim.create(urgent("low", 8, 0, 1));
    let mut web = urgent("web", 1, 90, 1);
    web.task.placement.constraints = vec!["node.labels.zone==x".into()];
    sim.create(web);
    sim.create(urgent("large", 1, 90, 5));
    assert!(preempted(&sim).is_empty());
    assert_eq!(on(&sim, "low").iter().filter(|n| **n > 0).count(), 8);
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whoever_goes_for_another_has_a_lower_priority_and_it_comes_to_rest(
            nodes in 1u128..4,
            services in prop::collection::vec((1u32..5, 0u32..4, 1u64..4), 1..6),
        ) {
            let mut sim = cluster(nodes);
            for (at, (replicas, priority, cpus)) in services.iter().enumerate() {
                // It settles after every step: a plan on its own result is empty.
                sim.create(urgent(&format!("s{at}"), *replicas, *priority, *cpus));
            }
            let priorities: BTreeMap<String, u32> = services.iter().enumerate().map(|(at, s)| (format!("s{at}"), s.1)).collect();
            for task in sim.state.tasks() {
                if let Some(by) = task.status.error.strip_prefix("preempted by ") {
                    let by = by.split('.').next().expect("a name");
                    prop_assert!(priorities[by] > task.spec.priority, "{}", task.status.error);
                }
            }
            for id in 1..=nodes {
                prop_assert!(sim.state.usage(NodeId(id)).cpu.0 <= 4_000_000_000);
            }
            // No task waits where one of a lower priority has the room that it needs.
            for waits in live(&sim).into_iter().filter(|t| t.node.is_none() && t.desired == DesiredState::Running) {
                for id in 1..=nodes {
                    let lower: u64 = live(&sim)
                        .into_iter()
                        .filter(|t| t.node == Some(NodeId(id)) && t.spec.priority < waits.spec.priority && t.service != waits.service)
                        .map(|t| t.spec.resources.reservations.cpu.0)
                        .sum();
                    let free = 4_000_000_000 - sim.state.usage(NodeId(id)).cpu.0;
                    prop_assert!(free + lower < waits.spec.resources.reservations.cpu.0, "{} waits", waits.name());
                }
            }
            let slots: BTreeSet<(_, SlotKey)> = live(&sim).iter().map(|t| (t.service, t.slot)).collect();
            let wanted: u32 = services.iter().map(|s| s.0).sum();
            prop_assert_eq!(slots.len(), wanted as usize, "every slot has a task");
        }
    }
}

#[test]
fn what_nodes_use_counts_beside_what_is_reserved() {
    for (name, used, reserved, strategy, wanted) in [
        ("nothing", (0, 0), 0, PlacementStrategy::Spread, 1),
        (
            "CPUs of the first are used",
            (600, 0),
            0,
            PlacementStrategy::Spread,
            2,
        ),
        (
            "memory of the first is used",
            (0, 600),
            0,
            PlacementStrategy::Spread,
            2,
        ),
        (
            "more of the second is reserved",
            (400, 0),
            16,
            PlacementStrategy::Spread,
            1,
        ),
        ("few nodes are wanted", (600, 0), 0, PlacementStrategy::Binpack, 1),
        (
            "the second is the fuller",
            (400, 0),
            16,
            PlacementStrategy::Binpack,
            2,
        ),
    ] {
        let mut sim = sized(&[8, 8]);
        let mut busy = (**sim.state.node(NodeId(1)).expect("there")).clone();
        busy.status.used = NodeUse {
            cpu: used.0,
            memory: used.1,
        };
        put(&mut sim, Object::Node(busy.into()));
        if reserved > 0 {
            let mut other = wants("other", reserved);
            other.task.placement.constraints = vec!["node.hostname==n2".into()];
            sim.create(other);
        }
        let mut web = wants("web", 1);
        web.task.placement.strategy = strategy;
        sim.create(web);
        assert_eq!(on(&sim, "web"), [wanted], "{name}");
    }
}

/// Asks for a rebalance; answers how many tasks are to move.
fn rebalance(sim: &mut Sim, parallelism: u32, dry_run: bool) -> usize {
    let made = crate::admit::rebalance_service(&sim.state, "web", parallelism, dry_run);
    sim.admit(made).keys.len()
}

fn counts(sim: &Sim) -> Vec<usize> {
    let hosts = on(sim, "web");
    let mut counts: Vec<usize> = hosts.chunk_by(|a, b| a == b).map(<[u128]>::len).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn a_rebalance_moves_as_many_as_a_new_node_lacks_a_few_at_once_and_start_first() {
    for parallelism in [1, 3] {
        let mut sim = cluster(3);
        sim.create(named("web", 10));
        put(&mut sim, Object::Node(node(4, "n4").into()));
        assert_eq!(rebalance(&mut sim, parallelism, true), 2, "floor(10 / 4)");
        sim.run(5);
        assert!(!on(&sim, "web").contains(&4), "a dry run moves none");
        assert_eq!(rebalance(&mut sim, parallelism, false), 2);
        let mut most = 0;
        for _ in 0..80 {
            sim.settle();
            let many = live(&sim).len();
            most = most.max(many);
            assert!(sim.running().len() >= 10, "start-first");
            sim.step_agents();
        }
        assert_eq!(
            most,
            10 + (parallelism as usize).min(2),
            "no more at once than asked for"
        );
        assert_eq!(counts(&sim), [2, 2, 3, 3]);
        assert_eq!(
            rebalance(&mut sim, parallelism, false),
            0,
            "the second moves none"
        );
    }
}

/// How many live tasks there are.
fn live_of(sim: &Sim, service: &str) -> usize {
    sim.tasks(service).iter().filter(|t| is_live(t)).count()
}

#[test]
fn nodes_that_join_or_come_back_get_tasks_of_services_that_ask_for_it() {
    let mut sim = cluster(3);
    let asks = |name: &str| ServiceSpec {
        rebalance: Rebalance::OnJoin,
        ..named(name, 8)
    };
    sim.create(asks("web"));
    sim.create(named("other", 8));
    let (mut most, mut fewest) = (0, usize::MAX);
    let mut watched = |sim: &mut Sim| {
        for _ in 0..120 {
            sim.settle();
            most = most.max(live_of(sim, "web"));
            fewest = fewest.min(sim.running().len());
            sim.step_agents();
        }
    };
    put(&mut sim, Object::Node(node(4, "n4").into()));
    watched(&mut sim);
    assert_eq!(counts(&sim), [2, 2, 2, 2]);
    assert!(!on(&sim, "other").contains(&4), "nobody asked");
    sim.node_spec(4, |n| n.availability = Availability::Drain);
    watched(&mut sim);
    assert_eq!(counts(&sim), [2, 3, 3]);
    sim.node_spec(4, |n| n.availability = Availability::Active);
    watched(&mut sim);
    assert_eq!(counts(&sim), [2, 2, 2, 2]);
    assert_eq!((most, fewest), (9, 8), "one at a time, start-first");
    // Another spread is no reason.
    let before: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    sim.node_spec(4, |n| drop(n.labels.insert("rack".into(), "r1".into())));
    sim.run(10);
    assert_eq!(before, sim.running().iter().map(|t| t.id).collect::<Vec<_>>());
}

#[test]
fn a_node_that_joins_gets_tasks_of_a_few_services_at_a_time() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut sim = cluster(2);
    for name in names {
        sim.create(ServiceSpec {
            rebalance: Rebalance::OnJoin,
            ..named(name, 6)
        });
    }
    put(&mut sim, Object::Node(node(3, "n3").into()));
    let mut most = 0;
    for _ in 0..200 {
        sim.settle();
        most = most.max(names.iter().map(|name| live_of(&sim, name)).sum());
        sim.step_agents();
    }
    assert_eq!(most, 6 * 6 + AT_ONCE);
    for name in names {
        assert_eq!(on(&sim, name), [1, 1, 2, 2, 3, 3], "{name}");
    }
}

#[test]
fn what_must_never_run_twice_does_not_move_without_need() {
    let alone = |rebalance| ServiceSpec {
        rebalance,
        task: TaskSpec {
            on_disconnect: OnDisconnect::StopAfter(Duration::from_secs(30)),
            ..named("web", 6).task
        },
        ..named("web", 6)
    };
    let mut sim = cluster(2);
    sim.create(alone(Rebalance::Never));
    put(&mut sim, Object::Node(node(3, "n3").into()));
    let refused =
        crate::admit::rebalance_service(&sim.state, "web", 1, false).expect_err("it may not run twice");
    assert!(refused.to_string().contains("update --force"), "{refused}");
    let refused = crate::admit::create_service(&sim.state, alone(Rebalance::OnJoin), sim.now, &mut sim.ids);
    assert!(refused.is_err_and(|why| why.to_string().contains("stop-after")));
    // Who says that a slot may have two while it is changed has said so of moves.
    let mut twice = alone(Rebalance::OnJoin);
    twice.update.order = UpdateOrder::StartFirst;
    sim.update(|s| *s = twice);
    assert_eq!(rebalance(&mut sim, 1, false), 2);
}

#[test]
fn nobody_makes_room_for_a_task_that_may_stay() {
    let mut sim = sized(&[4, 1]);
    let mut high = wants("web", 4);
    high.mode = ServiceMode::Replicated { replicas: 2 };
    high.task.priority = 50;
    high.task.placement.constraints = vec!["node.labels.keen==1".into()];
    sim.node_spec(1, |n| drop(n.labels.insert("keen".into(), "1".into())));
    sim.create(high);
    let at = |host: &str, mut spec: ServiceSpec| {
        spec.task.placement.constraints = vec![format!("node.hostname=={host}")];
        spec
    };
    sim.create(at("n2", wants("low", 4)));
    sim.run(5);
    assert_eq!((on(&sim, "web"), on(&sim, "low")), (vec![1, 1], vec![2]));
    let before: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    // The second node may take them as well, and is full; the first has no room for one more.
    sim.node_spec(2, |n| drop(n.labels.insert("keen".into(), "1".into())));
    sim.create(at("n1", wants("beside", 8)));
    let first = sim.tasks("web").first().map(|t| Task::clone(t)).expect("one");
    let moving = Task { moving: 1, ..first };
    put(&mut sim, Object::Task(moving.into()));
    sim.run(30);
    assert_eq!(before, sim.running().iter().map(|t| t.id).collect::<Vec<_>>());
    assert_eq!((on(&sim, "low"), on(&sim, "beside")), (vec![2], vec![1]));
}

#[test]
fn moves_that_are_called_off_at_once_are_begun_once() {
    let mut sim = cluster(2);
    sim.create(ServiceSpec {
        rebalance: Rebalance::OnJoin,
        ..named("web", 4)
    });
    let running: Vec<Task> = sim.running().into_iter().cloned().collect();
    sim.run(1);
    // The last successor of each failed.
    for (number, task) in (900..).zip(&running) {
        let mut failed = task.clone();
        failed.id = model::TaskId(number);
        failed.status.state = TaskState::Failed;
        put(&mut sim, Object::Task(failed.into()));
    }
    put(&mut sim, Object::Node(node(3, "n3").into()));
    sim.run(5);
    let after: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    assert_eq!(after, running.iter().map(|t| t.id).collect::<Vec<_>>());
    assert!(sim.tasks("web").iter().all(|t| t.moving == 0));
}

#[test]
fn what_cannot_be_spread_anew_is_refused() {
    let mut sim = cluster(1);
    let asks = |mode, strategy| {
        let mut spec = ServiceSpec {
            rebalance: Rebalance::OnJoin,
            mode,
            ..named("x", 1)
        };
        spec.task.placement.strategy = strategy;
        spec
    };
    let replicated = ServiceMode::Replicated { replicas: 1 };
    for (spec, part) in [
        (
            asks(ServiceMode::Global, PlacementStrategy::Spread),
            "needs mode replicated",
        ),
        (
            asks(replicated, PlacementStrategy::Binpack),
            "does not go with the strategy binpack",
        ),
    ] {
        let refused = crate::admit::create_service(&sim.state, spec, sim.now, &mut sim.ids).expect_err(part);
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

#[test]
fn a_move_whose_successor_does_not_come_is_called_off() {
    let mut sim = cluster(3);
    let mut web = named("web", 8);
    web.update.progress_deadline = Duration::from_secs(60);
    sim.create(web);
    put(&mut sim, Object::Node(node(4, "n4").into()));
    let before: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    assert_eq!(rebalance(&mut sim, 2, false), 2);
    // No agent is heard of.
    for second in 0..70 {
        sim.settle();
        let live = sim.tasks("web").iter().filter(|t| t.desired.is_live()).count();
        assert_eq!(live, if second < 60 { 10 } else { 8 }, "after {second} s");
        sim.now = sim.now + Duration::from_secs(1);
    }
    let after: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    assert_eq!(before, after);
    assert!(sim.tasks("web").iter().all(|t| t.moving == 0));
}

#[test]
fn a_rebalance_heeds_spread_constraints_and_bounds() {
    let mut sim = cluster(0);
    // Zone a has one node, zone b three: half the tasks are in each.
    for (id, zone) in [(1, "a"), (2, "b"), (3, "b"), (4, "b")] {
        let mut host = node(id, &format!("n{id}"));
        host.spec.labels = [("zone".to_owned(), zone.to_owned())].into();
        put(&mut sim, Object::Node(host.into()));
    }
    let mut web = named("web", 6);
    web.task.placement.spread = vec!["node.labels.zone".into()];
    sim.create(web);
    assert_eq!(counts(&sim), [1, 1, 1, 3]);
    assert_eq!(rebalance(&mut sim, 1, false), 0, "it is as it was asked for");
    let mut host = node(5, "n5");
    host.spec.labels = [("zone".to_owned(), "c".to_owned())].into();
    put(&mut sim, Object::Node(host.into()));
    assert_eq!(rebalance(&mut sim, 1, false), 2);
    sim.run(20);
    assert_eq!(
        on(&sim, "web").iter().filter(|n| **n == 5).count(),
        2,
        "a third of them"
    );
    assert_eq!(rebalance(&mut sim, 1, false), 0);
}

#[test]
fn a_task_whose_successor_does_not_run_stays() {
    let mut sim = cluster(1);
    let mut web = named("web", 2);
    web.task.restart.condition = model::spec::RestartCondition::None;
    sim.create(web);
    put(&mut sim, Object::Node(node(2, "n2").into()));
    assert_eq!(rebalance(&mut sim, 1, false), 1);
    sim.settle();
    let fresh = live(&sim)
        .into_iter()
        .find(|t| t.status.state != TaskState::Running)
        .expect("it is made")
        .clone();
    assert_eq!(fresh.node, Some(NodeId(2)));
    let mut failed = fresh.clone();
    failed.status.state = TaskState::Rejected;
    put(&mut sim, Object::Task(failed.into()));
    sim.run(20);
    assert_eq!(on(&sim, "web"), [1, 1]);
    assert!(live(&sim).iter().all(|t| t.moving == 0));
}
