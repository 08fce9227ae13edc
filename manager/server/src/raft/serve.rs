//! What other managers ask of this one's log.

use std::sync::Arc;

use futures::StreamExt;
use openraft::Raft;
use proto::raft as w;
use proto::raft::raft_server::Raft as RaftService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::snapshot::{SnapshotFile, SnapshotWriter};
use super::state_machine::StateMachine;
use super::{Log, Snapshot, TypeConfig, wire};
use crate::server::Manager;

/// Answers that wait for a slow leader.
const ANSWERS_QUEUED: usize = 64;

/// The Raft service of a manager.
pub struct RaftRpc {
    manager: Manager,
}

impl RaftRpc {
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    fn log(&self) -> Result<Arc<Log>, Status> {
        let cluster = self.manager.cluster();
        let cluster = cluster.ok_or_else(|| Status::unavailable("this node has no log of managers"))?;
        Ok(cluster.writer.log.clone())
    }

    /// The protocol, when a message is meant for this manager and this cluster.
    fn raft(&self, target: u64, cluster: &str) -> Result<Raft<TypeConfig, StateMachine>, Status> {
        let log = self.log()?;
        if target != log.raft_id() || log.cluster_id().is_some_and(|own| own != cluster) {
            return Err(Status::failed_precondition(format!(
                "E_WRONG_TARGET: this is manager {} of cluster {}, the message is for manager {target} of cluster {cluster}",
                log.raft_id(),
                log.cluster_id().unwrap_or_default()
            )));
        }
        Ok(log.raft.clone())
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this manager stopped: {error}"))
}

#[tonic::async_trait]
impl RaftService for RaftRpc {
    type AppendStream = ReceiverStream<Result<w::AppendReply, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<w::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a stream without entries"))?;
        let raft = self.raft(first.target, &first.cluster_id)?;
        let first = wire::append_in(first)?;
        // What cannot be read ends the stream; the leader begins another.
        let rest = futures::stream::unfold(messages, |mut messages| async move {
            let message = messages.message().await.ok().flatten()?;
            Some((wire::append_in(message).ok()?, messages))
        });
        let input = futures::stream::once(std::future::ready(first)).chain(rest);
        let (send, answers) = mpsc::channel(ANSWERS_QUEUED);
        tokio::spawn(async move {
            let mut output = Box::pin(raft.stream_append(input));
            while let Some(reply) = output.next().await {
                let reply = reply.map(wire::stream_reply_out).map_err(fatal);
                let last = reply.is_err();
                if send.send(reply).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn append_once(
        &self,
        request: Request<w::AppendRequest>,
    ) -> Result<Response<w::AppendReply>, Status> {
        let message = request.into_inner();
        let raft = self.raft(message.target, &message.cluster_id)?;
        let reply = raft
            .append_entries(wire::append_in(message)?)
            .await
            .map_err(fatal)?;
        Ok(Response::new(wire::append_reply_out(reply)))
    }

    async fn vote(&self, request: Request<w::VoteRequest>) -> Result<Response<w::VoteReply>, Status> {
        let message = request.into_inner();
        let raft = self.raft(message.target, &message.cluster_id)?;
        let term = self.log()?.role().borrow().term;
        let reply = raft.vote(wire::ballot_in(message, term)?).await.map_err(fatal)?;
        Ok(Response::new(wire::ballot_reply_out(&reply)))
    }

    async fn pre_vote(&self, request: Request<w::VoteRequest>) -> Result<Response<w::VoteReply>, Status> {
        let message = request.into_inner();
        let raft = self.raft(message.target, &message.cluster_id)?;
        let term = self.log()?.role().borrow().term;
        let reply = raft
            .pre_vote(wire::ballot_in(message, term)?)
            .await
            .map_err(fatal)?;
        Ok(Response::new(wire::ballot_reply_out(&reply)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<w::SnapshotPiece>>,
    ) -> Result<Response<w::SnapshotReply>, Status> {
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.unwrap_or_default();
        let head = first
            .head
            .ok_or_else(|| Status::invalid_argument("E_SNAPSHOT: no header"))?;
        let raft = self.raft(head.target, &head.cluster_id)?;
        let (vote, meta) = wire::head_in(head)?;
        let mut writer = self.log()?.receive_snapshot()?;
        let mut data = first.data;
        loop {
            if !data.is_empty() {
                writer = write(writer, data).await?;
            }
            match pieces.message().await? {
                Some(piece) => data = piece.data,
                None => break,
            }
        }
        let wanted = meta.last_log_id;
        let checked = tokio::task::spawn_blocking(move || {
            let mut file = writer.finish().map_err(|e| e.to_string())?;
            let (header, _) = super::codec::read_snapshot(&mut file).map_err(|e| e.to_string())?;
            Ok::<_, String>((file, header.last.map(super::LogId::from)))
        });
        let (file, found): (SnapshotFile, _) = checked
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::data_loss(format!("E_SNAPSHOT: {e}; the state is as it was")))?;
        if found != wanted {
            return Err(Status::data_loss(
                "E_SNAPSHOT: it is not the one that was announced; the state is as it was",
            ));
        }
        let snapshot = Snapshot { meta, snapshot: file };
        let reply = raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        Ok(Response::new(w::SnapshotReply {
            vote: Some(wire::vote_out(&reply.vote)),
        }))
    }

    async fn transfer(
        &self,
        request: Request<w::TransferRequest>,
    ) -> Result<Response<w::TransferReply>, Status> {
        let message = request.into_inner();
        let raft = self.raft(message.target, &message.cluster_id)?;
        let reply = raft
            .handle_transfer_leader(wire::transfer_in(message)?)
            .await
            .map_err(fatal)?;
        Ok(Response::new(w::TransferReply {
            accepted: reply.is_ok(),
        }))
    }

    async fn status(&self, request: Request<w::StatusRequest>) -> Result<Response<w::StatusReply>, Status> {
        Ok(Response::new(
            self.log()?.status(request.get_ref().barrier).await?,
        ))
    }
}

async fn write(mut writer: SnapshotWriter, data: Vec<u8>) -> Result<SnapshotWriter, Status> {
    tokio::task::spawn_blocking(move || writer.write(&data).map(|()| writer))
        .await
        .map_err(|e| Status::internal(e.to_string()))?
        .map_err(|e| Status::resource_exhausted(format!("E_SNAPSHOT: cannot be kept: {e}")))
}
