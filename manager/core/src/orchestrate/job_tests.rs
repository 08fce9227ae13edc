//! Jobs: told as stories, and held against what they promise through random changes.

use std::time::Duration;

use model::Level;
use model::job::JobRun;
use model::object::{Availability, Object};
use model::spec::{RUNS_ACTIVE_MAX, RestartCondition, Schedule, UpdateConfig};

use super::*;
use crate::admit;
use crate::orchestrate_tests::{Sim, spec};
use crate::txn::{Action, Txn};

fn sim(nodes: u128) -> Sim {
    let mut sim = Sim::new(nodes);
    let mut cluster = (**sim.state.cluster().expect("a cluster")).clone();
    cluster.level = Level::OURS;
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Cluster(cluster.into()))],
    });
    sim
}

fn job(image: &str, completions: u32, max_concurrent: u32) -> ServiceSpec {
    let mut spec = spec(image, 1);
    spec.mode = ServiceMode::ReplicatedJob {
        completions,
        max_concurrent,
    };
    spec.task.restart.condition = RestartCondition::OnFailure;
    spec.task.restart.delay = Duration::from_secs(1);
    spec
}

fn every(cron: &str, concurrency: Concurrency) -> Option<Schedule> {
    Some(Schedule {
        cron: cron.into(),
        concurrency,
        history: 5,
        ..Schedule::default()
    })
}

fn create(sim: &mut Sim, spec: ServiceSpec) {
    let made = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids);
    sim.admit(made);
}

fn web(sim: &Sim) -> &Service {
    sim.state
        .services()
        .find(|s| s.spec.name == "web")
        .expect("there")
}

fn status(sim: &Sim) -> &JobStatus {
    web(sim).job.as_ref().expect("a job")
}

fn last(sim: &Sim) -> &JobRun {
    status(sim).runs.last().expect("a run")
}

/// Tasks of a run that may have a process.
fn processes(sim: &Sim, run: u64) -> usize {
    let tasks = sim.tasks("web").into_iter();
    let up = |t: &&Task| t.status.state >= TaskState::Starting && !t.status.state.is_terminal();
    tasks.filter(|t| t.iteration == run).filter(up).count()
}

/// Lets time pass; answers the most processes a run had at a time.
fn run(sim: &mut Sim, seconds: u64) -> usize {
    let mut most = 0;
    for _ in 0..seconds * 4 {
        sim.settle();
        sim.agents();
        sim.settle();
        most = most.max(processes(sim, status(sim).iteration));
        sim.now = sim.now + Duration::from_millis(250);
    }
    sim.settle();
    most
}

fn ended(sim: &Sim, state: TaskState) -> usize {
    let tasks = sim.tasks("web").into_iter();
    tasks.filter(|t| t.status.state == state).count()
}

#[test]
fn a_job_runs_so_many_times_never_more_at_once_and_scaling_runs_only_what_is_more() {
    let mut sim = sim(3);
    create(&mut sim, job("exit", 20, 3));
    assert_eq!(run(&mut sim, 40), 3, "never more, and as many as may");
    assert_eq!(ended(&sim, TaskState::Complete), 20);
    let all: Vec<_> = sim.tasks("web").iter().map(|t| t.id).collect();
    assert_eq!(
        (last(&sim).state, last(&sim).completed, all.len()),
        (RunState::Completed, 20, 20)
    );
    // D15: only what is more runs, and what runs is not touched.
    sim.scale(25);
    run(&mut sim, 10);
    let more: Vec<_> = sim
        .tasks("web")
        .iter()
        .map(|t| t.id)
        .filter(|id| !all.contains(id))
        .collect();
    assert_eq!((more.len(), ended(&sim, TaskState::Complete)), (5, 25));
    assert_eq!(
        (last(&sim).state, last(&sim).completed),
        (RunState::Completed, 25)
    );
    sim.update(|s| drop(s.labels.insert("a".into(), "b".into())));
    run(&mut sim, 5);
    assert_eq!(
        (sim.tasks("web").len(), status(&sim).iteration),
        (25, 1),
        "a label runs nothing"
    );
    sim.update(|s| s.task.force_update += 1);
    run(&mut sim, 60);
    assert_eq!(
        (status(&sim).iteration, last(&sim).completed),
        (2, 25),
        "all once more"
    );
    let first: Vec<&str> = status(&sim).runs.iter().map(|r| r.state.as_str()).collect();
    assert_eq!(first, ["completed", "completed"]);
    sim.scale(4);
    run(&mut sim, 5);
    assert!(
        sim.tasks("web").iter().all(|t| t.slot <= SlotKey::Replica(4)),
        "closed slots take their history with them"
    );
}

