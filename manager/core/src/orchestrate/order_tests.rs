//! Services that wait for one another: at the start, in rollouts, and when they go.

use std::time::Duration;

use model::Level;
use model::object::UpdateState;
use model::spec::{
    DEPENDENCIES_MAX, DependencyCondition, RestartCondition, ServiceMode, ServiceSpec, StackSpec, UpdateOrder,
};

use super::*;
use crate::admit;
use crate::node_health::Unheard;
use crate::orchestrate_tests::{Sim, image, spec};
use crate::plan::{Dirty, plan};
use crate::txn::{Action, Entry, Txn};

use DependencyCondition::{Completed, Healthy, Started};

fn sim() -> Sim {
    let mut sim = Sim::new(2);
    sim.write_at(Level::OURS);
    sim
}

fn named_as(name: &str, spec: ServiceSpec) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        ..spec
    }
}

fn job(image: &str) -> ServiceSpec {
    let mut spec = named_as("db", spec(image, 1));
    spec.mode = ServiceMode::ReplicatedJob {
        completions: 1,
        max_concurrent: 0,
    };
    spec.task.restart.condition = RestartCondition::None;
    spec
}

fn on(service: &str, condition: DependencyCondition) -> Dependency {
    Dependency {
        service: service.into(),
        condition,
        optional: false,
    }
}

fn needs(dependencies: &[Dependency], mut spec: ServiceSpec) -> ServiceSpec {
    spec.task.depends_on = dependencies.to_vec();
    spec
}

fn add(sim: &mut Sim, spec: ServiceSpec) {
    let made = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids);
    sim.admit(made);
}

fn deploy(sim: &mut Sim, services: Vec<ServiceSpec>) -> Result<(), String> {
    let stack = StackSpec {
        namespace: "st".into(),
        services,
        ..StackSpec::default()
    };
    let made = admit::deploy_stack(&sim.state, stack, false, sim.now, &mut sim.ids);
    let made = made.map_err(|refusal| refusal.to_string())?;
    sim.commit(made.txn);
    Ok(())
}

fn change(sim: &mut Sim, name: &str, change: impl FnOnce(&mut ServiceSpec)) -> Result<(), String> {
    let service = named(&sim.state, name).expect("there");
    let mut spec = (*service.spec).clone();
    change(&mut spec);
    let made = admit::update_service(&sim.state, name, None, spec, sim.now);
    let made = made.map_err(|refusal| refusal.to_string())?;
    sim.commit(made.txn);
    Ok(())
}

fn remove(sim: &mut Sim, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let made = admit::remove_services(&sim.state, &names);
    sim.admit(made);
}

fn states(sim: &Sim, name: &str) -> Vec<TaskState> {
    sim.tasks(name).iter().map(|t| t.status.state).collect()
}

fn why(sim: &Sim, name: &str) -> Option<String> {
    let service = named(&sim.state, name).expect("there");
    let mut tasks = sim.tasks(name).into_iter();
    rollout_waits(&sim.state, service).or_else(|| tasks.find_map(|t| task_waits(&sim.state, t)))
}

#[test]
fn each_condition_says_why_it_does_not_hold() {
    let db = |image: &str, replicas| named_as("db", spec(image, replicas));
    let once = |image: &str| {
        let mut once = db(image, 2);
        once.task.restart.condition = RestartCondition::OnFailure;
        once
    };
    let global = || ServiceSpec {
        mode: ServiceMode::Global,
        ..db("a", 0)
    };
    type Row = (
        &'static str,
        ServiceSpec,
        DependencyCondition,
        Option<&'static str>,
    );
    let rows: Vec<Row> = vec![
        ("runs", db("a", 2), Started, None),
        (
            "is not ready yet",
            db("unready", 2),
            Started,
            Some("no task runs"),
        ),
        ("has none", db("a", 0), Started, Some("it has no replicas")),
        (
            "has none to be ready",
            db("a", 0),
            Healthy,
            Some("it has no replicas"),
        ),
        ("all are ready", db("a", 2), Healthy, None),
        ("none is ready", db("unready", 2), Healthy, Some("0 of 2 ready")),
        ("one on each node", global(), Healthy, None),
        ("ended well", once("exit"), Completed, None),
        ("ended well, so it was started", once("exit"), Started, None),
        ("goes on", once("a"), Completed, Some("0 of 2 completed")),
        ("a job is done", job("exit"), Completed, None),
        ("a job was started", job("exit"), Started, None),
        ("a job goes on", job("a"), Completed, Some("0 of 1 completed")),
        (
            "a job failed",
            job("crash"),
            Completed,
            Some("its last run failed in 1 slots"),
        ),
    ];
    for (name, db, condition, want) in rows {
        let mut sim = sim();
        add(&mut sim, db);
        add(&mut sim, needs(&[on("db", condition)], spec("a", 2)));
        sim.run(10);
        let want = want.map(|w| format!("waits for db: {}, {w}", condition.as_str()));
        assert_eq!(why(&sim, "web"), want, "{name}");
        let state = if want.is_some() {
            TaskState::Ready
        } else {
            TaskState::Running
        };
        assert_eq!(
            states(&sim, "web"),
            [state; 2],
            "{name}: prepared, and let run when it holds"
        );
    }
}

