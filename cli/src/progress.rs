//! Waiting for a service: its changes as they come, one line a change, until it stands as wanted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::object::{Object, Service, Task, UpdateState};
use model::spec::ServiceMode;
use model::task_state::{DesiredState, TaskState};
use model::{TaskId, Timestamp};
use proto::control::WatchRequest;
use proto::types::Kind;

use crate::client::{Client, Fail};
use crate::render::line;

/// Exit codes of attached commands.
pub(crate) const ROLLED_BACK: u8 = 2;
pub(crate) const PAUSED: u8 = 3;
pub(crate) const TIMED_OUT: u8 = 4;

/// Waits until a service converged; answers the exit code. Each line begins with `label`; `quiet` prints none.
pub(crate) async fn wait(
    client: &Client,
    service: &str,
    label: &str,
    timeout: Option<Duration>,
    quiet: bool,
) -> Result<u8, Fail> {
    let waiting = converge(client, service, label, quiet);
    match timeout {
        None => waiting.await,
        Some(limit) => tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| {
            eprintln!("service {service} did not converge in time; it goes on in the background: `rswarm service ps {service}` shows why");
            Ok(TIMED_OUT)
        }),
    }
}

async fn converge(client: &Client, reference: &str, label: &str, quiet: bool) -> Result<u8, Fail> {
    let line = |text: String| {
        if !quiet && label.is_empty() {
            line(text);
        } else if !quiet {
            line(format!("{label}: {text}"));
        }
    };
    let Object::Service(first) = client.get(Kind::Service, reference).await? else {
        return Err(Fail::new("the daemon answered another kind of object"));
    };
    let request = WatchRequest {
        kinds: vec![Kind::Service.into(), Kind::Task.into()],
        service: first.id.to_string(),
    };
    let mut events = client.control().await?.watch(request).await?.into_inner();
    let mut service: Option<Service> = None;
    let mut tasks: BTreeMap<TaskId, Task> = BTreeMap::new();
    let mut said = String::new();
    let mut stable_from: Option<Instant> = None;
    loop {
        let monitor = service.as_ref().map_or(Duration::ZERO, |s| s.spec.update.monitor);
        let pause = stable_from.map(|from| monitor.saturating_sub(from.elapsed()));
        let event = tokio::select! {
            event = events.message() => event?,
            () = async { match pause { Some(p) => tokio::time::sleep(p).await, None => std::future::pending().await } } => {
                line(format!("verify: Service {} converged", first.spec.name));
                return Ok(service.as_ref().map_or(0, outcome));
            }
        };
        let Some(event) = event else {
            return Err(Fail::new("the daemon ended the watch: is it still running?"));
        };
        if event.snapshot {
            tasks.clear();
        }
        for object in event.changed {
            match Object::try_from(object)? {
                Object::Service(s) if s.id == first.id => service = Some((*s).clone()),
                Object::Task(t) if t.service == first.id => {
                    tasks.insert(t.id, (*t).clone());
                }
                _ => {}
            }
        }
        for key in event.removed {
            match model::object::Key::try_from(key)? {
                model::object::Key::Task(id) => {
                    tasks.remove(&id);
                }
                model::object::Key::Service(id) if id == first.id => {
                    return Err(Fail::new(format!(
                        "service {} was removed meanwhile",
                        first.spec.name
                    )));
                }
                _ => {}
            }
        }
        let Some(s) = &service else { continue };
        let (running, wanted) = count(s, &tasks);
        let state = format!(
            "overall progress: {running} out of {wanted} tasks{}",
            reason(s, &tasks)
        );
        if state != said {
            line(state.clone());
        }
        said = state;
        if let Some(u) = s
            .update
            .as_ref()
            .filter(|u| matches!(u.state, UpdateState::Paused | UpdateState::RollbackPaused))
        {
            eprintln!("service {}: {}", s.spec.name, u.message);
            return Ok(PAUSED);
        }
        let over = running == wanted && s.update.as_ref().is_none_or(|u| !u.state.is_active());
        // An update was watched for `monitor` by the manager already.
        if over && s.update.as_ref().is_some_and(|u| u.completed_at.is_some()) {
            line(format!("verify: Service {} converged", s.spec.name));
            return Ok(outcome(s));
        }
        if !over {
            stable_from = None;
        } else if stable_from.is_none() {
            let from = since_change(&tasks);
            let rest = s.spec.update.monitor.saturating_sub(from.elapsed());
            if !rest.is_zero() {
                line(format!(
                    "verify: Waiting {} to verify that tasks are stable...",
                    model::units::format_duration(Duration::from_millis(
                        u64::try_from(rest.as_millis()).unwrap_or(u64::MAX)
                    ))
                ));
            }
            stable_from = Some(from);
        }
    }
}

/// When the newest running task came up: a service that stood before is not watched again.
fn since_change(tasks: &BTreeMap<TaskId, Task>) -> Instant {
    let newest = tasks
        .values()
        .filter(|t| t.desired.is_live())
        .map(|t| t.status.at.0)
        .max();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let age = Duration::from_millis(now.saturating_sub(newest.unwrap_or(now)));
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

fn outcome(service: &Service) -> u8 {
    match service.update.as_ref().map(|u| u.state) {
        Some(UpdateState::RollbackCompleted | UpdateState::RollbackStarted) => ROLLED_BACK,
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => PAUSED,
        Some(UpdateState::Updating | UpdateState::Completed) | None => 0,
    }
}

/// Running tasks that are wanted to run, and how many there should be.
pub(crate) fn count(service: &Service, tasks: &BTreeMap<TaskId, Task>) -> (usize, usize) {
    let live = |t: &&Task| t.desired == DesiredState::Running;
    let running = tasks
        .values()
        .filter(live)
        .filter(|t| t.status.state == TaskState::Running)
        .count();
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas as usize,
        ServiceMode::Global => tasks.values().filter(|t| t.desired.is_live()).count(),
    };
    (running, wanted)
}

/// The newest error of a task that is not running, so that nobody has to look for it.
fn reason(service: &Service, tasks: &BTreeMap<TaskId, Task>) -> String {
    let since = service.update.as_ref().map_or(Timestamp(0), |u| u.started_at);
    let failed = tasks
        .values()
        .filter(|t| {
            !t.status.error.is_empty() && t.status.state != TaskState::Running && t.status.at >= since
        })
        .max_by_key(|t| t.status.at);
    failed
        .map(|t| format!(" ({}: {})", t.name(), t.status.error))
        .unwrap_or_default()
}
