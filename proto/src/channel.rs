//! Client ends of connections: to the daemon of this host over its unix socket, to other nodes over TLS.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use model::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::identity::{self, Keychain, NAME_MANAGER};

/// Largest message either side takes: one frame of assignments is 1 MiB at most, a config nearly as much.
pub const MESSAGE_MAX: usize = 4 << 20;
/// A peer that does not take the connection within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two signs of life of a connection, and the wait for its answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The same wait where much is sent at once: a sign of life stands behind it in the queue of a narrow line.
const KEEP_ALIVE_BULK: Duration = Duration::from_secs(60);

/// Why the daemon of this host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers at the socket.
    #[error("no rswarm daemon answers at {}: start it with `rswarm daemon`, or name its socket with --socket", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the connection said.
        #[source]
        source: io::Error,
    },
    /// The socket answers, the protocol does not.
    #[error("{} does not speak rswarm's protocol: is it the socket of another program?", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Time between two signs of life of the daemon of this host, and the wait for its answer: it may be slow, and still a person
/// is not to wait for one that is gone although its socket is held.
const KEEP_ALIVE_HERE: Duration = Duration::from_secs(15);

/// Connects to the daemon at `path`. Calls have no deadline of their own; streams may be endless.
///
/// # Errors
/// [`ConnectError`] when nothing answers there. Trying again helps once a daemon was started.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    // One try by hand first: tonic wraps the reason so deeply that a person could not read it.
    if let Err(source) = tokio::net::UnixStream::connect(path).await {
        return Err(ConnectError::Refused {
            path: path.to_owned(),
            source,
        });
    }
    let target = path.to_owned();
    let connector = tower::service_fn(move |_: http_uri::Uri| {
        let target = target.clone();
        async move { tokio::net::UnixStream::connect(target).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://rswarm.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_HERE)
        .keep_alive_timeout(KEEP_ALIVE_HERE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Protocol {
            path: path.to_owned(),
            source,
        })
}

/// Whom a connection to another node is meant for. Whoever answers must show a certificate for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Any manager of the cluster.
    Manager,
    /// This node.
    Node(NodeId),
}

impl Expect {
    fn name(self) -> String {
        match self {
            Self::Manager => NAME_MANAGER.into(),
            Self::Node(node) => identity::name_of(node),
        }
    }
}

/// Why another node cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nothing answers at the address.
    #[error("{address} cannot be reached: is rswarm running there, and is the port open?")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Who answers is not who was expected, or does not take us for one of its cluster.
    #[error("E_TLS: {address} answered, but no secure connection came about")]
    Tls {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The protocol inside failed.
    #[error("{address} does not speak rswarm's protocol")]
    Protocol {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// This node is in no cluster.
    #[error("this node has no certificate: it is part of no cluster")]
    NoIdentity,
}

impl RemoteError {
    /// The error with its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        text
    }
}

type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// Opens one TLS connection.
async fn dial(address: &str, name: String, config: Arc<ClientConfig>) -> Result<Stream, RemoteError> {
    let unreachable = |source| RemoteError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s");
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(late()))?
        .map_err(unreachable)?;
    let _ = stream.set_nodelay(true);
    let tls = |source| RemoteError::Tls {
        address: address.to_owned(),
        source,
    };
    let name = ServerName::try_from(name).map_err(|e| tls(io::Error::other(e)))?;
    tokio::time::timeout(CONNECT_TIMEOUT, TlsConnector::from(config).connect(name, stream))
        .await
        .map_err(|_| tls(late()))?
        .map_err(tls)
}

/// What goes over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Calls with answers that are small, or can wait, beside some that cannot; a peer that is gone is noticed soon.
    Calls,
    /// One call with a stream of answers.
    Stream,
    /// A snapshot or layers: as much as the line takes for a while.
    Bulk,
}

impl Load {
    /// Bytes that may be on their way in one answer; twice as many on the connection. Of a line of 1 Mbit/s those of
    /// `Calls` take 1 s, less than a period of heartbeats: an answer to one stands behind them.
    fn window(self) -> u32 {
        match self {
            Self::Calls => 64 << 10,
            Self::Stream => 256 << 10,
            Self::Bulk => 2 << 20,
        }
    }

    /// How long a sign of life is waited for.
    fn patience(self) -> Duration {
        match self {
            Self::Calls | Self::Stream => KEEP_ALIVE,
            Self::Bulk => KEEP_ALIVE_BULK,
        }
    }
}

fn endpoint(load: Load) -> Endpoint {
    // The name is for HTTP alone; who answers is verified by TLS.
    Endpoint::from_static("http://rswarm.invalid")
        .connect_timeout(CONNECT_TIMEOUT * 2)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(load.patience())
        .keep_alive_while_idle(true)
        .initial_stream_window_size(load.window())
        .initial_connection_window_size(load.window() * 2)
}

