//! Published ports whose tasks want to be told of their clients in the connection itself (PROXY protocol v2,
//! <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt> §2.2): a connection from a client, and one to a task that begins
//! with who the client is. Only ports that ask for it come here; the others never leave the kernel.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::dataplane::{NetError, at};
use crate::sys;

/// Connections at a time; more are closed as they come. Where the process may open few files they may take a quarter of them.
const CONNECTIONS_MAX: usize = 10_000;
const FILES_EACH: u64 = 2;
/// A connection whose end says nothing is asked after so long whether it is there, and is over when so many questions had no answer.
const IDLE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(10);
const QUESTIONS: u32 = 6;
/// How long a task may take to accept, and how many are tried.
const CONNECT: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// When a port that could not be opened, or has no room, is tried again.
const RETRY: Duration = Duration::from_secs(1);
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of another.
const PROXY: u8 = 0x21;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// What is to be proxied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ports {
    /// The address of the host, which clients asked.
    pub(crate) own: Option<Ipv4Addr>,
    /// Published ports, and what is behind them.
    pub(crate) behind: BTreeMap<u16, Vec<SocketAddr>>,
}

/// The thread that does it. It lives in the dataplane's namespace, to which the host leads all published ports.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    ports: Arc<watch::Sender<Arc<Ports>>>,
}

impl Proxy {
    pub(crate) fn start(inside: File) -> Result<Self, NetError> {
        let (ports, told) = watch::channel(Arc::<Ports>::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(at("start the proxy of published ports"))?;
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                if sys::enter(&inside).is_ok() {
                    drop(inside);
                    runtime.block_on(run(told));
                }
            })
            .map_err(at("start the thread of the proxy"))?;
        Ok(Self {
            ports: Arc::new(ports),
        })
    }

    /// From now on these; connections that are open go on.
    pub(crate) fn set(&self, ports: Ports) {
        self.ports.send_if_modified(|known| {
            let differs = **known != ports;
            if differs {
                *known = Arc::new(ports);
            }
            differs
        });
    }
}

async fn run(mut told: watch::Receiver<Arc<Ports>>) {
    let mut open: BTreeMap<u16, AbortHandle> = BTreeMap::new();
    let room = Arc::new(Semaphore::new(connections_max()));
    loop {
        let ports = told.borrow_and_update().clone();
        open.retain(|port, task| {
            let stays = ports.behind.contains_key(port);
            if !stays {
                task.abort();
            }
            stays
        });
        for port in ports.behind.keys() {
            open.entry(*port)
                .or_insert_with(|| tokio::spawn(serve(*port, told.clone(), room.clone())).abort_handle());
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = files.map_or(u64::MAX, |files| files / 4 / FILES_EACH);
    usize::try_from(share).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// Sends small things at once, and notices when the other end is gone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, ASK_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, QUESTIONS)?;
    let silent = IDLE + ASK_EVERY * QUESTIONS;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(silent.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

async fn serve(port: u16, told: watch::Receiver<Arc<Ports>>, room: Arc<Semaphore>) {
    let listener = loop {
        // Both families where there are both.
        let six = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
        match six {
            Ok(listener) => break listener,
            Err(_) => match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(RETRY).await,
            },
        }
    };
    let turn = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((client, from)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let ports = told.borrow().clone();
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // What goes wrong is seen by both ends.
            let _ = pass(client, from, port, &ports, turn).await;
            drop(permit);
        });
    }
}

/// One connection, from its beginning to its end.
async fn pass(
    mut client: TcpStream,
    from: SocketAddr,
    port: u16,
    ports: &Ports,
    turn: usize,
) -> io::Result<()> {
    let behind = ports.behind.get(&port).map_or(&[][..], Vec::as_slice);
    let mut task = None;
    for at in 0..behind.len().min(TRIES) {
        let to = behind[(turn + at) % behind.len()];
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
            task = Some(stream);
            break;
        }
    }
    let mut task = task.ok_or(io::ErrorKind::ConnectionRefused)?;
    prepare(&client)?;
    prepare(&task)?;
    let asked = match ports.own {
        Some(own) => SocketAddr::from((own, port)),
        None => client.local_addr()?,
    };
    task.write_all(&header(from, asked)).await?;
    tokio::io::copy_bidirectional(&mut client, &mut task).await?;
    Ok(())
}

/// What a connection to a task begins with.
fn header(client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    match (client.ip().to_canonical(), asked.ip().to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            bytes.extend_from_slice(&[PROXY, TCP_V4, 0, 12]);
            bytes.extend_from_slice(&one.octets());
            bytes.extend_from_slice(&other.octets());
        }
        // Of two families, both as the larger.
        (one, other) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes.extend_from_slice(&[PROXY, TCP_V6, 0, 36]);
            bytes.extend_from_slice(&six(one).octets());
            bytes.extend_from_slice(&six(other).octets());
        }
    }
    bytes.extend_from_slice(&client.port().to_be_bytes());
    bytes.extend_from_slice(&asked.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_begins_with_who_its_client_is() {
        let row = |client: &str, asked: &str| header(client.parse().unwrap(), asked.parse().unwrap());
        let four = row("192.0.2.7:50000", "10.99.0.1:443");
        let signature = [
            0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,
        ];
        assert_eq!(four[..12], signature);
        assert_eq!(four[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(four[16..], [192, 0, 2, 7, 10, 99, 0, 1, 0xc3, 0x50, 1, 0xbb]);
        assert_eq!(
            row("[::ffff:192.0.2.7]:50000", "10.99.0.1:443"),
            four,
            "as a socket of both families says it"
        );
        let six = row("[2001:db8::7]:50000", "10.99.0.1:443");
        assert_eq!(six[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(six.len(), 16 + 36);
        assert_eq!(six[16..18], [0x20, 1]);
        assert_eq!(six[42..48], [0xff, 0xff, 10, 99, 0, 1]);
    }
}
