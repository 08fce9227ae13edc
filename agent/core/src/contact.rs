//! When an agent takes its session for lost although nobody said so, and whom it asks then, for how long.

use std::time::Duration;

use model::{NodeId, Timestamp};

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

/// How long the first manager that is tried may take until a connection stands, and any.
pub const CONNECT_FIRST: Duration = Duration::from_secs(1);
/// The same after several failures.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);

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

/// Managers in the order in which they are tried by node `own` after it lost `lost`: its own manager first, which needs
/// no network and knows who leads; the lost one last, whose host may be without power and lets a caller wait. The others
/// begin at random: `share` is from 0 to 1.
pub fn order(managers: &[NodeId], own: NodeId, lost: Option<NodeId>, share: f64) -> Vec<NodeId> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small number, rounded down"
    )]
    let first = (share * managers.len() as f64) as usize;
    let mut all = managers.to_vec();
    all.rotate_left(first % managers.len().max(1));
    all.sort_by_key(|id| match *id {
        id if Some(id) == lost => 2,
        id if id == own => 0,
        _ => 1,
    });
    all
}

/// How long a manager may take until a connection to it stands, after so many `failures` in a row: not long, as another
/// one may answer at once; longer each time, as all may be far away; and longer where many nodes come at the same time.
pub fn connect_limit(failures: u32, period: Option<Duration>) -> Duration {
    let least = period.unwrap_or_default() / 2;
    let limit = CONNECT_FIRST.saturating_mul(1 << failures.min(8));
    limit.max(least).min(CONNECT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_manager_is_asked_first_and_the_lost_one_last() {
        let ids = |ids: &[u128]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let all = ids(&[1, 2, 3]);
        for (name, own, lost, share, wanted) in [
            ("a worker begins anywhere", 9, None, 0.0, [1, 2, 3]),
            ("or here", 9, None, 0.99, [3, 1, 2]),
            ("or at the very end of chance", 9, None, 1.0, [1, 2, 3]),
            ("a worker lost one", 9, Some(1), 0.0, [2, 3, 1]),
            ("a manager", 2, None, 0.0, [2, 1, 3]),
            ("a manager lost another", 2, Some(1), 0.0, [2, 3, 1]),
            ("a manager lost itself", 2, Some(2), 0.0, [1, 3, 2]),
            (
                "somebody is lost who is no manager any more",
                2,
                Some(7),
                0.5,
                [2, 3, 1],
            ),
        ] {
            let got = order(&all, NodeId(own), lost.map(NodeId), share);
            assert_eq!(got, ids(&wanted), "{name}");
        }
        assert_eq!(order(&[], NodeId(1), None, 0.5), [], "nobody is known");
    }

    #[test]
    fn a_connection_may_take_longer_each_time_and_in_a_large_cluster() {
        let ms = Duration::from_millis;
        for (failures, period, wanted) in [
            (0, None, 1_000),
            (1, None, 2_000),
            (2, Some(1_500), 4_000),
            (3, None, 5_000),
            (u32::MAX, None, 5_000),
            (0, Some(1_500), 1_000),
            (0, Some(6_000), 3_000),
            (0, Some(100_000), 5_000),
        ] {
            let limit = connect_limit(failures, period.map(ms));
            assert_eq!(limit, ms(wanted), "{failures} {period:?}");
        }
    }

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
