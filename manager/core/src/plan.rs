//! The one function a leader calls: what changed → the next transaction and when to look again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::ids::IdSource;
use model::object::{Key, Object, Task};
use model::task_state::DesiredState;
use model::{NodeId, ServiceId, TaskId, Timestamp};

use crate::allocate;
use crate::node_health::Unheard;
use crate::orchestrate;
use crate::schedule;
use crate::state::{Scratch, State};
use crate::txn::{Changes, Txn};

/// What has to be looked at again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirty {
    services: BTreeSet<ServiceId>,
    nodes: BTreeSet<NodeId>,
    /// Names of services of which something changed that others may wait for.
    waited_for: BTreeSet<String>,
    /// Tasks ended for which those of removed services may have been kept.
    freed: bool,
    /// Room may have appeared: tasks without a node or an address are tried again.
    room: bool,
    /// A node takes tasks that took none, or a task that moved made way for another service's.
    joined: bool,
    all: bool,
}

impl Dirty {
    /// Everything, as after an election.
    pub fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds everything to what is known.
    pub fn add_everything(&mut self) {
        self.all = true;
    }

    /// Adds a service whose time has come (see [`Plan::wake`]).
    pub fn add_service(&mut self, id: ServiceId) {
        self.services.insert(id);
    }

    /// Adds what an entry changed.
    pub fn add(&mut self, changes: &Changes) {
        for change in &changes.items {
            match change.key {
                Key::Service(id) => {
                    self.services.insert(id);
                    for object in change.before.iter().chain(change.after.iter()) {
                        if let Object::Service(service) = object {
                            self.waited_for.insert(service.spec.name.clone());
                        }
                    }
                    self.room |= let_go(change.before.as_ref(), change.after.as_ref())
                        || shuns_less(change.before.as_ref(), change.after.as_ref());
                }
                Key::Node(id) => {
                    self.nodes.insert(id);
                    self.room = true;
                    self.joined |= joins(change.before.as_ref(), change.after.as_ref());
                }
                Key::Network(_) | Key::Cluster => self.room = true,
                Key::Task(_) => {
                    for object in change.before.iter().chain(change.after.iter()) {
                        if let Object::Task(task) = object {
                            self.services.insert(task.service);
                        }
                    }
                    self.add_task(change.before.as_ref(), change.after.as_ref());
                    self.room |= freed(change.before.as_ref(), change.after.as_ref());
                    self.joined |= moved(change.before.as_ref(), change.after.as_ref());
                }
                Key::Secret(_) | Key::Config(_) => {}
            }
        }
    }

    /// What others may wait for: how far a task is, and whether it ended.
    fn add_task(&mut self, before: Option<&Object>, after: Option<&Object>) {
        let task = |o: Option<&Object>| match o {
            Some(Object::Task(task)) => Some(task.clone()),
            _ => None,
        };
        let (before, after) = (task(before), task(after));
        let far = |t: &Arc<Task>| (t.status.state, t.status.unready, t.desired);
        let Some(either) = after.as_ref().or(before.as_ref()) else {
            return;
        };
        if before.as_ref().map(far) == after.as_ref().map(far) {
            return;
        }
        if !self.waited_for.contains(&either.service_name) {
            self.waited_for.insert(either.service_name.clone());
        }
        let goes = either.desired == DesiredState::Remove || after.is_none();
        self.freed |= goes && !either.spec.depends_on.is_empty();
    }

    /// Room may have appeared, as when a node is heard of (see [`Unheard`]).
    pub fn add_room(&mut self) {
        self.room = true;
    }

    /// A node may have joined unseen, as before an election.
    pub fn add_joined(&mut self) {
        self.joined = true;
    }

