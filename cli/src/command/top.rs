//! `top`: processes of a container on any node.

use proto::host::{ContainerRequest, Process};

use crate::client::{Client, Fail};
use crate::locate::locate;
use crate::{moment, render};

/// Show the processes of a container.
///
/// On a manager the container may be on any node. No `ps` is run, in the container or on its host: of the options of
/// ps, the formats `-ef` (the default), `aux` and `-o COLUMN,…` are known; users are named as the container names them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// On this node only, by name or id.
    #[arg(long)]
    node: Option<String>,
    /// Container, task (`web.1`), or the beginning of an id.
    container: String,
    /// `-ef`, `aux` or `-o pid,user,args`.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PS OPTIONS"
    )]
    options: Vec<String>,
}

const FULL: &str = "uid,pid,ppid,c,stime,tty,time,cmd";
const USER: &str = "user,pid,%cpu,%mem,vsz,rss,tty,stat,start,bsdtime,command";

/// Every column: what -o calls it, and its heading.
const COLUMNS: &[(&str, &str)] = &[
    ("pid", "PID"),
    ("cpid", "CPID"),
    ("ppid", "PPID"),
    ("uid", "UID"),
    ("user", "USER"),
    ("euser", "EUSER"),
    ("euid", "EUID"),
    ("c", "C"),
    ("%cpu", "%CPU"),
    ("pcpu", "%CPU"),
    ("%mem", "%MEM"),
    ("pmem", "%MEM"),
    ("vsz", "VSZ"),
    ("rss", "RSS"),
    ("tty", "TTY"),
    ("tt", "TT"),
    ("stat", "STAT"),
    ("state", "S"),
    ("s", "S"),
    ("start", "START"),
    ("stime", "STIME"),
    ("etimes", "ELAPSED"),
    ("time", "TIME"),
    ("bsdtime", "TIME"),
    ("nlwp", "NLWP"),
    ("ni", "NI"),
    ("comm", "COMMAND"),
    ("ucmd", "CMD"),
    ("cmd", "CMD"),
    ("args", "COMMAND"),
    ("command", "COMMAND"),
];

/// What the options of ps ask for, as columns.
fn columns(options: &[String]) -> Result<Vec<(&'static str, &'static str)>, Fail> {
    let mut wanted = None;
    let mut rest = options.iter().map(String::as_str);
    while let Some(option) = rest.next() {
        let letters = option.trim_start_matches('-');
        // `-eo pid`: every process, which is what is listed anyway; `o` takes what follows it.
        let list = match letters.find('o') {
            Some(at) if letters[..at].chars().all(|c| "eAax".contains(c)) => Some(&letters[at + 1..]),
            _ => None,
        };
        match (list, letters) {
            (Some(""), _) => {
                wanted = Some(
                    rest.next()
                        .ok_or_else(|| Fail::new("-o: write columns, such as pid,user,args"))?,
                );
            }
            (Some(list), _) => wanted = Some(list),
            (None, "e" | "A" | "a" | "x" | "ax" | "") => {}
            (None, "ef" | "f" | "Af" | "fe") => wanted = Some(FULL),
            (None, "aux" | "axu" | "u" | "au" | "xu" | "ux") => wanted = Some(USER),
            (None, _) => {
                return Err(Fail::new(format!(
                    "the option {option} of ps is not known here: use -ef, aux or -o COLUMN,…"
                )));
            }
        }
    }
    let known = |name: &str| {
        let found = COLUMNS.iter().find(|(known, _)| *known == name).copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
            Fail::new(format!("there is no column \"{name}\": use {}", names.join(", ")))
        })
    };
    wanted
        .unwrap_or(FULL)
        .split(',')
        .map(|name| known(name.trim()))
        .collect()
}

pub(crate) async fn run(client: &Client, args: Args) -> Result<u8, Fail> {
    let columns = columns(&args.options)?;
    let mut located = locate(client, &args.container, args.node.as_deref()).await?;
    let request = ContainerRequest {
        container: located.container.clone(),
    };
    let reply = located.host.top(request).await?.into_inner();
    let host = Host {
        now_ms: moment::now_ns() / 1_000_000,
        memory: reply.host_memory_bytes,
    };
    let mut rows = vec![columns.iter().map(|(_, heading)| (*heading).to_owned()).collect()];
    for process in &reply.processes {
        rows.push(
            columns
                .iter()
                .map(|(name, _)| cell(name, process, host))
                .collect(),
        );
    }
    render::table(rows);
    Ok(0)
}

#[derive(Clone, Copy)]
struct Host {
    now_ms: u64,
    memory: u64,
}

