//! Rollouts that are steered, have canaries or a deadline, and what is kept of specs.

use super::*;
use model::object::{REVISIONS_BYTES, REVISIONS_MAX, SlotKey};
use model::spec::Autoscale;

use crate::admit::Steer;

impl Sim {
    fn steer(&mut self, steer: Steer) -> Result<(), String> {
        let made = admit::steer_rollout(&self.state, "web", None, steer, self.now);
        let made = made.map_err(|r| r.to_string())?;
        self.admit(Ok(made));
        Ok(())
    }

    fn back_to(&mut self, to: Option<u64>) -> Result<(), String> {
        let made = admit::rollback_service(&self.state, "web", None, to, self.now);
        self.admit(Ok(made.map_err(|r| r.to_string())?));
        Ok(())
    }

    fn message(&self) -> String {
        self.web()
            .update
            .as_ref()
            .map(|u| u.message.clone())
            .unwrap_or_default()
    }
}

#[test]
fn canaries_wait_for_an_operator() {
    for (name, steer, images, state) in [
        ("promoted", Steer::Promote, "bbbbb", UpdateState::Completed),
        ("aborted", Steer::Abort, "aaaaa", UpdateState::RollbackCompleted),
    ] {
        let mut sim = Sim::new(2);
        let mut web = spec("a", 5);
        web.update.canary = 2;
        web.update.parallelism = 3;
        sim.create(web);
        sim.update(image("b"));
        sim.run(60);
        assert_eq!(sim.rollout(), Some(UpdateState::Canary), "{name}");
        assert_eq!(sim.images().concat(), "bbaaa", "{name}");
        assert_eq!(
            sim.message(),
            "2 of 5 slots have the new spec as canaries: promote or abort the rest"
        );
        // What else changes does not change the rest.
        sim.scale(6);
        sim.run(10);
        assert_eq!(
            sim.images().concat(),
            "bbaaaa",
            "{name}: a new slot has the spec before"
        );
        sim.scale(5);
        sim.run(10);
        sim.steer(steer).expect(name);
        sim.run(60);
        assert_eq!(sim.rollout(), Some(state), "{name}");
        assert_eq!(sim.images().concat(), images, "{name}");
    }
}

#[test]
fn a_canary_that_fails_while_it_waits_counts() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 4);
    web.update.canary = 1;
    web.update.monitor = Duration::ZERO;
    web.update.failure_action = FailureAction::Rollback;
    sim.create(web);
    sim.update(image("crash"));
    sim.run(60);
    assert_eq!(
        sim.rollout(),
        Some(UpdateState::RollbackCompleted),
        "{}",
        sim.message()
    );
    assert_eq!(sim.images().concat(), "aaaa");
}

#[test]
fn fewer_slots_than_canaries_need_nobody() {
    let mut sim = Sim::new(1);
    let mut web = spec("a", 2);
    web.update.canary = 2;
    sim.create(web);
    sim.update(image("b"));
    sim.run(60);
    assert_eq!(sim.rollout(), Some(UpdateState::Completed));
}

#[test]
fn a_rollout_is_paused_and_resumed_by_hand() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 4);
    web.update.delay = Duration::from_secs(10);
    sim.create(web);
    sim.update(image("b"));
    sim.run(12);
    sim.steer(Steer::Pause).expect("paused");
    sim.run(60);
    let at = sim.images().concat();
    assert!(at.contains('b') && at.contains('a'), "{at}");
    assert_eq!(sim.rollout(), Some(UpdateState::Paused));
    let again = sim.steer(Steer::Pause).expect_err("twice");
    assert!(again.contains("it stands already"), "{again}");
    sim.steer(Steer::Resume).expect("resumed");
    sim.run(120);
    assert_eq!(sim.images().concat(), "bbbb");
    assert_eq!(sim.rollout(), Some(UpdateState::Completed));
    for steer in [Steer::Pause, Steer::Resume, Steer::Promote, Steer::Abort] {
        let refused = sim.steer(steer).expect_err("nothing is under way");
        assert!(refused.contains("there is none under way"), "{refused}");
    }
}

#[test]
fn a_pause_leaves_no_slot_with_two_tasks() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 2);
    web.update.order = UpdateOrder::StartFirst;
    sim.create(web);
    sim.update(image("slow"));
    sim.run(5);
    sim.steer(Steer::Pause).expect("paused");
    sim.run(20);
    let live = sim.tasks("web").iter().filter(|t| t.desired.is_live()).count();
    assert_eq!((live, sim.images().concat().as_str()), (2, "aa"));
}

