//! Whether a spec can be carried out at all.

use std::time::Duration;

use model::object::Cluster;
use model::spec::{
    Autoscale, CPU_MIN, ContainerSpec, IMAGE_MAX, ImageRef, KINDS_MAX, Labels, MEMORY_MIN, Mount, MountKind,
    OnDisconnect, PRIORITY_MAX, PlacementStrategy, Protocol, PublishMode, REPLICAS_MAX, Rebalance,
    STOP_AFTER_MAX, STOP_AFTER_MIN, ServiceMode, ServiceSpec, UpdateConfig, check_name, parse_amount,
};
use model::units::format_duration;
use model::{Bytes, NanoCpus};

use super::{Refusal, job, order};
use crate::schedule::affinity::{self, AFFINITIES_MAX};
use crate::schedule::constraint::{self, CONSTRAINTS_MAX};

/// Most labels of one object, and most bytes of one label's key and value: objects stay below a Raft entry.
const LABELS_MAX: usize = 1_000;
const LABEL_MAX: usize = 16 << 10;
/// Longest digest of an image with its `@`.
const DIGEST_MAX: usize = 80;
/// Most entries of a list of a container spec.
const LIST_MAX: usize = 1_000;
/// Most bytes of all words of a container spec; the kernel takes 2 MiB of arguments and environment (execve(2)).
const WORDS_MAX: usize = 1 << 20;
/// Most restarts a policy may allow: so many of a slot's tasks are kept, and attempts are counted on them.
const RESTARTS_MAX: u64 = Cluster::HISTORY_MAX as u64 - 1;
/// Longest time any knob takes: a year.
const DURATION_MAX: std::time::Duration = std::time::Duration::from_secs(365 * 86_400);

pub(super) fn labels(kind: &str, name: &str, labels: &Labels) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(Refusal::invalid(format!(
            "{kind} {name} has more than {LABELS_MAX} labels"
        )));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() + value.len() > LABEL_MAX {
            return Err(Refusal::invalid(format!(
                "{kind} {name}: a label needs a name, and name and value have at most {LABEL_MAX} bytes"
            )));
        }
    }
    Ok(())
}

/// Checks everything of a service that does not depend on the state.
pub(super) fn service(spec: &ServiceSpec) -> Result<(), Refusal> {
    check_name("service", &spec.name)?;
    let at = |problem: String| Refusal::invalid(format!("service {}: {problem}", spec.name));
    labels("service", &spec.name, &spec.labels)?;
    labels("container of service", &spec.name, &spec.task.container.labels)?;
    let replicas = match spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::ReplicatedJob { completions, .. } => completions,
        ServiceMode::Global | ServiceMode::GlobalJob => 0,
    };
    if replicas > REPLICAS_MAX {
        return Err(at(format!(
            "{replicas} replicas are more than the {REPLICAS_MAX} one service may have"
        )));
    }
    if let Some(rule) = &spec.autoscale {
        autoscale(spec, rule).map_err(at)?;
    }
    rebalance(spec).map_err(at)?;
    job::check(spec).map_err(at)?;
    container(&spec.task.container).map_err(at)?;
    resources(spec).map_err(at)?;
    update("update", &spec.update).map_err(at)?;
    update("rollback", &spec.rollback).map_err(at)?;
    if spec.rollback.failure_action == model::spec::FailureAction::Rollback {
        return Err(at(
            "a rollback cannot be rolled back: its failure action is pause or continue".into(),
        ));
    }
    if let OnDisconnect::StopAfter(after) = spec.task.on_disconnect
        && !(STOP_AFTER_MIN..=STOP_AFTER_MAX).contains(&after)
    {
        return Err(at(format!(
            "on disconnect: stop after {} is not between {} and {}: a shorter time would stop tasks for a change of the leader",
            format_duration(after),
            format_duration(STOP_AFTER_MIN),
            format_duration(STOP_AFTER_MAX)
        )));
    }
    let restart = &spec.task.restart;
    if restart.max_attempts > RESTARTS_MAX {
        return Err(at(format!(
            "restart max attempts {} are more than {RESTARTS_MAX}, and no more are counted: give fewer, or 0 for no bound",
            restart.max_attempts
        )));
    }
    for (name, d) in [
        ("restart delay", restart.delay),
        ("restart window", restart.window),
        ("restart max delay", restart.max_delay),
        ("restart reset after", restart.reset_after),
    ] {
        duration(name, d).map_err(at)?;
    }
    if !restart.max_delay.is_zero() && restart.max_delay < restart.delay {
        return Err(at(format!(
            "restart max delay {} is less than the restart delay {}, from which waits grow",
            format_duration(restart.max_delay),
            format_duration(restart.delay)
        )));
    }
    if restart.reset_after.is_zero() {
        return Err(at(
            "restart reset after 0s: give a time a task must run to count as well, such as 60s".into(),
        ));
    }
    let placement = &spec.task.placement;
    if placement.constraints.len() > CONSTRAINTS_MAX {
        return Err(at(format!("more than {CONSTRAINTS_MAX} constraints")));
    }
    for text in &placement.constraints {
        constraint::parse(text).map_err(|e| at(e.to_string()))?;
    }
    if placement.affinity.len() > AFFINITIES_MAX {
        return Err(at(format!("more than {AFFINITIES_MAX} affinities")));
    }
    for text in &placement.affinity {
        let affinity = affinity::parse(text).map_err(at)?;
        if affinity.together && affinity.service == spec.name {
            return Err(at(format!(
                "its affinity \"{text}\" is to itself, so the first task would find no node: leave it out"
            )));
        }
    }
    order::validate(spec).map_err(at)?;
    if spec.task.priority > PRIORITY_MAX {
        return Err(at(format!(
            "priority {} is not between 0 and {PRIORITY_MAX}",
            spec.task.priority
        )));
    }
    for text in &placement.spread {
        if !text.starts_with("node.labels.") && !text.starts_with("engine.labels.") {
            return Err(at(format!(
                "\"{text}\" cannot be spread over: write node.labels.NAME or engine.labels.NAME"
            )));
        }
    }
    ports(spec).map_err(at)?;
    match spec.task.log.name.as_str() {
        "" | "json-file" | "local" | "none" => Ok(()),
        other => Err(at(format!(
            "there is no log driver {other}: use json-file, local or none"
        ))),
    }
}

