//! The service for other nodes of the cluster: images of this one.

use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use image::{ImageStore, StoreError};
use model::spec::IMAGE_MAX;
use proto::authz::Caller;
use proto::images as w;
use proto::images::images_server::{Images, ImagesServer};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::tasks::{blocking, chain};
use crate::vouch::{Vouched, Voucher};

/// Largest message of this service, either way.
pub(crate) const MESSAGE_MAX: usize = 1 << 20;
/// Largest config that is sent: with the list of 500 layers it stays below a message. Those of real images have some KB.
const CONFIG_MAX: usize = 900 << 10;
/// Bytes of a layer in one message.
pub(crate) const PIECE: usize = 256 << 10;
/// Transfers served at once: more would only make each slower, and others who have the layer by then can serve as well.
pub(crate) const TRANSFERS_MAX: usize = 8;
/// Pieces under way to a node that is slower than we are.
const PIECES_QUEUED: usize = 4;
/// A node that takes no piece for so long loses its slot.
const TAKE_LIMIT: Duration = Duration::from_secs(30);
/// Longest reference in a request, with a digest.
const REFERENCE_MAX: usize = IMAGE_MAX + 80;

/// The service; see `proto/rswarm/images.proto`.
pub struct ImagesService {
    store: ImageStore,
    slots: Arc<Semaphore>,
    /// Absent where only this host calls.
    vouched: Option<Vouched>,
}

impl ImagesService {
    /// Serves the images of a store, to be added to the server that other nodes reach: to nodes of the cluster, as
    /// somebody says who knows them.
    pub(crate) fn server(store: ImageStore, voucher: Option<Arc<dyn Voucher>>) -> ImagesServer<Self> {
        let service = Self {
            store,
            slots: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            vouched: voucher.map(Vouched::new),
        };
        ImagesServer::new(service)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    async fn let_in<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let Some(vouched) = &self.vouched else {
            return Ok(());
        };
        match request.extensions().get::<Caller>() {
            Some(Caller::Node(node)) => vouched.check(*node).await,
            Some(Caller::Operator) => Ok(()),
            Some(Caller::Anyone) | None => {
                Err(Status::unauthenticated("this needs the certificate of a node"))
            }
        }
    }
}

#[tonic::async_trait]
impl Images for ImagesService {
    type FetchStream = ReceiverStream<Result<w::Piece, Status>>;

    async fn describe(
        &self,
        request: Request<w::DescribeRequest>,
    ) -> Result<Response<w::Description>, Status> {
        self.let_in(&request).await?;
        let reference = request.into_inner().reference;
        if reference.len() > REFERENCE_MAX {
            return Err(Status::invalid_argument("that is no reference of an image"));
        }
        let (store, text) = (self.store.clone(), reference.clone());
        let offer = blocking(move || store.offer(&text))
            .await
            .map_err(Status::internal)?;
        let offer = offer.ok_or_else(|| {
            Status::not_found(format!("image {reference} cannot be sent from this node: it is not here, or was stored by an older version"))
        })?;
        if offer.config.len() > CONFIG_MAX {
            return Err(Status::failed_precondition(format!(
                "the config of image {reference} has {} bytes; at most {CONFIG_MAX} are sent: load the image where it is needed",
                offer.config.len()
            )));
        }
        let layer = |l: image::OfferedLayer| w::Layer {
            diff_id: l.diff_id,
            bytes: l.bytes,
        };
        Ok(Response::new(w::Description {
            id: offer.id,
            config: offer.config,
            layers: offer.layers.into_iter().map(layer).collect(),
        }))
    }

    async fn fetch(&self, request: Request<w::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        self.let_in(&request).await?;
        let w::FetchRequest { diff_id, offset } = request.into_inner();
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{TRANSFERS_MAX} transfers are being served: ask another node, or again later"
            ))
        })?;
        let store = self.store.clone();
        let opened = blocking(move || {
            let (mut file, bytes) = store.open_blob(&diff_id)?;
            let sought = (offset <= bytes).then(|| file.seek(SeekFrom::Start(offset)));
            Ok::<_, StoreError>((file, bytes, sought))
        });
        let (file, bytes, sought) =
            opened
                .await
                .map_err(Status::internal)?
                .map_err(|error| match &error {
                    StoreError::NoBlob(_) => Status::not_found(error.to_string()),
                    StoreError::Config(_) => Status::invalid_argument(error.to_string()),
                    _ => Status::internal(chain(&error)),
                })?;
        match sought {
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                return Err(Status::internal(format!(
                    "read the layer from byte {offset} on: {e}"
                )));
            }
            None => {
                return Err(Status::out_of_range(format!(
                    "the layer has {bytes} bytes here: it cannot begin at {offset}"
                )));
            }
        }
        let (sender, receiver) = mpsc::channel(PIECES_QUEUED);
        tokio::spawn(send(tokio::fs::File::from_std(file), sender, slot));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends a file to its end, or until nobody takes it.
async fn send(
    mut file: tokio::fs::File,
    sender: mpsc::Sender<Result<w::Piece, Status>>,
    _slot: OwnedSemaphorePermit,
) {
    file.set_max_buf_size(PIECE);
    loop {
        let mut data = Vec::with_capacity(PIECE);
        let piece = match (&mut file).take(PIECE as u64).read_to_end(&mut data).await {
            Ok(0) => return,
            Ok(_) => Ok(w::Piece { data }),
            Err(e) => Err(Status::internal(format!("read the layer: {e}"))),
        };
        let last = piece.is_err();
        match tokio::time::timeout(TAKE_LIMIT, sender.send(piece)).await {
            Ok(Ok(())) if !last => {}
            Ok(Ok(())) | Ok(Err(_)) | Err(_) => return,
        }
    }
}
