//! Which logs are read from which nodes, and when again: a function of tasks, nodes and what became of streams.

use std::collections::{BTreeMap, BTreeSet};

use model::{NodeId, TaskId};
use proto::host::{LogEntry, LogsRequest};

/// Pause before a node is asked again whose logs broke off, in milliseconds.
const RETRY_MS: u64 = 1000;
/// Tasks named in one warning.
const NAMED_MAX: usize = 10;

/// A task, as far as its log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskView {
    /// For warnings.
    pub(crate) name: String,
    /// Its node.
    pub(crate) node: Option<NodeId>,
    /// There is, or was, a container.
    pub(crate) started: bool,
    /// It ended: nothing is added to its log.
    pub(crate) over: bool,
}

/// A node, as far as it can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub(crate) hostname: String,
    pub(crate) down: bool,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// Read logs from a node, as a stream of this number.
    Open {
        stream: u64,
        node: NodeId,
        request: LogsRequest,
    },
    /// Tell the user.
    Warn(String),
}

/// How far the log of a task was read: lines share times, so those of the last time are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    time_ns: u64,
    lines: u64,
}

#[derive(Debug)]
struct Open {
    node: NodeId,
    /// Each task, where its log was read to when the stream began, and lines of that time seen again.
    tasks: BTreeMap<TaskId, (Mark, u64)>,
}

/// The state of a fan of logs. Times are milliseconds of any beginning.
#[derive(Debug)]
pub(crate) struct Fan {
    /// What is asked of each log.
    query: LogsRequest,
    tasks: BTreeMap<TaskId, TaskView>,
    nodes: BTreeMap<NodeId, NodeView>,
    streams: BTreeMap<u64, Open>,
    next: u64,
    finished: BTreeSet<TaskId>,
    /// Nodes whose failure was told, until they answer again.
    told: BTreeSet<NodeId>,
    pause: BTreeMap<NodeId, u64>,
    read: BTreeMap<TaskId, Mark>,
    /// No task is made any more.
    closed: bool,
}

impl Fan {
    /// A fan with the tail, time and `follow` of a request.
    pub(crate) fn new(query: LogsRequest) -> Self {
        Self {
            query,
            tasks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            streams: BTreeMap::new(),
            next: 0,
            finished: BTreeSet::new(),
            told: BTreeSet::new(),
            pause: BTreeMap::new(),
            read: BTreeMap::new(),
            closed: false,
        }
    }

    /// A task is there, or changed.
    pub(crate) fn task(&mut self, id: TaskId, view: TaskView) {
        self.tasks.insert(id, view);
    }

    /// A task was forgotten. A stream that has it goes on to its end.
    pub(crate) fn task_gone(&mut self, id: TaskId) {
        self.tasks.remove(&id);
        self.finished.remove(&id);
        self.read.remove(&id);
    }

    /// A node is there, or changed.
    pub(crate) fn node(&mut self, id: NodeId, view: NodeView) {
        self.nodes.insert(id, view);
    }

