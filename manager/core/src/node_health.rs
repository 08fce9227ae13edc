//! Who is heard of: sessions of the nodes with one leader, and which nodes are down.
//!
//! Every time here is of a clock that nobody sets (monotonic, from any beginning): a wall clock that jumps declares
//! nobody down. One [`Watch`] lives as long as one leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::object::{NodeState, NodeStatus, NodeUse};
use model::{NodeId, Timestamp};

use crate::state::State;

/// Heartbeats a node has to miss.
pub const MISSES: u32 = 3;
/// Shortest time that a new leader gives every node to register again.
pub const GRACE_MIN: Duration = Duration::from_secs(9);
/// The same in heartbeats: many nodes beat slowly, and need longer to come back.
pub const GRACE_BEATS: u32 = 6;
/// Heartbeats after which a node is silent for a new leader that neither registered nor answers the log as one of its
/// members: no node that is alive misses both that long, and the election before took about a heartbeat of silence.
pub const MUTE_BEATS: u32 = 2;
/// How long an earlier leader that is cut off may go on taking heartbeats beside its successor.
pub const STALE_LEADER_MAX: Duration = Duration::from_secs(3);
/// Heartbeats of all nodes together, a second.
pub const HEARTBEATS_PER_SECOND: u32 = 100;
/// Nodes declared down by one entry; the others follow with the next.
pub const DOWN_BATCH_MAX: usize = 256;

/// Longest time in which a new leader gives no task a node because few nodes are back: the first to register would
/// get them all.
pub const SETTLE_MAX: Duration = Duration::from_secs(3);

/// Time between two heartbeats of a node, in a cluster of so many: as configured, or longer, so that all together send
/// at most [`HEARTBEATS_PER_SECOND`].
pub fn heartbeat_for(configured: Duration, nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    configured.max(Duration::from_secs(1) * nodes / HEARTBEATS_PER_SECOND)
}

/// How long a node is silent that missed its heartbeats: each may be a tenth of the period late by intention.
pub fn down_after(period: Duration) -> Duration {
    let misses = period * MISSES;
    misses + misses / 10
}

/// Time that a new leader gives every node to register again.
pub fn grace(period: Duration) -> Duration {
    GRACE_MIN.max(period * GRACE_BEATS)
}

/// What a leader knows of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    /// Its session; none once it was declared down.
    session: Option<String>,
    /// When it was last heard of.
    at: Timestamp,
    /// The period it was told last.
    period: Duration,
}

/// Nodes that count as Ready, but the leader has not heard of any since it leads: they may have died with its
/// predecessor, and get no new task until they register or are declared down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unheard {
    /// These nodes.
    pub nodes: BTreeSet<NodeId>,
    /// Set while so few are back that no task is given a node at all: when that ends at the latest.
    pub settles_at: Option<Timestamp>,
}

/// The sessions of one leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// When the leadership began.
    since: Timestamp,
    heard: BTreeMap<NodeId, Heard>,
    /// Set once every node was heard of, or is down: a node becomes Ready by registering here from then on.
    complete: bool,
    /// Nodes it never heard of and declared down itself: their silence in the log is counted from its own beginning.
    declared: BTreeSet<NodeId>,
    /// The silence, as it stood in the log when this leader first looked, of nodes that were down then: what it adds to the
    /// log itself is not added once more.
    before: BTreeMap<NodeId, Duration>,
    /// Whether it began with the leadership, so that who has not answered since then was silent before as well.
    first: bool,
}

/// What a look at all nodes says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Review {
    /// Nodes to declare down, or to have silent for longer, in one entry: at most [`DOWN_BATCH_MAX`].
    pub declare: Vec<(NodeId, NodeStatus)>,
    /// When to look again, unless somebody registers before; never when no node can become down.
    pub look_at: Option<Timestamp>,
}

