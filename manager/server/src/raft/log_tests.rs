//! Tests of the raft log: openraft's suite, damage of every kind, and a process that is killed while it writes.

use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader};
use tempfile::TempDir;

use super::*;
use crate::raft::Proposal;
use crate::raft::state_machine::StateMachine;

fn never_fatal() -> OnFatal {
    Box::new(|e| panic!("the log failed: {e}"))
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = LogStore::open(dir.path(), never_fatal()).unwrap();
        let (machine, _) = StateMachine::open(dir.path()).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_state_machine_pass_openrafts_own_suite() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, len: usize) -> Entry {
    Entry {
        log_id: LogId::new(1.into(), index),
        payload: EntryPayload::Normal(Proposal(vec![7; len].into())),
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: openraft::impls::leader_id_std::LeaderId { term, voted_for: 9 },
        committed: true,
    }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (send, wait) = oneshot::channel();
    log.append(entries, IOFlushed::signal(openraft_oneshot(send)))
        .await
        .unwrap();
    wait.await.unwrap().unwrap();
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

async fn indexes(log: &mut LogStore) -> Vec<u64> {
    log.try_get_log_entries(..)
        .await
        .unwrap()
        .iter()
        .map(|e| e.log_id.index)
        .collect()
}

fn reopen(dir: &Path) -> Result<(LogStore, Option<TornTail>), LogError> {
    LogStore::open(dir, never_fatal())
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
async fn frames(dir: &Path, n: u64) -> Vec<usize> {
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

#[tokio::test]
async fn a_tail_cut_at_any_byte_loses_only_the_last_write_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap()[..ends[4]].to_vec();
    for cut in ends[3]..ends[4] {
        for zeros in [false, true] {
            let mut bytes = whole[..cut].to_vec();
            if zeros {
                // As a preallocated file looks after a power cut.
                bytes.resize(64 * 1024, 0);
            }
            std::fs::write(&path, &bytes).unwrap();
            let (mut log, torn) = reopen(dir.path()).unwrap();
            // Its padding is no part of a frame's content.
            let kept = indexes(&mut log).await;
            let complete = kept.len() == 4;
            assert!(complete || kept == [0, 1, 2], "cut at {cut}: {kept:?}");
            assert!(!complete || cut + 8 > ends[4], "cut at {cut}");
            let visible = whole[ends[3]..cut].iter().any(|b| *b != 0);
            assert_eq!(torn.is_some(), visible && !complete, "cut at {cut}");
            append(&mut log, vec![entry(kept.len() as u64, 30)]).await;
            log.close();
            drop(log);
            let (mut log, torn) = reopen(dir.path()).unwrap();
            assert_eq!(
                (indexes(&mut log).await.len(), torn),
                (kept.len() + 1, None),
                "after {cut}"
            );
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_with_a_good_frame_behind_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..ends[3] {
        let mut byte = [0];
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
        match reopen(dir.path()).map(|_| ()) {
            Err(LogError::Corrupt { .. } | LogError::Format { .. } | LogError::Encrypted { .. }) => {}
            // Bytes nobody reads: padding behind a body, and the reserved field of a frame's header.
            Ok(()) => assert_eq!(byte[0], 0, "a change at {at} went unseen"),
            Err(other) => panic!("{at}: {other}"),
        }
        std::fs::write(&path, &whole).unwrap();
    }
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
    let middle = list(dir.path()).unwrap()[1];
    std::fs::remove_file(segment_path(dir.path(), middle)).unwrap();
    assert!(matches!(
        reopen(dir.path()).map(|_| ()),
        Err(LogError::Corrupt { .. })
    ));
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
