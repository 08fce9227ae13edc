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
    /// Which of the nodes that fit is the best.
    pub strategy: PlacementStrategy,
    /// `service==NAME` or `service!=NAME`, all of which must hold when a task is placed: the node has a task of that service, or
    /// none. Kept as written; parsed by the manager.
    pub affinity: Vec<String>,
}

/// Which of the nodes that fit is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlacementStrategy {
    /// The one with the fewest tasks of the service, then the emptiest.
    #[default]
    Spread,
    /// The fullest, so that few nodes are used.
    Binpack,
}

impl PlacementStrategy {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Binpack => "binpack",
        }
    }
}

impl std::str::FromStr for PlacementStrategy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "spread" => Ok(Self::Spread),
            "binpack" => Ok(Self::Binpack),
            other => Err(format!("there is no strategy {other}: use spread or binpack")),
        }
    }
}

/// When the tasks of a service are spread anew over the nodes there are, without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rebalance {
    /// Never: they stay where they are.
    #[default]
    Never,
    /// When a node joins, comes back or takes tasks again.
    OnJoin,
}

impl Rebalance {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnJoin => "on-join",
        }
    }
}

impl std::str::FromStr for Rebalance {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            "on-join" => Ok(Self::OnJoin),
            other => Err(format!(
                "there is no time {other} to rebalance: use never or on-join"
            )),
        }
    }
}

/// Highest priority of a task. It is 0 where none is given.
pub const PRIORITY_MAX: u32 = 100;

/// Operating system and processor, in Go's words (`linux`, `amd64`); empty matches any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
}
