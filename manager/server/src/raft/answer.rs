//! Answers of requests as they stand in the log and in snapshots (prost; tags are never reused).

use manager_core::admit::{StackChange, StackVerdict};
use manager_core::{Answer, RequestId};
use prost::Message;
use proto::types;

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnswerRecord {
    /// The entry that carried the request out; of an action: this one.
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(bytes, tag = "2")]
    id: Vec<u8>,
    #[prost(fixed64, tag = "3")]
    digest: u64,
    #[prost(message, repeated, tag = "4")]
    keys: Vec<types::Key>,
    #[prost(string, repeated, tag = "5")]
    warnings: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    changes: Vec<ChangeRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ChangeRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<types::Key>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    verdict: u32,
}

const VERDICTS: [StackVerdict; 4] = [
    StackVerdict::Created,
    StackVerdict::Updated,
    StackVerdict::Unchanged,
    StackVerdict::Removed,
];

impl AnswerRecord {
    pub(super) fn new(index: u64, answer: &Answer) -> Self {
        let verdict = |v: StackVerdict| VERDICTS.iter().position(|known| *known == v);
        Self {
            index,
            id: answer.request.id.to_le_bytes().to_vec(),
            digest: answer.request.digest,
            keys: answer.keys.iter().map(|k| (*k).into()).collect(),
            warnings: answer.warnings.clone(),
            changes: (answer.changes.iter())
                .map(|c| ChangeRecord {
                    key: Some(c.key.into()),
                    name: c.name.clone(),
                    verdict: verdict(c.verdict)
                        .and_then(|n| u32::try_from(n).ok())
                        .unwrap_or(0),
                })
                .collect(),
        }
    }

    /// The other way. It fails only on bytes that a newer version wrote.
    pub(super) fn into_answer(self) -> Result<(u64, Answer), String> {
        let wire = |e: proto::convert::WireError| e.to_string();
        let id: [u8; 16] = self
            .id
            .try_into()
            .map_err(|_| "the id of a request has not 16 bytes")?;
        let change = |c: ChangeRecord| {
            let verdict = VERDICTS.get(c.verdict as usize).copied();
            Ok::<_, String>(StackChange {
                key: c.key.ok_or("a change without a key")?.try_into().map_err(wire)?,
                name: c.name,
                verdict: verdict.ok_or("a change of an unknown kind")?,
            })
        };
        Ok((
            self.index,
            Answer {
                request: RequestId {
                    id: u128::from_le_bytes(id),
                    digest: self.digest,
                },
                keys: self
                    .keys
                    .into_iter()
                    .map(|k| k.try_into().map_err(wire))
                    .collect::<Result<_, _>>()?,
                warnings: self.warnings,
                changes: self.changes.into_iter().map(change).collect::<Result<_, _>>()?,
            },
        ))
    }
}
