//! Transactions as bytes of a log entry, and a state as the file of a snapshot.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use manager_core::{Action, State, Txn};
use model::Timestamp;
use prost::Message;
use proto::types;

use super::answer::AnswerRecord;
use super::error::{LogError, io_error};
use super::keys::KeyRing;
use super::record::SnapshotHeader;
use super::snapshot::{PLAIN_MAGIC, SnapshotFile, SnapshotWriter};

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
    #[prost(oneof = "ActionKind", tags = "1, 2, 3, 4, 5")]
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
    #[prost(message, tag = "5")]
    Answer(AnswerRecord),
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
            Action::Answer(answer) => ActionKind::Answer(AnswerRecord::new(0, answer)),
            Action::NodeSeen {
                node,
                description,
                status,
            } => ActionKind::NodeSeen(NodeSeenRecord {
                node: node.to_string(),
                description: description.as_deref().map(Into::into),
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
            ActionKind::Answer(r) => Action::Answer(Arc::new(r.into_answer()?.1)),
            ActionKind::NodeSeen(r) => Action::NodeSeen {
                node: r.node.parse().map_err(|e: model::IdError| e.to_string())?,
                description: r.description.map(|d| Box::new(d.into())),
                status: r.status.ok_or("a node without a status")?.into(),
            },
        },
    )
}

/// Writes a state as a snapshot that is whole and durable, but not installed.
pub(super) fn write_snapshot(
    dir: &Path,
    keys: &KeyRing,
    header: &SnapshotHeader,
    state: &State,
) -> io::Result<SnapshotFile> {
    let mut out = SnapshotWriter::create(dir, keys)?;
    let mut crc = crc32fast::Hasher::new();
    let mut write = |bytes: &[u8]| {
        crc.update(bytes);
        out.write(bytes)
    };
    write(&PLAIN_MAGIC)?;
    write(&header.encode_length_delimited_to_vec())?;
    for object in state.objects() {
        write(&types::Object::from(&object).encode_length_delimited_to_vec())?;
    }
    for (index, answer) in state.answers() {
        write(&AnswerRecord::new(index, &answer).encode_length_delimited_to_vec())?;
    }
    let crc = crc.finalize();
    out.write(&crc.to_le_bytes())?;
    out.finish()
}

/// Reads a snapshot from its beginning to its end and checks all of it.
pub(super) fn read_snapshot(file: &mut SnapshotFile) -> Result<(SnapshotHeader, State), LogError> {
    file.rewind();
    let path = file.path().to_path_buf();
    let mut input = SummingReader::new(file.reader());
    decode_snapshot(&mut input).map_err(|bad| bad.at(&path, input.at))
}

/// Reads only what a snapshot says of itself; it stands at its beginning afterwards.
pub(super) fn read_header(file: &mut SnapshotFile) -> Result<SnapshotHeader, LogError> {
    file.rewind();
    let path = file.path().to_path_buf();
    let mut input = SummingReader::new(file.reader());
    let header = decode_header(&mut input).map_err(|bad| bad.at(&path, input.at))?;
    file.rewind();
    Ok(header)
}

/// Reads a snapshot of a version that did not seal them.
pub(super) fn read_plain_snapshot(path: &Path) -> Result<(SnapshotHeader, State), LogError> {
    let file = File::open(path).map_err(io_error("open the snapshot", path))?;
    let mut input = SummingReader::new(BufReader::new(file));
    decode_snapshot(&mut input).map_err(|bad| bad.at(path, input.at))
}

/// Why a snapshot cannot be read.
enum Bad {
    Read(io::Error),
    Content(String),
}

impl Bad {
    /// `content` is how many bytes of the content were good.
    fn at(self, path: &Path, content: u64) -> LogError {
        let why = match self {
            Self::Content(why) => why,
            Self::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => "it is cut off".into(),
            // A piece that does not open says itself where it is.
            Self::Read(e) => return e.downcast().unwrap_or_else(io_error("read the snapshot", path)),
        };
        LogError::Corrupt {
            path: path.to_path_buf(),
            offset: content,
            why,
        }
    }
}

impl From<String> for Bad {
    fn from(why: String) -> Self {
        Self::Content(why)
    }
}

fn decode_header(input: &mut SummingReader<impl Read>) -> Result<SnapshotHeader, Bad> {
    let mut magic = [0; 8];
    input.fill(&mut magic)?;
    if magic != PLAIN_MAGIC {
        return Err("it does not begin like a snapshot".to_owned().into());
    }
    Ok(SnapshotHeader::decode(input.record()?.as_slice()).map_err(|e| e.to_string())?)
}

fn decode_snapshot(input: &mut SummingReader<impl Read>) -> Result<(SnapshotHeader, State), Bad> {
    let header = decode_header(input)?;
    let mut objects = Vec::new();
    for _ in 0..header.objects {
        let wire = types::Object::decode(input.record()?.as_slice()).map_err(|e| e.to_string())?;
        let object: model::object::Object = wire
            .try_into()
            .map_err(|e: proto::convert::WireError| e.to_string())?;
        objects.push(object);
    }
    let mut answers = Vec::new();
    for _ in 0..header.answers {
        let record = AnswerRecord::decode(input.record()?.as_slice()).map_err(|e| e.to_string())?;
        let (index, answer) = record.into_answer()?;
        answers.push((index, Arc::new(answer)));
    }
    let crc = input.crc.clone().finalize();
    let mut stored = [0; 4];
    input.fill(&mut stored)?;
    if u32::from_le_bytes(stored) != crc {
        return Err("its checksum is wrong".to_owned().into());
    }
    if input.inner.read(&mut [0]).map_err(Bad::Read)? > 0 {
        return Err("something follows its end".to_owned().into());
    }
    Ok((
        header.clone(),
        State::from_snapshot(header.index, Timestamp(header.time), objects).with_answers(answers),
    ))
}

struct SummingReader<R> {
    inner: R,
    crc: crc32fast::Hasher,
    at: u64,
}

impl<R: Read> SummingReader<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            crc: crc32fast::Hasher::new(),
            at: 0,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Bad> {
        self.inner.read_exact(bytes).map_err(Bad::Read)?;
        self.crc.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn record(&mut self) -> Result<Vec<u8>, Bad> {
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
            return Err(format!("a record of {len} bytes cannot be ours").into());
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