#[test]
fn a_change_of_what_runs_ends_the_run_under_way() {
    let mut sim = sim(2);
    create(&mut sim, job("a", 4, 2));
    run(&mut sim, 5);
    assert_eq!((processes(&sim, 1), last(&sim).state), (2, RunState::Active));
    sim.update(|s| s.task.container.image = "exit".into());
    assert!(run(&mut sim, 20) <= 2);
    assert_eq!(
        (processes(&sim, 1), last(&sim).completed, last(&sim).iteration),
        (0, 4, 2)
    );
    assert_eq!(status(&sim).runs[0].state, RunState::Replaced);
}

#[test]
fn a_job_fails_for_good_when_its_policy_says_so() {
    type Edit = fn(&mut ServiceSpec);
    let rows: [(&str, &str, Edit, usize); 4] = [
        (
            "never again",
            "crash",
            |s| s.task.restart.condition = RestartCondition::None,
            2,
        ),
        ("two attempts", "crash", |s| s.task.restart.max_attempts = 2, 6),
        ("no image", "missing", |s| s.task.restart.max_attempts = 1, 4),
        (
            "ended well, whatever the condition",
            "exit",
            |s| s.task.restart.condition = RestartCondition::None,
            2,
        ),
    ];
    for (name, image, edit, tasks) in rows {
        let mut sim = sim(2);
        let mut spec = job(image, 2, 1);
        edit(&mut spec);
        create(&mut sim, spec);
        assert_eq!(
            run(&mut sim, 40).min(1),
            usize::from(image != "missing"),
            "{name}"
        );
        let (state, failed) = match image {
            "exit" => (RunState::Completed, 0),
            _ => (RunState::Failed, 2),
        };
        assert_eq!((last(&sim).state, last(&sim).failed), (state, failed), "{name}");
        assert_eq!(sim.tasks("web").len(), tasks, "{name}");
    }
}

#[test]
fn a_global_job_completes_on_every_node_that_takes_tasks() {
    let mut sim = sim(3);
    sim.node_spec(2, |n| n.availability = Availability::Drain);
    let mut spec = job("exit", 0, 0);
    spec.mode = ServiceMode::GlobalJob;
    create(&mut sim, spec);
    run(&mut sim, 10);
    assert_eq!((last(&sim).state, last(&sim).completed), (RunState::Completed, 2));
    assert_eq!(web(&sim).tally(sim.tasks("web")), Some((2, 2)));
    sim.node_spec(2, |n| n.availability = Availability::Active);
    run(&mut sim, 10);
    assert_eq!(
        (last(&sim).completed, sim.tasks("web").len()),
        (3, 3),
        "only where it did not run yet"
    );
}

#[test]
fn a_drained_node_hands_its_slots_over_and_counts_no_attempt() {
    let mut sim = sim(2);
    let mut spec = job("a", 2, 2);
    spec.task.restart.max_attempts = 1;
    create(&mut sim, spec);
    run(&mut sim, 5);
    sim.node_spec(1, |n| n.availability = Availability::Drain);
    assert!(run(&mut sim, 5) <= 2);
    assert_eq!((processes(&sim, 1), last(&sim).state), (2, RunState::Active));
}

