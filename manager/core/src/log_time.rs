//! The clock of the log: what an entry says of its time, whatever somebody does to the wall clocks of the managers.
//!
//! Delays, monitors and windows are measured in it. So while a manager runs it never steps back, leaps or stands still:
//! it begins with the wall clock, goes on as the clock does that nobody sets, and leans a tenth towards the wall clock.

use std::time::Duration;

use model::Timestamp;

/// Part of the elapsed time by which it may be slower or faster than that time.
const LEAN: u32 = 10;
/// Time after which the clock is read off into its base: shorter ones would be lost to rounding.
const REBASE: Duration = Duration::from_secs(1);

/// The clock of one manager, from its start to its end. `mono` is a clock that nobody sets, from any beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogClock {
    /// What it said, and when.
    base: (Timestamp, Timestamp),
    /// Time of the newest entry, and when it was applied here.
    entry: (Timestamp, Timestamp),
    /// The latest it ever said.
    said: Timestamp,
}

impl LogClock {
    /// A manager that starts believes its wall clock.
    pub fn new(wall: Timestamp, mono: Timestamp) -> Self {
        Self {
            base: (wall, mono),
            entry: (Timestamp(0), mono),
            said: Timestamp(0),
        }
    }

    /// An entry was applied. One from a leader whose clock was ahead moves this one forward, so that time never runs back
    /// from entry to entry.
    pub fn applied(&mut self, entry: Timestamp, mono: Timestamp) {
        if entry >= self.entry.0 {
            self.entry = (entry, mono);
        }
    }

    /// The time for the next entry.
    pub fn now(&mut self, wall: Timestamp, mono: Timestamp) -> Timestamp {
        let elapsed = mono.since(self.base.1);
        let lean = elapsed / LEAN;
        let own = wall.clamp(self.base.0 + (elapsed - lean), self.base.0 + (elapsed + lean));
        if elapsed >= REBASE {
            self.base = (own, mono);
        }
        let since = mono.since(self.entry.1);
        let after = self.entry.0 + (since - since / LEAN);
        self.said = self.said.max(own).max(after);
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEARS: u64 = 10 * 365 * 86_400_000;

    #[test]
    fn a_wall_clock_that_is_set_moves_the_log_by_a_tenth_at_most() {
        for (name, wall, want) in [
            ("as it should be", YEARS + 10_000, YEARS + 10_000),
            ("a little fast", YEARS + 10_500, YEARS + 10_500),
            ("an hour ahead", YEARS + 3_610_000, YEARS + 11_000),
            ("an hour behind", YEARS - 3_590_000, YEARS + 9_000),
            ("ten years ahead", 2 * YEARS, YEARS + 11_000),
            ("1970", 0, YEARS + 9_000),
        ] {
            let mut clock = LogClock::new(Timestamp(YEARS), Timestamp(5));
            assert_eq!(
                clock.now(Timestamp(wall), Timestamp(10_005)),
                Timestamp(want),
                "{name}"
            );
        }
    }

    #[test]
    fn it_follows_an_entry_from_the_future_and_neither_waits_for_it_nor_goes_back() {
        let mut clock = LogClock::new(Timestamp(1_000), Timestamp(0));
        clock.applied(Timestamp(YEARS), Timestamp(100));
        assert_eq!(clock.now(Timestamp(1_100), Timestamp(100)), Timestamp(YEARS));
        assert_eq!(
            clock.now(Timestamp(11_100), Timestamp(10_100)),
            Timestamp(YEARS + 9_000)
        );
        // Old ones, as a manager applies them when it starts, change nothing.
        clock.applied(Timestamp(7), Timestamp(10_100));
        assert_eq!(
            clock.now(Timestamp(11_101), Timestamp(10_101)),
            Timestamp(YEARS + 9_000)
        );
    }

    #[test]
    fn it_goes_on_however_often_it_is_asked_and_wherever_the_wall_clock_is() {
        let mut clock = LogClock::new(Timestamp(YEARS), Timestamp(0));
        let mut last = Timestamp(0);
        for ms in 0..20_000 {
            let wall = if ms % 2 == 0 { 0 } else { 3 * YEARS };
            let now = clock.now(Timestamp(wall), Timestamp(ms));
            assert!(now >= last, "at {ms} ms");
            last = now;
        }
        assert!(
            (Timestamp(YEARS + 17_900)..=Timestamp(YEARS + 22_100)).contains(&last),
            "{last:?}"
        );
    }
}
