//! `exec`: a further process in a container, its streams carried both ways.

use std::time::Duration;

use proto::host as w;
use runtime::{ExecConfig, ExecError, ExecSession, Terminal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{Events, HostService, QUEUE, admit};
use crate::tasks::chain;

/// Largest piece of a process's output in one message.
const PIECE: usize = 32 << 10;
/// How long a client may take to say what is to be run.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Silence after the end of a process by which its output is over although others still hold it open: what it left
/// running in the background must not keep its caller.
const SILENCE: Duration = Duration::from_secs(1);

type Output = Box<dyn AsyncRead + Send + Unpin>;
type Sender = mpsc::Sender<Result<w::ExecOutput, Status>>;

fn clip(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// Runs a process and carries its streams until it ended or the client is gone; then it is killed.
pub(super) async fn start(
    host: &HostService,
    mut input: Streaming<w::ExecInput>,
) -> Result<Response<Events<w::ExecOutput>>, Status> {
    let first = tokio::time::timeout(START_LIMIT, input.message());
    let first = first
        .await
        .map_err(|_| Status::deadline_exceeded("nothing was said of what to run"))??;
    let start = first
        .and_then(|m| m.start)
        .ok_or_else(|| Status::invalid_argument("the first message must say what to run"))?;
    if start.privileged {
        return Err(Status::invalid_argument(
            "--privileged is not supported: a container's sandbox holds for exec too",
        ));
    }
    let place = admit(&host.execs, 1, "processes started by exec")?;
    let info = host.find(&start.container)?;
    let size = start.size.unwrap_or(w::Size { rows: 24, cols: 80 });
    let config = ExecConfig {
        argv: start.argv,
        env: start.env,
        user: start.user,
        cwd: start.dir,
        tty: start.tty.then(|| (clip(size.rows), clip(size.cols))),
        stdin: start.stdin,
    };
    let session = host
        .shared
        .runtime
        .exec(&info.id, &config)
        .map_err(|e| match &e {
            ExecError::NotRunning { .. } => Status::failed_precondition(chain(&e)),
            ExecError::Config { .. } => Status::invalid_argument(chain(&e)),
            ExecError::Spawn { .. } => Status::internal(chain(&e)),
        })?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(carry(session, input, sender, place));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

async fn carry(
    mut session: ExecSession,
    input: Streaming<w::ExecInput>,
    sender: Sender,
    _place: OwnedSemaphorePermit,
) {
    let (end, ended) = watch::channel(false);
    let outputs = {
        let (out, err) = (session.stdout.take(), session.stderr.take());
        let out = pump(out, sender.clone(), ended.clone(), |stdout| w::ExecOutput {
            stdout,
            ..w::ExecOutput::default()
        });
        let err = pump(err, sender.clone(), ended, |stderr| w::ExecOutput {
            stderr,
            ..w::ExecOutput::default()
        });
        tokio::spawn(async move { tokio::join!(out, err) })
    };
    // On its own: a process that does not read must keep nobody from seeing that it ended, or that its caller did.
    let typing = tokio::spawn(feed(input, session.stdin.take(), session.terminal()));
    let code = tokio::select! {
        code = session.wait() => code.unwrap_or(255),
        () = sender.closed() => {
            session.kill();
            let _ = session.wait().await;
            typing.abort();
            outputs.abort();
            return;
        }
    };
    typing.abort();
    let _ = end.send(true);
    let _ = outputs.await;
    let last = w::ExecOutput {
        exit_code: Some(code),
        ..w::ExecOutput::default()
    };
    let _ = sender.send(Ok(last)).await;
}

/// Carries one output, as fast as the client takes it.
async fn pump(
    stream: Option<Output>,
    sender: Sender,
    mut ended: watch::Receiver<bool>,
    message: fn(Vec<u8>) -> w::ExecOutput,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0u8; PIECE];
    loop {
        let silent = async {
            let _ = ended.wait_for(|e| *e).await;
            tokio::time::sleep(SILENCE).await;
        };
        let piece = tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(n @ 1..) => buffer[..n].to_vec(),
                Ok(_) | Err(_) => return,
            },
            () = silent => return,
            () = sender.closed() => return,
        };
        if sender.send(Ok(message(piece))).await.is_err() {
            return;
        }
    }
}

/// Carries what the client types, and sizes of its terminal.
async fn feed(
    mut input: Streaming<w::ExecInput>,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    terminal: Option<Terminal>,
) {
    while let Ok(Some(message)) = input.message().await {
        if let (Some(size), Some(terminal)) = (message.resize, &terminal) {
            terminal.resize(clip(size.rows), clip(size.cols));
        }
        if let Some(pipe) = stdin.as_mut().filter(|_| !message.stdin.is_empty())
            && (pipe.write_all(&message.stdin).await.is_err() || pipe.flush().await.is_err())
        {
            stdin = None;
        }
        if message.stdin_closed {
            stdin = None;
        }
    }
}
