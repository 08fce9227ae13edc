//! What managers say to each other, as messages and as openraft has it.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use prost::Message;
use proto::raft as w;
use proto::raft::append_reply::Outcome;
use tonic::Status;

use super::record::{EntryRecord, MembershipRecord};
use super::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote};

/// How far a candidate's term may be ahead: a cluster does not have that many elections while a manager is away, and
/// a term near the end of the numbers would leave no later one.
const TERM_JUMP_MAX: u64 = 1000;

pub(super) fn id_out(id: LogId) -> w::LogId {
    w::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(super) fn id_in(id: w::LogId) -> LogId {
    LogId::new(id.term.into(), id.index)
}

pub(super) fn vote_out(vote: &Vote) -> w::VoteOf {
    w::VoteOf {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote_in(vote: Option<w::VoteOf>) -> Result<Vote, Status> {
    let vote = vote.ok_or_else(|| Status::invalid_argument("a message without a vote"))?;
    Ok(Vote {
        leader_id: openraft::impls::leader_id_std::LeaderId {
            term: vote.term,
            voted_for: vote.node,
        },
        committed: vote.committed,
    })
}

/// For whom a message is, so that nobody else takes it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) raft_id: u64,
    pub(super) cluster: String,
}

pub(super) fn append_out(target: &Target, rpc: AppendEntriesRequest<TypeConfig>) -> w::AppendRequest {
    let entry = |e: &Entry| EntryRecord::from(e).encode_to_vec();
    w::AppendRequest {
        target: target.raft_id,
        cluster_id: target.cluster.clone(),
        vote: Some(vote_out(&rpc.vote)),
        previous: rpc.prev_log_id.map(id_out),
        entries: rpc.entries.iter().map(entry).collect(),
        committed: rpc.leader_commit.map(id_out),
    }
}

pub(super) fn append_in(message: w::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entry = |bytes: Vec<u8>| {
        let record =
            EntryRecord::decode(bytes.as_slice()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        record.into_entry().map_err(Status::invalid_argument)
    };
    Ok(AppendEntriesRequest {
        vote: vote_in(message.vote)?,
        prev_log_id: message.previous.map(id_in),
        entries: message.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        leader_commit: message.committed.map(id_in),
    })
}

pub(super) fn append_reply_out(reply: AppendEntriesResponse<TypeConfig>) -> w::AppendReply {
    let nothing = matches!(reply, AppendEntriesResponse::PartialSuccess(None));
    let outcome = match reply {
        AppendEntriesResponse::Success => Outcome::Success(true),
        AppendEntriesResponse::PartialSuccess(id) => Outcome::Partial(id.map(id_out).unwrap_or_default()),
        AppendEntriesResponse::Conflict => Outcome::Conflict(w::LogId::default()),
        AppendEntriesResponse::HigherVote(vote) => Outcome::Higher(vote_out(&vote)),
    };
    w::AppendReply {
        outcome: Some(outcome),
        last: None,
        nothing,
    }
}

pub(super) fn append_reply_in(reply: w::AppendReply) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
    Ok(match reply.outcome.ok_or_else(unknown)? {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::Partial(_) if reply.nothing => AppendEntriesResponse::PartialSuccess(None),
        Outcome::Partial(id) => AppendEntriesResponse::PartialSuccess(Some(id_in(id))),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::Higher(vote) => AppendEntriesResponse::HigherVote(vote_in(Some(vote))?),
    })
}

/// One answer of a stream of entries.
pub(super) type StreamReply = Result<Option<LogId>, StreamAppendError<TypeConfig>>;

pub(super) fn stream_reply_out(reply: StreamReply) -> w::AppendReply {
    let (outcome, last) = match reply {
        Ok(last) => (Outcome::Success(true), last.map(id_out)),
        Err(StreamAppendError::Conflict(id)) => (Outcome::Conflict(id_out(id)), None),
        Err(StreamAppendError::HigherVote(vote)) => (Outcome::Higher(vote_out(&vote)), None),
    };
    w::AppendReply {
        outcome: Some(outcome),
        last,
        nothing: false,
    }
}

pub(super) fn stream_reply_in(reply: w::AppendReply) -> Result<StreamReply, Status> {
    Ok(match reply.outcome.ok_or_else(unknown)? {
        Outcome::Success(_) | Outcome::Partial(_) => Ok(reply.last.map(id_in)),
        Outcome::Conflict(id) => Err(StreamAppendError::Conflict(id_in(id))),
        Outcome::Higher(vote) => Err(StreamAppendError::HigherVote(vote_in(Some(vote))?)),
    })
}

fn unknown() -> Status {
    Status::invalid_argument("a reply of an unknown kind: from a newer version?")
}

pub(super) fn ballot_out(target: &Target, rpc: &VoteRequest<TypeConfig>) -> w::VoteRequest {
    w::VoteRequest {
        target: target.raft_id,
        cluster_id: target.cluster.clone(),
        vote: Some(vote_out(&rpc.vote)),
        last: rpc.last_log_id.map(id_out),
        transfer: rpc.leadership_transfer,
    }
}

/// The other way; `term` is the one this manager knows.
pub(super) fn ballot_in(message: w::VoteRequest, term: u64) -> Result<VoteRequest<TypeConfig>, Status> {
    let vote = vote_in(message.vote)?;
    if vote.leader_id.term > term.saturating_add(TERM_JUMP_MAX) {
        return Err(Status::invalid_argument(format!(
            "E_TERM_JUMP: a vote in term {} was asked for in term {term}",
            vote.leader_id.term
        )));
    }
    let mut request = VoteRequest::new(vote, message.last.map(id_in));
    request.leadership_transfer = message.transfer;
    Ok(request)
}

pub(super) fn ballot_reply_out(reply: &VoteResponse<TypeConfig>) -> w::VoteReply {
    w::VoteReply {
        vote: Some(vote_out(&reply.vote)),
        last: reply.last_log_id.map(id_out),
        granted: reply.vote_granted,
    }
}

pub(super) fn ballot_reply_in(reply: w::VoteReply) -> Result<VoteResponse<TypeConfig>, Status> {
    Ok(VoteResponse::new(
        vote_in(reply.vote)?,
        reply.last.map(id_in),
        reply.granted,
    ))
}

pub(super) fn head_out(target: &Target, vote: &Vote, meta: &SnapshotMeta) -> w::SnapshotHead {
    w::SnapshotHead {
        target: target.raft_id,
        cluster_id: target.cluster.clone(),
        vote: Some(vote_out(vote)),
        last: meta.last_log_id.map(id_out),
        membership_id: meta.last_membership.log_id().map(id_out),
        membership: MembershipRecord::from(meta.last_membership.membership()).encode_to_vec(),
    }
}

pub(super) fn head_in(head: w::SnapshotHead) -> Result<(Vote, SnapshotMeta), Status> {
    let record = MembershipRecord::decode(head.membership.as_slice())
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    let membership = record.into_membership().map_err(Status::invalid_argument)?;
    let meta = SnapshotMeta {
        last_log_id: head.last.map(id_in),
        last_membership: StoredMembership::new(head.membership_id.map(id_in), membership),
    };
    Ok((vote_in(head.vote)?, meta))
}

pub(super) fn transfer_out(target: &Target, rpc: &TransferLeaderRequest<TypeConfig>) -> w::TransferRequest {
    w::TransferRequest {
        target: target.raft_id,
        cluster_id: target.cluster.clone(),
        from: Some(vote_out(rpc.from_leader())),
        to: *rpc.to_node_id(),
        last: rpc.last_log_id().copied().map(id_out),
    }
}

pub(super) fn transfer_in(message: w::TransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, Status> {
    Ok(TransferLeaderRequest::new(
        vote_in(message.from)?,
        message.to,
        message.last.map(id_in),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_cannot_take_the_terms_away() {
        let ask = |term| w::VoteRequest {
            vote: Some(w::VoteOf {
                term,
                node: 1,
                committed: false,
            }),
            ..w::VoteRequest::default()
        };
        for (known, asked, taken) in [
            (5, 6, true),
            (5, 1005, true),
            (5, 1006, false),
            (5, u64::MAX, false),
        ] {
            assert_eq!(ballot_in(ask(asked), known).is_ok(), taken, "{asked} in {known}");
        }
    }

    #[test]
    fn replies_read_back_as_they_were_said() {
        let id = LogId::new(3.into(), 9);
        let vote = Vote {
            leader_id: openraft::impls::leader_id_std::LeaderId {
                term: 4,
                voted_for: 2,
            },
            committed: true,
        };
        for reply in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(id)),
            AppendEntriesResponse::PartialSuccess(None),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote),
        ] {
            assert_eq!(append_reply_in(append_reply_out(reply.clone())).unwrap(), reply);
        }
        for reply in [
            Ok(Some(id)),
            Ok(None),
            Err(StreamAppendError::Conflict(id)),
            Err(StreamAppendError::HigherVote(vote)),
        ] {
            assert_eq!(stream_reply_in(stream_reply_out(reply.clone())).unwrap(), reply);
        }
    }
}
