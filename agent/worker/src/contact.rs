//! The last contact with a manager: by it tasks are stopped that may not outlive it, also by the agent after this one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::spec::{OnDisconnect, STOP_AFTER_MIN};
use model::{TaskId, Timestamp};
use runtime::{ContainerState, boot_id};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::agent::Shared;

/// Label of a container that must not run longer than so many milliseconds without a manager.
pub(crate) const STOP_AFTER_LABEL: &str = "rswarm.stop_after_ms";
/// Least time between two writes of the file; a restarted agent counts from so much earlier at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Milliseconds since the host started, sleep included: nobody sets this clock.
pub(crate) fn boottime() -> Timestamp {
    let t = clock_gettime(ClockId::Boottime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Timestamp(part(t.tv_sec) * 1_000 + part(t.tv_nsec) / 1_000_000)
}

/// Whether managers are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away {
    /// The last contact while there is no session; absent: there is one.
    pub(crate) since: Option<Timestamp>,
    /// The last time without a session that may have been too long for a task, from contact to contact.
    pub(crate) gap: Option<(Timestamp, Timestamp)>,
}

/// When a manager was heard of last.
pub(crate) struct Contact {
    path: PathBuf,
    /// The last contact, and the one the file has.
    last: Mutex<(Timestamp, Timestamp)>,
    /// Whether the file could not be written the last time: that is said once.
    failing: AtomicBool,
    away: watch::Sender<Away>,
}

impl Contact {
    /// Begins without a session, with the last contact of the agent before if this is still the same boot.
    pub(crate) fn open(path: PathBuf) -> Self {
        let known = std::fs::read_to_string(&path).ok().and_then(|text| {
            let (boot, ms) = text.trim().split_once(' ')?;
            (boot == boot_id()).then(|| ms.parse().ok().map(Timestamp))?
        });
        // After a reboot nothing runs that could have outlived anything.
        let last = known.unwrap_or_else(boottime).min(boottime());
        Self {
            path,
            last: Mutex::new((last, last)),
            failing: AtomicBool::new(false),
            away: watch::Sender::new(Away {
                since: Some(last),
                gap: None,
            }),
        }
    }

    /// A manager answered what was sent at `sent`.
    pub(crate) fn heard(&self, sent: Timestamp) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.0 = last.0.max(sent);
        if last.0.since(last.1) >= WRITE_EVERY {
            last.1 = last.0;
            // Without the file a restarted agent counts from its own start; the tasks do not depend on more.
            let written = std::fs::write(&self.path, format!("{} {}\n", boot_id(), last.0.0));
            let failed_before = self.failing.swap(written.is_err(), Ordering::Relaxed);
            if let Err(error) = written
                && !failed_before
            {
                tracing::warn!(%error, path = %self.path.display(), "remember the last contact with a manager");
            }
        }
        drop(last);
        self.away.send_if_modified(|away| {
            let Some(since) = away.since.take() else {
                return false;
            };
            if sent.since(since) >= STOP_AFTER_MIN {
                away.gap = Some((since, sent));
            }
            true
        });
    }

    /// The session ended.
    pub(crate) fn lost(&self) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).0;
        self.away.send_modify(|away| away.since = Some(last));
    }

    /// Whether managers are reached, from now on.
    pub(crate) fn away(&self) -> watch::Receiver<Away> {
        self.away.subscribe()
    }
}

/// Stops in time what the agent before left running and must not outlive its manager. To be ended with the first
/// assignment: from then on each task has its worker.
///
/// Tasks of `known` have a worker already, which does the same for them.
pub(crate) async fn guard(shared: Arc<Shared>, known: BTreeSet<TaskId>) {
    let mut away = shared.contact.away();
    loop {
        let since = away.borrow_and_update().since;
        let mut next: Option<Timestamp> = None;
        for (id, rule) in bound(&shared) {
            let Some(since) = since else { break };
            if id.parse().is_ok_and(|id| known.contains(&id)) {
                continue;
            }
            let OnDisconnect::StopAfter(after) = rule else {
                continue;
            };
            let gone = boottime().since(since);
            if !rule.stops(gone) {
                next = Some(next.map_or(since + after, |n| n.min(since + after)));
                continue;
            }
            tracing::warn!(
                task = id,
                "no manager was reached for {} s: stopping it",
                gone.as_secs()
            );
            let grace = rule.grace(Duration::MAX, gone);
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Err(error) = shared.runtime.stop(&id, libc::SIGTERM, grace).await {
                    tracing::error!(%error, "stop a task that may not outlive its manager");
                }
            });
        }
        let pause = async {
            match next {
                Some(at) => tokio::time::sleep(at.since(boottime()).max(Duration::from_millis(10))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = away.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

/// Running containers with such a bound.
fn bound(shared: &Shared) -> Vec<(String, OnDisconnect)> {
    let rule = |info: &runtime::ContainerInfo| {
        let ms = info.labels.get(STOP_AFTER_LABEL)?.parse().ok()?;
        Some(OnDisconnect::StopAfter(Duration::from_millis(ms)))
    };
    let all = shared.runtime.list().into_iter();
    all.filter(|info| matches!(info.state, ContainerState::Running { .. }))
        .filter_map(|info| rule(&info).map(|r| (info.id, r)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_counts_on_unless_the_host_was_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("contact");
        let first = Contact::open(path.clone());
        let away = first.away();
        assert!(away.borrow().since.is_some(), "there is no session yet");
        let later = boottime() + WRITE_EVERY;
        first.heard(later);
        assert_eq!((away.borrow().since, away.borrow().gap), (None, None));
        first.lost();
        assert_eq!(away.borrow().since, Some(later));
        // A session after a long time tells how long it was.
        let back = later + STOP_AFTER_MIN;
        first.heard(back);
        assert_eq!(
            (away.borrow().since, away.borrow().gap),
            (None, Some((later, back)))
        );

        let early = Timestamp(1);
        std::fs::write(&path, format!("{} {}", boot_id(), early.0)).unwrap();
        assert_eq!(Contact::open(path.clone()).away().borrow().since, Some(early));
        std::fs::write(&path, format!("another-boot {}", early.0)).unwrap();
        assert_ne!(Contact::open(path).away().borrow().since, Some(early));
    }
}
