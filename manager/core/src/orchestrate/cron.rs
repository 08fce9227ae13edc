//! When a schedule fires: functions of the schedule and a time, which read no clock.
//!
//! Where a zone's clock leaps forward, what was due in the gap fires at its end; where it goes back, a fixed time fires
//! once, and what repeats through the hour goes on repeating (as cron(8) of Vixie and Debian).

use std::time::Duration;

use chrono::{DateTime, TimeZone};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use model::Timestamp;
use model::spec::Schedule;

/// Longest text of a schedule; a list of all 60 minutes has 169 characters.
const CRON_MAX: usize = 512;

/// From how much later on the next time is looked for where none is found: a zone may leave out a day (Samoa did in 2011).
const AHEAD: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(24 * 3_600),
    Duration::from_secs(48 * 3_600),
];

/// A schedule that was understood.
pub(crate) struct Clock {
    cron: Cron,
    zone: Tz,
}

impl Clock {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it, for who wrote it.
    pub(crate) fn new(schedule: &Schedule) -> Result<Self, String> {
        let text = schedule.cron.trim();
        let problem = |why: String| {
            format!(
                "schedule \"{}\": {why}: write minute, hour, day of month, month and day of week, such as \"*/5 * * * *\", with seconds \
                 before them where they are needed, or @hourly, @daily, @weekly, @monthly or @yearly",
                text.chars().take(80).collect::<String>()
            )
        };
        if text.len() > CRON_MAX {
            return Err(problem(format!("it has more than {CRON_MAX} characters")));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        let cron = parser
            .parse(text)
            .map_err(|e| problem(e.to_string().trim_end_matches('.').to_owned()))?;
        let zone = match schedule.timezone.as_str() {
            "" => Tz::UTC,
            name => name.parse().map_err(|_| {
                format!("there is no time zone \"{name}\": write one of the IANA database, such as Europe/Berlin, or UTC")
            })?,
        };
        Ok(Self { cron, zone })
    }

    /// The first time after another at which it fires; none: never again.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        AHEAD.into_iter().find_map(|ahead| {
            let from = self.moment(after + ahead)?;
            let found = self.cron.find_next_occurrence(&from, false).ok()?;
            instant(&found).filter(|at| *at > after)
        })
    }

    /// The last time from `first`, at which it fires, until `now`, at which it does.
    pub(crate) fn last(&self, first: Timestamp, now: Timestamp) -> Timestamp {
        let found = (self.moment(now)).and_then(|now| self.cron.find_previous_occurrence(&now, true).ok());
        let last = found.as_ref().and_then(instant);
        last.filter(|at| (first..=now).contains(at)).unwrap_or(first)
    }

    fn moment(&self, at: Timestamp) -> Option<DateTime<Tz>> {
        let seconds = i64::try_from(at.0 / 1_000).ok()?;
        self.zone.timestamp_opt(seconds, 0).single()
    }
}

