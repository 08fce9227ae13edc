//! What services depend on: whether there is such a service, and whether it can ever hold.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use model::ServiceId;
use model::object::Key;
use model::spec::{DEPENDENCIES_MAX, ServiceSpec};

use super::{Refusal, RefusalKind};
use crate::state::{Kind, State};

/// Checks what does not depend on the state.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), String> {
    let all = &spec.task.depends_on;
    if all.len() > DEPENDENCIES_MAX {
        return Err(format!("it depends on more than {DEPENDENCIES_MAX} services"));
    }
    let mut names = BTreeSet::new();
    for dependency in all {
        let name = dependency.service.as_str();
        if name == spec.name {
            return Err("it depends on itself, and would never start".into());
        }
        if !names.insert(name) {
            return Err(format!("it depends on {name} twice"));
        }
    }
    Ok(())
}

/// Checks services as they now are against the others: what is new of what they depend on is there and can hold, and they do
/// not wait for one another.
pub(super) fn check(
    before: &State,
    now: &State,
    ids: impl IntoIterator<Item = ServiceId>,
) -> Result<(), Refusal> {
    for id in ids {
        let Some(service) = now.service(id) else { continue };
        let known = before.service(id).map_or(&[][..], |s| &s.spec.task.depends_on);
        let new = service.spec.task.depends_on.iter().filter(|d| !known.contains(d));
        for dependency in new {
            let (name, on) = (&service.spec.name, &dependency.service);
            let Some(Key::Service(found)) = now.named(Kind::Service, on) else {
                if dependency.optional {
                    continue;
                }
                return Err(Refusal::new(
                    RefusalKind::NotFound,
                    format!(
                        "service {name} depends on {on}, and there is no such service: make it first, or say that it is optional"
                    ),
                ));
            };
            let never = now
                .service(found)
                .and_then(|s| dependency.condition.never(&s.spec));
            if let Some(why) = never {
                let what = dependency.condition.as_str();
                return Err(Refusal::invalid(format!(
                    "service {name} depends on {on}: {what}, and {on} {why}"
                )));
            }
        }
        circle(now, id)?;
    }
    Ok(())
}

/// Refuses a service that waits, by way of others, for itself.
pub(super) fn circle(state: &State, id: ServiceId) -> Result<(), Refusal> {
    let Some(first) = state.service(id) else {
        return Ok(());
    };
    // How each was come to.
    let mut from: BTreeMap<ServiceId, ServiceId> = BTreeMap::new();
    let mut todo = vec![id];
    while let Some(at) = todo.pop() {
        let Some(service) = state.service(at) else {
            continue;
        };
        for dependency in &service.spec.task.depends_on {
            let Some(Key::Service(next)) = state.named(Kind::Service, &dependency.service) else {
                continue;
            };
            if next == id {
                let mut way = vec![first.spec.name.as_str()];
                let mut step = Some(at).filter(|at| *at != id);
                while let Some(service) = step.and_then(|id| state.service(id)) {
                    way.push(&service.spec.name);
                    step = from.get(&service.id).copied().filter(|before| *before != id);
                }
                way.push(&first.spec.name);
                way.reverse();
                return Err(Refusal::invalid(format!(
                    "services wait for one another and would never start: {}",
                    way.join(" -> ")
                )));
            }
            if let Entry::Vacant(first) = from.entry(next) {
                first.insert(at);
                todo.push(next);
            }
        }
    }
    Ok(())
}
