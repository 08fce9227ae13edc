//! What goes wrong: leaders, managers, hosts, links, daemons and clocks.

use std::time::Duration;

use model::NodeId;

use super::Plant;
use super::cluster::Cluster;
use super::manager::Fall;

/// Leaps of wall clocks, in ms: an hour either way, ten years, and back to 1970.
const LEAPS: [i64; 4] = [3_600_000, -3_600_000, 315_360_000_000, i64::MIN];

impl Cluster {
    /// One fault, or the end of one.
    pub(super) fn fault(&mut self) {
        match self.rng.below(20) {
            0..=2 => {
                let how = self.fall();
                self.depose(how);
            }
            3 => self.follower_dies(),
            4 => self.leap(),
            5 if !self.quiet => self.power_off_everything(),
            choice => self.host_fault(choice),
        }
    }

    fn follower_dies(&mut self) {
        let leader = self.managers.lead.as_ref().map(|l| l.manager);
        let at = self.rng.below(self.managers.all.len() as u64);
        let until = self.now + Duration::from_millis(500 + self.rng.below(15_000));
        let at = usize::try_from(at).unwrap_or(0);
        if leader != Some(at) {
            self.managers.all[at].down_until = Some(until);
            self.note("followers that died", format!("manager {at} dies"));
        }
    }

    /// A wall clock is set: of a manager, the leader first, or of a host.
    fn leap(&mut self) {
        let leap = self.rng.pick(&LEAPS).unwrap_or_default();
        if self.rng.percent(60) {
            let leader = self.managers.lead.as_ref().map_or(0, |l| l.manager);
            self.set_manager_clock(leader, leap);
        } else {
            let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
            if let Some(id) = self.rng.pick(&nodes) {
                self.set_host_clock(id, leap);
            }
        }
    }

    /// Sets the wall clock of a manager so much ahead of the right time.
    pub(super) fn set_manager_clock(&mut self, at: usize, ahead: i64) {
        self.managers.all[at].wall = ahead;
        self.note(
            "clock leaps of managers",
            format!("manager {at}: its clock is {ahead} ms ahead"),
        );
    }

    /// Sets the wall clock of a host so much ahead of the right time.
    pub(super) fn set_host_clock(&mut self, id: NodeId, ahead: i64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.wall = ahead;
            self.note(
                "clock leaps of hosts",
                format!("node {}: its clock is {ahead} ms ahead", id.0),
            );
        }
    }

    /// Power goes off for every host and every manager, and comes back.
    pub(super) fn power_off_everything(&mut self) {
        let now = self.now;
        self.depose(Fall::Moves);
        for manager in &mut self.managers.all {
            let time = Duration::from_millis(2_000 + self.rng.below(10_000));
            manager.down_until = Some(now + time);
        }
        for host in self.hosts.values_mut() {
            host.up = false;
            host.reboot(now);
        }
        self.back_on_at = Some(now + Duration::from_millis(2_000 + self.rng.below(20_000)));
        self.disturbed();
        self.note("power failures", "power goes off everywhere".into());
    }

    /// Power comes back everywhere when it is time.
    pub(super) fn power_on(&mut self) {
        if self.back_on_at.is_some_and(|at| at <= self.now) {
            self.back_on_at = None;
            for host in self.hosts.values_mut() {
                host.up = true;
            }
        }
    }

    fn host_fault(&mut self, choice: u64) {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let Some(id) = self.rng.pick(&nodes) else { return };
        let (now, plant, quiet) = (self.now, self.plant, self.quiet);
        let long = Duration::from_millis(20_000 + self.rng.below(30_000));
        // Too short to be noticed: a heartbeat was due up to 1.1 periods before, and three have to be missed.
        let short = self.period() * u32::try_from(self.rng.below(150)).unwrap_or(0) / 100;
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let kind = match choice {
            6 if host.up && !quiet => {
                host.up = false;
                host.reboot(now);
                "hosts lost power"
            }
            7 | 8 if host.hears && host.heard && !quiet => {
                (host.hears, host.heard) = (false, false);
                "hosts cut off"
            }
            9 if !quiet => {
                host.heard = false;
                "hosts not heard"
            }
            10 if !quiet => {
                host.hears = false;
                "hosts that do not hear"
            }
            11 if host.is_awake() && !quiet => {
                host.paused_until = Some(now + long);
                "hosts paused"
            }
            12 if host.is_awake() => {
                host.paused_until = Some(now + short);
                "hosts paused shortly"
            }
            13..=15 => {
                if host.up && host.hears && host.heard {
                    return;
                }
                (host.up, host.hears, host.heard) = (true, true, true);
                "hosts back"
            }
            16 if host.is_awake() => {
                // The daemon restarts, adopts its containers and is told everything anew.
                host.restart(now);
                if plant == Some(Plant::KillsOnStart) {
                    host.kill_all();
                }
                "daemon restarts"
            }
            _ => return,
        };
        self.note(kind, format!("{kind}: {}", id.0));
    }
}