fn container(c: &ContainerSpec) -> Result<(), String> {
    if c.image.trim().is_empty() {
        return Err("an image is needed".into());
    }
    let bare = ImageRef {
        digest: None,
        ..ImageRef::parse(&c.image)
    };
    if bare.key().len() > IMAGE_MAX
        || c.image.len() > IMAGE_MAX + DIGEST_MAX
        || c.image.chars().any(|ch| ch.is_whitespace() || ch.is_control())
    {
        return Err("the image reference has white space or more than 512 characters".into());
    }
    let lists = [
        c.command.len(),
        c.args.len(),
        c.env.len(),
        c.mounts.len(),
        c.secrets.len(),
        c.configs.len(),
        c.hosts.len(),
    ];
    if lists.iter().any(|n| *n > LIST_MAX) {
        return Err(format!(
            "a list of its container has more than {LIST_MAX} entries"
        ));
    }
    let words = c.command.iter().chain(&c.args).chain(&c.env);
    if words.clone().map(|w| w.len() + 1).sum::<usize>() > WORDS_MAX {
        return Err(format!(
            "command, arguments and environment have more than {WORDS_MAX} bytes"
        ));
    }
    if words.clone().any(|w| w.contains('\0')) {
        return Err("command, arguments and environment must not hold a NUL byte".into());
    }
    for env in &c.env {
        if env.split('=').next().is_none_or(str::is_empty) {
            return Err(format!(
                "the environment entry \"{env}\" has no name: write NAME=VALUE"
            ));
        }
    }
    if !c.dir.is_empty() && !c.dir.starts_with('/') {
        return Err(format!(
            "the working directory {} must be an absolute path",
            c.dir
        ));
    }
    if !(-1000..=1000).contains(&c.oom_score_adj) {
        return Err("the OOM score adjustment must be between -1000 and 1000".into());
    }
    if let Some(grace) = c.stop_grace {
        duration("stop grace period", grace)?;
    }
    super::health::check(c)?;
    targets(c)
}