impl Watch {
    /// When the leadership began.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// A leader that begins at `now` and has heard of nobody.
    pub fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            heard: BTreeMap::new(),
            complete: false,
            declared: BTreeSet::new(),
            before: BTreeMap::new(),
            first: true,
        }
    }

    /// The same for a leader that counts anew, as it could hear nobody for a while.
    pub fn again(now: Timestamp) -> Self {
        Self {
            first: false,
            ..Self::new(now)
        }
    }

    /// Whom this leader has not heard of yet, in a state that has what its predecessors wrote. More than half of the nodes
    /// are enough to begin with, as some may be gone for good.
    pub fn unheard(&mut self, state: &State, now: Timestamp) -> Unheard {
        if self.complete {
            return Unheard::default();
        }
        let ready: Vec<NodeId> = (state.nodes())
            .filter(|n| n.status.state == NodeState::Ready)
            .map(|n| n.id)
            .collect();
        let nodes: BTreeSet<NodeId> = (ready.iter().copied())
            .filter(|id| !self.heard.contains_key(id))
            .collect();
        self.complete = nodes.is_empty();
        let few = nodes.len() * 2 >= ready.len() && !nodes.is_empty();
        let until = self.since + SETTLE_MAX;
        Unheard {
            nodes,
            settles_at: (few && now < until).then_some(until),
        }
    }

    /// A node registers; its earlier session, if any, has ended with that.
    pub fn register(&mut self, node: NodeId, session: String, period: Duration, now: Timestamp) {
        let heard = Heard {
            session: Some(session),
            at: now,
            period,
        };
        self.heard.insert(node, heard);
    }

    /// Whether a session is the current one of its node: only that may report.
    pub fn is_current(&self, node: NodeId, session: &str) -> bool {
        let current = self.heard.get(&node).and_then(|h| h.session.as_deref());
        current == Some(session)
    }

    /// Whether a node has a session, and the last sign of life is no older than one heartbeat that is late.
    pub fn is_heard(&self, node: NodeId, now: Timestamp) -> bool {
        let in_time = |h: &Heard| h.session.is_some() && now.since(h.at) < h.period * 3 / 2;
        self.heard.get(&node).is_some_and(in_time)
    }

    /// A heartbeat, answered with `period`. Answers false, and the node is not heard of, when it has to register again:
    /// the session is not the current one, or the node is down in the log, or gone.
    pub fn beat(
        &mut self,
        state: &State,
        node: NodeId,
        session: &str,
        period: Duration,
        now: Timestamp,
    ) -> bool {
        let counts = state
            .node(node)
            .is_some_and(|n| n.status.state != NodeState::Down);
        let heard = self
            .heard
            .get_mut(&node)
            .filter(|h| h.session.as_deref() == Some(session));
        match heard.filter(|_| counts) {
            Some(heard) => {
                heard.at = now;
                heard.period = period;
                true
            }
            None => false,
        }
    }

    /// Ends the session of a node.
    pub fn end(&mut self, node: NodeId) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.session = None;
        }
    }

    /// Ends the session of a node that is declared down, unless it was heard of meanwhile. Answers whether it did.
    pub fn end_silent(&mut self, node: NodeId, now: Timestamp) -> bool {
        let silent = |h: &Heard| now.since(h.at) >= down_after(h.period);
        let ends = self
            .heard
            .get(&node)
            .is_some_and(|h| h.session.is_some() && silent(h));
        if ends {
            self.end(node);
        }
        ends
    }

    /// How long a node is silent at least.
    ///
    /// A leader that has not heard of it does not count the time in which its predecessor may still have: of a node
    /// that was down already the log has the time before.
    fn silence(&mut self, node: NodeId, known: &NodeStatus, now: Timestamp) -> Duration {
        match self.heard.get(&node) {
            Some(heard) => now.since(heard.at),
            None if known.state == NodeState::Down && !self.declared.contains(&node) => {
                let before = *self.before.entry(node).or_insert(known.silent);
                before.saturating_add(now.since(self.since))
            }
            None => now.since(self.since + STALE_LEADER_MAX),
        }
    }

    /// Decides which nodes are down. `configured` is the cluster's heartbeat; `mute` are nodes with a member of the log
    /// that has answered nothing since this leadership began. Asked again after its answer is in the log it declares
    /// nothing.
    pub fn review(
        &mut self,
        state: &State,
        configured: Duration,
        mute: &BTreeSet<NodeId>,
        now: Timestamp,
    ) -> Review {
        self.heard.retain(|id, _| state.node(*id).is_some());
        self.declared.retain(|id| state.node(*id).is_some());
        self.before.retain(|id, _| state.node(*id).is_some());
        let period = heartbeat_for(configured, state.node_count());
        let mut review = Review::default();
        for node in state.nodes() {
            let silent = self.silence(node.id, &node.status, now);
            let Some(mut due) = self.next_due(state, node.id, &node.status, period) else {
                continue;
            };
            let lost_with_its_log = self.first
                && node.status.state != NodeState::Down
                && mute.contains(&node.id)
                && !self.heard.contains_key(&node.id);
            if lost_with_its_log {
                // Counted from the beginning, as nobody else heard its member either.
                let left = (self.since + period * MUTE_BEATS).since(now);
                due = due.min(silent + left);
            }
            if silent < due {
                let at = now + (due - silent);
                review.look_at = Some(review.look_at.map_or(at, |l| l.min(at)));
            } else if review.declare.len() == DOWN_BATCH_MAX {
                review.look_at = Some(now);
            } else {
                let status = NodeStatus {
                    state: NodeState::Down,
                    message: format!("silent for {:.1} s", silent.as_secs_f64()),
                    silent,
                    unreached: Vec::new(),
                    used: NodeUse::default(),
                };
                if node.status.state != NodeState::Down && !self.heard.contains_key(&node.id) {
                    self.declared.insert(node.id);
                }
                review.declare.push((node.id, status));
            }
        }
        review
    }

    /// The silence of a node at which the log is to be told next: when it becomes down, and then when it passes what
    /// one of its tasks waits for.
    fn next_due(&self, state: &State, id: NodeId, known: &NodeStatus, period: Duration) -> Option<Duration> {
        if known.state != NodeState::Down {
            return Some(match self.heard.get(&id) {
                Some(heard) => down_after(heard.period),
                None => grace(period),
            });
        }
        (state.tasks_of_node(id))
            .filter(|t| !t.status.state.is_terminal())
            .map(|t| t.spec.on_disconnect.replace_after())
            .filter(|after| *after > known.silent)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrate_tests::node;
    use crate::txn::{Action, Entry, Txn};
    use model::object::Object;

    const BEAT: Duration = Duration::from_secs(5);
    const NONE: BTreeSet<NodeId> = BTreeSet::new();

    fn at(seconds: f64) -> Timestamp {
        Timestamp(1_000) + Duration::from_secs_f64(seconds)
    }

    fn state(nodes: u128) -> State {
        let nodes = (1..=nodes).map(|id| Object::Node(node(id, &format!("n{id}")).into()));
        State::from_objects(1, nodes)
    }

    fn told(state: &mut State, review: &Review) {
        let seen = |(node, status): &(NodeId, NodeStatus)| Action::NodeSeen {
            node: *node,
            description: None,
            status: status.clone(),
        };
        let entry = Entry {
            index: state.index() + 1,
            now: Timestamp(0),
            txn: Txn {
                expect: Vec::new(),
                actions: review.declare.iter().map(seen).collect(),
            },
        };
        state.apply(&entry).expect("nothing is expected");
    }

    #[test]
    fn heartbeats_of_all_nodes_are_a_hundred_a_second_at_most() {
        for (configured, nodes, want) in [
            (5, 0, 5),
            (5, 1, 5),
            (5, 500, 5),
            (5, 501, 6),
            (5, 10_000, 100),
            (1, 200, 2),
        ] {
            let period = heartbeat_for(Duration::from_secs(configured), nodes);
            assert_eq!(
                period.as_secs_f64().ceil(),
                f64::from(want),
                "{configured} s, {nodes} nodes"
            );
            assert!(nodes as f64 / period.as_secs_f64() <= 100.0, "{nodes} nodes");
        }
    }

    #[test]
    fn a_node_is_down_after_three_misses_of_the_period_it_was_told() {
        let mut state = state(2);
        let mut watch = Watch::new(at(0.0));
        watch.register(NodeId(1), "a".into(), BEAT, at(0.0));
        watch.register(NodeId(2), "b".into(), 2 * BEAT, at(0.0));
        assert!(watch.beat(&state, NodeId(1), "a", BEAT, at(5.0)));
        let early = watch.review(&state, BEAT, &NONE, at(21.4));
        assert_eq!((early.declare, early.look_at), (vec![], Some(at(21.5))));
        let review = watch.review(&state, BEAT, &NONE, at(21.5));
        assert_eq!(review.declare.len(), 1);
        assert_eq!(review.declare[0].1.silent, Duration::from_millis(16_500));
        assert_eq!(review.look_at, Some(at(33.0)));
        told(&mut state, &review);
        assert!(watch.end_silent(NodeId(1), at(21.5)));
        assert_eq!(watch.review(&state, BEAT, &NONE, at(21.5)).declare, [], "again");
        // It has to say what it is before it counts.
        assert!(!watch.beat(&state, NodeId(1), "a", BEAT, at(22.0)));
    }

    #[test]
    fn a_new_leader_trusts_the_nodes_it_heard_of_once_most_are_back_or_it_waited() {
        let mut state = state(6);
        let mut watch = Watch::new(at(10.0));
        let settles = Some(at(10.0) + SETTLE_MAX);
        let ids = |ids: &[u128]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
        let unheard = |nodes: &[u128], settles_at| Unheard {
            nodes: ids(nodes),
            settles_at,
        };
        assert_eq!(
            watch.unheard(&state, at(10.0)),
            unheard(&[1, 2, 3, 4, 5, 6], settles)
        );
        for id in 1..=3 {
            watch.register(NodeId(id), "a".into(), BEAT, at(10.1));
        }
        assert_eq!(watch.unheard(&state, at(10.1)), unheard(&[4, 5, 6], settles));
        assert_eq!(
            watch.unheard(&state, at(13.0)),
            unheard(&[4, 5, 6], None),
            "waited"
        );
        watch.register(NodeId(4), "a".into(), BEAT, at(10.2));
        assert_eq!(watch.unheard(&state, at(10.2)), unheard(&[5, 6], None), "most");
        watch.register(NodeId(5), "a".into(), BEAT, at(10.3));
        // The last is gone for good; who is declared down is a matter of the log.
        let review = watch.review(&state, BEAT, &NONE, at(43.0));
        let lost = review.declare.iter().map(|(id, _)| *id);
        assert!(lost.collect::<Vec<_>>().contains(&NodeId(6)));
        told(&mut state, &review);
        assert_eq!(watch.unheard(&state, at(43.0)), Unheard::default());
        assert!(watch.complete, "and is not counted again");
    }

    #[test]
    fn an_old_session_neither_beats_nor_reports() {
        let state = state(1);
        let mut watch = Watch::new(at(0.0));
        watch.register(NodeId(1), "a".into(), BEAT, at(0.0));
        watch.register(NodeId(1), "b".into(), BEAT, at(1.0));
        assert!(!watch.beat(&state, NodeId(1), "a", BEAT, at(2.0)) && !watch.is_current(NodeId(1), "a"));
        assert!(watch.beat(&state, NodeId(1), "b", BEAT, at(2.0)) && watch.is_current(NodeId(1), "b"));
        assert!(!watch.is_current(NodeId(2), "b"));
        watch.end(NodeId(1));
        assert!(!watch.is_current(NodeId(1), "b"));
    }

    #[test]
    fn a_new_leader_gives_everybody_its_grace_and_declares_many_at_once() {
        let mut state = state(300);
        let mut watch = Watch::new(at(0.0));
        let early = watch.review(&state, BEAT, &NONE, at(32.9));
        assert_eq!((early.declare.len(), early.look_at), (0, Some(at(33.0))));
        let now = at(33.0);
        let first = watch.review(&state, BEAT, &NONE, now);
        assert_eq!((first.declare.len(), first.look_at), (DOWN_BATCH_MAX, Some(now)));
        told(&mut state, &first);
        let second = watch.review(&state, BEAT, &NONE, now);
        assert_eq!(
            (second.declare.len(), second.look_at),
            (300 - DOWN_BATCH_MAX, None)
        );
        told(&mut state, &second);
        assert_eq!(watch.review(&state, BEAT, &NONE, at(9_999.0)), Review::default());
    }

    #[test]
    fn a_manager_whose_log_is_as_silent_as_its_agent_gets_no_grace() {
        let mut state = state(3);
        let mut watch = Watch::new(at(0.0));
        let mute = BTreeSet::from([NodeId(1), NodeId(2)]);
        // Its agent is there: that counts.
        watch.register(NodeId(2), "a".into(), BEAT, at(0.1));
        let early = watch.review(&state, BEAT, &mute, at(9.9));
        assert_eq!((early.declare, early.look_at), (vec![], Some(at(10.0))));
        let review = watch.review(&state, BEAT, &mute, at(10.0));
        assert_eq!(review.declare.len(), 1);
        let (node, status) = &review.declare[0];
        // Of the silence only that counts which nobody else can have broken.
        let silent = Duration::from_secs(10) - STALE_LEADER_MAX;
        assert_eq!((*node, status.silent), (NodeId(1), silent));
        told(&mut state, &review);
        assert_eq!(watch.review(&state, BEAT, &mute, at(10.0)).declare, []);
        // One that counts anew cannot say since when it was silent.
        let fresh = self::state(3);
        let mut again = Watch::again(at(0.0));
        assert_eq!(again.review(&fresh, BEAT, &mute, at(20.0)).declare, []);
        // Node 3 is no manager, and has its grace.
        let last = watch.review(&state, BEAT, &mute, at(33.0));
        assert_eq!(last.declare.last().map(|(id, _)| *id), Some(NodeId(3)));
    }

    #[test]
    fn the_silence_a_task_waits_for_is_told_once_and_counted_on_by_the_next_leader() {
        use model::object::{Meta, SlotKey, Task, TaskStatus};
        use model::spec::{OnDisconnect, TaskSpec};
        use model::task_state::{DesiredState, TaskState};
        let mut state = state(1);
        let mut status = TaskStatus::new(Timestamp(0));
        status.state = TaskState::Running;
        let task = Task {
            id: model::TaskId(7),
            meta: Meta::default(),
            service: model::ServiceId(8),
            service_name: "web".into(),
            slot: SlotKey::Replica(1),
            spec: std::sync::Arc::new(TaskSpec {
                on_disconnect: OnDisconnect::StopAfter(Duration::from_secs(50)),
                ..TaskSpec::default()
            }),
            spec_version: 1,
            node: Some(NodeId(1)),
            desired: DesiredState::Running,
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
        };
        let objects: Vec<Object> = state.objects().chain([Object::Task(task.into())]).collect();
        state = State::from_objects(1, objects);
        let mut watch = Watch::new(at(0.0));
        watch.register(NodeId(1), "a".into(), BEAT, at(0.0));
        let down = watch.review(&state, BEAT, &NONE, at(16.5));
        told(&mut state, &down);
        // 1.1 * 50 s + 2 s.
        assert_eq!(
            watch.review(&state, BEAT, &NONE, at(17.0)).look_at,
            Some(at(57.0))
        );
        assert_eq!(watch.review(&state, BEAT, &NONE, at(57.0)).declare.len(), 1);
        // The next leader, from 20 s on, knows of 16.5 s.
        let mut next = Watch::new(at(20.0));
        assert_eq!(next.review(&state, BEAT, &NONE, at(20.0)).look_at, Some(at(60.5)));
        let review = next.review(&state, BEAT, &NONE, at(60.5));
        assert_eq!(review.declare[0].1.silent, Duration::from_secs(57));
        told(&mut state, &review);
        assert_eq!(
            next.review(&state, BEAT, &NONE, at(60.5)),
            Review::default(),
            "again"
        );
        // With a task that waits longer it counts on from what it found, not from what it wrote.
        let mut objects: Vec<Object> = state.objects().collect();
        for object in &mut objects {
            if let Object::Task(task) = object {
                let spec = &mut std::sync::Arc::make_mut(task).spec;
                std::sync::Arc::make_mut(spec).on_disconnect =
                    OnDisconnect::StopAfter(Duration::from_secs(80));
            }
        }
        let longer = State::from_objects(state.index(), objects);
        let look = next.review(&longer, BEAT, &NONE, at(61.0));
        // 1.1 * 80 s + 2 s, of which 16.5 s were over at 20 s.
        assert_eq!((look.declare, look.look_at), (vec![], Some(at(93.5))));
        let review = next.review(&longer, BEAT, &NONE, at(93.5));
        assert_eq!(review.declare[0].1.silent, Duration::from_secs(90));
        // One that never heard of the node counts what it declared itself from its own beginning, and once.
        let mut objects: Vec<Object> = state.objects().collect();
        for object in &mut objects {
            if let Object::Node(node) = object {
                std::sync::Arc::make_mut(node).status = NodeStatus::ready();
            }
        }
        let mut state = State::from_objects(state.index(), objects);
        let mut deaf = Watch::new(at(0.0));
        let down = deaf.review(&state, BEAT, &NONE, at(33.0));
        assert_eq!(down.declare[0].1.silent, Duration::from_secs(30));
        told(&mut state, &down);
        let look = deaf.review(&state, BEAT, &NONE, at(33.0));
        assert_eq!(
            (look.declare, look.look_at),
            (vec![], Some(at(60.0))),
            "57 s after 3 s"
        );
        let review = deaf.review(&state, BEAT, &NONE, at(60.0));
        assert_eq!(review.declare[0].1.silent, Duration::from_secs(57));
    }
}
