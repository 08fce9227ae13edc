//! `exec` and `service exec`: a process in a container of any node, its terminal here.

use std::io::Write;

use proto::host::{ExecInput, ExecStart, Size};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, Fail};
use crate::locate::{self, Located, locate};

/// Messages under way to the daemon.
const QUEUE: usize = 16;

/// Run a process in a container.
///
/// On a manager the container may be on any node. Other than with Docker the process ends with its caller: when the
/// connection is lost it is killed.
#[derive(clap::Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    how: How,
    /// On this node only, by name or id.
    #[arg(long)]
    node: Option<String>,
    /// Container, task (`web.1`), or the beginning of an id.
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Run a process in one running task of a service, on whichever node it is.
#[derive(clap::Args)]
pub(crate) struct ServiceExecArgs {
    #[command(flatten)]
    how: How,
    /// Service (its first running task is taken), or one task (`web.2`).
    service: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
struct How {
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
    let located = locate(client, &args.container, args.node.as_deref()).await?;
    run(located, args.how, args.command).await
}

pub(crate) async fn service_exec(client: &Client, args: ServiceExecArgs) -> Result<u8, Fail> {
    let located = match locate::of_service(client, &args.service).await? {
        None => locate(client, &args.service, None).await?,
        Some(running) => {
            let first = running.first().ok_or_else(|| {
                Fail::new(format!(
                    "no task of {0} runs: `rswarm service ps {0}` says why",
                    args.service
                ))
            })?;
            locate(client, &first.id.to_string(), None).await?
        }
    };
    run(located, args.how, args.command).await
}

async fn run(located: Located, how: How, command: Vec<String>) -> Result<u8, Fail> {
    let Located {
        mut host,
        container,
        place,
        ..
    } = located;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let start = ExecStart {
        container,
        argv: command,
        env: how.env,
        user: how.user,
        dir: how.workdir,
        tty: how.tty,
        stdin: how.interactive,
        size: Some(size()),
        privileged: false,
    };
    let first = ExecInput {
        start: Some(start),
        ..ExecInput::default()
    };
    sender.send(first).await.map_err(|e| Fail::new(e.to_string()))?;
    let mut output = host.exec(ReceiverStream::new(receiver)).await?.into_inner();
    let raw = if how.tty { Raw::enter() } else { None };
    if how.interactive {
        tokio::spawn(type_in(sender.clone()));
    }
    if how.tty {
        let changed = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        tokio::spawn(resize(changed, sender.clone()));
    }
    let mut code = None;
    let lost = |why: &str| {
        Fail::new(format!(
            "the connection to {place} was lost before the process ended, and the process is ended with it{why}"
        ))
    };
    loop {
        match output.message().await {
            Ok(Some(message)) => {
                std::io::stdout().write_all(&message.stdout)?;
                std::io::stdout().flush()?;
                std::io::stderr().write_all(&message.stderr)?;
                code = message.exit_code.or(code);
            }
            Ok(None) => break,
            // Its code came already: what is lost is the goodbye.
            Err(_) if code.is_some() => break,
            Err(status) => {
                drop(raw);
                return Err(lost(&format!(": {}", status.message())));
            }
        }
    }
    drop(raw);
    let code = code.ok_or_else(|| lost(""))?;
    // Standard input may be blocked in a read that nothing ends.
    std::process::exit(code);
}

async fn type_in(sender: mpsc::Sender<ExecInput>) {
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
}

async fn resize(mut changed: tokio::signal::unix::Signal, sender: mpsc::Sender<ExecInput>) {
    while changed.recv().await.is_some() {
        let message = ExecInput {
            resize: Some(size()),
            ..ExecInput::default()
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}
