//! The end of a run: faults end, and everything has to become as it is wanted.

use std::time::Duration;

use model::job::RunState;
use model::object::NodeState;
use model::spec::ServiceMode;
use model::task_state::{DesiredState, TaskState};

use super::cluster::Cluster;
use crate::invariants;

/// Time within which everything runs once faults have ended: rollouts and restart delays are part of it.
const HEAL: Duration = Duration::from_secs(240);
/// Time within which there is one leader and every node is heard of.
const FOUND: Duration = Duration::from_secs(30);
/// Time after that in which hosts give back the last of what is wanted no more.
const CLEARED: Duration = Duration::from_secs(15);

impl Cluster {
    /// Ends all faults, repairs what users broke, and demands that everything wanted runs.
    ///
    /// # Errors
    /// A broken invariant, or something that still does not run.
    pub fn heal(&mut self) -> Result<(), String> {
        self.faults = false;
        self.note("heals", "all faults end".into());
        let now = self.now;
        for host in self.hosts.values_mut() {
            (host.up, host.hears, host.heard) = (true, true, true);
            host.paused_until = host.paused_until.map(|_| now);
        }
        for manager in &mut self.managers.all {
            manager.cut_until = manager.cut_until.map(|_| now);
            manager.down_until = manager.down_until.map(|_| now);
        }
        self.back_on_at = None;
        self.advance(FOUND)?;
        if let Some(what) = self.not_found() {
            return Err(format!(
                "heals (I48): {what} {} s after the last fault",
                FOUND.as_secs()
            ));
        }
        self.managers_agree()?;
        if self.quiet {
            return self.still_untouched();
        }
        self.repair()?;
        let end = self.now + HEAL;
        while self.now < end && self.wrong().is_some() {
            self.advance(Duration::from_millis(200))?;
        }
        if let Some(what) = self.wrong() {
            let time = HEAL.as_secs();
            return Err(format!("converges (I48): {what} {time} s after the last fault"));
        }
        self.advance(CLEARED)?;
        self.managers_agree()?;
        invariants::check_quiet(self).map_or(Ok(()), Err)
    }

    /// A leader or a node that is missing.
    fn not_found(&self) -> Option<String> {
        if self.managers.lead.is_none() {
            return Some("no manager leads".into());
        }
        self.hosts.keys().find_map(|node| {
            let ready = self
                .state
                .node(*node)
                .is_some_and(|n| n.status.state == NodeState::Ready);
            (!ready || !self.is_connected(*node)).then(|| format!("node {} is not heard of", node.0))
        })
    }

    /// In a quiet run: the tasks of its beginning run, and there are no others (I41, M12, M25).
    fn still_untouched(&self) -> Result<(), String> {
        for id in &self.untouched {
            let runs = |n| self.hosts.get(&n).is_some_and(|h| h.runs(*id));
            let task = self.state.task(*id);
            if !task.is_some_and(|t| t.status.state == TaskState::Running && t.node.is_some_and(runs)) {
                let text = task.map(|t| (t.name(), t.status.state, t.desired));
                return Err(format!(
                    "untouched (I41): task {id} does not run any more: {text:?}"
                ));
            }
        }
        if self.state.tasks().count() != self.untouched.len() {
            return Err("untouched (I41): there are tasks that nobody asked for".into());
        }
        if self.counts.contains_key("node losses") {
            return Err("untouched (I42): a node was declared down".into());
        }
        Ok(())
    }

    /// What is not yet as it is wanted.
    pub(super) fn wrong(&self) -> Option<String> {
        for service in self.state.services() {
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => replicas as usize,
                ServiceMode::Global => self.hosts.len(),
                ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => {
                    let run = service.job.as_ref().and_then(|j| j.runs.last());
                    match run.filter(|r| r.state != RunState::Completed) {
                        Some(run) => return Some(format!("job {}: {run:?}", service.spec.name)),
                        None => continue,
                    }
                }
            };
            let running = self
                .state
                .tasks_of_service(service.id)
                .filter(|t| t.is_ready() && t.desired == DesiredState::Running)
                .filter(|t| *t.spec == service.spec.task)
                .count();
            let update = service.update.as_ref().filter(|u| u.state.is_active());
            if running != wanted || update.is_some() {
                let tasks: Vec<String> = self
                    .state
                    .tasks_of_service(service.id)
                    .map(|t| {
                        format!(
                            "{} {:?} {:?} {}",
                            t.name(),
                            t.desired,
                            t.status.state,
                            t.status.error
                        )
                    })
                    .collect();
                return Some(format!(
                    "tasks {tasks:?}; service {} runs {running} of {wanted}, {:?}",
                    service.spec.name,
                    service.update.as_ref().map(|u| (u.state, &u.message))
                ));
            }
        }
        for (node, host) in &self.hosts {
            let wanted = |id| {
                self.state
                    .task(id)
                    .is_some_and(|t| t.node == Some(*node) && t.desired.is_live())
            };
            if let Some(id) = host.tasks.keys().find(|id| host.runs(**id) && !wanted(**id)) {
                return Some(format!("node {} still runs the container of task {id}", node.0));
            }
        }
        let alone = self
            .state
            .tasks()
            .find(|t| self.state.service(t.service).is_none());
        alone.map(|t| format!("task {} has no service", t.name()))
    }
}
