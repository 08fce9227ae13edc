//! cgroups: facts of the host, folders of a container, what it used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::plan::{CgroupPlan, HostFacts};

/// Where cgroups are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Tries to remove a folder whose last process is only just gone, a few milliseconds apart.
const REMOVE_TRIES: u32 = 50;

/// What a container uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// CPU time in nanoseconds, since it started.
    pub cpu_ns: u64,
    /// Bytes of memory, without file cache that can go at once.
    pub memory: u64,
    /// Memory limit; 0: none.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from and written to disks; absent where the host does not count them.
    pub disk: Option<(u64, u64)>,
    /// Bytes received and sent on all interfaces but loopback.
    pub network: (u64, u64),
}

/// Looks at what the host offers; absent without any cgroup hierarchy.
pub(crate) fn facts() -> Option<HostFacts> {
    let root = Path::new(ROOT);
    let known = ["memory", "cpu", "cpuacct", "pids", "blkio"];
    let v1: Vec<String> = known
        .iter()
        .filter(|c| root.join(c).join("tasks").exists())
        .map(|c| (*c).to_owned())
        .collect();
    if !v1.is_empty() {
        return Some(HostFacts {
            cgroup_v2: false,
            controllers: v1,
        });
    }
    let listed = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
    Some(HostFacts {
        cgroup_v2: true,
        controllers: listed.split_whitespace().map(str::to_owned).collect(),
    })
}

/// On v2, lets the folders below `parent` bound what they hold.
pub(crate) fn delegate(facts: &HostFacts, parent: &str) -> io::Result<()> {
    if !facts.cgroup_v2 {
        return Ok(());
    }
    let wanted: Vec<String> = facts
        .controllers
        .iter()
        .filter(|c| ["memory", "cpu", "pids", "io"].contains(&c.as_str()))
        .map(|c| format!("+{c}"))
        .collect();
    let mut folder = PathBuf::from(ROOT);
    let mut parts = Path::new(parent).components();
    loop {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cgroup.subtree_control"), wanted.join(" "))?;
        match parts.next() {
            Some(part) => folder.push(part),
            None => return Ok(()),
        }
    }
}

/// Makes the folders and writes the limits.
pub(crate) fn make(plan: &CgroupPlan) -> Result<(), String> {
    for folder in &plan.folders {
        fs::create_dir_all(folder).map_err(|e| format!("make cgroup {}: {e}", folder.display()))?;
    }
    for (file, text) in &plan.writes {
        fs::write(file, text).map_err(|e| format!("write {text} to {}: {e}", file.display()))?;
    }
    Ok(())
}

/// Puts the calling process into the folders. A process that moves itself waits for nobody; one that is moved by
/// another costs milliseconds on v1.
pub(crate) fn enter(plan: &CgroupPlan) -> Result<(), String> {
    let name = if plan.v2 { "cgroup.procs" } else { "tasks" };
    for folder in &plan.folders {
        let file = folder.join(name);
        fs::write(&file, "0").map_err(|e| format!("enter cgroup {}: {e}", file.display()))?;
    }
    Ok(())
}

/// Removes the folders; those that are gone are no error.
pub(crate) fn remove(plan: &CgroupPlan) {
    for folder in &plan.folders {
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(folder) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    // The kernel lets go of a dead process's cgroup a moment after its parent was told.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                Ok(()) | Err(_) => break,
            }
        }
    }
}

/// Whether the kernel killed something in there because of its memory limit.
pub(crate) fn oom_killed(plan: &CgroupPlan) -> bool {
    let file = if plan.v2 {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    plan.folders
        .iter()
        .any(|f| field(&f.join(file), "oom_kill").is_some_and(|n| n > 0))
}

fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name).and_then(|r| r.strip_prefix(' ')))?;
    line.trim().parse().ok()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Bytes read and written, summed over disks. v2: `8:0 rbytes=1 wbytes=2 …`; v1: `8:0 Read 1`, `8:0 Write 2`.
fn disk(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1);
        while let Some(word) = words.next() {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, value.parse()),
                None => (word, words.next().unwrap_or_default().parse()),
            };
            match (key, value) {
                ("rbytes" | "Read", Ok(n)) => read = read.saturating_add(n),
                ("wbytes" | "Write", Ok(n)) => written = written.saturating_add(n),
                _ => {}
            }
        }
    }
    (read, written)
}

/// Bytes received and sent, of a text such as /proc/net/dev.
fn network(text: &str) -> (u64, u64) {
    let (mut received, mut sent) = (0u64, 0u64);
    for line in text.lines() {
        let Some((_, counts)) = line.split_once(':').filter(|(name, _)| name.trim() != "lo") else {
            continue;
        };
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        received = received.saturating_add(counts.first().copied().unwrap_or(0));
        sent = sent.saturating_add(counts.get(8).copied().unwrap_or(0));
    }
    (received, sent)
}

/// Reads what a container uses; `pid` is its first process, for its network.
pub(crate) fn stats(plan: &CgroupPlan, pid: u32) -> Stats {
    let find = |file: &str| plan.folders.iter().map(|f| f.join(file)).find(|p| p.exists());
    let read = |file: &str| find(file).and_then(|p| number(&p));
    let part = |file: &str, name: &str| find(file).and_then(|p| field(&p, name));
    let text = |file: &str| find(file).and_then(|p| fs::read_to_string(p).ok());
    let network = network(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default());
    // "No limit" is the largest page-aligned number on v1 and "max" on v2.
    let bounded = |n: u64| if n >= 1 << 62 { 0 } else { n };
    if plan.v2 {
        let used = read("memory.current").unwrap_or(0);
        return Stats {
            cpu_ns: part("cpu.stat", "usage_usec").unwrap_or(0).saturating_mul(1000),
            memory: used.saturating_sub(part("memory.stat", "inactive_file").unwrap_or(0)),
            memory_limit: read("memory.max").map_or(0, bounded),
            pids: read("pids.current").unwrap_or(0),
            disk: text("io.stat").map(|t| disk(&t)),
            network,
        };
    }
    let used = read("memory.usage_in_bytes").unwrap_or(0);
    Stats {
        cpu_ns: read("cpuacct.usage").unwrap_or(0),
        memory: used.saturating_sub(part("memory.stat", "total_inactive_file").unwrap_or(0)),
        memory_limit: read("memory.limit_in_bytes").map_or(0, bounded),
        pids: read("pids.current").unwrap_or(0),
        disk: text("blkio.throttle.io_service_bytes").map(|t| disk(&t)),
        network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_summed_in_both_formats() {
        let v2 = "8:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n7:0 \n";
        let v1 =
            "8:0 Read 100\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 125\n8:16 Read 1\n8:16 Write 2\nTotal 128\n";
        assert_eq!(
            (disk(v2), disk(v1), disk("Total 0\n")),
            ((101, 22), (101, 22), (0, 0))
        );
    }

    #[test]
    fn loopback_is_no_network() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1\n  \
                    eth0:10 1 0 0 0 0 0 0 30 1 0 0 0 0 0 0\n  eth1: 1 1 0 0 0 0 0 0 3 1\n";
        assert_eq!(network(text), (11, 33));
    }
}
