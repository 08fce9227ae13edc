//! Health: results of probes into a verdict, as Docker counts.

use std::time::Duration;

use model::Timestamp;
use model::spec::Healthcheck;

/// Verdict on a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not known yet.
    Starting,
    /// It works, or nothing is checked.
    Healthy,
    /// It failed too often in a row.
    Unhealthy,
}

/// Most bytes kept of what a probe printed.
pub const OUTPUT_MAX: usize = 4096;

/// Counts the probes of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    check: Healthcheck,
    started: Timestamp,
    failures: u32,
    /// The verdict so far.
    pub health: Health,
}

fn or(d: Duration, default: Duration) -> Duration {
    if d.is_zero() { default } else { d }
}

impl Counter {
    /// A container that started at `started`.
    pub fn new(check: Healthcheck, started: Timestamp) -> Self {
        Self {
            check,
            started,
            failures: 0,
            health: Health::Starting,
        }
    }

    /// Longest time of one probe.
    pub fn timeout(&self) -> Duration {
        or(self.check.timeout, Duration::from_secs(30))
    }

    /// Time until the next probe: short ones while the container is starting.
    pub fn pause(&self, now: Timestamp) -> Duration {
        let starting = self.health == Health::Starting && now.since(self.started) < self.check.start_period;
        if starting {
            or(self.check.start_interval, Duration::from_secs(5))
        } else {
            or(self.check.interval, Duration::from_secs(30))
        }
    }

    /// Takes the result of a probe that ended at `now`.
    pub fn observe(&mut self, success: bool, now: Timestamp) {
        if success {
            self.failures = 0;
            self.health = Health::Healthy;
            return;
        }
        let starting = self.health == Health::Starting && now.since(self.started) < self.check.start_period;
        if starting {
            return;
        }
        self.failures += 1;
        let most = if self.check.retries == 0 {
            3
        } else {
            self.check.retries
        };
        if self.failures >= most {
            self.health = Health::Unhealthy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_in_a_row_and_not_in_the_start_period() {
        let check = Healthcheck {
            test: vec!["CMD".into()],
            retries: 2,
            start_period: Duration::from_secs(10),
            ..Healthcheck::default()
        };
        let mut c = Counter::new(check, Timestamp(0));
        assert_eq!(c.pause(Timestamp(0)), Duration::from_secs(5));
        for (at, success, want) in [
            (1, false, Health::Starting),
            (2, false, Health::Starting),
            (3, false, Health::Starting),
            (4, true, Health::Healthy),
            (5, false, Health::Healthy),
            (6, true, Health::Healthy),
            (7, false, Health::Healthy),
            (8, false, Health::Unhealthy),
        ] {
            c.observe(success, Timestamp(at * 1000));
            assert_eq!(c.health, want, "at {at} s");
        }
        assert_eq!(c.pause(Timestamp(9_000)), Duration::from_secs(30));
    }
}
