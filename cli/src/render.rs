//! Every table and message a person sees.

use std::io::Write;
use std::process::ExitCode;

use serde_json::Value;

use crate::client::Fail;
use crate::template::Template;

/// Prints why a command failed.
pub(crate) fn fail(error: &Fail) -> ExitCode {
    eprintln!("Error: {}", error.message);
    ExitCode::from(1)
}

/// Prints a line; a reader that went away ends the program quietly.
/// Prints text as it is.
pub(crate) fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    // Who reads the output may have gone; nothing is lost with it.
    let _ = std::io::Write::write_all(&mut out, text.as_bytes());
}

/// Says what the user should know, beside the output.
pub(crate) fn warn(text: &str) {
    eprintln!("WARNING: {text}");
}

/// Says how far something is, beside the output.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// Prints a line.
pub(crate) fn line(text: impl AsRef<str>) {
    if writeln!(std::io::stdout(), "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// How a list is printed.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct ListArgs {
    /// Only what matches KEY=VALUE.
    #[arg(long, short = 'f', value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// `table`, `json`, a Go template, or `table TEMPLATE`.
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Ids only.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Nothing cut off.
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// What a filter of a list looks at.
pub(crate) enum Look {
    /// The field begins with the value.
    Begins(&'static str),
    /// The field holds the value somewhere.
    Holds(&'static str),
    /// The field is the value.
    Is(&'static str),
    /// The mapping has the key, or the key with that value.
    Label(&'static str),
}

/// Keeps rows that match: one of the values of every key that is given, as with Docker.
pub(crate) fn filter(rows: &mut Vec<Value>, given: &[String], known: &[(&str, Look)]) -> Result<(), Fail> {
    let mut wanted: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for text in given {
        let pair = text
            .split_once('=')
            .filter(|(k, _)| known.iter().any(|(n, _)| n == k));
        let (key, value) = pair.ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
            Fail::new(format!(
                "the filter \"{text}\" is not known here: write KEY=VALUE with one of {}",
                names.join(", ")
            ))
        })?;
        wanted.entry(key).or_default().push(value);
    }
    let text = |row: &Value, field: &str| match &row[field] {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    for (key, values) in &wanted {
        let Some((_, look)) = known.iter().find(|(n, _)| n == key) else {
            continue;
        };
        let matches = |row: &Value, value: &str| match look {
            Look::Begins(field) => text(row, field).starts_with(value),
            Look::Holds(field) => text(row, field).contains(value),
            Look::Is(field) => text(row, field) == value,
            Look::Label(field) => match value.split_once('=') {
                Some((k, v)) => row[*field].get(k).is_some_and(|have| have == v),
                None => row[*field].get(value).is_some(),
            },
        };
        rows.retain(|row| values.iter().any(|v| matches(row, v)));
    }
    Ok(())
}

/// Prints rows: as a table of `columns` (heading and field), as JSON lines, by a template, or ids only.
pub(crate) fn list(rows: &[Value], columns: &[(&str, &str)], args: &ListArgs) -> Result<(), Fail> {
    let text = |v: &Value, field: &str| match v.get(field) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    if args.quiet && args.format.is_none() {
        rows.iter().for_each(|r| line(text(r, "ID")));
        return Ok(());
    }
    match args.format.as_deref() {
        None | Some("table") => {
            let head: Vec<String> = columns.iter().map(|(h, _)| (*h).to_owned()).collect();
            let body = rows
                .iter()
                .map(|r| columns.iter().map(|(_, f)| text(r, f)).collect());
            table(std::iter::once(head).chain(body).collect());
        }
        Some("json") => rows.iter().for_each(|r| line(r.to_string())),
        Some(format) => {
            let (heads, text) = format
                .strip_prefix("table ")
                .map_or((false, format), |t| (true, t));
            let text = text.replace("\\t", "\t").replace("\\n", "\n");
            let template = Template::parse(&text)?;
            let mut out: Vec<Vec<String>> = Vec::new();
            if heads {
                let names = columns
                    .iter()
                    .map(|(h, f)| ((*f).to_owned(), Value::String((*h).to_owned())))
                    .collect();
                out.push(
                    template
                        .render(&Value::Object(names))?
                        .split('\t')
                        .map(str::to_owned)
                        .collect(),
                );
            }
            for row in rows {
                let text = template.render(row)?;
                if heads {
                    out.push(text.split('\t').map(str::to_owned).collect());
                } else {
                    line(text);
                }
            }
            table(out);
        }
    }
    Ok(())
}

/// A number of tasks, in words.
pub(crate) fn tasks(count: usize) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} task{ending}")
}

/// A text in one line, in which nothing steers a terminal: what programs say may have any characters.
pub(crate) fn one_line(text: &str) -> String {
    let lines = text.split(|c: char| c.is_control()).map(str::trim);
    lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Prints cells in columns, three spaces apart, as Docker does.
pub(crate) fn table(mut rows: Vec<Vec<String>>) {
    for cell in rows.iter_mut().flatten() {
        if cell.contains(char::is_control) {
            *cell = one_line(cell);
        }
    }
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|t| t.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(c, t)| format!("{t}{}", " ".repeat(widths[c] - t.chars().count())))
            .collect();
        line(cells.join("   ").trim_end());
    }
}

/// How objects are shown.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct InspectArgs {
    /// `json`, or a Go template.
    #[arg(long, short)]
    format: Option<String>,
    /// For people: an indented list of what is set.
    #[arg(long, conflicts_with = "format")]
    pub(crate) pretty: bool,
}

/// Prints objects of `inspect`.
pub(crate) fn inspect(values: &[Value], how: &InspectArgs) -> Result<(), Fail> {
    if how.pretty {
        let texts: Vec<String> = values.iter().map(|v| pretty(v, 0)).collect();
        line(texts.join("\n").trim_end());
        return Ok(());
    }
    formatted(values, how.format.as_deref())
}

/// Prints a JSON list, or each object by a template.
pub(crate) fn formatted(values: &[Value], format: Option<&str>) -> Result<(), Fail> {
    match format {
        None | Some("json") => line(serde_json::to_string_pretty(values).unwrap_or_default()),
        Some(format) => {
            let template = Template::parse(format)?;
            for value in values {
                line(template.render(value)?);
            }
        }
    }
    Ok(())
}

/// A value that holds no others, for people: by its key a number may be a time in ns, bytes, or billionths of a CPU.
pub(crate) fn scalar(key: &str, value: &Value) -> String {
    const TIMES: [&str; 14] = [
        "Delay",
        "Interval",
        "MaxDelay",
        "Monitor",
        "ProgressDeadline",
        "ResetAfter",
        "ScaleDownAfter",
        "StartInterval",
        "StartPeriod",
        "StartingDeadline",
        "StopAfter",
        "StopGracePeriod",
        "Timeout",
        "Window",
    ];
    match (key, value, value.as_u64()) {
        (_, Value::String(s), _) => s.clone(),
        (key, _, Some(ns)) if TIMES.contains(&key) => {
            model::units::format_duration(std::time::Duration::from_nanos(ns))
        }
        ("MemoryBytes" | "SizeBytes", _, Some(count)) => bytes(count, 1024, 4),
        ("NanoCPUs", _, Some(billionths)) => format!("{} CPUs", billionths as f64 / 1e9),
        (_, other, _) => other.to_string(),
    }
}

/// Keys and values, one a line, each level a space further in; what is empty or no is left out, and but for numbers of
/// replicas also what is 0.
fn pretty(value: &Value, depth: usize) -> String {
    fn empty(key: &str, value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.iter().all(|(key, v)| empty(key, v)),
            Value::Bool(true) => false,
            Value::Number(n) => n.as_f64() == Some(0.0) && key != "Replicas",
        }
    }
    let indent = " ".repeat(depth);
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, v)| !empty(key, v))
            .map(|(key, v)| match v {
                Value::Object(_) | Value::Array(_) => format!("{indent}{key}:\n{}", pretty(v, depth + 1)),
                v => format!("{indent}{key}: {}\n", scalar(key, v)),
            })
            .collect(),
        Value::Array(list) => list
            .iter()
            .map(|v| match v {
                Value::Object(_) | Value::Array(_) => pretty(v, depth),
                v => format!("{indent}{}\n", scalar("", v)),
            })
            .collect(),
        v => format!("{indent}{}\n", scalar("", v)),
    }
}