    /// A node was removed.
    pub(crate) fn node_gone(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    /// No more tasks will come.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// A node answered.
    pub(crate) fn opened(&mut self, stream: u64) {
        if let Some(open) = self.streams.get(&stream) {
            self.told.remove(&open.node);
        }
    }

    /// Takes a line of a stream: whether it is new.
    pub(crate) fn line(&mut self, stream: u64, entry: &LogEntry) -> bool {
        let Some(open) = self.streams.get_mut(&stream) else {
            return false;
        };
        let Ok(id) = entry.task.parse::<TaskId>() else {
            return false;
        };
        let Some((mark, again)) = open.tasks.get_mut(&id) else {
            return false;
        };
        if mark.lines > 0 && entry.time_ns <= mark.time_ns {
            if entry.time_ns < mark.time_ns {
                return false;
            }
            *again += 1;
            if *again <= mark.lines {
                return false;
            }
        }
        let read = self.read.entry(id).or_default();
        if read.time_ns == entry.time_ns {
            read.lines += 1;
        } else {
            *read = Mark {
                time_ns: entry.time_ns,
                lines: 1,
            };
        }
        true
    }

    /// A stream ended, or broke.
    pub(crate) fn ended(&mut self, stream: u64, result: Result<(), String>, now_ms: u64) -> Option<Act> {
        let open = self.streams.remove(&stream)?;
        let mut missing = Vec::new();
        for id in open.tasks.keys() {
            let over = self.tasks.get(id).is_none_or(|t| t.over);
            if !self.query.follow || (result.is_ok() && over) {
                self.finished.insert(*id);
            }
            if result.is_err() {
                missing.push(*id);
            }
        }
        // Ended, but not over: its daemon may be starting anew, or the news that it is over is on its way.
        self.pause.insert(open.node, now_ms + RETRY_MS);
        let reason = result.err()?;
        self.told
            .insert(open.node)
            .then(|| self.warning(open.node, &missing, &reason))
    }

    /// What is to be done now. Done, and asked again, it is nothing.
    pub(crate) fn step(&mut self, now_ms: u64) -> Vec<Act> {
        let covered: BTreeSet<TaskId> = self
            .streams
            .values()
            .flat_map(|s| s.tasks.keys().copied())
            .collect();
        let mut wanted: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        for (id, task) in &self.tasks {
            if let Some(node) = task.node.filter(|_| task.started)
                && !self.finished.contains(id)
                && !covered.contains(id)
            {
                wanted.entry(node).or_default().push(*id);
            }
        }
        let mut acts = Vec::new();
        for (node, tasks) in wanted {
            let out_of_reach = match self.nodes.get(&node) {
                None => Some("it is no part of the cluster any more"),
                Some(view) if view.down => Some("it is down"),
                Some(_) => None,
            };
            if let Some(reason) = out_of_reach {
                if self.told.insert(node) {
                    acts.push(self.warning(node, &tasks, reason));
                }
                if !self.query.follow || !self.nodes.contains_key(&node) {
                    self.finished.extend(tasks);
                }
            } else if self.pause.get(&node).is_none_or(|until| *until <= now_ms) {
                acts.push(self.open(node, &tasks));
            }
        }
        acts
    }

    /// When a step is due although nothing happened.
    pub(crate) fn wake_ms(&self, now_ms: u64) -> Option<u64> {
        self.pause.values().copied().filter(|at| *at > now_ms).min()
    }

    /// Whether nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        let pending = |(id, task): (&TaskId, &TaskView)| {
            let reachable = task
                .node
                .is_some_and(|n| self.nodes.get(&n).is_some_and(|n| !n.down));
            task.started && reachable && !self.finished.contains(id)
        };
        self.streams.is_empty() && (self.closed || !self.query.follow) && !self.tasks.iter().any(pending)
    }

    fn open(&mut self, node: NodeId, tasks: &[TaskId]) -> Act {
        let mark = |id: &TaskId| self.read.get(id).copied().unwrap_or_default();
        let known = tasks.iter().map(|id| (*id, (mark(id), 0)));
        let open = Open {
            node,
            tasks: known.collect(),
        };
        let mut request = LogsRequest {
            containers: tasks.iter().map(TaskId::to_string).collect(),
            lenient: true,
            ..self.query.clone()
        };
        if tasks.iter().any(|id| mark(id).lines > 0) {
            // Each goes on after the last line that was seen of it; the earliest of these is where reading begins.
            let earliest = tasks.iter().map(|id| mark(id).time_ns).min().unwrap_or(0);
            request.since_ns = request.since_ns.max(earliest);
            request.tail = None;
        }
        let stream = self.next;
        self.next += 1;
        self.streams.insert(stream, open);
        Act::Open {
            stream,
            node,
            request,
        }
    }

    fn warning(&self, node: NodeId, tasks: &[TaskId], reason: &str) -> Act {
        let name = |id: &TaskId| {
            self.tasks
                .get(id)
                .map_or_else(|| id.to_string(), |t| t.name.clone())
        };
        let mut names: Vec<String> = tasks.iter().take(NAMED_MAX).map(name).collect();
        if tasks.len() > NAMED_MAX {
            names.push(format!("{} more", tasks.len() - NAMED_MAX));
        }
        let node = self
            .nodes
            .get(&node)
            .map_or_else(|| node.to_string(), |n| n.hostname.clone());
        let until = if self.query.follow {
            "is missing until it is back"
        } else {
            "is left out"
        };
        Act::Warn(format!(
            "node {node} cannot be reached ({reason}): the output of {} {until}",
            names.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fan(follow: bool) -> Fan {
        let mut fan = Fan::new(LogsRequest {
            follow,
            tail: Some(5),
            ..LogsRequest::default()
        });
        for (id, name) in [(1, "h1"), (2, "h2")] {
            fan.node(NodeId(id), node(name, false));
        }
        for id in [11, 12, 21] {
            fan.task(TaskId(id), task(id, false));
        }
        fan
    }

    fn node(name: &str, down: bool) -> NodeView {
        NodeView {
            hostname: name.into(),
            down,
        }
    }

    fn task(id: u128, over: bool) -> TaskView {
        TaskView {
            name: format!("web.{id}"),
            node: Some(NodeId(id / 10)),
            started: true,
            over,
        }
    }

    fn line(id: u128, time_ns: u64) -> LogEntry {
        LogEntry {
            task: TaskId(id).to_string(),
            time_ns,
            ..LogEntry::default()
        }
    }

    /// Streams opened, with their nodes and numbers of tasks; and warnings.
    fn told(acts: &[Act]) -> (Vec<(u64, u128, usize)>, Vec<&str>) {
        let mut opened = Vec::new();
        let mut warned = Vec::new();
        for act in acts {
            match act {
                Act::Open {
                    stream,
                    node,
                    request,
                } => opened.push((*stream, node.0, request.containers.len())),
                Act::Warn(text) => warned.push(text.as_str()),
            }
        }
        (opened, warned)
    }

    #[test]
    fn each_node_is_asked_once_for_all_its_tasks() {
        let mut fan = fan(false);
        assert_eq!(told(&fan.step(0)), (vec![(0, 1, 2), (1, 2, 1)], vec![]));
        assert_eq!(fan.step(0), []);
        assert!(!fan.is_over());
        assert_eq!(fan.ended(0, Ok(()), 10), None);
        assert_eq!(fan.ended(1, Ok(()), 10), None);
        assert_eq!(fan.step(99_999), []);
        assert!(fan.is_over());
    }

    #[test]
    fn a_node_that_is_down_costs_one_warning_and_no_wait() {
        for follow in [false, true] {
            let mut fan = fan(follow);
            fan.node(NodeId(2), node("h2", true));
            let acts = fan.step(0);
            let (opened, warned) = told(&acts);
            assert_eq!(opened, [(0, 1, 2)]);
            assert_eq!(warned.len(), 1);
            assert!(
                warned[0].contains("node h2") && warned[0].contains("web.21"),
                "{warned:?}"
            );
            assert_eq!(fan.step(1), []);
            fan.ended(0, Ok(()), 2);
            assert_eq!(fan.is_over(), !follow);
        }
    }

    #[test]
    fn a_node_that_dies_is_told_once_and_asked_again() {
        let mut fan = fan(true);
        fan.step(0);
        fan.opened(1);
        assert!(fan.ended(1, Err("broke".into()), 100).is_some());
        assert_eq!(fan.step(100), []);
        assert_eq!(fan.wake_ms(100), Some(1100));
        assert_eq!(told(&fan.step(1100)).0, [(2, 2, 1)]);
        assert_eq!(fan.ended(2, Err("refused".into()), 1200), None);
        assert_eq!(told(&fan.step(2200)), (vec![(3, 2, 1)], vec![]));
        // Back, and lost again: that is news.
        fan.opened(3);
        assert!(fan.ended(3, Err("broke".into()), 5000).is_some());
    }

    #[test]
    fn what_was_seen_is_not_shown_again() {
        let mut fan = fan(true);
        fan.step(0);
        for time in [5, 7, 7] {
            assert!(fan.line(1, &line(21, time)));
        }
        fan.ended(1, Err("broke".into()), 0);
        let acts = fan.step(1000);
        let [Act::Open { request, .. }] = acts.as_slice() else {
            panic!("{acts:?}");
        };
        assert_eq!((request.since_ns, request.tail), (7, None));
        let shown: Vec<bool> = [5, 7, 7, 7, 8]
            .iter()
            .map(|t| fan.line(2, &line(21, *t)))
            .collect();
        assert_eq!(shown, [false, false, false, true, true]);
        // The mark of the next time counts what both streams brought.
        fan.ended(2, Err("broke".into()), 1000);
        fan.step(2000);
        assert!(!fan.line(3, &line(21, 8)) && fan.line(3, &line(21, 8)));
    }

    #[test]
    fn of_several_tasks_each_goes_on_where_it_was() {
        let mut fan = fan(true);
        fan.step(0);
        fan.line(0, &line(11, 50));
        fan.line(0, &line(12, 90));
        fan.ended(0, Ok(()), 0);
        let acts = fan.step(1000);
        let [Act::Open { request, .. }] = acts.as_slice() else {
            panic!("{acts:?}");
        };
        assert_eq!(request.since_ns, 50);
        assert!(!fan.line(2, &line(12, 60)) && !fan.line(2, &line(12, 90)) && fan.line(2, &line(12, 91)));
        assert!(!fan.line(2, &line(11, 50)) && fan.line(2, &line(11, 51)));
    }

    #[test]
    fn tasks_that_come_later_join_and_those_that_ended_are_finished() {
        let mut fan = fan(true);
        fan.step(0);
        let mut new = task(22, false);
        new.started = false;
        fan.task(TaskId(22), new);
        assert_eq!(fan.step(1), []);
        fan.task(TaskId(22), task(22, false));
        assert_eq!(told(&fan.step(2)).0, [(2, 2, 1)]);
        fan.task(TaskId(22), task(22, true));
        fan.ended(2, Ok(()), 3);
        assert_eq!(fan.step(99_999), []);
        // Removed altogether.
        for id in [11, 12, 21, 22] {
            fan.task_gone(TaskId(id));
        }
        fan.close();
        assert!(!fan.is_over());
        fan.ended(0, Ok(()), 4);
        fan.ended(1, Ok(()), 4);
        assert!(fan.is_over());
    }

    #[test]
    fn many_tasks_are_not_all_named() {
        let mut fan = fan(false);
        fan.node(NodeId(3), node("h3", true));
        for id in 0..30 {
            let mut view = task(id, false);
            view.node = Some(NodeId(3));
            fan.task(TaskId(100 + id), view);
        }
        let acts = fan.step(0);
        let (_, warned) = told(&acts);
        assert!(warned[0].contains("20 more"), "{warned:?}");
    }
}
