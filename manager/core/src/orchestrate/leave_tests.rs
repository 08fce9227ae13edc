//! Nodes that are drained or relabelled under services, as tables.

use std::time::Duration;

use model::Level;
use model::object::{Availability, Drain, Key, NodeState, Object};
use model::spec::{OnDisconnect, RestartCondition, ServiceMode, UpdateOrder};
use model::task_state::TaskState;

use crate::admit::{self, RefusalKind};
use crate::orchestrate_tests::{Sim, spec};
use crate::txn::{Action, Txn};

fn put(sim: &mut Sim, object: Object) {
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(object)],
    });
}

fn drain(sim: &mut Sim, id: u128, how: Option<Drain>) {
    sim.node_spec(id, |n| (n.availability, n.drain) = (Availability::Drain, how));
}

fn until(seconds: u64) -> Option<Drain> {
    Some(Drain {
        order: UpdateOrder::StartFirst,
        deadline: Some(Duration::from_secs(seconds)),
        deadline_at: None,
    })
}

/// Live tasks on a node.
fn left(sim: &Sim, id: u128) -> usize {
    let tasks = sim.state.tasks_of_node(model::NodeId(id));
    tasks
        .filter(|t| t.desired.is_live() && !t.status.state.is_terminal())
        .count()
}

/// Six tasks on three nodes, two on each.
fn six(parallelism: u32) -> Sim {
    let mut sim = Sim::new(3);
    let mut web = spec("a", 6);
    web.update.parallelism = parallelism;
    sim.create(web);
    assert_eq!(sim.nodes(), [1, 1, 2, 2, 3, 3]);
    sim.watch();
    sim
}

#[test]
fn a_drained_node_gives_its_tasks_away_one_after_the_other_or_several_at_once() {
    for (parallelism, most) in [(1, 7), (2, 8), (0, 8)] {
        let mut sim = six(parallelism);
        drain(&mut sim, 1, None);
        sim.run(30);
        assert_eq!(sim.nodes(), [2, 2, 2, 3, 3, 3], "parallelism {parallelism}");
        assert_eq!((sim.fewest, sim.most), (6, most), "parallelism {parallelism}");
    }
}

#[test]
fn a_drain_stops_first_where_that_is_asked_for_or_the_level_knows_no_other() {
    for (name, how, level) in [
        ("asked for", Some(Drain::default()), Level::OURS),
        ("an older level", None, Level::new(2)),
    ] {
        let mut sim = six(1);
        sim.write_at(level);
        drain(&mut sim, 1, how);
        sim.run(30);
        assert_eq!(sim.nodes(), [2, 2, 2, 3, 3, 3], "{name}");
        assert_eq!(sim.fewest, 4, "{name}");
    }
}

#[test]
fn what_must_never_run_twice_is_stopped_before_it_starts_elsewhere() {
    for (order, fewest, most) in [(UpdateOrder::StopFirst, 4, 6), (UpdateOrder::StartFirst, 6, 7)] {
        let mut sim = Sim::new(3);
        let mut web = spec("a", 6);
        web.task.on_disconnect = OnDisconnect::StopAfter(Duration::from_secs(30));
        web.update.order = order;
        sim.create(web);
        sim.watch();
        drain(&mut sim, 1, None);
        sim.run(30);
        assert_eq!(sim.nodes(), [2, 2, 2, 3, 3, 3], "{order:?}");
        assert_eq!((sim.fewest, sim.most), (fewest, most), "{order:?}");
    }
}

