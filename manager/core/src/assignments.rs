//! What a node may see: exactly its tasks, and of the rest only what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::assignment::{AssignmentDiff, AssignmentSet, Backend, Peer, ServiceEndpoints, ServiceNetwork};
use model::object::{Node, Object, Service, Task};
use model::spec::{EndpointMode, PublishMode};
use model::task_state::TaskState;
use model::{NetworkId, NodeId, ServiceId, Timestamp};

use crate::state::State;
use crate::txn::Changes;

/// How old what a node is told of the services may be, for each node of the cluster.
const VIEWS_AGE_PER_NODE: Duration = Duration::from_millis(2);
/// The same, however many nodes there are.
const VIEWS_AGE_MAX: Duration = Duration::from_secs(2);

/// How old what a node is told of the services may be in a cluster of so many nodes: nothing much in a small one, a
/// second with 500.
pub fn views_age(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    VIEWS_AGE_PER_NODE.saturating_mul(nodes).min(VIEWS_AGE_MAX)
}

/// When all nodes are to ask again for their [`Views`], so that they learn of the last change, and of many changes
/// shortly after one another together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rounds {
    changed: Timestamp,
    due: Option<Timestamp>,
}

impl Rounds {
    /// Something changed that all may see.
    pub fn change(&mut self, now: Timestamp) {
        self.changed = now;
        self.due.get_or_insert(now);
    }

    /// When the next round is due.
    pub fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// All were told to ask, with views that may be `age` old: one may have been made just before the last change.
    pub fn done(&mut self, now: Timestamp, age: Duration) {
        self.due = (self.changed + age > now).then_some(now + age);
    }
}

/// How services are reached, worked out once for all nodes, and kept as one object while it stays the same.
#[derive(Debug, Default)]
pub struct Views {
    known: BTreeMap<ServiceId, (Timestamp, u64, Arc<ServiceEndpoints>)>,
    common: Common,
    /// The entry as of which it is known where nodes are.
    peers_of: u64,
    /// The same of services that are gone, and when that was looked at.
    leaving_of: (Timestamp, u64),
}

/// What all nodes are told alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Common {
    /// Where the nodes are.
    pub peers: Arc<BTreeMap<NodeId, Peer>>,
    /// Services that are gone, and where their tasks are, to which clients still have connections.
    pub leaving: Arc<Vec<Arc<ServiceEndpoints>>>,
}

impl Common {
    /// What it is in a state.
    pub fn of(state: &State) -> Self {
        let leaving = state.orphaned().into_iter().filter_map(|id| leaving(state, id));
        Self {
            peers: Arc::new(peers(state)),
            leaving: Arc::new(leaving.map(Arc::new).collect()),
        }
    }
}

fn peers(state: &State) -> BTreeMap<NodeId, Peer> {
    state.nodes().map(|n| (n.id, peer(n))).collect()
}

fn peer(node: &Node) -> Peer {
    Peer {
        address: node.description.address.clone(),
        key: node.description.tunnel_key,
        answers: node.description.answers,
    }
}

/// Those networks of tasks that are encrypted; also of one that is gone they know it.
fn encrypted<'a>(tasks: impl Iterator<Item = &'a Arc<Task>>) -> Vec<NetworkId> {
    let networks = tasks.flat_map(|t| &t.spec.networks).filter(|n| n.encrypted);
    let networks: BTreeSet<NetworkId> = networks.map(|n| n.network).collect();
    networks.into_iter().collect()
}

/// A service that is gone, while any of its tasks is somewhere.
fn leaving(state: &State, id: ServiceId) -> Option<ServiceEndpoints> {
    let placed: Vec<&Arc<Task>> = state.tasks_of_service(id).filter(|t| is_placed(t)).collect();
    let others: Vec<Backend> = placed.iter().map(|t| backend(t)).collect();
    Some(ServiceEndpoints {
        id,
        encrypted: encrypted(placed.iter().copied()),
        name: placed.first()?.service_name.clone(),
        mode: EndpointMode::DnsRr,
        networks: Vec::new(),
        ports: Vec::new(),
        backends: Vec::new(),
        others,
    })
}

