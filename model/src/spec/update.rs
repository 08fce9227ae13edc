//! Rolling changes and restarts: the knobs.

use std::time::Duration;

/// How a change of a service is rolled out (Docker's six knobs, with Docker's defaults).
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateConfig {
    /// Slots changed at the same time; 0: all.
    pub parallelism: u32,
    /// Wait between groups of slots.
    pub delay: Duration,
    /// How long a new task is watched: one that ends within it counts as failed.
    pub monitor: Duration,
    /// What happens when too many fail.
    pub failure_action: FailureAction,
    /// Share of slots that may fail, 0 to 1.
    pub max_failure_ratio: f64,
    /// Whether the old task stops before the new one starts.
    pub order: UpdateOrder,
    /// Slots that are changed first, and alone until an operator promotes the rest; 0: none.
    pub canary: u32,
    /// A slot whose new task does not run so long after its slot was begun counts as failed; zero: it is waited for without bound.
    pub progress_deadline: Duration,
}

/// As Kubernetes has it; Docker waits for ever.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

// `max_failure_ratio` is checked to be a number when it is admitted, so equality is total.
impl Eq for UpdateConfig {}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            monitor: Duration::from_secs(5),
            failure_action: FailureAction::Pause,
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
            canary: 0,
            progress_deadline: PROGRESS_DEADLINE,
        }
    }
}

/// What a rollout does when more than the allowed share of slots failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureAction {
    /// Stops where it is.
    #[default]
    Pause,
    /// Goes on.
    Continue,
    /// Goes back to the spec before (not for a rollback itself).
    Rollback,
}

/// Whether the old task stops before the new one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpdateOrder {
    /// Old one first; the new one is prepared before.
    #[default]
    StopFirst,
    /// New one first.
    StartFirst,
}

/// What happens when a task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    /// When a replacement is made.
    pub condition: RestartCondition,
    /// Wait before the replacement runs; with `max_delay` the first one of several in a row.
    pub delay: Duration,
    /// Most restarts of a slot (of one spec), within `window`; 0: no bound.
    pub max_attempts: u64,
    /// Time over which attempts are counted; zero: for ever.
    pub window: Duration,
    /// Each restart in a row waits twice as long as the one before, at most this long. Not above `delay` (as by default):
    /// every one waits for `delay`, as in Docker.
    pub max_delay: Duration,
    /// A task that ran for this long was well: after it the wait is `delay` again.
    pub reset_after: Duration,
}

impl RestartPolicy {
    /// [`Self::reset_after`] where nothing is said.
    pub const RESET_AFTER: Duration = Duration::from_secs(60);
    /// What is doubled where `delay` is zero: the first restart is at once, the second waits a second.
    const BASE: Duration = Duration::from_millis(500);

    /// Whether waits grow.
    pub fn backs_off(&self) -> bool {
        self.max_delay > self.delay
    }

    /// Wait before the restart that follows `in_row` others, none of which helped.
    pub fn wait(&self, in_row: u32) -> Duration {
        if in_row == 0 || !self.backs_off() {
            return self.delay;
        }
        let base = if self.delay.is_zero() {
            Self::BASE
        } else {
            self.delay
        };
        let doubled = 1u32.checked_shl(in_row).and_then(|n| base.checked_mul(n));
        doubled.unwrap_or(Duration::MAX).min(self.max_delay)
    }

    /// After how many restarts in a row the wait grows no more.
    pub fn steps(&self) -> u32 {
        (0..u32::BITS)
            .find(|n| self.wait(*n) >= self.max_delay)
            .unwrap_or(u32::BITS)
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
            max_delay: Duration::ZERO,
            reset_after: Self::RESET_AFTER,
        }
    }
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartCondition {
    /// Never.
    None,
    /// When it failed.
    OnFailure,
    /// Always.
    #[default]
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = |delay, max_delay| RestartPolicy {
            delay: Duration::from_millis(delay),
            max_delay: Duration::from_millis(max_delay),
            ..RestartPolicy::default()
        };
        let rows: [(&str, u64, u64, &[u64], u32); 6] = [
            ("Docker's own", 5_000, 0, &[5_000, 5_000, 5_000], 0),
            ("not above the delay", 5_000, 5_000, &[5_000, 5_000], 0),
            (
                "doubled",
                1_000,
                60_000,
                &[1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000],
                6,
            ),
            (
                "not a power of two",
                5_000,
                12_000,
                &[5_000, 10_000, 12_000, 12_000],
                2,
            ),
            ("at once first", 0, 3_000, &[0, 1_000, 2_000, 3_000, 3_000], 3),
            ("none at all", 0, 0, &[0, 0], 0),
        ];
        for (name, delay, max, waits, steps) in rows {
            let policy = policy(delay, max);
            let got: Vec<Duration> = (0..).take(waits.len()).map(|n| policy.wait(n)).collect();
            let want: Vec<Duration> = waits.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert_eq!(got, want, "{name}");
            assert_eq!(policy.steps(), steps, "{name}");
        }
        let longest = policy(1, 365 * 86_400_000);
        assert_eq!(
            longest.wait(u32::MAX),
            longest.max_delay,
            "no number of restarts is too large"
        );
        assert!(longest.steps() <= u32::BITS);
    }
}
