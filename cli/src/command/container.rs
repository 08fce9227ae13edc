//! `ps`, `exec`, `logs` of this node.

use std::io::Write;

use model::spec::ImageRef;
use proto::host::{ExecInput, ExecStart, ListContainersRequest, LogsRequest, Size};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, Fail};
use crate::render::{self, ListArgs, Look};

/// Messages under way to the daemon.
const QUEUE: usize = 16;

/// List containers of this node.
#[derive(clap::Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run.
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    list: ListArgs,
}

/// Run a process in a container of this node.
#[derive(clap::Args)]
pub(crate) struct ExecArgs {
    /// Connect standard input.
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    #[arg(long, short)]
    env: Vec<String>,
    #[arg(long, short, default_value = "")]
    user: String,
    #[arg(long, short, default_value = "")]
    workdir: String,
    /// Container, task (`web.1`), or the beginning of an id.
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Show the output of a container of this node.
#[derive(clap::Args)]
pub(crate) struct LogsArgs {
    /// Go on until it ends.
    #[arg(long, short)]
    follow: bool,
    /// The last lines only; `all` for all.
    #[arg(long, short = 'n', default_value = "all")]
    tail: String,
    /// With the time of each line.
    #[arg(long, short)]
    timestamps: bool,
    /// Only the last such as `10m`.
    #[arg(long)]
    since: Option<String>,
    container: String,
}

pub(crate) async fn ps(client: &Client, args: PsArgs) -> Result<u8, Fail> {
    let reply = client
        .host()
        .await?
        .list_containers(ListContainersRequest {
            // As with Docker, asking for a state asks for all states.
            all: args.all
                || args
                    .list
                    .filter
                    .iter()
                    .any(|f| f.starts_with("status=") || f.starts_with("exited=")),
        })
        .await?
        .into_inner();
    let mut rows: Vec<_> = reply
        .containers
        .iter()
        .map(|c| {
            let status = match c.state.as_str() {
                "running" => format!("Up {}", render::ago(c.started_at_ms).trim_end_matches(" ago")),
                "exited" => format!("Exited ({}) {}", c.exit_code.map_or("?".into(), |e| e.to_string()), render::ago(c.finished_at_ms)),
                _ => "Created".into(),
            };
            json!({
                "ID": c.id, "Shown": render::short(&c.id, args.list.no_trunc), "Image": if args.list.no_trunc { &c.image } else { ImageRef::shown(&c.image) }, "Command": format!("\"{}\"", c.command.join(" ")),
                "CreatedAt": render::ago(c.created_at_ms), "Status": status, "Names": c.name, "Pid": c.pid, "State": c.state, "ExitCode": c.exit_code, "Labels": c.labels,
            })
        })
        .collect();
    let known = [
        ("id", Look::Begins("ID")),
        ("name", Look::Holds("Names")),
        ("label", Look::Label("Labels")),
        ("status", Look::Is("State")),
        ("ancestor", Look::Is("Image")),
        ("exited", Look::Is("ExitCode")),
    ];
    render::filter(&mut rows, &args.list.filter, &known)?;
    let columns = [
        ("CONTAINER ID", "Shown"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "CreatedAt"),
        ("STATUS", "Status"),
        ("NAMES", "Names"),
    ];
    render::list(&rows, &columns, &args.list)?;
    Ok(0)
}

/// A terminal in raw mode, set back when it is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let saved = isatty(stdin).then(|| tcgetattr(stdin).ok()).flatten()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

fn size() -> Size {
    let size = tcgetwinsize(rustix::stdio::stdout()).ok();
    Size {
        rows: size.map_or(24, |s| s.ws_row.into()),
        cols: size.map_or(80, |s| s.ws_col.into()),
    }
}

pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Result<u8, Fail> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let start = ExecStart {
        container: args.container,
        argv: args.command,
        env: args.env,
        user: args.user,
        dir: args.workdir,
        tty: args.tty,
        stdin: args.interactive,
        size: Some(size()),
        privileged: false,
    };
    let first = ExecInput {
        start: Some(start),
        ..ExecInput::default()
    };
    sender.send(first).await.map_err(|e| Fail::new(e.to_string()))?;
    let mut output = client
        .host()
        .await?
        .exec(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let raw = if args.tty { Raw::enter() } else { None };
    if args.interactive {
        let sender = sender.clone();
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0u8; 8192];
            loop {
                let message = match stdin.read(&mut buffer).await {
                    Ok(n @ 1..) => ExecInput {
                        stdin: buffer[..n].to_vec(),
                        ..ExecInput::default()
                    },
                    Ok(_) | Err(_) => ExecInput {
                        stdin_closed: true,
                        ..ExecInput::default()
                    },
                };
                let last = message.stdin_closed;
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
    }
    if args.tty {
        let mut changed = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while changed.recv().await.is_some() {
                let message = ExecInput {
                    resize: Some(size()),
                    ..ExecInput::default()
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut code = None;
    while let Some(message) = output.message().await? {
        std::io::stdout().write_all(&message.stdout)?;
        std::io::stdout().flush()?;
        std::io::stderr().write_all(&message.stderr)?;
        code = message.exit_code.or(code);
    }
    drop(raw);
    let code = code.ok_or_else(|| Fail::new("the connection ended before the process did"))?;
    // Standard input may be blocked in a read that nothing ends.
    std::process::exit(code);
}

/// Prints logs of containers, each line after what `prefix` says of its task.
pub(crate) async fn print_logs(
    client: &Client,
    request: LogsRequest,
    timestamps: bool,
    prefix: &dyn Fn(&str) -> String,
) -> Result<(), Fail> {
    let mut entries = client.host().await?.logs(request).await?.into_inner();
    while let Some(entry) = entries.message().await? {
        let mut text = if timestamps {
            format!("{} ", model::Timestamp(entry.time_ns / 1_000_000).rfc3339())
        } else {
            String::new()
        };
        text.push_str(&prefix(&entry.task));
        text.push_str(&String::from_utf8_lossy(&entry.line));
        let written = if entry.stderr {
            std::io::stderr().write_all(text.as_bytes())
        } else {
            std::io::stdout().write_all(text.as_bytes())
        };
        written?;
    }
    Ok(())
}

/// A log request from what a person typed.
pub(crate) fn query(
    containers: Vec<String>,
    tail: &str,
    since: Option<&str>,
    follow: bool,
) -> Result<LogsRequest, Fail> {
    let tail = match tail {
        "all" => None,
        number => Some(
            number
                .parse()
                .map_err(|_| Fail::new(format!("--tail {number}: write a number or \"all\"")))?,
        ),
    };
    let since_ns = match since {
        None => 0,
        Some(text) => {
            let back = model::units::parse_duration(text).map_err(|e| e.to_string())?;
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            u64::try_from(now.saturating_sub(back).as_nanos()).unwrap_or(0)
        }
    };
    Ok(LogsRequest {
        containers,
        tail,
        since_ns,
        follow,
    })
}

pub(crate) async fn logs(client: &Client, args: LogsArgs) -> Result<u8, Fail> {
    let request = query(
        vec![args.container],
        &args.tail,
        args.since.as_deref(),
        args.follow,
    )?;
    print_logs(client, request, args.timestamps, &|_| String::new()).await?;
    Ok(0)
}