#[test]
fn a_schedule_that_is_taken_out_leaves_no_run_of_an_older_spec() {
    let mut sim = sim(1);
    let mut spec = job("missing", 1, 0);
    spec.schedule = every("*/10 * * * * *", Concurrency::Forbid);
    create(&mut sim, spec);
    run(&mut sim, 15);
    // What is under way goes on with what it began with: the next run has the new image.
    sim.update(|s| s.task.container.image = "exit".into());
    run(&mut sim, 2);
    assert_eq!((status(&sim).iteration, last(&sim).state), (1, RunState::Active));
    sim.update(|s| s.schedule = None);
    run(&mut sim, 15);
    assert_eq!(
        (status(&sim).iteration, last(&sim).state),
        (2, RunState::Completed)
    );
    // Of one that is as it was asked for nothing is run again.
    sim.update(|s| drop(s.labels.insert("team".into(), "shop".into())));
    run(&mut sim, 15);
    assert_eq!(status(&sim).iteration, 2);
}

#[test]
fn a_run_that_came_to_nothing_stands_in_no_ones_way_once_its_job_was_changed() {
    for (image, replaced) in [("missing", true), ("a", false)] {
        let mut sim = sim(1);
        let mut spec = job(image, 1, 0);
        spec.schedule = every("*/10 * * * * *", Concurrency::Forbid);
        create(&mut sim, spec);
        run(&mut sim, 25);
        assert_eq!(
            (status(&sim).iteration, status(&sim).missed),
            (1, 1),
            "{image}: it is tried again as long as nobody changes it"
        );
        sim.update(|s| s.task.container.image = "exit".into());
        run(&mut sim, 12);
        let runs = &status(&sim).runs;
        if replaced {
            let states: Vec<_> = runs.iter().map(|r| r.state).collect();
            assert_eq!(states, [RunState::Replaced, RunState::Completed], "{image}");
        } else {
            assert_eq!((runs.len(), last(&sim).state), (1, RunState::Active), "{image}");
        }
    }
    // The same by hand, without a schedule that fires.
    let mut sim = sim(1);
    let mut spec = job("missing", 1, 0);
    spec.schedule = every("0 0 1 1 *", Concurrency::Forbid);
    create(&mut sim, spec);
    let by_hand = |sim: &mut Sim| {
        admit::run_job(&sim.state, "web", sim.now)
            .map(|a| sim.commit(a.txn))
            .is_ok()
    };
    assert!(by_hand(&mut sim));
    run(&mut sim, 5);
    assert!(!by_hand(&mut sim), "it is under way");
    sim.update(|s| s.task.container.image = "exit".into());
    assert!(by_hand(&mut sim));
    run(&mut sim, 5);
    assert_eq!(
        (status(&sim).iteration, last(&sim).state),
        (2, RunState::Completed)
    );
}

#[test]
fn a_schedule_fires_once_for_each_time_and_once_for_those_that_were_missed() {
    let mut sim = sim(2);
    let mut spec = job("exit", 2, 0);
    // `START` is 1,000 s after 1970 began.
    spec.schedule = every("*/10 * * * * *", Concurrency::Forbid);
    create(&mut sim, spec);
    assert_eq!(
        (status(&sim).iteration, status(&sim).next_at),
        (0, Some(Timestamp(1_010_000)))
    );
    run(&mut sim, 35);
    let due: Vec<_> = status(&sim)
        .runs
        .iter()
        .filter_map(|r| r.due_at)
        .map(|t| t.0)
        .collect();
    assert_eq!(due, [1_010_000, 1_020_000, 1_030_000]);
    assert_eq!(status(&sim).missed, 0);
    // Nobody leads for a minute; who comes then begins the last one only.
    sim.now = sim.now + Duration::from_secs(60);
    run(&mut sim, 1);
    assert_eq!(
        (status(&sim).iteration, last(&sim).due_at),
        (4, Some(Timestamp(1_090_000)))
    );
    run(&mut sim, 100);
    assert_eq!(status(&sim).runs.len(), 5, "its history has a bound");
    // Another schedule counts from now on, and makes up for nothing.
    let before = status(&sim).iteration;
    sim.update(|s| s.schedule = every("0 0 1 1 *", Concurrency::Forbid));
    run(&mut sim, 20);
    assert_eq!(status(&sim).iteration, before);
    assert_eq!(status(&sim).next_at, Some(Timestamp(365 * 86_400_000)));
}

