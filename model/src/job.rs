//! What is remembered of the runs of a job.

use crate::Timestamp;
use crate::object::{Service, SlotKey, Task};
use crate::spec::{Concurrency, HISTORY_DEFAULT, HISTORY_MAX, RUNS_ACTIVE_MAX, ServiceMode, ServiceSpec};
use crate::task_state::TaskState;

use std::collections::BTreeSet;

/// The runs of a job, and when the next one is due.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobStatus {
    /// Number of the newest run; it only grows.
    pub iteration: u64,
    /// Runs under way and the last ones that ended, the newest last.
    pub runs: Vec<JobRun>,
    /// When the schedule fires next: fires up to here were dealt with, each by the entry that moved this on.
    pub next_at: Option<Timestamp>,
    /// Times at which no run began: another was under way, or the deadline was past.
    pub missed: u64,
}

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobRun {
    /// Its number, which its tasks carry.
    pub iteration: u64,
    /// When it was due by the schedule; absent: by a change of the service, or by hand.
    pub due_at: Option<Timestamp>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How far it is.
    pub state: RunState,
    /// Slots that completed, once it ended.
    pub completed: u32,
    /// Slots that failed for good, once it ended.
    pub failed: u32,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunState {
    /// Under way.
    #[default]
    Active,
    /// Every slot completed.
    Completed,
    /// At least one slot failed for good.
    Failed,
    /// Another one took its place.
    Replaced,
}

impl RunState {
    /// Its name in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Replaced => "replaced",
        }
    }
}

impl JobStatus {
    /// Begins a run, unless the job's rule for runs at the same time forbids it; `completed` says how many slots of a run
    /// did so far, for one that is replaced.
    pub fn begin(
        &mut self,
        spec: &ServiceSpec,
        concurrency: Concurrency,
        due_at: Option<Timestamp>,
        now: Timestamp,
        completed: impl Fn(u64) -> u32,
    ) -> bool {
        let active = self.active().count();
        match concurrency {
            Concurrency::Forbid if active > 0 => return false,
            Concurrency::Allow if active >= RUNS_ACTIVE_MAX => return false,
            Concurrency::Replace => self.replace(now, |_| true, completed),
            Concurrency::Forbid | Concurrency::Allow => {}
        }
        self.iteration += 1;
        self.runs.push(JobRun {
            iteration: self.iteration,
            due_at,
            started_at: now,
            ..JobRun::default()
        });
        self.forget(spec);
        true
    }

    /// Ends runs under way for the sake of another one; `completed` says how many slots of each did so far.
    pub fn replace(&mut self, now: Timestamp, which: impl Fn(u64) -> bool, completed: impl Fn(u64) -> u32) {
        let active = self.runs.iter_mut().filter(|r| r.ended_at.is_none());
        for run in active.filter(|r| which(r.iteration)) {
            run.state = RunState::Replaced;
            run.ended_at = Some(now);
            run.completed = completed(run.iteration);
        }
    }

    /// Forgets the oldest runs that ended, beyond as many as the schedule wants remembered.
    pub fn forget(&mut self, spec: &ServiceSpec) {
        let keep = spec.schedule.as_ref().map_or(HISTORY_DEFAULT, |s| s.history);
        let keep = keep.clamp(1, HISTORY_MAX) as usize;
        let ended = self.runs.iter().filter(|r| r.ended_at.is_some()).count();
        let mut drop = ended.saturating_sub(keep);
        self.runs.retain(|r| {
            let goes = drop > 0 && r.ended_at.is_some();
            drop -= usize::from(goes);
            !goes
        });
    }

    /// Runs under way.
    pub fn active(&self) -> impl Iterator<Item = &JobRun> {
        self.runs.iter().filter(|r| r.ended_at.is_none())
    }

    /// Runs whose slots are filled: those under way and, without a schedule, the newest, which goes on when it is scaled up.
    pub fn open(&self, spec: &ServiceSpec) -> Vec<u64> {
        let newest = self.runs.last().filter(|_| spec.schedule.is_none());
        let mut open: Vec<u64> = self.active().chain(newest).map(|r| r.iteration).collect();
        open.dedup();
        open
    }
}

impl Service {
    /// Of a job: how many slots of its newest run completed, and how many there are to.
    pub fn tally<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) -> Option<(u32, u32)> {
        let job = self.job.as_ref()?;
        let run = job.runs.last();
        let (mut slots, mut done) = (BTreeSet::<SlotKey>::new(), BTreeSet::<SlotKey>::new());
        for task in tasks {
            if run.is_some_and(|r| r.iteration == task.iteration) {
                slots.insert(task.slot);
                if task.status.state == TaskState::Complete {
                    done.insert(task.slot);
                }
            }
        }
        let count = |set: &BTreeSet<SlotKey>| u32::try_from(set.len()).unwrap_or(u32::MAX);
        let ended = run.filter(|r| r.ended_at.is_some());
        let completed = ended.map_or(count(&done), |r| r.completed);
        match self.spec.mode {
            ServiceMode::ReplicatedJob { completions, .. } => Some((completed, completions)),
            ServiceMode::GlobalJob => {
                let all = ended.map_or(count(&slots), |r| r.completed + r.failed);
                Some((completed, all))
            }
            ServiceMode::Replicated { .. } | ServiceMode::Global => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Schedule;

    fn spec(history: u32) -> ServiceSpec {
        ServiceSpec {
            schedule: Some(Schedule {
                history,
                ..Schedule::default()
            }),
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn runs_at_the_same_time_follow_the_rule() {
        let spec = spec(3);
        for (rule, begun, active) in [
            (Concurrency::Forbid, 1, 1),
            (Concurrency::Allow, RUNS_ACTIVE_MAX, RUNS_ACTIVE_MAX),
            (Concurrency::Replace, 50, 1),
        ] {
            let mut job = JobStatus::default();
            let count = (0..50)
                .filter(|n| job.begin(&spec, rule, None, Timestamp(*n), |_| 7))
                .count();
            assert_eq!((count, job.active().count()), (begun, active), "{rule:?}");
            assert_eq!(job.iteration, begun as u64, "{rule:?}");
            let ended: Vec<_> = job.runs.iter().filter(|r| r.ended_at.is_some()).collect();
            assert!(ended.len() <= 3, "{rule:?}: the history has a bound");
            assert!(
                ended
                    .iter()
                    .all(|r| (r.state, r.completed) == (RunState::Replaced, 7))
            );
        }
    }

    #[test]
    fn history_is_at_least_the_last_and_at_most_a_hundred() {
        for (asked, kept) in [(0, 1), (1, 1), (5, 5), (u32::MAX, HISTORY_MAX as usize)] {
            let spec = spec(asked);
            let mut job = JobStatus::default();
            for n in 0..200 {
                assert!(job.begin(&spec, Concurrency::Replace, None, Timestamp(n), |_| 0));
            }
            assert_eq!(job.runs.len(), kept + 1, "{asked}");
            assert_eq!(job.runs.last().map(|r| r.iteration), Some(200));
        }
    }
}
