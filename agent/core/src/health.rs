//! Health: results of probes into a verdict, as Docker counts. Readiness is counted alike.

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
    /// Nothing of it is left to defaults.
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
    /// The health check of a container that started at `started`.
    pub fn new(check: Healthcheck, started: Timestamp) -> Self {
        let s = Duration::from_secs;
        Self::with(check, started, [s(30), s(30), s(5)])
    }

    /// Its readiness check. What was never ready is not ready, so there no failure counts and it is asked often.
    pub fn of_readiness(check: Healthcheck, started: Timestamp) -> Self {
        let s = Duration::from_secs;
        let mut counter = Self::with(check, started, [s(5), s(5), s(1)]);
        counter.check.start_period = Duration::MAX;
        counter
    }

    /// One that goes on: it was found well before.
    pub fn well(mut self) -> Self {
        self.health = Health::Healthy;
        self
    }

    fn with(check: Healthcheck, started: Timestamp, [interval, timeout, first]: [Duration; 3]) -> Self {
        let check = Healthcheck {
            interval: or(check.interval, interval),
            timeout: or(check.timeout, timeout),
            retries: if check.retries == 0 { 3 } else { check.retries },
            start_interval: or(check.start_interval, first),
            ..check
        };
        Self {
            check,
            started,
            failures: 0,
            health: Health::Starting,
        }
    }

    /// What is checked, and how often.
    pub fn check(&self) -> &Healthcheck {
        &self.check
    }

    /// Longest time of one probe.
    pub fn timeout(&self) -> Duration {
        self.check.timeout
    }

    fn is_starting(&self, now: Timestamp) -> bool {
        self.health == Health::Starting && now.since(self.started) < self.check.start_period
    }

    /// Time until the next probe: short ones while the container is starting.
    pub fn pause(&self, now: Timestamp) -> Duration {
        if self.is_starting(now) {
            self.check.start_interval
        } else {
            self.check.interval
        }
    }

    /// Takes the result of a probe that ended at `now`.
    pub fn observe(&mut self, success: bool, now: Timestamp) {
        if success {
            self.failures = 0;
            self.health = Health::Healthy;
            return;
        }
        if self.is_starting(now) {
            return;
        }
        self.failures += 1;
        if self.failures >= self.check.retries {
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
    #[test]
    fn readiness_is_asked_often_until_it_is_there_and_comes_back() {
        let check = Healthcheck {
            test: vec!["CMD".into()],
            ..Healthcheck::default()
        };
        let mut c = Counter::of_readiness(check, Timestamp(0));
        let s = Duration::from_secs;
        assert_eq!(c.timeout(), s(5));
        for (at, success, want, pause) in [
            (1, false, Health::Starting, s(1)),
            (10_000, false, Health::Starting, s(1)),
            (10_001, true, Health::Healthy, s(5)),
            (10_002, false, Health::Healthy, s(5)),
            (10_003, false, Health::Healthy, s(5)),
            (10_004, false, Health::Unhealthy, s(5)),
            (10_005, true, Health::Healthy, s(5)),
        ] {
            let now = Timestamp(at * 1000);
            c.observe(success, now);
            assert_eq!((c.health, c.pause(now)), (want, pause), "at {at} s");
        }
    }
}
