//! A container's config and the facts of the host → the plan its shim performs, as plain data.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{
    ContainerConfig, FileMount, LogConfig, MountConfig, MountSource, NetworkNamespace, Resources, Ulimit,
};

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// cgroup v2 (one folder), or v1 (one a controller).
    pub cgroup_v2: bool,
    /// Controllers that can bound something here.
    pub controllers: Vec<String>,
}

/// Everything the shim needs to know; it travels over a pipe, never over the disk, since it holds secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LaunchPlan {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) cgroups: CgroupPlan,
    pub(crate) network: NetworkNamespace,
    pub(crate) rootfs: RootfsPlan,
    pub(crate) process: ProcessPlan,
    pub(crate) hostname: String,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) init: bool,
    pub(crate) tty: bool,
    pub(crate) log: LogConfig,
    pub(crate) oom_score_adj: i32,
}

/// Folders the container's processes are put into, and what is written there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupPlan {
    pub(crate) v2: bool,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) writes: Vec<(PathBuf, String)>,
}

/// The root file system, bottom to top.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootfsPlan {
    pub(crate) target: PathBuf,
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) mounts: Vec<MountConfig>,
    pub(crate) files: Vec<FileMount>,
    pub(crate) read_only: bool,
    pub(crate) masked: Vec<String>,
    pub(crate) read_only_paths: Vec<String>,
}

/// What a process of the container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
    /// Numbers of the capabilities it keeps (capabilities(7)).
    pub(crate) capabilities: Vec<u8>,
    pub(crate) ulimits: Vec<RlimitPlan>,
}

/// One limit by the kernel's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RlimitPlan {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Paths that tell of the host, or change it; Docker's list.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Capabilities by number: their names (linux/capability.h).
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Docker's default set less NET_RAW, MKNOD and AUDIT_WRITE.
const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "SETFCAP",
];
/// Resource limits by name: the kernel's numbers (getrlimit(2), x86 and arm).
const RLIMITS: &[(&str, u32)] = &[
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];
/// Prefixes of kernel settings that belong to the container's own namespaces.
const SYSCTLS: &[&str] = &["net.", "fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm"];

/// Makes the plan.
///
/// # Errors
/// One sentence that names what the host cannot do or the config cannot ask.
pub(crate) fn plan(
    config: &ContainerConfig,
    facts: &HostFacts,
    dir: &Path,
    cgroup_root: &Path,
    cgroup_parent: &str,
) -> Result<LaunchPlan, String> {
    config.check()?;
    for key in config.sysctls.keys() {
        if !SYSCTLS.iter().any(|p| key.starts_with(p)) || key.contains('/') || key.contains("..") {
            return Err(format!(
                "the kernel setting {key} belongs to the whole host; only {} can be set",
                SYSCTLS.join(", ")
            ));
        }
    }
    Ok(LaunchPlan {
        id: config.id.clone(),
        dir: dir.to_owned(),
        cgroups: cgroups(&config.id, &config.resources, facts, cgroup_root, cgroup_parent)?,
        network: config.network.clone(),
        rootfs: RootfsPlan {
            // In its own mount namespace the root may hide the folder it is kept in.
            target: dir.to_owned(),
            layers: config.layers.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
            mounts: in_order(&config.mounts),
            files: config.files.clone(),
            read_only: config.read_only,
            masked: MASKED.iter().map(|s| (*s).to_owned()).collect(),
            read_only_paths: READ_ONLY.iter().map(|s| (*s).to_owned()).collect(),
        },
        process: ProcessPlan {
            argv: config.argv.clone(),
            env: config.env.clone(),
            cwd: if config.cwd.is_empty() {
                "/".into()
            } else {
                config.cwd.clone()
            },
            user: config.user.clone(),
            groups: config.groups.clone(),
            capabilities: capabilities(&config.cap_add, &config.cap_drop)?,
            ulimits: rlimits(&config.ulimits)?,
        },
        hostname: config.hostname.clone(),
        sysctls: config
            .sysctls
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        init: config.init,
        tty: config.tty,
        log: config.log,
        oom_score_adj: config.oom_score_adj,
    })
}

