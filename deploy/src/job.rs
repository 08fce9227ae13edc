//! `deploy.mode`, and the schedule of a job.

use model::spec::{Concurrency, HISTORY_DEFAULT, RestartCondition, RestartPolicy, Schedule, ServiceMode};

use crate::convert::{at, duration, parsed, restart, text};
use crate::node::Node;
use crate::problem::Report;

/// How many tasks a service has: what `deploy` says of its mode.
pub(crate) fn mode(node: &Node, path: &str, report: &mut Report) -> ServiceMode {
    let number = |key: &str| parsed(node, &["deploy", key]);
    let mode = match at(node, &["deploy", "mode"]).and_then(Node::scalar) {
        Some("global") => ServiceMode::Global,
        Some("global-job") => ServiceMode::GlobalJob,
        Some("replicated-job") => ServiceMode::ReplicatedJob {
            completions: number("replicas").unwrap_or(1),
            max_concurrent: number("max_concurrent").unwrap_or(0),
        },
        Some(_) | None => ServiceMode::Replicated {
            replicas: number("replicas").unwrap_or(1),
        },
    };
    let mut only = |key: &str, allowed: bool, why: &str| {
        if let Some(n) = at(node, &["deploy", key]).filter(|_| !allowed) {
            report.problem(n.at, &format!("{path}.deploy.{key}"), why);
        }
    };
    only(
        "replicas",
        !mode.is_global(),
        "a global service runs once on every node: take replicas or mode out",
    );
    only(
        "max_concurrent",
        matches!(mode, ServiceMode::ReplicatedJob { .. }),
        "is for mode replicated-job: take it or mode out",
    );
    only(
        "schedule",
        mode.is_job(),
        "is for jobs: write mode: replicated-job or global-job",
    );
    only(
        "update_config",
        !mode.is_job(),
        "a job has no rollout: take it out",
    );
    only(
        "rollback_config",
        !mode.is_job(),
        "a job has no rollout: take it out",
    );
    mode
}

/// When a job runs.
pub(crate) fn schedule(node: &Node) -> Option<Schedule> {
    let schedule = at(node, &["deploy", "schedule"])?;
    Some(Schedule {
        cron: text(schedule, &["cron"]),
        timezone: text(schedule, &["timezone"]),
        concurrency: Concurrency::named(&text(schedule, &["concurrency"])).unwrap_or_default(),
        history: parsed(schedule, &["history"]).unwrap_or(HISTORY_DEFAULT),
        starting_deadline: duration(schedule, &["starting_deadline"]).unwrap_or_default(),
    })
}

/// What happens when a task ends: `deploy.restart_policy`, else `restart`; a job that says nothing runs until it completed.
pub(crate) fn restart_policy(node: &Node, mode: &ServiceMode) -> RestartPolicy {
    let default = RestartPolicy {
        condition: if mode.is_job() {
            RestartCondition::OnFailure
        } else {
            RestartCondition::Any
        },
        ..RestartPolicy::default()
    };
    let Some(policy) = at(node, &["deploy", "restart_policy"]) else {
        return restart(&text(node, &["restart"])).unwrap_or(default);
    };
    RestartPolicy {
        condition: match text(policy, &["condition"]).as_str() {
            "none" => RestartCondition::None,
            "on-failure" => RestartCondition::OnFailure,
            "any" => RestartCondition::Any,
            _ => default.condition,
        },
        delay: duration(policy, &["delay"]).unwrap_or(default.delay),
        max_attempts: parsed(policy, &["max_attempts"]).unwrap_or(0),
        window: duration(policy, &["window"]).unwrap_or_default(),
        max_delay: duration(policy, &["max_delay"]).unwrap_or_default(),
        reset_after: duration(policy, &["reset_after"]).unwrap_or(default.reset_after),
    }
}
