//! Services.

use std::sync::Arc;
use std::time::Duration;

use model::ids::IdSource;
use model::object::{Endpoint, Key, Meta, Object, Service};
use model::spec::{
    OnDisconnect, PROGRESS_DEADLINE, PlacementStrategy, PortSpec, PublishMode, REPLICAS_MAX, Rebalance,
    RestartPolicy, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};
use model::units::format_duration;
use model::{ConfigId, Level, NetworkId, SecretId, ServiceId, Timestamp};

use super::{Admitted, Refusal, RefusalKind, check_version, health, job, level, order, validate};
use crate::allocate;
use crate::node_health::heartbeat_for;
use crate::orchestrate::revision;
use crate::state::{Kind, Scratch, State};

/// Makes a service.
///
/// # Errors
/// [`Refusal`] when the spec cannot be carried out, a name or port is taken, or something it names is missing.
pub fn create_service(
    state: &State,
    spec: ServiceSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut warnings = Vec::new();
    let id = add(&mut scratch, spec, now, ids, &mut warnings)?;
    order::check(state, &scratch, [id])?;
    Ok(Admitted {
        warnings,
        ..Admitted::new(scratch, vec![Key::Service(id)])
    })
}

pub(super) fn add(
    scratch: &mut Scratch,
    mut spec: ServiceSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
    warnings: &mut Vec<String>,
) -> Result<ServiceId, Refusal> {
    validate::service(&spec)?;
    known_by_hosts(scratch, &spec)?;
    resolve(scratch, &mut spec)?;
    if let (Some(rule), ServiceMode::Replicated { replicas }) = (&spec.autoscale, &mut spec.mode) {
        *replicas = (*replicas).clamp(rule.min, rule.max);
    }
    if scratch.named(Kind::Service, &spec.name).is_some() {
        return Err(Refusal::taken(Kind::Service, &spec.name));
    }
    let id = ServiceId::new(ids);
    let endpoint = allocate::endpoint(scratch, &spec, id, &Endpoint::default())?;
    let job = job::begins(&spec, now)?;
    warn(scratch, &spec, warnings);
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    scratch.put(Object::Service(Arc::new(Service {
        made: revision::first(scratch, now),
        endpoint,
        job,
        ..Service::new(id, meta, spec)
    })));
    Ok(id)
}

/// Refuses what hosts of an older build would get wrong.
fn known_by_hosts(state: &State, spec: &ServiceSpec) -> Result<(), Refusal> {
    if let Some(what) = placement_beyond(spec) {
        let what = format!("service {}: {what}", spec.name);
        level::needs(state, Level::PLACEMENT, &what, "leave it out")?;
    }
    if !spec.task.depends_on.is_empty() {
        let what = format!("service {}: depends_on", spec.name);
        level::needs(state, Level::ORDER, &what, "start it at once")?;
    }
    if let Some((what, they_would)) = health::unknown(&spec.task.container) {
        let what = format!("service {}: {what}", spec.name);
        level::needs(state, Level::HEALTH, &what, they_would)?;
    }
    if let Some(port) = spec.endpoint.ports.iter().find(|p| p.proxy) {
        let what = format!("service {}: proxy_protocol of port {}", spec.name, port.target);
        level::needs(state, Level::PROXY, &what, "not say who the client is")?;
    }
    if spec.autoscale.is_some() {
        let what = format!("service {}: autoscale", spec.name);
        level::needs(state, Level::AUTOSCALE, &what, "forget the rule")?;
    }
    let late = |u: &UpdateConfig| u.progress_deadline != PROGRESS_DEADLINE;
    if spec.update.canary > 0 || late(&spec.update) || late(&spec.rollback) {
        let what = format!("service {}: canaries and progress deadlines", spec.name);
        level::needs(
            state,
            Level::ROLLOUTS,
            &what,
            "update the rest as well, and wait for ever",
        )?;
    }
    let restart = &spec.task.restart;
    if restart.backs_off() || restart.reset_after != RestartPolicy::RESET_AFTER {
        let what = format!("service {}: restart max delay", spec.name);
        level::needs(
            state,
            Level::JOBS,
            &what,
            "restart its tasks without waiting longer each time",
        )?;
    }
    if spec.mode.is_job() {
        let what = format!("service {}: mode {}", spec.name, spec.mode.as_str());
        level::needs(state, Level::JOBS, &what, "not know when its tasks are done")?;
    }
    Ok(())
}

/// What of a spec hosts below [`Level::PLACEMENT`] do not know.
fn placement_beyond(spec: &ServiceSpec) -> Option<&'static str> {
    let (task, placement) = (&spec.task, &spec.task.placement);
    let beyond = [
        (
            placement.strategy != PlacementStrategy::default(),
            "a placement strategy",
        ),
        (!placement.affinity.is_empty(), "an affinity"),
        (
            !task.resources.reservations.generic.is_empty(),
            "a generic resource",
        ),
        (task.priority > 0, "a priority"),
        (spec.rebalance != Rebalance::Never, "a rebalance"),
    ];
    beyond.into_iter().find_map(|(is, what)| is.then_some(what))
}

