//! When hooks of a container run, and for how long.

use std::time::Duration;

use model::task_state::TaskState;

/// What is kept of the grace for the container's own end.
const OWN_END: Duration = Duration::from_secs(1);

/// How long the hooks before a stop may take of its grace: a quarter of it, at most a second, is for the process itself, which
/// is still asked before it is killed.
pub fn pre_stop_limit(grace: Duration) -> Duration {
    grace.saturating_sub(OWN_END.min(grace / 4))
}

/// Whether the hooks after a start are to run in a container that is found running: not where they ended well, which the
/// managers know by its state.
pub fn post_start_is_open(known: TaskState) -> bool {
    known < TaskState::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_keeps_time_for_the_process_itself() {
        let ms = Duration::from_millis;
        for (grace, limit) in [(0, 0), (1, 0), (400, 300), (4_000, 3_000), (10_000, 9_000)] {
            let got = pre_stop_limit(ms(grace));
            assert_eq!(got.as_millis(), limit, "{grace}");
        }
    }

    #[test]
    fn hooks_after_the_start_run_again_until_it_runs() {
        for (known, open) in [
            (TaskState::Ready, true),
            (TaskState::Starting, true),
            (TaskState::Running, false),
            (TaskState::Failed, false),
        ] {
            assert_eq!(post_start_is_open(known), open, "{known:?}");
        }
    }
}
