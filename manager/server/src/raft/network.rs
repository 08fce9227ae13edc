//! How this manager reaches the others: over connections of mutual TLS to the node that a member is.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures::{FutureExt, Stream, StreamExt};
use model::NodeId;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use proto::channel::{self, Cut, Expect};
use proto::identity::Keychain;
use proto::raft as w;
use proto::raft::raft_client::RaftClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::snapshot::SnapshotFile;
use super::state_machine::Published;
use super::wire::{self, StreamReply, Target};
use super::{Snapshot, TypeConfig, Vote};

/// Largest message between managers: an entry of the largest transaction, and what surrounds it.
pub(crate) const MESSAGE_MAX: usize = 40 * 1024 * 1024;
/// A peer that owes an answer and says nothing for this long is given up; its disk may need a while. What was sent takes
/// its time before, see [`SLOWEST_LINE`].
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether an answer is late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes a second of the slowest line between managers, about half of 1 Mbit/s.
const SLOWEST_LINE: u64 = 64 * 1024;
/// A peer that does not take the next piece of a snapshot within this is given up. The whole has no deadline.
const PIECE_LIMIT: Duration = Duration::from_secs(20);
/// Pieces of a snapshot under way.
const PIECES_QUEUED: usize = 4;
/// Whether a manager is there, and what it knows, is asked for this long.
const STATUS_LIMIT: Duration = Duration::from_millis(1000);
/// After so long without an answer, or when it failed, it is asked over another connection as well: packets may be lost.
const STATUS_AGAIN: Duration = Duration::from_millis(300);

/// A member's node and the address it joined with, as the membership has it.
pub(super) fn member(node: NodeId, address: &str) -> BasicNode {
    BasicNode {
        addr: format!("{node}@{address}"),
    }
}

/// The other way.
pub(super) fn parse_member(member: &BasicNode) -> Option<(NodeId, String)> {
    let (node, address) = member.addr.split_once('@')?;
    Some((node.parse().ok()?, address.to_owned()))
}

/// By which way a node is reached whose address is known: as it is, unless a test puts something between.
#[derive(Clone, Default)]
pub struct Route(Option<Arc<Way>>);

type Way = dyn Fn(&str) -> String + Send + Sync;

impl Route {
    /// Connects to what `way` answers for an address.
    pub fn by(way: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(way)))
    }

    fn to(&self, address: &str) -> String {
        match &self.0 {
            Some(way) => way(address),
            None => address.to_owned(),
        }
    }
}

/// Connections to other nodes, kept and shared.
#[derive(Clone)]
pub(crate) struct Links {
    inner: Arc<LinksInner>,
}

struct LinksInner {
    keychain: Keychain,
    route: Route,
    channels: Mutex<BTreeMap<(NodeId, String), Kept>>,
    published: ArcSwapOption<Published>,
}

/// Connections to one node; each is opened when it is used.
struct Kept {
    /// For entries, calls that are passed on, and votes: who asks for those sends no entries yet, and will.
    calls: Channel,
    /// For signs of life, which over a narrow line would come too late behind an entry. They take turns: where packets are
    /// lost, what follows on the same connection waits until they are sent again.
    signs: [Channel; 3],
    /// Turns of heartbeats, and of questions.
    beats: usize,
    questions: usize,
}

impl Kept {
    fn sign(&self, turn: usize) -> Channel {
        self.signs[turn % self.signs.len()].clone()
    }
}

/// Most nodes to which connections are kept; beyond that they are made anew.
const LINKS_MAX: usize = 256;

impl Links {
    pub(crate) fn new(keychain: Keychain, route: Route) -> Self {
        Self {
            inner: Arc::new(LinksInner {
                keychain,
                route,
                channels: Mutex::default(),
                published: ArcSwapOption::empty(),
            }),
        }
    }

    pub(crate) fn keychain(&self) -> &Keychain {
        &self.inner.keychain
    }

    /// Looks addresses up in a state from now on.
    pub(super) fn follow(&self, published: Arc<Published>) {
        self.inner.published.store(Some(published));
    }

