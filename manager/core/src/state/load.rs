//! Nodes by what they are and how full they are, so that whoever wants the emptiest that fits need not look at all of them.

use std::num::NonZeroU128;

use imbl::{OrdMap, OrdSet};
use model::object::{Node, Task};
use model::{Bytes, NanoCpus, NodeId};
use sha2::{Digest, Sha256};

/// What a task that reserves nothing counts for where nodes are compared, as in Kubernetes' scheduler.
const BARE_CPU: u64 = 100_000_000;
const BARE_MEMORY: u64 = 200 << 20;
/// Shares are counted in millionths.
const WHOLE: u64 = 1_000_000;

/// What the unfinished tasks of a node take of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Reserved CPU.
    pub cpu: NanoCpus,
    /// Reserved memory.
    pub memory: Bytes,
    /// Number of tasks.
    pub tasks: u32,
    /// Those of them that reserve neither CPU nor memory.
    pub bare: u32,
}

impl Usage {
    fn add(&mut self, task: &Task) {
        let taken = &task.spec.resources.reservations;
        self.cpu.0 = self.cpu.0.saturating_add(taken.cpu.0);
        self.memory.0 = self.memory.0.saturating_add(taken.memory.0);
        self.tasks += 1;
        self.bare += u32::from(is_bare(task));
    }

    fn remove(&mut self, task: &Task) {
        let taken = &task.spec.resources.reservations;
        self.cpu.0 = self.cpu.0.saturating_sub(taken.cpu.0);
        self.memory.0 = self.memory.0.saturating_sub(taken.memory.0);
        self.tasks = self.tasks.saturating_sub(1);
        self.bare = self.bare.saturating_sub(u32::from(is_bare(task)));
    }
}

fn is_bare(task: &Task) -> bool {
    let taken = &task.spec.resources.reservations;
    taken.cpu.0 == 0 && taken.memory.0 == 0
}

/// How full a node is, the emptiest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Fullness {
    /// Millionths of its CPUs or memory that are reserved or used, whichever is more. Of a node that does not say what it has: the most.
    pub(crate) share: u32,
    /// Number of its tasks.
    pub(crate) tasks: u32,
}

impl Fullness {
    const LEAST: Self = Self { share: 0, tasks: 0 };

    const MOST: Self = Self {
        share: u32::MAX,
        tasks: u32::MAX,
    };

    /// The share of a node that a task takes, in the same measure.
    pub(crate) fn share_of(task: &Task, node: &Node) -> u32 {
        let mut usage = Usage::default();
        usage.add(task);
        Self::of(&usage, (node.description.cpus, node.description.memory), 0).share
    }

    fn of(usage: &Usage, size: Size, used: u32) -> Self {
        let bare = u64::from(usage.bare);
        let share = |used: u64, bare_one: u64, all: u64, unit: u64| {
            let used = used.saturating_add(bare_one.saturating_mul(bare)) / unit;
            let share = used.saturating_mul(WHOLE).checked_div(all / unit);
            share.and_then(|s| u32::try_from(s).ok()).unwrap_or(u32::MAX)
        };
        let cpu = share(usage.cpu.0, BARE_CPU, size.0.0, 1_000);
        Self {
            share: cpu
                .max(share(usage.memory.0, BARE_MEMORY, size.1.0, 1 << 10))
                .max(used),
            tasks: usage.tasks,
        }
    }
}

/// CPUs and memory of a node.
type Size = (NanoCpus, Bytes);

/// What nodes of a class have in common, as the first half of a SHA-256 of it: all that can speak for or against a node but its
/// name, its address and what runs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class(NonZeroU128);

impl Class {
    fn of(node: &Node) -> Self {
        let (spec, about, status) = (&node.spec, &node.description, &node.status);
        let mut digest = Sha256::new();
        let mut word = |word: &str| {
            digest.update(word.len().to_be_bytes());
            digest.update(word);
        };
        word(&format!(
            "{:?} {:?} {:?} {} {} {} {}",
            spec.availability,
            spec.role,
            status.state,
            status.unreached.is_empty(),
            about.tunnel_key.is_some(),
            about.cpus.0,
            about.memory.0,
        ));
        word(&about.platform.os);
        word(&about.platform.arch);
        for labels in [&spec.labels, &about.engine_labels] {
            word(&labels.len().to_string());
            for (name, value) in labels {
                word(name);
                word(value);
            }
        }
        let digest: [u8; 32] = digest.finalize().into();
        let (half, _) = digest.split_first_chunk().unwrap_or((&[0; 16], &[]));
        Self(NonZeroU128::new(u128::from_be_bytes(*half)).unwrap_or(NonZeroU128::MAX))
    }

    fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

/// The index: what nodes are used for, and every node under its class, the emptiest of each first.
#[derive(Debug, Clone, Default)]
pub(super) struct Loads {
    nodes: OrdMap<NodeId, Standing>,
    by_class: OrdSet<(Class, Fullness, NodeId)>,
}

/// What is known of a node without looking at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    pub(crate) usage: Usage,
    size: Size,
    /// Millionths that are used of what it has, whatever is reserved.
    used: u32,
    pub(crate) fullness: Fullness,
    /// None: tasks are of it, and it is not (yet) there.
    pub(crate) class: Option<Class>,
}

impl Loads {
    pub(super) fn standing(&self, id: NodeId) -> Standing {
        self.nodes.get(&id).copied().unwrap_or_default()
    }

    /// Every class, with one of its nodes.
    pub(super) fn classes(&self) -> Vec<(Class, NodeId)> {
        let (mut found, mut from) = (Vec::new(), Some(Class(NonZeroU128::MIN)));
        // From one class to the next, not from node to node.
        while let Some(class) = from
            && let Some((class, _, id)) = self.by_class.get_next(&(class, Fullness::LEAST, NodeId(0)))
        {
            found.push((*class, *id));
            from = class.next();
        }
        found
    }

    /// The node of a class that follows one, or its emptiest.
    pub(super) fn next_of(
        &self,
        class: Class,
        after: Option<(Fullness, NodeId)>,
    ) -> Option<(Fullness, NodeId)> {
        let (fullness, id) = match after {
            Some((fullness, id)) => (fullness, NodeId(id.0.checked_add(1)?)),
            None => (Fullness::LEAST, NodeId(0)),
        };
        let (found, fullness, id) = self.by_class.get_next(&(class, fullness, id))?;
        (*found == class).then_some((*fullness, *id))
    }

    /// The node of a class that one follows, or its fullest.
    pub(super) fn before(
        &self,
        class: Class,
        before: Option<(Fullness, NodeId)>,
    ) -> Option<(Fullness, NodeId)> {
        let (fullness, id) = match before {
            Some((fullness, id)) if id.0 > 0 => (fullness, NodeId(id.0 - 1)),
            Some(_) => return None,
            None => (Fullness::MOST, NodeId(u128::MAX)),
        };
        let (found, fullness, id) = self.by_class.get_prev(&(class, fullness, id))?;
        (*found == class).then_some((*fullness, *id))
    }

    pub(super) fn put_node(&mut self, node: &Node) {
        let size = (node.description.cpus, node.description.memory);
        let class = Some(Class::of(node));
        let used = node.status.used;
        let used = u32::from(used.cpu.max(used.memory)) * 1_000;
        self.change(node.id, |load| {
            (load.size, load.class, load.used) = (size, class, used)
        });
    }

    pub(super) fn remove_node(&mut self, id: NodeId) {
        self.change(id, |load| load.class = None);
    }

    pub(super) fn add_task(&mut self, node: NodeId, task: &Task) {
        self.change(node, |load| load.usage.add(task));
    }

    pub(super) fn remove_task(&mut self, node: NodeId, task: &Task) {
        self.change(node, |load| load.usage.remove(task));
    }

    fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Standing)) {
        let was = self.standing(id);
        let mut is = was;
        change(&mut is);
        is.fullness = Fullness::of(&is.usage, is.size, is.used);
        if is.class.is_none() && is.usage.tasks == 0 {
            self.nodes.remove(&id);
        } else {
            self.nodes.insert(id, is);
        }
        if (was.class, was.fullness) == (is.class, is.fullness) {
            return;
        }
        if let Some(class) = was.class {
            self.by_class.remove(&(class, was.fullness, id));
        }
        if let Some(class) = is.class {
            self.by_class.insert((class, is.fullness, id));
        }
    }

    /// Whether it has the nodes as another has them.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.by_class == other.by_class
    }
}
