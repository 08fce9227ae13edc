//! Agents and managers talking: sessions, heartbeats, assignments down, reports up, each over links that may fail.

use std::collections::BTreeSet;
use std::time::Duration;

use agent_core::contact::session_over;
use manager_core::node_health::heartbeat_for;
use manager_core::{Action, Txn};
use model::object::{NodeState, NodeStatus, TaskStatus};
use model::{NodeId, TaskId, Timestamp};

use super::Plant;
use super::cluster::Cluster;
use super::log::Source;
use super::manager::{Lead, set};

/// Longest pause of an agent between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// Shortest such pause.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest time that a report is under way.
const FLIGHT_MAX: u64 = 6_000;

/// An agent's side of a session.
#[derive(Debug, Clone)]
pub struct Session {
    /// The manager it is with.
    pub manager: usize,
    /// Its name.
    pub id: String,
    /// When the next heartbeat is due.
    next_beat: Timestamp,
    /// A heartbeat that is not answered yet is given up then.
    deadline: Option<Timestamp>,
    period: Duration,
    /// Since when there is this session.
    pub since: Timestamp,
}

/// A report under way.
#[derive(Debug, Clone)]
pub struct Flight {
    due: Timestamp,
    node: NodeId,
    session: String,
    updates: Vec<(TaskId, TaskStatus)>,
}

impl Cluster {
    /// The leader's clock for sessions: one that nobody sets.
    pub(super) fn watch_now(&self) -> Timestamp {
        match (self.plant, &self.managers.lead) {
            (Some(Plant::WallClock), Some(lead)) => set(self.now, self.managers.all[lead.manager].wall),
            _ => self.now,
        }
    }

    /// Time between two heartbeats.
    pub fn period(&self) -> Duration {
        let configured = self
            .state
            .cluster()
            .map_or(Duration::from_secs(1), |c| c.heartbeat);
        heartbeat_for(configured, self.state.nodes().count())
    }

    /// Every agent keeps or finds its session, does what is due and reports what it can.
    ///
    /// # Errors
    /// A broken invariant.
    pub(super) fn agents(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        for node in nodes {
            let (now, faults) = (self.now, self.faults && !self.quiet);
            if let Some(host) = self.hosts.get_mut(&node)
                && host.paused_until.is_some_and(|until| until <= now)
            {
                (host.paused_until, host.resumed_at) = (None, now);
            }
            if !self.hosts.get(&node).is_some_and(super::host::Host::is_awake) {
                continue;
            }
            self.keep_session(node);
            self.find_session(node)?;
            self.deliver(node);
            let Some(host) = self.hosts.get_mut(&node) else {
                continue;
            };
            let reports = host.tick(now, &mut self.rng, faults)?;
            self.send(node, reports)?;
        }
        self.land()
    }

    /// Beats when it is time; ends a session that is not answered.
    fn keep_session(&mut self, node: NodeId) {
        let (now, period) = (self.now, self.period());
        let Some(host) = self.hosts.get(&node) else { return };
        let Some(session) = host.session.clone() else {
            return;
        };
        let stale = session_over(host.contact, session.period, now);
        if stale || session.deadline.is_some_and(|at| at <= now) {
            return self.lose(node, "a heartbeat was not answered");
        }
        if now < session.next_beat || session.deadline.is_some() {
            return;
        }
        let (sent, answered) = (host.heard, host.hears);
        let Some(answer) = self.beat(node, &session, sent, period) else {
            let until = now + session.period;
            if let Some(s) = self.hosts.get_mut(&node).and_then(|h| h.session.as_mut()) {
                s.deadline = Some(until);
            }
            return;
        };
        if answered && !answer {
            return self.lose(node, "the manager does not know the session");
        }
        let share = 900 + self.rng.below(200);
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(s) = host.session.as_mut() else { return };
        if answered {
            (host.contact, s.period, s.deadline) = (now, period, None);
            s.next_beat = now + period / 1_000 * u32::try_from(share).unwrap_or(1_000);
        } else {
            s.deadline = Some(now + s.period);
        }
    }

