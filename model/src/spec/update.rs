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
    /// Wait before the replacement runs.
    pub delay: Duration,
    /// Most restarts of a slot (of one spec), within `window`; 0: no bound.
    pub max_attempts: u64,
    /// Time over which attempts are counted; zero: for ever.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
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
