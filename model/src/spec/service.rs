//! A service: how many tasks of which shape, and how they change.

use super::{
    ContainerSpec, EndpointSpec, Labels, LogDriver, NetworkAttachment, OnDisconnect, Placement, Resources,
    RestartPolicy, UpdateConfig,
};

/// A service as the user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceSpec {
    /// Unique in the cluster; see [`super::check_name`].
    pub name: String,
    /// Labels of the service (not of its containers).
    pub labels: Labels,
    /// What each task runs.
    pub task: TaskSpec,
    /// How many tasks.
    pub mode: ServiceMode,
    /// How a change is rolled out.
    pub update: UpdateConfig,
    /// How a rollback is rolled out.
    pub rollback: UpdateConfig,
    /// Names and ports under which the service is reached.
    pub endpoint: EndpointSpec,
}

/// How many tasks a service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceMode {
    /// A number of tasks, each with a slot number from 1.
    Replicated {
        /// Wanted number of tasks, at most [`REPLICAS_MAX`].
        replicas: u32,
    },
    /// One task on every node that fits.
    Global,
}

/// Most replicas of one service: one transaction that opens them all stays below the size of a Raft entry.
pub const REPLICAS_MAX: u32 = 10_000;

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What each task of a service runs, where it may run and what happens when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskSpec {
    /// The container.
    pub container: ContainerSpec,
    /// What it may use and what is kept free for it.
    pub resources: Resources,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// Networks it joins, the first one being its default route.
    pub networks: Vec<NetworkAttachment>,
    /// Where its output goes.
    pub log: LogDriver,
    /// Counts `--force`: a change of it alone replaces every task.
    pub force_update: u64,
    /// What becomes of it when its node is cut off.
    pub on_disconnect: OnDisconnect,
    /// Where there is no room for it, tasks of a lower one make some: 0 to [`PRIORITY_MAX`](super::PRIORITY_MAX).
    pub priority: u32,
}