    /// A heartbeat at the manager; none: nobody answers there.
    fn beat(&mut self, node: NodeId, session: &Session, sent: bool, period: Duration) -> Option<bool> {
        let clock = self.watch_now();
        let manager = self.managers.all.get(session.manager)?;
        if !sent || manager.down_until.is_some() {
            return None;
        }
        if let Some(lead) = self
            .managers
            .lead
            .as_mut()
            .filter(|l| l.manager == session.manager)
        {
            let known = lead.watch.beat(&self.state, node, &session.id, period, clock);
            if known {
                self.heard.insert(node, self.now);
            }
            return Some(known);
        }
        match self
            .managers
            .stale
            .as_mut()
            .filter(|(l, _, _)| l.manager == session.manager)
        {
            // It believes what it knows, until it finds that nobody follows it.
            Some((Lead { watch, .. }, state, _)) => {
                Some(watch.beat(state, node, &session.id, period, self.now))
            }
            None => Some(false),
        }
    }

    fn lose(&mut self, node: NodeId, why: &str) {
        let now = self.now;
        let pause = Duration::from_millis(self.rng.below(100));
        if let Some(host) = self.hosts.get_mut(&node) {
            host.session = None;
            host.next_try = (now + pause, BACKOFF_MIN);
        }
        self.note("sessions lost", format!("node {}: {why}", node.0));
    }

    /// Looks for the leader.
    fn find_session(&mut self, node: NodeId) -> Result<(), String> {
        let now = self.now;
        let Some(host) = self.hosts.get(&node) else {
            return Ok(());
        };
        if host.session.is_some() || host.next_try.0 > now {
            return Ok(());
        }
        let reached = host.hears && host.heard && self.register(node)?;
        let pause = self.rng.below(1_000);
        if let Some(host) = self.hosts.get_mut(&node)
            && !reached
        {
            let most = (host.next_try.1 * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
            host.next_try = (now + most / 1_000 * u32::try_from(pause).unwrap_or(0), most);
        }
        Ok(())
    }

    /// Registers with the leader. One that is cut off gives no session: it would have to read what is newest first.
    fn register(&mut self, node: NodeId) -> Result<bool, String> {
        let Some(lead) = &self.managers.lead else {
            return Ok(false);
        };
        let (manager, term, period, sent) = (lead.manager, lead.term, self.period(), self.now);
        self.serial += 1;
        let id = format!("{}-{}", term, self.serial);
        let clock = self.watch_now();
        if let Some(lead) = self.managers.lead.as_mut() {
            lead.watch.register(node, id.clone(), period, clock);
        }
        self.heard.insert(node, sent);
        let known = self.state.node(node).map(|n| n.status.clone());
        if known.as_ref() != Some(&NodeStatus::ready()) {
            let action = Action::NodeSeen {
                node,
                description: None,
                status: NodeStatus::ready(),
            };
            let txn = Txn {
                expect: Vec::new(),
                actions: vec![action],
            };
            if !self.commit(Source::Health, txn)? {
                return Ok(false);
            }
            if known.is_some_and(|k| k.state == NodeState::Down) {
                self.disturbed();
                self.note("node returns", format!("node {} is back", node.0));
                if let Some(host) = self.hosts.get_mut(&node) {
                    host.back_at = sent;
                }
            }
        }
        // The whole set first, differences from then on.
        self.told += 1;
        self.asked.remove(&node);
        let stream = self.drains.open(node);
        self.streams.insert(node, stream);
        self.views.insert(node, (self.told, self.whole(node)));
        self.tell([node].into());
        self.note(
            "sessions",
            format!("node {} registers with manager {manager}", node.0),
        );
        let beat = period / 1_000 * u32::try_from(self.rng.below(1_000)).unwrap_or(0);
        if let Some(host) = self.hosts.get_mut(&node) {
            host.reached(sent);
            host.session = Some(Session {
                manager,
                id,
                next_beat: sent + beat,
                deadline: None,
                period,
                since: sent,
            });
        }
        Ok(true)
    }

    /// Whether a node's session is with the leader, as both see it.
    pub fn is_connected(&self, node: NodeId) -> bool {
        let session = self.hosts.get(&node).and_then(|h| h.session.as_ref());
        let lead = self.managers.lead.as_ref();
        session
            .is_some_and(|s| lead.is_some_and(|l| l.manager == s.manager && l.watch.is_current(node, &s.id)))
    }

    /// What the leader has for a node arrives.
    fn deliver(&mut self, node: NodeId) {
        if !self.is_connected(node) {
            return;
        }
        let (Some(host), Some((number, view))) = (self.hosts.get_mut(&node), self.views.get(&node)) else {
            return;
        };
        if host.hears && host.known.as_ref().is_none_or(|(n, _)| n != number) {
            host.known = Some((*number, view.clone()));
        }
        let up_to_date = host.known.as_ref().is_some_and(|(n, _)| n == number);
        if let Some(asked) = self
            .asked
            .get(&node)
            .copied()
            .filter(|_| up_to_date && host.heard)
        {
            self.asked.remove(&node);
            let free = self.drains.acknowledged(node, asked);
            self.tell(free);
        }
    }

    /// Sends reports, which arrive at once or later.
    fn send(&mut self, node: NodeId, updates: Vec<(TaskId, TaskStatus)>) -> Result<(), String> {
        let Some(host) = self.hosts.get(&node) else {
            return Ok(());
        };
        let Some(session) = host.session.as_ref().filter(|_| host.heard) else {
            return Ok(());
        };
        let busy = self
            .flights
            .iter()
            .any(|f| f.node == node && f.session == session.id);
        if updates.is_empty() || busy {
            return Ok(());
        }
        let manager = session.manager;
        let id = session.id.clone();
        if self.managers.lead.as_ref().is_none_or(|l| l.manager != manager) {
            self.lose(node, "the manager cannot write a report");
            return Ok(());
        }
        let late = self.faults && self.rng.percent(10);
        let wait = if late { self.rng.below(FLIGHT_MAX) } else { 0 };
        self.flights.push(Flight {
            due: self.now + Duration::from_millis(wait),
            node,
            session: id,
            updates,
        });
        Ok(())
    }

    /// Reports arrive at the leader: those of the current session of a node are written.
    fn land(&mut self) -> Result<(), String> {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.flights)
            .into_iter()
            .partition(|f| f.due <= now);
        self.flights = later;
        let due: Vec<Flight> = due;
        for flight in due {
            let Some(lead) = &self.managers.lead else {
                return Ok(());
            };
            let current = lead.watch.is_current(flight.node, &flight.session);
            if !current && self.plant != Some(Plant::NoSessionCheck) {
                self.note(
                    "reports of old sessions",
                    format!("a report of an old session of node {} is refused", flight.node.0),
                );
                continue;
            }
            let node = flight.node;
            let actions = (flight.updates.into_iter())
                .map(|(task, status)| Action::TaskStatus { node, task, status })
                .collect();
            self.reporting = Some((node, flight.session));
            let written = self.commit(
                Source::Agent,
                Txn {
                    expect: Vec::new(),
                    actions,
                },
            );
            self.reporting = None;
            written?;
        }
        Ok(())
    }

