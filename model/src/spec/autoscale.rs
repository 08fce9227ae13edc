//! A number of replicas that follows what the tasks use.

use std::time::Duration;

/// By what the cluster itself chooses the replicas of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoscale {
    /// Fewest replicas, at least 1.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// Per cent of its CPUs that a task is to use on average; absent: CPU does not count. Its CPUs are what it reserves, else its
    /// limit, else one.
    pub cpu: Option<u32>,
    /// Per cent of its memory that a task is to use on average; absent: memory does not count. Its memory is what it reserves, else
    /// its limit.
    pub memory: Option<u32>,
    /// For so long fewer have to be enough before there are fewer.
    pub scale_down_after: Duration,
}

/// As Kubernetes has it.
pub const SCALE_DOWN_AFTER: Duration = Duration::from_secs(300);
