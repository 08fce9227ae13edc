//! Transactions as bytes of a log entry, and a state as the file of a snapshot.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use manager_core::{Action, State, Txn};
use model::Timestamp;
use prost::Message;
use proto::types;

use super::record::SnapshotHeader;
use super::segment::{LogError, io_error, sync_dir};

const SNAPSHOT_MAGIC: [u8; 8] = *b"RSWSNP\r\n";
/// Largest record of a snapshot: one object, the largest being a service with two specs or a config of 1 MB.
const RECORD_MAX: usize = 16 * 1024 * 1024;

#[derive(Clone, PartialEq, Message)]
struct TxnRecord {
    #[prost(uint64, tag = "1")]
    now_ms: u64,
    #[prost(message, repeated, tag = "2")]
    expect: Vec<ExpectRecord>,
    #[prost(message, repeated, tag = "3")]
    actions: Vec<ActionRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ExpectRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<types::Key>,
    #[prost(uint64, tag = "2")]
    version: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ActionRecord {
    #[prost(oneof = "ActionKind", tags = "1, 2, 3, 4")]
    kind: Option<ActionKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(
    clippy::large_enum_variant,
    reason = "prost's oneofs hold their messages in place; most are of the largest variant"
)]
enum ActionKind {
    #[prost(message, tag = "1")]
    Put(types::Object),
    #[prost(message, tag = "2")]
    Delete(types::Key),
    #[prost(message, tag = "3")]
    TaskStatus(TaskStatusRecord),
    #[prost(message, tag = "4")]
    NodeSeen(NodeSeenRecord),
}

#[derive(Clone, PartialEq, Message)]
struct TaskStatusRecord {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(string, tag = "2")]
    task: String,
    #[prost(message, optional, tag = "3")]
    status: Option<types::TaskStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeSeenRecord {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, optional, tag = "2")]
    description: Option<types::NodeDescription>,
    #[prost(message, optional, tag = "3")]
    status: Option<types::NodeStatus>,
}

/// A transaction and the proposer's clock as the bytes of an entry.
pub(super) fn encode_txn(now: Timestamp, txn: &Txn) -> Vec<u8> {
    let expect = |(key, version): &(model::object::Key, u64)| ExpectRecord {
        key: Some((*key).into()),
        version: *version,
    };
    let action = |action: &Action| ActionRecord {
        kind: Some(match action {
            Action::Put(object) => ActionKind::Put(object.into()),
            Action::Delete(key) => ActionKind::Delete((*key).into()),
            Action::TaskStatus { node, task, status } => ActionKind::TaskStatus(TaskStatusRecord {
                node: node.to_string(),
                task: task.to_string(),
                status: Some(status.into()),
            }),
            Action::NodeSeen {
                node,
                description,
                status,
            } => ActionKind::NodeSeen(NodeSeenRecord {
                node: node.to_string(),
                description: description.as_ref().map(Into::into),
                status: Some(status.into()),
            }),
        }),
    };
    TxnRecord {
        now_ms: now.0,
        expect: txn.expect.iter().map(expect).collect(),
        actions: txn.actions.iter().map(action).collect(),
    }
    .encode_to_vec()
}

/// The other way. It fails only on bytes that a newer version wrote.
pub(super) fn decode_txn(bytes: &[u8]) -> Result<(Timestamp, Txn), String> {
    let record = TxnRecord::decode(bytes).map_err(|e| e.to_string())?;
    let expect = |e: ExpectRecord| {
        let key = e.key.ok_or("an expectation without a key")?;
        Ok::<_, String>((
            key.try_into()
                .map_err(|e: proto::convert::WireError| e.to_string())?,
            e.version,
        ))
    };
    let txn = Txn {
        expect: record.expect.into_iter().map(expect).collect::<Result<_, _>>()?,
        actions: record
            .actions
            .into_iter()
            .map(decode_action)
            .collect::<Result<_, _>>()?,
    };
    Ok((Timestamp(record.now_ms), txn))
}

fn decode_action(record: ActionRecord) -> Result<Action, String> {
    let wire = |e: proto::convert::WireError| e.to_string();
    Ok(
        match record
            .kind
            .ok_or("an action of an unknown kind: written by a newer version?")?
        {
            ActionKind::Put(object) => Action::Put(object.try_into().map_err(wire)?),
            ActionKind::Delete(key) => Action::Delete(key.try_into().map_err(wire)?),
            ActionKind::TaskStatus(r) => Action::TaskStatus {
                node: r.node.parse().map_err(|e: model::IdError| e.to_string())?,
                task: r.task.parse().map_err(|e: model::IdError| e.to_string())?,
                status: r
                    .status
                    .ok_or("a report without a status")?
                    .try_into()
                    .map_err(wire)?,
            },
            ActionKind::NodeSeen(r) => Action::NodeSeen {
                node: r.node.parse().map_err(|e: model::IdError| e.to_string())?,
                description: r.description.map(Into::into),
                status: r.status.ok_or("a node without a status")?.into(),
            },
        },
    )
}