    /// The leader's watch over nodes.
    ///
    /// # Errors
    /// A broken invariant.
    pub(super) fn health(&mut self) -> Result<(), String> {
        let clock = self.watch_now();
        let configured = self
            .state
            .cluster()
            .map_or(Duration::from_secs(1), |c| c.heartbeat);
        let Some(lead) = self.managers.lead.as_mut() else {
            return Ok(());
        };
        let review = lead
            .watch
            .review(&self.state, configured, &BTreeSet::new(), clock);
        let ours: Vec<(NodeId, NodeStatus)> = (review.declare.into_iter())
            .filter(|(node, _)| self.hosts.contains_key(node))
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        if ours.len() > 1 {
            self.note(
                "nodes lost together",
                "several nodes are down in one entry".into(),
            );
        }
        let early = self.plant == Some(Plant::EarlyReplacement);
        let seen = |(node, mut status): (NodeId, NodeStatus)| {
            if early {
                status.silent = Duration::MAX;
            }
            Action::NodeSeen {
                node,
                description: None,
                status,
            }
        };
        let nodes: Vec<NodeId> = ours.iter().map(|(n, _)| *n).collect();
        let lost: Vec<NodeId> = (nodes.iter().copied())
            .filter(|n| {
                self.state
                    .node(*n)
                    .is_some_and(|n| n.status.state != NodeState::Down)
            })
            .collect();
        let actions = ours.into_iter().map(seen).collect();
        let txn = Txn {
            expect: Vec::new(),
            actions,
        };
        self.disturbed();
        if !self.commit(Source::Health, txn)? {
            return Ok(());
        }
        for node in &lost {
            self.note("node losses", format!("node {} is down", node.0));
        }
        if lost.len() < nodes.len() {
            self.note(
                "silences told",
                "a node is silent for as long as a task waits".into(),
            );
        }
        if let Some(lead) = self.managers.lead.as_mut() {
            for node in nodes {
                lead.watch.end_silent(node, clock);
            }
        }
        Ok(())
    }
}