impl Views {
    /// The next caller gets a service as it is.
    pub fn renew(&mut self, service: ServiceId) {
        self.known.remove(&service);
    }

    /// What all nodes are told alike, as the same objects while they stay the same; services that are gone at most `age` old.
    pub fn common(&mut self, state: &State, now: Timestamp, age: Duration) -> Common {
        let known = &mut self.common;
        if self.peers_of < state.index() {
            self.peers_of = state.index();
            let fresh = peers(state);
            if *known.peers != fresh {
                known.peers = Arc::new(fresh);
            }
        }
        if self.leaving_of.1 < state.index() {
            let gone = state.orphaned();
            // One that has just gone is told of at once: its tasks have clients.
            let told = |id: &ServiceId| known.leaving.iter().any(|s| s.id == *id);
            if now.since(self.leaving_of.0) >= age || !gone.iter().all(told) {
                self.leaving_of = (now, state.index());
                let fresh: Vec<_> = gone.into_iter().filter_map(|id| leaving(state, id)).collect();
                if !fresh.iter().eq(known.leaving.iter().map(|s| &**s)) {
                    known.leaving = Arc::new(fresh.into_iter().map(Arc::new).collect());
                }
            }
        }
        known.clone()
    }

    /// How a service is reached, at most `age` old; `now` is a time before the state was read. A caller with an older
    /// state than another had before gets what that one got.
    ///
    /// Where every node must be told of the last change, all have to ask again `age` after it: see [`Rounds`].
    pub fn of(
        &mut self,
        state: &State,
        service: &Service,
        now: Timestamp,
        age: Duration,
    ) -> Arc<ServiceEndpoints> {
        let known = self.known.get(&service.id);
        if let Some((at, index, view)) = known
            && (*index >= state.index() || now.since(*at) < age)
        {
            return view.clone();
        }
        let mut fresh = Arc::new(endpoints(state, service));
        if let Some((.., old)) = known.filter(|(.., old)| **old == *fresh) {
            fresh = old.clone();
        }
        self.known.insert(service.id, (now, state.index(), fresh.clone()));
        if self.known.len() > state.service_count() {
            self.known.retain(|id, _| state.service(*id).is_some());
        }
        fresh
    }
}

/// Everything a node may see.
pub fn for_node(state: &State, node: NodeId) -> AssignmentSet {
    for_node_by(state, node, &Common::of(state), &mut |service| {
        Arc::new(endpoints(state, service))
    })
}

/// The same, with the services as `view` has them, and what all are told.
pub fn for_node_by(
    state: &State,
    node: NodeId,
    common: &Common,
    view: &mut dyn FnMut(&Service) -> Arc<ServiceEndpoints>,
) -> AssignmentSet {
    let mut set = AssignmentSet::default();
    for task in state
        .tasks_of_node(node)
        .filter(|t| t.status.state >= TaskState::Assigned)
    {
        set.tasks.insert(task.id, task.clone());
        let unfinished = !task.status.state.is_terminal();
        if unfinished {
            for (network, _) in &task.addresses {
                if let Some(n) = state.network(*network) {
                    set.networks.insert(*network, n.clone());
                }
            }
        }
        if unfinished && task.desired.is_live() {
            for secret in &task.spec.container.secrets {
                if let Some(s) = state.secret(secret.id) {
                    set.secrets.insert(s.id, s.clone());
                }
            }
            for config in &task.spec.container.configs {
                if let Some(c) = state.config(config.id) {
                    set.configs.insert(c.id, c.clone());
                }
            }
        }
    }
    let near: BTreeSet<NetworkId> = set.networks.keys().copied().collect();
    for service in state.services().filter(|s| reaches(s, &near)) {
        set.services.insert(service.id, view(service));
    }
    for service in common.leaving.iter().filter(|s| leaves(s, &near)) {
        set.services.insert(service.id, service.clone());
    }
    // Who has nothing that others reach needs nobody.
    if !(set.services.is_empty() && set.networks.is_empty()) {
        set.peers = common.peers.clone();
    }
    set
}

