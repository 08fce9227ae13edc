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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_the_third_miss() {
        let period = Duration::from_secs(5);
        assert!(!session_over(Timestamp(1_000), period, Timestamp(15_999)));
        assert!(session_over(Timestamp(1_000), period, Timestamp(16_000)));
        // A clock cannot run back, and if it did nothing would end.
        assert!(!session_over(Timestamp(1_000), period, Timestamp(0)));
    }
}
