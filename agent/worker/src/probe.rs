//! Probes of health and readiness, again and again, until the verdict is no longer asked for: a process in the container, or
//! a connection from inside its network namespace.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_core::health::{Counter, Health, OUTPUT_MAX};
use agent_core::probe::{Answer, answer, request};
use model::TaskId;
use model::spec::{Healthcheck, NetProbe};
use runtime::{ExecConfig, ExecSession};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::agent::Shared;
use crate::contact::boottime;
use crate::tasks::chain;

/// How long what a process printed is still read after its end: others may hold its output open.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long the rest of a bad answer may take.
const REST: Duration = Duration::from_millis(200);

/// Who is asked.
pub(crate) struct Target {
    pub(crate) task: TaskId,
    /// For probes over the network.
    pub(crate) address: IpAddr,
}

/// Probes a container; the verdicts and what the last probe said go to `verdict`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    target: Target,
    mut counter: Counter,
    verdict: watch::Sender<(Health, String)>,
) {
    loop {
        tokio::time::sleep(counter.pause(boottime())).await;
        let limit = counter.timeout();
        // What is too slow is dropped, and with it its process or connection.
        let asked = tokio::time::timeout(limit, ask(&shared, &target, counter.check())).await;
        let (success, output) = match asked {
            Ok(Ok(output)) => (true, output),
            Ok(Err(problem)) => (false, problem),
            Err(_) => (
                false,
                format!(
                    "the probe took longer than {}",
                    model::units::format_duration(limit)
                ),
            ),
        };
        counter.observe(success, boottime());
        if verdict.send((counter.health, output)).is_err() {
            return;
        }
    }
}

/// One probe: what it said, as success or as failure.
async fn ask(shared: &Shared, target: &Target, check: &Healthcheck) -> Result<String, String> {
    match &check.net {
        None => execute(shared, target.task, &check.test).await,
        Some(NetProbe::Tcp { port }) => {
            connect(shared, target, *port).await?;
            Ok(String::new())
        }
        Some(NetProbe::Http { port, path, status }) => {
            let stream = connect(shared, target, *port).await?;
            let address = SocketAddr::new(target.address, *port);
            let said = get(stream, &request(address, path), status).await;
            said.map_err(|problem| format!("GET http://{address}{path}: {problem}"))?;
            Ok(String::new())
        }
    }
}

async fn connect(shared: &Shared, target: &Target, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(target.address, port);
    let connected = shared.network.dial(target.task, address).await;
    connected.map_err(|e| format!("connect to {address}: {e}"))
}

async fn get(
    mut stream: TcpStream,
    request: &str,
    status: &std::ops::RangeInclusive<u16>,
) -> Result<(), String> {
    stream.write_all(request.as_bytes()).await.map_err(chain)?;
    let mut text = Vec::new();
    let mut stream = stream.take(OUTPUT_MAX as u64);
    loop {
        match answer(&text, status) {
            Answer::Well => return Ok(()),
            Answer::Bad(_) => break,
            Answer::More => {
                if stream.read_buf(&mut text).await.map_err(chain)? == 0 {
                    return Err("the connection was closed without an answer".into());
                }
            }
        }
    }
    // What it says of the reason, if that comes soon.
    let _ = tokio::time::timeout(REST, stream.read_to_end(&mut text)).await;
    match answer(&text, status) {
        Answer::Bad(problem) => Err(problem),
        Answer::Well | Answer::More => Ok(()),
    }
}

async fn execute(shared: &Shared, task: TaskId, test: &[String]) -> Result<String, String> {
    let words = test.get(1..).unwrap_or_default();
    let argv = match test.first().map(String::as_str) {
        Some("CMD-SHELL") => vec!["/bin/sh".to_owned(), "-c".into(), words.join(" ")],
        _ => words.to_vec(),
    };
    let config = ExecConfig {
        argv,
        ..ExecConfig::default()
    };
    let session = shared.runtime.exec(&task.to_string(), &config).map_err(chain)?;
    let (code, said) = outcome(session).await;
    if code == 0 { Ok(said) } else { Err(said) }
}

/// The exit code of a process, and the beginning of what it printed; the rest is read and let go, so that it does not wait
/// for a reader.
pub(crate) async fn outcome(mut session: ExecSession) -> (i32, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let code = {
        let reading = async { tokio::join!(gather(stdout, &mut out), gather(stderr, &mut err)) };
        tokio::pin!(reading);
        tokio::select! {
            _ = &mut reading => session.wait().await,
            code = session.wait() => {
                let _ = tokio::time::timeout(LAST_WORDS, &mut reading).await;
                code
            }
        }
    };
    out.extend(err);
    out.truncate(OUTPUT_MAX);
    (
        code.unwrap_or(255),
        String::from_utf8_lossy(&out).trim().to_owned(),
    )
}

async fn gather(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let room = OUTPUT_MAX.saturating_sub(into.len());
        into.extend_from_slice(&piece[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::TcpListener;

    use super::*;

    /// What comes of a server that sends this, again and again where `endless`, and keeps the connection open or not.
    async fn said(sends: &str, endless: bool, closes: bool) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sends = sends.to_owned();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            while stream.write_all(sends.as_bytes()).await.is_ok() && endless {}
            if !closes {
                std::future::pending::<()>().await;
            }
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let said = get(stream, &request(address, "/"), &(200..=399)).await;
        server.abort();
        said
    }

    #[tokio::test]
    async fn an_answer_is_read_as_far_as_it_is_needed() {
        let began = Instant::now();
        assert_eq!(
            said("HTTP/1.1 200 OK\r\n", false, false).await,
            Ok(()),
            "no need for more"
        );
        let busy = said("HTTP/1.1 503 Busy\r\n\r\nlater", false, false).await;
        assert_eq!(busy, Err("HTTP/1.1 503 Busy: later".into()));
        assert!(began.elapsed() < REST * 5, "{:?}", began.elapsed());
        let endless = said("HTTP/1.1 500 x\r\n\r\nxxxxxxxxxxxxxxxxxxxx", true, false).await;
        assert!(endless.is_err_and(|text| text.len() <= OUTPUT_MAX));
        let closed = said("HTTP/1.1", false, true).await;
        assert_eq!(closed, Err("the connection was closed without an answer".into()));
    }
}
