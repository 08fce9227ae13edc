//! Stacks: everything in one transaction, or nothing.

use model::Timestamp;
use model::ids::IdSource;
use model::object::{Key, Object};
use model::spec::{NetworkSpec, STACK_LABEL, StackSpec, check_name};

use super::{Admitted, Refusal, RefusalKind, file, network, service};
use crate::state::{Kind, Scratch, State};

/// What happens to one object of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackChange {
    /// The object.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub verdict: StackVerdict,
}

/// What happens to an object of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackVerdict {
    /// It is made.
    Created,
    /// It changes.
    Updated,
    /// It stays as it is.
    Unchanged,
    /// It goes.
    Removed,
}

/// Most services of one stack: one transaction stays below the size of a Raft entry.
const SERVICES_MAX: usize = 500;

/// Deploys a stack.
///
/// # Errors
/// [`Refusal`] for the first object that cannot be as the stack wants it, with its name.
pub fn deploy_stack(
    state: &State,
    stack: StackSpec,
    prune: bool,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    check_name("stack", &stack.namespace)?;
    if stack.services.len() > SERVICES_MAX {
        return Err(Refusal::invalid(format!(
            "stack {} has more than {SERVICES_MAX} services",
            stack.namespace
        )));
    }
    let mut scratch = Scratch::new(state);
    let mut out = Out::default();
    externals(&scratch, &stack)?;
    for spec in stack.networks {
        deploy_network(&mut scratch, spec, now, ids, &mut out)?;
    }
    for spec in stack.secrets {
        let name = spec.name.clone();
        match scratch.find(Kind::Secret, &name) {
            Err(_) => {
                let id = file::add_secret(&mut scratch, spec, now, ids)?;
                out.note(Key::Secret(id), name, StackVerdict::Created);
            }
            Ok(key) => {
                let Some(Object::Secret(old)) = scratch.object(key) else {
                    continue;
                };
                if old.spec.data != spec.data {
                    return Err(file::labels_only("secret", &name));
                }
                let same = old.spec.labels == spec.labels;
                let new = model::object::Secret {
                    spec: std::sync::Arc::new(spec),
                    ..(*old).clone()
                };
                scratch.put(Object::Secret(std::sync::Arc::new(new)));
                out.note(
                    key,
                    name,
                    if same {
                        StackVerdict::Unchanged
                    } else {
                        StackVerdict::Updated
                    },
                );
            }
        }
    }
    for spec in stack.configs {
        let name = spec.name.clone();
        match scratch.find(Kind::Config, &name) {
            Err(_) => {
                let id = file::add_config(&mut scratch, spec, now, ids)?;
                out.note(Key::Config(id), name, StackVerdict::Created);
            }
            Ok(key) => {
                let Some(Object::Config(old)) = scratch.object(key) else {
                    continue;
                };
                if old.spec.data != spec.data {
                    return Err(file::labels_only("config", &name));
                }
                let same = old.spec.labels == spec.labels;
                let new = model::object::Config {
                    spec: std::sync::Arc::new(spec),
                    ..(*old).clone()
                };
                scratch.put(Object::Config(std::sync::Arc::new(new)));
                out.note(
                    key,
                    name,
                    if same {
                        StackVerdict::Unchanged
                    } else {
                        StackVerdict::Updated
                    },
                );
            }
        }
    }
    let names: Vec<String> = stack.services.iter().map(|s| s.name.clone()).collect();
    if prune {
        prune_services(&mut scratch, &stack.namespace, &names, &mut out);
    }
    for spec in stack.services {
        let name = spec.name.clone();
        match scratch.find(Kind::Service, &name) {
            Ok(Key::Service(id)) => {
                let before = scratch.service(id).cloned();
                service::change(&mut scratch, id, spec, now, &mut out.warnings)?;
                let same = before == scratch.service(id).cloned();
                out.note(
                    Key::Service(id),
                    name,
                    if same {
                        StackVerdict::Unchanged
                    } else {
                        StackVerdict::Updated
                    },
                );
            }
            Ok(_) | Err(_) => {
                let id = service::add(&mut scratch, spec, now, ids, &mut out.warnings)?;
                out.note(Key::Service(id), name, StackVerdict::Created);
            }
        }
    }
    Ok(out.finish(scratch))
}

#[derive(Default)]
struct Out {
    changes: Vec<StackChange>,
    warnings: Vec<String>,
}

