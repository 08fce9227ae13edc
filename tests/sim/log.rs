//! Proposals into the log: refused, doubled, stale, or lost with their leader, before or after they are in.

use std::collections::BTreeSet;
use std::time::Duration;

use agent_core::assignments as agent;
use manager_core::{Action, Changes, Entry, State, Txn, assignments};
use model::NodeId;
use model::assignment::AssignmentSet;
use model::object::{Object, Task};
use model::spec::UpdateOrder;
use model::task_state::TaskState;

use super::Plant;
use super::cluster::Cluster;
use super::manager::Fall;
use crate::invariants::{self, Seen};

/// Who proposed an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The leader's plan.
    Plan,
    /// A user.
    Admit,
    /// A node's agent.
    Agent,
    /// The leader's watch over nodes.
    Health,
}

impl Cluster {
    /// Puts a transaction into the log and applies it. Answers whether it is certain that it took effect.
    ///
    /// # Errors
    /// An invariant that does not hold any more.
    pub fn commit(&mut self, source: Source, txn: Txn) -> Result<bool, String> {
        if txn.is_empty() {
            return Ok(true);
        }
        if self.managers.lead.is_none() {
            return Ok(false);
        }
        if self.faults && self.rng.percent(3) {
            self.note("proposals refused", format!("{source:?} proposal refused"));
            return Ok(false);
        }
        if self.faults && self.rng.below(1_000) < 3 {
            let written = self.rng.percent(50);
            if written {
                self.apply(source, txn)?;
            }
            let how = self.fall();
            self.depose(how);
            let kind = if written { "answers lost" } else { "proposals lost" };
            self.note(kind, format!("{source:?}: its leader fell"));
            return Ok(false);
        }
        let again = self.faults && self.rng.percent(5);
        let applied = self.apply(source, txn.clone())?;
        if again {
            self.note("proposals doubled", format!("{source:?} proposal applied twice"));
            self.apply(source, txn)?;
        }
        Ok(applied)
    }

    /// One of the ways in which a leadership ends.
    pub(super) fn fall(&mut self) -> Fall {
        let time = Duration::from_millis(500 + self.rng.below(15_000));
        match self.rng.below(3) {
            0 => Fall::Moves,
            1 => Fall::Dies(time),
            _ => Fall::CutOff(time),
        }
    }

    fn apply(&mut self, source: Source, txn: Txn) -> Result<bool, String> {
        let before = self.state.clone();
        let checked = !txn.expect.is_empty();
        let entry = Entry {
            index: self.managers.log.len() as u64 + 1,
            now: self.managers.log_now(self.now),
            txn,
        };
        self.managers.log.push(Some(entry.clone()));
        let applied = self.state.apply(&entry);
        self.managers.applied(&entry, &self.state, self.now);
        let changes = match applied {
            Ok(changes) => changes,
            Err(stale) => {
                self.note("stale proposals", format!("{source:?}: {stale}"));
                return if same_objects(&before, &self.state) {
                    Ok(false)
                } else {
                    Err("a stale entry changed something".into())
                };
            }
        };
        if !checked && entry.txn.actions.iter().any(|a| matches!(a, Action::Delete(_))) {
            return Err("a deletion without a version".into());
        }
        self.dirty.add(&changes);
        self.tell_nodes(&changes);
        self.observe(source, &changes);
        let seen = Seen {
            before: &before,
            after: &self.state,
            changes: &changes,
            source,
            entry: &entry,
            cluster: self,
        };
        if let Some(problem) = invariants::check(&seen) {
            return Err(problem);
        }
        self.remember(source, &entry, &changes);
        Ok(true)
    }

    /// Notes what later checks compare with.
    fn remember(&mut self, source: Source, entry: &Entry, changes: &Changes) {
        let leader = self.managers.lead.as_ref().map(|l| l.term);
        self.last_entry = Some((leader.unwrap_or(0), entry.now, self.now));
        for change in &changes.items {
            match (&change.before, &change.after) {
                (_, None) => {
                    self.acked.remove(&change.key);
                }
                (before, Some(object)) => {
                    if let (None, Object::Task(task)) = (before, object) {
                        self.ids.insert(task.id);
                    }
                    if source == Source::Admit {
                        self.acked.insert(change.key, entry.index);
                    }
                }
            }
        }
    }

    /// Sends each affected node what changed for it.
    fn tell_nodes(&mut self, changes: &Changes) {
        let free = self.drains.take(changes);
        let mut nodes = assignments::nodes_affected(&self.state, changes);
        nodes.extend(free);
        self.tell(nodes);
    }

