//! Tests of the raft log: openraft's suite, damage of every kind, and a process that is killed while it writes.

use std::io::BufRead;
use std::process::{Command, Stdio};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader};
use tempfile::TempDir;

use super::*;
use crate::raft::keys::Opened;
use crate::raft::record::Checkpoint;
use crate::raft::segment::{key_of, list, segment_path};
use crate::raft::state_machine::StateMachine;
use crate::raft::{Proposal, TypeConfig};

/// The ring of a folder, which is made when there is none.
pub(in crate::raft) fn ring(dir: &Path) -> KeyRing {
    match KeyRing::open(dir).unwrap() {
        Opened::Ready(ring) => ring,
        Opened::Locked(ring) => panic!("{ring:?}"),
    }
}

pub(in crate::raft) fn never_fatal() -> OnFatal {
    Box::new(|e| panic!("the log failed: {e}"))
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let keys = ring(dir.path());
        let (log, _) = LogStore::open(dir.path(), &keys, never_fatal()).unwrap();
        let (machine, _) = StateMachine::open(dir.path(), &keys).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_state_machine_pass_openrafts_own_suite() {
    Suite::test_all(Builder).await.unwrap();
}

pub(in crate::raft) fn entry(index: u64, len: usize) -> Entry {
    Entry {
        log_id: LogId::new(1.into(), index),
        payload: EntryPayload::Normal(Proposal(vec![7; len].into())),
    }
}

pub(in crate::raft) fn vote(term: u64) -> Vote {
    Vote {
        leader_id: openraft::impls::leader_id_std::LeaderId { term, voted_for: 9 },
        committed: true,
    }
}

pub(in crate::raft) async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (send, wait) = oneshot::channel();
    begin_append(log, entries, send).await;
    wait.await.unwrap().unwrap();
}

/// `done` is told once they are durable.
pub(in crate::raft) async fn begin_append(
    log: &mut LogStore,
    entries: Vec<Entry>,
    done: oneshot::Sender<Result<(), io::Error>>,
) {
    log.append(entries, IOFlushed::signal(openraft_oneshot(done)))
        .await
        .unwrap();
}

type Signal = openraft::type_config::alias::OneshotSenderOf<TypeConfig, Result<(), io::Error>>;

fn openraft_oneshot(done: oneshot::Sender<Result<(), io::Error>>) -> Signal {
    use openraft::type_config::TypeConfigExt;
    let (send, receive) = TypeConfig::oneshot();
    tokio::spawn(async move {
        if let Ok(result) = receive.await {
            let _ = done.send(result);
        }
    });
    send
}

pub(in crate::raft) async fn indexes(log: &mut LogStore) -> Vec<u64> {
    log.try_get_log_entries(..)
        .await
        .unwrap()
        .iter()
        .map(|e| e.log_id.index)
        .collect()
}

pub(in crate::raft) fn reopen(dir: &Path) -> Result<(LogStore, Option<TornTail>), LogError> {
    LogStore::open(dir, &ring(dir), never_fatal())
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    append(&mut log, (0..10).map(|i| entry(i, 10)).collect()).await;
    log.truncate_after(Some(entry(7, 0).log_id)).await.unwrap();
    append(&mut log, vec![entry(8, 10), entry(9, 10)]).await;
    log.purge(entry(4, 0).log_id).await.unwrap();
    log.save_committed(Some(entry(8, 0).log_id)).await.unwrap();
    log.close();
    drop(log);

    let (mut log, torn) = reopen(dir.path()).unwrap();
    assert_eq!(torn, None);
    assert_eq!(indexes(&mut log).await, [5, 6, 7, 8, 9]);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(log.read_committed().await.unwrap(), Some(entry(8, 0).log_id));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(entry(4, 0).log_id));
    assert_eq!(state.last_log_id, Some(entry(9, 0).log_id));
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = reopen(dir.path()).unwrap();
    assert!(matches!(reopen(dir.path()), Err(LogError::Locked { .. })));
}

/// A log of `n` frames with an entry each; returns where each frame ends.
pub(in crate::raft) async fn frames(dir: &Path, n: u64) -> Vec<usize> {
    let (mut log, _) = reopen(dir).unwrap();
    let mut ends = Vec::new();
    for i in 0..n {
        append(&mut log, vec![entry(i, 40)]).await;
    }
    log.close();
    drop(log);
    let path = segment_path(dir, 0);
    let bytes = std::fs::read(&path).unwrap();
    let mut at = 64;
    while at + 24 < bytes.len() && bytes[at] != 0 {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        at += (24 + len).next_multiple_of(8);
        ends.push(at);
    }
    assert_eq!(ends.len() as u64, n + 1, "a checkpoint and the entries");
    ends
}

/// A segment as the version before sealing wrote it.
fn plain_segment(number: u64, first_seq: u64, bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..8].copy_from_slice(b"RSWSEG\r\n");
    bytes[8] = 1;
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..32].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    for (seq, body) in (first_seq..).zip(bodies) {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        let crc = crc32fast::hash(&[&seq.to_le_bytes()[..], &len, body].concat());
        bytes.extend(
            [
                &b"RFWR"[..],
                &len,
                &seq.to_le_bytes(),
                &crc.to_le_bytes(),
                &[0; 4],
                body,
            ]
            .concat(),
        );
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.resize(8 * 1024 * 1024, 0);
    bytes
}

