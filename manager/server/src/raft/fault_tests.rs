//! Faults M19 to M24 (reliability.md §3.3) with real files.

use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use manager_core::{Action, Txn};
use model::object::{Config, Meta, Object};
use model::spec::ConfigSpec;
use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tokio::sync::oneshot;

use super::log::tests::{append, begin_append, entry, frames, indexes, reopen, ring, vote};
use super::log::{LogStore, exit_on_fatal};
use super::mark::Mark;
use super::network::links;
use super::segment::{fault, segment_path};
use super::state_machine::StateMachine;
use super::*;

const LIMIT: Duration = Duration::from_secs(20);
/// Enough of a preallocated segment; the rest are zeros.
pub(super) const SHORT: usize = 16 * 1024;

fn set_mark(dir: &Path, value: u64) {
    std::fs::remove_file(Mark::path_in(dir)).unwrap();
    Mark::open(dir, false).unwrap().advance(value).unwrap();
}

pub(super) fn refused_at<T>(result: Result<T, LogError>) -> Option<u64> {
    let error = result.err()?;
    assert!(error.to_string().starts_with("E_LOG_CORRUPT"), "{error}");
    match error {
        LogError::Corrupt { offset, .. } => Some(offset),
        _ => None,
    }
}

/// Every way in which the last frame may be left: cut at each of its bytes, or zeros from there on.
fn torn_tails(whole: &[u8], from: usize, to: usize) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    (from..to).flat_map(move |cut| {
        [false, true].into_iter().map(move |zeros| {
            let mut bytes = whole[..cut].to_vec();
            if zeros {
                // As a preallocated file looks after a power cut.
                bytes.resize(SHORT, 0);
            }
            (format!("cut at {cut}, zeros: {zeros}"), bytes)
        })
    })
}

#[tokio::test]
async fn m21_above_the_mark_a_tail_cut_at_any_byte_is_removed_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap()[..SHORT].to_vec();
    for (case, bytes) in torn_tails(&whole, ends[3], ends[4]) {
        let as_before = bytes.len() == SHORT && bytes == whole; // Only zeros were cut off.
        std::fs::write(&path, &bytes).unwrap();
        // The checkpoint and three entries were acknowledged.
        set_mark(dir.path(), 4);
        let (mut log, torn) = reopen(dir.path()).unwrap();
        let kept = indexes(&mut log).await;
        assert_eq!(kept.len(), if as_before { 4 } else { 3 }, "{case}: {kept:?}");
        let visible = bytes[ends[3]..].iter().any(|b| *b != 0);
        assert_eq!(torn.is_some(), visible && !as_before, "{case}");
        append(&mut log, vec![entry(kept.len() as u64, 30)]).await;
        log.close();
        drop(log);
        let (mut log, torn) = reopen(dir.path()).unwrap();
        assert_eq!(
            (indexes(&mut log).await.len(), torn),
            (kept.len() + 1, None),
            "after {case}"
        );
    }
}

#[tokio::test]
async fn m21_at_or_below_the_mark_a_tail_cut_at_any_byte_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let ends = frames(dir.path(), 4).await;
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap()[..SHORT].to_vec();
    let mark = std::fs::read(Mark::path_in(dir.path())).unwrap();
    for (case, bytes) in torn_tails(&whole, ends[3], ends[4]) {
        if bytes == whole {
            continue;
        }
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(refused_at(reopen(dir.path())), Some(ends[3] as u64), "{case}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{case}");
        assert_eq!(std::fs::read(Mark::path_in(dir.path())).unwrap(), mark, "{case}");
    }
}

#[tokio::test]
async fn m21_a_log_at_rest_marks_its_last_frame_without_being_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    append(&mut log, vec![entry(0, 10)]).await;
    log.save_vote(&vote(1)).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while Mark::open(dir.path(), true).unwrap().value() < 3 {
        assert!(Instant::now() < deadline, "no mark");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn m22_every_changed_bit_of_the_log_and_of_its_last_vote_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = reopen(dir.path()).unwrap();
    append(&mut log, vec![entry(0, 5), entry(1, 12)]).await;
    append(&mut log, vec![entry(2, 1)]).await;
    log.save_vote(&vote(7)).await.unwrap();
    log.close();
    drop(log);
    let path = segment_path(dir.path(), 0);
    let whole = std::fs::read(&path).unwrap()[..SHORT].to_vec();
    let end = whole.iter().rposition(|b| *b != 0).unwrap();
    for bit in 0..=end * 8 + 7 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        let offset = refused_at(reopen(dir.path()));
        assert!(
            offset.is_some_and(|o| o <= bit as u64 / 8),
            "bit {bit}: {offset:?}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(
        reopen(dir.path()).unwrap().0.read_vote().await.unwrap(),
        Some(vote(7))
    );
}