/// Every place in the container is absolute, without a way up, and used once.
fn targets(c: &ContainerSpec) -> Result<(), String> {
    let mut seen: Vec<String> = Vec::new();
    let mut claim = |path: String| {
        let bad = path.split('/').any(|part| part == "..") || path.contains('\0') || !path.starts_with('/');
        // `//proc` and `/./proc` are the same place.
        let parts: Vec<&str> = path.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
        if bad || parts.first().is_none_or(|first| *first == "proc") {
            return Err(format!(
                "{path} cannot be a target: write an absolute path without \"..\", outside /proc"
            ));
        }
        let path = format!("/{}", parts.join("/"));
        if seen.contains(&path) {
            return Err(format!("two mounts, secrets or configs have the target {path}"));
        }
        seen.push(path);
        Ok(())
    };
    for mount in &c.mounts {
        claim(mount.target.clone())?;
        source(mount)?;
    }
    for secret in &c.secrets {
        let name = &secret.target.name;
        claim(if name.starts_with('/') {
            name.clone()
        } else {
            format!("/run/secrets/{name}")
        })?;
        mode(secret.target.mode)?;
    }
    for config in &c.configs {
        let name = &config.target.name;
        claim(if name.starts_with('/') {
            name.clone()
        } else {
            format!("/{name}")
        })?;
        mode(config.target.mode)?;
    }
    Ok(())
}

fn mode(mode: u32) -> Result<(), String> {
    if mode > 0o7777 {
        Err(format!("{mode:o} is no file mode"))
    } else {
        Ok(())
    }
}

fn source(mount: &Mount) -> Result<(), String> {
    match &mount.kind {
        MountKind::Bind { source, .. } => {
            if !source.starts_with('/') || source.split('/').any(|p| p == "..") {
                return Err(format!(
                    "the bind source \"{source}\" must be an absolute path without \"..\""
                ));
            }
            Ok(())
        }
        MountKind::Volume {
            name,
            driver,
            subpath,
            ..
        } => {
            if !name.is_empty() {
                check_name("volume", name).map_err(|e| e.to_string())?;
            }
            if !driver.is_empty() && driver != "local" {
                return Err(format!(
                    "volume {name}: there is no driver {driver}; local is the only one"
                ));
            }
            if subpath.starts_with('/') || subpath.split('/').any(|p| p == "..") {
                return Err(format!(
                    "volume {name}: the subpath {subpath} must stay inside the volume"
                ));
            }
            Ok(())
        }
        MountKind::Tmpfs { mode: m, .. } => m.map_or(Ok(()), mode),
    }
}

fn resources(spec: &ServiceSpec) -> Result<(), String> {
    let (limits, reserved) = (&spec.task.resources.limits, &spec.task.resources.reservations);
    for (what, cpu) in [("CPU limit", limits.cpu), ("CPU reservation", reserved.cpu)] {
        if cpu != NanoCpus(0) && cpu < CPU_MIN {
            return Err(format!("the {what} {cpu} is below the minimum of {CPU_MIN}"));
        }
    }
    for (what, memory) in [
        ("memory limit", limits.memory),
        ("memory reservation", reserved.memory),
    ] {
        if memory != Bytes(0) && memory < MEMORY_MIN {
            return Err(format!(
                "the {what} {memory} is below the minimum of {MEMORY_MIN}"
            ));
        }
    }
    if limits.cpu.0 > 0 && reserved.cpu > limits.cpu {
        return Err(format!(
            "it reserves {} CPUs, more than its limit of {}",
            reserved.cpu, limits.cpu
        ));
    }
    if limits.memory.0 > 0 && reserved.memory > limits.memory {
        return Err(format!(
            "it reserves {} of memory, more than its limit of {}",
            reserved.memory, limits.memory
        ));
    }
    if reserved.generic.len() > KINDS_MAX {
        return Err(format!(
            "it reserves more than {KINDS_MAX} kinds of generic resources"
        ));
    }
    for (kind, count) in &reserved.generic {
        parse_amount(&format!("{kind}={count}"))?;
    }
    Ok(())
}

fn rebalance(spec: &ServiceSpec) -> Result<(), String> {
    if spec.rebalance == Rebalance::Never {
        return Ok(());
    }
    if !matches!(spec.mode, ServiceMode::Replicated { .. }) {
        return Err("rebalance needs mode replicated: the tasks of others stay where they are".into());
    }
    if spec.task.placement.strategy == PlacementStrategy::Binpack {
        return Err(
            "rebalance does not go with the strategy binpack, which wants the tasks on few nodes".into(),
        );
    }
    if spec.is_exclusive(&spec.task) {
        return Err(
            "rebalance does not go with on disconnect: stop-after, as a task that moves starts elsewhere first: take out one of them, or say by update order start-first that a slot may have two"
                .into(),
        );
    }
    Ok(())
}

