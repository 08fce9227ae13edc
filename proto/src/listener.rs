//! The port at which other nodes reach this one: TLS connections with the caller's identity, and bounds for strangers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::authz::Caller;
use crate::identity::{Keychain, Subject};

/// Who does not finish the handshake within this is cut off.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes at the same time; each costs about a millisecond of CPU.
const HANDSHAKES_MAX: usize = 256;
/// Connections of one address that showed no certificate: enough for hosts that join, not for a flood.
const STRANGERS_MAX: usize = 64;
/// Connections in all.
const CONNECTIONS_MAX: usize = 20_000;
/// Connections that are ready and wait for the server.
const QUEUED: usize = 64;
/// Pause after the system could not give a connection (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Streams of one connection at the same time: every call of a manager to another is one.
const STREAMS_MAX: u32 = 1024;
/// Bytes of the headers of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Time between two signs of life of a connection, half of the wait for an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Bytes that a caller sends ahead. Over a line of 1 Mbit/s those of a connection take 4 s, less than the wait for a sign of
/// life that stands behind them.
const STREAM_WINDOW: u32 = 256 << 10;

/// A server with the bounds of every connection, whoever made it.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE * 2))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * 2)
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    /// Where from.
    pub address: SocketAddr,
    /// Who.
    pub caller: Caller,
}

/// A connection that is ready to be served.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    remote: Remote,
    _place: Vec<Held>,
}

/// A place in a count, given back when the connection ends.
struct Held {
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Held {
    fn take(counts: &Arc<Mutex<BTreeMap<IpAddr, usize>>>, address: IpAddr, limit: usize) -> Option<Self> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Self {
            counts: counts.clone(),
            address,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// Accepts connections until the receiver is dropped.
pub fn accept(listener: TcpListener, keychain: Keychain) -> mpsc::Receiver<io::Result<Accepted>> {
    let (ready, queue) = mpsc::channel(QUEUED);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let strangers = Arc::default();
        let everyone = Arc::default();
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = ready.closed() => return,
            };
            let Some(place) = Held::take(&everyone, IpAddr::from([0, 0, 0, 0]), CONNECTIONS_MAX) else {
                continue;
            };
            // Until it showed a certificate it is a stranger.
            let Some(stranger) = Held::take(&strangers, address.ip(), STRANGERS_MAX) else {
                continue;
            };
            let Some(identity) = keychain.identity() else {
                continue;
            };
            let (handshakes, ready) = (handshakes.clone(), ready.clone());
            tokio::spawn(async move {
                let Ok(_permit) = handshakes.acquire().await else {
                    return;
                };
                let _ = stream.set_nodelay(true);
                let handshake = TlsAcceptor::from(identity.server.clone()).accept(stream);
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await else {
                    return;
                };
                let Some(caller) = caller(&stream, &identity.subject) else {
                    return;
                };
                let mut held = vec![place];
                if caller == Caller::Anyone {
                    held.push(stranger);
                }
                let accepted = Accepted {
                    stream,
                    remote: Remote { address, caller },
                    _place: held,
                };
                // The server is gone when this fails.
                let _ = ready.send(Ok(accepted)).await;
            });
        }
    });
    queue
}

/// Who called; nobody who is to be served when the certificate is another cluster's.
fn caller(stream: &TlsStream<TcpStream>, own: &Subject) -> Option<Caller> {
    let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Some(Caller::Anyone);
    };
    match Subject::read(certificate) {
        Ok(subject) if subject.cluster == own.cluster => Some(Caller::Node(subject.node)),
        Ok(subject) => {
            tracing::warn!(cluster = %subject.cluster, "refused a node of another cluster");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "refused a certificate");
            None
        }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Remote;
    fn connect_info(&self) -> Remote {
        self.remote
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