/// Heartbeats within which agents find the next leader, with room: two until they notice, the election, and their pause.
const LEADER_CHANGE: u32 = 6;

fn warn(state: &State, spec: &ServiceSpec, warnings: &mut Vec<String>) {
    if spec.update.monitor < spec.update.delay && spec.update.monitor.is_zero() {
        warnings.push(format!(
            "service {}: update monitor 0s: a task that ends just after its start is not noticed",
            spec.name
        ));
    }
    if let OnDisconnect::StopAfter(after) = spec.task.on_disconnect {
        let configured = state.cluster().map_or(Duration::ZERO, |c| c.heartbeat);
        let least = heartbeat_for(configured, state.node_count()) * LEADER_CHANGE;
        if after < least {
            warnings.push(format!(
                "service {}: on disconnect: stop after {} is less than six heartbeats ({}): a change of the leader may stop its tasks",
                spec.name,
                format_duration(after),
                format_duration(least)
            ));
        }
        if spec.update.order == UpdateOrder::StartFirst || spec.rollback.order == UpdateOrder::StartFirst {
            warnings.push(format!(
                "service {}: on disconnect: stop-after keeps a slot from having two live tasks, but its rollout starts first, and has two",
                spec.name
            ));
        }
    }
    let host = |p: &PortSpec| p.mode == PublishMode::Host;
    if spec.update.order == UpdateOrder::StartFirst && spec.endpoint.ports.iter().any(host) {
        warnings.push(format!(
            "service {}: a port in mode host has room for one task on a node, so it is updated stop-first",
            spec.name
        ));
    }
}

/// Changes a service to a new spec.
///
/// # Errors
/// As [`create_service`]; also when it changed meanwhile, or its name or mode would change.
pub fn update_service(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    spec: ServiceSpec,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    let service = named(state, reference, expected)?;
    let id = service.id;
    let mut scratch = Scratch::new(state);
    let mut warnings = Vec::new();
    change(&mut scratch, id, spec, now, &mut warnings)?;
    order::check(state, &scratch, [id])?;
    Ok(Admitted {
        warnings,
        ..Admitted::new(scratch, vec![Key::Service(id)])
    })
}

/// The service that is meant, if it did not change meanwhile.
pub(super) fn named<'a>(
    state: &'a State,
    reference: &str,
    expected: Option<u64>,
) -> Result<&'a Arc<Service>, Refusal> {
    let Key::Service(id) = state.find(Kind::Service, reference)? else {
        return Err(missing(reference));
    };
    let service = state.service(id).ok_or_else(|| missing(reference))?;
    check_version(Kind::Service, &service.spec.name, expected, service.meta.version)?;
    Ok(service)
}

pub(super) fn missing(reference: &str) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("service {reference} not found"))
}

/// Puts a new spec in place. What tasks run decides whether a rollout begins: scaling and labels leave a running or
/// paused rollout, and the spec to go back to, alone (traps D4, D5).
pub(super) fn change(
    scratch: &mut Scratch,
    id: ServiceId,
    mut spec: ServiceSpec,
    now: Timestamp,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let Some(service) = scratch.service(id).cloned() else {
        return Err(missing(&spec.name));
    };
    validate::service(&spec)?;
    known_by_hosts(scratch, &spec)?;
    resolve(scratch, &mut spec)?;
    let old = &service.spec;
    keep_scaled(&mut spec, old, warnings);
    if spec.name != old.name {
        return Err(Refusal::invalid(format!(
            "service {} cannot be renamed: create {} and remove the old one",
            old.name, spec.name
        )));
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&old.mode) {
        return Err(Refusal::invalid(format!(
            "the mode of service {} cannot change: remove it and create it again",
            old.name
        )));
    }
    if spec == **old {
        return Ok(());
    }
    let endpoint = allocate::endpoint(scratch, &spec, id, &service.endpoint)?;
    warn(scratch, &spec, warnings);
    if spec.mode.is_job() {
        return job::change(scratch, &service, spec, endpoint, now);
    }
    let rollout = spec.task != old.task || host_ports(&endpoint) != host_ports(&service.endpoint);
    scratch.edit_service(id, |s| s.endpoint = endpoint);
    if rollout {
        revision::begin(scratch, id, spec, now);
    } else {
        scratch.edit_service(id, |s| s.spec = Arc::new(spec));
    }
    Ok(())
}

/// The cluster's own choice stands, and what there is when it begins to choose: who deploys a file does not know the number.
fn keep_scaled(spec: &mut ServiceSpec, old: &ServiceSpec, warnings: &mut Vec<String>) {
    let Some(rule) = &spec.autoscale else { return };
    let (ServiceMode::Replicated { replicas: new }, ServiceMode::Replicated { replicas }) =
        (&mut spec.mode, &old.mode)
    else {
        return;
    };
    let asked = *new;
    *new = match (asked, *replicas) {
        (0, _) => 0,
        // Somebody had stopped it.
        (asked, 0) => asked.clamp(rule.min, rule.max),
        (_, scaled) => scaled.clamp(rule.min, rule.max),
    };
    if *new != asked && asked != 1 {
        warnings.push(format!(
            "service {}: {asked} replicas are not taken: the cluster chooses between {} and {}, and has {new}; service scale changes \
             that until it chooses anew",
            spec.name, rule.min, rule.max
        ));
    }
}