#[test]
fn what_never_can_hold_is_refused_and_changes_nothing() {
    let optional = |service: &str| Dependency {
        optional: true,
        ..on(service, Started)
    };
    let many = |n: usize| -> Vec<Dependency> { (0..n).map(|n| optional(&format!("s{n}"))).collect() };
    for (name, dependencies, problem) in [
        (
            "is not there",
            vec![on("nobody", Started)],
            Some("there is no such service"),
        ),
        ("need not be there", vec![optional("nobody")], None),
        ("itself", vec![on("web", Started)], Some("depends on itself")),
        (
            "twice",
            vec![on("db", Started), on("db", Healthy)],
            Some("on db twice"),
        ),
        ("as many as may", many(DEPENDENCIES_MAX), None),
        (
            "more than may",
            many(DEPENDENCIES_MAX + 1),
            Some("more than 32 services"),
        ),
        (
            "restarts for ever",
            vec![on("db", Completed)],
            Some("it never completes"),
        ),
        ("is a job", vec![on("task", Healthy)], Some("is a job")),
        ("waits for it", vec![on("db", Started), on("late", Started)], None),
    ] {
        let mut sim = sim();
        add(&mut sim, named_as("db", spec("a", 1)));
        add(&mut sim, named_as("task", job("exit")));
        add(
            &mut sim,
            needs(&[on("db", Started)], named_as("late", spec("a", 1))),
        );
        let web = needs(&dependencies, spec("a", 1));
        let got = admit::create_service(&sim.state, web.clone(), sim.now, &mut sim.ids);
        let got = got.map(|_| ()).map_err(|r| r.to_string());
        match problem {
            None => assert_eq!(got, Ok(()), "{name}"),
            Some(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{name}: {got:?}"),
        }
        let level = Level::new(2);
        sim.write_at(level);
        let old = admit::create_service(&sim.state, web, sim.now, &mut sim.ids);
        assert!(
            old.is_err(),
            "{name}: not while older builds would start it at once"
        );
    }
}

#[test]
fn circles_are_refused_by_their_names() {
    let mut sim = sim();
    let one = |name: &str, on_it: &str| needs(&[on(on_it, Started)], named_as(name, spec("a", 1)));
    let circle = vec![one("a", "b"), one("b", "c"), one("c", "a")];
    let refused = deploy(&mut sim, circle).unwrap_err();
    assert!(refused.contains("a -> b -> c -> a"), "{refused}");
    assert_eq!(sim.state.service_count(), 0);
    // In any order, where they wait for one another in one direction.
    let line = vec![one("a", "b"), one("b", "c"), named_as("c", spec("a", 1))];
    assert_eq!(deploy(&mut sim, line), Ok(()));
    let refused = change(&mut sim, "c", |s| s.task.depends_on = vec![on("a", Started)]).unwrap_err();
    assert!(refused.contains("c -> a -> b -> c"), "{refused}");
    // A rollback would close it as well.
    change(&mut sim, "a", |s| s.task.depends_on.clear()).unwrap();
    change(&mut sim, "c", |s| s.task.depends_on = vec![on("a", Started)]).unwrap();
    let back = admit::rollback_service(&sim.state, "a", None, None, sim.now);
    assert!(back.is_err_and(|r| r.to_string().contains("a -> b -> c -> a")));
}

#[test]
fn what_fails_later_stops_nothing_and_who_starts_anew_waits_again() {
    let mut sim = sim();
    add(&mut sim, named_as("db", spec("a", 1)));
    add(&mut sim, needs(&[on("db", Healthy)], spec("a", 2)));
    sim.run(10);
    let before: Vec<_> = sim.running().iter().map(|t| t.id).collect();
    assert_eq!(before.len(), 2);
    let none = admit::scale_services(&sim.state, &[("db".into(), 0)]);
    sim.admit(none);
    sim.run(5);
    assert_eq!(sim.running().iter().map(|t| t.id).collect::<Vec<_>>(), before);
    sim.scale(3);
    sim.run(5);
    assert_eq!(sim.running().len(), 3, "beside others it needs nobody");
    remove(&mut sim, &["db"]);
    sim.scale(0);
    sim.run(5);
    sim.scale(1);
    sim.run(5);
    assert_eq!(states(&sim, "web"), [TaskState::Ready]);
    let text = "waits for db: service_healthy, there is no such service";
    assert_eq!(why(&sim, "web").as_deref(), Some(text));
    // By its name: the next one of it will do.
    add(&mut sim, named_as("db", spec("a", 1)));
    sim.run(5);
    assert_eq!(sim.running().len(), 1);
}

#[test]
fn a_rollout_begins_after_those_of_what_it_depends_on() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = sim();
        let mut web = needs(&[on("db", Healthy)], spec("a", 2));
        web.update.order = order;
        web.update.progress_deadline = Duration::from_secs(20);
        let both = |image: &str, web: &ServiceSpec| {
            let mut all = vec![web.clone(), named_as("db", spec(image, 2))];
            all.iter_mut().for_each(|s| s.task.container.image = image.into());
            all
        };
        deploy(&mut sim, both("a", &web)).unwrap();
        sim.run(20);
        assert_eq!(sim.running().len(), 2);
        // The new one is never ready, so its rollout pauses at last; the other's has not begun, and its deadline does not run.
        deploy(&mut sim, both("unready", &web)).unwrap();
        change(&mut sim, "db", |s| {
            s.update.progress_deadline = Duration::from_secs(40)
        })
        .unwrap();
        sim.run(30);
        assert_eq!(sim.images(), ["a", "a"], "{order:?}");
        assert_eq!(
            why(&sim, "web").as_deref(),
            Some("waits for db: updating, update in progress")
        );
        sim.run(30);
        let text = why(&sim, "web").expect("it waits");
        assert!(
            text.starts_with("waits for db: paused, update paused because db."),
            "{text}"
        );
        assert_eq!(sim.rollout(), Some(UpdateState::Updating), "{order:?}");
        assert_eq!(sim.images(), ["a", "a"], "{order:?}");
        deploy(&mut sim, both("b", &web)).unwrap();
        sim.run(60);
        assert_eq!(
            (sim.images(), sim.rollout()),
            (vec!["b", "b"], Some(UpdateState::Completed))
        );
        let done = |name| named(&sim.state, name).and_then(|s| s.update.as_ref()?.completed_at);
        let begun = sim.running().iter().map(|t| t.meta.created_at).min();
        assert!(begun >= done("db"), "{order:?}: {begun:?} {:?}", done("db"));
        assert_eq!(why(&sim, "web"), None);
    }
}