fn cell(column: &str, p: &Process, host: Host) -> String {
    let age_ms = host.now_ms.saturating_sub(p.started_at_ms).max(1);
    let cpu = p.cpu_ms as f64 * 100.0 / age_ms as f64;
    let seconds = p.cpu_ms / 1000;
    match column {
        "pid" => p.pid.to_string(),
        "cpid" => p.inner_pid.to_string(),
        "ppid" => p.parent.to_string(),
        "euid" => p.uid.to_string(),
        "uid" | "user" | "euser" if p.user.is_empty() => p.uid.to_string(),
        "uid" | "user" | "euser" => plain(&p.user),
        "c" => format!("{:.0}", cpu.min(99.0).trunc()),
        "%cpu" | "pcpu" => format!("{cpu:.1}"),
        "%mem" | "pmem" => format!(
            "{:.1}",
            p.resident_bytes as f64 * 100.0 / host.memory.max(1) as f64
        ),
        "vsz" => (p.virtual_bytes / 1024).to_string(),
        "rss" => (p.resident_bytes / 1024).to_string(),
        "tty" | "tt" => terminal(p.terminal_major, p.terminal_minor),
        "stat" | "state" | "s" => plain(&p.state),
        "start" | "stime" => start(p.started_at_ms, host.now_ms),
        "etimes" => (age_ms / 1000).to_string(),
        "time" => format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        "bsdtime" => format!("{}:{:02}", seconds / 60, seconds % 60),
        "nlwp" => p.threads.to_string(),
        "ni" => p.nice.to_string(),
        "comm" | "ucmd" => plain(&p.name),
        _ => plain(&p.command),
    }
}

/// A process chooses its name and arguments; they must not move the reader's cursor.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn terminal(major: u32, minor: u32) -> String {
    match (major, minor) {
        (0, _) => "?".into(),
        (136..=143, minor) => format!("pts/{}", (major - 136) * 256 + minor),
        (4, minor) => format!("tty{minor}"),
        (5, 1) => "console".into(),
        (major, minor) => format!("{major}:{minor}"),
    }
}

/// The time of day in UTC, or the date when that is longer ago.
fn start(at_ms: u64, now_ms: u64) -> String {
    let text = model::Timestamp(at_ms).rfc3339();
    let (from, to) = if now_ms.saturating_sub(at_ms) < 86_400_000 {
        (11, 16)
    } else {
        (5, 10)
    };
    text.get(from..to).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ps_choose_columns() {
        let names = |line: &str| {
            let options: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let found = columns(&options).map_err(|e| e.message)?;
            Ok::<_, String>(found.iter().map(|(_, h)| *h).collect::<Vec<_>>().join(" "))
        };
        for (line, wanted) in [
            ("", "UID PID PPID C STIME TTY TIME CMD"),
            ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
            ("aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"),
            ("-o pid,args", "PID COMMAND"),
            ("-eo pid,ppid", "PID PPID"),
            ("-opid", "PID"),
            ("-e -o user", "USER"),
        ] {
            assert_eq!(names(line).as_deref(), Ok(wanted), "{line}");
        }
        for (line, part) in [
            ("-o", "write columns"),
            ("-o pid,nosuch", "nosuch"),
            ("--forest", "--forest"),
        ] {
            assert!(names(line).unwrap_err().contains(part), "{line}");
        }
    }

    #[test]
    fn cells_are_what_ps_would_print() {
        let host = Host {
            now_ms: 1_709_208_100_000,
            memory: 1 << 30,
        };
        let process = Process {
            pid: 4242,
            inner_pid: 7,
            parent: 4200,
            uid: 1000,
            state: "S".into(),
            terminal_major: 136,
            terminal_minor: 3,
            cpu_ms: 3_725_000,
            started_at_ms: 1_709_208_000_000,
            virtual_bytes: 2048,
            resident_bytes: 512 << 20,
            command: "sh\u{1b}[2J -c x".into(),
            ..Process::default()
        };
        for (column, wanted) in [
            ("uid", "1000"),
            ("c", "99"),
            ("%mem", "50.0"),
            ("tty", "pts/3"),
            ("time", "01:02:05"),
            ("bsdtime", "62:05"),
            ("stime", "12:00"),
            ("etimes", "100"),
            ("vsz", "2"),
            ("cmd", "sh?[2J -c x"),
        ] {
            assert_eq!(cell(column, &process, host), wanted, "{column}");
        }
        assert_eq!(start(1_709_208_000_000, 1_719_208_000_000), "02-29");
    }
}
