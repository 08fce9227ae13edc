//! Which nodes the others do not reach over the data plane, though they are heard of; pure.
//!
//! Agents say whom they do not reach; the leader finds the fewest nodes that explain it. It is kept in the nodes' status, so that
//! everybody sees it and a leader that follows goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::NodeId;
use model::object::{Node, NodeState, NodeStatus};

use crate::state::State;

/// Time between two looks: what many say within it is one entry.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A node is blamed no sooner than at this look since it is heard of: what was said of one that was cut off, or had no power, is old.
/// One that is silent at a look begins anew, as that may be all there is to it.
const STEADY: u32 = 4;
/// Most nodes that one node may say it does not reach; of more it says the first.
pub const SAID_MAX: usize = 256;

/// What one leader was told.
#[derive(Debug, Default)]
pub struct Watch {
    said: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// At how many looks in a row a node was heard of.
    heard: BTreeMap<NodeId, u32>,
}

impl Watch {
    /// Takes what a node says now of all others.
    pub fn say(&mut self, node: NodeId, unreached: impl IntoIterator<Item = NodeId>) {
        let unreached = unreached.into_iter().take(SAID_MAX).collect();
        self.said.insert(node, unreached);
    }

    /// Nodes whose status is to be another, where these are heard of now. That a node is well again is only believed once those
    /// have spoken whom it did not reach: a new leader has heard of nobody yet.
    pub fn review(&mut self, state: &State, heard: &BTreeSet<NodeId>) -> Vec<(NodeId, NodeStatus)> {
        let is_ready = |n: &Node| n.status.state == NodeState::Ready;
        let ready = |id: &NodeId| state.node(*id).is_some_and(|n| is_ready(n));
        self.said.retain(|id, _| ready(id));
        self.heard.retain(|id, _| ready(id) && heard.contains(id));
        for node in state.nodes().filter(|n| is_ready(n) && heard.contains(&n.id)) {
            let looks = self.heard.entry(node.id).or_default();
            *looks = looks.saturating_add(1);
        }
        let steady = |id: &NodeId| self.heard.get(id).is_some_and(|looks| *looks >= STEADY);
        let mut pairs = BTreeSet::new();
        for (node, others) in self.said.iter().filter(|(node, _)| steady(node)) {
            let others = others.iter().filter(|other| *other != node && steady(other));
            pairs.extend(others.map(|other| (*node.min(other), *node.max(other))));
        }
        let blamed = blame(pairs);
        let all = || state.nodes().filter(|n| is_ready(n));
        let has_spoken = |id: &NodeId| self.said.contains_key(id) || !ready(id);
        let change = |node: &std::sync::Arc<Node>| {
            let unreached = blamed.get(&node.id).into_iter().flatten().take(SAID_MAX);
            let unreached: Vec<NodeId> = unreached.copied().collect();
            let known = &node.status.unreached;
            let differs = unreached != *known && (!unreached.is_empty() || known.iter().all(has_spoken));
            let status = NodeStatus {
                unreached,
                ..node.status.clone()
            };
            differs.then_some((node.id, status))
        };
        all().filter_map(change).collect()
    }
}