/// Whether a node with tasks in `near` reaches a service: by a network, or by a port published everywhere.
fn reaches(service: &Service, near: &BTreeSet<NetworkId>) -> bool {
    service
        .spec
        .task
        .networks
        .iter()
        .any(|n| near.contains(&n.network))
        || service
            .endpoint
            .ports
            .iter()
            .any(|p| p.mode == PublishMode::Ingress)
}

/// Tasks of a service that is gone of which all nodes are told, as any may have clients of its ports. Of more those alone
/// that have a network in common with it.
const LEAVING_MAX: usize = 100;

/// Whether a node with tasks in `near` is told of a service that is gone.
fn leaves(service: &ServiceEndpoints, near: &BTreeSet<NetworkId>) -> bool {
    let shares = |task: &Backend| task.addresses.iter().any(|(network, _)| near.contains(network));
    service.others.len() <= LEAVING_MAX || service.others.iter().any(shares)
}

/// How a service is reached.
pub fn endpoints(state: &State, service: &Service) -> ServiceEndpoints {
    let vips = |network: NetworkId| {
        let all = service.endpoint.vips.iter().filter(move |(n, _)| *n == network);
        all.map(|(_, vip)| *vip).collect()
    };
    let tasks = |which: &dyn Fn(&Task) -> bool| -> Vec<Backend> {
        let all = state.tasks_of_service(service.id);
        all.filter(|t| which(t)).map(|t| backend(t)).collect()
    };
    let (backends, others) = (tasks(&serves), tasks(&|t| is_placed(t) && !serves(t)));
    ServiceEndpoints {
        id: service.id,
        encrypted: encrypted(state.tasks_of_service(service.id).filter(|t| is_placed(t))),
        name: service.spec.name.clone(),
        mode: service.spec.endpoint.mode,
        networks: service
            .spec
            .task
            .networks
            .iter()
            .map(|n| ServiceNetwork {
                network: n.network,
                aliases: n.aliases.clone(),
                vips: vips(n.network),
            })
            .collect(),
        ports: service
            .endpoint
            .ports
            .iter()
            .filter(|p| p.mode == PublishMode::Ingress)
            .cloned()
            .collect(),
        backends,
        others,
    }
}

/// Whether a task takes connections.
fn serves(task: &Task) -> bool {
    task.is_ready() && task.desired == model::task_state::DesiredState::Running
}

