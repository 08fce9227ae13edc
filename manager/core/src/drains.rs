//! Tasks that are to stop, each until no other node sends it connections any more.
//!
//! A task leaves the balancers of all nodes before its process is asked to end. What each node is told, and what it has
//! acknowledged, is known to the leader alone and is not in the log: a leader that follows asks again, and the node of the
//! task waits for a bounded time only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::assignment::{AssignmentSet, ServiceEndpoints};
use model::object::{NodeState, Object, Task};
use model::task_state::TaskState;
use model::{NodeId, ServiceId, TaskId};

use crate::state::State;
use crate::txn::Changes;

/// Tasks that wait at the same time; more, as of a large service that is removed, are stopped at once.
const WAITING_MAX: usize = 1_000;

/// Which tasks still wait, and for whom.
#[derive(Debug, Default)]
pub struct Drains {
    /// The last entry that was looked at.
    index: u64,
    /// Nodes that count as Ready.
    ready: BTreeSet<NodeId>,
    tasks: BTreeMap<TaskId, Drain>,
    /// Tasks that need not wait any more, until they have ended.
    free: BTreeSet<TaskId>,
    nodes: BTreeMap<NodeId, Heard>,
    /// The last number given to a message or a stream of them.
    number: u64,
    /// Tasks behind the views that were looked at last.
    behind: BTreeMap<ServiceId, (Arc<ServiceEndpoints>, BTreeSet<TaskId>)>,
}

#[derive(Debug)]
struct Drain {
    service: ServiceId,
    node: NodeId,
    /// The other nodes, and the number of the message by which each learns of it, once that is sent.
    waiting: BTreeMap<NodeId, Option<u64>>,
}

/// What a node was sent and has acknowledged, by numbers of messages.
#[derive(Debug, Default)]
struct Heard {
    /// The stream it is sent by.
    stream: u64,
    /// The last message; nothing was sent by the stream before.
    sent: u64,
    acknowledged: u64,
}

/// What is to be sent to a node for a set of assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Whether anything is to be sent.
    pub send: bool,
    /// By which number it is to be acknowledged; zero: not at all.
    pub acknowledge: u64,
}

impl Drains {
    /// Begins with what a state says: anything may have changed. Answers the nodes of tasks that need not wait.
    pub fn restart(&mut self, state: &State) -> BTreeSet<NodeId> {
        self.index = state.index();
        let ready = state.nodes().filter(|n| n.status.state == NodeState::Ready);
        self.ready = ready.map(|n| n.id).collect();
        let before = std::mem::take(&mut self.tasks);
        self.free.retain(|id| state.task(*id).is_some_and(|t| ends(t)));
        for task in state.tasks().filter(|t| ends(t)) {
            self.begin(task);
        }
        let mut woken: BTreeSet<NodeId> = before.values().map(|d| d.node).collect();
        woken.extend(self.settle());
        woken
    }

    /// Services with tasks that wait: of these the newest view is to be told.
    pub fn services(&self) -> BTreeSet<ServiceId> {
        self.tasks.values().map(|drain| drain.service).collect()
    }

    /// Takes what an entry changed. Answers the nodes of tasks that need not wait any more.
    pub fn take(&mut self, changes: &Changes) -> BTreeSet<NodeId> {
        self.index = self.index.max(changes.index);
        for change in &changes.items {
            match (&change.before, &change.after) {
                // Nobody was ever told of it.
                (Some(Object::Task(before)), Some(Object::Task(task))) if ends(task) && !served(before) => {
                    self.free
                        .extend((!self.tasks.contains_key(&task.id)).then_some(task.id));
                }
                (_, Some(Object::Task(task))) if ends(task) => self.begin(task),
                (_, Some(Object::Task(task))) | (Some(Object::Task(task)), None) => self.forget(task.id),
                (_, Some(Object::Node(node))) if node.status.state == NodeState::Ready => {
                    self.came(node.id);
                }
                (_, Some(Object::Node(node))) | (Some(Object::Node(node)), None) => {
                    self.ready.remove(&node.id);
                    for drain in self.tasks.values_mut() {
                        drain.waiting.remove(&node.id);
                    }
                }
                _ => {}
            }
        }
        self.settle()
    }

    fn came(&mut self, node: NodeId) {
        if !self.ready.insert(node) {
            return;
        }
        for drain in self.tasks.values_mut().filter(|d| d.node != node) {
            drain.waiting.insert(node, None);
        }
    }

