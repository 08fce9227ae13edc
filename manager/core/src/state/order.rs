//! Which services depend on which: an index of their specs, and of tasks that have not ended.

use imbl::OrdSet;
use model::ServiceId;
use model::object::{Service, Task};
use model::spec::TaskSpec;

use super::{NameKey, name_key};
use crate::state::Kind;

/// By the name that is depended on: by which service, and by which of its tasks; 0: by its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index(OrdSet<(NameKey, ServiceId, u128)>);

impl Index {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn of(&self, name: &str) -> Vec<ServiceId> {
        let key = name_key(Kind::Service, name);
        let (mut all, mut from) = (Vec::new(), (key, ServiceId(0), 0));
        // From one service to the next, not from task to task.
        while let Some((_, id, _)) = self.0.range(from..).next().filter(|(k, ..)| *k == key) {
            all.push(*id);
            let Some(next) = id.0.checked_add(1) else { break };
            from = (key, ServiceId(next), 0);
        }
        all
    }

    pub(super) fn put_service(&mut self, service: &Service) {
        self.put(&service.spec.task, service.id, 0);
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        self.remove(&service.spec.task, service.id, 0);
    }

    pub(super) fn change_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let counts = |t: &&Task| !t.spec.depends_on.is_empty() && !t.status.state.is_terminal();
        let (old, new) = (old.filter(counts), new.filter(counts));
        if let (Some(old), Some(new)) = (old, new)
            && old.spec.depends_on == new.spec.depends_on
        {
            return;
        }
        if let Some(old) = old {
            self.remove(&old.spec, old.service, old.id.0);
        }
        if let Some(new) = new {
            self.put(&new.spec, new.service, new.id.0);
        }
    }

    fn put(&mut self, spec: &TaskSpec, id: ServiceId, holder: u128) {
        for dependency in &spec.depends_on {
            let key = name_key(Kind::Service, &dependency.service);
            self.0.insert((key, id, holder));
        }
    }

    fn remove(&mut self, spec: &TaskSpec, id: ServiceId, holder: u128) {
        for dependency in &spec.depends_on {
            let key = name_key(Kind::Service, &dependency.service);
            self.0.remove(&(key, id, holder));
        }
    }
}
