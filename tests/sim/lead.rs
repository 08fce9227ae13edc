//! The leader's loop: plans until nothing is left to do, and is asked again whether that is so.

use manager_core::node_health::Unheard;
use manager_core::{Action, Dirty, State, Txn, plan};
use model::ServiceId;
use model::object::Object;

use super::Plant;
use super::cluster::Cluster;
use super::log::Source;

/// Plans until nothing is left to do at one time; more are a plan that never settles.
const PLANS_MAX: u32 = 40;
/// Of so many plans in a hundred that count failures of a rollout the leader does not outlive it.
const FALLS_COUNTING: u64 = 5;

impl Cluster {
    /// The state a plan is made on: with the planted bug, failures of rollouts are counted in memory alone.
    fn remembered(&self) -> State {
        match self.plant {
            Some(Plant::CountersInRam) => {}
            Some(Plant::FreesEarly) => return self.freed_early(),
            Some(Plant::DrainStopsFirst) => return self.drained_at_once(),
            Some(_) | None => return self.state.clone(),
        }
        let forget = |object: Object| match object {
            Object::Service(s) if s.update.is_some() => {
                let mut service = (*s).clone();
                if let Some(update) = &mut service.update {
                    let kept = self
                        .counters
                        .get(&s.id)
                        .filter(|(began, _)| *began == update.started_at);
                    update.failed_slots = kept.map(|(_, slots)| slots.clone()).unwrap_or_default();
                }
                Object::Service(service.into())
            }
            other => other,
        };
        State::from_objects(self.state.index(), self.state.objects().map(forget))
    }

    /// With the planted bug, nobody reads how a node is to be drained.
    fn drained_at_once(&self) -> State {
        let plain = |object: Object| match object {
            Object::Node(n) => {
                let mut node = (*n).clone();
                node.spec.drain = None;
                Object::Node(node.into())
            }
            other => other,
        };
        State::from_objects(self.state.index(), self.state.objects().map(plain))
    }

    /// With the planted bug, what tasks hold that are told to stop counts as free.
    fn freed_early(&self) -> State {
        let free = |object: Object| match object {
            Object::Task(t) if !t.desired.is_live() => {
                let mut task = (*t).clone();
                task.addresses.clear();
                Object::Task(task.into())
            }
            other => other,
        };
        State::from_objects(self.state.index(), self.state.objects().map(free))
    }

    /// With the same bug, they keep it all the same.
    fn give_back(&self, txn: &mut Txn) {
        for action in &mut txn.actions {
            if let Action::Put(Object::Task(task)) = action
                && let Some(known) = self.state.task(task.id)
                && task.addresses.is_empty()
            {
                let mut whole = (**task).clone();
                whole.addresses.clone_from(&known.addresses);
                *task = whole.into();
            }
        }
    }

    fn keep_counters(&mut self, txn: &Txn) {
        for action in &txn.actions {
            if let Action::Put(Object::Service(s)) = action
                && let Some(update) = &s.update
            {
                let kept = (update.started_at, update.failed_slots.clone());
                self.counters.insert(s.id, kept);
            }
        }
    }

    /// Whom the leader has not heard of; with the planted bug it trusts everybody.
    fn unheard(&mut self) -> Unheard {
        let clock = self.watch_now();
        let trusting = self.plant == Some(Plant::TrustsUnheard);
        let lead = self.managers.lead.as_mut().filter(|_| !trusting);
        lead.map(|l| l.watch.unheard(&self.state, clock))
            .unwrap_or_default()
    }

