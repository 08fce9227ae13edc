//! Rollouts and tasks that are not ready.

use std::time::Duration;

use model::Level;
use model::object::{Object, Task, UpdateState};
use model::spec::{Healthcheck, NetProbe, UpdateOrder};
use model::task_state::{DesiredState, TaskState};

use crate::admit;
use crate::orchestrate_tests::{Sim, image, spec};
use crate::txn::{Action, Txn};

/// A task of the service is ready no longer, or is again.
fn say(sim: &mut Sim, task: &Task, unready: bool) {
    let mut status = task.status.clone();
    (status.unready, status.at) = (unready, sim.now);
    let report = Action::TaskStatus {
        node: task.node.expect("a node"),
        task: task.id,
        status,
    };
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![report],
    });
}

#[test]
fn what_is_never_ready_takes_the_place_of_nothing_more() {
    for (name, order, old) in [
        ("one slot is handed over before", UpdateOrder::StopFirst, 2),
        ("nothing is stopped", UpdateOrder::StartFirst, 3),
    ] {
        let mut sim = Sim::new(2);
        let mut spec = spec("a", 3);
        spec.update.order = order;
        sim.create(spec);
        sim.watch();
        sim.update(image("unready"));
        sim.run(590);
        assert_eq!(sim.rollout(), Some(UpdateState::Updating), "{name}");
        // It has had its time (trap D3).
        sim.run(30);
        assert_eq!(sim.images(), vec!["a"; old], "{name}");
        assert_eq!(sim.fewest, old, "{name}");
        assert_eq!(sim.rollout(), Some(UpdateState::Paused), "{name}");
        // A good one goes on from there.
        sim.update(image("b"));
        sim.run(60);
        assert_eq!(sim.images(), ["b"; 3], "{name}");
        assert_eq!(sim.rollout(), Some(UpdateState::Completed), "{name}");
    }
}

#[test]
fn a_rollout_waits_while_a_new_task_is_not_ready() {
    let mut sim = Sim::new(2);
    let mut spec = spec("a", 3);
    spec.update.monitor = Duration::from_secs(1);
    sim.create(spec);
    sim.update(image("b"));
    let new = |sim: &Sim| {
        let new = sim.running().into_iter().find(|t| t.spec.container.image == "b");
        new.cloned()
    };
    while new(&sim).is_none() {
        sim.run(1);
    }
    let first = new(&sim).expect("one");
    say(&mut sim, &first, true);
    sim.run(100);
    assert_eq!(sim.images().iter().filter(|i| **i == "b").count(), 1);
    let after = sim.state.task(first.id).expect("it is left alone");
    assert_eq!(
        (after.desired, after.status.state),
        (DesiredState::Running, TaskState::Running)
    );
    assert!(!after.is_ready());
    let after = Task::clone(after);
    say(&mut sim, &after, false);
    sim.run(60);
    assert_eq!(sim.images(), ["b"; 3]);
    assert_eq!(sim.rollout(), Some(UpdateState::Completed));
}

#[test]
fn what_was_ready_once_has_its_time_again_and_no_more() {
    let mut sim = Sim::new(2);
    let mut spec = spec("a", 3);
    spec.update.monitor = Duration::from_secs(1);
    spec.update.delay = Duration::from_secs(300);
    spec.update.progress_deadline = Duration::from_secs(60);
    sim.create(spec);
    sim.update(image("b"));
    sim.run(120);
    let new = |sim: &Sim| {
        let new = sim.running().into_iter().find(|t| t.spec.container.image == "b");
        new.cloned().expect("one")
    };
    // Long after it was begun, for less than the deadline.
    let first = new(&sim);
    say(&mut sim, &first, true);
    sim.run(50);
    let first = new(&sim);
    say(&mut sim, &first, false);
    sim.run(30);
    assert_eq!(sim.rollout(), Some(UpdateState::Updating));
    let first = new(&sim);
    say(&mut sim, &first, true);
    sim.run(61);
    assert_eq!(sim.rollout(), Some(UpdateState::Paused));
    let update = sim.web().update.clone().expect("one");
    assert!(update.timed_out);
    assert!(
        update.message.contains("because web.1 was not ready for 1m"),
        "{}",
        update.message
    );
    assert_eq!(sim.images(), ["b", "a", "a"], "nothing of it is stopped");
}

#[test]
fn a_task_that_is_not_ready_is_neither_replaced_nor_counted() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 2));
    let before: Vec<Task> = sim.running().into_iter().cloned().collect();
    say(&mut sim, &before[0], true);
    sim.run(100);
    let ids = |tasks: Vec<&Task>| tasks.iter().map(|t| t.id).collect::<Vec<_>>();
    assert_eq!(ids(sim.tasks("web")), ids(before.iter().collect()));
    assert_eq!(sim.web().count(sim.tasks("web")), (1, 2));
}

#[test]
fn checks_that_older_hosts_do_not_know_need_a_level() {
    let mut sim = Sim::new(1);
    let tcp = Healthcheck {
        net: Some(NetProbe::Tcp { port: 80 }),
        ..Healthcheck::default()
    };
    let mut ready = spec("a", 1);
    ready.task.container.readiness = Some(tcp.clone());
    let mut healthy = spec("a", 1);
    healthy.task.container.healthcheck = Some(tcp);
    for level in [Level::FIRST, Level::HEALTH] {
        let mut cluster = model::object::Cluster::clone(sim.state.cluster().expect("a cluster"));
        cluster.level = level;
        sim.commit(Txn {
            expect: Vec::new(),
            actions: vec![Action::Put(Object::Cluster(cluster.into()))],
        });
        for (spec, part) in [(&ready, "are not ready"), (&healthy, "check nothing")] {
            let made = admit::create_service(&sim.state, spec.clone(), sim.now, &mut sim.ids);
            let said = made.err().map(|r| r.to_string()).unwrap_or_default();
            assert_eq!(said.is_empty(), level == Level::HEALTH, "{said}");
            assert!(level == Level::HEALTH || said.contains(part), "{said}");
        }
    }
}
