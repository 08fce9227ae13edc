//! What goes wrong: leaders, hosts, connections and daemons.

use manager_core::{Dirty, assignments};
use model::NodeId;

use super::cluster::Cluster;

impl Cluster {
    /// Another manager leads: it has the log, and neither timers nor heartbeats.
    pub(super) fn new_leader(&mut self) {
        self.dirty = Dirty::everything();
        self.wake.clear();
        self.seen.clear();
        self.note("leader changes", "another manager leads".into());
    }

    /// One fault, or the end of one.
    pub(super) fn fault(&mut self) {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let Some(id) = self.rng.pick(&nodes) else { return };
        let (now, choice) = (self.now, self.rng.below(10));
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let kind = match choice {
            0..=1 => {
                self.new_leader();
                return;
            }
            2 if host.up => {
                host.up = false;
                host.reboot(now);
                "hosts lost power"
            }
            3 if host.connected => {
                host.connected = false;
                "hosts cut off"
            }
            4..=7 => {
                if host.up && host.connected {
                    return;
                }
                (host.up, host.connected) = (true, true);
                "hosts back"
            }
            8 => {
                // The daemon restarts, adopts its containers and is told everything anew.
                self.views.insert(id, assignments::for_node(&self.state, id));
                "daemon restarts"
            }
            _ => return,
        };
        self.note(kind, format!("{kind}: {}", id.0));
    }
}