    /// Where a node is: as the state has it, or as was said otherwise.
    pub(crate) fn address(&self, node: NodeId, otherwise: &str) -> String {
        let known = self.inner.published.load();
        let known = known.as_ref().and_then(|p| {
            let state = p.state.load();
            let address = state.node(node)?.description.address.clone();
            Some(address)
        });
        known
            .filter(|a| !a.is_empty())
            .unwrap_or_else(|| otherwise.to_owned())
    }

    /// A connection to a node.
    pub(crate) fn to(&self, node: NodeId, address: &str) -> Channel {
        self.kept(node, address, |kept| kept.calls.clone())
    }

    fn kept<T>(&self, node: NodeId, address: &str, choose: impl FnOnce(&mut Kept) -> T) -> T {
        let mut channels = self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= LINKS_MAX {
            channels.clear();
        }
        let open = || {
            let address = self.inner.route.to(address);
            channel::node(&self.inner.keychain, &address, Expect::Node(node))
        };
        let kept = channels
            .entry((node, address.to_owned()))
            .or_insert_with(|| Kept {
                calls: open(),
                signs: [open(), open(), open()],
                beats: 0,
                questions: 0,
            });
        choose(kept)
    }

    /// A connection to a node for one call only. Whoever takes what it is sent slowly, or sends what is not taken, fills
    /// the window of a connection; nothing else must wait behind that.
    pub(crate) fn once(&self, node: NodeId, address: &str) -> (Channel, Cut) {
        channel::node_once(
            &self.inner.keychain,
            &self.inner.route.to(address),
            Expect::Node(node),
        )
    }

    /// A client of another manager that sends it much, over a connection of its own.
    fn raft_bulk(&self, node: NodeId, address: &str) -> (RaftClient<Channel>, Cut) {
        let (channel, cut) = channel::node_bulk(
            &self.inner.keychain,
            &self.inner.route.to(address),
            Expect::Node(node),
        );
        (RaftClient::new(channel), cut)
    }

    /// A client of another manager for the next heartbeat.
    fn heartbeat(&self, node: NodeId, address: &str) -> RaftClient<Channel> {
        RaftClient::new(self.kept(node, address, |kept| {
            kept.beats += 1;
            kept.sign(kept.beats)
        }))
    }

    /// Two clients of another manager for a question, over different connections.
    fn question(&self, node: NodeId, address: &str) -> [RaftClient<Channel>; 2] {
        let both = self.kept(node, address, |kept| {
            kept.questions += 1;
            [kept.sign(kept.questions), kept.sign(kept.questions + 1)]
        });
        both.map(RaftClient::new)
    }

    /// A client of another manager.
    fn raft(&self, node: NodeId, address: &str) -> RaftClient<Channel> {
        RaftClient::new(self.to(node, address))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// What another manager knows; none when it does not answer in time.
    pub(super) async fn status(&self, node: NodeId, address: &str, barrier: bool) -> Option<w::StatusReply> {
        let ask = |mut client: RaftClient<Channel>| async move {
            let reply = client.status(w::StatusRequest { barrier }).await;
            reply.ok().map(tonic::Response::into_inner)
        };
        let [one, two] = self.question(node, address);
        let asked = async {
            let mut first = std::pin::pin!(ask(one));
            match tokio::time::timeout(STATUS_AGAIN, &mut first).await {
                Ok(Some(reply)) => Some(reply),
                Ok(None) => ask(two).await,
                Err(_) => tokio::select! {
                    Some(reply) = &mut first => Some(reply),
                    Some(reply) = ask(two) => Some(reply),
                    else => None,
                },
            }
        };
        tokio::time::timeout(STATUS_LIMIT, asked).await.ok()?
    }
}

/// Connections of a manager that is alone, for tests.
#[cfg(test)]
pub(super) fn links() -> Links {
    let keychain = Keychain::new(std::path::Path::new("/nonexistent"));
    Links::new(keychain, Route::default())
}

/// Makes connections to other managers.
pub(super) struct Peers {
    pub(super) links: Links,
}

/// Another manager.
pub(super) struct Peer {
    links: Links,
    target: Target,
    node: Option<(NodeId, String)>,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let identity = self.links.keychain().identity();
        let cluster = identity
            .map(|i| i.subject.cluster.to_string())
            .unwrap_or_default();
        Peer {
            links: self.links.clone(),
            target: Target {
                raft_id: target,
                cluster,
            },
            node: parse_member(node),
        }
    }
}

