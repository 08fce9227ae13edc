//! `cp`: tars out of and into containers, by code of ours (`runtime::copy`).

use std::io::{Read, Write};
use std::time::Duration;

use proto::host as w;
use runtime::copy::{CopyError, Options, Owner, Shape, unpack};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{Events, HostService, admit, broken};
use crate::streams::{ChunkReader, ChunkWriter};
use crate::tasks::{blocking, chain};

/// Pieces under way to a client; each has 128 KiB.
const QUEUE: usize = 4;
/// How long a client may take to say what it wants to copy.
const START_LIMIT: Duration = Duration::from_secs(10);
/// What may follow a tar: writers fill their last block.
const PADDING_MAX: u64 = 1 << 20;

fn refused(error: &CopyError) -> Status {
    let text = chain(error);
    match error {
        CopyError::Missing { .. } => Status::not_found(text),
        CopyError::Container { .. } => Status::failed_precondition(text),
        other if other.is_request() => Status::invalid_argument(text),
        _ => Status::internal(text),
    }
}

/// Copies out of a container. Whether that can be done is known before the first message is sent.
pub(super) async fn from(
    host: &HostService,
    r: w::CopyFromRequest,
) -> Result<Response<Events<w::CopyOutput>>, Status> {
    let place = admit(&host.copies, 1, "copies")?;
    let (runtime, id) = (host.shared.runtime.clone(), host.find(&r.container)?.id);
    let source = blocking(move || runtime.tree(&id, false)?.source(&r.path, r.follow))
        .await
        .map_err(broken)?
        .map_err(|e| refused(&e))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let first = w::CopySource {
        name: source.name.clone(),
        folder: source.shape.folder,
        contents: source.shape.contents,
        size_bytes: source.size(),
    };
    let first = w::CopyOutput {
        source: Some(first),
        data: Vec::new(),
    };
    // There is room: nothing was sent before.
    let _ = sender.try_send(Ok(first));
    tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter::new(sender.clone(), |data| w::CopyOutput { source: None, data });
        let packed = source.pack(&mut out).and_then(|()| {
            out.flush().map_err(|source| CopyError::Io {
                what: "send the end".into(),
                source,
            })
        });
        drop(place);
        if let Err(error) = packed {
            // Without a client nobody hears it; one that stalls has room for it or was given up.
            let _ = sender.try_send(Err(refused(&error)));
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Copies into a container.
pub(super) async fn to(
    host: &HostService,
    mut input: Streaming<w::CopyInput>,
) -> Result<w::CopyToReply, Status> {
    let first = tokio::time::timeout(START_LIMIT, input.message());
    let first = first
        .await
        .map_err(|_| Status::deadline_exceeded("nothing was said of where to copy to"))??
        .ok_or_else(|| Status::invalid_argument("nothing was sent"))?;
    let start = first
        .start
        .ok_or_else(|| Status::invalid_argument("the first message must say where to copy to"))?;
    let place = admit(&host.copies, 1, "copies")?;
    let (runtime, id) = (host.shared.runtime.clone(), host.find(&start.container)?.id);
    let mut data = ChunkReader::new(first.data, input, |m: w::CopyInput| m.data);
    let options = Options {
        owner: if start.keep_owners {
            Owner::Kept
        } else {
            Owner::Is(0, 0)
        },
        privileges: true,
        // Whoever may open a device of the host is not kept from it by a cgroup here.
        devices: false,
    };
    let outcome = blocking(move || {
        let _place = place;
        let tree = runtime.tree(&id, true)?;
        let target = match start.source {
            None => tree.folder(&start.path)?,
            Some(source) => {
                let shape = Shape {
                    folder: source.folder,
                    contents: source.contents,
                };
                tree.target(&start.path, shape)?
            }
        };
        let outcome = unpack(&mut data, &target, options)?;
        let _ = std::io::copy(&mut data.take(PADDING_MAX), &mut std::io::sink());
        Ok::<_, CopyError>(outcome)
    });
    let outcome = outcome.await.map_err(broken)?.map_err(|e| refused(&e))?;
    Ok(w::CopyToReply {
        bytes: outcome.bytes,
        devices_left_out: outcome.devices_left_out,
    })
}