pub(super) fn config(id: u128, data: Vec<u8>) -> Txn {
    let spec = ConfigSpec {
        name: format!("c{id}"),
        data,
        ..ConfigSpec::default()
    };
    let config = Config {
        id: model::ConfigId(id),
        meta: Meta::default(),
        spec: Arc::new(spec),
    };
    Txn {
        expect: Vec::new(),
        actions: vec![Action::Put(Object::Config(Arc::new(config)))],
    }
}

pub(super) async fn snapshot_of(log: &Log, at_least: u64) {
    log.raft.trigger().snapshot().await.unwrap();
    log.raft
        .wait(Some(LIMIT))
        .metrics(
            |m| m.snapshot.is_some_and(|id| id.index >= at_least),
            "a snapshot",
        )
        .await
        .unwrap();
}

/// A log that was purged, with a snapshot and entries behind it.
async fn lived_in(dir: &Path) {
    let log = Log::bootstrap(dir, 9, links(), ring(dir), model::NodeId(1), "")
        .await
        .unwrap();
    for id in 1..=5 {
        log.propose(config(id, vec![3; 50])).await.unwrap();
    }
    snapshot_of(&log, 5).await;
    log.raft.trigger().purge_log(4).await.unwrap();
    let purged = |m: &openraft::RaftMetrics<TypeConfig>| m.purged.is_some_and(|id| id.index >= 4);
    log.raft
        .wait(Some(LIMIT))
        .metrics(purged, "purged")
        .await
        .unwrap();
    log.propose(config(6, vec![3; 50])).await.unwrap();
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn m22_every_changed_bit_and_every_cut_of_a_snapshot_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    lived_in(dir.path()).await;
    let path = dir.path().join("snapshot");
    let whole = std::fs::read(&path).unwrap();
    let keys = ring(dir.path());
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        let offset = refused_at(StateMachine::open(dir.path(), &keys));
        assert!(
            offset.is_some_and(|o| o <= bit as u64 / 8),
            "bit {bit}: {offset:?}"
        );
    }
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert!(
            refused_at(StateMachine::open(dir.path(), &keys)).is_some(),
            "cut at {end}"
        );
    }
    let error = Log::open(dir.path(), links(), keys).await.err().unwrap();
    assert!(error.to_string().contains("E_LOG_CORRUPT"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn m23_no_file_of_a_manager_can_go_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    lived_in(dir.path()).await;
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock")
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["0000000000000000.seg", "identity", "keys", "snapshot", "synced"]
    );
    for name in &names {
        let (path, aside) = (dir.path().join(name), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert!(
            Log::exists(dir.path()),
            "{name}: the folder would be taken for an unfinished one"
        );
        match KeyRing::open(dir.path()) {
            Err(error) => assert!(
                matches!(error, KeyError::Lost { .. }) && name == "keys",
                "{error}"
            ),
            Ok(Opened::Locked(ring)) => panic!("{ring:?}"),
            Ok(Opened::Ready(keys)) => {
                let error = Log::open(dir.path(), links(), keys).await.err();
                let expected = matches!(
                    error,
                    Some(OpenError::Lost { .. } | OpenError::Log(LogError::Corrupt { .. }))
                );
                assert!(expected, "{name}: {error:?}");
            }
        }
        std::fs::rename(&aside, &path).unwrap();
    }
    let log = Log::open(dir.path(), links(), ring(dir.path())).await.unwrap();
    assert_eq!(log.read().configs().count(), 6);
    log.close().await;
}

const EIO_DIR: &str = "RSWARM_TEST_RAFT_EIO";
const GOOD_SYNCS: u64 = 6;

/// Not a test of its own: the process of the next one. Its disk fails once, at the seventh sync.
#[tokio::test]
async fn a_process_whose_disk_fails_once() {
    let Ok(dir) = std::env::var(EIO_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let (mut log, _) = LogStore::open(dir, &ring(dir), exit_on_fatal()).unwrap();
    fault::SYNCS_UNTIL_EIO.store(GOOD_SYNCS + 1, std::sync::atomic::Ordering::SeqCst);
    for i in 0..100 {
        append(&mut log, vec![entry(i, 700)]).await;
        println!("acknowledged {i}");
    }
}

#[tokio::test]
async fn m24_a_sync_that_fails_once_ends_the_process_and_a_restart_reads_what_the_disk_has() {
    let dir = tempfile::tempdir().unwrap();
    let output = this_test("raft::fault_tests::a_process_whose_disk_fails_once")
        .env(EIO_DIR, dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("fdatasync"), "{said}");
    assert_eq!(acknowledged(&output.stdout).last(), Some(&(GOOD_SYNCS - 1)));
    let (mut log, torn) = reopen(dir.path()).unwrap();
    let kept = indexes(&mut log).await;
    // The write whose sync failed may be there: it was not answered, so both are right.
    assert!(
        kept.len() as u64 == GOOD_SYNCS || kept.len() as u64 == GOOD_SYNCS + 1,
        "{kept:?}"
    );
    assert_eq!(torn, None);
    append(&mut log, vec![entry(kept.len() as u64, 10)]).await;
}

/// This binary, to run one of its tests.
fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .stderr(Stdio::piped());
    command
}

fn acknowledged(stdout: &[u8]) -> Vec<u64> {
    stdout
        .lines()
        .filter_map(|l| l.unwrap().rsplit_once("acknowledged ")?.1.parse().ok())
        .collect()
}

/// A small file system of its own, with a file that can make it full.
struct SmallDisk {
    /// Its root. It is mounted nowhere any more, so it goes with this process, however that ends.
    root: std::fs::File,
}

impl SmallDisk {
    /// None, with the reason printed, when this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID;
        if let Err(e) = rustix::mount::mount("rswarm-test", dir.path(), "tmpfs", flags, options.as_c_str()) {
            eprintln!("skipped: a test of a full disk mounts a tmpfs, and that needs root: {e}");
            return None;
        }
        let root = std::fs::File::open(dir.path());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        Some(Self { root: root.unwrap() })
    }

    fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    fn raft(&self) -> PathBuf {
        self.path().join("raft")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills it to the last block.
    fn fill(&self) {
        let file = std::fs::File::create(self.ballast()).unwrap();
        let block = [1u8; 4096];
        for n in 0.. {
            match file.write_all_at(&block, n * 4096) {
                Ok(()) => {}
                Err(e) => {
                    assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
                    return;
                }
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn m19_a_full_disk_acknowledges_nothing_in_part_and_goes_on_by_itself_when_there_is_room() {
    let Some(small) = SmallDisk::mount(17 * 1024 * 1024) else {
        return;
    };
    std::fs::create_dir(small.raft()).unwrap();
    let (mut log, _) = reopen(&small.raft()).unwrap();
    small.fill();
    let mut disk = log.disk();
    let mut done = 0;
    let mut waiting = loop {
        let (send, mut wait) = oneshot::channel();
        begin_append(&mut log, vec![entry(done, 1024 * 1024)], send).await;
        tokio::select! {
            answer = &mut wait => answer.unwrap().unwrap(),
            full = disk.wait_for(|state| *state == DiskState::Full) => {
                drop(full.unwrap());
                break wait;
            }
        }
        done += 1;
        assert!(done < 20, "the disk is not small");
    };
    assert!(done >= 5, "{done} entries of a segment");
    // Several attempts later it is still not answered, and a crash now has exactly what was.
    assert!(tokio::time::timeout(4 * disk::RETRY, &mut waiting).await.is_err());
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&small.raft(), copy.path());
    let (mut crashed, torn) = reopen(copy.path()).unwrap();
    assert_eq!((indexes(&mut crashed).await.len() as u64, torn), (done, None));

    small.free();
    let freed = Instant::now();
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(freed.elapsed() < Duration::from_secs(10), "{:?}", freed.elapsed());
    assert_eq!(*log.disk().borrow(), DiskState::Ok);
    log.close();
    drop(log);
    let (mut log, _) = reopen(&small.raft()).unwrap();
    assert_eq!(indexes(&mut log).await.len() as u64, done + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn m19_a_manager_on_a_full_disk_says_so_at_once_and_can_be_stopped() {
    let Some(small) = SmallDisk::mount(25 * 1024 * 1024) else {
        return;
    };
    let keys = KeyRing::create(&small.raft(), None).unwrap();
    let log = Log::bootstrap(&small.raft(), 5, links(), keys, model::NodeId(1), "")
        .await
        .unwrap();
    let mut id = 0;
    let mut put = || {
        id += 1;
        config(id, vec![8; 900_000])
    };
    let mut fill_up = async |log: &Log| {
        small.fill();
        loop {
            match log.propose(put()).await {
                Ok(_) => {}
                Err(ProposeError::DiskFull { pending: true }) => return,
                Err(other) => panic!("{other}"),
            }
        }
    };
    fill_up(&log).await;
    let error = log.propose(config(1000, vec![1])).await.unwrap_err();
    assert!(matches!(error, ProposeError::DiskFull { pending: false }));
    assert!(error.to_string().starts_with("E_DISK_FULL"), "{error}");
    // A snapshot that does not fit is tried again as well, instead of ending the protocol.
    log.raft.trigger().snapshot().await.unwrap();
    small.free();
    let mut disk = log.disk();
    let freed = tokio::time::timeout(Duration::from_secs(10), disk.wait_for(|d| *d == DiskState::Ok));
    drop(freed.await.unwrap().unwrap());
    log.propose(config(1000, vec![1])).await.unwrap();
    snapshot_of(&log, 2).await;
    assert!(!log.role().borrow().stopped);

    fill_up(&log).await;
    tokio::time::timeout(LIMIT, log.close()).await.unwrap();
    drop(log);
    small.free();
    let log = Log::open(&small.raft(), links(), ring(&small.raft()))
        .await
        .unwrap();
    assert!(log.read().config(model::ConfigId(1000)).is_some());
    log.close().await;
}