#[test]
fn a_task_that_does_not_come_up_in_time_is_a_failure() {
    for (name, action, ratio, state, images) in [
        ("pause", FailureAction::Pause, 0.0, UpdateState::Paused, "aaa"),
        (
            "rollback",
            FailureAction::Rollback,
            0.0,
            UpdateState::RollbackCompleted,
            "aaa",
        ),
        // What cannot be changed keeps its old task, and nobody waits for ever (trap D3).
        (
            "continue",
            FailureAction::Continue,
            0.0,
            UpdateState::Completed,
            "aaa",
        ),
        (
            "a ratio that allows all",
            FailureAction::Pause,
            1.0,
            UpdateState::Completed,
            "aaa",
        ),
    ] {
        for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
            let mut sim = Sim::new(2);
            let mut web = spec("a", 3);
            web.update.progress_deadline = Duration::from_secs(20);
            web.update.failure_action = action;
            web.update.max_failure_ratio = ratio;
            web.update.order = order;
            sim.create(web);
            sim.watch();
            sim.update(image("slow"));
            sim.run(15);
            assert_eq!(sim.rollout(), Some(UpdateState::Updating), "{name}: not yet");
            sim.run(120);
            assert_eq!(sim.rollout(), Some(state), "{name} {order:?}: {}", sim.message());
            assert_eq!(
                (sim.images().concat().as_str(), sim.fewest),
                (images, 3),
                "{name} {order:?}"
            );
            let live = sim.tasks("web").iter().filter(|t| t.desired.is_live()).count();
            assert_eq!(live, 3, "{name} {order:?}: what did not come is ended");
            // Going on is not forgetting (trap D16).
            let counted =
                (state == UpdateState::Completed).then_some("update completed; 3 of 3 slots failed");
            assert!(
                counted.is_none_or(|text| sim.message() == text),
                "{name}: {}",
                sim.message()
            );
            let timed_out = sim.web().update.as_ref().is_some_and(|u| u.timed_out);
            assert_eq!(timed_out, state == UpdateState::Paused, "{name}");
            if state == UpdateState::Paused {
                assert!(
                    sim.message().contains("web.1 did not run within 20s: preparing"),
                    "{}",
                    sim.message()
                );
            }
        }
    }
}

#[test]
fn a_version_that_does_not_stay_up_is_a_failure_once_it_had_its_time() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 6);
    web.task.restart.delay = Duration::from_secs(1);
    web.update.progress_deadline = Duration::from_secs(20);
    sim.create(web);
    // It ends just after its monitor, again and again.
    sim.update(image("late"));
    sim.run(120);
    let update = sim.web().update.clone().expect("a rollout");
    assert_eq!((update.state, update.timed_out), (UpdateState::Paused, true));
    assert!(
        update.message.contains("does not stay up after 20s"),
        "{}",
        update.message
    );
    assert!(sim.images().contains(&"a"), "the rest serves: {:?}", sim.images());
}

#[test]
fn one_node_that_does_not_come_holds_up_no_global_rollout() {
    let mut sim = Sim::new(3);
    let mut web = spec("a", 1);
    web.mode = ServiceMode::Global;
    web.update.progress_deadline = Duration::from_secs(10);
    web.update.max_failure_ratio = 0.4;
    web.task.resources.reservations.memory = Bytes(1 << 30);
    web.update.order = UpdateOrder::StartFirst;
    sim.create(web);
    // No room for two beside each other on one of them.
    let mut small = (**sim.state.node(NodeId(1)).expect("there")).clone();
    small.description.memory = Bytes(3 << 29);
    sim.commit(Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Node(small.into()))],
    });
    sim.update(image("b"));
    sim.run(90);
    assert_eq!(sim.rollout(), Some(UpdateState::Completed), "{}", sim.message());
    assert_eq!(sim.message(), "update completed; 1 of 3 slots failed");
    assert_eq!(sim.images().concat(), "abb");
}

