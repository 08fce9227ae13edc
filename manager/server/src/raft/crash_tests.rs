//! A process that dies at each crash point, and what the next start makes of its disk.

use std::io::BufRead;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::fault_tests::{config, snapshot_of};
use super::log::tests::ring;
use super::network::links;
use super::*;

const DIR: &str = "RSWARM_TEST_RAFT_CRASH";
/// Large enough that these entries fill more than one segment and more than one piece of a snapshot.
const ENTRY_BYTES: usize = 800_000;
const ENTRIES: u128 = 24;

/// Not a test of its own: the process of the next one. It reaches every point at least once.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_dies_somewhere() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let log = Log::bootstrap(dir, 5, links(), ring(dir), model::NodeId(1), "127.0.0.1:1")
        .await
        .unwrap();
    for id in 1..=ENTRIES {
        let applied = log.propose(config(id, vec![4; ENTRY_BYTES])).await.unwrap();
        println!("acknowledged {id}");
        if id % 8 == 0 {
            snapshot_of(&log, applied.index).await;
            log.raft.trigger().purge_log(applied.index - 1).await.unwrap();
        }
    }
    log.close().await;
    println!("lived on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_dies_at_any_point_has_kept_all_it_acknowledged() {
    let rows = [
        ("raft.before_append_fsync=return", false),
        ("raft.before_append_fsync=9*off->return", true),
        ("raft.after_append_fsync=9*off->return", true),
        ("raft.before_vote_fsync=return", false),
        ("raft.after_vote_fsync=return", false),
        ("snap.mid_write=3*off->return", true),
        ("snap.before_rename=return", true),
        ("snap.before_rename=1*off->return", true),
        ("snap.before_dirsync=1*off->return", true),
        ("log.mid_purge=return", true),
    ];
    for (point, acknowledges) in rows {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "raft::crash_tests::a_manager_that_dies_somewhere",
                "--nocapture",
            ])
            .env(DIR, dir.path())
            .env("FAILPOINTS", point)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {output:?}");
        let acknowledged = output
            .stdout
            .lines()
            .filter(|l| l.as_ref().unwrap().contains("acknowledged "))
            .count() as u128;
        assert_eq!(acknowledged > 0, acknowledges, "{point}: {acknowledged}");
        // Twice: what the first start mends is whole for the second.
        for start in 1..=2 {
            let log = Log::open(dir.path(), links(), ring(dir.path())).await.unwrap();
            let state = log.read_latest().await.unwrap();
            for id in 1..=acknowledged {
                assert!(
                    state.config(model::ConfigId(id)).is_some(),
                    "{point}, start {start}: {id} is gone"
                );
            }
            let names = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|e| e.unwrap().file_name());
            let left: Vec<_> = names.filter(|n| n.to_string_lossy().ends_with(".tmp")).collect();
            assert!(left.is_empty(), "{point}: {left:?}");
            log.close().await;
        }
    }
}
