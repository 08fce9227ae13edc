//! Managers over one log: elections, followers that lag, restarts from a snapshot, leaders that are cut off.
//!
//! The log stands for Raft: one order, one leader a term, a leader has every committed entry before it decides.

use std::time::Duration;

use manager_core::drains::Drains;
use manager_core::log_time::LogClock;
use manager_core::node_health::{STALE_LEADER_MAX, Watch};
use manager_core::{Dirty, Entry, State};
use model::Timestamp;
use model::object::Object;

use super::Plant;
use super::cluster::Cluster;
use crate::invariants;

/// Shortest and longest time without a leader, in ms.
const ELECTION: (u64, u64) = (1_500, 3_000);

/// One manager.
#[derive(Debug, Clone)]
pub struct Manager {
    /// When its process is there again; absent: it is.
    pub down_until: Option<Timestamp>,
    /// Until when the other managers do not reach it, while agents do; absent: they do.
    pub cut_until: Option<Timestamp>,
    /// How much its wall clock is ahead, in ms.
    pub wall: i64,
    state: State,
    /// Entries of the log it has applied.
    applied: usize,
    /// What is on its disk beside the log: entries in it, index, time, objects.
    snapshot: (usize, u64, Timestamp, Vec<Object>),
    clock: LogClock,
}

impl Manager {
    fn new(now: Timestamp) -> Self {
        Self {
            down_until: None,
            cut_until: None,
            wall: 0,
            state: State::new(),
            applied: 0,
            snapshot: (0, 0, Timestamp(0), Vec::new()),
            clock: LogClock::new(now, now),
        }
    }

    /// Whether the others reach it.
    pub fn in_quorum(&self) -> bool {
        self.down_until.is_none() && self.cut_until.is_none()
    }

    fn catch_up(&mut self, log: &[Option<Entry>], to: usize, now: Timestamp) {
        for entry in log.iter().take(to).skip(self.applied).flatten() {
            self.clock.applied(entry.now, now);
            // A stale one is refused alike by everybody.
            let _ = self.state.apply(entry);
        }
        self.applied = self.applied.max(to.min(log.len()));
    }

    /// The process starts anew: from disk, and by its wall clock.
    fn restart(&mut self, now: Timestamp) {
        let (applied, index, time, objects) = &self.snapshot;
        self.state = State::from_snapshot(*index, *time, objects.iter().cloned());
        self.applied = *applied;
        self.clock = LogClock::new(set(now, self.wall), now);
        self.clock.applied(*time, now);
        self.down_until = None;
    }

    fn take_snapshot(&mut self) {
        self.snapshot = (
            self.applied,
            self.state.index(),
            self.state.time(),
            self.state.objects().collect(),
        );
    }
}

/// A clock that is `wall` ms ahead; it does not go before 1970.
pub fn set(now: Timestamp, wall: i64) -> Timestamp {
    Timestamp(now.0.saturating_add_signed(wall))
}

/// What a leader has in memory alone.
#[derive(Debug, Clone)]
pub struct Lead {
    /// Which manager.
    pub manager: usize,
    /// In which term.
    pub term: u64,
    /// Since when.
    pub since: Timestamp,
    /// Sessions.
    pub watch: Watch,
}

/// All managers.
#[derive(Debug, Default)]
pub struct Managers {
    /// Each.
    pub all: Vec<Manager>,
    /// Everything committed; a leader begins its term with an empty entry.
    pub log: Vec<Option<Entry>>,
    /// The newest term.
    pub term: u64,
    /// The leader.
    pub lead: Option<Lead>,
    /// One that does not know yet that it leads no more, its state, and until when.
    pub stale: Option<(Lead, State, Timestamp)>,
    /// When there will be a leader again.
    election_at: Timestamp,
}

impl Managers {
    /// So many, without a leader.
    pub fn new(count: usize, now: Timestamp) -> Self {
        Self {
            all: vec![Manager::new(now); count],
            ..Self::default()
        }
    }

    /// Whether most of them reach each other.
    pub fn has_quorum(&self) -> bool {
        self.all.iter().filter(|m| m.in_quorum()).count() > self.all.len() / 2
    }

    /// The time for the next entry, by the leader's clock.
    pub fn log_now(&mut self, now: Timestamp) -> Timestamp {
        let Some(lead) = &self.lead else { return now };
        let manager = &mut self.all[lead.manager];
        manager.clock.now(set(now, manager.wall), now)
    }

    /// The leader has applied the newest entry as well.
    pub fn applied(&mut self, entry: &Entry, state: &State, now: Timestamp) {
        let Some(lead) = &self.lead else { return };
        let manager = &mut self.all[lead.manager];
        manager.clock.applied(entry.now, now);
        manager.state = state.clone();
        manager.applied = self.log.len();
    }
}

/// How a leadership ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fall {
    /// Another is elected.
    Moves,
    /// Its process ends, for so long.
    Dies(Duration),
    /// The others do not reach it, for so long.
    CutOff(Duration),
}