#[test]
fn who_is_too_late_begins_nothing() {
    let mut sim = sim(1);
    let mut spec = job("exit", 1, 0);
    spec.schedule = every("* * * * *", Concurrency::Forbid);
    if let Some(s) = &mut spec.schedule {
        s.starting_deadline = Duration::from_secs(10);
    }
    create(&mut sim, spec);
    sim.now = Timestamp(1_020_000 + 11_000);
    sim.settle();
    assert_eq!((status(&sim).iteration, status(&sim).missed), (0, 1));
    sim.now = Timestamp(1_080_000 + 9_000);
    sim.settle();
    assert_eq!((status(&sim).iteration, status(&sim).missed), (1, 1));
}

#[test]
fn runs_that_meet_do_as_the_schedule_says() {
    for (concurrency, image, iterations, active, missed) in [
        (Concurrency::Forbid, "a", 1, 1, 29),
        (Concurrency::Replace, "a", 30, 1, 0),
        (
            Concurrency::Allow,
            "a",
            RUNS_ACTIVE_MAX as u64,
            RUNS_ACTIVE_MAX,
            20,
        ),
    ] {
        let mut sim = sim(2);
        let mut spec = job(image, 2, 1);
        spec.schedule = every("*/10 * * * * *", concurrency);
        create(&mut sim, spec);
        run(&mut sim, 305);
        let status = status(&sim);
        let found = (status.iteration, status.active().count(), status.missed);
        assert_eq!(found, (iterations, active, missed), "{concurrency:?}");
        for run in status.active() {
            assert_eq!(
                processes(&sim, run.iteration),
                1,
                "{concurrency:?}: run {}",
                run.iteration
            );
        }
        let live = sim.tasks("web").iter().filter(|t| is_live(t)).count();
        assert_eq!(
            live, active,
            "{concurrency:?}: runs that were replaced have ended"
        );
    }
}

#[test]
fn a_job_is_run_by_hand_unless_it_runs() {
    let mut sim = sim(1);
    create(&mut sim, job("exit", 2, 0));
    let run_now = |sim: &mut Sim| admit::run_job(&sim.state, "web", sim.now).map(|a| sim.commit(a.txn));
    let refused = run_now(&mut sim).expect_err("it runs").to_string();
    assert!(refused.contains("run 1 is under way"), "{refused}");
    run(&mut sim, 10);
    run_now(&mut sim).expect("it does not run");
    run(&mut sim, 10);
    assert_eq!(
        (
            last(&sim).iteration,
            last(&sim).completed,
            ended(&sim, TaskState::Complete)
        ),
        (2, 2, 4)
    );
    let mut other = spec("a", 1);
    other.name = "plain".into();
    create(&mut sim, other);
    let refused = admit::run_job(&sim.state, "plain", sim.now)
        .expect_err("no job")
        .to_string();
    assert!(refused.contains("only jobs"), "{refused}");
}

