//! Spread preferences: branches of a tree of label values share the tasks evenly.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::NodeId;
use model::object::Node;

/// Keeps the nodes of the branches that have the fewest tasks of the service, one preference after the other.
pub(super) fn narrow(nodes: &mut Vec<&Arc<Node>>, preferences: &[String], tasks: &dyn Fn(NodeId) -> usize) {
    for preference in preferences {
        let mut branches: BTreeMap<String, usize> = BTreeMap::new();
        for node in nodes.iter() {
            *branches.entry(value(node, preference)).or_default() += tasks(node.id);
        }
        let Some(fewest) = branches.values().min().copied() else {
            return;
        };
        let Some((branch, _)) = branches.into_iter().find(|(_, count)| *count == fewest) else {
            return;
        };
        nodes.retain(|n| value(n, preference) == branch);
    }
}

/// The value of a label by which tasks are spread; a missing one is a branch of its own.
fn value(node: &Node, preference: &str) -> String {
    let found = if let Some(name) = preference.strip_prefix("node.labels.") {
        node.spec.labels.get(name)
    } else if let Some(name) = preference.strip_prefix("engine.labels.") {
        node.description.engine_labels.get(name)
    } else {
        None
    };
    found.cloned().unwrap_or_default()
}