/// Mounts, outer ones first, so that a mount inside another is not hidden by it.
fn in_order(mounts: &[MountConfig]) -> Vec<MountConfig> {
    let mut mounts = mounts.to_vec();
    mounts.sort_by_key(|m| Path::new(&m.target).components().count());
    for mount in &mut mounts {
        if let MountSource::Tmpfs { mode, .. } = &mut mount.source
            && *mode == 0
        {
            *mode = 0o1777;
        }
    }
    mounts
}

fn cgroups(
    id: &str,
    resources: &Resources,
    facts: &HostFacts,
    root: &Path,
    parent: &str,
) -> Result<CgroupPlan, String> {
    let has = |name: &str| facts.controllers.iter().any(|c| c == name);
    for (asked, controller, what) in [
        (resources.memory, "memory", "memory limit"),
        (resources.nano_cpus, "cpu", "CPU limit"),
        (resources.pids, "pids", "process limit"),
    ] {
        if asked > 0 && !has(controller) {
            return Err(format!(
                "this host has no cgroup controller \"{controller}\", so the {what} cannot be enforced: enable it, or leave the limit out"
            ));
        }
    }
    // 100 ms is the kernel's default period; quotas below 1 ms are refused by it.
    let (period, quota) = (100_000u64, (resources.nano_cpus / 10_000).max(1_000));
    let mut plan = CgroupPlan {
        v2: facts.cgroup_v2,
        folders: Vec::new(),
        writes: Vec::new(),
    };
    if facts.cgroup_v2 {
        let folder = root.join(parent).join(id);
        let mut write = |file: &str, text: String| plan.writes.push((folder.join(file), text));
        if resources.memory > 0 {
            write("memory.max", resources.memory.to_string());
            write("memory.swap.max", "0".into());
        }
        if resources.nano_cpus > 0 {
            write("cpu.max", format!("{quota} {period}"));
        }
        if resources.pids > 0 {
            write("pids.max", resources.pids.to_string());
        }
        plan.folders.push(folder);
        return Ok(plan);
    }
    for controller in ["memory", "cpu", "cpuacct", "pids", "blkio"]
        .into_iter()
        .filter(|c| has(c))
    {
        let folder = root.join(controller).join(parent).join(id);
        let mut write = |file: &str, text: String| plan.writes.push((folder.join(file), text));
        match controller {
            "memory" if resources.memory > 0 => write("memory.limit_in_bytes", resources.memory.to_string()),
            "cpu" if resources.nano_cpus > 0 => {
                write("cpu.cfs_period_us", period.to_string());
                write("cpu.cfs_quota_us", quota.to_string());
            }
            "pids" if resources.pids > 0 => write("pids.max", resources.pids.to_string()),
            _ => {}
        }
        plan.folders.push(folder);
    }
    Ok(plan)
}

fn capability(name: &str) -> Result<u8, String> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let at = CAPABILITIES.iter().position(|c| *c == bare);
    at.and_then(|n| u8::try_from(n).ok())
        .ok_or_else(|| format!("there is no capability {name}"))
}

pub(crate) fn capabilities(add: &[String], drop: &[String]) -> Result<Vec<u8>, String> {
    let all = |names: &[String]| names.iter().any(|n| n.eq_ignore_ascii_case("all"));
    let numbers = |names: &[String]| -> Result<Vec<u8>, String> {
        names
            .iter()
            .filter(|n| !n.eq_ignore_ascii_case("all"))
            .map(|n| capability(n))
            .collect()
    };
    let (added, dropped) = (numbers(add)?, numbers(drop)?);
    let mut set: Vec<u8> = if all(add) {
        (0..u8::try_from(CAPABILITIES.len()).unwrap_or(0)).collect()
    } else if all(drop) {
        Vec::new()
    } else {
        DEFAULT.iter().map(|n| capability(n)).collect::<Result<_, _>>()?
    };
    set.extend(added.iter().copied());
    set.retain(|c| !dropped.contains(c));
    set.sort_unstable();
    set.dedup();
    Ok(set)
}