impl Peer {
    /// Where it is; one that has not said so cannot be reached.
    fn place(&self) -> Result<(NodeId, String), Unreachable<TypeConfig>> {
        let (node, address) = self.node.as_ref().ok_or_else(|| {
            let why = format!("manager {} has no address", self.target.raft_id);
            Unreachable::from_string(why)
        })?;
        Ok((*node, self.links.address(*node, address)))
    }

    fn client(&self) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        let (node, address) = self.place().map_err(RPCError::Unreachable)?;
        Ok(self.links.raft(node, &address))
    }

    fn heartbeat(&self) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        let (node, address) = self.place().map_err(RPCError::Unreachable)?;
        Ok(self.links.heartbeat(node, &address))
    }
}

fn failed(status: &Status) -> RPCError<TypeConfig> {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        // Asked again at once.
        Code::Cancelled | Code::Aborted | Code::ResourceExhausted => {
            RPCError::Network(NetworkError::from_string(text))
        }
        _ => RPCError::Unreachable(Unreachable::from_string(text)),
    }
}

fn late(what: &str) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(format!("no answer to {what} in time")))
}

async fn within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(late(what)),
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::append_out(&self.target, rpc);
        let mut client = self.client()?;
        let reply = within(option.hard_ttl(), "entries", client.append_once(message)).await?;
        wire::append_reply_in(reply).map_err(|e| failed(&e))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamReply, RPCError<TypeConfig>>>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let target = self.target.clone();
            let owed = Arc::new(Owed::default());
            let mut input = input.fuse();
            // A heartbeat is a stream of one message without entries; so is the news of what is committed.
            let first = input.next().await;
            let empty = first.as_ref().is_none_or(|rpc| rpc.entries.is_empty());
            let second = if empty { input.next().now_or_never() } else { None };
            let heartbeat = matches!(second, Some(None));
            let input = futures::stream::iter(first.into_iter().chain(second.flatten())).chain(input);
            let sent = owed.clone();
            let messages = input.map(move |rpc| {
                let message = wire::append_out(&target, rpc);
                sent.one_more(message.entries.iter().map(Vec::len).sum());
                message
            });
            let mut client = if heartbeat {
                self.heartbeat()?
            } else {
                self.client()?
            };
            // Its answer begins when the first message has arrived.
            let replies = match owed.in_time(client.append(messages)).await {
                Some(replies) => replies.map_err(|status| failed(&status))?.into_inner(),
                None => return Err(late("a stream of entries")),
            };
            let stream = futures::stream::unfold(Some(replies), move |replies| {
                let owed = owed.clone();
                async move {
                    let mut replies = replies?;
                    let item = next_reply(&mut replies, &owed).await?;
                    let go_on = matches!(item, Ok(Ok(_)));
                    Some((item, go_on.then_some(replies)))
                }
            });
            Ok(Box::pin(stream) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::ballot_out(&self.target, &rpc);
        let reply = within(option.hard_ttl(), "a vote", self.client()?.vote(message)).await?;
        wire::ballot_reply_in(reply).map_err(|e| failed(&e))
    }

    // Without this, openraft takes a peer that cannot be asked for one that agrees.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::ballot_out(&self.target, &rpc);
        let reply = within(option.hard_ttl(), "a vote", self.client()?.pre_vote(message)).await?;
        wire::ballot_reply_in(reply).map_err(|e| failed(&e))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let broken = |why: String| StreamingError::Unreachable(Unreachable::from_string(why));
        let (node, address) = self.place().map_err(StreamingError::Unreachable)?;
        let (mut client, _cut) = self.links.raft_bulk(node, &address);
        let (send, pieces) = tokio::sync::mpsc::channel(PIECES_QUEUED);
        let head = wire::head_out(&self.target, &vote, &snapshot.meta);
        let reading = tokio::spawn(send_pieces(head, snapshot.snapshot, send));
        let call = client.snapshot(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let reply = tokio::select! {
            closed = cancel => {
                reading.abort();
                return Err(StreamingError::Closed(closed));
            }
            reply = call => reply,
        };
        match reply {
            Ok(reply) => {
                let vote = wire::vote_in(reply.into_inner().vote).map_err(|e| broken(e.to_string()))?;
                Ok(SnapshotResponse::new(vote))
            }
            Err(status) => {
                reading.abort();
                tracing::warn!(
                    manager = address,
                    reason = status.message(),
                    "a snapshot was not taken"
                );
                Err(broken(format!("{:?}: {}", status.code(), status.message())))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = wire::transfer_out(&self.target, &request);
        let reply = within(option.hard_ttl(), "a transfer", self.client()?.transfer(message)).await?;
        if reply.accepted {
            return Ok(Ok(()));
        }
        // It will be asked again with what stands then.
        Ok(Err(openraft::raft::TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: None,
        }))
    }
}

