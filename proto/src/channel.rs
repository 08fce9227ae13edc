//! Client and server ends over a unix socket; where TLS identities slot in when the cluster spans hosts.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// Largest message either side takes: one frame of assignments is 1 MiB at most, a config nearly as much.
pub const MESSAGE_MAX: usize = 4 << 20;
/// A peer that does not take the connection within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a manager cannot be reached.
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
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Protocol {
            path: path.to_owned(),
            source,
        })
}

mod http_uri {
    pub(super) use tonic::codegen::http::Uri;
}
