//! What is on disk of a container, and how it is written so that a crash leaves the old or the new.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Who a container is; written by `create`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) created_ms: u64,
    pub(crate) argv: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Folders of its image, the top one first; none in records of before they were kept.
    #[serde(default)]
    pub(crate) layers: Vec<std::path::PathBuf>,
    pub(crate) cgroups: crate::plan::CgroupPlan,
    pub(crate) process: crate::plan::ProcessPlan,
}

/// Which processes run it; written by the shim before the container's program is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The boot of the machine in which the processes below are meant; see [`boot`].
    #[serde(default)]
    pub(crate) boot: String,
    pub(crate) pid: u32,
    pub(crate) pid_start: u64,
    pub(crate) shim: u32,
    pub(crate) shim_start: u64,
    pub(crate) started_ms: u64,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + signal when a signal ended it; absent when nobody could see it end.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process of it because of its memory limit.
    pub oom_killed: bool,
    /// When, in milliseconds since 1970.
    pub finished_ms: u64,
}

pub(crate) const IDENTITY: &str = "identity.json";
pub(crate) const RUNNING: &str = "running.json";
pub(crate) const EXIT: &str = "exit.json";

/// Reads a record; absent when there is none or it is not whole.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

/// Which processes run a container; absent when it was never started. Those of an earlier boot are given as process 0,
/// which is nobody: a machine starts its processes at much the same ticks with much the same ids each time, so that
/// some other process may go by both.
pub(crate) fn running(dir: &Path) -> Option<Running> {
    let found: Running = read(dir, RUNNING)?;
    if found.boot == boot_id() {
        return Some(found);
    }
    Some(Running {
        pid: 0,
        shim: 0,
        ..found
    })
}

/// The name of this boot of the machine (random(4)); empty where the kernel does not tell.
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Writes a record: aside, synced where `durable`, renamed into place.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, value: &T, durable: bool) -> io::Result<()> {
    let aside = dir.join(format!(".{name}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(&aside, dir.join(name))
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22): with its id, its name in time.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold anything, so fields are counted from the last one.
    let after = &stat[stat.rfind(')')? + 2..];
    let mut fields = after.split(' ');
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether that very process still runs.
pub(crate) fn alive(pid: u32, start: u64) -> bool {
    start_time(pid) == Some(start)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_an_earlier_boot_is_nobody() {
        let dir = std::env::temp_dir().join(format!("rswarm-boot-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let me = std::process::id();
        let start = start_time(me).expect("this process runs");
        let mut record = Running {
            boot: boot_id(),
            pid: me,
            pid_start: start,
            shim: me,
            shim_start: start,
            started_ms: 1,
        };
        let seen = |record: &Running| {
            write(&dir, RUNNING, record, false).expect("written");
            let found = running(&dir).expect("read");
            (
                alive(found.pid, found.pid_start),
                alive(found.shim, found.shim_start),
            )
        };
        assert!(!record.boot.is_empty());
        assert_eq!(seen(&record), (true, true), "of this boot");
        record.boot = "00000000-0000-0000-0000-000000000000".into();
        assert_eq!(
            seen(&record),
            (false, false),
            "of another, with the same id and start"
        );
        fs::remove_dir_all(&dir).expect("removed");
    }
}