/// Messages of a stream that have no answer yet, oldest first: when each was sent, and its bytes.
#[derive(Debug, Default)]
struct Owed(Mutex<VecDeque<(Instant, usize)>>);

impl Owed {
    fn list(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_more(&self, bytes: usize) {
        self.list().push_back((Instant::now(), bytes));
    }

    /// Whether the oldest should have been answered by now: the line may be narrow, and all of them go over it.
    fn is_late(&self) -> bool {
        let list = self.list();
        let bytes: usize = list.iter().map(|(_, bytes)| bytes).sum();
        let limit = ANSWER_LIMIT + Duration::from_secs(bytes as u64 / SLOWEST_LINE);
        list.front().is_some_and(|(sent, _)| sent.elapsed() > limit)
    }

    /// Waits for an answer; none when one is late.
    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = std::pin::pin!(answer);
        loop {
            match tokio::time::timeout(LOOK_EVERY, &mut answer).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.is_late() => return None,
                Err(_) => {}
            }
        }
    }
}

/// The next answer of a stream of entries; none when the peer ended it.
async fn next_reply(
    replies: &mut tonic::Streaming<w::AppendReply>,
    owed: &Owed,
) -> Option<Result<StreamReply, RPCError<TypeConfig>>> {
    match owed.in_time(replies.message()).await {
        Some(Ok(Some(reply))) => {
            owed.list().pop_front();
            Some(wire::stream_reply_in(reply).map_err(|e| failed(&e)))
        }
        Some(Ok(None)) => None,
        Some(Err(status)) => Some(Err(failed(&status))),
        None => Some(Err(late("entries"))),
    }
}

async fn send_pieces(
    head: w::SnapshotHead,
    mut file: SnapshotFile,
    send: tokio::sync::mpsc::Sender<w::SnapshotPiece>,
) {
    let mut piece = w::SnapshotPiece {
        head: Some(head),
        data: Vec::new(),
    };
    loop {
        // A peer that takes nothing for so long ends the stream by our dropping it.
        match tokio::time::timeout(PIECE_LIMIT, send.send(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        let read = tokio::task::spawn_blocking(move || {
            let piece = file.next_piece();
            (file, piece)
        });
        let Ok((back, next)) = read.await else { return };
        file = back;
        match next {
            Ok(Some(data)) => piece = w::SnapshotPiece { head: None, data },
            Ok(None) => return,
            Err(error) => {
                // The peer sees a snapshot that is cut short, and refuses it.
                tracing::error!(%error, "read the snapshot that is being sent");
                return;
            }
        }
    }
}
