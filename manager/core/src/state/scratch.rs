//! A copy of the state on which a decision is worked out, and the transaction that comes of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Deref;
use std::sync::Arc;

use model::object::{Key, Object, Service, Task};
use model::{ServiceId, TaskId};

use super::State;
use crate::txn::{Action, Txn};

/// A copy of the state that remembers which objects were touched.
///
/// Decisions later in a plan see what earlier ones wrote, and an object that ends as it began costs no action.
pub(crate) struct Scratch {
    now: State,
    origin: State,
    touched: BTreeMap<Key, Touched>,
    /// What was only read; the same key may be there more than once.
    relied: Vec<Key>,
}

/// An object as it was, and as it is.
struct Touched {
    was: Option<Object>,
    is: Option<Object>,
}

impl Deref for Scratch {
    type Target = State;
    fn deref(&self) -> &State {
        &self.now
    }
}

impl Scratch {
    pub(crate) fn new(state: &State) -> Self {
        Self {
            now: state.aside(),
            origin: state.clone(),
            touched: BTreeMap::new(),
            relied: Vec::new(),
        }
    }

    /// Makes the transaction stale when an object it only read has changed meanwhile.
    pub(crate) fn rely_on(&mut self, key: Key) {
        self.relied.push(key);
    }

    /// How many objects were touched so far.
    pub(crate) fn touched(&self) -> usize {
        self.touched.len()
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.touch(object.key(), Some(object.clone()));
        self.now.put(object);
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.touch(key, None);
        self.now.delete(key);
    }

    fn touch(&mut self, key: Key, is: Option<Object>) {
        match self.touched.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().is = is,
            Entry::Vacant(new) => {
                let was = self.now.object(key);
                new.insert(Touched { was, is });
            }
        }
    }

    /// Changes a task in place; one that is gone stays gone.
    pub(crate) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut Task)) {
        if let Some(old) = self.now.task(id).cloned() {
            self.change_task(&old, edit);
        }
    }

    /// The same of a task at hand, as it is now; answers what became of it.
    pub(crate) fn change_task(&mut self, old: &Arc<Task>, edit: impl FnOnce(&mut Task)) -> Arc<Task> {
        debug_assert!(self.now.task(old.id).is_some_and(|now| Arc::ptr_eq(now, old)));
        let mut task = old.clone();
        edit(Arc::make_mut(&mut task));
        let is = Some(Object::Task(task.clone()));
        match self.touched.entry(Key::Task(old.id)) {
            Entry::Occupied(mut known) => known.get_mut().is = is,
            Entry::Vacant(new) => {
                let was = Some(Object::Task(old.clone()));
                new.insert(Touched { was, is });
            }
        }
        self.now.put_task(Some(old), task.clone());
        task
    }

    /// Changes a service in place; one that is gone stays gone.
    pub(crate) fn edit_service(&mut self, id: ServiceId, edit: impl FnOnce(&mut Service)) {
        if let Some(service) = self.now.service(id) {
            let mut service = (**service).clone();
            edit(&mut service);
            self.put(Object::Service(Arc::new(service)));
        }
    }

    /// The transaction from the origin to here: deletions last, so that what refers goes before what is referred to
    /// never matters to a reader of the actions.
    pub(crate) fn into_txn(self) -> Txn {
        let mut txn = Txn {
            expect: Vec::with_capacity(self.touched.len() + self.relied.len()),
            actions: Vec::with_capacity(self.touched.len()),
        };
        let mut deletes = Vec::new();
        for (key, Touched { was, is }) in self.touched {
            if is_same(was.as_ref(), is.as_ref()) {
                continue;
            }
            txn.expect
                .push((key, was.as_ref().map_or(0, |o| o.meta().version)));
            match is {
                Some(object) => txn.actions.push(Action::Put(without_history(object))),
                None => deletes.push(Action::Delete(key)),
            }
        }
        txn.actions.extend(deletes);
        if !txn.is_empty() {
            let mut read = self.relied;
            read.sort_unstable();
            read.dedup();
            read.retain(|key| txn.expect.binary_search_by_key(key, |(known, _)| *known).is_err());
            txn.expect
                .extend(read.into_iter().map(|k| (k, self.origin.version(k))));
        }
        txn
    }
}

/// Of tasks, where they differ most often is looked at first: names lie elsewhere in memory.
fn is_same(was: Option<&Object>, is: Option<&Object>) -> bool {
    if let (Some(Object::Task(was)), Some(Object::Task(is))) = (was, is)
        && (was.node, was.desired, was.status.state) != (is.node, is.desired, is.status.state)
    {
        return false;
    }
    was == is
}

/// The specs that a service had are known where it is applied.
fn without_history(object: Object) -> Object {
    if let Object::Service(service) = &object
        && !service.history.is_empty()
    {
        let mut service = (**service).clone();
        service.history.clear();
        return Object::Service(Arc::new(service));
    }
    object
}