#[tokio::test]
async fn a_log_of_the_version_before_sealing_is_read_and_goes_on_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let record = |kind| encode_record(kind);
    let one = |e: &Entry| record(RecordKind::Entry(e.into()));
    let bodies = [
        record(RecordKind::Checkpoint(Checkpoint::default())),
        record(RecordKind::Vote(vote(4).into())),
        one(&entry(0, 10)),
        one(&entry(1, 10)),
    ];
    let path = segment_path(dir.path(), 0);
    let mut bytes = plain_segment(0, 0, &bodies);
    // And the beginning of a write that a crash cut off.
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() / 8 * 8 + 8;
    bytes[end..end + 4].copy_from_slice(b"RFWR");
    std::fs::write(&path, &bytes).unwrap();
    for round in 0..2 {
        let (mut log, torn) = reopen(dir.path()).unwrap();
        assert_eq!(torn.is_some(), round == 0);
        assert_eq!(indexes(&mut log).await, (0..2 + round).collect::<Vec<_>>());
        assert_eq!(log.read_vote().await.unwrap(), Some(vote(4)));
        append(&mut log, vec![entry(2 + round, 10)]).await;
        log.close();
    }
    let keys: Vec<u32> = (list(dir.path()).unwrap().iter())
        .map(|n| key_of(&segment_path(dir.path(), *n), *n).unwrap())
        .collect();
    assert_eq!(keys, [0, 1]);
    let (mut log, _) = reopen(dir.path()).unwrap();
    log.purge(entry(1, 0).log_id).await.unwrap();
    log.save_vote(&vote(5)).await.unwrap(); // The writer has finished the purge when this is answered.
    assert_eq!(
        list(dir.path()).unwrap(),
        [1],
        "with what it has of the old one, that goes"
    );
    drop(log);
    std::fs::remove_file(dir.path().join("keys")).unwrap();
    let lost = KeyRing::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(
        matches!(lost, KeyError::Lost { .. }),
        "it is not taken for an old log: {lost}"
    );
}

#[tokio::test]
async fn purged_segments_are_deleted_and_a_large_entry_gets_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    for i in 0..24 {
        append(&mut log, vec![entry(i, 1024 * 1024)]).await;
    }
    append(&mut log, vec![entry(24, 20 * 1024 * 1024)]).await;
    append(&mut log, vec![entry(25, 10)]).await;
    let before = list(dir.path()).unwrap().len();
    assert!(before >= 4, "{before} segments");
    log.purge(entry(23, 0).log_id).await.unwrap();
    log.save_vote(&vote(5)).await.unwrap(); // The writer has finished the purge when this is answered.
    let after = list(dir.path()).unwrap();
    assert!(after.len() <= 2, "{after:?} are left of {before}");
    log.close();
    drop(log);
    let (mut log, _) = reopen(dir.path()).unwrap();
    assert_eq!(indexes(&mut log).await, [24, 25]);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(5)));
}

#[tokio::test]
async fn a_missing_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    for i in 0..24 {
        append(&mut log, vec![entry(i, 1024 * 1024)]).await;
    }
    log.close();
    drop(log);
    let numbers = list(dir.path()).unwrap();
    assert!(numbers.len() >= 3, "{numbers:?}");
    // The first, one in the middle, and the last: of that one only the mark knows.
    for number in numbers {
        let (path, aside) = (segment_path(dir.path(), number), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let error = reopen(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { .. }), "{number}: {error}");
        std::fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(indexes(&mut reopen(dir.path()).unwrap().0).await.len(), 24);
}

const WRITER_DIR: &str = "RSWARM_TEST_RAFT_LOG";

/// Not a test of its own: the process that the next one kills. It prints each entry once it is acknowledged.
#[tokio::test]
async fn a_writer_that_is_killed() {
    let Ok(dir) = std::env::var(WRITER_DIR) else {
        return;
    };
    let (mut log, _) = reopen(Path::new(&dir)).unwrap();
    let first = log
        .get_log_state()
        .await
        .unwrap()
        .last_log_id
        .map_or(0, |id| id.index + 1);
    for i in first.. {
        append(&mut log, vec![entry(i, 700)]).await;
        if i % 50 == 49 {
            log.purge(entry(i - 20, 0).log_id).await.unwrap();
        }
        println!("acknowledged {i}");
    }
}

#[tokio::test]
async fn a_killed_writer_has_kept_all_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "raft::log::tests::a_writer_that_is_killed",
                "--nocapture",
            ])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers = lines.filter_map(|l| l.unwrap().rsplit_once("acknowledged ")?.1.parse::<u64>().ok());
        // What it wrote between its last line and its death may be there too.
        acknowledged = numbers.take(40 + round * 7).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (mut log, _) = reopen(dir.path()).unwrap();
        let kept = indexes(&mut log).await;
        assert!(
            kept.last().is_some_and(|last| *last >= acknowledged),
            "{acknowledged} of {kept:?}"
        );
        assert!(kept.windows(2).all(|w| w[0] + 1 == w[1]));
    }
    assert!(acknowledged > 400);
}
