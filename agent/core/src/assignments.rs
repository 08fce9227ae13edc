//! The assignment set of this node, brought forward frame by frame.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::assignment::{AssignmentDiff, AssignmentSet, Peer};
use model::object::Task;
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, TaskId};

/// Applies a difference.
pub fn apply(set: &mut AssignmentSet, diff: AssignmentDiff) {
    set.tasks.extend(diff.update.tasks);
    set.networks.extend(diff.update.networks);
    set.secrets.extend(diff.update.secrets);
    set.configs.extend(diff.update.configs);
    set.services.extend(diff.update.services);
    add_peers(&mut set.peers, &diff.update.peers);
    diff.remove_tasks.iter().for_each(|id| drop(set.tasks.remove(id)));
    diff.remove_networks
        .iter()
        .for_each(|id| drop(set.networks.remove(id)));
    diff.remove_secrets
        .iter()
        .for_each(|id| drop(set.secrets.remove(id)));
    diff.remove_configs
        .iter()
        .for_each(|id| drop(set.configs.remove(id)));
    diff.remove_services
        .iter()
        .for_each(|id| drop(set.services.remove(id)));
    for id in &diff.remove_peers {
        Arc::make_mut(&mut set.peers).remove(id);
    }
    set.held.extend(diff.update.held);
    for id in &diff.release {
        set.held.remove(id);
    }
}

type Peers = Arc<BTreeMap<NodeId, Peer>>;

fn add_peers(peers: &mut Peers, more: &Peers) {
    if !more.is_empty() {
        let more = more.iter().map(|(id, address)| (*id, address.clone()));
        Arc::make_mut(peers).extend(more);
    }
}

/// Of tasks that `run` on this node, those that took connections when the set was told: after a restart of the agent they
/// go on doing so before anybody has looked at their health again.
pub fn served(set: &AssignmentSet, run: &BTreeSet<TaskId>) -> Vec<TaskId> {
    let behind: BTreeSet<TaskId> = (set.services.values())
        .flat_map(|service| service.backends.iter().map(|backend| backend.task))
        .collect();
    let serves = |task: &&Arc<Task>| {
        task.desired == DesiredState::Running
            && !task.status.unready
            && (task.status.state == TaskState::Running || behind.contains(&task.id))
    };
    let tasks = run.iter().filter_map(|id| set.tasks.get(id));
    tasks.filter(serves).map(|task| task.id).collect()
}

/// Frames of a full set, collected until it is whole.
#[derive(Debug, Default)]
pub struct Frames {
    collected: Option<AssignmentDiff>,
    full: bool,
}

impl Frames {
    /// Takes one frame; answers the new set once the last frame of a change is in.
    pub fn take(
        &mut self,
        set: &AssignmentSet,
        frame: AssignmentDiff,
        full: bool,
        more: bool,
    ) -> Option<AssignmentSet> {
        let collected = self.collected.get_or_insert_default();
        self.full |= full;
        collected.update.tasks.extend(frame.update.tasks);
        collected.update.networks.extend(frame.update.networks);
        collected.update.secrets.extend(frame.update.secrets);
        collected.update.configs.extend(frame.update.configs);
        collected.update.services.extend(frame.update.services);
        add_peers(&mut collected.update.peers, &frame.update.peers);
        collected.remove_tasks.extend(frame.remove_tasks);
        collected.remove_networks.extend(frame.remove_networks);
        collected.remove_secrets.extend(frame.remove_secrets);
        collected.remove_configs.extend(frame.remove_configs);
        collected.remove_services.extend(frame.remove_services);
        collected.remove_peers.extend(frame.remove_peers);
        collected.update.held.extend(frame.update.held);
        collected.release.extend(frame.release);
        if more {
            return None;
        }
        let full = std::mem::take(&mut self.full);
        let change = self.collected.take().unwrap_or_default();
        let mut next = if full {
            AssignmentSet::default()
        } else {
            set.clone()
        };
        apply(&mut next, change);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::assignment::{Backend, ServiceEndpoints};
    use model::object::{Meta, SlotKey, TaskStatus};
    use model::spec::{EndpointMode, TaskSpec};
    use model::{ServiceId, Timestamp};

    fn task(id: u128, desired: DesiredState, state: TaskState) -> Task {
        let mut status = TaskStatus::new(Timestamp(0));
        status.state = state;
        Task {
            id: TaskId(id),
            meta: Meta::default(),
            service: ServiceId(9),
            service_name: "web".into(),
            slot: SlotKey::Replica(1),
            spec: Arc::new(TaskSpec::default()),
            spec_version: 1,
            node: None,
            desired,
            run_at: Timestamp(0),
            status,
            running_at: None,
            unready_at: None,
            ended_at: None,
            addresses: Vec::new(),
            host_ports: Vec::new(),
            iteration: 0,
            fence: 0,
            granted: Default::default(),
            moving: 0,
        }
    }

    fn unready(mut task: Task) -> Task {
        task.status.unready = true;
        task
    }

    #[test]
    fn what_served_goes_on_serving_and_nothing_else_does() {
        use DesiredState::{Running, Shutdown};
        let mut set = AssignmentSet::default();
        for one in [
            task(1, Running, TaskState::Running),
            // Told before it ran, and again as one that takes connections.
            task(2, Running, TaskState::Starting),
            task(3, Running, TaskState::Starting),
            task(4, Shutdown, TaskState::Running),
            task(5, Running, TaskState::Running),
            unready(task(7, Running, TaskState::Running)),
        ] {
            set.tasks.insert(one.id, Arc::new(one));
        }
        let backend = |id| Backend {
            task: TaskId(id),
            node: None,
            name: format!("web.{id}"),
            addresses: Vec::new(),
        };
        let service = ServiceEndpoints {
            id: ServiceId(9),
            name: "web".into(),
            mode: EndpointMode::Vip,
            networks: Vec::new(),
            ports: Vec::new(),
            backends: vec![backend(2), backend(4), backend(7), backend(77)],
            others: vec![backend(3)],
            encrypted: Vec::new(),
        };
        set.services.insert(service.id, Arc::new(service));
        // The fifth does not run any more, the sixth was never assigned.
        let run = [1, 2, 3, 4, 6, 7].map(TaskId).into_iter().collect();
        assert_eq!(served(&set, &run), [1, 2].map(TaskId));
    }
}
