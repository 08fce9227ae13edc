use std::os::unix::fs::FileExt;

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
    log.append(entries, IOFlushed::signal(openraft_oneshot(send))).await.unwrap();
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
    log.try_get_log_entries(..).await.unwrap().iter().map(|e| e.log_id.index).collect()
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
async fn frames(dir: &Path, n: u64) -> Vec<u64> {
    let (mut log, _) = reopen(dir).unwrap();
    let mut ends = Vec::new();
    for i in 0..n {
        append(&mut log, vec![entry(i, 40)]).await;
    }
    log.close();
    drop(log);
    let path = segment_path(dir, 0);
    let size = std::fs::metadata(&path).unwrap().len();
    let bytes = std::fs::read(&path).unwrap();
    let mut at = 64;
    while at + 24 < size as usize && bytes[at] != 0 {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        at += (24 + len).next_multiple_of(8);
        ends.push(at as u64);
    }
    assert_eq!(ends.len() as u64, n + 1, "a checkpoint and the entries");
    ends
}

#[tokio::test]
async fn a_tail_cut_at_any_byte_loses_only_the_last_write_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap()[..ends[4] as usize].to_vec();
    for cut in ends[3]..ends[4] {
        for zeros in [false, true] {
            let mut bytes = whole[..cut as usize].to_vec();
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
            let visible = whole[ends[3] as usize..cut as usize].iter().any(|b| *b != 0);
            assert_eq!(torn.is_some(), visible && !complete, "cut at {cut}");
            append(&mut log, vec![entry(kept.len() as u64, 30)]).await;
            log.close();
            drop(log);
            let (mut log, torn) = reopen(dir.path()).unwrap();
            assert_eq!((indexes(&mut log).await.len(), torn), (kept.len() + 1, None), "after {cut}");
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
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
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
    assert!(matches!(reopen(dir.path()).map(|_| ()), Err(LogError::Corrupt { .. })));
}