impl Cluster {
    /// The leader leads no more; answers whether there was one.
    pub fn depose(&mut self, how: Fall) -> bool {
        let Some(lead) = self.managers.lead.take() else {
            return false;
        };
        let manager = &mut self.managers.all[lead.manager];
        let kind = match how {
            Fall::Moves => "leaders that moved",
            Fall::Dies(time) => {
                manager.down_until = Some(self.now + time);
                "leaders that died"
            }
            Fall::CutOff(time) => {
                manager.cut_until = Some(self.now + time);
                let state = manager.state.clone();
                let until = self.now + Duration::from_millis(self.rng.below(as_ms(STALE_LEADER_MAX)));
                self.managers.stale = Some((lead.clone(), state, until));
                "leaders in a minority"
            }
        };
        let wait = ELECTION.0 + self.rng.below(ELECTION.1 - ELECTION.0);
        self.managers.election_at = self.now + Duration::from_millis(wait);
        // What was on its way to it is lost.
        self.flights.clear();
        self.note(kind, format!("{kind}: manager {}", lead.manager));
        true
    }

    /// A manager takes over: it catches up with the log, and has neither timers nor sessions.
    ///
    /// # Errors
    /// Its state is not what everybody else's is.
    pub fn elect(&mut self) -> Result<(), String> {
        let able: Vec<usize> = (0..self.managers.all.len())
            .filter(|m| self.managers.all[*m].in_quorum())
            .collect();
        if !self.managers.has_quorum() {
            return Ok(());
        }
        let Some(winner) = self.rng.pick(&able) else {
            return Ok(());
        };
        self.managers.log.push(None);
        self.managers.term += 1;
        let (log, now) = (&self.managers.log, self.now);
        let manager = &mut self.managers.all[winner];
        manager.catch_up(log, log.len(), now);
        invariants::same_state(&manager.state, &self.state, &self.acked)?;
        self.state = manager.state.clone();
        let began = if self.plant == Some(Plant::NoGrace) {
            now - Duration::from_secs(60)
        } else {
            now
        };
        self.managers.lead = Some(Lead {
            manager: winner,
            term: self.managers.term,
            since: now,
            watch: Watch::new(began),
        });
        self.dirty = Dirty::everything();
        self.dirty.add_joined();
        self.wake.clear();
        self.views.clear();
        self.asked.clear();
        self.drains = Drains::default();
        self.drains.restart(&self.state);
        self.heard.clear();
        self.counters.clear();
        self.note(
            "leader changes",
            format!("manager {winner} leads term {}", self.managers.term),
        );
        Ok(())
    }

    /// What managers do by themselves as time passes.
    ///
    /// # Errors
    /// Managers whose states differ.
    pub(super) fn manage(&mut self) -> Result<(), String> {
        let now = self.now;
        if self
            .managers
            .stale
            .as_ref()
            .is_some_and(|(_, _, until)| *until <= now)
        {
            self.managers.stale = None;
        }
        for at in 0..self.managers.all.len() {
            let manager = &mut self.managers.all[at];
            if manager.cut_until.is_some_and(|until| until <= now) {
                manager.cut_until = None;
            }
            if manager.down_until.is_some_and(|until| until <= now) {
                manager.restart(now);
                self.note("manager restarts", format!("manager {at} starts from its disk"));
            }
            self.follow(at);
        }
        if self.managers.lead.is_some() && !self.managers.has_quorum() {
            self.depose(Fall::Moves);
        }
        if self.managers.lead.is_none() && self.managers.election_at <= now {
            self.elect()?;
        }
        Ok(())
    }

    /// A follower applies some of what it does not have yet, or takes a snapshot instead.
    fn follow(&mut self, at: usize) {
        let leads = self.managers.lead.as_ref().is_some_and(|l| l.manager == at);
        let (end, now) = (self.managers.log.len(), self.now);
        let manager = &mut self.managers.all[at];
        if leads || !manager.in_quorum() || !self.rng.percent(30) {
            return;
        }
        let choice = self.rng.below(100);
        if choice < 4 {
            let mut objects: Vec<Object> = self.state.objects().collect();
            if self.plant == Some(Plant::ShortSnapshot) {
                objects.pop();
            }
            manager.state = State::from_snapshot(self.state.index(), self.state.time(), objects);
            manager.clock.applied(self.state.time(), now);
            manager.applied = end;
            manager.take_snapshot();
            self.note("snapshots installed", format!("manager {at} is given a snapshot"));
            return;
        }
        let behind = u64::try_from(end - manager.applied).unwrap_or(0);
        let some = manager.applied + usize::try_from(self.rng.below(behind + 1)).unwrap_or(0);
        manager.catch_up(&self.managers.log, some, now);
        if choice < 12 {
            manager.take_snapshot();
        }
    }

    /// Every manager catches up; all have the same state.
    ///
    /// # Errors
    /// One that differs.
    pub(super) fn managers_agree(&mut self) -> Result<(), String> {
        let (log, now) = (&self.managers.log, self.now);
        for manager in &mut self.managers.all {
            manager.catch_up(log, log.len(), now);
            invariants::same_state(&manager.state, &self.state, &self.acked)?;
        }
        Ok(())
    }
}

fn as_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
