//! A copy of the state on which a decision is worked out, and the transaction that comes of it.

use std::collections::{BTreeMap, BTreeSet};
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
    /// What was touched, as it was.
    touched: BTreeMap<Key, Option<Object>>,
    relied: BTreeSet<Key>,
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
            relied: BTreeSet::new(),
        }
    }

    /// Makes the transaction stale when an object it only read has changed meanwhile.
    pub(crate) fn rely_on(&mut self, key: Key) {
        self.relied.insert(key);
    }

    /// How many objects were touched so far.
    pub(crate) fn touched(&self) -> usize {
        self.touched.len()
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.touch(object.key());
        self.now.put(object);
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.touch(key);
        self.now.delete(key);
    }

    fn touch(&mut self, key: Key) {
        self.touched.entry(key).or_insert_with(|| self.now.object(key));
    }

    /// Changes a task in place; one that is gone stays gone.
    pub(crate) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut Task)) {
        if let Some(old) = self.now.task(id).cloned() {
            let mut task = (*old).clone();
            edit(&mut task);
            (self.touched.entry(Key::Task(id))).or_insert_with(|| Some(Object::Task(old.clone())));
            self.now.put_task(Some(&old), Arc::new(task));
        }
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
        let mut txn = Txn::default();
        let mut deletes = Vec::new();
        for (key, was) in &self.touched {
            let is = self.now.object(*key);
            if *was == is {
                continue;
            }
            txn.expect
                .push((*key, was.as_ref().map_or(0, |o| o.meta().version)));
            match is {
                Some(object) => txn.actions.push(Action::Put(without_history(object))),
                None => deletes.push(Action::Delete(*key)),
            }
        }
        txn.actions.extend(deletes);
        if !txn.is_empty() {
            let known: BTreeSet<Key> = txn.expect.iter().map(|(key, _)| *key).collect();
            let read = self.relied.difference(&known);
            txn.expect.extend(read.map(|k| (*k, self.origin.version(*k))));
        }
        txn
    }
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
