//! Commands around the life of a container: before its start, after it, and before its stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::Seen;
use agent_core::health::{Health, OUTPUT_MAX};
use agent_core::hooks::pre_stop_limit;
use image::Image;
use model::TaskId;
use model::object::Task;
use model::spec::Hook;
use model::units::format_duration;
use runtime::{ExecConfig, LogQuery};

use super::bring::Brought;
use super::{News, Worker, blocking, chain};
use crate::agent::Shared;
use crate::contact::boottime;
use crate::probe::outcome;
use crate::translate::{self, Place};

/// How often a step before the start looks whether its host is cut off.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Last lines of a step that failed, which are part of the error.
const LINES: usize = 10;

impl Worker {
    /// Runs the steps before the start, one after the other, each in a container of its own.
    pub(super) async fn pre_start(&mut self, image: &Arc<Image>, namespace: &Path) -> Brought {
        let task = self.task.clone();
        let hooks = &task.spec.container.pre_start;
        for (hook, number) in hooks.iter().zip(1..) {
            self.message = format!("pre_start {number} of {}", hooks.len());
            self.tell();
            let name = format!("{}.pre_start-{number}", self.id);
            let done = self.step(&name, hook, image.clone(), namespace.to_owned()).await;
            if let Err(error) = self.shared.runtime.remove(&name).await {
                tracing::warn!(%error, "remove the container of a step before a start");
            }
            match done {
                Brought::Here => {}
                Brought::Failed(error) => {
                    return Brought::Failed(format!(
                        "pre_start {number} ({}): {error}",
                        hook.command.join(" ")
                    ));
                }
                other => return other,
            }
        }
        Brought::Here
    }

    async fn step(&mut self, name: &str, hook: &Hook, image: Arc<Image>, namespace: PathBuf) -> Brought {
        let shared = self.shared.clone();
        let begun = async {
            // What an earlier try left.
            shared.runtime.remove(name).await.map_err(chain)?;
            let (task, set) = (self.task.clone(), self.order.borrow().set.clone());
            let (inner, hook, id) = (shared.clone(), hook.clone(), name.to_owned());
            blocking(move || {
                let place = Place {
                    node: inner.node_id(),
                    hostname: &inner.config.hostname,
                };
                let config =
                    translate::step(&task, &hook, id, &image, &set, &inner.volumes, &place, namespace)?;
                inner.runtime.create(config).map_err(chain)
            })
            .await??;
            shared.runtime.start(name).await.map_err(chain)
        };
        if let Err(error) = begun.await {
            return Brought::Failed(error);
        }
        let ended = shared.runtime.wait(name);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                order = self.order.changed() => {
                    if order.is_err() {
                        return Brought::Stopped;
                    }
                    self.take_order();
                }
                exit = &mut ended => {
                    let code = exit.ok().and_then(|e| e.code);
                    return match code {
                        Some(0) => Brought::Here,
                        Some(code) => Brought::Failed(said(&format!("exit code {code}"), &self.last_lines(name).await)),
                        None => Brought::Failed("nobody saw its exit code".into()),
                    };
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.local.away_since = self.away.borrow().since;
            let now = boottime();
            if !self.local.wanted(now) {
                let grace = self
                    .local
                    .stop_grace(self.task.spec.container.stop_grace_or_default(), now);
                let _ = shared.runtime.stop(name, libc::SIGTERM, grace).await;
                return Brought::NotWanted;
            }
        }
    }

    async fn last_lines(&self, name: &str) -> String {
        let query = LogQuery {
            tail: Some(LINES),
            ..LogQuery::default()
        };
        let mut lines = self.shared.runtime.logs(name, query);
        let mut text = Vec::new();
        while let Some(line) = lines.recv().await {
            let room = OUTPUT_MAX.saturating_sub(text.len());
            text.extend_from_slice(&line.text[..line.text.len().min(room)]);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// Goes on with a container that has just started: its checks begin once its hooks are done.
    pub(super) fn begin_post_start(&mut self) {
        if self.task.spec.container.post_start.is_empty() {
            self.begin_checks(false);
            return;
        }
        self.message = "post_start".into();
        let (shared, task, news) = (self.shared.clone(), self.task.clone(), self.news.0.clone());
        let hooks = tokio::spawn(async move {
            let result = run(&shared, &task, &task.spec.container.post_start).await;
            let _ = news.send(News::PostStart(result)).await;
        });
        self.post_start = Some(hooks.abort_handle());
    }

    pub(super) fn post_started(&mut self, result: Result<(), String>) {
        if !matches!(self.local.seen, Seen::Running(_)) {
            return;
        }
        match result {
            Ok(()) => {
                self.message = "started".into();
                self.begin_checks(false);
            }
            Err(error) => {
                self.unhealthy = Some(format!("post_start: {error}"));
                self.local.seen = Seen::Running(Health::Unhealthy);
            }
        }
    }

    /// Ends the hooks after its start: the container ends.
    pub(super) fn end_post_start(&mut self) {
        if let Some(hooks) = self.post_start.take() {
            hooks.abort();
        }
    }
}

/// Runs the hooks before a stop; answers how much of the grace is left.
pub(super) async fn pre_stop(
    shared: &Shared,
    task: &Task,
    grace: Duration,
    news: &tokio::sync::mpsc::Sender<News>,
) -> Duration {
    let hooks = &task.spec.container.pre_stop;
    let limit = pre_stop_limit(grace);
    if hooks.is_empty() || limit.is_zero() {
        return grace;
    }
    let began = Instant::now();
    let done = tokio::time::timeout(limit, run(shared, task, hooks)).await;
    let done = done.unwrap_or_else(|_| Err(format!("not done after {}", format_duration(limit))));
    if let Err(error) = done {
        tracing::warn!(task = %task.id, error, "a hook before a stop");
        let _ = news.send(News::PreStop(error)).await;
    }
    grace.saturating_sub(began.elapsed())
}

/// Runs hooks in a container, one after the other, until one fails.
async fn run(shared: &Shared, task: &Task, hooks: &[Hook]) -> Result<(), String> {
    let place = Place {
        node: shared.node_id(),
        hostname: &shared.config.hostname,
    };
    for hook in hooks {
        let env = hook.env.iter().map(|e| translate::template(e, task, &place));
        let config = ExecConfig {
            argv: hook.command.clone(),
            env: env.collect::<Result<_, _>>()?,
            user: hook.user.clone(),
            cwd: hook.dir.clone(),
            ..ExecConfig::default()
        };
        let ended = execute(shared, task.id, &config).await;
        ended.map_err(|problem| format!("{}: {problem}", hook.command.join(" ")))?;
    }
    Ok(())
}

async fn execute(shared: &Shared, task: TaskId, config: &ExecConfig) -> Result<(), String> {
    let session = shared.runtime.exec(&task.to_string(), config).map_err(chain)?;
    match outcome(session).await {
        (0, _) => Ok(()),
        (code, output) => Err(said(&format!("exit code {code}"), &output)),
    }
}

fn said(what: &str, output: &str) -> String {
    if output.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {output}")
    }
}
