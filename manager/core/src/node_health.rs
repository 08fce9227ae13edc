//! When a node that is not heard of counts as down.

use std::time::Duration;

use model::Timestamp;
use model::object::{NodeState, NodeStatus};

/// Heartbeats a node may miss.
pub const MISSES: u32 = 3;

/// The time at which a node last heard of at `seen` is down.
pub fn down_at(seen: Timestamp, heartbeat: Duration) -> Timestamp {
    seen + heartbeat * MISSES
}

/// What a node is that was last heard of at `seen`.
pub fn status(seen: Timestamp, heartbeat: Duration, now: Timestamp) -> NodeStatus {
    if now >= down_at(seen, heartbeat) {
        let silent = now.since(seen).as_secs_f64();
        return NodeStatus {
            state: NodeState::Down,
            message: format!("silent for {silent:.1} s"),
        };
    }
    NodeStatus {
        state: NodeState::Ready,
        message: String::new(),
    }
}