#[test]
fn what_a_job_cannot_be_is_said() {
    type Edit = fn(&mut ServiceSpec);
    let rows: [(&str, Edit); 9] = [
        ("for ever", |s| s.task.restart.condition = RestartCondition::Any),
        ("no rollout", |s| s.update.parallelism = 2),
        ("no rollout", |s| s.rollback.delay = Duration::from_secs(1)),
        ("10001 replicas", |s| {
            s.mode = ServiceMode::ReplicatedJob {
                completions: 10_001,
                max_concurrent: 1,
            }
        }),
        ("is for jobs", |s| {
            s.mode = ServiceMode::Replicated { replicas: 1 };
            s.schedule = every("* * * * *", Concurrency::Forbid);
        }),
        ("write minute", |s| {
            s.schedule = every("* * *", Concurrency::Forbid)
        }),
        ("never fires", |s| {
            s.schedule = every("0 0 31 2 *", Concurrency::Forbid)
        }),
        ("history of 0", |s| {
            s.schedule = every("* * * * *", Concurrency::Forbid);
            s.schedule.iter_mut().for_each(|s| s.history = 0);
        }),
        ("longer than a year", |s| {
            s.schedule = every("* * * * *", Concurrency::Forbid);
            s.schedule
                .iter_mut()
                .for_each(|s| s.starting_deadline = Duration::from_secs(366 * 86_400));
        }),
    ];
    let mut sim = sim(1);
    for (part, edit) in rows {
        let mut spec = job("exit", 2, 0);
        edit(&mut spec);
        let refused = admit::create_service(&sim.state, spec, sim.now, &mut sim.ids).expect_err(part);
        assert!(refused.to_string().contains(part), "{part}: {refused}");
    }
    create(&mut sim, job("exit", 1, 0));
    let back = admit::rollback_service(&sim.state, "web", None, None, sim.now).expect_err("a job");
    assert!(back.to_string().contains("no rollout"), "{back}");
    let mut other = (*web(&sim).spec).clone();
    other.mode = ServiceMode::GlobalJob;
    let other = admit::update_service(&sim.state, "web", None, other, sim.now).expect_err("another mode");
    assert!(other.to_string().contains("cannot change"), "{other}");
    let mut old = Sim::new(1);
    old.write_at(Level::FIRST);
    let refused =
        admit::create_service(&old.state, job("exit", 1, 0), old.now, &mut old.ids).expect_err("level 1");
    assert!(
        refused.to_string().contains("swarm update --level newest"),
        "{refused}"
    );
    assert_eq!(UpdateConfig::default(), job("exit", 1, 0).update);
}

/// What a job promises, at every step of a random story.
#[derive(Default)]
struct Promises {
    /// Completed tasks by run and slot.
    completed: BTreeMap<(u64, SlotKey), BTreeSet<model::TaskId>>,
    due: BTreeMap<u64, Timestamp>,
}

impl Promises {
    fn hold(&mut self, sim: &Sim, seed: u64) {
        let (service, status) = (web(sim), status(sim));
        for task in sim
            .tasks("web")
            .iter()
            .filter(|t| t.status.state == TaskState::Complete)
        {
            let known = self.completed.entry((task.iteration, task.slot)).or_default();
            known.insert(task.id);
            assert_eq!(
                known.len(),
                1,
                "seed {seed}: {:?} of run {} completed twice",
                task.slot,
                task.iteration
            );
        }
        for run in &status.runs {
            let Some(due) = run.due_at else { continue };
            let known = self.due.insert(run.iteration, due);
            assert!(known.is_none_or(|k| k == due));
            let others = self.due.range(..run.iteration).next_back();
            assert!(
                others.is_none_or(|(_, at)| *at < due),
                "seed {seed}: {due:?} fired twice"
            );
        }
        // Also with what is left of a run that was replaced; runs that may go on at the same time count for themselves.
        let most = service.spec.mode.concurrent().unwrap_or(u32::MAX) as usize;
        let together = service
            .spec
            .schedule
            .as_ref()
            .is_some_and(|s| s.concurrency == Concurrency::Allow);
        let each: Vec<usize> = (1..=status.iteration).map(|run| processes(sim, run)).collect();
        let found = if together {
            each.iter().max().copied()
        } else {
            Some(each.iter().sum())
        };
        assert!(found.is_none_or(|n| n <= most), "seed {seed}: {each:?} processes");
        let live = sim.tasks("web").into_iter().filter(|t| is_live(t));
        let slots: BTreeSet<_> = live.clone().map(|t| (t.iteration, t.slot)).collect();
        assert_eq!(live.count(), slots.len(), "seed {seed}: one live task a slot");
    }
}

