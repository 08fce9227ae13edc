//! Stands for Raft: one totally ordered log; proposals are refused, late or doubled, and leaders change.

use manager_core::{Action, Changes, Entry, State, Txn, assignments};
use model::assignment::{AssignmentDiff, AssignmentSet};
use model::object::Object;
use model::spec::UpdateOrder;
use model::task_state::TaskState;

use super::cluster::Cluster;
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
    /// Puts a transaction into the log and applies it. Answers whether it took effect.
    ///
    /// # Errors
    /// An invariant that does not hold any more.
    pub fn commit(&mut self, source: Source, txn: Txn) -> Result<bool, String> {
        if txn.is_empty() {
            return Ok(true);
        }
        if self.faults && self.rng.percent(3) {
            self.note("proposals refused", format!("{source:?} proposal refused"));
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

    fn apply(&mut self, source: Source, txn: Txn) -> Result<bool, String> {
        let before = self.state.clone();
        let checked = !txn.expect.is_empty();
        let entry = Entry {
            index: self.state.index() + 1,
            now: self.now,
            txn,
        };
        let changes = match self.state.apply(&entry) {
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
        Ok(true)
    }

    /// Sends each affected node what changed for it.
    fn tell_nodes(&mut self, changes: &Changes) {
        for node in assignments::nodes_affected(&self.state, changes) {
            let new = assignments::for_node(&self.state, node);
            let view = self.views.entry(node).or_default();
            let diff = assignments::diff(view, &new);
            merge(view, diff);
        }
    }

    fn observe(&mut self, source: Source, changes: &Changes) {
        let mut line = format!("{} {source:?}:", changes.index);
        for change in &changes.items {
            match (&change.before, &change.after) {
                (_, Some(Object::Task(t))) => {
                    line.push_str(&format!(
                        " {}/{:?} {} {}→{} on {:?}",
                        t.name(),
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
                    if ended && was != Some(t.status.state) {
                        self.healthy_updates.remove(&t.service);
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

/// What an agent does with a diff.
fn merge(view: &mut AssignmentSet, diff: AssignmentDiff) {
    view.tasks.extend(diff.update.tasks);
    view.networks.extend(diff.update.networks);
    view.secrets.extend(diff.update.secrets);
    view.configs.extend(diff.update.configs);
    view.services.extend(diff.update.services);
    diff.remove_tasks.iter().for_each(|k| drop(view.tasks.remove(k)));
    diff.remove_networks
        .iter()
        .for_each(|k| drop(view.networks.remove(k)));
    diff.remove_secrets
        .iter()
        .for_each(|k| drop(view.secrets.remove(k)));
    diff.remove_configs
        .iter()
        .for_each(|k| drop(view.configs.remove(k)));
    diff.remove_services
        .iter()
        .for_each(|k| drop(view.services.remove(k)));
}