    /// Takes it, leaving nothing.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// Whether a node takes tasks, and took none or was not reached before.
fn joins(before: Option<&Object>, after: Option<&Object>) -> bool {
    let takes = |o: Option<&Object>| matches!(o, Some(Object::Node(n)) if schedule::filter::takes(n) && n.status.unreached.is_empty());
    !takes(before) && takes(after)
}

/// Whether a task that was to move did.
fn moved(before: Option<&Object>, after: Option<&Object>) -> bool {
    let live =
        |o: Option<&Object>| matches!(o, Some(Object::Task(t)) if t.moving > 0 && orchestrate::is_live(t));
    let stays = |o: Option<&Object>| matches!(o, Some(Object::Task(t)) if t.moving == 0);
    live(before) && !live(after) && !stays(after)
}

/// Whether a task gave back what it held of a node or a network.
fn freed(before: Option<&Object>, after: Option<&Object>) -> bool {
    let holds = |o: Option<&Object>| matches!(o, Some(Object::Task(t)) if !t.status.state.is_terminal());
    holds(before) && !holds(after)
}

/// Whether a service gave back a virtual address, which a task may be waiting for.
fn let_go(before: Option<&Object>, after: Option<&Object>) -> bool {
    let vips = |o: Option<&Object>| match o {
        Some(Object::Service(s)) => s.endpoint.vips.clone(),
        Some(
            Object::Cluster(_)
            | Object::Node(_)
            | Object::Task(_)
            | Object::Network(_)
            | Object::Secret(_)
            | Object::Config(_),
        )
        | None => Vec::new(),
    };
    let kept = vips(after);
    vips(before).iter().any(|v| !kept.contains(v))
}

/// Whether a service asks something else of what is beside it: others may have kept away for it.
fn shuns_less(before: Option<&Object>, after: Option<&Object>) -> bool {
    let Some(Object::Service(was)) = before else {
        return false;
    };
    let was = &was.spec.task.placement.affinity;
    let same = matches!(after, Some(Object::Service(is)) if is.spec.task.placement.affinity == *was);
    !was.is_empty() && !same
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The next transaction; empty when all is as it should be.
    pub txn: Txn,
    /// Services that want to be looked at again, and when.
    pub wake: BTreeMap<ServiceId, Timestamp>,
    /// Why tasks have no node or no address.
    pub report: BTreeMap<TaskId, String>,
}

/// Decides the next transaction for what is dirty. Applied to its own result it is empty. Nodes that are `unheard` get
/// nothing new.
pub fn plan(state: &State, dirty: &Dirty, unheard: &Unheard, now: Timestamp, ids: &mut dyn IdSource) -> Plan {
    let mut scratch = Scratch::new(state);
    let mut services = dirty.services.clone();
    let nodes: Vec<NodeId> = if dirty.all {
        services.extend(state.services().map(|s| s.id));
        services.extend(state.tasks().map(|t| t.service));
        state.nodes().map(|n| n.id).collect()
    } else {
        dirty.nodes.iter().copied().collect()
    };
    if state.has_dependents() {
        services.extend(dirty.waited_for.iter().flat_map(|name| state.dependents(name)));
    }
    // A node that is lost ends what removed services were kept for as well.
    if dirty.freed || (!nodes.is_empty() && state.has_dependents()) {
        services.extend(state.orphaned());
    }
    for node in nodes {
        let touched = scratch.touched();
        orchestrate::enforce_node(&mut scratch, node, &mut services);
        rely(&mut scratch, touched, Key::Node(node));
    }
    let mut wake = BTreeMap::new();
    let mut report = BTreeMap::new();
    let room = dirty.room || dirty.all;
    // Once: a move that is called off at once, as its last successor failed, is not begun again.
    let mut joined = dirty.joined;
    loop {
        for id in &services {
            let touched = scratch.touched();
            if let Some(at) = orchestrate::reconcile(&mut scratch, *id, now, ids) {
                wake.insert(*id, at);
            }
            rely(&mut scratch, touched, Key::Service(*id));
        }
        let mut open: Vec<Arc<Task>> = (scratch.unplaced())
            .filter(|t| room || services.contains(&t.service) || looks_again(t))
            .filter(|t| t.desired.is_live())
            .cloned()
            .collect();
        allocate::allocate(&mut scratch, &mut open, now, &mut report);
        if unheard.settles_at.is_some() {
            break;
        }
        // Those that make room get successors, which must not wait for the next entry to be told why they have none.
        services = schedule::schedule(&mut scratch, open, &unheard.nodes, now, &mut report);
        // Where everybody may be placed on: else a task would be moved where its successor cannot be.
        if std::mem::take(&mut joined)
            && unheard.nodes.is_empty()
            && !scratch.unplaced().any(|t| t.spec.priority > 0)
        {
            services.extend(orchestrate::joined::spread(&mut scratch));
        }
        if services.is_empty() {
            break;
        }
    }
    Plan {
        txn: scratch.into_txn(),
        wake,
        report,
    }
}

/// Whether a task that waits for a node is looked at in every plan: another's task may be the company it waits for, and where it
/// waits for room nobody else must take that.
fn looks_again(task: &Task) -> bool {
    task.spec.priority > 0 || schedule::affinity::wants_company(task)
}

/// What was decided for a service or a node is stale once that has changed: a slot that was closed may be wanted again.
fn rely(scratch: &mut Scratch, touched: usize, on: Key) {
    if scratch.touched() > touched {
        scratch.rely_on(on);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::NetworkId;
    use model::object::{Endpoint, Meta, Service};

    use model::spec::ServiceSpec;

    use super::*;
    use crate::txn::Change;

    #[test]
    fn a_service_that_gives_its_address_back_makes_room_for_tasks_that_wait_for_one() {
        let service = |addresses: &[&str]| {
            let vip = |a: &&str| (NetworkId(1), a.parse().expect("an address"));
            Object::Service(Arc::new(Service {
                endpoint: Endpoint {
                    ports: Vec::new(),
                    vips: addresses.iter().map(vip).collect(),
                },
                ..Service::new(ServiceId(1), Meta::default(), ServiceSpec::default())
            }))
        };
        let one = || Some(service(&["10.0.0.2"]));
        for (name, before, after, room) in [
            ("removed", one(), None, true),
            ("left the network", one(), Some(service(&[])), true),
            ("kept it", one(), one(), false),
            ("got one", Some(service(&[])), one(), false),
            ("never had one", Some(service(&[])), None, false),
        ] {
            let mut dirty = Dirty::default();
            let change = Change {
                key: Key::Service(ServiceId(1)),
                before,
                after,
            };
            dirty.add(&Changes {
                index: 1,
                items: vec![change],
            });
            assert_eq!(dirty.room, room, "{name}");
        }
    }
}