#[test]
fn a_job_keeps_its_promises_whatever_is_asked_meanwhile() {
    for seed in 0..60 {
        let mut rng = crate::orchestrate::restart::tests::Rng(seed);
        let mut sim = sim(3);
        let mut spec = job(
            rng.pick(&["exit", "exit", "crash", "a"]),
            rng.number(8),
            1 + rng.number(3),
        );
        spec.task.restart.max_attempts = rng.below(3);
        let rules = [Concurrency::Forbid, Concurrency::Allow, Concurrency::Replace];
        if rng.below(2) == 0 {
            spec.schedule = every("*/7 * * * * *", rng.pick(&rules));
        }
        create(&mut sim, spec);
        let mut promises = Promises::default();
        for _ in 0..40 {
            match rng.below(9) {
                0 => {
                    let replicas = rng.number(8);
                    sim.scale(replicas);
                    // A slot that is closed is forgotten, and begins anew when it is opened again.
                    let kept = |slot: &SlotKey| *slot <= SlotKey::Replica(replicas);
                    promises.completed.retain(|(_, slot), _| kept(slot));
                    sim.settle();
                }
                1 => sim.update(|s| s.task.force_update += 1),
                2 => sim.update(|s| s.task.container.image = "exit".into()),
                3 => {
                    let node = u128::from(1 + rng.below(3));
                    let to = rng.pick(&[Availability::Active, Availability::Drain, Availability::Pause]);
                    sim.node_spec(node, |n| n.availability = to);
                }
                4 => {
                    let _ = admit::run_job(&sim.state, "web", sim.now).map(|a| sim.commit(a.txn));
                }
                5 => sim.now = sim.now + Duration::from_secs(rng.below(30)),
                _ => {}
            }
            for _ in 0..8 {
                sim.settle();
                sim.agents();
                sim.settle();
                promises.hold(&sim, seed);
                sim.now = sim.now + Duration::from_millis(250);
            }
        }
        // Once nobody changes anything, an image that ends ends every run.
        (1..=3).for_each(|n| sim.node_spec(n, |n| n.availability = Availability::Active));
        sim.update(|s| {
            s.task.container.image = "exit".into();
            s.task.force_update += 1;
            s.schedule = None;
        });
        run(&mut sim, 60);
        let state = last(&sim).state;
        assert_eq!(state, RunState::Completed, "seed {seed}: {:?}", status(&sim).runs);
        assert_eq!(
            status(&sim).active().count(),
            0,
            "seed {seed}: the others were replaced"
        );
    }
}

#[test]
fn a_global_job_is_done_only_where_it_ran_to_its_end() {
    // A typo in a constraint is no success.
    let mut nowhere = sim(2);
    let mut spec = job("exit", 0, 0);
    spec.mode = ServiceMode::GlobalJob;
    spec.task.placement.constraints = vec!["node.labels.disk==sdd".into()];
    create(&mut nowhere, spec.clone());
    run(&mut nowhere, 10);
    assert_eq!(last(&nowhere).state, RunState::Active, "it waits for a node");
    // Nor is a node that was lost in the middle.
    let mut lost = sim(2);
    spec.task.placement.constraints.clear();
    spec.task.container.image = "a".into();
    create(&mut lost, spec);
    run(&mut lost, 5);
    for node in [1, 2] {
        lost.node_spec(node, |n| n.availability = Availability::Drain);
    }
    run(&mut lost, 10);
    assert_eq!((last(&lost).state, last(&lost).failed), (RunState::Failed, 2));
}
