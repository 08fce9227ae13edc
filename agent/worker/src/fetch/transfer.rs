//! One question to a node, one layer from it: with deadlines, and nothing believed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_core::fetch::{Fault, Transfer};
use image::{ImageStore, UnpackError};
use model::NodeId;
use proto::images as w;
use proto::images::images_client::ImagesClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::images::{MESSAGE_MAX, PIECE};
use crate::peers::Peers;
use crate::streams::ChunkReader;
use crate::tasks::chain;

/// Longest wait for a connection, an answer or the next piece.
const PIECE_LIMIT: Duration = Duration::from_secs(10);
/// Smallest piece but for the last: with [`PIECE_LIMIT`] a node that drips is as good as silent.
const PIECE_MIN: usize = 16 << 10;
/// Pieces between the network and the thread that unpacks.
const PIECES_QUEUED: usize = 4;

/// What a node has of an image.
pub(super) struct Description {
    pub(super) config: Vec<u8>,
    /// Layer → bytes of its packed form.
    pub(super) layers: BTreeMap<String, u64>,
}

/// A layer that has begun to arrive.
pub(super) struct Incoming {
    pieces: mpsc::Sender<io::Result<Vec<u8>>>,
    verdict: JoinHandle<Result<(), UnpackError>>,
    have: Arc<AtomicU64>,
}

impl Incoming {
    /// Begins to unpack what will arrive. Given up half-way, nothing of it is kept.
    pub(super) fn new(store: &ImageStore, diff_id: &str) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES_QUEUED);
        let (store, diff_id) = (store.clone(), diff_id.to_owned());
        let verdict =
            tokio::task::spawn_blocking(move || store.add_fetched_layer(ChunkReader::of(receiver), &diff_id));
        Self {
            pieces,
            verdict,
            have: Arc::default(),
        }
    }

    /// Bytes that arrived, counted while they do.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        self.have.clone()
    }

    fn have(&self) -> u64 {
        self.have.load(Ordering::Relaxed)
    }

    /// What the unpacking thread says in the end.
    async fn verdict(self) -> Outcome {
        drop(self.pieces);
        match self.verdict.await {
            Ok(Ok(())) => Outcome::Verified,
            Ok(Err(error)) if error.is_local() => Outcome::Here(chain(error)),
            Ok(Err(error)) => Outcome::Failed(Fault::Wrong, chain(error)),
            Err(error) => Outcome::Here(format!("the thread that unpacks a layer failed: {error}")),
        }
    }
}

/// How a transfer ended.
pub(super) enum Outcome {
    /// The layer is in the store.
    Verified,
    /// The node failed.
    Failed(Fault, String),
    /// This node did: no other source helps.
    Here(String),
}

/// A transfer that ended.
pub(super) struct Moved {
    pub(super) transfer: Transfer,
    /// With how many bytes it can go on; none where it cannot.
    pub(super) incoming: Option<(Incoming, u64)>,
    pub(super) outcome: Outcome,
}

/// Asks a node what it has of the image `id`.
pub(super) async fn describe(
    peers: &dyn Peers,
    node: NodeId,
    address: &str,
    id: &str,
) -> Result<(Channel, Description), (Fault, String)> {
    let silent = |what: &str| (Fault::Lost, format!("{what}: no answer within {PIECE_LIMIT:?}"));
    let connected = timeout(PIECE_LIMIT, peers.connect(node, address)).await;
    let channel = connected
        .map_err(|_| silent("connect"))?
        .map_err(|e| (Fault::Lost, format!("connect: {e}")))?;
    let mut client = ImagesClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    let request = w::DescribeRequest { reference: id.into() };
    let described = timeout(PIECE_LIMIT, client.describe(request)).await;
    let description = described
        .map_err(|_| silent("describe the image"))?
        .map_err(|s| (fault(&s), s.message().to_owned()))?
        .into_inner();
    let found = image::id_of(&description.config);
    if found != id {
        return Err((Fault::Wrong, format!("E_DIGEST: it sent the config of {found}")));
    }
    let layers = description.layers.into_iter().map(|l| (l.diff_id, l.bytes));
    let description = Description {
        config: description.config,
        layers: layers.collect(),
    };
    Ok((channel, description))
}

fn fault(status: &Status) -> Fault {
    match status.code() {
        Code::ResourceExhausted => Fault::Busy,
        Code::NotFound | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => Fault::Lacks,
        _ => Fault::Lost,
    }
}

/// Why a transfer stops.
enum Stop {
    Fault(Fault, String),
    /// The thread that unpacks takes no more, and says why.
    Unpacked,
}

/// Receives a layer, or the rest of it, and has it verified.
pub(super) async fn run(channel: Channel, transfer: Transfer, incoming: Incoming) -> Moved {
    let (incoming, outcome) = match receive(channel, &transfer, &incoming).await {
        Ok(()) | Err(Stop::Unpacked) => (None, incoming.verdict().await),
        Err(Stop::Fault(fault @ Fault::Wrong, why)) => (None, Outcome::Failed(fault, why)),
        Err(Stop::Fault(fault, why)) => {
            let have = incoming.have();
            (Some((incoming, have)), Outcome::Failed(fault, why))
        }
    };
    Moved {
        transfer,
        incoming,
        outcome,
    }
}

async fn receive(channel: Channel, transfer: &Transfer, incoming: &Incoming) -> Result<(), Stop> {
    let silent = |_| Stop::Fault(Fault::Lost, format!("it sent nothing for {PIECE_LIMIT:?}"));
    let refused = |s: Status| Stop::Fault(fault(&s), s.message().to_owned());
    let mut client = ImagesClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
    let request = w::FetchRequest {
        diff_id: transfer.diff_id.clone(),
        offset: transfer.offset,
    };
    let opened = timeout(PIECE_LIMIT, client.fetch(request)).await;
    let mut stream = opened.map_err(silent)?.map_err(refused)?.into_inner();
    loop {
        let have = incoming.have();
        let received = timeout(PIECE_LIMIT, stream.message()).await;
        let Some(piece) = received.map_err(silent)?.map_err(refused)? else {
            return if have == transfer.size {
                Ok(())
            } else {
                let why = format!("it ended after {have} of {} bytes", transfer.size);
                Err(Stop::Fault(Fault::Lost, why))
            };
        };
        let bytes = piece.data.len();
        let now = have + bytes as u64;
        if bytes > PIECE || now > transfer.size {
            let why = format!("it sent more than the {} bytes it announced", transfer.size);
            return Err(Stop::Fault(Fault::Wrong, why));
        }
        if bytes < PIECE_MIN && now < transfer.size {
            return Err(Stop::Fault(
                Fault::Lost,
                format!("it sent {bytes} bytes at a time"),
            ));
        }
        // Waiting here is for our own disk, not for the node.
        if incoming.pieces.send(Ok(piece.data)).await.is_err() {
            return Err(Stop::Unpacked);
        }
        incoming.have.store(now, Ordering::Relaxed);
    }
}