/// Writes a snapshot so that after a crash there is the old one or the new one, whole.
pub(super) fn write_snapshot(path: &Path, header: &SnapshotHeader, state: &State) -> Result<(), LogError> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut out = Summing {
            inner: BufWriter::new(create(&temporary)?),
            crc: crc32fast::Hasher::new(),
        };
        out.write_all(&SNAPSHOT_MAGIC)?;
        out.write_all(&header.encode_length_delimited_to_vec())?;
        for object in state.objects() {
            out.write_all(&types::Object::from(&object).encode_length_delimited_to_vec())?;
        }
        let crc = out.crc.clone().finalize();
        out.inner.write_all(&crc.to_le_bytes())?;
        let file = out
            .inner
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(io_error("write the snapshot", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Stores a snapshot that came from another manager, in the same way.
pub(super) fn store_snapshot(path: &Path, from: &mut File) -> Result<(), LogError> {
    let temporary = path.with_extension("tmp");
    let mut copy = || -> std::io::Result<()> {
        from.seek(SeekFrom::Start(0))?;
        let mut file = create(&temporary)?;
        std::io::copy(from, &mut file)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    copy().map_err(io_error("store the snapshot", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Reads a snapshot from its beginning and checks its sum.
pub(super) fn read_snapshot(path: &Path, file: &mut File) -> Result<(SnapshotHeader, State), LogError> {
    file.seek(SeekFrom::Start(0))
        .map_err(io_error("read the snapshot", path))?;
    let mut input = SummingReader {
        inner: BufReader::new(file),
        crc: crc32fast::Hasher::new(),
        at: 0,
    };
    decode_snapshot(&mut input).map_err(|why| LogError::Corrupt {
        path: path.to_path_buf(),
        offset: input.at,
        why,
    })
}

fn decode_snapshot(input: &mut SummingReader<'_>) -> Result<(SnapshotHeader, State), String> {
    let mut magic = [0; 8];
    input.fill(&mut magic)?;
    if magic != SNAPSHOT_MAGIC {
        return Err("it does not begin like a snapshot".into());
    }
    let header = SnapshotHeader::decode(input.record()?.as_slice()).map_err(|e| e.to_string())?;
    let mut objects = Vec::new();
    for _ in 0..header.objects {
        let wire = types::Object::decode(input.record()?.as_slice()).map_err(|e| e.to_string())?;
        let object: model::object::Object = wire
            .try_into()
            .map_err(|e: proto::convert::WireError| e.to_string())?;
        objects.push(object);
    }
    let crc = input.crc.clone().finalize();
    let mut stored = [0; 4];
    input.fill(&mut stored)?;
    if u32::from_le_bytes(stored) != crc {
        return Err("its checksum is wrong".into());
    }
    Ok((
        header.clone(),
        State::from_snapshot(header.index, Timestamp(header.time), objects),
    ))
}

struct Summing {
    inner: BufWriter<File>,
    crc: crc32fast::Hasher,
}

impl Summing {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.crc.update(bytes);
        self.inner.write_all(bytes)
    }
}

struct SummingReader<'a> {
    inner: BufReader<&'a mut File>,
    crc: crc32fast::Hasher,
    at: u64,
}

impl SummingReader<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.inner
            .read_exact(bytes)
            .map_err(|e| format!("it is cut off: {e}"))?;
        self.crc.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn record(&mut self) -> Result<Vec<u8>, String> {
        let mut len: usize = 0;
        for shift in (0..35).step_by(7) {
            let mut byte = [0];
            self.fill(&mut byte)?;
            len |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                break;
            }
        }
        if len > RECORD_MAX {
            return Err(format!("a record of {len} bytes cannot be ours"));
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Number of objects of a state, for the header of its snapshot.
pub(super) fn count(state: &State) -> u64 {
    state.objects().count() as u64
}

/// The bytes of an entry, shared by the log, the network and the state machine.
pub(super) fn share(bytes: Vec<u8>) -> Arc<[u8]> {
    Arc::from(bytes)
}