#[test]
fn a_rollout_that_takes_the_dependency_away_waits_no_more() {
    let mut sim = sim();
    add(&mut sim, named_as("db", spec("unready", 1)));
    add(&mut sim, needs(&[on("db", Healthy)], spec("a", 2)));
    sim.run(5);
    assert_eq!(states(&sim, "web"), [TaskState::Ready; 2]);
    change(&mut sim, "web", |s| s.task.depends_on.clear()).unwrap();
    sim.run(20);
    assert_eq!(sim.running().len(), 2);
}

#[test]
fn a_job_that_failed_keeps_others_waiting_until_the_next_run_completes() {
    let mut sim = sim();
    add(&mut sim, job("crash"));
    add(&mut sim, needs(&[on("db", Completed)], spec("a", 1)));
    sim.run(10);
    assert_eq!(states(&sim, "web"), [TaskState::Ready]);
    change(&mut sim, "db", image("exit")).unwrap();
    sim.run(10);
    assert_eq!(sim.running().len(), 1);
}

#[test]
fn the_next_run_of_a_job_lets_a_rollout_end_first() {
    let mut sim = sim();
    let both = |image: &str| {
        let mut job = needs(&[on("web", Healthy)], job("exit"));
        job.task.container.env = vec![format!("V={image}")];
        let mut web = spec(image, 2);
        web.update.order = UpdateOrder::StartFirst;
        vec![web, job]
    };
    deploy(&mut sim, both("a")).unwrap();
    sim.run(10);
    deploy(&mut sim, both("unready")).unwrap();
    change(&mut sim, "web", |s| {
        s.update.progress_deadline = Duration::from_secs(10)
    })
    .unwrap();
    sim.run(8);
    let ran = |sim: &Sim| {
        states(sim, "db")
            .iter()
            .filter(|s| **s == TaskState::Complete)
            .count()
    };
    assert_eq!(ran(&sim), 1);
    assert_eq!(
        why(&sim, "db").as_deref(),
        Some("waits for web: updating, update in progress")
    );
    // One that stopped on the way may stay so for long, and what runs is ready.
    sim.run(20);
    assert_eq!((sim.rollout(), ran(&sim)), (Some(UpdateState::Paused), 2));
}

