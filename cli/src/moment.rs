//! Moments as people write and read them in logs, in nanoseconds since 1970.

use crate::client::Fail;

const SECOND: u64 = 1_000_000_000;

/// The time now.
pub(crate) fn now_ns() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// As Docker prints it: RFC 3339 with nine digits after the second.
pub(crate) fn print(time_ns: u64) -> String {
    let text = model::Timestamp(time_ns / SECOND * 1000).rfc3339();
    format!("{}.{:09}Z", text.trim_end_matches(".000Z"), time_ns % SECOND)
}

/// Reads `10m` (before `now_ns`), `2024-05-01T12:00:00Z`, `2024-05-01`, or seconds since 1970.
pub(crate) fn parse(text: &str, now_ns: u64) -> Result<u64, Fail> {
    if let Ok(back) = model::units::parse_duration(text) {
        let back = u64::try_from(back.as_nanos()).unwrap_or(u64::MAX);
        return Ok(now_ns.saturating_sub(back));
    }
    let seconds = text.split_once('.').unwrap_or((text, ""));
    let time = unix(seconds).or_else(|| date(text));
    time.ok_or_else(|| {
        Fail::new(format!(
            "{text} is no time: write 10m, 2024-05-01T12:00:00Z (a time without Z or +02:00 is UTC), or seconds since 1970"
        ))
    })
}

fn unix((seconds, fraction): (&str, &str)) -> Option<u64> {
    let seconds: u64 = seconds.parse().ok()?;
    seconds.checked_mul(SECOND)?.checked_add(nanos(fraction)?)
}

/// Digits after the point of a second.
fn nanos(digits: &str) -> Option<u64> {
    if digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<9}").parse().ok()
}

fn date(text: &str) -> Option<u64> {
    let (day, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let (time, offset) = match time.rfind(['Z', '+', '-']) {
        Some(at) => (&time[..at], &time[at..]),
        None => (time, "Z"),
    };
    let numbers = |text: &str, by: char| -> Option<Vec<u64>> {
        text.split(by)
            .map(|n| n.parse().ok().filter(|_| n.len() <= 4))
            .collect()
    };
    let [year, month, day] = numbers(day, '-')?.try_into().ok()?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = numbers(whole, ':')?;
    parts.resize(parts.len().max(3), 0);
    let [hour, minute, second] = parts.try_into().ok()?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let longest = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=longest).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let days = days(year, month, day);
    let local = i64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()?;
    let offset = match offset.split_at(1) {
        ("Z", "") => 0,
        (sign, text) => {
            let [hours, minutes] = numbers(text, ':')?.try_into().ok()?;
            let east = i64::try_from(hours * 3600 + minutes * 60)
                .ok()
                .filter(|s| *s < 86_400)?;
            if sign == "+" { east } else { -east }
        }
    };
    u64::try_from(local - offset)
        .ok()?
        .checked_mul(SECOND)?
        .checked_add(nanos(fraction)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that leap days are last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_docker_reads_them() {
        let now = 1_700_000_000 * SECOND;
        for (text, wanted) in [
            ("10m", now - 600 * SECOND),
            ("1h30m", now - 5400 * SECOND),
            ("1136073845.5", 1_136_073_845 * SECOND + SECOND / 2),
            ("1970-01-01", 0),
            ("2024-02-29T12:00:00Z", 1_709_208_000 * SECOND),
            ("2024-02-29T12:00:00.000000001Z", 1_709_208_000 * SECOND + 1),
            ("2024-02-29T14:00:00+02:00", 1_709_208_000 * SECOND),
            ("2024-02-29T07:00:00-05:00", 1_709_208_000 * SECOND),
            ("2024-02-29T12:00", 1_709_208_000 * SECOND),
        ] {
            assert_eq!(parse(text, now).map_err(|e| e.message), Ok(wanted), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2023-02-29",
            "2024-13-01",
            "2024-01-01T25:00",
            "2024-01-01T00:00:00+",
            "-5",
            "1.x",
        ] {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for time in [0, 1, 1_709_208_000_123_456_789, 4_102_444_799_999_999_999] {
            assert_eq!(parse(&print(time), 0).map_err(|e| e.message), Ok(time));
        }
        assert_eq!(print(1_709_208_000_000_000_001), "2024-02-29T12:00:00.000000001Z");
    }
}