/// The time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago, as Docker says it.
pub(crate) fn ago(at_ms: u64) -> String {
    let seconds = now_ms().saturating_sub(at_ms) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => "Less than a second ago".into(),
        1 => "1 second ago".into(),
        2..60 => format!("{seconds} seconds ago"),
        60..120 => "About a minute ago".into(),
        120..3600 => format!("{minutes} minutes ago"),
        3600..7200 => "About an hour ago".into(),
        7200..172_800 => format!("{hours} hours ago"),
        _ => format!("{days} days ago"),
    }
}

/// A number of bytes as Docker writes it: three or four digits that mean something, and a unit of 1024 or 1000.
pub(crate) fn bytes(count: u64, step: u32, digits: usize) -> String {
    let units: [&str; 6] = if step == 1024 {
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    } else {
        ["B", "kB", "MB", "GB", "TB", "PB"]
    };
    let (mut value, mut unit) = (count as f64, 0);
    while value >= f64::from(step) && unit + 1 < units.len() {
        value /= f64::from(step);
        unit += 1;
    }
    let before = format!("{}", value.trunc()).len();
    let text = format!("{value:.*}", digits.saturating_sub(before));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", units[unit])
}

/// The first 12 characters, unless nothing is to be cut.
pub(crate) fn short(id: &str, whole: bool) -> String {
    if whole {
        id.to_owned()
    } else {
        id.chars().take(12).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_docker_writes_them() {
        for (count, step, digits, wanted) in [
            (0, 1024, 4, "0B"),
            (1023, 1024, 4, "1023B"),
            (1536, 1024, 4, "1.5KiB"),
            (402_653_184, 1024, 4, "384MiB"),
            (8_255_000_000, 1024, 4, "7.688GiB"),
            (1500, 1000, 3, "1.5kB"),
            (123_456, 1000, 3, "123kB"),
            (2048, 1000, 4, "2.048kB"),
            (u64::MAX, 1000, 3, "18447PB"),
        ] {
            assert_eq!(bytes(count, step, digits), wanted, "{count}");
        }
    }

    #[test]
    fn pretty_leaves_out_what_is_empty() {
        let value = serde_json::json!({
            "A": 1, "B": {"C": "x", "D": "", "E": []}, "F": ["y", {"G": true}], "H": {"I": 0, "J": {"K": false}}, "Replicas": 0,
        });
        assert_eq!(
            pretty(&value, 0),
            "A: 1\nB:\n C: x\nF:\n y\n G: true\nReplicas: 0\n"
        );
    }

    #[test]
    fn numbers_have_their_units_for_people() {
        let value = serde_json::json!({"Delay": 1_500_000_000, "MemoryBytes": 402_653_184, "NanoCPUs": 250_000_000, "Pids": 7});
        assert_eq!(
            pretty(&value, 0),
            "Delay: 1.5s\nMemoryBytes: 384MiB\nNanoCPUs: 0.25 CPUs\nPids: 7\n"
        );
    }

    #[test]
    fn nothing_in_a_line_steers_a_terminal() {
        for (text, line) in [
            ("plain", "plain"),
            ("404: <H1>\n<BODY>\r\n\tno\n", "404: <H1> <BODY> no"),
            ("a\u{1b}[2Jb", "a [2Jb"),
            ("\n", ""),
        ] {
            assert_eq!(one_line(text), line);
        }
    }

    #[test]
    fn filters_are_and_over_keys_and_or_over_values() {
        let all = [("a1", "web.1", "x"), ("a2", "web.2", "y"), ("b1", "db.1", "x")];
        let known = || {
            [
                ("id", Look::Begins("ID")),
                ("name", Look::Holds("Name")),
                ("state", Look::Is("State")),
                ("label", Look::Label("Labels")),
            ]
        };
        for (given, want) in [
            (vec![], vec!["a1", "a2", "b1"]),
            (vec!["name=web"], vec!["a1", "a2"]),
            (vec!["id=a", "state=x"], vec!["a1"]),
            (vec!["state=x", "state=y"], vec!["a1", "a2", "b1"]),
            (vec!["label=k"], vec!["a1", "a2", "b1"]),
            (vec!["label=k=x"], vec!["a1", "b1"]),
            (vec!["label=nosuch"], vec![]),
        ] {
            let mut rows: Vec<Value> = all
                .iter()
                .map(|(id, name, state)| serde_json::json!({"ID": id, "Name": name, "State": state, "Labels": {"k": state}}))
                .collect();
            let given: Vec<String> = given.into_iter().map(str::to_owned).collect();
            filter(&mut rows, &given, &known()).expect("known keys");
            let ids: Vec<&str> = rows.iter().filter_map(|r| r["ID"].as_str()).collect();
            assert_eq!(ids, want, "{given:?}");
        }
        for bad in ["nosuch=1", "name"] {
            assert!(filter(&mut Vec::new(), &[bad.into()], &known()).is_err(), "{bad}");
        }
    }
}
