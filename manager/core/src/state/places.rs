//! Which tasks are on which node. A copy on which a decision is worked out keeps what it adds apart: tasks lie at random in the
//! large set, and each that was added would copy a leaf of it.

use imbl::OrdSet;
use model::{NodeId, TaskId};

#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    all: OrdSet<(NodeId, TaskId)>,
    /// What a copy added, and `all` has not.
    added: Option<OrdSet<(NodeId, TaskId)>>,
}

impl Index {
    /// A copy that keeps apart what is added to it.
    pub(super) fn aside(&self) -> Self {
        Self {
            all: self.all.clone(),
            added: Some(self.added.clone().unwrap_or_default()),
        }
    }

    /// Adds what it has not: looking for it would cost as much as was saved.
    pub(super) fn insert(&mut self, place: (NodeId, TaskId)) {
        self.added.as_mut().unwrap_or(&mut self.all).insert(place);
    }

    pub(super) fn remove(&mut self, place: &(NodeId, TaskId)) {
        let apart = self.added.as_mut().and_then(|added| added.remove(place));
        if apart.is_none() {
            self.all.remove(place);
        }
    }

    /// Tasks of a node, in the order of their ids.
    pub(super) fn of(&self, node: NodeId) -> impl Iterator<Item = TaskId> {
        let range = (node, TaskId(0))..=(node, TaskId(u128::MAX));
        let added = self.added.iter().filter(|added| !added.is_empty());
        merged(
            self.all.range(range.clone()),
            added.flat_map(move |added| added.range(range.clone())),
        )
        .map(|(_, task)| *task)
    }
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        let every = |index: &Self| -> Vec<(NodeId, TaskId)> {
            merged(index.all.iter(), index.added.iter().flatten())
                .copied()
                .collect()
        };
        every(self) == every(other)
    }
}

/// What is in either, in order; nothing is in both.
fn merged<T: Ord + Copy>(
    one: impl Iterator<Item = T>,
    other: impl Iterator<Item = T>,
) -> impl Iterator<Item = T> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || match (one.peek(), other.peek()) {
        (Some(a), Some(b)) if b < a => other.next(),
        (Some(_), _) => one.next(),
        (None, _) => other.next(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(NodeId, TaskId),
        Remove(NodeId, TaskId),
        Aside,
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = || (0u128..4, 0u128..6).prop_map(|(node, task)| (NodeId(node), TaskId(task)));
        prop_oneof![
            6 => place().prop_map(|(node, task)| Step::Insert(node, task)),
            4 => place().prop_map(|(node, task)| Step::Remove(node, task)),
            1 => Just(Step::Aside),
        ]
    }

    proptest! {
        #[test]
        fn a_copy_that_keeps_apart_what_it_adds_is_as_one_set(steps in prop::collection::vec(step(), 0..60)) {
            let (mut index, mut plain) = (Index::default(), BTreeSet::new());
            for step in steps {
                let (left, before) = (index.clone(), plain.clone());
                match step {
                    Step::Insert(node, task) => {
                        if plain.insert((node, task)) {
                            index.insert((node, task));
                        }
                    }
                    Step::Remove(node, task) => {
                        index.remove(&(node, task));
                        plain.remove(&(node, task));
                    }
                    Step::Aside => index = index.aside(),
                }
                // What it was copied from stays as it was.
                for (index, plain) in [(&index, &plain), (&left, &before)] {
                    for node in (0..4).map(NodeId) {
                        let want: Vec<TaskId> =
                            plain.iter().filter(|(n, _)| *n == node).map(|(_, task)| *task).collect();
                        prop_assert_eq!(index.of(node).collect::<Vec<_>>(), want);
                    }
                    let mut rebuilt = Index::default();
                    plain.iter().for_each(|place| rebuilt.insert(*place));
                    prop_assert!(rebuilt == *index);
                }
            }
        }
    }
}
