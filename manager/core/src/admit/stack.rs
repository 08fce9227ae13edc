//! Stacks: everything in one transaction, or nothing.

use std::sync::Arc;

use ipnet::IpNet;
use model::Timestamp;
use model::ids::IdSource;
use model::object::{Config, Key, Network, Object, Secret};
use model::spec::{Family, NetworkSpec, STACK_LABEL, StackSpec, check_name};

use super::{Admitted, Refusal, RefusalKind, file, network, order, service, user_of};
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
        let (name, named) = (spec.name.clone(), scratch.named(Kind::Secret, &spec.name));
        let Some((key, Object::Secret(old))) = named.and_then(|k| Some((k, scratch.object(k)?))) else {
            let id = file::add_secret(&mut scratch, spec, now, ids)?;
            out.note(Key::Secret(id), name, StackVerdict::Created);
            continue;
        };
        if old.spec.data != spec.data {
            return Err(file::labels_only("secret", &name));
        }
        let verdict = verdict(old.spec.labels == spec.labels);
        let spec = Arc::new(spec);
        scratch.put(Object::Secret(Arc::new(Secret {
            spec,
            ..(*old).clone()
        })));
        out.note(key, name, verdict);
    }
    for spec in stack.configs {
        let (name, named) = (spec.name.clone(), scratch.named(Kind::Config, &spec.name));
        let Some((key, Object::Config(old))) = named.and_then(|k| Some((k, scratch.object(k)?))) else {
            let id = file::add_config(&mut scratch, spec, now, ids)?;
            out.note(Key::Config(id), name, StackVerdict::Created);
            continue;
        };
        if old.spec.data != spec.data {
            return Err(file::labels_only("config", &name));
        }
        let verdict = verdict(old.spec.labels == spec.labels);
        let spec = Arc::new(spec);
        scratch.put(Object::Config(Arc::new(Config {
            spec,
            ..(*old).clone()
        })));
        out.note(key, name, verdict);
    }
    let names: Vec<String> = stack.services.iter().map(|s| s.name.clone()).collect();
    if prune {
        prune_services(&mut scratch, &stack.namespace, &names, &mut out);
    }
    for spec in stack.services {
        let name = spec.name.clone();
        if let Some(Key::Service(id)) = scratch.named(Kind::Service, &name) {
            let before = scratch.service(id).cloned();
            service::change(&mut scratch, id, spec, now, &mut out.warnings)?;
            let verdict = verdict(before == scratch.service(id).cloned());
            out.note(Key::Service(id), name, verdict);
        } else {
            let id = service::add(&mut scratch, spec, now, ids, &mut out.warnings)?;
            out.note(Key::Service(id), name, StackVerdict::Created);
        }
    }
    let services = out.changes.iter().filter_map(|c| match c.key {
        Key::Service(id) => Some(id),
        Key::Cluster | Key::Node(_) | Key::Task(_) | Key::Network(_) | Key::Secret(_) | Key::Config(_) => {
            None
        }
    });
    order::check(state, &scratch, services)?;
    Ok(out.finish(scratch))
}

fn verdict(same: bool) -> StackVerdict {
    if same {
        StackVerdict::Unchanged
    } else {
        StackVerdict::Updated
    }
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
        if state.named(kind, name).is_none() {
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
    let named = scratch.named(Kind::Network, &name);
    let Some((key, Object::Network(old))) = named.and_then(|k| Some((k, scratch.object(k)?))) else {
        let id = network::add(scratch, spec, now, ids)?;
        out.note(Key::Network(id), name, StackVerdict::Created);
        return Ok(());
    };
    let fixed = |s: &NetworkSpec| (s.internal, s.ipv6, s.options.clone(), s.attachable, s.ingress);
    // It may have got more since.
    let subnets_differ = [Family::V4, Family::V6].into_iter().any(|family| {
        let of = |list: &[IpNet]| -> Vec<IpNet> {
            let those = list.iter().filter(|s| Family::of_subnet(s) == family);
            those.copied().collect()
        };
        !of(&old.subnets).starts_with(&of(&spec.subnets))
    });
    if subnets_differ || fixed(&spec) != fixed(&old.spec) {
        return Err(Refusal::new(
            RefusalKind::InUse,
            format!(
                "network {name} exists with other settings; of a network only labels change, and subnets are added (rswarm network update --subnet-add): remove it (and its services) first, or give the new one another name"
            ),
        ));
    }
    // Its labels may.
    let verdict = verdict(spec.labels == old.spec.labels);
    let spec = NetworkSpec {
        labels: spec.labels,
        ..old.spec.clone()
    };
    scratch.put(Object::Network(Arc::new(Network {
        spec,
        ..(*old).clone()
    })));
    out.note(key, name, verdict);
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
/// [`Refusal`] when there is nothing of one of them, or something of one is used by a service outside.
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
    for change in &out.changes {
        let (kind, user) = match change.key {
            Key::Secret(id) => (
                "secret",
                user_of(&scratch, |t| t.container.secrets.iter().any(|r| r.id == id)),
            ),
            Key::Config(id) => (
                "config",
                user_of(&scratch, |t| t.container.configs.iter().any(|r| r.id == id)),
            ),
            Key::Network(id) => (
                "network",
                user_of(&scratch, |t| t.networks.iter().any(|n| n.network == id)),
            ),
            Key::Service(_) | Key::Cluster | Key::Node(_) | Key::Task(_) => continue,
        };
        if let Some(user) = user {
            let user = format!("{user}, which is outside the stack");
            return Err(file::in_use(kind, &change.name, &user));
        }
    }
    Ok(out.finish(scratch))
}
