//! Waiting for services: what they do as it happens, until they stand as wanted.
//!
//! On a terminal there is a bar for the service and one for each task; elsewhere one line a change.

mod job;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::object::{Object, Service, SlotKey, Task, UpdateState, UpdateStatus};
use model::task_state::{DesiredState, TaskState};
use model::{TaskId, Timestamp};
use proto::control::WatchRequest;
use proto::types::Kind;

use crate::client::{Client, Fail};
use crate::command::service_list::not_ready;
use crate::render;

/// Exit codes of attached commands.
pub(crate) const ROLLED_BACK: u8 = 2;
pub(crate) const PAUSED: u8 = 3;
pub(crate) const TIMED_OUT: u8 = 4;
/// As a shell says it of a command that SIGINT ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Most tasks that get a bar each, as with Docker.
const BARS_MAX: usize = 20;

/// Where progress is shown; several services of one command share it.
pub(crate) enum Board {
    /// Nowhere.
    Quiet,
    /// One line a change.
    Lines,
    /// Bars on a terminal, and whether any was drawn.
    Bars(MultiProgress, Cell<bool>),
}

impl Board {
    /// Bars where standard output is a terminal, else lines; nothing when `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if std::io::stdout().is_terminal() {
            let target = ProgressDrawTarget::stdout();
            Self::Bars(MultiProgress::with_draw_target(target), Cell::new(false))
        } else {
            Self::Lines
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // The last line of the bars is left open.
        if let Self::Bars(_, drawn) = self
            && drawn.get()
        {
            render::line("");
        }
    }
}

/// What is shown of one service.
struct Display<'a> {
    board: &'a Board,
    /// Name before each line, where there are several services.
    label: &'a str,
    said: String,
    head: Option<ProgressBar>,
    slots: BTreeMap<SlotKey, ProgressBar>,
}

impl<'a> Display<'a> {
    fn new(board: &'a Board, label: &'a str) -> Self {
        Self {
            board,
            label,
            said: String::new(),
            head: None,
            slots: BTreeMap::new(),
        }
    }

    fn line(&self, text: &str) {
        if self.label.is_empty() {
            render::line(text);
        } else {
            render::line(format!("{}: {text}", self.label));
        }
    }

    /// A sentence of its own.
    fn say(&self, text: &str) {
        match (self.board, &self.head) {
            (Board::Lines, _) => self.line(text),
            (Board::Bars(..), Some(head)) => head.set_message(text.to_owned()),
            (Board::Quiet | Board::Bars(..), _) => {}
        }
    }

    fn progress(
        &mut self,
        (running, wanted): (usize, usize),
        service: &Service,
        tasks: &BTreeMap<TaskId, Task>,
    ) {
        let reason = reason(service.update.as_ref(), tasks);
        match self.board {
            Board::Quiet => {}
            Board::Lines => {
                let text = format!("overall progress: {running} out of {wanted} tasks{reason}");
                if text != self.said {
                    self.line(&text);
                    self.said = text;
                }
            }
            Board::Bars(multi, drawn) => {
                let title = if self.label.is_empty() {
                    "overall progress"
                } else {
                    self.label
                };
                let head = self.head.get_or_insert_with(|| {
                    drawn.set(true);
                    // With a bar for each task the sum needs none.
                    let each = self.label.is_empty() && wanted <= BARS_MAX;
                    let bar = multi.add(styled(if each {
                        "{prefix}: {pos} out of {len} tasks {wide_msg}"
                    } else {
                        "{prefix}: [{bar:20}] {pos}/{len} tasks {wide_msg}"
                    }));
                    bar.set_prefix(title.to_owned());
                    bar
                });
                head.set_length(wanted as u64);
                head.set_position(running as u64);
                head.set_message(reason);
                if self.label.is_empty() && wanted <= BARS_MAX {
                    bars(multi, &mut self.slots, service, tasks);
                }
            }
        }
    }

    /// A sentence that must not be missed; bars go on below it.
    fn warn(&self, text: &str) {
        match self.board {
            Board::Bars(multi, _) => multi.suspend(|| eprintln!("{text}")),
            Board::Quiet | Board::Lines => eprintln!("{text}"),
        }
    }

    /// Leaves what is shown on the screen.
    fn end(&self) {
        for bar in self.slots.values().chain(&self.head) {
            bar.abandon();
        }
    }
}

