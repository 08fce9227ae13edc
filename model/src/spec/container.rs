//! A container: image, process, files, limits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Amounts, Healthcheck, Hook, Labels};
use crate::{Bytes, ConfigId, NanoCpus, SecretId};

/// Grace between stop signal and kill when none is given.
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Smallest CPU limit or reservation: 0.001 CPU.
pub const CPU_MIN: NanoCpus = NanoCpus(1_000_000);
/// Smallest memory limit: 4 MiB.
pub const MEMORY_MIN: Bytes = Bytes(4 << 20);

/// The container of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSpec {
    /// Image reference: as given, or with the digest of the one image it meant when the service was written.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Arguments; without `command` they go to the image's entrypoint.
    pub args: Vec<String>,
    /// `NAME=value`; a later one wins.
    pub env: Vec<String>,
    /// Host name; empty: the first 12 digits of the task id. May hold a template such as `{{.Node.Hostname}}`.
    pub hostname: String,
    /// Working directory; empty: the image's.
    pub dir: String,
    /// `user[:group]`; empty: the image's.
    pub user: String,
    /// More groups of the process.
    pub groups: Vec<String>,
    /// Gives the process a terminal.
    pub tty: bool,
    /// Keeps stdin open.
    pub open_stdin: bool,
    /// Mounts the root file system read-only.
    pub read_only: bool,
    /// Runs a small init as process 1; absent: no.
    pub init: Option<bool>,
    /// Labels of the container.
    pub labels: Labels,
    /// Volumes, binds and memory file systems.
    pub mounts: Vec<Mount>,
    /// Secrets it may read.
    pub secrets: Vec<SecretRef>,
    /// Configs it may read.
    pub configs: Vec<ConfigRef>,
    /// Health check: what fails it is restarted; absent: the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Readiness check: what fails it gets no connections, and goes on running; absent: it is ready while it is healthy.
    pub readiness: Option<Healthcheck>,
    /// Run one after the other, each in a container like this one (same image, network, mounts, limits), before this one is
    /// made ready; one that fails has the task rejected.
    pub pre_start: Vec<Hook>,
    /// Run in it after it started, before it is checked; one that fails has the task fail.
    pub post_start: Vec<Hook>,
    /// Run in it before it is asked to stop, within the grace; that one fails is noted.
    pub pre_stop: Vec<Hook>,
    /// Lines for `/etc/hosts`: `(name, address)`.
    pub hosts: Vec<(String, String)>,
    /// Resolver settings.
    pub dns: DnsConfig,
    /// Signal that asks it to stop; empty: the image's, or SIGTERM.
    pub stop_signal: String,
    /// Time between that signal and SIGKILL; absent: [`STOP_GRACE_DEFAULT`].
    pub stop_grace: Option<Duration>,
    /// Capabilities added to the default set, such as `CAP_NET_ADMIN` or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Namespaced kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// Preference of the kernel's OOM killer, -1000 to 1000.
    pub oom_score_adj: i32,
}

impl ContainerSpec {
    /// The grace between stop signal and kill.
    pub fn stop_grace_or_default(&self) -> Duration {
        self.stop_grace.unwrap_or(STOP_GRACE_DEFAULT)
    }
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path in the container.
    pub target: String,
    /// Without write access.
    pub read_only: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A volume of the node the task runs on.
    Volume {
        /// Name; empty: an anonymous volume that goes with the task.
        name: String,
        /// Does not copy the image's files at the target into a new volume.
        no_copy: bool,
        /// Folder inside the volume.
        subpath: String,
        /// Driver; empty: `local`.
        driver: String,
        /// Options of the driver.
        options: BTreeMap<String, String>,
        /// Labels of a volume that is made for this.
        labels: Labels,
    },
    /// A path of the node.
    Bind {
        /// Absolute path on the node.
        source: String,
        /// `rprivate` (also when empty), `private`, `rshared`, `shared`, `rslave` or `slave`.
        propagation: String,
        /// Mounts below the source are left out.
        non_recursive: bool,
        /// Makes the source when it is missing; Docker's Swarm never does.
        create_source: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Most bytes it holds; absent: no own limit.
        size: Option<Bytes>,
        /// Permission bits of its root; absent: 1777 (octal).
        mode: Option<u32>,
    },
}

/// Where a secret or config appears in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTarget {
    /// File name below `/run/secrets` (secrets) or absolute path, or name below `/` (configs).
    pub name: String,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A secret a container may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// Which one; in a request [`SecretId::NIL`] asks the manager to find it by `name`.
    pub id: SecretId,
    /// Its name, for messages and for that search.
    pub name: String,
    /// Where it appears.
    pub target: FileTarget,
}

/// A config a container may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigRef {
    /// Which one; in a request [`ConfigId::NIL`] asks the manager to find it by `name`.
    pub id: ConfigId,
    /// Its name, for messages and for that search.
    pub name: String,
    /// Where it appears.
    pub target: FileTarget,
}

/// Resolver settings of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    /// Name servers asked instead of the host's.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options such as `ndots:2`.
    pub options: Vec<String>,
}

/// One resource limit (setrlimit(2)); -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name without `RLIMIT_`, lower case, such as `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// What a task may use at most, and what is kept free for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Upper bounds, enforced by the kernel.
    pub limits: Limits,
    /// What the scheduler keeps free.
    pub reservations: Reservations,
}

/// Upper bounds; zero: none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// CPU time per time.
    pub cpu: NanoCpus,
    /// Memory.
    pub memory: Bytes,
    /// Processes and threads.
    pub pids: u64,
}

/// What the scheduler keeps free; zero: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reservations {
    /// CPU time per time.
    pub cpu: NanoCpus,
    /// Memory.
    pub memory: Bytes,
    /// How many of each kind of generic resource.
    pub generic: Amounts,
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogDriver {
    /// `json-file` (also when empty), `local` or `none`.
    pub name: String,
    /// `max-size`, `max-file`.
    pub options: BTreeMap<String, String>,
}
