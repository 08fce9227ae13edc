//! How busy nodes are, for placing: what their tasks use, as far as it is worth an entry of the log; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use model::NodeId;
use model::object::{NodeState, NodeStatus, NodeUse};

use crate::state::State;

/// Time between two looks: what changes within it is one entry.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Thousandths of a node by which its use has to change: what is less is not written.
const STEP: u16 = 150;

/// What one leader was told.
#[derive(Debug, Default)]
pub struct Watch {
    said: BTreeMap<NodeId, NodeUse>,
}

impl Watch {
    /// Takes what a node says that its tasks use.
    pub fn say(&mut self, node: NodeId, used: NodeUse) {
        self.said.insert(node, used.within_bounds());
    }

    /// Nodes whose status is to be another.
    pub fn review(&mut self, state: &State) -> Vec<(NodeId, NodeStatus)> {
        let is_ready = |id: &NodeId| {
            let node = state.node(*id);
            node.is_some_and(|n| n.status.state == NodeState::Ready)
        };
        self.said.retain(|id, _| is_ready(id));
        let change = |(id, said): (&NodeId, &NodeUse)| {
            let known = &state.node(*id)?.status;
            let (cpu, memory) = (
                said.cpu.abs_diff(known.used.cpu),
                said.memory.abs_diff(known.used.memory),
            );
            let status = NodeStatus {
                used: *said,
                ..known.clone()
            };
            (cpu.max(memory) >= STEP).then_some((*id, status))
        };
        self.said.iter().filter_map(change).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::object::Object;

    use super::*;
    use crate::orchestrate_tests::node;

    #[test]
    fn what_changes_much_is_written_once() {
        let used = |cpu, memory| NodeUse { cpu, memory };
        let state = |known: NodeUse, state| {
            let mut host = node(1, "h1");
            (host.status.used, host.status.state) = (known, state);
            State::from_objects(1, [Object::Node(Arc::new(host))])
        };
        for (name, known, said, written) in [
            ("a little", used(0, 0), used(149, 149), None),
            ("much of the CPUs", used(0, 0), used(150, 0), Some(used(150, 0))),
            (
                "much of the memory",
                used(0, 300),
                used(10, 500),
                Some(used(10, 500)),
            ),
            ("as it is known", used(700, 0), used(700, 0), None),
            ("not busy any more", used(700, 0), used(20, 0), Some(used(20, 0))),
            (
                "more than there is",
                used(0, 0),
                used(9_000, 0),
                Some(used(1_000, 0)),
            ),
        ] {
            let mut watch = Watch::default();
            watch.say(NodeId(1), said);
            watch.say(NodeId(77), said);
            let got = watch.review(&state(known, NodeState::Ready));
            let got = got.first().map(|(id, status)| (*id, status.used));
            assert_eq!(got, written.map(|w| (NodeId(1), w)), "{name}");
            assert_eq!(
                watch.review(&state(known, NodeState::Down)),
                [],
                "{name}: of one that is down"
            );
        }
    }
}
