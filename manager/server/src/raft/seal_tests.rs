//! What is sealed: no secret is on the disk in the open (I45), and nothing opens where it was not sealed.

use std::path::{Path, PathBuf};

use manager_core::{Action, Txn};
use model::SecretId;
use model::object::{Meta, Object, Secret};
use model::spec::SecretSpec;
use openraft::storage::RaftLogStorage;

use super::fault_tests::{SHORT, config, refused_at, snapshot_of};
use super::log::LogStore;
use super::log::tests::{append, entry, frames, never_fatal, reopen, ring};
use super::network::links;
use super::segment::segment_path;
use super::*;

const CANARY: &[u8] = b"CANARY-7f3a91c2-of-a-secret";

fn secret(id: u128) -> Txn {
    let spec = SecretSpec {
        name: format!("s{id}"),
        data: CANARY.to_vec(),
        ..SecretSpec::default()
    };
    let secret = Secret {
        id: SecretId(id),
        meta: Meta::default(),
        spec: Arc::new(spec),
    };
    Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Secret(Arc::new(secret)))],
    }
}

fn holds_canary(bytes: &[u8]) -> bool {
    bytes.windows(8).any(|w| CANARY.windows(8).any(|c| c == w))
}

fn files_with_canary(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files
        .filter(|f| holds_canary(&std::fs::read(f).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn i45_a_secret_that_went_through_log_and_snapshot_is_in_no_file_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        holds_canary(&codec::encode_txn(Timestamp(1), &secret(1))),
        "or nothing would be found"
    );
    let log = Log::bootstrap(dir.path(), 5, links(), ring(dir.path()), model::NodeId(1), "")
        .await
        .unwrap();
    log.propose(secret(1)).await.unwrap();
    assert_eq!(files_with_canary(dir.path()), [] as [PathBuf; 0]);
    snapshot_of(&log, 1).await;
    log.propose(secret(2)).await.unwrap();
    log.close().await;
    drop(log);
    assert!(dir.path().join("snapshot").exists());
    assert_eq!(files_with_canary(dir.path()), [] as [PathBuf; 0]);
    // Nor is it while a snapshot is received.
    let log = Log::open(dir.path(), links(), ring(dir.path())).await.unwrap();
    let mut sent = log.raft.get_snapshot().await.unwrap().unwrap().snapshot;
    let mut received = snapshot::SnapshotWriter::create(dir.path(), &ring(dir.path())).unwrap();
    let mut seen = Vec::new();
    while let Some(piece) = sent.next_piece().unwrap() {
        received.write(&piece).unwrap();
        seen.extend(piece);
    }
    assert!(holds_canary(&seen), "the other manager gets it");
    let received = received.finish().unwrap();
    assert_eq!(files_with_canary(dir.path()), [] as [PathBuf; 0]);
    drop(received);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_log_opens_with_its_key_and_goes_on_with_a_new_data_key_after_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let unlock = UnlockKey::random().unwrap();
    let keys = KeyRing::create(dir.path(), None).unwrap();
    let log = Log::bootstrap(dir.path(), 5, links(), keys, model::NodeId(1), "")
        .await
        .unwrap();
    log.propose(config(1, vec![1])).await.unwrap();
    log.keys().seal(Some(&unlock)).unwrap();
    assert_eq!(log.keys().rotate().unwrap(), 2);
    log.propose(config(2, vec![1])).await.unwrap();
    snapshot_of(&log, 2).await;
    assert_eq!(snapshot::key_of(&dir.path().join("snapshot")).unwrap(), Some(2));
    log.close().await;
    drop(log);
    let Opened::Locked(locked) = KeyRing::open(dir.path()).unwrap() else {
        panic!("it is not locked");
    };
    let keys = locked.unlock(&unlock).unwrap();
    let log = Log::open(dir.path(), links(), keys).await.unwrap();
    assert_eq!(log.read().configs().count(), 2);
    log.close().await;
}

#[tokio::test]
async fn keys_that_are_not_those_of_the_log_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ring(dir.path());
    let first = std::fs::read(dir.path().join("keys")).unwrap();
    keys.rotate().unwrap();
    let (mut log, _) = LogStore::open(dir.path(), &keys, never_fatal()).unwrap();
    append(&mut log, vec![entry(0, 10)]).await;
    log.close();
    drop(log);
    // An older copy of the keys.
    std::fs::write(dir.path().join("keys"), first).unwrap();
    let error = reopen(dir.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, LogError::UnknownKey { key: 2, .. }), "{error}");
    // Another ring with a key of that number.
    std::fs::remove_file(dir.path().join("keys")).unwrap();
    let other = KeyRing::create(dir.path(), None).unwrap();
    other.rotate().unwrap();
    assert_eq!(refused_at(reopen(dir.path())), Some(64));
}

#[tokio::test]
async fn a_record_in_the_place_of_another_does_not_open_although_its_checksum_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let mut bytes = std::fs::read(&path).unwrap()[..SHORT].to_vec();
    // Entry 1's sealed body under the number of entry 2's frame, with a checksum made for it.
    let (from, to) = (ends[1], ends[2]);
    let len = u32::from_le_bytes(bytes[from + 4..from + 8].try_into().unwrap()) as usize;
    assert_eq!(bytes[from + 4..from + 8], bytes[to + 4..to + 8], "of one length");
    let body = bytes[from + 24..from + 24 + len].to_vec();
    bytes[to + 24..to + 24 + len].copy_from_slice(&body);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[to + 8..to + 16]);
    crc.update(&bytes[to + 4..to + 8]);
    crc.update(&body);
    bytes[to + 16..to + 20].copy_from_slice(&crc.finalize().to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = reopen(dir.path()).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("not what was sealed for this place"),
        "{error}"
    );
    assert_eq!(refused_at::<()>(Err(error)), Some(to as u64));
}

#[tokio::test]
async fn a_data_key_is_changed_after_its_segments_and_forgotten_when_no_file_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    let keys_of = || -> Vec<u32> {
        let numbers = segment::list(dir.path()).unwrap();
        let key = |n: &u64| segment::key_of(&segment_path(dir.path(), *n), *n).unwrap();
        numbers.iter().map(key).collect()
    };
    let mut next = 0;
    while keys_of().len() < 5 {
        append(&mut log, vec![entry(next, 1024 * 1024)]).await;
        next += 1;
    }
    // Three in a test; see SEGMENTS_PER_KEY.
    assert_eq!(keys_of(), [1, 1, 1, 2, 2]);
    log.close();
    drop(log);
    let has = |number| ring(dir.path()).cipher(number, b"salt", b"test").is_some();
    let (mut log, _) = reopen(dir.path()).unwrap();
    assert!(has(1) && has(2));
    log.purge(entry(next - 1, 0).log_id).await.unwrap();
    log.close();
    drop(log);
    assert_eq!(keys_of(), [2]);
    let (log, _) = reopen(dir.path()).unwrap();
    assert!(!has(1) && has(2));
    log.close();
}
