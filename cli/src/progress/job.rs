//! How far a run of a job is.

use std::collections::BTreeMap;

use model::TaskId;
use model::job::{JobRun, RunState};
use model::object::{Service, Task};
use model::spec::ServiceMode;
use model::units::format_duration;

use crate::render;

/// Exit code of a run that failed for good, or was replaced.
const FAILED: u8 = 1;

/// How a run that is waited for ended.
pub(super) struct Outcome {
    /// For who waits.
    pub(super) text: String,
    /// What the command exits with.
    pub(super) code: u8,
}

/// How the run that a command waits for ended; none: it goes on. Who did not begin a run of a job with a schedule has
/// nothing to wait for.
pub(super) fn outcome(service: &Service, by_hand: bool) -> Option<Outcome> {
    let name = &service.spec.name;
    let job = service.job.as_ref()?;
    let waits = by_hand || service.spec.schedule.is_none();
    let Some(run) = job.runs.last().filter(|_| waits) else {
        let next = (job.next_at).map_or_else(String::new, |at| format!(": it runs at {}", at.rfc3339()));
        return Some(Outcome {
            text: format!("job {name} is scheduled{next}"),
            code: 0,
        });
    };
    let ended = run.ended_at?;
    if let (ServiceMode::ReplicatedJob { completions, .. }, None) =
        (&service.spec.mode, &service.spec.schedule)
        && run.completed + run.failed < *completions
    {
        // It was scaled up, and goes on.
        return None;
    }
    let took = format_duration(ended.since(run.started_at));
    Some(match run.state {
        RunState::Completed => Outcome {
            text: format!(
                "job complete: {} in {took}",
                render::tasks(run.completed as usize)
            ),
            code: 0,
        },
        RunState::Active | RunState::Failed => Outcome {
            text: format!(
                "job failed: {} completed, {} failed for good",
                render::tasks(run.completed as usize),
                run.failed
            ),
            code: FAILED,
        },
        RunState::Replaced => Outcome {
            text: "another run took its place".into(),
            code: FAILED,
        },
    })
}

/// The newest run.
pub(super) fn newest(service: &Service) -> Option<&JobRun> {
    service.job.as_ref()?.runs.last()
}

/// Of the newest run: slots that completed, and how many are to.
pub(super) fn tally(service: &Service, tasks: &BTreeMap<TaskId, Task>) -> Option<(usize, usize)> {
    let (done, all) = service.tally(tasks.values())?;
    Some((done as usize, all as usize))
}
