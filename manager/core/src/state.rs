//! The replicated state: tables and indexes, with one writer, `apply`.

mod apply;
mod find;
mod load;
mod order;
mod places;
mod scratch;

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use model::object::{Cluster, Config, Key, Network, Node, NodeRole, Object, Secret, Service, SlotKey, Task};
use model::spec::{Protocol, PublishMode};
use model::{ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp};
use sha2::{Digest, Sha256};

use crate::txn::Answer;

pub use find::{FindError, Kind};
pub use load::Usage;
pub(crate) use load::{Class, Fullness, Standing};
pub(crate) use scratch::Scratch;

/// Everything the cluster remembers. A clone costs nothing and never changes.
#[derive(Debug, Clone, Default)]
pub struct State {
    index: u64,
    time: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    secrets: OrdMap<SecretId, Arc<Secret>>,
    configs: OrdMap<ConfigId, Arc<Config>>,
    // Indexes: functions of the tables above, kept by `put` and `delete` alone.
    // Whatever is written copies a leaf of each map it touches, so keys that lie at random hold nothing that is counted.
    names: OrdMap<NameKey, u128>,
    by_service: OrdSet<(ServiceId, SlotKey, TaskId)>,
    by_node: places::Index,
    unplaced: OrdSet<TaskId>,
    choosy: OrdSet<ServiceId>,
    order: order::Index,
    loads: load::Loads,
    // With the holder: within one entry the next holder may be written before the last one lets go.
    addresses: OrdMap<(NetworkId, IpAddr), u128>,
    ports: OrdMap<(Protocol, u16), ServiceId>,
    /// Requests that were carried out, with the entry that did it, and their answers, oldest first; those are forgotten.
    answered: OrdMap<u128, u64>,
    answers: OrdMap<(u64, u128), Arc<Answer>>,
}

/// A name of a kind, as the first half of its SHA-256: nobody finds two names with the same.
type NameKey = (Kind, [u8; 16]);

fn name_key(kind: Kind, name: &str) -> NameKey {
    let digest: [u8; 32] = Sha256::digest(name).into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    (kind, half)
}

/// Requests whose answers are remembered: far more than can be under way during an election.
pub const ANSWERS_MAX: usize = 4096;

impl State {
    /// An empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// A state from a snapshot: of the entry with this index, and of the newest time in the log up to there.
    pub fn from_snapshot(index: u64, time: Timestamp, objects: impl IntoIterator<Item = Object>) -> Self {
        Self {
            time,
            ..Self::from_objects(index, objects)
        }
    }

    /// A state of these objects.
    pub fn from_objects(index: u64, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut state = Self {
            index,
            ..Self::default()
        };
        for object in objects {
            state.put(object);
        }
        state
    }

    /// The same, with the answers of the last requests.
    pub fn with_answers(mut self, answers: impl IntoIterator<Item = (u64, Arc<Answer>)>) -> Self {
        for (index, answer) in answers {
            self.remember(index, answer);
        }
        self
    }