#[test]
fn specs_are_kept_and_can_be_gone_back_to() {
    let mut sim = Sim::new(2);
    sim.create(spec("a", 2));
    for next in ["b", "c", "d"] {
        sim.update(image(next));
        sim.run(60);
    }
    // Neither is a revision, and neither is undone (trap D5).
    sim.scale(3);
    sim.update(|s| {
        s.labels.insert("team".into(), "shop".into());
    });
    sim.run(20);
    let numbers = |sim: &Sim| sim.web().history.iter().map(|r| r.number).collect::<Vec<_>>();
    assert_eq!((numbers(&sim), sim.web().spec_version), (vec![1, 2, 3], 4));
    sim.back_to(Some(2)).expect("known");
    sim.run(60);
    assert_eq!(
        (sim.images().concat().as_str(), sim.web().spec_version),
        ("bbb", 5)
    );
    assert_eq!(
        sim.web().made.as_ref().map(|m| m.cause.as_str()),
        Some("rollback to 2")
    );
    let scaled = admit::scale_services(&sim.state, &[("web".into(), 3)]);
    let writes = |a: &Action| matches!(a, Action::Put(Object::Service(s)) if !s.history.is_empty());
    let written = scaled.expect("scaled").txn.actions;
    assert!(
        !written.iter().any(writes),
        "what was is not written again and again"
    );
    // And back again, as two rollbacks do in Docker.
    sim.back_to(None).expect("the one before");
    sim.run(60);
    assert_eq!(sim.images().concat(), "ddd");
    for (to, why) in [(6, "has revision 6 now"), (99, "has no revision 99")] {
        let refused = sim.back_to(Some(to)).expect_err("no");
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn history_is_bounded_in_number_and_size() {
    let mut sim = Sim::new(1);
    sim.create(spec("a", 0));
    for n in 0..30 {
        sim.update(image(&format!("i{n}")));
        sim.run(1);
    }
    let numbers: Vec<u64> = sim.web().history.iter().map(|r| r.number).collect();
    assert_eq!(numbers, (11..=30).collect::<Vec<_>>(), "the last {REVISIONS_MAX}");
    let large = "x".repeat(REVISIONS_BYTES / 3);
    for n in 0..6 {
        sim.update(|s| s.task.container.env = vec![format!("N={n}"), format!("A={large}")]);
        sim.run(1);
    }
    let weight: usize = sim.web().history.iter().map(|r| r.spec.weight()).sum();
    assert!(
        weight <= REVISIONS_BYTES && sim.web().history.len() == 2,
        "{weight}"
    );
}

#[test]
fn a_second_change_of_a_rollout_gone_wrong_goes_back_to_what_worked() {
    let mut sim = Sim::new(2);
    let mut web = spec("a", 2);
    web.update.failure_action = FailureAction::Rollback;
    sim.create(web);
    sim.update(|s| {
        s.update.failure_action = FailureAction::Pause;
        s.task.container.image = "missing".into();
    });
    sim.run(60);
    assert_eq!(sim.rollout(), Some(UpdateState::Paused));
    sim.update(|s| {
        s.update.failure_action = FailureAction::Rollback;
        s.task.container.image = "crash".into();
    });
    sim.run(120);
    assert_eq!(
        sim.rollout(),
        Some(UpdateState::RollbackCompleted),
        "{}",
        sim.message()
    );
    assert_eq!(sim.images().concat(), "aa");
    let causes: Vec<&str> = (sim.web().history.iter())
        .map(|r| r.made.cause.as_str())
        .collect();
    assert_eq!(causes, ["create", "update", "update"]);
    assert_eq!(
        sim.web().made.as_ref().map(|m| m.cause.as_str()),
        Some("automatic rollback to 1")
    );
}

#[test]
fn who_asked_is_written_down_and_nobody_else_is() {
    let mut sim = Sim::new(1);
    let made = admit::create_service(&sim.state, spec("a", 1), sim.now, &mut sim.ids);
    let made = made.map(|m| m.signed("root@h1", sim.now));
    sim.admit(made);
    sim.run(5);
    // Of what is no new spec nobody is the author.
    let scaled = admit::scale_services(&sim.state, &[("web".into(), 2)]).map(|m| m.signed("eve@h2", sim.now));
    sim.admit(scaled);
    sim.run(5);
    assert_eq!(sim.web().made.as_ref().map(|m| m.by.as_str()), Some("root@h1"));
    sim.update(image("missing"));
    sim.run(5);
    assert_eq!(sim.web().history[0].made.by, "root@h1");
    assert_eq!(sim.web().made.as_ref().map(|m| m.by.as_str()), Some(""));
    assert!(sim.tasks("web").iter().all(|t| t.slot != SlotKey::Replica(0)));
}

#[test]
fn a_cluster_of_older_builds_gets_nothing_that_they_would_lose() {
    let mut sim = Sim::new(1);
    sim.write_at(Level::FIRST);
    let refused = |spec: ServiceSpec| {
        let mut ids = Counter::default();
        admit::create_service(&sim.state, spec, sim.now, &mut ids).map_err(|r| r.to_string())
    };
    let mut canary = spec("a", 1);
    canary.update.canary = 1;
    let mut deadline = spec("a", 1);
    deadline.rollback.progress_deadline = Duration::from_secs(5);
    for asks in [canary, deadline] {
        let refused = refused(asks).expect_err("older builds do not know of it");
        assert!(
            refused.contains("E_LEVEL") && refused.contains("--level newest"),
            "{refused}"
        );
    }
    sim.create(spec("a", 2));
    sim.update(image("missing"));
    sim.run(20);
    assert!(sim.web().history.is_empty() && sim.web().made.is_none());
    let refused = sim
        .steer(Steer::Resume)
        .expect_err("older managers would not know");
    assert!(refused.contains("E_LEVEL"), "{refused}");
    sim.back_to(None).expect("as ever");
    sim.run(20);
    assert_eq!(sim.images().concat(), "aa");
}

#[test]
fn what_docker_takes_without_a_word_is_refused() {
    let mut sim = Sim::new(1);
    let mut back = spec("a", 1);
    back.rollback.failure_action = FailureAction::Rollback;
    let mut over = spec("a", 1);
    over.task.placement.spread = vec!["zone".into()];
    let mut unknown = spec("a", 1);
    unknown.task.placement.constraints = vec!["node.colour==red".into()];
    let mut canary = spec("a", 1);
    canary.rollback.canary = 1;
    let mut hasty = spec("a", 1);
    hasty.update.progress_deadline = Duration::from_millis(999);
    for (asked, part) in [
        (back, "a rollback cannot be rolled back"),
        (over, "cannot be spread over"),
        (unknown, "node.colour"),
        (canary, "a rollback has no canaries"),
        (hasty, "shorter than a second"),
    ] {
        let refused = admit::create_service(&sim.state, asked, sim.now, &mut sim.ids).expect_err(part);
        assert!(refused.to_string().contains(part), "{part}: {refused}");
    }
}

#[test]
fn a_rollout_that_had_its_time_and_is_resumed_has_it_again_and_no_more() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let mut web = spec("a", 2);
        web.update.progress_deadline = Duration::from_secs(20);
        web.update.order = order;
        sim.create(web);
        sim.update(image("unready"));
        sim.run(40);
        assert_eq!(sim.rollout(), Some(UpdateState::Paused), "{order:?}");
        sim.steer(Steer::Resume).expect("resumed");
        sim.run(10);
        assert_eq!(
            sim.rollout(),
            Some(UpdateState::Updating),
            "{order:?}: it has its time"
        );
        sim.run(30);
        assert_eq!(
            sim.rollout(),
            Some(UpdateState::Paused),
            "{order:?}: and not for ever"
        );
    }
}