#[test]
fn what_nobody_can_take_stays_until_the_deadline() {
    for (how, at_5, at_15) in [(until(10), 1, 0), (None, 1, 1), (Some(Drain::default()), 0, 0)] {
        let mut sim = Sim::new(2);
        let mut web = spec("a", 2);
        web.task.placement.max_replicas_per_node = 1;
        sim.create(web);
        drain(&mut sim, 1, how);
        sim.run(5);
        assert_eq!(left(&sim, 1), at_5, "{how:?}");
        let waits = sim.tasks("web").into_iter().find(|t| t.node.is_none());
        let why = &waits.expect("one waits").status.error;
        assert!(why.contains("max replicas per node"), "{why}");
        sim.run(10);
        assert_eq!(left(&sim, 1), at_15, "{how:?}");
        // One that is called off leaves all as it was.
        sim.node_spec(1, |n| n.availability = Availability::Active);
        sim.run(20);
        assert_eq!(sim.nodes(), [1, 2], "{how:?}");
        let live = sim.tasks("web").into_iter().filter(|t| t.desired.is_live());
        assert_eq!(live.count(), 2, "{how:?}");
        assert_eq!(sim.state.node(model::NodeId(1)).expect("there").spec.drain, None);
    }
}

#[test]
fn a_drain_is_called_off_by_activation() {
    let mut sim = six(1);
    drain(&mut sim, 1, None);
    sim.settle();
    let all = |sim: &Sim| {
        sim.tasks("web")
            .into_iter()
            .filter(|t| t.desired.is_live())
            .count()
    };
    assert_eq!(all(&sim), 7, "one is on its way");
    sim.node_spec(1, |n| n.availability = Availability::Active);
    sim.run(20);
    assert_eq!((all(&sim), left(&sim, 1)), (6, 2));
    assert_eq!(sim.fewest, 6);
}

#[test]
fn what_serves_nobody_is_stopped_at_once() {
    type Row = (&'static str, fn(&mut model::spec::ServiceSpec));
    let rows: [Row; 3] = [
        ("a task that does not run yet", |s| {
            s.task.container.image = "slow".into()
        }),
        ("one that is not ready", |s| {
            s.task.container.image = "unready".into()
        }),
        ("one of a global service", |s| s.mode = ServiceMode::Global),
    ];
    for (name, change) in rows {
        let mut sim = Sim::new(2);
        let mut web = spec("a", 2);
        change(&mut web);
        sim.create(web);
        assert_eq!(left(&sim, 1), 1, "{name}: before");
        drain(&mut sim, 1, None);
        sim.settle();
        assert_eq!(left(&sim, 1), 0, "{name}");
    }
}

#[test]
fn a_drained_node_that_is_lost_is_lost() {
    let mut sim = six(1);
    drain(&mut sim, 1, None);
    sim.settle();
    sim.node_seen(1, NodeState::Down);
    sim.run(20);
    assert_eq!(sim.nodes(), [2, 2, 2, 3, 3, 3]);
}

#[test]
fn a_label_that_goes_takes_no_task_down() {
    for (level, fewest) in [(Level::OURS, 4), (Level::new(2), 2)] {
        let mut sim = Sim::new(2);
        for id in [1, 2] {
            sim.node_spec(id, |n| drop(n.labels.insert("disk".into(), "ssd".into())));
        }
        let mut web = spec("a", 4);
        web.task.placement.constraints = vec!["node.labels.disk==ssd".into()];
        sim.create(web);
        sim.write_at(level);
        sim.watch();
        sim.node_spec(1, |n| n.labels.clear());
        sim.run(30);
        assert_eq!(sim.nodes(), [2; 4], "{level}");
        assert_eq!(sim.fewest, fewest, "{level}");
    }
}

#[test]
fn scaling_down_and_a_rollout_end_what_moves() {
    type Row = (&'static str, fn(&mut Sim), Vec<u128>);
    let rows: [Row; 2] = [
        (
            "scaled down",
            |s| s.update(|w| w.mode = ServiceMode::Replicated { replicas: 2 }),
            vec![2, 2],
        ),
        (
            "a new image",
            |s| s.update(|w| w.task.container.image = "b".into()),
            vec![2, 2, 2, 3, 3, 3],
        ),
    ];
    for (name, change, want) in rows {
        let mut sim = six(1);
        drain(&mut sim, 1, None);
        sim.settle();
        change(&mut sim);
        sim.run(90);
        assert_eq!(sim.nodes(), want, "{name}");
        let live = sim.tasks("web").into_iter().filter(|t| t.desired.is_live());
        assert_eq!(live.count(), want.len(), "{name}");
    }
}

#[test]
fn a_successor_that_fails_is_made_again_no_sooner_than_the_policy_says() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 2);
    web.task.restart.delay = Duration::from_secs(5);
    web.task.restart.condition = RestartCondition::Any;
    sim.create(web);
    drain(&mut sim, 1, None);
    sim.settle();
    let fresh = sim
        .tasks("web")
        .into_iter()
        .find(|t| t.status.state != TaskState::Running);
    let mut failed = fresh.expect("it is made").clone();
    failed.status.state = TaskState::Failed;
    failed.ended_at = Some(sim.now);
    put(&mut sim, Object::Task(failed.into()));
    sim.run(4);
    assert_eq!(sim.nodes(), [1, 2], "it waits, and the old one serves");
    sim.run(4);
    assert_eq!(sim.nodes(), [2, 2]);
}