fn rlimits(limits: &[Ulimit]) -> Result<Vec<RlimitPlan>, String> {
    let value = |v: i64| u64::try_from(v).unwrap_or(u64::MAX);
    limits
        .iter()
        .map(|l| {
            let found = RLIMITS.iter().find(|(name, _)| *name == l.name);
            let (_, resource) = found.ok_or_else(|| format!("there is no ulimit {}", l.name))?;
            if value(l.soft) > value(l.hard) {
                return Err(format!(
                    "ulimit {}: the soft limit {} is above the hard limit {}",
                    l.name, l.soft, l.hard
                ));
            }
            Ok(RlimitPlan {
                resource: *resource,
                soft: value(l.soft),
                hard: value(l.hard),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ContainerConfig {
        ContainerConfig {
            id: "c1".into(),
            argv: vec!["/a".into()],
            layers: vec!["/l".into()],
            resources: Resources {
                nano_cpus: 500_000_000,
                memory: 64 << 20,
                pids: 10,
            },
            ..ContainerConfig::default()
        }
    }

    fn facts(v2: bool, controllers: &[&str]) -> HostFacts {
        HostFacts {
            cgroup_v2: v2,
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    #[test]
    fn limits_are_written_where_the_kernel_reads_them() {
        let at = |v2, controllers: &[&str]| {
            plan(
                &config(),
                &facts(v2, controllers),
                Path::new("/d"),
                Path::new("/cg"),
                "p",
            )
            .map(|p| p.cgroups)
        };
        let v2 = at(true, &["memory", "cpu", "pids"]).unwrap();
        assert_eq!(v2.folders, [PathBuf::from("/cg/p/c1")]);
        assert_eq!(
            v2.writes,
            [
                ("/cg/p/c1/memory.max".into(), "67108864".to_owned()),
                ("/cg/p/c1/memory.swap.max".into(), "0".to_owned()),
                ("/cg/p/c1/cpu.max".into(), "50000 100000".to_owned()),
                ("/cg/p/c1/pids.max".into(), "10".to_owned()),
            ]
        );
        let v1 = at(false, &["memory", "cpu", "cpuacct", "pids"]).unwrap();
        assert_eq!(v1.folders.len(), 4);
        assert!(
            v1.writes
                .contains(&("/cg/cpu/p/c1/cpu.cfs_quota_us".into(), "50000".into()))
        );
        assert!(at(false, &["cpu", "pids"]).unwrap_err().contains("memory"));
    }

    #[test]
    fn capabilities_are_added_dropped_and_named() {
        let set = |add: &[&str], drop: &[&str]| {
            let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            capabilities(&own(add), &own(drop))
        };
        assert_eq!(set(&[], &[]).unwrap().len(), DEFAULT.len());
        assert!(!set(&[], &[]).unwrap().contains(&13), "no NET_RAW");
        assert_eq!(set(&[], &["ALL"]).unwrap(), Vec::<u8>::new());
        assert_eq!(set(&["net_admin"], &["all"]).unwrap(), [12]);
        assert_eq!(
            set(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().len(),
            CAPABILITIES.len() - 1
        );
        assert!(set(&["NOSUCH"], &[]).unwrap_err().contains("NOSUCH"));
    }

    #[test]
    fn settings_of_the_host_are_refused() {
        let mut c = config();
        c.sysctls.insert("kernel.core_pattern".into(), "x".into());
        let facts = facts(true, &["memory", "cpu", "pids"]);
        assert!(plan(&c, &facts, Path::new("/d"), Path::new("/cg"), "p").is_err());
    }
}