#[test]
fn what_fails_fast_and_goes_on_holds_up_no_other_slot_and_ends() {
    let mut sim = Sim::new(3);
    let mut web = spec("a", 1);
    web.mode = ServiceMode::Global;
    web.update.failure_action = FailureAction::Continue;
    web.update.progress_deadline = Duration::from_secs(120);
    sim.create(web);
    sim.update(image("missing"));
    sim.run(400);
    assert_eq!(sim.rollout(), Some(UpdateState::Completed), "{}", sim.message());
    assert_eq!(sim.message(), "update completed; 3 of 3 slots failed");
    assert_eq!(sim.images().concat(), "aaa");
}

#[test]
fn who_chooses_the_replicas_stays_when_the_spec_goes_back_and_begins_with_what_there_is() {
    let rule = |min, max| {
        Some(Autoscale {
            min,
            max,
            cpu: Some(50),
            memory: None,
            scale_down_after: Duration::from_secs(60),
        })
    };
    let mut sim = Sim::new(2);
    sim.create(spec("a", 6));
    sim.update(image("b"));
    sim.run(60);
    // A file without a number, deployed for the first time with a rule.
    sim.update(|s| {
        s.mode = ServiceMode::Replicated { replicas: 1 };
        s.autoscale = rule(2, 20);
    });
    sim.run(10);
    assert_eq!(sim.running().len(), 6, "what there is");
    sim.back_to(None).expect("back");
    sim.run(60);
    assert_eq!(sim.images().concat(), "aaaaaa");
    assert_eq!(
        sim.web().spec.autoscale,
        rule(2, 20),
        "the rule is not the spec's past (trap D5)"
    );
    let mut asked = (*sim.web().spec).clone();
    asked.mode = ServiceMode::Replicated { replicas: 8 };
    let admitted = admit::update_service(&sim.state, "web", None, asked, sim.now).expect("taken");
    assert!(
        admitted
            .warnings
            .iter()
            .any(|w| w.contains("8 replicas are not taken")),
        "{:?}",
        admitted.warnings
    );
}
