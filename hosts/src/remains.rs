//! What is left of hosts, found in the kernel and not in what was remembered; and its removal.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

/// How long processes may take to be gone once they were killed.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where cgroups are: below each controller, or below the one hierarchy of version 2.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is left of the hosts of one folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Processes in their namespaces or cgroups, or started with a path of theirs: id and command line.
    pub processes: Vec<(i32, String)>,
    /// Mounts below the folder.
    pub mounts: Vec<PathBuf>,
    /// Cgroups of their dataplanes.
    pub cgroups: Vec<PathBuf>,
}

impl Remains {
    /// Looks for what belongs to the hosts of `dir`, whose dataplanes' names begin with `id`.
    pub(crate) fn find(dir: &Path, id: &str) -> Self {
        let (mounts, namespaces) = mounts(dir);
        let cgroups = cgroups(id);
        let mut ids: BTreeSet<i32> = cgroups.iter().flat_map(|c| members(c)).collect();
        let path = dir.display().to_string();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        for pid in pids() {
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default();
            let line = command_line(pid);
            // A container's parent is in the container's namespace, and has nothing but its log in its hands.
            if namespaces.contains(&namespace.display().to_string())
                || line.contains(&path)
                || (line.contains(" __shim ") && holds(pid, &path))
            {
                ids.insert(pid);
            }
        }
        ids.remove(&own);
        // Whoever has ended since is no more, and who is only waited for holds nothing.
        let alive = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|t| {
                t.rsplit_once(") ")
                    .is_some_and(|(_, rest)| !rest.starts_with('Z'))
            })
        };
        Self {
            processes: (ids.into_iter().filter(alive))
                .map(|p| (p, command_line(p)))
                .collect(),
            mounts,
            cgroups,
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Ends processes and takes down mounts and cgroups of the hosts of `dir`. Answers what withstood.
    pub(crate) fn sweep(dir: &Path, id: &str) -> Self {
        let began = Instant::now();
        let mut left = Self::find(dir, id);
        // The name servers of containers and the like follow those that made them; what is made meanwhile is found by
        // the next look.
        while !left.processes.is_empty() && began.elapsed() < LIMIT {
            for (pid, _) in &left.processes {
                if let Some(pid) = Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(LOOK_EVERY);
            left = Self::find(dir, id);
        }
        for mount in left.mounts.iter().rev() {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
        while !left.cgroups.is_empty() && began.elapsed() < LIMIT {
            // Deepest first. The kernel lets go of one a moment after its last process.
            for folder in left.cgroups.iter().rev() {
                let _ = fs::remove_dir(folder);
            }
            left = Self::find(dir, id);
            if !left.cgroups.is_empty() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Self::find(dir, id)
    }
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    (entries.flatten())
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a process has a file open below a folder.
fn holds(pid: i32, folder: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    (files.filter_map(|f| fs::read_link(f.path()).ok())).any(|f| f.starts_with(folder))
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// Mount points below a folder, in the order in which they were made, and the network namespaces among them.
fn mounts(dir: &Path) -> (Vec<PathBuf>, BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mut points, mut namespaces) = (Vec::new(), BTreeSet::new());
    for line in text.lines() {
        // id, parent, device, root, mount point, …; see proc_pid_mountinfo(5).
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else {
            continue;
        };
        if Path::new(point).starts_with(dir) {
            points.push(PathBuf::from(point));
            if root.starts_with("net:") {
                namespaces.insert((*root).to_owned());
            }
        }
    }
    (points, namespaces)
}

/// Cgroups of dataplanes whose names begin with `id`, parents before children.
fn cgroups(id: &str) -> Vec<PathBuf> {
    fn walk(folder: PathBuf, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(&folder);
        found.push(folder);
        for entry in entries.into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(entry.path(), found);
            }
        }
    }
    let mut roots = vec![PathBuf::from(CGROUPS)];
    roots.extend(
        fs::read_dir(CGROUPS)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path()),
    );
    let mut found = Vec::new();
    // Controllers that share a hierarchy are links to one folder.
    roots.retain(|r| !r.is_symlink());
    for root in roots {
        for entry in fs::read_dir(root.join("rswarm")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(id) {
                walk(entry.path(), &mut found);
            }
        }
    }
    found
}

fn members(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}