    fn begin(&mut self, task: &Task) {
        let Some(node) = task.node else { return };
        if self.free.contains(&task.id) || self.tasks.contains_key(&task.id) {
            return;
        }
        if self.tasks.len() >= WAITING_MAX {
            self.free.insert(task.id);
            return;
        }
        let others = self.ready.iter().filter(|other| **other != node);
        let drain = Drain {
            service: task.service,
            node,
            waiting: others.map(|other| (*other, None)).collect(),
        };
        self.tasks.insert(task.id, drain);
    }

    fn forget(&mut self, task: TaskId) {
        self.free.remove(&task);
        self.tasks.remove(&task);
    }

    /// Lets go of tasks for which nobody is waited any more.
    fn settle(&mut self) -> BTreeSet<NodeId> {
        let done: Vec<(TaskId, NodeId)> = (self.tasks.iter())
            .filter(|(_, drain)| drain.waiting.is_empty())
            .map(|(task, drain)| (*task, drain.node))
            .collect();
        for (task, _) in &done {
            self.tasks.remove(task);
            self.free.insert(*task);
        }
        if self.tasks.is_empty() {
            self.behind.clear();
        }
        done.into_iter().map(|(_, node)| node).collect()
    }

    /// A node is told everything anew: what it was sent before it may never have got. Answers the number of the stream.
    pub fn open(&mut self, node: NodeId) -> u64 {
        self.number += 1;
        let heard = Heard {
            stream: self.number,
            ..Heard::default()
        };
        self.nodes.insert(node, heard);
        let told = self.tasks.values_mut().filter_map(|d| d.waiting.get_mut(&node));
        told.for_each(|number| *number = None);
        self.number
    }

    /// A node is to have this set by a stream; `changed`: it was not sent as much yet, as at first. To be called before it is
    /// sent, in the order of sending. Answers what to send, and the nodes of tasks that need not wait any more.
    pub fn send(
        &mut self,
        (node, stream): (NodeId, u64),
        set: &AssignmentSet,
        changed: bool,
    ) -> (Message, BTreeSet<NodeId>) {
        let mut message = Message {
            send: changed,
            acknowledge: 0,
        };
        // What is sent by a stream that another has followed counts for nothing.
        let Some(heard) = self.nodes.get_mut(&node).filter(|heard| heard.stream == stream) else {
            return (message, BTreeSet::new());
        };
        if changed {
            self.number += 1;
            heard.sent = self.number;
        }
        for (task, drain) in &mut self.tasks {
            let Some(told @ None) = drain.waiting.get_mut(&node) else {
                continue;
            };
            if let Some(view) = set.services.get(&drain.service)
                && behind(&mut self.behind, view).contains(task)
            {
                continue;
            }
            // It may have been sent with an earlier one, of which it is not known whether it arrived.
            if heard.acknowledged < heard.sent {
                if !message.send {
                    message.send = true;
                    self.number += 1;
                    heard.sent = self.number;
                }
                message.acknowledge = heard.sent;
                *told = Some(heard.sent);
            } else {
                drain.waiting.remove(&node);
            }
        }
        let woken = if message.acknowledge == 0 {
            self.settle()
        } else {
            BTreeSet::new()
        };
        (message, woken)
    }

    /// A node has done what a message said. Answers the nodes of tasks that need not wait any more.
    pub fn acknowledged(&mut self, node: NodeId, number: u64) -> BTreeSet<NodeId> {
        let Some(heard) = self.nodes.get_mut(&node).filter(|h| number <= h.sent) else {
            return BTreeSet::new();
        };
        heard.acknowledged = heard.acknowledged.max(number);
        for drain in self.tasks.values_mut() {
            if (drain.waiting.get(&node)).is_some_and(|told| told.is_some_and(|told| told <= number)) {
                drain.waiting.remove(&node);
            }
        }
        self.settle()
    }

    /// Says of the tasks of a node which of them are to wait.
    pub fn hold(&self, state: &State, set: &mut AssignmentSet) {
        let held = set.tasks.values().filter(|task| self.holds(state, task));
        set.held = held.map(|task| task.id).collect();
    }

    /// Whether a task that is to stop waits, as a state says that was read just now: it may be newer than what was looked
    /// at here.
    fn holds(&self, state: &State, task: &Task) -> bool {
        let unknown = state.index() > self.index && !self.free.contains(&task.id);
        ends(task) && (unknown || self.tasks.contains_key(&task.id))
    }
}

/// Tasks behind a view, which are the same for all nodes that have it.
fn behind<'a>(
    known: &'a mut BTreeMap<ServiceId, (Arc<ServiceEndpoints>, BTreeSet<TaskId>)>,
    view: &Arc<ServiceEndpoints>,
) -> &'a BTreeSet<TaskId> {
    let all = || (view.clone(), view.backends.iter().map(|b| b.task).collect());
    let entry = known.entry(view.id).or_insert_with(all);
    if !Arc::ptr_eq(&entry.0, view) {
        *entry = all();
    }
    &entry.1
}