/// The ports that belong to tasks: they change with a task, unlike those of the cluster.
pub(super) fn host_ports(endpoint: &Endpoint) -> Vec<&PortSpec> {
    (endpoint.ports.iter())
        .filter(|p| p.mode == PublishMode::Host)
        .collect()
}

/// Sets the replicas of several services in one transaction.
///
/// # Errors
/// [`Refusal`] when one is missing, global, or the number is out of bounds; then none is scaled.
pub fn scale_services(state: &State, scales: &[(String, u32)]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for (reference, replicas) in scales {
        let key = state.find(Kind::Service, reference)?;
        let Key::Service(id) = key else {
            return Err(missing(reference));
        };
        let service = state.service(id).ok_or_else(|| missing(reference))?;
        let mode = match service.spec.mode {
            ServiceMode::Replicated { .. } => ServiceMode::Replicated { replicas: *replicas },
            ServiceMode::ReplicatedJob { max_concurrent, .. } => ServiceMode::ReplicatedJob {
                completions: *replicas,
                max_concurrent,
            },
            ServiceMode::Global | ServiceMode::GlobalJob => {
                return Err(Refusal::invalid(format!(
                    "service {} is global: it has a task on every node that fits, and cannot be scaled",
                    service.spec.name
                )));
            }
        };
        if *replicas > REPLICAS_MAX {
            return Err(Refusal::invalid(format!(
                "service {}: {replicas} replicas are more than the {REPLICAS_MAX} one service may have",
                service.spec.name
            )));
        }
        if let Some(rule) = &service.spec.autoscale
            && *replicas != 0
            && !(rule.min..=rule.max).contains(replicas)
        {
            return Err(Refusal::invalid(format!(
                "service {} is scaled by the cluster between {} and {}, or stopped with 0: change its autoscale rule first",
                service.spec.name, rule.min, rule.max
            )));
        }
        scratch.edit_service(id, |s| {
            s.spec = Arc::new(ServiceSpec {
                mode,
                ..(*s.spec).clone()
            });
        });
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}

/// Removes services, all or none.
///
/// # Errors
/// [`Refusal`] when one is missing.
pub fn remove_services(state: &State, references: &[String]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for reference in references {
        let key = state.find(Kind::Service, reference)?;
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}

/// Fills in the ids of what the spec names, and the names of what it has ids of.
pub(super) fn resolve(state: &State, spec: &mut ServiceSpec) -> Result<(), Refusal> {
    for attachment in &mut spec.task.networks {
        let reference = reference(
            attachment.network == NetworkId::NIL,
            &attachment.name,
            attachment.network,
        );
        let Key::Network(id) = state.refer(Kind::Network, &reference)? else {
            continue;
        };
        attachment.network = id;
        if let Some(network) = state.network(id) {
            if network.spec.ingress {
                return Err(Refusal::invalid(
                    "a service cannot join the network ingress itself: publish a port instead",
                ));
            }
            attachment.name.clone_from(&network.spec.name);
            attachment.encrypted = network.spec.encrypted() != Ok(false);
        }
    }
    for secret in &mut spec.task.container.secrets {
        let reference = reference(secret.id == SecretId::NIL, &secret.name, secret.id);
        let Key::Secret(id) = state.refer(Kind::Secret, &reference)? else {
            continue;
        };
        secret.id = id;
        if let Some(found) = state.secret(id) {
            secret.name.clone_from(&found.spec.name);
        }
    }
    for config in &mut spec.task.container.configs {
        let reference = reference(config.id == ConfigId::NIL, &config.name, config.id);
        let Key::Config(id) = state.refer(Kind::Config, &reference)? else {
            continue;
        };
        config.id = id;
        if let Some(found) = state.config(id) {
            config.name.clone_from(&found.spec.name);
        }
    }
    for dependency in &mut spec.task.depends_on {
        // Also by its id; one that is not there is dealt with once all of a stack are.
        if let Ok(Key::Service(id)) = state.refer(Kind::Service, &dependency.service)
            && let Some(found) = state.service(id)
        {
            dependency.service.clone_from(&found.spec.name);
        }
    }
    let mut seen: Vec<NetworkId> = Vec::new();
    for attachment in &spec.task.networks {
        if seen.contains(&attachment.network) {
            return Err(Refusal::invalid(format!(
                "service {}: network {} is named twice",
                spec.name, attachment.name
            )));
        }
        seen.push(attachment.network);
    }
    Ok(())
}

fn reference(by_name: bool, name: &str, id: impl ToString) -> String {
    if by_name { name.to_owned() } else { id.to_string() }
}