    /// Sends each of these nodes what changed for it, and those who need not wait then.
    pub(super) fn tell(&mut self, mut nodes: BTreeSet<NodeId>) {
        while let Some(node) = nodes.pop_first() {
            let new = self.whole(node);
            // The others are told everything when they register.
            let Some((number, view)) = self.views.get_mut(&node) else {
                continue;
            };
            let mut diff = assignments::diff(view, &new);
            if self.plant == Some(Plant::KeptSecrets) {
                diff.remove_secrets.clear();
            }
            if self.plant == Some(Plant::KeepsForgotten) {
                diff.remove_tasks.clear();
            }
            let changed = !diff.is_empty();
            agent::apply(view, diff);
            let (message, free) = self.drains.send(
                (node, self.streams.get(&node).copied().unwrap_or_default()),
                view,
                changed,
            );
            nodes.extend(free);
            if message.send {
                self.told += 1;
                *number = self.told;
            }
            if message.acknowledge != 0 {
                self.asked.insert(node, message.acknowledge);
            }
        }
    }

    /// Everything a node is to know.
    pub fn whole(&self, node: NodeId) -> AssignmentSet {
        let mut set = assignments::for_node(&self.state, node);
        if self.plant != Some(Plant::StopsAtOnce) {
            self.drains.hold(&self.state, &mut set);
        }
        set
    }

    /// Whether a task was made for a slot of which another still runs and is to go.
    fn follows_one_that_moves(&self, task: &Task) -> bool {
        let mut tasks = self.state.tasks_of_service(task.service);
        tasks.any(|t| {
            let live = t.desired.is_live() && !t.status.state.is_terminal();
            let goes = || t.moving > 0 || t.node.is_some_and(|n| invariants::must_leave(&self.state, n, t));
            t.id != task.id && t.slot == task.slot && live && goes()
        })
    }

    fn observe(&mut self, source: Source, changes: &Changes) {
        let mut line = format!("{} {source:?}:", changes.index);
        for change in &changes.items {
            match (&change.before, &change.after) {
                (_, Some(Object::Task(t))) => {
                    if change.before.is_none() && self.follows_one_that_moves(t) {
                        self.moved.insert((t.service, t.slot));
                        *self.counts.entry("moves").or_default() += 1;
                    }
                    if t.status.unready {
                        // It may be stopped at once.
                        self.healthy_moves.remove(&t.service);
                    }
                    line.push_str(&format!(
                        " {}/v{} {:?} {} {}→{} on {:?}",
                        t.name(),
                        t.spec_version,
                        t.spec.container.image,
                        &t.id.short(),
                        t.status.state.as_str(),
                        t.desired.as_str(),
                        t.node.map(|n| n.0)
                    ));
                    let was = change.before.as_ref().and_then(|o| match o {
                        Object::Task(t) => Some(t.status.state),
                        _ => None,
                    });
                    let ended = matches!(
                        t.status.state,
                        TaskState::Failed | TaskState::Rejected | TaskState::Complete | TaskState::Orphaned
                    );
                    if t.status.state == TaskState::Shutdown
                        && t.desired.is_live()
                        && was != Some(t.status.state)
                    {
                        *self
                            .counts
                            .entry("tasks stopped by their cut off hosts")
                            .or_default() += 1;
                    }
                    // One that its host stopped, cut off as it was, did not stop for a rollout either.
                    let ended = ended || (t.status.state == TaskState::Shutdown && t.desired.is_live());
                    if ended && was != Some(t.status.state) {
                        self.disturbed_by(t.service);
                    }
                }
                (was, Some(Object::Service(s))) => {
                    let orders = [s.spec.update.order, s.spec.rollback.order];
                    if orders.contains(&UpdateOrder::StartFirst) {
                        self.start_first.insert(s.id);
                    }
                    let state = s.update.as_ref().map(|u| u.state.as_str());
                    line.push_str(&format!(" service {} v{} {state:?}", s.spec.name, s.spec_version));
                    let earlier = was.as_ref().and_then(|o| match o {
                        Object::Service(s) => s.update.as_ref().map(|u| u.state.as_str()),
                        _ => None,
                    });
                    if let Some(now) = state.filter(|_| earlier != state) {
                        *self.counts.entry(now).or_default() += 1;
                    }
                }
                (Some(object), None) => line.push_str(&format!(" -{:?}", object.key())),
                (_, Some(object)) => line.push_str(&format!(" {:?}", object.key())),
                (None, None) => {}
            }
        }
        self.note("entries", line);
    }
}

fn same_objects(a: &State, b: &State) -> bool {
    a.objects().eq(b.objects())
}