fn styled(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(TaskState::Running as u64);
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// One bar for the newest task of each slot.
fn bars(
    multi: &MultiProgress,
    bars: &mut BTreeMap<SlotKey, ProgressBar>,
    service: &Service,
    tasks: &BTreeMap<TaskId, Task>,
) {
    let mut newest: BTreeMap<SlotKey, &Task> = BTreeMap::new();
    let wanted = tasks.values().filter(|t| t.desired.is_live());
    let run = job::newest(service).map_or(0, |r| r.iteration);
    for task in wanted.filter(|t| service.is_current(t) && t.iteration == run) {
        let slot = newest.entry(task.slot).or_insert(task);
        if task.meta.created_at >= slot.meta.created_at {
            *slot = task;
        }
    }
    bars.retain(|slot, bar| {
        let keep = newest.contains_key(slot);
        if !keep {
            bar.finish_and_clear();
        }
        keep
    });
    for (slot, task) in newest {
        let bar = bars.entry(slot).or_insert_with(|| {
            let bar = multi.add(styled("{prefix}: {msg:10} [{bar:50}]"));
            bar.set_prefix(task.name());
            bar
        });
        bar.set_message(task.status.state.as_str());
        let came = task.status.state;
        bar.set_position(if came > TaskState::Running { 0 } else { came as u64 });
    }
}

/// A service that is waited for.
pub(crate) struct Target<'a> {
    /// Its id or name.
    pub(crate) service: &'a str,
    /// What its lines begin with; empty where it is the only one.
    pub(crate) label: &'a str,
    /// When the last rollout before the command began: how that one ended is not this command's doing.
    pub(crate) known: Option<Timestamp>,
    /// It is a run of a job by hand: also of one with a schedule, whose runs nobody else waits for.
    pub(crate) by_hand: bool,
}

/// The beginning of the last rollout of a service.
pub(crate) fn last_rollout(service: &Service) -> Option<Timestamp> {
    service.update.as_ref().map(|u| u.started_at)
}