fn instant(at: &DateTime<Tz>) -> Option<Timestamp> {
    let seconds = u64::try_from(at.timestamp()).ok()?;
    Some(Timestamp(seconds.checked_mul(1_000)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(cron: &str, timezone: &str) -> Result<Clock, String> {
        Clock::new(&Schedule {
            cron: cron.into(),
            timezone: timezone.into(),
            ..Schedule::default()
        })
    }

    /// UTC.
    fn at(text: &str) -> Timestamp {
        let parsed: DateTime<chrono::Utc> = text.parse().expect("RFC 3339");
        Timestamp(u64::try_from(parsed.timestamp_millis()).expect("after 1970"))
    }

    #[test]
    fn it_fires_when_the_clock_of_its_zone_says_so() {
        let rows: [(&str, &str, &str, &[&str]); 9] = [
            (
                "*/5 * * * *",
                "",
                "2026-11-28T16:53:20.500Z",
                &["2026-11-28T16:55:00Z", "2026-11-28T17:00:00Z"],
            ),
            (
                "*/5 * * * *",
                "",
                "2026-11-28T16:55:00Z",
                &["2026-11-28T17:00:00Z"],
            ),
            (
                "*/3 * * * * *",
                "UTC",
                "2026-11-28T16:55:59.999Z",
                &["2026-11-28T16:56:00Z", "2026-11-28T16:56:03Z"],
            ),
            (
                "30 8 * * mon",
                "Europe/Berlin",
                "2026-11-28T00:00:00Z",
                &["2026-11-30T07:30:00Z"],
            ),
            (
                "@daily",
                "America/New_York",
                "2026-07-01T12:00:00Z",
                &["2026-07-02T04:00:00Z"],
            ),
            // The last Sunday of March: 02:30 does not exist in Berlin.
            (
                "30 2 * * *",
                "Europe/Berlin",
                "2026-03-28T12:00:00Z",
                &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            ),
            // The last Sunday of October: 02:30 is there twice, and it fires once.
            (
                "30 2 * * *",
                "Europe/Berlin",
                "2026-10-24T12:00:00Z",
                &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            ),
            // What repeats goes on in both hours.
            (
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-10-25T00:10:00Z",
                &[
                    "2026-10-25T00:30:00Z",
                    "2026-10-25T01:00:00Z",
                    "2026-10-25T01:30:00Z",
                ],
            ),
            (
                "0 0 29 2 *",
                "",
                "2026-01-01T00:00:00Z",
                &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
            ),
        ];
        for (cron, zone, after, fires) in rows {
            let clock = clock(cron, zone).expect("understood");
            let mut now = at(after);
            for fire in fires {
                let next = clock.next(now).expect("it fires");
                assert_eq!(next, at(fire), "{cron} {zone} after {after}: {}", next.rfc3339());
                now = next;
            }
        }
    }

    #[test]
    fn who_comes_late_finds_the_last_time_that_was_missed() {
        for (cron, first, now, last) in [
            (
                "*/5 * * * *",
                "2026-11-28T16:55:00Z",
                "2026-11-28T16:55:00Z",
                "2026-11-28T16:55:00Z",
            ),
            (
                "*/5 * * * *",
                "2026-11-28T16:55:00Z",
                "2026-11-28T16:59:59.9Z",
                "2026-11-28T16:55:00Z",
            ),
            (
                "*/5 * * * *",
                "2026-11-28T16:55:00Z",
                "2026-12-28T16:59:59.9Z",
                "2026-12-28T16:55:00Z",
            ),
            (
                "0 0 1 1 *",
                "2027-01-01T00:00:00Z",
                "2027-01-01T00:00:03Z",
                "2027-01-01T00:00:00Z",
            ),
        ] {
            let clock = clock(cron, "").expect("understood");
            assert_eq!(clock.last(at(first), at(now)), at(last), "{cron} {now}");
        }
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        for (cron, zone, part) in [
            ("", "", "empty"),
            ("every day", "", "write minute"),
            ("* * *", "", "write minute"),
            ("61 * * * *", "", "write minute"),
            ("* * * * *", "Europe/Bärlin", "no time zone"),
            (&"1,".repeat(400), "", "more than 512"),
        ] {
            let error = clock(cron, zone).err().expect("refused");
            assert!(error.contains(part), "{cron}: {error}");
        }
        let never = clock("0 0 30 2 *", "").expect("it is well written");
        assert_eq!(
            never.next(at("2026-01-01T00:00:00Z")),
            None,
            "there is no 30th of February"
        );
    }

    #[test]
    fn times_only_grow_whatever_the_zone() {
        for zone in [
            "",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "Pacific/Apia",
        ] {
            for cron in [
                "*/7 * * * *",
                "13 2 * * *",
                "0 */2 * * *",
                "59 23 * * sun",
                "30 1,2,3 * * *",
            ] {
                let clock = clock(cron, zone).expect("understood");
                let mut now = at("2011-12-01T00:00:00Z");
                for _ in 0..500 {
                    let next = clock
                        .next(now)
                        .unwrap_or_else(|| panic!("{cron} {zone} after {}", now.rfc3339()));
                    assert!(
                        next > now,
                        "{cron} {zone}: {} after {}",
                        next.rfc3339(),
                        now.rfc3339()
                    );
                    let last = clock.last(next, next);
                    assert_eq!(last, next, "{cron} {zone}");
                    now = next;
                }
            }
        }
    }
}
