//! The checks of one container while it runs, and what their verdicts change.

use std::net::{IpAddr, Ipv4Addr};

use agent_core::Seen;
use agent_core::health::{Counter, Health};
use agent_core::readiness::WINDOW;
use model::units::format_duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Worker;
use crate::contact::boottime;
use crate::{probe, translate};

/// Those that run.
#[derive(Default)]
pub(super) struct Checks {
    health: Option<Check>,
    readiness: Option<Check>,
}

/// One, with its probes; they end with it.
struct Check {
    verdict: watch::Receiver<(Health, String)>,
    probes: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.probes.abort();
    }
}

/// What the probes say, and what the last failing one said.
pub(super) enum Verdict {
    Health(Health, String),
    Readiness(Health, String),
}

impl Checks {
    /// The next verdict; never, where nothing is checked.
    pub(super) async fn next(&mut self) -> Verdict {
        tokio::select! {
            (health, output) = next(&mut self.health) => Verdict::Health(health, output),
            (health, output) = next(&mut self.readiness) => Verdict::Readiness(health, output),
        }
    }
}

async fn next(check: &mut Option<Check>) -> (Health, String) {
    // Its sender is dropped only with the check itself.
    if let Some(check) = check
        && check.verdict.changed().await.is_ok()
    {
        return check.verdict.borrow_and_update().clone();
    }
    std::future::pending().await
}

impl Worker {
    /// Begins to check a container that runs; `well`: it was healthy and ready before this agent began.
    pub(super) fn begin_checks(&mut self, well: bool) {
        let image = self.shared.images.resolve(&self.task.spec.container.image).ok();
        let container = &self.task.spec.container;
        let health = image.as_ref().and_then(|i| translate::healthcheck(container, i));
        let (health, readiness) = (
            health.map(|check| Counter::new(check, boottime())),
            (container.readiness.clone()).map(|check| Counter::of_readiness(check, boottime())),
        );
        if health.is_none() {
            self.local.seen = Seen::Running(Health::Healthy);
        }
        let begin = |counter: Counter| {
            let counter = if well { counter.well() } else { counter };
            let (sender, verdict) = watch::channel((counter.health, String::new()));
            let target = probe::Target {
                task: self.id,
                address: (self.task.addresses.first()).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |(_, a)| *a),
            };
            let probes = tokio::spawn(probe::run(self.shared.clone(), target, counter, sender));
            Check {
                verdict,
                probes: probes.abort_handle(),
            }
        };
        self.checks = Checks {
            health: health.map(begin),
            readiness: readiness.map(begin),
        };
    }

    pub(super) fn judge(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Health(health, output) => {
                if let Seen::Running(seen) = &mut self.local.seen {
                    *seen = health;
                    if health == Health::Unhealthy {
                        self.unhealthy = Some(if output.is_empty() {
                            "unhealthy container".into()
                        } else {
                            format!("unhealthy container: {output}")
                        });
                    }
                }
            }
            Verdict::Readiness(health, output) => self.judge_readiness(health == Health::Healthy, output),
        }
    }

    fn judge_readiness(&mut self, passes: bool, output: String) {
        self.asked = true;
        let (now, readiness) = (boottime(), &mut self.local.readiness);
        let was = readiness.is_ready(now);
        readiness.observe(passes, now);
        // Each text is news to the managers, so it is the one of the first failure, however they differ.
        if passes || !(was || self.not_ready.is_none()) {
            return;
        }
        let said = if output.is_empty() {
            "not ready".to_owned()
        } else {
            format!("not ready: {output}")
        };
        self.not_ready = Some(match readiness.held() {
            Some((times, held)) => format!(
                "{said} (lost {times} times in {}: it stays out for {} each time)",
                format_duration(WINDOW),
                format_duration(held)
            ),
            None => said,
        });
    }

    /// Why a container that runs is not ready, where that is known.
    pub(super) fn not_ready_yet(&self) -> Option<String> {
        let runs = matches!(self.local.seen, Seen::Running(_)) && !self.local.readiness.is_ready(boottime());
        self.not_ready.clone().filter(|_| runs)
    }

    /// What a manager was told of it by the agent before this one.
    pub(super) fn told_not_ready(&self) -> Option<String> {
        let status = &self.task.status;
        status.unready.then(|| status.message.clone())
    }
}
