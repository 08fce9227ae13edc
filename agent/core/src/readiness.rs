//! Readiness: whether a task that runs takes connections, and how often it may change its mind.
//!
//! Each change is an entry of the log and news for all nodes. So what loses its readiness again and again is believed each
//! time a little later: its loss counts at once, its return does not.

use std::time::Duration;

use model::Timestamp;

/// How long a loss is remembered.
pub const WINDOW: Duration = Duration::from_secs(600);
/// Losses within that time after which it still comes back at once.
const FREE: usize = 5;
/// How long it stays out after one more; twice as long after each that follows.
const HOLD: Duration = Duration::from_secs(1);
/// The longest of these times.
const HOLD_MAX: Duration = Duration::from_secs(60);

/// Whether one container is ready. Times are of the clock since the host's start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    fails: bool,
    /// When it was lost within the window, the oldest first: holds keep it to some twenty.
    losses: Vec<Timestamp>,
    back_at: Timestamp,
}

impl Readiness {
    /// One that is checked, and of which nothing is known yet. The default is one that is not checked: it is ready.
    pub fn unproven() -> Self {
        Self {
            fails: true,
            ..Self::default()
        }
    }

    /// Takes the verdict of its check at `now`.
    pub fn observe(&mut self, passes: bool, now: Timestamp) {
        if self.is_ready(now) && !passes {
            self.losses.retain(|at| now.since(*at) < WINDOW);
            self.losses.push(now);
            self.back_at = now + hold(self.losses.len());
        }
        self.fails = !passes;
    }

    /// From when on it is ready; none while its check fails.
    pub fn ready_at(&self) -> Option<Timestamp> {
        (!self.fails).then_some(self.back_at)
    }

    /// How often it was lost within [`WINDOW`], and how long it stays out for that after the last time; none where it may
    /// come back at once.
    pub fn held(&self) -> Option<(usize, Duration)> {
        let held = hold(self.losses.len());
        (!held.is_zero()).then_some((self.losses.len(), held))
    }

    /// Whether it is ready.
    pub fn is_ready(&self, now: Timestamp) -> bool {
        self.ready_at().is_some_and(|at| at <= now)
    }
}

/// How long it stays out at least after so many losses.
fn hold(losses: usize) -> Duration {
    let Some(more) = losses.checked_sub(FREE + 1) else {
        return Duration::ZERO;
    };
    let factor = u32::try_from(more).ok().and_then(|n| 1u32.checked_shl(n));
    factor.map_or(HOLD_MAX, |factor| HOLD.saturating_mul(factor).min(HOLD_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_counts_at_once_and_a_return_after_many_only_later() {
        let mut r = Readiness::unproven();
        assert!(!r.is_ready(Timestamp(0)));
        let mut now = 1_000;
        let mut out = Vec::new();
        for _ in 0..14 {
            r.observe(true, Timestamp(now));
            let back = r.ready_at().expect("it passes");
            now = now.max(back.0);
            assert!(r.is_ready(Timestamp(now)));
            now += 1;
            r.observe(false, Timestamp(now));
            assert!(!r.is_ready(Timestamp(now)), "at once");
            assert_eq!(
                r.held().map(|(n, _)| n),
                (r.losses.len() > FREE).then_some(r.losses.len())
            );
            assert_eq!(r.ready_at(), None);
            r.observe(true, Timestamp(now));
            out.push(r.ready_at().expect("it passes").since(Timestamp(now)).as_secs());
        }
        assert_eq!(out, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // Later that is forgotten.
        now += 700_000;
        r.observe(false, Timestamp(now));
        r.observe(true, Timestamp(now));
        assert!(r.is_ready(Timestamp(now)));
    }

    #[test]
    fn one_without_a_check_is_ready() {
        assert!(Readiness::default().is_ready(Timestamp(0)));
    }

    #[test]
    fn however_a_probe_flaps_the_log_gets_few_entries() {
        let mut r = Readiness::unproven();
        let (mut told, mut changes) = (false, 0);
        // Ten probes a second for an hour, each with another result than the last.
        for tick in 0..36_000u64 {
            let now = Timestamp(tick * 100);
            let before = r.is_ready(now);
            r.observe(tick % 2 == 0, now);
            for ready in [before, r.is_ready(now)] {
                changes += u32::from(ready != std::mem::replace(&mut told, ready));
            }
            assert!(r.losses.len() <= 20, "{}", r.losses.len());
        }
        assert!((100..=160).contains(&changes), "{changes} in an hour");
    }
}