/// Of pairs that do not reach each other: who is at fault, and whom it does not reach. Those that most others miss first, as one
/// broken host is likelier than many; of a pair that nothing else explains, both.
fn blame(mut pairs: BTreeSet<(NodeId, NodeId)>) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
    let mut blamed = BTreeMap::new();
    while !pairs.is_empty() {
        let mut others: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for (one, other) in &pairs {
            others.entry(*one).or_default().insert(*other);
            others.entry(*other).or_default().insert(*one);
        }
        let most = others.values().map(BTreeSet::len).max().unwrap_or(0);
        others.retain(|_, missed| missed.len() == most);
        pairs.retain(|(one, other)| !others.contains_key(one) && !others.contains_key(other));
        blamed.extend(others);
    }
    blamed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::object::Object;

    use super::*;
    use crate::orchestrate_tests::{Sim, node};

    fn ids(list: &[u128]) -> Vec<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn the_fewest_nodes_are_blamed() {
        type Row<'a> = (&'a str, &'a [(u128, u128)], &'a [(u128, &'a [u128])]);
        let rows: [Row<'_>; 6] = [
            ("nothing", &[], &[]),
            ("one host", &[(1, 3), (2, 3), (3, 4)], &[(3, &[1, 2, 4])]),
            ("one way between two", &[(1, 2)], &[(1, &[2]), (2, &[1])]),
            (
                "two hosts, each for itself",
                &[(1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (3, 5), (4, 5)],
                &[(3, &[1, 2, 4, 5]), (4, &[1, 2, 3, 5])],
            ),
            (
                "two halves",
                &[(1, 3), (1, 4), (2, 3), (2, 4)],
                &[(1, &[3, 4]), (2, &[3, 4]), (3, &[1, 2]), (4, &[1, 2])],
            ),
            (
                "a host, and a way between two others",
                &[(1, 5), (2, 5), (3, 5), (1, 2)],
                &[(1, &[2]), (2, &[1]), (5, &[1, 2, 3])],
            ),
        ];
        for (name, pairs, expected) in rows {
            let got = blame(pairs.iter().map(|(a, b)| (NodeId(*a), NodeId(*b))).collect());
            let expected = expected
                .iter()
                .map(|(id, missed)| (NodeId(*id), ids(missed).into_iter().collect()));
            assert_eq!(got, expected.collect(), "{name}");
        }
    }

    #[test]
    fn what_is_said_is_written_once_and_taken_back_when_those_have_spoken() {
        let mut objects: Vec<Object> = Sim::new(0).state.objects().collect();
        objects.retain(|o| !matches!(o, Object::Node(_)));
        let with = |unreached: &[&[u128]], down: u128| {
            let mut all = objects.clone();
            for (id, missed) in (1u128..).zip(unreached) {
                let mut host = node(id, &format!("h{id}"));
                host.status.unreached = ids(missed);
                if id == down {
                    host.status.state = NodeState::Down;
                }
                all.push(Object::Node(Arc::new(host)));
            }
            State::from_objects(1, all)
        };
        let well = with(&[&[], &[], &[]], 0);
        let all: BTreeSet<NodeId> = ids(&[1, 2, 3]).into_iter().collect();
        let mut watch = Watch::default();
        let written = |changes: Vec<(NodeId, NodeStatus)>| -> Vec<(u128, Vec<NodeId>)> {
            changes.into_iter().map(|(id, s)| (id.0, s.unreached)).collect()
        };
        watch.say(NodeId(1), ids(&[3, 3, 1, 77]));
        watch.say(NodeId(2), ids(&[3]));
        for _ in 1..STEADY {
            assert_eq!(
                watch.review(&well, &all),
                [],
                "it may have been heard of for a moment"
            );
        }
        assert_eq!(
            written(watch.review(&well, &all)),
            [(3, ids(&[1, 2]))],
            "others are no nodes, or itself"
        );
        let marked = with(&[&[], &[], &[1, 2]], 0);
        assert_eq!(watch.review(&marked, &all), [], "it stands there");
        // Another leader has heard of nobody, then of some, then of all.
        let mut next = Watch::default();
        assert_eq!(next.review(&marked, &all), []);
        next.say(NodeId(1), []);
        assert_eq!(next.review(&marked, &all), []);
        next.say(NodeId(2), []);
        assert_eq!(written(next.review(&marked, &all)), [(3, vec![])]);
        // A host that is down is reached by nobody, and that is no news.
        assert_eq!(watch.review(&with(&[&[], &[], &[]], 3), &all), []);
        // Nor is what is still said of it when it is back.
        for _ in 1..STEADY {
            assert_eq!(watch.review(&well, &all), []);
        }
        assert_eq!(written(watch.review(&well, &all)), [(3, ids(&[1, 2]))]);
        // One that is silent, before it counts as down or between two looks, is not blamed for that.
        let without: BTreeSet<NodeId> = ids(&[1, 2]).into_iter().collect();
        assert_eq!(watch.review(&well, &without), []);
        for _ in 1..STEADY {
            assert_eq!(watch.review(&well, &all), []);
        }
        assert_eq!(written(watch.review(&well, &all)), [(3, ids(&[1, 2]))]);
        let many: Vec<NodeId> = (0..1_000).map(NodeId).collect();
        watch.say(NodeId(1), many);
        assert_eq!(watch.said[&NodeId(1)].len(), SAID_MAX);
    }
}
