//! Sockets: one thread for all containers.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};

use super::Zone;
use super::answer::{Verdict, decide};

/// Where containers ask.
const ADDRESS: &str = "127.0.0.11:53";
/// Questions of one container under way to upstream servers.
const FORWARDS_MAX: usize = 100;
/// How long one upstream server may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a TCP asker may be silent.
const IDLE: Duration = Duration::from_secs(5);
/// Largest datagram; longer answers are cut and asked again by TCP.
const DATAGRAM_MAX: usize = 1232;

/// The sockets of one container, made by a thread that was in its namespace.
pub(crate) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    pub(crate) fn open() -> io::Result<Self> {
        let (udp, tcp) = (
            std::net::UdpSocket::bind(ADDRESS)?,
            std::net::TcpListener::bind(ADDRESS)?,
        );
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}

enum Order {
    Serve(String, Sockets),
    Forget(String),
}

/// The name server of one dataplane.
#[derive(Debug)]
pub(crate) struct Server {
    zone: Arc<ArcSwap<Zone>>,
    orders: mpsc::UnboundedSender<Order>,
}

struct Shared {
    zone: Arc<ArcSwap<Zone>>,
    upstream: Vec<SocketAddr>,
    turn: AtomicUsize,
}

impl Server {
    pub(crate) fn start(upstream: Vec<SocketAddr>) -> io::Result<Self> {
        let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
        let shared = Arc::new(Shared {
            zone: zone.clone(),
            upstream,
            turn: AtomicUsize::new(0),
        });
        // Bounded by the containers of this host: each gives two orders in its life.
        let (orders, mut queue) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new().name("names".into()).spawn(move || {
            runtime.block_on(async move {
                let mut serving: BTreeMap<String, Vec<tokio::task::AbortHandle>> = BTreeMap::new();
                while let Some(order) = queue.recv().await {
                    let (id, sockets) = match order {
                        Order::Serve(id, sockets) => (id, Some(sockets)),
                        Order::Forget(id) => (id, None),
                    };
                    for task in serving.remove(&id).unwrap_or_default() {
                        task.abort();
                    }
                    if let Some(sockets) = sockets {
                        serving.insert(id.clone(), serve(&id, sockets, &shared));
                    }
                }
            });
        })?;
        Ok(Self { zone, orders })
    }

    pub(crate) fn set_zone(&self, zone: Zone) {
        self.zone.store(Arc::new(zone));
    }

    pub(crate) fn serve(&self, id: String, sockets: Sockets) {
        let _ = self.orders.send(Order::Serve(id, sockets));
    }

    pub(crate) fn forget(&self, id: &str) {
        let _ = self.orders.send(Order::Forget(id.to_owned()));
    }
}

fn serve(id: &str, sockets: Sockets, shared: &Arc<Shared>) -> Vec<tokio::task::AbortHandle> {
    let forwards = Arc::new(Semaphore::new(FORWARDS_MAX));
    let mut tasks = Vec::new();
    if let Ok(udp) = UdpSocket::from_std(sockets.udp) {
        let (id, shared, forwards) = (id.to_owned(), shared.clone(), forwards.clone());
        tasks.push(
            tokio::spawn(async move { datagrams(Arc::new(udp), id, shared, forwards).await }).abort_handle(),
        );
    }
    if let Ok(tcp) = TcpListener::from_std(sockets.tcp) {
        let (id, shared) = (id.to_owned(), shared.clone());
        tasks.push(tokio::spawn(async move { streams(tcp, id, shared, forwards).await }).abort_handle());
    }
    tasks
}

async fn datagrams(socket: Arc<UdpSocket>, id: String, shared: Arc<Shared>, forwards: Arc<Semaphore>) {
    let mut buffer = vec![0u8; 4096];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let bytes = buffer[..len].to_vec();
        match reply(&bytes, &id, &shared, DATAGRAM_MAX) {
            Some(Ok(answer)) => {
                let _ = socket.send_to(&answer, from).await;
            }
            Some(Err(())) => {
                // One more than the bound is dropped: the asker asks again.
                let Ok(permit) = forwards.clone().try_acquire_owned() else {
                    continue;
                };
                let (socket, shared) = (socket.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = forward(&bytes, &shared).await;
                    let _ = socket.send_to(&answer, from).await;
                    drop(permit);
                });
            }
            None => {}
        }
    }
}

async fn streams(listener: TcpListener, id: String, shared: Arc<Shared>, places: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let (id, shared) = (id.clone(), shared.clone());
        tokio::spawn(async move {
            let _ = conversation(stream, &id, &shared).await;
            drop(place);
        });
    }
}

async fn conversation(mut stream: TcpStream, id: &str, shared: &Shared) -> io::Result<()> {
    loop {
        let len = match tokio::time::timeout(IDLE, stream.read_u16()).await {
            Ok(len) => usize::from(len?),
            Err(_) => return Ok(()),
        };
        let mut bytes = vec![0u8; len];
        tokio::time::timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match reply(&bytes, id, shared, usize::from(u16::MAX)) {
            Some(Ok(answer)) => answer,
            Some(Err(())) => forward(&bytes, shared).await,
            None => return Ok(()),
        };
        stream.write_u16(u16::try_from(answer.len()).unwrap_or(0)).await?;
        stream.write_all(&answer).await?;
    }
}

/// The answer to a message, or that it has to be forwarded; nothing for what is no question.
fn reply(bytes: &[u8], id: &str, shared: &Shared, most: usize) -> Option<Result<Vec<u8>, ()>> {
    let query = Message::from_vec(bytes).ok()?;
    if query.metadata.message_type != hickory_proto::op::MessageType::Query {
        return None;
    }
    let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
    match decide(&query, id, &shared.zone.load(), turn) {
        Verdict::Forward => Some(Err(())),
        Verdict::Answer(mut message) => {
            let mut out = message.to_vec().ok()?;
            if out.len() > most {
                message.answers.clear();
                message.metadata.truncation = true;
                out = message.to_vec().ok()?;
            }
            Some(Ok(out))
        }
    }
}

/// Asks upstream servers, one after the other; answers a failure when none answers.
async fn forward(bytes: &[u8], shared: &Shared) -> Vec<u8> {
    for server in shared.upstream.iter().take(3) {
        if let Ok(Ok(answer)) = tokio::time::timeout(UPSTREAM_TIMEOUT, ask(bytes, *server)).await {
            return answer;
        }
    }
    let failed = Message::from_vec(bytes).ok().and_then(|query| {
        let mut reply = Message::error_msg(query.metadata.id, query.metadata.op_code, ResponseCode::ServFail);
        reply.add_queries(query.queries.iter().cloned());
        reply.to_vec().ok()
    });
    failed.unwrap_or_default()
}

async fn ask(bytes: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    // A socket of its own: the kernel chooses its port at random, and only this server's answers come in.
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0u8; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if len >= 2 && bytes.get(..2) == buffer.get(..2) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}