/// Waits until a service converged; answers the exit code.
pub(crate) async fn wait(
    client: &Client,
    target: &Target<'_>,
    timeout: Option<Duration>,
    board: &Board,
) -> Result<u8, Fail> {
    let limit = async {
        match timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(limit);
    let Object::Service(first) = client.get(Kind::Service, target.service).await? else {
        return Err(Fail::new("the daemon answered another kind of object"));
    };
    let name = &first.spec.name;
    let request = WatchRequest {
        kinds: vec![Kind::Service.into(), Kind::Task.into()],
        service: first.id.to_string(),
    };
    let mut events = client.control().await?.watch(request).await?.into_inner();
    let mut service: Option<Service> = None;
    let mut tasks: BTreeMap<TaskId, Task> = BTreeMap::new();
    let mut display = Display::new(board, target.label);
    let mut stable_from: Option<Instant> = None;
    // Whether the service's rollout is this command's, or was still under way when it came.
    let mut follow = false;
    loop {
        let monitor = service.as_ref().map_or(Duration::ZERO, |s| s.spec.update.monitor);
        let pause = stable_from.map(|from| monitor.saturating_sub(from.elapsed()));
        let event = tokio::select! {
            event = events.message() => event?,
            () = async { match pause { Some(p) => tokio::time::sleep(p).await, None => std::future::pending().await } } => {
                display.say(&format!("verify: Service {name} converged"));
                display.end();
                return Ok(service.as_ref().map_or(0, outcome));
            }
            () = &mut limit => {
                let why = service.as_ref().map_or(String::new(), |s| reason(s.update.as_ref(), &tasks));
                display.warn(&format!("service {name} did not converge in time{why}; it goes on in the background: `rswarm service ps {name}` shows more"));
                display.end();
                return Ok(TIMED_OUT);
            }
            _ = tokio::signal::ctrl_c() => {
                display.warn(&format!("Operation continuing in background: `rswarm service ps {name}` shows how far it is"));
                display.end();
                return Ok(INTERRUPTED);
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
                Object::Service(s) if s.id == first.id => {
                    let mut s = (*s).clone();
                    let active = s.update.as_ref().is_some_and(|u| u.state.is_active());
                    follow |= active || last_rollout(&s) != target.known;
                    if !follow {
                        s.update = None;
                    }
                    service = Some(s);
                }
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
        if let Some(progress) = job::tally(s, &tasks) {
            display.progress(progress, s, &tasks);
            if let Some(end) = job::outcome(s, target.by_hand) {
                if end.code == 0 {
                    display.say(&end.text);
                } else {
                    display.warn(&format!(
                        "service {name}: {}{}",
                        end.text,
                        reason(s.update.as_ref(), &tasks)
                    ));
                }
                display.end();
                return Ok(end.code);
            }
            continue;
        }
        let (running, wanted) = current(s, &tasks);
        display.progress((running, wanted), s, &tasks);
        if let Some(u) = s
            .update
            .as_ref()
            .filter(|u| matches!(u.state, UpdateState::Paused | UpdateState::RollbackPaused))
        {
            display.warn(&format!("service {name}: {}", u.message));
            display.end();
            return Ok(if u.timed_out { TIMED_OUT } else { PAUSED });
        }
        if let Some(u) = (s.update.as_ref()).filter(|u| u.state == UpdateState::Canary) {
            display.say(&format!(
                "{}: `rswarm service promote {name}` or `rswarm service abort {name}`",
                u.message
            ));
            display.end();
            return Ok(0);
        }
        let over = running == wanted && s.update.as_ref().is_none_or(|u| !u.state.is_active());
        // An update was watched for `monitor` by the manager already.
        if over && s.update.as_ref().is_some_and(|u| u.completed_at.is_some()) {
            display.say(&format!("verify: Service {name} converged"));
            display.end();
            return Ok(outcome(s));
        }
        if !over {
            stable_from = None;
        } else if stable_from.is_none() {
            let from = since_change(&tasks);
            let rest = s.spec.update.monitor.saturating_sub(from.elapsed());
            if !rest.is_zero() {
                let whole = Duration::from_millis(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
                let time = model::units::format_duration(whole);
                display.say(&format!(
                    "verify: Waiting {time} to verify that tasks are stable..."
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
    let now = render::now_ms();
    let age = Duration::from_millis(now.saturating_sub(newest.unwrap_or(now)));
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

fn outcome(service: &Service) -> u8 {
    match service.update.as_ref().map(|u| u.state) {
        Some(UpdateState::RollbackCompleted | UpdateState::RollbackStarted) => ROLLED_BACK,
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => PAUSED,
        Some(UpdateState::Updating | UpdateState::Completed | UpdateState::Canary) | None => 0,
    }
}

/// Running tasks that are wanted to run, and how many there should be; during a rollout, only those of the present spec
/// count as running: how far it is.
fn current(service: &Service, tasks: &BTreeMap<TaskId, Task>) -> (usize, usize) {
    let (_, wanted) = service.count(tasks.values());
    let shown = |t: &&Task| service.update.is_none() || service.is_current(t);
    let (running, _) = service.count(tasks.values().filter(shown));
    (running, wanted)
}

/// When the newest task of each slot that runs, or completed, was made: what failed there before is past.
fn well_since(tasks: &BTreeMap<TaskId, Task>) -> BTreeMap<SlotKey, Timestamp> {
    let mut since = BTreeMap::new();
    let well = |t: &&Task| match t.status.state {
        TaskState::Running => t.desired.is_live(),
        state => state == TaskState::Complete,
    };
    for task in tasks.values().filter(well) {
        let newest = since.entry(task.slot).or_insert(task.meta.created_at);
        *newest = task.meta.created_at.max(*newest);
    }
    since
}

/// The newest error of a task that is not running, or why one is not ready, so that nobody has to look for it.
fn reason(update: Option<&UpdateStatus>, tasks: &BTreeMap<TaskId, Task>) -> String {
    let since = update.map_or(Timestamp(0), |u| u.started_at);
    let well = well_since(tasks);
    let failed = tasks
        .values()
        .filter(|t| {
            !t.status.error.is_empty()
                && t.status.state != TaskState::Running
                && t.desired != DesiredState::Remove
                && t.status.at >= since
                && well.get(&t.slot).is_none_or(|at| *at <= t.meta.created_at)
        })
        .max_by_key(|t| t.status.at);
    let unready = || {
        tasks
            .values()
            .filter(|t| t.desired.is_live())
            .find_map(|t| Some(format!(" ({}: {})", t.name(), not_ready(t)?)))
    };
    let held = || {
        let waits = |u: &&UpdateStatus| u.message.starts_with("waits for ");
        let update = update.filter(waits)?;
        Some(format!(" ({})", update.message))
    };
    failed
        .map(|t| format!(" ({}: {})", t.name(), render::one_line(&t.status.error)))
        .or_else(held)
        .or_else(unready)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::tests::task;

    #[test]
    fn an_error_is_told_until_what_followed_it_runs() {
        let failed = |slot| {
            let mut task = task(slot);
            (task.status.state, task.desired) = (TaskState::Failed, DesiredState::Shutdown);
            task.status.error = "non-zero exit (1)\nmore".into();
            task
        };
        let follows = |slot, state| {
            let mut task = task(slot);
            (task.id, task.meta.created_at, task.status.state) = (TaskId(7), Timestamp(5), state);
            task
        };
        let gone = || {
            let mut task = failed(1);
            task.desired = DesiredState::Remove;
            task
        };
        let told = " (web.1: non-zero exit (1) more)";
        for (name, tasks, wanted) in [
            ("nothing followed", vec![failed(1)], told),
            (
                "the next one begins",
                vec![failed(1), follows(1, TaskState::Starting)],
                told,
            ),
            (
                "another slot runs",
                vec![failed(1), follows(2, TaskState::Running)],
                told,
            ),
            ("it runs", vec![failed(1), follows(1, TaskState::Running)], ""),
            (
                "it completed",
                vec![failed(1), follows(1, TaskState::Complete)],
                "",
            ),
            ("its slot is gone", vec![gone()], ""),
        ] {
            let tasks = tasks.into_iter().map(|t| (t.id, t)).collect();
            assert_eq!(reason(None, &tasks), wanted, "{name}");
        }
    }
}