#[test]
fn a_plan_that_was_made_before_a_node_was_activated_is_stale() {
    let mut sim = six(1);
    drain(&mut sim, 1, None);
    let late = sim.plan();
    assert!(
        late.txn
            .expect
            .iter()
            .any(|(key, _)| *key == Key::Node(model::NodeId(1)))
    );
    assert!(late.txn.actions.len() == 1, "one task at a time: {late:?}");
}

#[test]
fn a_deadline_has_bounds_and_stands_until_it_is_asked_for_anew() {
    let mut sim = six(1);
    let mut asked = |how: Drain, level: Level| {
        sim.write_at(level);
        let mut spec = sim.state.node(model::NodeId(1)).expect("there").spec.clone();
        (spec.availability, spec.drain) = (Availability::Drain, Some(how));
        let made = admit::update_node(&sim.state, "n1", None, spec, &Default::default(), sim.now);
        made.map(drop).map_err(|r| (r.kind(), r.to_string()))
    };
    let of = |deadline| Drain {
        order: UpdateOrder::StartFirst,
        deadline: Some(deadline),
        deadline_at: None,
    };
    let stops = Drain {
        order: UpdateOrder::StopFirst,
        ..of(Drain::DEADLINE_MIN)
    };
    for (how, level, problem) in [
        (of(Drain::DEADLINE_MIN), Level::OURS, None),
        (of(Drain::DEADLINE_MAX), Level::OURS, None),
        (
            of(Duration::from_millis(999)),
            Level::OURS,
            Some("is not between"),
        ),
        (
            of(Drain::DEADLINE_MAX + Duration::from_millis(1)),
            Level::OURS,
            Some("is not between"),
        ),
        (stops, Level::OURS, Some("no deadline")),
        (of(Drain::DEADLINE_MIN), Level::new(2), Some("E_LEVEL")),
    ] {
        match (asked(how, level), problem) {
            (Ok(()), None) => {}
            (Err((kind, text)), Some(part)) => {
                assert!(text.contains(part), "{text}");
                assert_eq!(kind, RefusalKind::Invalid);
            }
            (got, _) => panic!("{how:?} at {level}: {got:?}"),
        }
    }
    sim.write_at(Level::OURS);
    let at = |sim: &Sim| {
        let drain = sim.state.node(model::NodeId(1)).expect("there").spec.drain;
        drain.and_then(|d| d.deadline_at).expect("it has one")
    };
    drain(&mut sim, 1, until(60));
    let first = at(&sim);
    assert_eq!(first, sim.now + Duration::from_secs(60));
    sim.run(2);
    sim.node_spec(1, |n| drop(n.labels.insert("rack".into(), "7".into())));
    assert_eq!(at(&sim), first, "another change leaves it");
    drain(&mut sim, 1, until(60));
    assert_eq!(at(&sim), sim.now + Duration::from_secs(60));
}