/// Whether a task is sent connections.
fn served(task: &Task) -> bool {
    task.desired.is_live() && task.status.state == TaskState::Running
}

/// Whether a task is to stop, and was sent connections until then.
fn ends(task: &Task) -> bool {
    !task.desired.is_live() && task.status.state == TaskState::Running
}

#[cfg(test)]
mod tests {
    use model::Timestamp;
    use model::assignment::Backend;
    use model::object::{Meta, SlotKey, TaskStatus};
    use model::spec::EndpointMode;
    use model::task_state::DesiredState;

    use super::*;
    use crate::txn::Change;

    const OWN: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const THREE: NodeId = NodeId(3);
    const SERVICE: ServiceId = ServiceId(9);

    fn task(desired: DesiredState, state: TaskState) -> Task {
        Task {
            id: TaskId(7),
            meta: Meta::default(),
            service: SERVICE,
            service_name: "web".into(),
            slot: SlotKey::Replica(1),
            spec: Arc::default(),
            spec_version: 1,
            node: Some(OWN),
            desired,
            run_at: Timestamp(0),
            status: TaskStatus {
                state,
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

    /// What a node is told: the task is behind the service, or is not, or the service is not told of.
    fn set(behind: Option<bool>) -> AssignmentSet {
        let mut set = AssignmentSet::default();
        let backend = Backend {
            task: TaskId(7),
            node: Some(OWN),
            name: "web.1".into(),
            addresses: Vec::new(),
        };
        if let Some(behind) = behind {
            let service = ServiceEndpoints {
                id: SERVICE,
                name: "web".into(),
                mode: EndpointMode::Vip,
                networks: Vec::new(),
                ports: Vec::new(),
                backends: behind.then_some(backend).into_iter().collect(),
                others: Vec::new(),
                encrypted: Vec::new(),
            };
            set.services.insert(SERVICE, Arc::new(service));
        }
        set
    }

    struct Case {
        drains: Drains,
        index: u64,
        streams: BTreeMap<NodeId, u64>,
        task: Option<Arc<Task>>,
    }

    impl Case {
        /// Three nodes, each told that the task runs.
        fn new() -> Self {
            let mut drains = Drains {
                ready: [OWN, TWO, THREE].into(),
                ..Drains::default()
            };
            let mut streams = BTreeMap::new();
            for node in [OWN, TWO, THREE] {
                streams.insert(node, drains.open(node));
                drains.send((node, streams[&node]), &set(Some(true)), true);
            }
            Self {
                drains,
                index: 0,
                streams,
                task: Some(Arc::new(task(DesiredState::Running, TaskState::Running))),
            }
        }

        fn put(&mut self, desired: DesiredState, state: TaskState) -> BTreeSet<NodeId> {
            self.index += 1;
            let before = self.task.replace(Arc::new(task(desired, state)));
            self.drains.take(&Changes {
                index: self.index,
                items: vec![Change {
                    key: model::object::Key::Task(TaskId(7)),
                    before: before.map(Object::Task),
                    after: Some(Object::Task(Arc::new(task(desired, state)))),
                }],
            })
        }

        fn send(&mut self, node: NodeId, behind: Option<bool>, changed: bool) -> Message {
            let stream = self.streams.get(&node).copied().unwrap_or_default();
            let (message, woken) = self.drains.send((node, stream), &set(behind), changed);
            assert!(woken.is_empty() || !self.holds(), "{woken:?}");
            message
        }

        fn holds(&self) -> bool {
            self.drains.tasks.contains_key(&TaskId(7))
        }
    }

    #[test]
    fn a_task_waits_until_all_others_have_done_without_it() {
        let mut case = Case::new();
        assert!(case.put(DesiredState::Running, TaskState::Running).is_empty());
        assert!(!case.holds());
        assert!(case.put(DesiredState::Shutdown, TaskState::Running).is_empty());
        assert!(case.holds());
        // One is told of an older view, and is not asked.
        assert_eq!(case.send(TWO, Some(true), true).acknowledge, 0);
        let three = case.send(THREE, Some(false), true).acknowledge;
        let two = case.send(TWO, Some(false), true).acknowledge;
        assert!(three > 0 && two > three);
        assert!(
            case.drains.acknowledged(TWO, three).is_empty(),
            "not what it was asked"
        );
        assert!(case.drains.acknowledged(TWO, two + 100).is_empty(), "never sent");
        assert!(case.drains.acknowledged(THREE, three).is_empty() && case.holds());
        assert_eq!(case.drains.acknowledged(TWO, two), [OWN].into());
        assert!(!case.holds());
        assert!(case.put(DesiredState::Shutdown, TaskState::Running).is_empty());
        assert!(!case.holds(), "it waits once");
        case.put(DesiredState::Shutdown, TaskState::Shutdown);
        assert!(case.drains.free.is_empty(), "nothing is kept of what has ended");
    }

    #[test]
    fn what_was_sent_before_it_was_to_stop_is_asked_for_and_what_was_acknowledged_is_not() {
        let mut case = Case::new();
        // A state may be told before its entry is looked at here.
        case.send(TWO, Some(false), true);
        case.send(THREE, None, true);
        case.put(DesiredState::Remove, TaskState::Running);
        let messages = [TWO, THREE].map(|node| case.send(node, None, false));
        assert!(
            messages.iter().all(|m| m.send && m.acknowledge > 0),
            "{messages:?}"
        );
        case.drains.acknowledged(TWO, messages[0].acknowledge);
        assert_eq!(
            case.drains.acknowledged(THREE, messages[1].acknowledge),
            [OWN].into()
        );
        // The next one costs nothing where nothing was sent since.
        case.put(DesiredState::Remove, TaskState::Shutdown);
        case.put(DesiredState::Running, TaskState::Running);
        case.put(DesiredState::Remove, TaskState::Running);
        let nothing = Message {
            send: false,
            acknowledge: 0,
        };
        assert_eq!(
            [TWO, THREE].map(|node| case.send(node, None, false)),
            [nothing; 2]
        );
        assert!(!case.holds());
    }

    #[test]
    fn nodes_that_come_are_waited_for_and_nodes_that_go_are_not() {
        let mut case = Case::new();
        case.put(DesiredState::Shutdown, TaskState::Running);
        let two = case.send(TWO, Some(false), true).acknowledge;
        case.drains.acknowledged(TWO, two);
        // It lost its session with what it was told on its way.
        let three = case.send(THREE, Some(false), true).acknowledge;
        let old = case.streams[&THREE];
        case.streams.insert(THREE, case.drains.open(THREE));
        assert!(case.drains.acknowledged(THREE, three).is_empty() && case.holds());
        // What is still sent by the stream before counts for nothing.
        for changed in [false, true] {
            let (message, woken) = case.drains.send((THREE, old), &set(None), changed);
            assert_eq!((message.acknowledge, woken.len()), (0, 0));
        }
        assert!(case.holds());
        let node = |id: NodeId, status| {
            let node = model::object::Node {
                status,
                ..crate::orchestrate_tests::node(id.0, "n")
            };
            Change {
                key: model::object::Key::Node(id),
                before: None,
                after: Some(Object::Node(Arc::new(node))),
            }
        };
        let take = |case: &mut Case, change| {
            case.index += 1;
            let index = case.index;
            case.drains.take(&Changes {
                index,
                items: vec![change],
            })
        };
        use model::object::NodeStatus;
        let four = NodeId(4);
        case.streams.insert(four, case.drains.open(four));
        assert!(take(&mut case, node(four, NodeStatus::ready())).is_empty());
        assert!(take(&mut case, node(THREE, NodeStatus::default())).is_empty() && case.holds());
        let asked = case.send(four, None, true).acknowledge;
        assert_eq!(case.drains.acknowledged(four, asked), [OWN].into());
    }

    #[test]
    fn what_nobody_was_sent_to_waits_for_nobody_and_too_many_do_not_wait() {
        let mut case = Case::new();
        // It reports that it runs after it was to stop.
        case.put(DesiredState::Shutdown, TaskState::Starting);
        case.put(DesiredState::Shutdown, TaskState::Running);
        assert!(!case.holds());
        assert!(!case.drains.holds(
            &State::from_objects(9, []),
            &task(DesiredState::Shutdown, TaskState::Running)
        ));
        let many = |n: u128| Task {
            id: TaskId(1_000 + n),
            ..task(DesiredState::Shutdown, TaskState::Running)
        };
        for n in 0..1_001 {
            case.drains.begin(&many(n));
        }
        assert_eq!(case.drains.tasks.len(), WAITING_MAX);
        assert_eq!(case.drains.services(), [SERVICE].into());
    }

    #[test]
    fn a_state_that_is_newer_than_what_was_looked_at_holds() {
        let mut drains = Drains::default();
        let state = State::default();
        let stops = task(DesiredState::Shutdown, TaskState::Running);
        assert!(!drains.holds(&state, &stops), "nobody else is there");
        drains.index = 0;
        let newer = State::from_objects(1, []);
        assert!(drains.holds(&newer, &stops));
        assert!(!drains.holds(&newer, &task(DesiredState::Running, TaskState::Running)));
        drains.free.insert(stops.id);
        assert!(!drains.holds(&newer, &stops));
    }
}
