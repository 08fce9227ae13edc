//! Spread preferences: branches of a tree of label values share the tasks evenly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::object::Node;

/// Nodes by the branches they are on, each with the tasks of the service there: the branch with the fewest is found without
/// looking at every node.
pub(super) struct Tree<R>(Branch<R>);

/// The branches that a node is on, the outermost first.
pub(super) type Path = Vec<Arc<str>>;

struct Branch<R> {
    tasks: usize,
    /// Below the last preference: its nodes, the best first.
    nodes: BTreeSet<R>,
    /// Further branches, by what they are called, and by how few tasks they have.
    branches: BTreeMap<Arc<str>, Branch<R>>,
    order: BTreeSet<(usize, Arc<str>)>,
}

impl<R> Default for Branch<R> {
    fn default() -> Self {
        Self {
            tasks: 0,
            nodes: BTreeSet::new(),
            branches: BTreeMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<R: Ord + Copy> Tree<R> {
    pub(super) fn new() -> Self {
        Self(Branch::default())
    }

    /// Adds a node with its rank and its tasks of the service.
    pub(super) fn insert(&mut self, path: &[Arc<str>], rank: R, tasks: usize) {
        self.0.insert(path, rank, tasks);
    }

    /// Takes it away, as it was added.
    pub(super) fn remove(&mut self, path: &[Arc<str>], rank: R, tasks: usize) {
        self.0.remove(path, rank, tasks);
    }

    /// The best rank in the branch with the fewest tasks, preference by preference.
    pub(super) fn best(&self) -> Option<R> {
        let mut branch = &self.0;
        while let Some((_, name)) = branch.order.first() {
            branch = branch.branches.get(name)?;
        }
        branch.nodes.first().copied()
    }
}

impl<R: Ord + Copy> Branch<R> {
    fn insert(&mut self, path: &[Arc<str>], rank: R, tasks: usize) {
        self.tasks += tasks;
        let Some((name, rest)) = path.split_first() else {
            self.nodes.insert(rank);
            return;
        };
        let is_new = !self.branches.contains_key(name);
        let branch = self.branches.entry(name.clone()).or_default();
        let before = branch.tasks;
        branch.insert(rest, rank, tasks);
        if is_new || tasks > 0 {
            self.order.remove(&(before, name.clone()));
            self.order.insert((branch.tasks, name.clone()));
        }
    }

    fn remove(&mut self, path: &[Arc<str>], rank: R, tasks: usize) {
        self.tasks -= tasks;
        let Some((name, rest)) = path.split_first() else {
            self.nodes.remove(&rank);
            return;
        };
        let Some(branch) = self.branches.get_mut(name) else {
            return;
        };
        let before = branch.tasks;
        branch.remove(rest, rank, tasks);
        let (after, is_empty) = (
            branch.tasks,
            branch.nodes.is_empty() && branch.branches.is_empty(),
        );
        // One without nodes is none.
        if is_empty {
            self.branches.remove(name);
        }
        if is_empty || after != before {
            self.order.remove(&(before, name.clone()));
        }
        if !is_empty && after != before {
            self.order.insert((after, name.clone()));
        }
    }
}

/// Where a node is.
pub(super) fn path(node: &Node, preferences: &[String]) -> Path {
    preferences.iter().map(|p| value(node, p).into()).collect()
}

/// The value of a label by which tasks are spread; a missing one is a branch of its own.
pub(super) fn value<'a>(node: &'a Node, preference: &str) -> &'a str {
    let found = if let Some(name) = preference.strip_prefix("node.labels.") {
        node.spec.labels.get(name)
    } else if let Some(name) = preference.strip_prefix("engine.labels.") {
        node.description.engine_labels.get(name)
    } else {
        None
    };
    found.map_or("", String::as_str)
}