    /// Answers of the last requests, oldest first, each with the entry that carried it out.
    pub fn answers(&self) -> impl Iterator<Item = (u64, Arc<Answer>)> + '_ {
        (self.answers.iter()).map(|((index, _), answer)| (*index, answer.clone()))
    }

    /// What a request was answered, if it was carried out already, and by which entry.
    pub fn answer(&self, id: u128) -> Option<(u64, &Arc<Answer>)> {
        let index = *self.answered.get(&id)?;
        Some((index, self.answers.get(&(index, id))?))
    }

    fn remember(&mut self, index: u64, answer: Arc<Answer>) {
        let id = answer.request.id;
        self.answered.insert(id, index);
        self.answers.insert((index, id), answer);
        if self.answers.len() > ANSWERS_MAX
            && let Some(oldest) = self.answers.get_min().map(|(at, _)| *at)
        {
            self.answers.remove(&oldest);
            self.answered.remove(&oldest.1);
        }
    }

    /// Index of the last applied entry.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Newest time of an applied entry: the next one must not be of an earlier time.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Every object, for a snapshot.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        (self.cluster.iter().cloned().map(Object::Cluster))
            .chain(self.nodes.values().cloned().map(Object::Node))
            .chain(self.networks.values().cloned().map(Object::Network))
            .chain(self.secrets.values().cloned().map(Object::Secret))
            .chain(self.configs.values().cloned().map(Object::Config))
            .chain(self.services.values().cloned().map(Object::Service))
            .chain(self.tasks.values().cloned().map(Object::Task))
    }

    /// The cluster; absent before it was made.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }
    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }
    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }
    /// Every node that is a manager.
    pub fn managers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes().filter(|n| n.spec.role == NodeRole::Manager)
    }
    /// How many nodes there are, without looking at each.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }
    /// A service.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }
    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }
    /// How many services there are, without looking at each.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }
    /// A task.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }
    /// Every task.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }
    /// How many tasks there are, without looking at each.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }
    /// A network.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }
    /// Every network.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }
    /// The network of published ports.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.networks.values().find(|n| n.spec.ingress)
    }
    /// A secret.
    pub fn secret(&self, id: SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(&id)
    }
    /// Every secret.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }
    /// A config.
    pub fn config(&self, id: ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(&id)
    }
    /// Every config.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// Tasks of a service, by slot.
    pub fn tasks_of_service(&self, id: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let first = (id, SlotKey::Replica(0), TaskId(0));
        let last = (id, SlotKey::Node(NodeId(u128::MAX)), TaskId(u128::MAX));
        self.by_service
            .range(first..=last)
            .filter_map(|(_, _, task)| self.tasks.get(task))
    }

    /// Tasks of one slot of a service.
    pub fn tasks_of_slot(&self, id: ServiceId, slot: SlotKey) -> impl Iterator<Item = &Arc<Task>> {
        let all = (id, slot, TaskId(0))..=(id, slot, TaskId(u128::MAX));
        self.by_service
            .range(all)
            .filter_map(|(_, _, task)| self.tasks.get(task))
    }

    /// Services that are gone and still have tasks.
    pub fn orphaned(&self) -> Vec<ServiceId> {
        let (mut gone, mut from) = (Vec::new(), (ServiceId(0), SlotKey::Replica(0), TaskId(0)));
        // From one service to the next, not from task to task.
        while let Some((id, ..)) = self.by_service.range(from..).next().copied() {
            if !self.services.contains_key(&id) {
                gone.push(id);
            }
            let Some(next) = id.0.checked_add(1) else { break };
            from = (ServiceId(next), SlotKey::Replica(0), TaskId(0));
        }
        gone
    }

    /// Tasks of a node, finished ones included.
    pub fn tasks_of_node(&self, id: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.by_node.of(id).filter_map(|task| self.tasks.get(&task))
    }

    /// Unfinished tasks without a node.
    pub fn unplaced(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.unplaced.iter().filter_map(|id| self.tasks.get(id))
    }

    /// Services that depend on one of this name: by their spec, or by that of a task that has not ended, also of a service that was
    /// removed.
    pub(crate) fn dependents(&self, name: &str) -> Vec<ServiceId> {
        self.order.of(name)
    }

    /// Whether any service depends on another.
    pub(crate) fn has_dependents(&self) -> bool {
        !self.order.is_empty()
    }

    /// Services that want others beside them, or not.
    pub(crate) fn choosy(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.choosy.iter().filter_map(|id| self.services.get(id))
    }

    /// What the unfinished tasks of a node take of it.
    pub fn usage(&self, id: NodeId) -> Usage {
        self.loads.standing(id).usage
    }

    /// What a node is used for, and its class.
    pub(crate) fn standing(&self, id: NodeId) -> Standing {
        self.loads.standing(id)
    }

    /// Every class of nodes, with one of them.
    pub(crate) fn classes(&self) -> Vec<(Class, NodeId)> {
        self.loads.classes()
    }

    /// The node of a class that follows one, or its emptiest.
    pub(crate) fn next_of_class(
        &self,
        class: Class,
        after: Option<(Fullness, NodeId)>,
    ) -> Option<(Fullness, NodeId)> {
        self.loads.next_of(class, after)
    }

    /// The node of a class that one follows, or its fullest.
    pub(crate) fn before_of_class(
        &self,
        class: Class,
        before: Option<(Fullness, NodeId)>,
    ) -> Option<(Fullness, NodeId)> {
        self.loads.before(class, before)
    }

    /// A copy to be changed much before it is thrown away.
    fn aside(&self) -> Self {
        Self {
            by_node: self.by_node.aside(),
            ..self.clone()
        }
    }

    /// How it would be without some tasks and with others.
    pub(crate) fn as_if(&self, gone: &[TaskId], there: impl IntoIterator<Item = Arc<Task>>) -> Self {
        let mut state = self.clone();
        gone.iter().for_each(|id| state.delete(Key::Task(*id)));
        there.into_iter().for_each(|task| state.put(Object::Task(task)));
        state
    }

    /// Whether an address is held by a service or by a task that may still use it.
    pub fn address_in_use(&self, network: NetworkId, address: IpAddr) -> bool {
        self.addresses.contains_key(&(network, address))
    }

    /// Who holds an address of a network, in words.
    pub fn address_holder(&self, network: NetworkId, address: IpAddr) -> Option<String> {
        let holder = *self.addresses.get(&(network, address))?;
        let service = self.services.get(&ServiceId(holder));
        let task = || {
            self.tasks
                .get(&TaskId(holder))
                .map(|t| format!("task {}", t.name()))
        };
        let named = service.map(|s| format!("service {}", s.spec.name)).or_else(task);
        Some(named.unwrap_or_else(|| "something that is going".into()))
    }

    /// The service that publishes a port on every node.
    pub fn port_holder(&self, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        self.ports
            .get(&(protocol, port))
            .and_then(|id| self.services.get(id))
    }

    /// Version of an object; 0: there is none.
    pub fn version(&self, key: Key) -> u64 {
        let version = match key {
            Key::Cluster => self.cluster.as_ref().map(|o| o.meta.version),
            Key::Node(id) => self.nodes.get(&id).map(|o| o.meta.version),
            Key::Service(id) => self.services.get(&id).map(|o| o.meta.version),
            Key::Task(id) => self.tasks.get(&id).map(|o| o.meta.version),
            Key::Network(id) => self.networks.get(&id).map(|o| o.meta.version),
            Key::Secret(id) => self.secrets.get(&id).map(|o| o.meta.version),
            Key::Config(id) => self.configs.get(&id).map(|o| o.meta.version),
        };
        version.unwrap_or(0)
    }

    /// An object by its key.
    pub fn object(&self, key: Key) -> Option<Object> {
        match key {
            Key::Cluster => self.cluster.clone().map(Object::Cluster),
            Key::Node(id) => self.nodes.get(&id).cloned().map(Object::Node),
            Key::Service(id) => self.services.get(&id).cloned().map(Object::Service),
            Key::Task(id) => self.tasks.get(&id).cloned().map(Object::Task),
            Key::Network(id) => self.networks.get(&id).cloned().map(Object::Network),
            Key::Secret(id) => self.secrets.get(&id).cloned().map(Object::Secret),
            Key::Config(id) => self.configs.get(&id).cloned().map(Object::Config),
        }
    }

    fn put(&mut self, object: Object) {
        self.unindex(object.key());
        match object {
            Object::Cluster(o) => self.cluster = Some(o),
            Object::Node(o) => {
                self.loads.put_node(&o);
                self.nodes.insert(o.id, o);
            }
            Object::Service(o) => {
                self.names.insert(name_key(Kind::Service, &o.spec.name), o.id.0);
                for port in o.endpoint.ports.iter().filter(|p| p.mode == PublishMode::Ingress) {
                    self.ports.insert((port.protocol, port.published), o.id);
                }
                for vip in &o.endpoint.vips {
                    self.addresses.insert(*vip, o.id.0);
                }
                self.order.put_service(&o);
                if !o.spec.task.placement.affinity.is_empty() {
                    self.choosy.insert(o.id);
                }
                self.services.insert(o.id, o);
            }
            Object::Task(o) => {
                let old = self.tasks.get(&o.id).cloned();
                self.put_task(old.as_deref(), o);
            }
            Object::Network(o) => {
                self.names.insert(name_key(Kind::Network, &o.spec.name), o.id.0);
                self.networks.insert(o.id, o);
            }
            Object::Secret(o) => {
                self.names.insert(name_key(Kind::Secret, &o.spec.name), o.id.0);
                self.secrets.insert(o.id, o);
            }
            Object::Config(o) => {
                self.names.insert(name_key(Kind::Config, &o.spec.name), o.id.0);
                self.configs.insert(o.id, o);
            }
        }
    }

    /// Puts a task in the place of what it was.
    fn put_task(&mut self, old: Option<&Task>, task: Arc<Task>) {
        self.index_task(old, Some(&task));
        self.tasks.insert(task.id, task);
    }

    /// Brings the indexes from what a task was to what it is. What is the same in both is left as it is: most of what is written
    /// of tasks is how far they are.
    fn index_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let slot = |t: &Task| (t.service, t.slot, t.id);
        between(old.map(slot), new.map(slot), &mut self.by_service);
        let place = |t: &Task| t.node.map(|node| (node, t.id));
        let (was, is) = (old.and_then(place), new.and_then(place));
        if was != is {
            was.iter().for_each(|was| self.by_node.remove(was));
            is.into_iter().for_each(|is| self.by_node.insert(is));
        }
        let waits = |t: &Task| (t.node.is_none() && !t.status.state.is_terminal()).then_some(t.id);
        between(old.and_then(waits), new.and_then(waits), &mut self.unplaced);
        let (was, is) = (old.map_or(&[][..], held), new.map_or(&[][..], held));
        if was != is
            && let Some(TaskId(id)) = old.or(new).map(|t| t.id)
        {
            was.iter().for_each(|a| release(&mut self.addresses, a, &id));
            self.addresses.extend(is.iter().map(|a| (*a, id)));
        }
        self.order.change_task(old, new);
        let takes = |t: &Task| t.node.filter(|_| !t.status.state.is_terminal());
        let (was, is) = (old.and_then(takes), new.and_then(takes));
        let same = was == is
            && old
                .zip(new)
                .is_some_and(|(old, new)| Arc::ptr_eq(&old.spec, &new.spec));
        if same {
            return;
        }
        if let Some((node, task)) = was.zip(old) {
            self.loads.remove_task(node, task);
        }
        if let Some((node, task)) = is.zip(new) {
            self.loads.add_task(node, task);
        }
    }

    fn delete(&mut self, key: Key) {
        self.unindex(key);
        match key {
            Key::Cluster => self.cluster = None,
            Key::Node(id) => {
                self.loads.remove_node(id);
                self.nodes.remove(&id);
            }
            Key::Service(id) => {
                self.services.remove(&id);
            }
            Key::Task(id) => {
                let old = self.tasks.remove(&id);
                self.index_task(old.as_deref(), None);
            }
            Key::Network(id) => {
                self.networks.remove(&id);
            }
            Key::Secret(id) => {
                self.secrets.remove(&id);
            }
            Key::Config(id) => {
                self.configs.remove(&id);
            }
        }
    }

    fn unindex(&mut self, key: Key) {
        match key {
            // Written over what they were.
            Key::Cluster | Key::Node(_) | Key::Task(_) => {}
            Key::Service(id) => {
                if let Some(old) = self.services.get(&id).cloned() {
                    self.order.remove_service(&old);
                    self.choosy.remove(&id);
                    release(&mut self.names, &name_key(Kind::Service, &old.spec.name), &id.0);
                    for port in old
                        .endpoint
                        .ports
                        .iter()
                        .filter(|p| p.mode == PublishMode::Ingress)
                    {
                        release(&mut self.ports, &(port.protocol, port.published), &id);
                    }
                    for vip in &old.endpoint.vips {
                        release(&mut self.addresses, vip, &id.0);
                    }
                }
            }
            Key::Network(id) => {
                if let Some(old) = self.networks.get(&id) {
                    release(&mut self.names, &name_key(Kind::Network, &old.spec.name), &id.0);
                }
            }
            Key::Secret(id) => {
                if let Some(old) = self.secrets.get(&id) {
                    release(&mut self.names, &name_key(Kind::Secret, &old.spec.name), &id.0);
                }
            }
            Key::Config(id) => {
                if let Some(old) = self.configs.get(&id) {
                    release(&mut self.names, &name_key(Kind::Config, &old.spec.name), &id.0);
                }
            }
        }
    }

    /// Checks what must hold in every state; each problem is one line.
    ///
    /// # Errors
    /// The problems found: an address, port or network number held twice, an index that differs from its table.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let mut held = std::collections::BTreeMap::new();
        let mut hold = |what: (NetworkId, IpAddr), who: String| {
            if let Some(other) = held.insert(what, who.clone()) {
                problems.push(format!(
                    "address {} of network {} is held by {other} and {who}",
                    what.1, what.0
                ));
            }
        };
        for service in self.services.values() {
            service
                .endpoint
                .vips
                .iter()
                .for_each(|v| hold(*v, format!("service {}", service.spec.name)));
        }
        for task in self.tasks.values().filter(|t| !t.status.state.is_terminal()) {
            task.addresses
                .iter()
                .for_each(|a| hold(*a, format!("task {}", task.container_name())));
        }
        let vnis: std::collections::BTreeSet<u32> = self.networks.values().map(|n| n.vni).collect();
        if vnis.len() != self.networks.len() {
            problems.push("two networks have the same number".into());
        }
        let rebuilt = Self::from_objects(self.index, self.objects());
        if rebuilt.by_service != self.by_service
            || rebuilt.by_node != self.by_node
            || rebuilt.unplaced != self.unplaced
            || rebuilt.choosy != self.choosy
            || rebuilt.order != self.order
            || !rebuilt.loads.agrees(&self.loads)
            || rebuilt.addresses != self.addresses
            || rebuilt.ports != self.ports
            || rebuilt.names != self.names
        {
            problems.push("an index differs from its table".into());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

/// The addresses that a task may still use.
fn held(task: &Task) -> &[(NetworkId, IpAddr)] {
    if task.status.state.is_terminal() {
        &[]
    } else {
        &task.addresses
    }
}

/// Puts what is in the place of what was, where they differ.
fn between<K: Ord + Clone>(was: Option<K>, is: Option<K>, index: &mut OrdSet<K>) {
    if was == is {
        return;
    }
    if let Some(was) = was {
        index.remove(&was);
    }
    if let Some(is) = is {
        index.insert(is);
    }
}

/// Takes an entry out of an index, unless somebody else has it by now.
fn release<K: Ord + Clone, V: PartialEq + Clone>(index: &mut OrdMap<K, V>, key: &K, holder: &V) {
    if index.get(key) == Some(holder) {
        index.remove(key);
    }
}
