//! Jobs: their schedules and runs.

use std::time::Duration;

use model::Timestamp;
use model::job as j;
use model::spec as m;

use super::nanos;
use crate::types as w;

impl From<&m::Schedule> for w::Schedule {
    fn from(s: &m::Schedule) -> Self {
        Self {
            cron: s.cron.clone(),
            timezone: s.timezone.clone(),
            concurrency: match s.concurrency {
                m::Concurrency::Forbid => w::Concurrency::Forbid,
                m::Concurrency::Allow => w::Concurrency::Allow,
                m::Concurrency::Replace => w::Concurrency::Replace,
            }
            .into(),
            history: s.history,
            starting_deadline_ns: nanos(s.starting_deadline),
        }
    }
}

impl From<w::Schedule> for m::Schedule {
    fn from(s: w::Schedule) -> Self {
        Self {
            concurrency: match s.concurrency() {
                w::Concurrency::Forbid => m::Concurrency::Forbid,
                w::Concurrency::Allow => m::Concurrency::Allow,
                w::Concurrency::Replace => m::Concurrency::Replace,
            },
            cron: s.cron,
            timezone: s.timezone,
            history: s.history,
            starting_deadline: Duration::from_nanos(s.starting_deadline_ns),
        }
    }
}

impl From<&j::JobStatus> for w::JobStatus {
    fn from(s: &j::JobStatus) -> Self {
        Self {
            iteration: s.iteration,
            runs: s.runs.iter().map(Into::into).collect(),
            next_at_ms: s.next_at.map(|at| at.0),
            missed: s.missed,
        }
    }
}

impl From<w::JobStatus> for j::JobStatus {
    fn from(s: w::JobStatus) -> Self {
        Self {
            iteration: s.iteration,
            runs: s.runs.into_iter().map(Into::into).collect(),
            next_at: s.next_at_ms.map(Timestamp),
            missed: s.missed,
        }
    }
}

impl From<&j::JobRun> for w::JobRun {
    fn from(r: &j::JobRun) -> Self {
        Self {
            iteration: r.iteration,
            due_at_ms: r.due_at.map(|at| at.0),
            started_at_ms: r.started_at.0,
            ended_at_ms: r.ended_at.map(|at| at.0),
            state: match r.state {
                j::RunState::Active => w::RunState::RunActive,
                j::RunState::Completed => w::RunState::RunCompleted,
                j::RunState::Failed => w::RunState::RunFailed,
                j::RunState::Replaced => w::RunState::RunReplaced,
            }
            .into(),
            completed: r.completed,
            failed: r.failed,
        }
    }
}

impl From<w::JobRun> for j::JobRun {
    fn from(r: w::JobRun) -> Self {
        Self {
            state: match r.state() {
                w::RunState::RunActive => j::RunState::Active,
                w::RunState::RunCompleted => j::RunState::Completed,
                w::RunState::RunFailed => j::RunState::Failed,
                w::RunState::RunReplaced => j::RunState::Replaced,
            },
            iteration: r.iteration,
            due_at: r.due_at_ms.map(Timestamp),
            started_at: Timestamp(r.started_at_ms),
            ended_at: r.ended_at_ms.map(Timestamp),
            completed: r.completed,
            failed: r.failed,
        }
    }
}
