//! What has to hold of other services before a task may run.

use super::{RestartCondition, ServiceSpec};

/// Most services that one depends on.
pub const DEPENDENCIES_MAX: usize = 32;

/// What has to hold of another service before a task runs, while no other task of its own service does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dependency {
    /// Full name of the other service.
    pub service: String,
    /// What has to hold of it.
    pub condition: DependencyCondition,
    /// It is left out of account as long as there is no such service.
    pub optional: bool,
}

/// What has to hold of a service that another one depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DependencyCondition {
    /// At least one task runs; of a job, or where tasks end for good: one has run.
    #[default]
    Started,
    /// Every task that is wanted runs and is healthy and ready.
    Healthy,
    /// The newest run of the job completed; where tasks end for good: each ended with success.
    Completed,
}

impl DependencyCondition {
    /// Its name in compose files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "service_started",
            Self::Healthy => "service_healthy",
            Self::Completed => "service_completed_successfully",
        }
    }

    /// By its name in compose files, or a short one: `started`, `healthy`, `completed`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "service_started" | "started" => Some(Self::Started),
            "service_healthy" | "healthy" => Some(Self::Healthy),
            "service_completed_successfully" | "completed" => Some(Self::Completed),
            _ => None,
        }
    }
    /// Why it can never hold of such a service, if so.
    pub fn never(self, of: &ServiceSpec) -> Option<&'static str> {
        let ends = of.mode.is_job() || of.task.restart.condition != RestartCondition::Any;
        match self {
            Self::Completed if !ends => Some(
                "is started again whenever it ends, so it never completes: make it a replicated-job, or give it the restart condition \
                 none or on-failure",
            ),
            Self::Healthy if of.mode.is_job() => {
                Some("is a job, which is done and not healthy: use service_completed_successfully")
            }
            Self::Started | Self::Healthy | Self::Completed => None,
        }
    }
}
