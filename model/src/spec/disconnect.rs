//! What becomes of a task whose node is cut off: the published disconnect rule, in numbers that agent and manager share.

use std::time::Duration;

/// What becomes of a task whose node reaches no manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum OnDisconnect {
    /// It runs on. Once its node counts as down a replacement is made at once, so that the slot may have two live
    /// tasks until the node is back.
    #[default]
    Keep,
    /// Its node stops it after this time without a manager, at least [`STOP_AFTER_MIN`]; a replacement waits
    /// [`OnDisconnect::replace_after`], so that the slot never has two live tasks.
    StopAfter(Duration),
}

/// Shortest time of [`OnDisconnect::StopAfter`]: a node notices within about two heartbeats that it is cut off, and a
/// shorter time would stop tasks for a leader change.
pub const STOP_AFTER_MIN: Duration = Duration::from_secs(10);
/// Longest time of [`OnDisconnect::StopAfter`].
pub const STOP_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the manager waits on top of 1.1 times the time.
const REPLACE_MARGIN: Duration = Duration::from_secs(2);
/// What the kill at the end may take on top of 1.05 times the time; the rest of the margin is for the kill itself and
/// for clocks that do not run alike.
const KILL_MARGIN: Duration = Duration::from_secs(1);

impl OnDisconnect {
    /// How long after a node was last heard of the manager may replace the task: 1.1 T + 2 s, or at once.
    ///
    /// The node still has to count as down as well.
    pub fn replace_after(self) -> Duration {
        match self {
            Self::Keep => Duration::ZERO,
            Self::StopAfter(after) => after + after / 10 + REPLACE_MARGIN,
        }
    }

    /// Whether a node that has reached no manager for `away` stops the task.
    pub fn stops(self, away: Duration) -> bool {
        match self {
            Self::Keep => false,
            Self::StopAfter(after) => away >= after,
        }
    }

    /// What is left of a stop grace of `asked` when the task is stopped because its node is away for `away`: it is
    /// killed at the latest 1.05 T + 1 s after the last contact.
    pub fn grace(self, asked: Duration, away: Duration) -> Duration {
        match self {
            Self::Keep => asked,
            Self::StopAfter(after) => asked.min((after + after / 20 + KILL_MARGIN).saturating_sub(away)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_done_before_the_manager_begins() {
        let s = Duration::from_secs;
        // T, asked grace, away when it notices: the kill comes before the replacement, whatever was asked for.
        for (after, asked, away) in [
            (10, 10, 10),
            (10, 0, 10),
            (60, 300, 61),
            (10, 10, 45),
            (3600, 600, 3600),
        ] {
            let rule = OnDisconnect::StopAfter(s(after));
            assert!(rule.stops(s(away)), "{after} s");
            let killed = s(away) + rule.grace(s(asked), s(away));
            let late = s(away).saturating_sub(s(after));
            assert!(
                killed + s(1) <= rule.replace_after() + late,
                "{after} s, {asked} s, {away} s"
            );
        }
        assert!(!OnDisconnect::StopAfter(s(10)).stops(Duration::from_millis(9_999)));
        assert_eq!(OnDisconnect::StopAfter(s(20)).replace_after(), s(24));
        // A host that was paused for long kills at once.
        assert_eq!(OnDisconnect::StopAfter(s(10)).grace(s(10), s(30)), Duration::ZERO);
        assert_eq!(OnDisconnect::Keep.replace_after(), Duration::ZERO);
        assert!(!OnDisconnect::Keep.stops(s(1_000_000)));
        assert_eq!(OnDisconnect::Keep.grace(s(7), s(9)), s(7));
    }
}
