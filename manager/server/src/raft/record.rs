//! Records of the raft log and of snapshots, as they stand on disk (prost; tags are never reused).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::{BasicNode, EntryPayload};
use prost::Message;

use super::{Entry, LogId, Membership, Proposal, StoredMembership, Vote};

/// One frame: what was written with one sync.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub(super) records: Vec<Record>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(oneof = "RecordKind", tags = "1, 2, 3, 4, 5, 6")]
    pub(super) kind: Option<RecordKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum RecordKind {
    #[prost(message, tag = "1")]
    Entry(EntryRecord),
    #[prost(message, tag = "2")]
    Vote(VoteRecord),
    #[prost(message, tag = "3")]
    Committed(LogIdRecord),
    #[prost(message, tag = "4")]
    TruncateAfter(TruncateAfter),
    #[prost(message, tag = "5")]
    Purge(LogIdRecord),
    #[prost(message, tag = "6")]
    Checkpoint(Checkpoint),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct VoteRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct TruncateAfter {
    /// None: everything.
    #[prost(message, optional, tag = "1")]
    pub(super) last: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Checkpoint {
    #[prost(message, optional, tag = "1")]
    pub(super) vote: Option<VoteRecord>,
    #[prost(message, optional, tag = "2")]
    pub(super) committed: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    pub(super) purged: Option<LogIdRecord>,
    #[prost(message, optional, tag = "4")]
    pub(super) last: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryRecord {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdRecord>,
    #[prost(oneof = "PayloadRecord", tags = "2, 3")]
    payload: Option<PayloadRecord>,
}

/// Absent: a leader's first, empty entry.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum PayloadRecord {
    #[prost(bytes, tag = "2")]
    Normal(Vec<u8>),
    #[prost(message, tag = "3")]
    Membership(MembershipRecord),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MembershipRecord {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VoterSet>,
    #[prost(btree_map = "uint64, string", tag = "2")]
    addresses: BTreeMap<u64, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

/// First record of a snapshot; the objects follow.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SnapshotHeader {
    #[prost(message, optional, tag = "1")]
    pub(super) last: Option<LogIdRecord>,
    #[prost(message, optional, tag = "2")]
    pub(super) membership_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    pub(super) membership: Option<MembershipRecord>,
    /// Index of the state.
    #[prost(uint64, tag = "4")]
    pub(super) index: u64,
    /// How many objects follow.
    #[prost(uint64, tag = "5")]
    pub(super) objects: u64,
    /// Newest time of an entry, in milliseconds since 1970.
    #[prost(uint64, tag = "6")]
    pub(super) time: u64,
    /// How many answers of requests follow them.
    #[prost(uint64, tag = "7")]
    pub(super) answers: u64,
}

/// A record, encoded as one element of a [`Batch`], so that batches are made by putting such texts together.
pub(super) fn encode_record(kind: RecordKind) -> Vec<u8> {
    Batch {
        records: vec![Record { kind: Some(kind) }],
    }
    .encode_to_vec()
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            index: id.index,
        }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(id: LogIdRecord) -> Self {
        LogId::new(id.term.into(), id.index)
    }
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<VoteRecord> for Vote {
    fn from(vote: VoteRecord) -> Self {
        Self {
            leader_id: openraft::impls::leader_id_std::LeaderId {
                term: vote.term,
                voted_for: vote.node,
            },
            committed: vote.committed,
        }
    }
}

impl From<&Entry> for EntryRecord {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(proposal) => Some(PayloadRecord::Normal(proposal.0.to_vec())),
            EntryPayload::Membership(membership) => Some(PayloadRecord::Membership(membership.into())),
        };
        Self {
            id: Some(entry.log_id.into()),
            payload,
        }
    }
}

impl EntryRecord {
    /// The entry; it fails only on bytes that a newer version wrote.
    pub(super) fn into_entry(self) -> Result<Entry, String> {
        let payload = match self.payload {
            None => EntryPayload::Blank,
            Some(PayloadRecord::Normal(bytes)) => EntryPayload::Normal(Proposal(Arc::from(bytes))),
            Some(PayloadRecord::Membership(membership)) => {
                EntryPayload::Membership(membership.into_membership()?)
            }
        };
        Ok(Entry {
            log_id: self.id.ok_or("an entry without an index")?.into(),
            payload,
        })
    }
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> Self {
        let voters = |ids: &BTreeSet<u64>| VoterSet {
            voters: ids.iter().copied().collect(),
        };
        Self {
            configs: membership.get_joint_config().iter().map(voters).collect(),
            addresses: membership
                .nodes()
                .map(|(id, node)| (*id, node.addr.clone()))
                .collect(),
        }
    }
}

impl MembershipRecord {
    pub(super) fn into_membership(self) -> Result<Membership, String> {
        let configs = self
            .configs
            .into_iter()
            .map(|c| c.voters.into_iter().collect())
            .collect();
        let nodes: BTreeMap<u64, BasicNode> = self
            .addresses
            .into_iter()
            .map(|(id, addr)| (id, BasicNode { addr }))
            .collect();
        Membership::new(configs, nodes).map_err(|e| format!("a set of managers that cannot be: {e}"))
    }
}

impl SnapshotHeader {
    pub(super) fn stored_membership(&self) -> Result<StoredMembership, String> {
        let membership = self
            .membership
            .clone()
            .map_or_else(|| Ok(Membership::default()), MembershipRecord::into_membership)?;
        Ok(StoredMembership::new(
            self.membership_id.map(Into::into),
            membership,
        ))
    }
}
