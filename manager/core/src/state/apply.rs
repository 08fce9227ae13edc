//! The only writer: one entry of the log, wholly or not at all, the same on every manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::Timestamp;
use model::object::{Key, Meta, Object, Revision, Task, TaskStatus};
use model::task_state::TaskState;

use super::State;
use crate::schedule::PREEMPTED;
use crate::txn::{Action, Change, Changes, Entry, Stale};

impl State {
    /// Applies one entry.
    ///
    /// # Errors
    /// [`Stale`] when an expected version differs; then nothing changed but index and time.
    pub fn apply(&mut self, entry: &Entry) -> Result<Changes, Stale> {
        self.index = self.index.max(entry.index);
        self.time = self.time.max(entry.now);
        for (key, expected) in &entry.txn.expect {
            let found = self.version(*key);
            if found != *expected {
                return Err(Stale {
                    key: *key,
                    expected: *expected,
                    found,
                });
            }
        }
        for action in &entry.txn.actions {
            if let Action::Answer(answer) = action
                && let Some((found, _)) = self.answer(answer.request.id)
            {
                return Err(Stale {
                    key: Key::Cluster,
                    expected: 0,
                    found,
                });
            }
        }
        let mut before: BTreeMap<Key, Option<Object>> = BTreeMap::new();
        for action in &entry.txn.actions {
            if let Some((key, was)) = self.act(action, entry) {
                before.entry(key).or_insert(was);
            }
        }
        let mut items = Vec::with_capacity(before.len());
        for (key, was) in before {
            let after = self.object(key);
            if was != after {
                items.push(Change {
                    key,
                    before: was,
                    after,
                });
            }
        }
        Ok(Changes {
            index: entry.index,
            items,
        })
    }

    /// Performs one action; answers the object it touched, as it was.
    fn act(&mut self, action: &Action, entry: &Entry) -> Option<(Key, Option<Object>)> {
        match action {
            Action::Put(object) => {
                let key = object.key();
                let was = self.object(key);
                let created = was.as_ref().map_or(entry.now, |o| o.meta().created_at);
                let object = self.shared(remembering(object.clone(), was.as_ref()));
                let object = fenced(object, was.as_ref(), entry.index);
                self.put(stamped(object, entry.index, created, entry.now));
                Some((key, was))
            }
            Action::Delete(key) => {
                let was = self.object(*key)?;
                self.delete(*key);
                Some((*key, Some(was)))
            }
            Action::Answer(answer) => {
                self.remember(entry.index, answer.clone());
                None
            }
            Action::TaskStatus { node, task, status } => {
                let old = self.tasks.get(task).filter(|t| t.node == Some(*node)).cloned()?;
                let new = reported(&old, status, entry)?;
                self.put(Object::Task(Arc::new(new)));
                Some((Key::Task(*task), Some(Object::Task(old))))
            }
            Action::NodeSeen {
                node,
                description,
                status,
            } => {
                // A node that was removed meanwhile does not come back by being heard of.
                let old = self.nodes.get(node).cloned()?;
                let mut new = (*old).clone();
                if let Some(d) = description {
                    new.description = (**d).clone();
                }
                new.status = status.clone();
                if *old == new {
                    return None;
                }
                new.meta.version = entry.index;
                new.meta.updated_at = entry.now;
                self.put(Object::Node(Arc::new(new)));
                Some((Key::Node(*node), Some(Object::Node(old))))
            }
        }
    }

    /// Lets a task share the spec of its service, so that a thousand replicas hold it once.
    fn shared(&self, object: Object) -> Object {
        let Object::Task(task) = &object else {
            return object;
        };
        if let Some(old) = self.tasks.get(&task.id) {
            if !Arc::ptr_eq(&old.spec, &task.spec) && old.spec == task.spec {
                let spec = old.spec.clone();
                return Object::Task(Arc::new(Task {
                    spec,
                    ..(**task).clone()
                }));
            }
            return object;
        }
        let sibling = self
            .tasks_of_service(task.service)
            .find(|t| t.spec_version == task.spec_version);
        match sibling {
            Some(s) if s.spec == task.spec => Object::Task(Arc::new(Task {
                spec: s.spec.clone(),
                ..(**task).clone()
            })),
            Some(_) | None => object,
        }
    }
}

/// The task with a newer sighting, or nothing when the sighting is old.
fn reported(old: &Task, seen: &TaskStatus, entry: &Entry) -> Option<Task> {
    let mut seen = seen.clone();
    // Its agent knows that it is to end, and not for whom.
    if seen.error.is_empty() && old.status.error.starts_with(PREEMPTED) {
        seen.error.clone_from(&old.status.error);
    }
    let later = seen.at >= old.status.at && seen.is_news_to(&old.status);
    let newer = seen.state > old.status.state || (seen.state == old.status.state && later);
    // An agent moves a task only within its own part of the ladder: what becomes of a lost one is the manager's to say.
    let its_part = TaskState::Accepted..=TaskState::Rejected;
    let allowed = its_part.contains(&seen.state) && old.status.state >= TaskState::Assigned;
    if !newer || !allowed || old.status.state.is_terminal() {
        return None;
    }
    let mut new = old.clone();
    new.status = seen;
    if new.status.state == TaskState::Running && new.running_at.is_none() {
        new.running_at = Some(entry.now);
    }
    new.unready_at = new.status.unready.then(|| old.unready_at.unwrap_or(entry.now));
    if new.status.state.is_terminal() {
        new.ended_at = Some(entry.now);
    }
    new.meta.version = entry.index;
    new.meta.updated_at = entry.now;
    Some(new)
}

/// A service goes on with the specs it had: what writes it has them not, as that would be all of them with every write.
fn remembering(object: Object, was: Option<&Object>) -> Object {
    let (Object::Service(new), Some(Object::Service(old))) = (&object, was) else {
        return object;
    };
    let mut service = (**new).clone();
    service.history.clone_from(&old.history);
    if new.spec_version != old.spec_version && new.made.is_some() {
        service.push_revision(Revision {
            number: old.spec_version,
            spec: old.spec.clone(),
            made: old.made.clone().unwrap_or_default(),
        });
    }
    Object::Service(Arc::new(service))
}

/// Gives a new task the index of its entry, and every later version of it the one it was given.
fn fenced(object: Object, was: Option<&Object>, index: u64) -> Object {
    let Object::Task(mut task) = object else {
        return object;
    };
    let fence = match was {
        Some(Object::Task(old)) => old.fence,
        _ => index,
    };
    Arc::make_mut(&mut task).fence = fence;
    Object::Task(task)
}

fn stamped(object: Object, version: u64, created_at: Timestamp, updated_at: Timestamp) -> Object {
    let meta = Meta {
        version,
        created_at,
        updated_at,
    };
    macro_rules! stamp {
        ($variant:ident, $o:expr) => {{
            let mut object = $o;
            Arc::make_mut(&mut object).meta = meta;
            Object::$variant(object)
        }};
    }
    match object {
        Object::Cluster(o) => stamp!(Cluster, o),
        Object::Node(o) => stamp!(Node, o),
        Object::Service(o) => stamp!(Service, o),
        Object::Task(o) => stamp!(Task, o),
        Object::Network(o) => stamp!(Network, o),
        Object::Secret(o) => stamp!(Secret, o),
        Object::Config(o) => stamp!(Config, o),
    }
}
