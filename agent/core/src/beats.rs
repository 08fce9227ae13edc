//! Heartbeats of a session that are not answered: when they go over another connection as well, and when it is over.

use std::collections::VecDeque;
use std::time::Duration;

use model::Timestamp;

use crate::contact::MISSES;

/// Connections that heartbeats take turns on, at most. Where packets are lost, what follows on the same connection waits
/// until they are sent again, for seconds.
pub const LINES_MAX: usize = 2;

/// Heartbeats that wait for their answers. Times are of the clock since the host's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beats {
    period: Duration,
    /// When the last one that was answered was sent.
    last: Timestamp,
    waiting: VecDeque<Timestamp>,
    lines: usize,
}

impl Beats {
    /// Those of a session that was asked for at `now`, over one connection.
    pub fn new(period: Duration, now: Timestamp) -> Self {
        Self {
            period,
            last: now,
            waiting: VecDeque::new(),
            lines: 1,
        }
    }

    /// Time from one to the next.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// When the last one that was answered was sent.
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// One is sent.
    pub fn send(&mut self, now: Timestamp) {
        // The oldest counts, and the last says when all are answered; of those between a few are enough.
        self.waiting.truncate(MISSES as usize);
        self.waiting.push_back(now);
    }

    /// The one that was sent at `sent` is answered, with the period from now on.
    pub fn answered(&mut self, sent: Timestamp, period: Duration) {
        self.period = period;
        self.last = self.last.max(sent);
        self.waiting.retain(|waiting| *waiting > sent);
    }

    /// So many connections stand.
    pub fn stand(&mut self, lines: usize) {
        self.lines = lines;
    }

    /// When another connection is to be opened, if nothing is answered until then.
    pub fn another_at(&self) -> Option<Timestamp> {
        let first = self.waiting.front().filter(|_| self.lines < LINES_MAX);
        first.map(|sent| *sent + self.period / 2)
    }

    /// When the session is over, if nothing is answered until then: over one connection a period after what was sent, as
    /// nobody may be there; over several, which showed that somebody is, when no manager counts on it any more.
    pub fn over_at(&self) -> Option<Timestamp> {
        let first = self.waiting.front()?;
        Some(if self.lines > 1 {
            self.last + self.period * MISSES
        } else {
            *first + self.period
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(1_500);

    fn at(ms: u64) -> Timestamp {
        Timestamp(ms)
    }

    #[test]
    fn one_connection_is_given_up_after_a_period_and_two_when_nobody_counts_on_them() {
        let mut beats = Beats::new(PERIOD, at(1_000));
        assert_eq!((beats.another_at(), beats.over_at()), (None, None));
        beats.send(at(2_500));
        assert_eq!(
            (beats.another_at(), beats.over_at()),
            (Some(at(3_250)), Some(at(4_000)))
        );
        beats.stand(2);
        beats.send(at(3_300));
        assert_eq!((beats.another_at(), beats.over_at()), (None, Some(at(5_500))));
        beats.answered(at(3_300), PERIOD);
        assert_eq!(
            (beats.over_at(), beats.last()),
            (None, at(3_300)),
            "both are answered"
        );
        beats.send(at(5_000));
        beats.answered(at(2_500), PERIOD);
        assert_eq!(
            (beats.over_at(), beats.last()),
            (Some(at(7_800)), at(3_300)),
            "an old answer says nothing"
        );
        beats.stand(1);
        assert_eq!(beats.over_at(), Some(at(6_500)));
    }

    #[test]
    fn few_are_remembered() {
        let mut beats = Beats::new(PERIOD, at(0));
        for n in 0..100 {
            beats.send(at(n));
        }
        assert_eq!(beats.waiting.len(), MISSES as usize + 1);
        assert_eq!(beats.over_at(), Some(at(1_500)), "the oldest counts");
        beats.answered(at(99), PERIOD);
        assert_eq!(beats.over_at(), None);
    }
}
