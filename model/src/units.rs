//! Amounts with a unit: parse and print as Docker does, arithmetic that cannot wrap.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is not an amount of this unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("\"{0}\" is not a size: write a number and b, k, m, g or t, such as 64m or 1.5g")]
    Bytes(String),
    /// Not a number of CPUs.
    #[error("\"{0}\" is not a number of CPUs: write a decimal with at most 9 places, such as 0.5")]
    Cpus(String),
    /// Not a duration.
    #[error("\"{0}\" is not a duration: write numbers with ns, us, ms, s, m or h, such as 1m30s")]
    Duration(String),
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// Billionths of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NanoCpus(pub u64);

impl FromStr for Bytes {
    type Err = UnitError;

    /// Docker's `RAMInBytes`: binary units whether written `m`, `mb` or `mib`; fractions are cut.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Bytes(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let split = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let (number, unit) = lower.split_at(split);
        let shift = match unit.trim() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(wrong()),
        };
        let (whole, nine) = decimal9(number).ok_or_else(wrong)?;
        let whole = u128::from(whole) << shift;
        let part = (u128::from(nine) << shift) / 1_000_000_000;
        u64::try_from(whole + part).map(Bytes).map_err(|_| wrong())
    }
}

impl FromStr for NanoCpus {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Cpus(text.to_owned());
        let (whole, nine) = decimal9(text.trim()).ok_or_else(wrong)?;
        whole
            .checked_mul(1_000_000_000)
            .and_then(|n| n.checked_add(nine))
            .map(NanoCpus)
            .ok_or_else(wrong)
    }
}

/// A decimal without sign: its whole part and its fraction in billionths. More than nine places are refused.
fn decimal9(text: &str) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    if !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    Some((whole, format!("{fraction:0<9}").parse().ok()?))
}

/// Reads a Go duration (`1h2m3.5s`, `300ms`, `0`), as Docker's flags and files take it.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, negative durations included.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let split = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(split);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let nanos: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let (whole, nine) = decimal9(number).ok_or_else(wrong)?;
        total += u128::from(whole) * nanos + u128::from(nine) * nanos / 1_000_000_000;
        rest = next;
    }
    u64::try_from(total)
        .map(Duration::from_nanos)
        .map_err(|_| wrong())
}

/// Prints a duration as Go does: `1m30s`, `1.5s`, `300ms`, `0s`.
pub fn format_duration(d: Duration) -> String {
    let nanos = d.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let trim = |whole: u128, part: u128, places: usize| {
        let text = format!("{whole}.{part:0places$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return trim(nanos / 1_000, nanos % 1_000, 3) + "µs";
    }
    if nanos < 1_000_000_000 {
        return trim(nanos / 1_000_000, nanos % 1_000_000, 6) + "ms";
    }
    let (secs, part) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let seconds = trim(secs % 60, part, 9) + "s";
    match (secs / 3600, secs / 60 % 60) {
        (0, 0) => seconds,
        (0, m) => format!("{m}m{seconds}"),
        (h, m) => format!("{h}h{m}m{seconds}"),
    }
}

impl fmt::Display for Bytes {
    /// Binary units with four digits, as `docker stats` prints them: `1.5GiB`, `64MiB`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (mut whole, mut rest, mut unit) = (self.0, 0, 0);
        while whole >= 1024 && unit + 1 < units.len() {
            rest = whole % 1024;
            whole /= 1024;
            unit += 1;
        }
        let tenths = rest * 10 / 1024;
        if tenths == 0 {
            write!(out, "{whole}{}", units[unit])
        } else {
            write!(out, "{whole}.{tenths}{}", units[unit])
        }
    }
}

impl fmt::Display for NanoCpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        out.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_reads_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("64m", Some(64 << 20)),
            ("1.5G", Some(3 << 29)),
            ("1gb", Some(1 << 30)),
            ("10 k", Some(10_240)),
            ("", None),
            ("-1", None),
            ("1x", None),
            ("99999999999p", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), want, "{text}");
        }
    }

    #[test]
    fn cpus_read_and_print() {
        for (text, want) in [
            ("0.5", Some(500_000_000)),
            ("2", Some(2_000_000_000)),
            ("1e3", None),
            ("", None),
            (".", None),
        ] {
            let got = text.parse::<NanoCpus>().ok();
            assert_eq!(got.map(|n| n.0), want, "{text}");
            if let Some(n) = got {
                assert_eq!(n.to_string(), text);
            }
        }
    }

    #[test]
    fn durations_read_and_print_as_in_go() {
        for text in [
            "0s", "1s", "1.5s", "1m30s", "2h0m0s", "300ms", "1h0m0.5s", "5ns", "2.5µs",
        ] {
            let d = parse_duration(text).expect(text);
            assert_eq!(format_duration(d), text);
        }
        for text in ["", "5", "-1s", "1d", "s", "1..5s", "99999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
