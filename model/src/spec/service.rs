//! A service: how many tasks of which shape, and how they change.

use super::{
    Autoscale, ContainerSpec, Dependency, EndpointSpec, Labels, LogDriver, NetworkAttachment, OnDisconnect,
    Placement, Rebalance, Resources, RestartPolicy, Schedule, UpdateConfig, UpdateOrder,
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
    /// When a job runs; absent: once, when it is made or what it runs changes.
    pub schedule: Option<Schedule>,
    /// By what the cluster chooses the replicas; absent: they are as many as were asked for.
    pub autoscale: Option<Autoscale>,
    /// When its tasks are spread anew without being asked. No part of what a task runs: a change of it restarts none.
    pub rebalance: Rebalance,
}

impl ServiceSpec {
    /// Whether a task must have ended before another has its slot: what it runs must never run twice, and no rollout of the
    /// service says otherwise by starting first.
    pub fn is_exclusive(&self, task: &TaskSpec) -> bool {
        matches!(task.on_disconnect, OnDisconnect::StopAfter(_))
            && self.update.order == UpdateOrder::StopFirst
    }

    /// Bytes it takes, roughly: of what has no small bound.
    pub fn weight(&self) -> usize {
        let c = &self.task.container;
        let words = [
            &c.command,
            &c.args,
            &c.env,
            &c.groups,
            &c.cap_add,
            &c.cap_drop,
            &self.task.placement.constraints,
        ];
        let hooks = [&c.pre_start, &c.post_start, &c.pre_stop].into_iter().flatten();
        let hooks = hooks
            .flat_map(|h| h.command.iter().chain(&h.env))
            .map(|w| w.len() + 16);
        let checks = [&c.healthcheck, &c.readiness].into_iter().flatten();
        let checks = checks.flat_map(|h| &h.test).map(|w| w.len() + 16);
        let words = words
            .into_iter()
            .flatten()
            .chain(&self.task.placement.affinity)
            .map(String::len);
        let words = words.chain(hooks).chain(checks);
        let pairs = (self
            .labels
            .iter()
            .chain(&c.labels)
            .chain(&c.sysctls)
            .chain(&self.task.log.options))
        .map(|(k, v)| k.len() + v.len());
        let entries = c.mounts.len() + c.secrets.len() + c.configs.len() + c.hosts.len() + c.ulimits.len();
        let entries = entries + self.endpoint.ports.len() + self.task.networks.len();
        // Small fields, and the average mount or port.
        512 + words.sum::<usize>() + pairs.sum::<usize>() + 100 * entries
    }
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
    /// A number of tasks that each run until one of them completed, with slot numbers from 1.
    ReplicatedJob {
        /// How many are to complete, at most [`REPLICAS_MAX`].
        completions: u32,
        /// Most that run at a time; 0: all.
        max_concurrent: u32,
    },
    /// One task that runs until it completed on every node that takes tasks and fits.
    GlobalJob,
}

impl ServiceMode {
    /// Whether its tasks are to end.
    pub const fn is_job(&self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }

    /// Whether it has its tasks by node.
    pub const fn is_global(&self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob)
    }

    /// Its name, as flags and filters have it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Replicated { .. } => "replicated",
            Self::Global => "global",
            Self::ReplicatedJob { .. } => "replicated-job",
            Self::GlobalJob => "global-job",
        }
    }

    /// Of a replicated job: how many run at a time.
    pub fn concurrent(&self) -> Option<u32> {
        match *self {
            Self::ReplicatedJob {
                completions,
                max_concurrent,
            } => Some(if max_concurrent == 0 {
                completions
            } else {
                max_concurrent
            }),
            Self::Replicated { .. } | Self::Global | Self::GlobalJob => None,
        }
    }
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
    /// What has to hold of other services before it runs, at most [`DEPENDENCIES_MAX`](super::DEPENDENCIES_MAX). It stands here so that
    /// the tasks of a service that was removed still know.
    pub depends_on: Vec<Dependency>,
    /// Where there is no room for it, tasks of a lower one make some: 0 to [`PRIORITY_MAX`](super::PRIORITY_MAX).
    pub priority: u32,
}