fn autoscale(spec: &ServiceSpec, rule: &Autoscale) -> Result<(), String> {
    if !matches!(spec.mode, ServiceMode::Replicated { .. }) {
        return Err("autoscale needs mode replicated: others have no number of replicas to choose".into());
    }
    if rule.min == 0 || rule.min > rule.max || rule.max > REPLICAS_MAX {
        return Err(format!(
            "autoscale from {} to {}: give a min of at least 1 and a max from there to {REPLICAS_MAX}",
            rule.min, rule.max
        ));
    }
    if rule.cpu.is_none() && rule.memory.is_none() {
        return Err("autoscale needs a target: cpu, memory or both, in per cent of what a task has".into());
    }
    for (name, target) in [("cpu", rule.cpu), ("memory", rule.memory)] {
        if target.is_some_and(|t| !(1..=1000).contains(&t)) {
            return Err(format!(
                "the autoscale target of {name} is not between 1 and 1000 per cent"
            ));
        }
    }
    let resources = &spec.task.resources;
    if rule.memory.is_some() && resources.reservations.memory.0 == 0 && resources.limits.memory.0 == 0 {
        return Err("autoscale by memory needs a reservation or a limit of memory: of what else should it be per cent?".into());
    }
    duration("autoscale scale_down_after", rule.scale_down_after)
}

fn update(what: &str, config: &UpdateConfig) -> Result<(), String> {
    duration(&format!("{what} delay"), config.delay)?;
    duration(&format!("{what} monitor"), config.monitor)?;
    duration(&format!("{what} progress deadline"), config.progress_deadline)?;
    let deadline = config.progress_deadline;
    if !deadline.is_zero() && deadline < Duration::from_secs(1) {
        return Err(format!(
            "the {what} progress deadline {} is shorter than a second: give more, or 0 for none",
            format_duration(deadline)
        ));
    }
    if config.canary > 0 && what == "rollback" {
        return Err("a rollback has no canaries: give them for the update".into());
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(format!(
            "the {what} failure ratio {} is not between 0 and 1",
            config.max_failure_ratio
        ));
    }
    Ok(())
}

pub(super) fn duration(what: &str, d: std::time::Duration) -> Result<(), String> {
    if d > DURATION_MAX {
        Err(format!("the {what} is longer than a year"))
    } else {
        Ok(())
    }
}

/// Ports of VXLAN (IANA) and of encrypted networks.
const OVERLAY_PORTS: [u16; 2] = [4789, 4790];

fn ports(spec: &ServiceSpec) -> Result<(), String> {
    let ports = &spec.endpoint.ports;
    if ports.len() > LIST_MAX {
        return Err(format!("more than {LIST_MAX} ports"));
    }
    for (i, port) in ports.iter().enumerate() {
        if port.target == 0 {
            return Err("a port needs a target from 1 to 65535".into());
        }
        if !port.host_ip.is_empty() && port.host_ip.parse::<std::net::Ipv4Addr>().is_err() {
            return Err(format!(
                "port {}: \"{}\" is no IPv4 address to publish it on: write one of the nodes', such as 127.0.0.1, or none",
                port.target, port.host_ip
            ));
        }
        if port.protocol == Protocol::Sctp {
            return Err(format!(
                "port {}/sctp: sctp cannot be published yet: use tcp or udp",
                port.target
            ));
        }
        let given = match (port.mode, port.published) {
            (PublishMode::Host, 0) => port.target,
            (_, published) => published,
        };
        if port.proxy && port.protocol != Protocol::Tcp {
            return Err(format!(
                "port {}/{}: the PROXY protocol is for tcp",
                port.target,
                port.protocol.as_str()
            ));
        }
        if port.protocol == Protocol::Udp && OVERLAY_PORTS.contains(&given) {
            return Err(format!(
                "port {given}/udp carries the networks between hosts: publish another"
            ));
        }
        let twice = ports[..i]
            .iter()
            .any(|p| port.published != 0 && p.published == port.published && p.protocol == port.protocol);
        if twice {
            return Err(format!(
                "port {}/{} is published twice",
                port.published,
                port.protocol.as_str()
            ));
        }
    }
    Ok(())
}
