//! When an agent takes its session for lost although nobody said so.

use std::time::Duration;

use model::Timestamp;

/// Heartbeats without an answer after which no manager counts on the session any more.
pub const MISSES: u32 = 3;

/// Whether a session is over whose last answered heartbeat was sent at `last`: a host that stood still finds it so before
/// it asks anybody, and stops what may not outlive its manager. Times are of the clock since the host's start.
pub fn session_over(last: Timestamp, period: Duration, now: Timestamp) -> bool {
    now.since(last) >= period * MISSES
}

/// Bound of the first pause before a manager is tried again; each pause is chosen at random below its bound.
pub const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Bound of the pauses of a node that was told nothing of its cluster's size, and of any node.
pub const PAUSE_MAX: Duration = Duration::from_secs(8);
/// The same while a manager answers and says that nobody leads, and the least in a small cluster.
pub const PAUSE_ELECTION: Duration = Duration::from_millis(800);

/// Bound of the pause after one of `pause`: it doubles, up to half a `period` of heartbeats. The period grows with the
/// number of nodes, so that a few come back as soon as there is a leader, and ten thousand do not come at once.
pub fn next_pause(pause: Duration, electing: bool, period: Option<Duration>) -> Duration {
    let longest = match period {
        _ if electing => PAUSE_ELECTION,
        Some(period) => (period / 2).clamp(PAUSE_ELECTION, PAUSE_MAX),
        None => PAUSE_MAX,
    };
    (pause * 2).min(longest)
}

/// Bound of the pause before a manager is tried that another one named: none in a small cluster, a fifth of the period of
/// heartbeats in a large one.
pub fn hint_pause(period: Option<Duration>) -> Duration {
    const SMALL: Duration = Duration::from_millis(2_000);
    period.filter(|period| *period > SMALL).unwrap_or_default() / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_followed_at_once_where_few_follow_it() {
        let seconds = Duration::from_secs;
        for (period, wanted) in [(None, 0), (Some(2), 0), (Some(10), 2), (Some(100), 20)] {
            assert_eq!(hint_pause(period.map(seconds)), seconds(wanted), "{period:?}");
        }
    }

    #[test]
    fn a_session_ends_with_the_third_miss() {
        let period = Duration::from_secs(5);
        assert!(!session_over(Timestamp(1_000), period, Timestamp(15_999)));
        assert!(session_over(Timestamp(1_000), period, Timestamp(16_000)));
        // A clock cannot run back, and if it did nothing would end.
        assert!(!session_over(Timestamp(1_000), period, Timestamp(0)));
    }

    #[test]
    fn a_node_of_a_small_cluster_tries_often_and_one_of_a_large_one_seldom() {
        let ms = Duration::from_millis;
        for (name, pause, electing, period, wanted) in [
            ("it doubles", ms(100), false, None, ms(200)),
            ("up to eight seconds", ms(6_000), false, None, ms(8_000)),
            ("less in an election", ms(6_000), true, None, ms(800)),
            ("a few nodes", ms(6_000), false, Some(ms(1_500)), ms(800)),
            ("a thousand", ms(6_000), false, Some(ms(10_000)), ms(5_000)),
            ("ten thousand", ms(6_000), false, Some(ms(100_000)), ms(8_000)),
            ("a heartbeat of nothing", ms(6_000), false, Some(ms(0)), ms(800)),
        ] {
            assert_eq!(next_pause(pause, electing, period), wanted, "{name}");
        }
    }
}