#[test]
fn services_go_in_reverse_and_those_in_a_circle_all_at_once() {
    let mut sim = sim();
    let names = ["web", "api", "db"];
    let services = vec![
        needs(&[on("api", Started)], spec("a", 2)),
        needs(&[on("db", Healthy)], named_as("api", spec("a", 2))),
        named_as("db", spec("a", 2)),
    ];
    deploy(&mut sim, services).unwrap();
    sim.run(10);
    // One that stays is no reason to wait.
    add(
        &mut sim,
        needs(&[on("db", Started)], named_as("stays", spec("a", 1))),
    );
    sim.run(5);
    remove(&mut sim, &["db", "api", "web"]);
    for gone in names {
        sim.settle();
        for name in names {
            let tasks = sim.tasks(name);
            let asked = tasks.iter().any(|t| !t.desired.is_live());
            assert_eq!(asked, name == gone, "{name} while {gone} goes");
        }
        sim.agents();
        sim.settle();
        assert!(sim.tasks(gone).is_empty(), "{gone}");
    }
    assert_eq!(states(&sim, "stays"), [TaskState::Running]);
}

#[test]
fn tasks_of_a_lost_node_keep_nothing_and_old_specs_in_a_circle_do_not_either() {
    let mut sim = sim();
    add(&mut sim, named_as("db", spec("a", 1)));
    add(&mut sim, needs(&[on("db", Started)], spec("a", 1)));
    sim.run(5);
    let node = sim.running().first().and_then(|t| t.node).expect("placed");
    remove(&mut sim, &["db", "web"]);
    sim.settle();
    assert!(sim.tasks("db").iter().all(|t| t.desired == DesiredState::Running));
    sim.node_seen(node.0, model::object::NodeState::Down);
    sim.settle();
    assert!(
        sim.tasks("db").iter().all(|t| !t.desired.is_live()),
        "nobody is left"
    );

    let mut sim = self::sim();
    add(&mut sim, named_as("db", spec("a", 1)));
    add(&mut sim, needs(&[on("db", Started)], spec("a", 1)));
    sim.run(5);
    // Its rollout stops before the task has changed, so that each has a task that depends on the other.
    change(&mut sim, "web", |s| s.task = spec("missing", 1).task).unwrap();
    sim.run(5);
    change(&mut sim, "db", |s| s.task.depends_on = vec![on("web", Started)]).unwrap();
    sim.run(20);
    remove(&mut sim, &["db", "web"]);
    sim.run(5);
    assert_eq!(sim.state.task_count(), 0);
}

/// A leader that looks only at what changed comes to the same as one that looks at everything.
#[test]
fn changes_of_a_service_wake_those_that_wait_for_it() {
    let mut sim = sim();
    add(&mut sim, named_as("db", spec("unready", 1)));
    add(&mut sim, needs(&[on("db", Healthy)], spec("a", 1)));
    sim.run(5);
    let commit = |sim: &mut Sim, txn: Txn| {
        let mut dirty = Dirty::default();
        let entry = Entry {
            index: sim.state.index() + 1,
            now: sim.now,
            txn,
        };
        dirty.add(&sim.state.apply(&entry).expect("of this state"));
        plan(&sim.state, &dirty, &Unheard::default(), sim.now, &mut sim.ids)
    };
    let db = sim.tasks("db").first().map(|t| (*t).clone()).expect("there");
    let ready = Action::TaskStatus {
        node: db.node.expect("placed"),
        task: db.id,
        status: model::object::TaskStatus {
            state: TaskState::Running,
            ..db.status
        },
    };
    let actions = vec![ready];
    let next = commit(
        &mut sim,
        Txn {
            expect: Vec::new(),
            actions,
        },
    );
    let run = |a: &Action| matches!(a, Action::Put(model::object::Object::Task(t)) if t.service_name == "web" && t.desired == DesiredState::Running);
    assert!(next.txn.actions.iter().any(run), "{next:?}");
    commit(&mut sim, next.txn);
    sim.run(2);
    // Both go: each end of a task of the one wakes the other.
    remove(&mut sim, &["db", "web"]);
    sim.settle();
    let web = sim.tasks("web").first().map(|t| (*t).clone()).expect("there");
    let ended = Action::TaskStatus {
        node: web.node.expect("placed"),
        task: web.id,
        status: model::object::TaskStatus {
            state: TaskState::Shutdown,
            ..web.status
        },
    };
    let mut next = commit(
        &mut sim,
        Txn {
            expect: Vec::new(),
            actions: vec![ended],
        },
    );
    while !next.txn.is_empty() {
        next = commit(&mut sim, next.txn);
    }
    assert!(sim.tasks("db").iter().all(|t| !t.desired.is_live()));
    assert!(sim.tasks("web").is_empty());
}
