//! A cluster in memory for tests: the real state and plan, and a node that does what it is told.

use model::object::{Meta, Node, NodeDescription, NodeSpec, NodeState, NodeStatus};
use model::spec::Platform;
use model::{Bytes, NanoCpus, NodeId, Timestamp};

/// A ready worker.
pub(crate) fn node(id: u128, hostname: &str) -> Node {
    Node {
        id: NodeId(id),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: hostname.into(),
            platform: Platform {
                os: "linux".into(),
                arch: "amd64".into(),
            },
            cpus: NanoCpus(4_000_000_000),
            memory: Bytes(8 << 30),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
        },
    }
}

/// Where tests begin.
pub(crate) const START: Timestamp = Timestamp(1_000_000);
