//! What follows from what tasks use, told as load that comes and goes.

use model::spec::SCALE_DOWN_AFTER;

use super::*;
use crate::orchestrate_tests::{Sim, spec};

#[test]
fn the_number_follows_the_use_and_not_its_noise() {
    // (sum of what is used in per cent, target, not measured, replicas) → needed
    for (name, sum, target, missing, replicas, want) in [
        ("twice the target", 200, 50, 0, 2, 4),
        ("a little more is noise", 109, 50, 0, 2, 2),
        ("more than a tenth is not", 111, 50, 0, 2, 3),
        ("a little less is noise", 91, 50, 0, 2, 2),
        ("half of it", 100, 50, 0, 4, 2),
        ("nothing at all", 0, 50, 0, 4, 0),
        (
            "who is not measured is idle when more are asked for",
            200,
            50,
            2,
            4,
            4,
        ),
        ("and busy when fewer are", 20, 50, 2, 4, 3),
    ] {
        assert_eq!(needed(sum, target, missing, replicas), want, "{name}");
    }
}

struct Load {
    sim: Sim,
    scaler: Scaler,
    now: Timestamp,
}

impl Load {
    fn new(min: u32, max: u32, replicas: u32) -> Self {
        let mut sim = Sim::new(2);
        let mut web = spec("a", replicas);
        web.autoscale = Some(Autoscale {
            min,
            max,
            cpu: Some(50),
            memory: None,
            scale_down_after: SCALE_DOWN_AFTER,
        });
        sim.create(web);
        Self {
            sim,
            scaler: Scaler::default(),
            now: Timestamp(0),
        }
    }

    fn replicas(&self) -> u32 {
        let web = self.sim.state.services().next().expect("there");
        let ServiceMode::Replicated { replicas } = web.spec.mode else {
            panic!("replicated");
        };
        replicas
    }

    /// Tasks use so much of a CPU together, for some time; answers the numbers of replicas that it came by.
    fn load(&mut self, percent: u64, seconds: u64) -> Vec<u32> {
        let mut numbers = vec![self.replicas()];
        for _ in 0..seconds.div_ceil(REPORT_EVERY.as_secs()) {
            let running: Vec<_> = self.sim.running().iter().map(|t| (t.id, t.node)).collect();
            for (id, node) in &running {
                let cpu = NanoCpus(percent * 10_000_000 / running.len() as u64);
                let usage = Usage {
                    cpu,
                    memory: Bytes(0),
                };
                self.scaler
                    .say(&self.sim.state, node.expect("runs"), [(*id, usage)], self.now);
            }
            let txn = self.scaler.review(&self.sim.state, self.now, self.sim.now);
            if !txn.is_empty() {
                self.sim.commit(txn);
            }
            self.sim.run(REPORT_EVERY.as_secs());
            self.now = self.now + REPORT_EVERY;
            if numbers.last() != Some(&self.replicas()) {
                numbers.push(self.replicas());
            }
        }
        numbers
    }
}

#[test]
fn load_brings_replicas_at_once_and_their_absence_takes_them_in_time() {
    let mut load = Load::new(2, 8, 2);
    assert_eq!(load.load(400, 30), [2, 6, 8], "not all at once");
    assert_eq!(load.load(400, 600), [8], "8 at most, whatever they use");
    assert_eq!(load.load(100, 280), [8], "not yet");
    assert_eq!(load.load(100, 60), [8, 2]);
    let scaled = load
        .sim
        .state
        .services()
        .next()
        .and_then(|s| s.scaled.clone())
        .expect("it was");
    assert_eq!((scaled.from, scaled.to), (8, 2));
    assert_eq!(scaled.why, "cpu 12 % of 50 % wanted");
    // One look with more load keeps what there is for as long again.
    load.load(400, 30);
    load.load(100, 200);
    assert_eq!(load.load(400, 5), [8]);
    assert_eq!(load.load(100, 280), [8]);
}

#[test]
fn a_new_leader_takes_nothing_away_before_it_has_watched() {
    let mut load = Load::new(1, 8, 6);
    load.load(50, 250);
    load.scaler = Scaler::default();
    assert_eq!(load.load(50, 290), [6]);
    assert_eq!(load.load(50, 30), [6, 1]);
}

#[test]
fn nothing_follows_from_nothing() {
    let mut load = Load::new(2, 8, 4);
    // Nobody is measured: nothing is known.
    load.now = load.now + Duration::from_secs(10_000);
    let at = load.sim.now;
    assert!(load.scaler.review(&load.sim.state, load.now, at).is_empty());
    // What a node says of others' tasks is not believed.
    let task = load.sim.running()[0].clone();
    let busy = Usage {
        cpu: NanoCpus(9_000_000_000),
        memory: Bytes(0),
    };
    load.scaler
        .say(&load.sim.state, NodeId(77), [(task.id, busy)], load.now);
    assert!(load.scaler.review(&load.sim.state, load.now, at).is_empty());
    // And what it said long ago counts no more.
    let node = task.node.expect("runs");
    load.scaler
        .say(&load.sim.state, node, [(task.id, busy)], load.now);
    let later = load.now + Duration::from_secs(17);
    assert!(load.scaler.review(&load.sim.state, later, at).is_empty());
}

#[test]
fn the_bounds_hold_at_once_and_a_stopped_service_stays_so() {
    for (from, want) in [(1, 2), (2, 2), (8, 8), (9, 8), (0, 0)] {
        let mut load = Load::new(2, 8, 4);
        // As from before it was scaled by the cluster.
        let id = load.sim.state.services().next().expect("there").id;
        let mut web = (**load.sim.state.service(id).expect("there")).clone();
        let mut spec = (*web.spec).clone();
        spec.mode = ServiceMode::Replicated { replicas: from };
        web.spec = spec.into();
        load.sim.commit(Txn {
            expect: Vec::new(),
            actions: vec![Action::Put(Object::Service(web.into()))],
        });
        assert_eq!(load.load(25 * u64::from(from), 30).last(), Some(&want), "{from}");
    }
}