/// A connection to another node that is opened when it is used, and again after it broke; each time with the identity
/// that this node has then.
pub fn node(keychain: &Keychain, address: &str, expect: Expect) -> Channel {
    let (keychain, address) = (keychain.clone(), address.to_owned());
    let connector = tower::service_fn(move |_: http_uri::Uri| {
        let (keychain, address) = (keychain.clone(), address.clone());
        async move {
            let identity = keychain.identity().ok_or(RemoteError::NoIdentity)?;
            let stream = dial(&address, expect.name(), identity.client.clone()).await?;
            Ok::<_, RemoteError>(TokioIo::new(stream))
        }
    });
    endpoint(Load::Calls).connect_with_connector_lazy(connector)
}

/// A connection to another node for one call, cut when its [`Cut`] is dropped.
///
/// Dropping an answer is not enough to end a call whose request is stuck: HTTP/2 keeps the stream until the request is
/// through, and the process at its other end would go on for nobody.
pub fn node_once(keychain: &Keychain, address: &str, expect: Expect) -> (Channel, Cut) {
    severable(keychain, address, expect, Load::Stream)
}

/// The same for one call that sends much, over a line that may be narrow: what else is said to that node goes over other
/// connections meanwhile, and a peer that is gone is noticed late.
pub fn node_bulk(keychain: &Keychain, address: &str, expect: Expect) -> (Channel, Cut) {
    severable(keychain, address, expect, Load::Bulk)
}

fn severable(keychain: &Keychain, address: &str, expect: Expect, load: Load) -> (Channel, Cut) {
    let (keychain, address) = (keychain.clone(), address.to_owned());
    let (cut, severed) = oneshot::channel();
    let mut severed = Some(severed);
    let connector = tower::service_fn(move |_: http_uri::Uri| {
        let (keychain, address, severed) = (keychain.clone(), address.clone(), severed.take());
        async move {
            // Never opened twice: what was said on the first is not said again.
            let again = || RemoteError::Unreachable {
                address: address.clone(),
                source: io::Error::other("the connection broke"),
            };
            let severed = severed.ok_or_else(again)?;
            let identity = keychain.identity().ok_or(RemoteError::NoIdentity)?;
            let stream = dial(&address, expect.name(), identity.client.clone()).await?;
            Ok::<_, RemoteError>(TokioIo::new(Severable { stream, severed }))
        }
    });
    (endpoint(load).connect_with_connector_lazy(connector), Cut(cut))
}

/// Holds a connection of [`node_once`]; dropped, it is cut.
#[derive(Debug)]
pub struct Cut(#[allow(dead_code, reason = "that it is dropped is its message")] oneshot::Sender<()>);

/// A connection that can be cut from elsewhere.
struct Severable {
    stream: Stream,
    severed: oneshot::Receiver<()>,
}

impl AsyncRead for Severable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection is always being read from, so this is seen at once.
        if Pin::new(&mut self.severed).poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Severable {
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

/// A connection to another node that stands when this returns, so that its failure can be told in full.
///
/// # Errors
/// [`RemoteError`]; trying again, or elsewhere, may help.
pub async fn connect_node(
    keychain: &Keychain,
    address: &str,
    expect: Expect,
) -> Result<Channel, RemoteError> {
    let identity = keychain.identity().ok_or(RemoteError::NoIdentity)?;
    once(address, expect.name(), identity.client.clone(), Load::Calls).await
}

/// The same for much that is fetched over it.
///
/// # Errors
/// As [`connect_node`].
pub async fn connect_bulk(
    keychain: &Keychain,
    address: &str,
    expect: Expect,
) -> Result<Channel, RemoteError> {
    let identity = keychain.identity().ok_or(RemoteError::NoIdentity)?;
    once(address, expect.name(), identity.client.clone(), Load::Bulk).await
}

/// A connection for a host that has no certificate yet, to a manager of the cluster with these authorities.
///
/// # Errors
/// [`RemoteError`].
pub async fn connect_stranger(address: &str, roots: Arc<RootCertStore>) -> Result<Channel, RemoteError> {
    let config = stranger().with_root_certificates(roots).with_no_client_auth();
    once(address, NAME_MANAGER.into(), with_h2(config), Load::Calls).await
}

/// A connection to somebody who is not verified at all: only to be told an authority's certificate, which is compared
/// with a digest the caller has from elsewhere.
///
/// # Errors
/// [`RemoteError`].
pub async fn connect_unverified(address: &str) -> Result<Channel, RemoteError> {
    let config = stranger()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(identity::provider())))
        .with_no_client_auth();
    once(address, NAME_MANAGER.into(), with_h2(config), Load::Calls).await
}

fn stranger() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
}

fn with_h2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn once(
    address: &str,
    name: String,
    config: Arc<ClientConfig>,
    load: Load,
) -> Result<Channel, RemoteError> {
    let stream = dial(address, name, config).await?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http_uri::Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("the connection broke")) }
    });
    (endpoint(load).connect_with_connector(connector).await).map_err(|source| RemoteError::Protocol {
        address: address.to_owned(),
        source,
    })
}

/// Takes whoever answers, see [`connect_unverified`].
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

mod http_uri {
    pub(super) use tonic::codegen::http::Uri;
}
