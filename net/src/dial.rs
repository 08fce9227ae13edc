//! Connections from inside a container's namespace, such as a probe makes: no program in the container is needed.

use std::fs::File;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::dataplane::Dataplane;
use crate::sys;

impl Dataplane {
    /// Connects to an address as a container does that is attached; has no bound in time of its own.
    ///
    /// # Errors
    /// The container is not attached any more, or the connection is refused.
    pub async fn dial(&self, id: &str, address: SocketAddr) -> io::Result<TcpStream> {
        let namespace = File::open(self.namespace_of(id))?;
        let (made, socket) = oneshot::channel();
        // A socket stays in the namespace in which it was made; the thread that enters it ends at once.
        std::thread::Builder::new().name("dial".into()).spawn(move || {
            let socket = sys::enter(&namespace).and_then(|()| match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            });
            let _ = made.send(socket);
        })?;
        let socket = socket.await.map_err(io::Error::other)??;
        socket.connect(address).await
    }
}
