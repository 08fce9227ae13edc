//! Where a task may run.

/// Bounds on where tasks of a service run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// `key==value` or `key!=value`, all of which must hold. Kept as written; parsed by the manager.
    pub constraints: Vec<String>,
    /// Labels whose values share the tasks evenly, the outermost first, such as `node.labels.zone`.
    pub spread: Vec<String>,
    /// Most tasks of the service on one node; 0: no bound.
    pub max_replicas_per_node: u32,
    /// Platforms the image runs on; empty: any.
    pub platforms: Vec<Platform>,
}

/// Operating system and processor, in Go's words (`linux`, `amd64`); empty matches any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
}
