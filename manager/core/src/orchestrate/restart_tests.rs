//! The restart policy against a model of what it says: counters that are told everything, where the policy itself sees
//! only the tasks that are kept.

use model::object::{Meta, Object, SlotKey};
use model::spec::{RestartPolicy, TaskSpec};
use model::task_state::DesiredState;
use model::{ServiceId, TaskId};

use super::*;
use crate::orchestrate_tests::{Sim, spec};
use crate::reap;
use crate::state::{Scratch, State};

/// Numbers that are the same for the same seed (`SplitMix64`).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }

    pub(crate) fn number(&mut self, below: u32) -> u32 {
        u32::try_from(self.below(below.into())).unwrap_or_default()
    }

    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        let many = u32::try_from(all.len()).unwrap_or(1);
        all[self.number(many) as usize]
    }
}

/// How a task of the slot ended.
#[derive(Debug, Clone, Copy)]
struct End {
    state: TaskState,
    ran: Duration,
    at: Timestamp,
}

/// What the policy says, in its own words (features.md §1.6, row 19), of everything that ever happened in the slot.
#[derive(Default)]
struct Told {
    /// When tasks were made that followed one which ended by itself.
    restarts: Vec<Timestamp>,
    in_row: u32,
    last: Option<End>,
}

impl Told {
    fn begins(&mut self, at: Timestamp) {
        if self.last.is_some_and(|end| end.state != TaskState::Shutdown) {
            self.restarts.push(at);
            self.in_row += 1;
        }
    }

    fn ends(&mut self, policy: &RestartPolicy, end: End) {
        if end.ran >= policy.reset_after {
            self.in_row = 0;
        }
        self.last = Some(end);
    }

    fn says(&self, policy: &RestartPolicy) -> Restart {
        let Some(end) = self.last.filter(|end| end.state != TaskState::Shutdown) else {
            return Restart::Now;
        };
        let wanted = match policy.condition {
            RestartCondition::Any => true,
            RestartCondition::OnFailure => end.state != TaskState::Complete,
            RestartCondition::None => false,
        };
        let counts = |at: &&Timestamp| policy.window.is_zero() || **at >= end.at - policy.window;
        let used = self.restarts.iter().filter(counts).count() as u64;
        if !wanted || (policy.max_attempts > 0 && used >= policy.max_attempts) {
            return Restart::Never;
        }
        let mut wait = policy.delay;
        for n in 0..self.in_row {
            let twice = if n == 0 && wait.is_zero() {
                Duration::from_secs(1)
            } else {
                wait * 2
            };
            wait = if policy.max_delay > policy.delay {
                twice.min(policy.max_delay)
            } else {
                wait
            };
        }
        if end.state == TaskState::Rejected {
            Restart::NotBefore(end.at + wait.max(Duration::from_secs(1)))
        } else {
            Restart::At(end.at + wait)
        }
    }
}

fn policy(rng: &mut Rng) -> RestartPolicy {
    let delay = Duration::from_secs(rng.pick(&[0, 1, 1, 5]));
    let max_delay = match rng.below(3) {
        0 => Duration::ZERO,
        _ => delay + Duration::from_secs(rng.below(300)),
    };
    RestartPolicy {
        condition: rng.pick(&[RestartCondition::Any, RestartCondition::OnFailure]),
        delay,
        max_attempts: rng.pick(&[0, 0, 1, 3, 12]),
        window: Duration::from_secs(rng.pick(&[0, 0, 30, 200])),
        max_delay,
        reset_after: Duration::from_secs(rng.pick(&[10, 60])),
    }
}

fn task(service: ServiceId, n: u64, made: Timestamp, end: End, spec: &Arc<TaskSpec>) -> Task {
    Task {
        id: TaskId(u128::from(n) + 1),
        meta: Meta {
            created_at: made,
            ..Meta::default()
        },
        service,
        service_name: "web".into(),
        slot: SlotKey::Replica(1),
        spec: spec.clone(),
        spec_version: 1,
        node: Some(model::NodeId(1)),
        desired: DesiredState::Shutdown,
        run_at: made,
        status: model::object::TaskStatus {
            state: end.state,
            ..model::object::TaskStatus::new(end.at)
        },
        unready_at: None,
        running_at: (end.state != TaskState::Rejected).then(|| end.at - end.ran),
        ended_at: Some(end.at),
        fence: 0,
        addresses: Vec::new(),
        host_ports: Vec::new(),
        iteration: 0,
        granted: Default::default(),
        moving: 0,
    }
}

/// One slot through a hundred ends; answers how many restarts there were.
fn history(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let policy = policy(&mut rng);
    let mut sim = Sim::new(1);
    sim.create(spec("a", 0));
    let service = sim.state.services().next().expect("it was made").clone();
    let spec = Arc::new(TaskSpec {
        restart: policy.clone(),
        ..service.spec.task.clone()
    });
    let mut state: State = sim.state.clone();
    let mut told = Told::default();
    let mut now = Timestamp(1_000_000);
    for n in 0..100 {
        told.begins(now);
        let made = now;
        let longest = rng.pick(&[2, 8, 90]);
        let ran = Duration::from_secs(rng.below(longest));
        now = now + ran + Duration::from_millis(rng.below(900));
        // In a window an attempt counts by its task's age, and what the manager stopped is kept less long.
        let stops = policy.window.is_zero();
        let ends = [
            TaskState::Failed,
            TaskState::Failed,
            TaskState::Failed,
            TaskState::Complete,
            TaskState::Rejected,
            if stops {
                TaskState::Shutdown
            } else {
                TaskState::Failed
            },
        ];
        let state_seen = rng.pick(&ends);
        let ran = if state_seen == TaskState::Rejected {
            Duration::ZERO
        } else {
            ran
        };
        let end = End {
            state: state_seen,
            ran,
            at: now,
        };
        told.ends(&policy, end);
        let mut scratch = Scratch::new(&state);
        scratch.put(Object::Task(Arc::new(task(service.id, n, made, end, &spec))));
        reap::history(&mut scratch, service.id);
        state = (*scratch).clone();
        let mut tasks: Vec<Arc<Task>> = state.tasks_of_service(service.id).cloned().collect();
        tasks.sort_by_key(|t| (t.meta.created_at, t.id));
        let says = restart_after(&service, &tasks);
        assert_eq!(
            says,
            told.says(&policy),
            "seed {seed}, end {n}, {end:?}, {policy:?}, {} kept",
            tasks.len()
        );
        now = match says {
            Restart::Never => return told.restarts.len(),
            Restart::Now => now + Duration::from_millis(1),
            Restart::At(at) | Restart::NotBefore(at) => at.max(now + Duration::from_millis(1)),
        };
    }
    told.restarts.len()
}

#[test]
fn what_is_kept_of_a_slot_is_enough_to_say_what_the_policy_says() {
    let restarts: usize = (0..500).map(history).sum();
    assert!(restarts > 5_000, "{restarts}: most seeds were over at once");
}