    /// The leader plans until nothing is left; sometimes something comes between plan and proposal.
    pub(super) fn lead(&mut self) -> Result<(), String> {
        if self.managers.lead.is_none() {
            return Ok(());
        }
        let now = self.managers.log_now(self.now);
        let due: Vec<ServiceId> = self
            .wake
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.wake.remove(&id);
            self.dirty.add_service(id);
        }
        let unheard = self.unheard();
        if unheard != self.unheard {
            self.unheard = unheard;
            self.dirty.add_room();
            self.dirty.add_joined();
        }
        for _ in 0..PLANS_MAX {
            if self.dirty.is_empty() {
                return self.settled();
            }
            let dirty = self.dirty.take();
            let now = self.managers.log_now(self.now);
            let unheard = self.unheard();
            let mut next = plan(&self.remembered(), &dirty, &unheard, now, &mut self.rng);
            if self.plant == Some(Plant::FreesEarly) {
                self.give_back(&mut next.txn);
            }
            self.keep_counters(&next.txn);
            for (id, at) in &next.wake {
                self.wake
                    .entry(*id)
                    .and_modify(|w| *w = (*w).min(*at))
                    .or_insert(*at);
            }
            if self.faults && self.rng.percent(3) {
                // Reports are first in the log; who decides something waits for his turn (`manager_server::writer`).
                self.agents()?;
            }
            if self.managers.lead.is_none() {
                return Ok(());
            }
            let counts_failures = next.txn.actions.iter().any(has_failures);
            if !self.commit(Source::Plan, next.txn)? {
                self.dirty = Dirty::everything();
                if self.managers.lead.is_none() {
                    return Ok(());
                }
                if self.faults && self.rng.percent(20) {
                    let how = self.fall();
                    self.depose(how);
                    return Ok(());
                }
            }
            // When it matters most: the next leader has to know what this one counted.
            if self.faults && counts_failures && self.rng.percent(FALLS_COUNTING) {
                let how = self.fall();
                self.depose(how);
                return Ok(());
            }
        }
        Err(format!("{PLANS_MAX} plans were not enough"))
    }

    /// What must hold once the leader has nothing left to do.
    fn settled(&mut self) -> Result<(), String> {
        if !self.rng.percent(25) {
            return Ok(());
        }
        let now = self.managers.log_now(self.now);
        let unheard = self.unheard();
        let again = plan(
            &self.remembered(),
            &Dirty::everything(),
            &unheard,
            now,
            &mut self.rng.clone(),
        );
        // Why a task waits is written when what it waits for may be there; that something else took the room is not looked for.
        let only_says_why = |action: &Action| match action {
            Action::Put(Object::Task(t)) => self.state.task(t.id).is_some_and(|known| {
                let mut known = (**known).clone();
                let waits = known.node.is_none() && t.node.is_none();
                known.status.error.clone_from(&t.status.error);
                waits && known == **t
            }),
            _ => false,
        };
        if !again.txn.actions.iter().all(only_says_why) {
            let mut lines = String::new();
            for action in &again.txn.actions {
                match action {
                    Action::Put(Object::Task(t)) => {
                        let was = (self.state.task(t.id))
                            .map(|t| (t.desired, t.status.state, t.node, t.status.error.clone()));
                        lines.push_str(&format!(
                            "\n  {} {} was {was:?}, becomes {:?} {} {}",
                            t.name(),
                            t.id.short(),
                            (t.desired, t.status.state, t.node),
                            t.status.message,
                            t.status.error
                        ));
                    }
                    Action::Put(Object::Service(s)) => {
                        lines.push_str(&format!("\n  {} becomes {:?}", s.spec.name, s.update));
                    }
                    other => lines.push_str(&format!("\n  {other:?}")),
                }
            }
            return Err(format!(
                "plan_is_settled: the plan of a planned state is not empty:{lines}"
            ));
        }
        for (id, at) in &again.wake {
            if *at > now && self.wake.get(id).is_none_or(|known| known > at) {
                return Err(format!(
                    "plan_is_settled: service {id} wants to be woken at {at:?}, but nobody knows"
                ));
            }
        }
        crate::invariants::check_settled(&self.state).map_or(Ok(()), Err)
    }
}

/// Whether an action counts failures of a rollout.
fn has_failures(action: &Action) -> bool {
    matches!(action, Action::Put(Object::Service(s)) if s.update.as_ref().is_some_and(|u| !u.failed_slots.is_empty()))
}
