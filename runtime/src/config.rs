//! What a container is, as its caller says it, and the bounds of that.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Most bytes of arguments and environment together (the kernel takes 2 MiB, execve(2)).
const WORDS_MAX: usize = 1 << 20;
/// Most mounts of a container.
const MOUNTS_MAX: usize = 1_000;
/// Most layers of a root file system; overlayfs takes 500.
const LAYERS_MAX: usize = 500;

/// A container to make.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct ContainerConfig {
    /// Unique on this host; letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made where it is missing.
    pub cwd: String,
    /// `user[:group]` by name or number; empty: root.
    pub user: String,
    /// More groups, by name or number.
    pub groups: Vec<String>,
    /// Unpacked layers, the top one first.
    pub layers: Vec<PathBuf>,
    /// Without write access to the root file system.
    pub read_only: bool,
    /// Binds and memory file systems.
    pub mounts: Vec<MountConfig>,
    /// Files whose content is given; they live in memory only.
    pub files: Vec<FileMount>,
    /// Network namespace.
    pub network: NetworkNamespace,
    /// Upper bounds.
    pub resources: Resources,
    /// Capabilities beyond the default set (`CAP_…` or `ALL`).
    pub cap_add: Vec<String>,
    /// Capabilities taken from it.
    pub cap_drop: Vec<String>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Namespaced kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// Runs a small init as process 1.
    pub init: bool,
    /// Gives the process a terminal.
    pub tty: bool,
    /// Where its output goes.
    pub log: LogConfig,
    /// Preference of the kernel's OOM killer.
    pub oom_score_adj: i32,
    /// Kept beside the container, for its owner.
    pub labels: BTreeMap<String, String>,
}

/// One mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountConfig {
    /// Absolute path in the container.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// Without write access.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute path.
        path: PathBuf,
        /// Mounts below it come along.
        recursive: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Most bytes; 0: no own limit.
        size: u64,
        /// Permission bits of its root.
        mode: u32,
    },
}

/// A file whose content is given.
#[derive(Clone, Serialize, Deserialize)]
pub struct FileMount {
    /// Absolute path in the container.
    pub target: String,
    /// Content.
    pub content: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether the container may write to it (it never reaches the disk either way).
    pub writable: bool,
}

impl std::fmt::Debug for FileMount {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FileMount")
            .field("target", &self.target)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Network namespace of a container.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub enum NetworkNamespace {
    /// A new one, with loopback only.
    #[default]
    New,
    /// One that exists, by its path.
    Path(PathBuf),
}

/// Upper bounds; zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Resources {
    /// Billionths of a CPU.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// One resource limit (setrlimit(2)); -1: unlimited.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ulimit {
    /// Lower-case name, such as `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// Bytes of one file before a new one is begun.
    pub max_size: u64,
    /// Files kept.
    pub max_files: u32,
    /// Keeps nothing.
    pub discard: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        // Docker keeps everything until the disk is full; a bound is safer, and larger than most logs.
        Self {
            max_size: 16 << 20,
            max_files: 4,
            discard: false,
        }
    }
}

impl ContainerConfig {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    /// One sentence that names what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.id.is_empty()
            || self.id.len() > 200
            || !self.id.chars().all(plain)
            || self.id.starts_with('.')
        {
            return Err(format!("\"{}\" cannot be the id of a container", self.id));
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err("there is no program to run: the image has neither entrypoint nor command, and none was given".into());
        }
        let words = self.argv.iter().chain(&self.env);
        if words.clone().map(|w| w.len() + 1).sum::<usize>() > WORDS_MAX {
            return Err(format!(
                "arguments and environment have more than {WORDS_MAX} bytes"
            ));
        }
        if words
            .clone()
            .chain([&self.cwd, &self.hostname])
            .any(|w| w.contains('\0'))
        {
            return Err("a NUL byte in arguments, environment, working directory or host name".into());
        }
        if self.hostname.len() > 64 {
            return Err(format!(
                "the host name {} is longer than 64 characters",
                self.hostname
            ));
        }
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            return Err(format!(
                "the root file system has {} layers; 1 to {LAYERS_MAX} are possible",
                self.layers.len()
            ));
        }
        if self.mounts.len() + self.files.len() > MOUNTS_MAX {
            return Err(format!("more than {MOUNTS_MAX} mounts"));
        }
        let targets = self
            .mounts
            .iter()
            .map(|m| &m.target)
            .chain(self.files.iter().map(|f| &f.target));
        for target in targets.chain(Some(&self.cwd).filter(|c| !c.is_empty())) {
            check_target(target)?;
        }
        Ok(())
    }
}

fn check_target(target: &str) -> Result<(), String> {
    let path = Path::new(target);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain {
        return Err(format!("{target} is no absolute path without \"..\""));
    }
    if target == "/proc" || target.starts_with("/proc/") {
        return Err(format!("{target}: nothing can be mounted on /proc"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_container_is_refused() {
        let good = ContainerConfig {
            id: "a".into(),
            argv: vec!["/bin/true".into()],
            layers: vec!["/x".into()],
            ..ContainerConfig::default()
        };
        assert_eq!(good.check(), Ok(()));
        let rows: [(&str, ContainerConfig); 7] = [
            (
                "an id with a slash",
                ContainerConfig {
                    id: "../a".into(),
                    ..good.clone()
                },
            ),
            (
                "no program",
                ContainerConfig {
                    argv: vec![],
                    ..good.clone()
                },
            ),
            (
                "a NUL byte",
                ContainerConfig {
                    env: vec!["A=\0".into()],
                    ..good.clone()
                },
            ),
            (
                "no layer",
                ContainerConfig {
                    layers: vec![],
                    ..good.clone()
                },
            ),
            (
                "a working directory that climbs",
                ContainerConfig {
                    cwd: "/a/../..".into(),
                    ..good.clone()
                },
            ),
            (
                "a relative working directory",
                ContainerConfig {
                    cwd: "a".into(),
                    ..good.clone()
                },
            ),
            (
                "words beyond the bound",
                ContainerConfig {
                    env: vec!["A".repeat(WORDS_MAX)],
                    ..good.clone()
                },
            ),
        ];
        for (name, config) in rows {
            assert!(config.check().is_err(), "{name}");
        }
    }
}
