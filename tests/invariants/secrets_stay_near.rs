//! A node knows a secret only while a live task on it may read it (I43).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for (node, (_, view)) in &seen.cluster.views {
        for secret in view.secrets.keys() {
            let needed = seen.after.tasks_of_node(*node).any(|t| {
                let live = t.desired.is_live() && !t.status.state.is_terminal();
                live && t.spec.container.secrets.iter().any(|s| s.id == *secret)
            });
            if !needed {
                return Err(format!(
                    "node {} knows secret {secret} without a task for it",
                    node.0
                ));
            }
        }
    }
    Ok(())
}
