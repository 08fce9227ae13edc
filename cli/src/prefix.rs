//! What stands before the lines of a service's logs: `web.1.<id>@host    | `.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use model::object::{SlotKey, Task};
use model::{NodeId, TaskId};
use proto::host::LogEntry;

use crate::output::{Line, Output};
use crate::render;

/// Tasks that are no more whose names are kept.
const GONE_MAX: usize = 1000;

/// What stands before lines.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Tasks that are no more, the oldest first.
    pub(crate) gone: VecDeque<TaskId>,
    pub(crate) nodes: BTreeMap<NodeId, String>,
    /// What stands before lines of a task, until something changes.
    pub(crate) ready: BTreeMap<String, String>,
    pub(crate) raw: bool,
    pub(crate) details: bool,
    pub(crate) no_trunc: bool,
    pub(crate) no_task_ids: bool,
    pub(crate) no_resolve: bool,
}

impl Names {
    /// Prints a line; false once nobody reads any more.
    pub(crate) fn print(&mut self, entry: &LogEntry, out: &mut Output) -> bool {
        if !self.ready.contains_key(&entry.task) {
            let prefix = self.prefix(&entry.task);
            self.ready.insert(entry.task.clone(), prefix);
        }
        out.put(&Line {
            time_ns: entry.time_ns,
            stderr: entry.stderr,
            prefix: self.ready.get(&entry.task).map_or("", String::as_str),
            text: &entry.line,
            whole: !self.raw,
        })
    }

    /// Lines of a task that is no more may still be on their way, so its name stays for a while.
    pub(crate) fn forget(&mut self, id: TaskId) {
        self.gone.push_back(id);
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
        {
            self.tasks.remove(&oldest);
            self.ready.clear();
        }
    }

    /// `web.1.<id>@host    | `, as Docker has it.
    fn prefix(&self, task: &str) -> String {
        let known = task.parse::<TaskId>().ok().and_then(|id| self.tasks.get(&id));
        let (node, service) = known.map_or((None, None), |t| (t.node, Some(t.service)));
        let id = |id: Option<String>| id.unwrap_or_default();
        let details = if self.details {
            format!(
                "com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={task} ",
                id(node.map(|n| n.to_string())),
                id(service.map(|s| s.to_string()))
            )
        } else {
            String::new()
        };
        if self.raw {
            return details;
        }
        let mut name = match (known, self.no_resolve) {
            (None, _) => String::new(),
            (Some(known), false) => known.name(),
            (Some(known), true) => match known.slot {
                SlotKey::Replica(slot) => format!("{}.{slot}", known.service),
                SlotKey::Node(node) => format!("{}.{node}", known.service),
            },
        };
        if !self.no_task_ids {
            name.push('.');
            name.push_str(&render::short(task, self.no_trunc));
        }
        let host = match node {
            Some(node) if self.no_resolve => node.to_string(),
            Some(node) => self.nodes.get(&node).cloned().unwrap_or_else(|| node.to_string()),
            None => String::new(),
        };
        format!("{name}@{host}{}    | {details}", " ".repeat(self.padding(known)))
    }

    /// Spaces by which a short slot number is brought to the width of the longest.
    fn padding(&self, known: Option<&Arc<Task>>) -> usize {
        let digits = |task: &Arc<Task>| match task.slot {
            SlotKey::Replica(slot) => slot.max(1).ilog10(),
            SlotKey::Node(_) => 0,
        };
        let longest = self.tasks.values().map(digits).max().unwrap_or(0);
        let own = known.map_or(longest, digits);
        usize::try_from(longest - own).unwrap_or(0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::object::{Meta, TaskStatus};
    use model::spec::TaskSpec;
    use model::task_state::{DesiredState, TaskState};
    use model::{ServiceId, Timestamp};

    /// One that runs.
    pub(crate) fn task(slot: u32) -> Task {
        Task {
            id: TaskId(u128::from(slot) << 64),
            meta: Meta::default(),
            service: ServiceId(9),
            service_name: "web".into(),
            slot: SlotKey::Replica(slot),
            spec: Arc::new(TaskSpec::default()),
            spec_version: 1,
            node: Some(NodeId(7)),
            desired: DesiredState::Running,
            run_at: Timestamp(0),
            status: TaskStatus {
                state: TaskState::Running,
                at: Timestamp(0),
                message: String::new(),
                error: String::new(),
                container: None,
                unready: false,
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

    fn names(slots: &[u32]) -> Names {
        let mut names = Names::default();
        names.nodes.insert(NodeId(7), "h7".into());
        for slot in slots {
            let task = task(*slot);
            names.tasks.insert(task.id, Arc::new(task));
        }
        names
    }

    #[test]
    fn lines_begin_as_dockers_do() {
        let id = TaskId(1 << 64).to_string();
        let short = &id[..12];
        let plain = names(&[1, 12]);
        assert_eq!(plain.prefix(&id), format!("web.1.{short}@h7     | "));
        assert_eq!(names(&[1]).prefix(&id), format!("web.1.{short}@h7    | "));
        type Set = fn(&mut Names);
        let rows: [(&str, Set, String); 5] = [
            (
                "--no-trunc",
                |n| n.no_trunc = true,
                format!("web.1.{id}@h7    | "),
            ),
            ("--no-task-ids", |n| n.no_task_ids = true, "web.1@h7    | ".into()),
            (
                "--no-resolve",
                |n| n.no_resolve = true,
                format!("{}.1.{short}@{}    | ", ServiceId(9), NodeId(7)),
            ),
            ("--raw", |n| n.raw = true, String::new()),
            (
                "--raw --details",
                |n| (n.raw, n.details) = (true, true),
                format!(
                    "com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={id} ",
                    NodeId(7),
                    ServiceId(9)
                ),
            ),
        ];
        for (flag, set, wanted) in rows {
            let mut names = names(&[1]);
            set(&mut names);
            assert_eq!(names.prefix(&id), wanted, "{flag}");
        }
    }

    #[test]
    fn names_of_tasks_that_are_no_more_are_bounded() {
        let mut names = names(&[1]);
        names.forget(TaskId(1 << 64));
        assert_eq!(names.tasks.len(), 1);
        (0..1000).for_each(|n| names.forget(TaskId(n)));
        assert_eq!((names.tasks.len(), names.gone.len()), (0, GONE_MAX));
    }
}