/// Whether a task has a node where it may send and be sent to.
fn is_placed(task: &Task) -> bool {
    task.node.is_some() && task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

/// What others are told of a task: how it is reached, and whether it takes connections.
fn seen(task: &Task) -> Option<(Backend, bool)> {
    is_placed(task).then(|| (backend(task), serves(task)))
}

fn backend(task: &Task) -> Backend {
    Backend {
        task: task.id,
        node: task.node,
        name: task.name(),
        addresses: task.addresses.clone(),
    }
}

/// What has to be told to a node that knows `old`.
pub fn diff(old: &AssignmentSet, new: &AssignmentSet) -> AssignmentDiff {
    fn changed<K: Ord + Copy, V: PartialEq + Clone>(
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> (BTreeMap<K, V>, Vec<K>) {
        let update = new
            .iter()
            .filter(|(k, v)| old.get(k) != Some(v))
            .map(|(k, v)| (*k, v.clone()))
            .collect();
        let removed = old.keys().filter(|k| !new.contains_key(k)).copied().collect();
        (update, removed)
    }
    let mut diff = AssignmentDiff::default();
    (diff.update.tasks, diff.remove_tasks) = changed(&old.tasks, &new.tasks);
    (diff.update.networks, diff.remove_networks) = changed(&old.networks, &new.networks);
    (diff.update.secrets, diff.remove_secrets) = changed(&old.secrets, &new.secrets);
    (diff.update.configs, diff.remove_configs) = changed(&old.configs, &new.configs);
    (diff.update.services, diff.remove_services) = changed(&old.services, &new.services);
    if !Arc::ptr_eq(&old.peers, &new.peers) {
        let (more, gone) = changed(&old.peers, &new.peers);
        (diff.update.peers, diff.remove_peers) = (Arc::new(more), gone);
    }
    diff.update.held = new.held.difference(&old.held).copied().collect();
    diff.release = old.held.difference(&new.held).copied().collect();
    diff
}

/// Whose view an entry may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Affected {
    /// The nodes of the changed tasks.
    pub nodes: BTreeSet<NodeId>,
    /// Any node: a service or network changed, a task came, went, or began or ceased to take connections, or a node has
    /// another address or key.
    pub everyone: bool,
}

/// Whose view an entry may have changed.
pub fn affected(changes: &Changes) -> Affected {
    let mut affected = Affected::default();
    for change in &changes.items {
        for object in change.before.iter().chain(change.after.iter()) {
            match object {
                Object::Service(_) | Object::Network(_) | Object::Secret(_) | Object::Config(_) => {
                    affected.everyone = true;
                }
                Object::Task(t) => affected.nodes.extend(t.node),
                Object::Cluster(_) | Object::Node(_) => {}
            }
        }
        affected.everyone |= match (&change.before, &change.after) {
            (Some(Object::Task(before)), Some(Object::Task(after))) => seen(before) != seen(after),
            (Some(Object::Node(before)), Some(Object::Node(after))) => peer(before) != peer(after),
            (Some(Object::Task(task)), None) | (None, Some(Object::Task(task))) => is_placed(task),
            (Some(Object::Node(_)), None) | (None, Some(Object::Node(_))) => true,
            _ => false,
        };
    }
    affected
}

/// The nodes whose view an entry may have changed.
pub fn nodes_affected(state: &State, changes: &Changes) -> BTreeSet<NodeId> {
    let affected = affected(changes);
    if affected.everyone {
        return state.nodes().map(|n| n.id).collect();
    }
    affected.nodes
}

#[cfg(test)]
mod tests {
    use model::TaskId;
    use model::object::{Meta, SlotKey, TaskStatus};
    use model::task_state::DesiredState;

    use model::spec::ServiceSpec;

    use super::*;
    use crate::txn::{Action, Entry, Txn};

    /// One that runs.
    fn a_task() -> Task {
        Task {
            id: TaskId(7),
            meta: Meta::default(),
            service: ServiceId(1),
            service_name: "web".into(),
            slot: SlotKey::Replica(1),
            spec: Arc::default(),
            spec_version: 1,
            node: None,
            desired: DesiredState::Running,
            run_at: Timestamp(0),
            status: TaskStatus {
                state: TaskState::Running,
                ..TaskStatus::new(Timestamp(0))
            },
            running_at: None,
            unready_at: None,
            ended_at: None,
            fence: 0,
            granted: Default::default(),
            moving: 0,
            addresses: Vec::new(),
            host_ports: Vec::new(),
            iteration: 0,
        }
    }

    #[test]
    fn one_that_is_not_ready_is_left_out_and_all_are_told() {
        let placed = |unready, message: &str| {
            let mut task = Task {
                node: Some(NodeId(3)),
                ..a_task()
            };
            task.status.unready = unready;
            task.status.message = message.into();
            task
        };
        let changes = |before: Task, after: Task| Changes {
            index: 2,
            items: vec![crate::txn::Change {
                key: model::object::Key::Task(before.id),
                before: Some(Object::Task(Arc::new(before))),
                after: Some(Object::Task(Arc::new(after))),
            }],
        };
        for (name, before, after, everyone) in [
            ("lost", placed(false, "started"), placed(true, "not ready"), true),
            ("back", placed(true, "not ready"), placed(false, "started"), true),
            (
                "words",
                placed(true, "not ready"),
                placed(true, "not ready: x"),
                false,
            ),
        ] {
            let affected = affected(&changes(before, after));
            assert_eq!(affected.everyone, everyone, "{name}");
            assert_eq!(affected.nodes, [NodeId(3)].into(), "{name}");
        }
        let service = Service::new(ServiceId(1), Meta::default(), ServiceSpec::default());
        let told = |unready| {
            let task = Object::Task(Arc::new(placed(unready, "")));
            let state = State::from_objects(1, vec![Object::Service(Arc::new(service.clone())), task]);
            let view = endpoints(&state, &service);
            (view.backends.len(), view.others.len())
        };
        assert_eq!((told(false), told(true)), ((1, 0), (0, 1)));
    }

    #[test]
    fn rounds_end_with_what_changed_last_and_are_an_age_apart() {
        const AGE: u64 = 100;
        for changes in [
            &[5][..],
            &[5, 6],
            &[5, 104, 105, 106],
            &[5, 50, 99, 150, 300],
            &[5, 105, 205, 204],
        ] {
            let mut rounds = Rounds::default();
            let (mut version, mut view) = (0, (0, 0));
            let look = |view: &mut (u64, usize), now: u64, version| {
                if now - view.0 >= AGE {
                    *view = (now, version);
                }
            };
            let mut told = Vec::new();
            for now in 0..1_000 {
                if changes.contains(&now) {
                    // A node with tasks of its own asks at the worst moment.
                    look(&mut view, now, version);
                    version += 1;
                    rounds.change(Timestamp(now));
                }
                if rounds.due().is_some_and(|due| due <= Timestamp(now)) {
                    look(&mut view, now, version);
                    told.push(now);
                    rounds.done(Timestamp(now), Duration::from_millis(AGE));
                }
            }
            assert_eq!((view.1, rounds.due()), (version, None), "{changes:?}");
            assert!(told.windows(2).all(|w| w[1] - w[0] >= AGE), "{told:?}");
            assert_eq!(told[0], changes[0], "the first is told at once");
        }
    }

    #[test]
    fn a_service_that_is_gone_is_told_of_at_once_and_forgotten_in_time() {
        let mut state = State::default();
        let put = |state: &mut State, node: u128, status| {
            let gone = Task {
                node: Some(NodeId(node)),
                status: TaskStatus {
                    state: status,
                    ..TaskStatus::new(Timestamp(0))
                },
                ..a_task()
            };
            let txn = Txn {
                expect: Vec::new(),
                actions: vec![Action::Put(Object::Task(Arc::new(gone)))],
            };
            let index = state.index() + 1;
            let now = Timestamp(1);
            state.apply(&Entry { index, now, txn }).expect("an entry");
        };
        let (mut views, age) = (Views::default(), Duration::from_millis(100));
        let mut at = |state: &State, ms| views.common(state, Timestamp(ms), age).leaving;
        assert!(at(&state, 1_000).is_empty());
        put(&mut state, 3, TaskState::Running);
        let first = at(&state, 1_001);
        assert_eq!(first[0].others.len(), 1, "at once");
        put(&mut state, 3, TaskState::Complete);
        assert!(Arc::ptr_eq(&at(&state, 1_050), &first), "young enough");
        assert!(at(&state, 1_101).is_empty(), "although nothing has changed since");
    }

    #[test]
    fn a_view_of_a_service_is_shared_until_it_changes_and_has_an_age() {
        let plain = Service::new(ServiceId(1), Meta::default(), ServiceSpec::default());
        let task = a_task();
        let mut state = State::default();
        let add = |state: &mut State, object: Object| {
            let txn = Txn {
                expect: Vec::new(),
                actions: vec![Action::Put(object)],
            };
            let entry = Entry {
                index: state.index() + 1,
                now: Timestamp(1),
                txn,
            };
            state.apply(&entry).expect("an entry");
        };
        add(&mut state, Object::Service(Arc::new(plain.clone())));
        let (mut views, age) = (Views::default(), Duration::from_millis(100));
        let mut at = |state: &State, ms| views.of(state, &plain, Timestamp(ms), age);
        let first = at(&state, 0);
        assert!(first.backends.is_empty());
        let older = state.clone();
        add(&mut state, Object::Task(Arc::new(task)));
        assert!(Arc::ptr_eq(&at(&state, 99), &first), "young enough");
        let second = at(&state, 100);
        assert_eq!(second.backends.len(), 1, "too old");
        add(&mut state, Object::Service(Arc::new(plain.clone())));
        assert!(
            Arc::ptr_eq(&at(&state, 500), &second),
            "looked at again, and the same"
        );
        assert!(
            Arc::ptr_eq(&at(&older, 900), &second),
            "who read the state before does not bring back what was"
        );
    }
}