impl Out {
    fn note(&mut self, key: Key, name: String, verdict: StackVerdict) {
        self.changes.push(StackChange { key, name, verdict });
    }

    fn finish(self, scratch: Scratch) -> Admitted {
        let keys = self.changes.iter().map(|c| c.key).collect();
        Admitted {
            txn: scratch.into_txn(),
            keys,
            warnings: self.warnings,
            changes: self.changes,
        }
    }
}

fn externals(state: &State, stack: &StackSpec) -> Result<(), Refusal> {
    let wanted = (stack.external_networks.iter().map(|n| (Kind::Network, n)))
        .chain(stack.external_secrets.iter().map(|n| (Kind::Secret, n)))
        .chain(stack.external_configs.iter().map(|n| (Kind::Config, n)));
    for (kind, name) in wanted {
        if state.find(kind, name).is_err() {
            let kind = kind.as_str();
            return Err(Refusal::new(
                RefusalKind::NotFound,
                format!(
                    "{kind} \"{name}\" is declared as external, but does not exist: make it with `rswarm {kind} create` first"
                ),
            ));
        }
    }
    Ok(())
}

fn deploy_network(
    scratch: &mut Scratch,
    spec: NetworkSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
    out: &mut Out,
) -> Result<(), Refusal> {
    let name = spec.name.clone();
    let Ok(key) = scratch.find(Kind::Network, &name) else {
        let id = network::add(scratch, spec, now, ids)?;
        out.note(Key::Network(id), name, StackVerdict::Created);
        return Ok(());
    };
    if let Some(Object::Network(old)) = scratch.object(key) {
        let subnets_differ = !spec.subnets.is_empty() && spec.subnets != old.subnets;
        if subnets_differ || spec.internal != old.spec.internal {
            return Err(Refusal::new(
                RefusalKind::InUse,
                format!(
                    "network {name} exists with other settings, and a network cannot change: remove it (and its services) first, or give the new one another name"
                ),
            ));
        }
    }
    out.note(key, name, StackVerdict::Unchanged);
    Ok(())
}

fn prune_services(scratch: &mut Scratch, namespace: &str, keep: &[String], out: &mut Out) {
    let gone: Vec<_> = scratch
        .services()
        .filter(|s| {
            s.spec.labels.get(STACK_LABEL).is_some_and(|n| n == namespace) && !keep.contains(&s.spec.name)
        })
        .map(|s| (s.id, s.spec.name.clone()))
        .collect();
    for (id, name) in gone {
        scratch.delete(Key::Service(id));
        out.note(Key::Service(id), name, StackVerdict::Removed);
    }
}

/// Removes everything of some stacks.
///
/// # Errors
/// [`Refusal`] when there is nothing of one of them, or a network of one is used by a service outside.
pub fn remove_stacks(state: &State, namespaces: &[String]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut out = Out::default();
    for namespace in namespaces {
        let before = out.changes.len();
        let of = |labels: &model::spec::Labels| labels.get(STACK_LABEL).is_some_and(|n| n == namespace);
        let mut gone: Vec<(Key, String)> = Vec::new();
        gone.extend(
            state
                .services()
                .filter(|s| of(&s.spec.labels))
                .map(|s| (Key::Service(s.id), s.spec.name.clone())),
        );
        gone.extend(
            state
                .secrets()
                .filter(|s| of(&s.spec.labels))
                .map(|s| (Key::Secret(s.id), s.spec.name.clone())),
        );
        gone.extend(
            state
                .configs()
                .filter(|s| of(&s.spec.labels))
                .map(|s| (Key::Config(s.id), s.spec.name.clone())),
        );
        gone.extend(
            state
                .networks()
                .filter(|n| of(&n.spec.labels))
                .map(|n| (Key::Network(n.id), n.spec.name.clone())),
        );
        for (key, name) in gone {
            scratch.delete(key);
            out.note(key, name, StackVerdict::Removed);
        }
        if out.changes.len() == before {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                format!("nothing found in stack {namespace}"),
            ));
        }
    }
    for service in scratch.services() {
        for attachment in &service.spec.task.networks {
            if scratch.network(attachment.network).is_none() {
                return Err(Refusal::new(
                    RefusalKind::InUse,
                    format!(
                        "network {} is in use by service {}, which is in another stack",
                        attachment.name, service.spec.name
                    ),
                ));
            }
        }
    }
    Ok(out.finish(scratch))
}
