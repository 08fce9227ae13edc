//! Jobs: their flags, running them by hand, and their runs.

use std::time::Duration;

use model::Timestamp;
use model::object::Service;
use model::spec::{Concurrency, HISTORY_DEFAULT, Schedule, ServiceMode, ServiceSpec};
use model::units::format_duration;
use proto::control::RunJobRequest;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::command::service_flags::time;
use crate::render::{self, ListArgs};

/// What a service is as a job.
#[derive(clap::Args, Default)]
pub(crate) struct JobArgs {
    /// Of a replicated-job: most tasks at a time [default: as many as --replicas].
    #[arg(long)]
    max_concurrent: Option<u32>,
    /// Run the job whenever this says so: minute, hour, day of month, month and day of week as in cron, with seconds before them
    /// where they are needed, or @hourly, @daily and so on. Empty: once.
    #[arg(long, value_name = "CRON")]
    schedule: Option<String>,
    /// By whose clock: a name of the IANA database, such as Europe/Berlin [default: UTC].
    #[arg(long)]
    timezone: Option<String>,
    /// When a run is due and another is under way: forbid (it is left out), allow, or replace (the other is ended) [default:
    /// forbid]. One that was changed since it began and of which nothing runs stands in no other one's way.
    #[arg(long)]
    concurrency: Option<String>,
    /// Runs that are remembered [default: 10].
    #[arg(long)]
    schedule_history: Option<u32>,
    /// Leave out a run that could not begin for this long, as no manager led; without it one begins however late it is.
    #[arg(long)]
    starting_deadline: Option<String>,
}

impl JobArgs {
    /// Puts what was given into a spec; `replicas` is how many tasks were asked for.
    pub(crate) fn apply(&self, replicas: Option<u32>, s: &mut ServiceSpec) -> Result<(), Fail> {
        let name = s.mode.as_str();
        match &mut s.mode {
            ServiceMode::Global | ServiceMode::GlobalJob if replicas.is_some() => {
                return Err(Fail::new(format!(
                    "--replicas cannot be used with mode {name}: it has a task on every node"
                )));
            }
            ServiceMode::Replicated { replicas: n } => *n = replicas.unwrap_or(*n),
            ServiceMode::ReplicatedJob {
                completions,
                max_concurrent,
            } => {
                *completions = replicas.unwrap_or(*completions);
                *max_concurrent = self.max_concurrent.unwrap_or(*max_concurrent);
            }
            ServiceMode::Global | ServiceMode::GlobalJob => {}
        }
        if self.max_concurrent.is_some() && s.mode.concurrent().is_none() {
            return Err(Fail::new(format!(
                "--max-concurrent is for mode replicated-job, not for {name}"
            )));
        }
        self.when(&mut s.schedule)
    }

    fn when(&self, schedule: &mut Option<Schedule>) -> Result<(), Fail> {
        match self.schedule.as_deref() {
            Some("") => *schedule = None,
            Some(cron) => {
                let known = schedule.get_or_insert_with(|| Schedule {
                    history: HISTORY_DEFAULT,
                    ..Schedule::default()
                });
                cron.clone_into(&mut known.cron);
            }
            None => {}
        }
        let more = [&self.timezone, &self.concurrency, &self.starting_deadline];
        let asked = self.schedule_history.is_some() || more.iter().any(|m| m.is_some());
        let Some(known) = schedule else {
            return match asked {
                true => Err(Fail::new(
                    "--timezone, --concurrency, --schedule-history and --starting-deadline say more of a --schedule, and there is none",
                )),
                false => Ok(()),
            };
        };
        if let Some(zone) = &self.timezone {
            known.timezone.clone_from(zone);
        }
        if let Some(text) = &self.concurrency {
            known.concurrency = Concurrency::named(text).ok_or_else(|| {
                Fail::new(format!(
                    "there is no concurrency {text}: use forbid, allow or replace"
                ))
            })?;
        }
        known.history = self.schedule_history.unwrap_or(known.history);
        time(
            "starting-deadline",
            self.starting_deadline.as_ref(),
            &mut known.starting_deadline,
        )
    }
}

/// Runs a job once more, now.
pub(crate) async fn run(client: &Client, service: &str) -> Result<(), Fail> {
    let request = RunJobRequest {
        reference: service.to_owned(),
    };
    client.control().await?.run_job(request).await?;
    Ok(())
}

/// When a job ran last, and when it does next; empty: not.
pub(crate) fn times(service: &Service) -> (String, String) {
    let job = service.job.as_ref();
    let last = job.and_then(|j| j.runs.last());
    let next = job.and_then(|j| j.next_at);
    (
        last.map_or(String::new(), |r| render::ago(r.started_at.0)),
        next.map_or(String::new(), |at| {
            format!("in {}", rough(Timestamp(render::now_ms()), at))
        }),
    )
}

/// The time between two moments, in whole seconds.
fn rough(from: Timestamp, to: Timestamp) -> String {
    format_duration(Duration::from_secs(to.since(from).as_secs()))
}

/// Prints the runs of a job, the newest first.
pub(crate) fn runs(service: &Service, format: Option<String>) -> Result<(), Fail> {
    let Some(job) = &service.job else {
        return Err(Fail::new(format!(
            "service {} is {}, and only jobs have runs",
            service.spec.name,
            service.spec.mode.as_str()
        )));
    };
    let now = Timestamp(render::now_ms());
    let rows: Vec<_> = (job.runs.iter().rev())
        .map(|r| {
            // Of one under way it is not written down yet.
            let count = |n: u32| if r.ended_at.is_some() { n.to_string() } else { String::new() };
            json!({
                "ID": r.iteration.to_string(), "Due": r.due_at.map_or_else(|| "by hand".into(), Timestamp::rfc3339),
                "Started": r.started_at.rfc3339(), "Ended": r.ended_at.map(Timestamp::rfc3339), "State": r.state.as_str(),
                "Completed": count(r.completed), "Failed": count(r.failed),
                "Duration": rough(r.started_at, r.ended_at.unwrap_or(now)),
            })
        })
        .collect();
    let columns = [
        ("RUN", "ID"),
        ("DUE", "Due"),
        ("STARTED", "Started"),
        ("STATE", "State"),
        ("COMPLETED", "Completed"),
        ("FAILED", "Failed"),
        ("DURATION", "Duration"),
    ];
    let how = ListArgs {
        format,
        ..ListArgs::default()
    };
    render::list(&rows, &columns, &how)?;
    if job.missed > 0 && how.format.is_none() {
        let times = if job.missed == 1 { "time" } else { "times" };
        render::progress(&format!(
            "no run began at {} {times} that it was due: another was under way, or it was too late",
            job.missed
        ));
    }
    Ok(())
}
