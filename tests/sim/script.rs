//! Scenarios: commands of an operator and of fate, and what a look at the cluster then shows.
//!
//! A file is a row of blocks: commands, one a line or separated by `;`, then `----`, then the reply. `#` begins a comment.

use std::fmt::Write;
use std::time::Duration;

use manager_core::{Admitted, Refusal, admit};
use model::object::{Availability, Drain, NodeSpec, Service};
use model::spec::{
    FailureAction, OnDisconnect, PortSpec, PublishMode, RestartCondition, ServiceMode, ServiceSpec,
    UpdateOrder,
};
use model::units::parse_duration;
use model::{NanoCpus, NodeId};

use super::cluster::Cluster;
use super::log::Source;
use super::manager::Fall;

/// Longest simulated time that `settle` waits.
const SETTLE_MAX: Duration = Duration::from_secs(600);
/// Time without a change after which everything has settled.
const STILL: Duration = Duration::from_secs(20);

/// Runs the text of a scenario; answers it with the replies as they are now.
///
/// # Errors
/// A command that cannot be read, or a broken invariant, and where.
pub fn replay(text: &str) -> Result<String, String> {
    let mut cluster = Cluster::new(1);
    let mut out = String::new();
    let mut reply = String::new();
    let mut in_reply = false;
    for (number, line) in text.lines().enumerate() {
        if in_reply && !line.is_empty() {
            continue;
        }
        if in_reply {
            let _ = writeln!(out, "{}", shown(&reply));
            reply.clear();
            in_reply = false;
        }
        let _ = writeln!(out, "{line}");
        if line == "----" {
            in_reply = true;
            continue;
        }
        let commands = line.split('#').next().unwrap_or_default();
        for command in commands.split(';').map(str::trim).filter(|c| !c.is_empty()) {
            let said =
                run(&mut cluster, command).map_err(|e| format!("line {}: {command}: {e}", number + 1))?;
            reply.push_str(&said);
        }
    }
    if in_reply {
        let _ = writeln!(out, "{}", shown(&reply));
    }
    Ok(out)
}

fn shown(reply: &str) -> &str {
    match reply.trim_end() {
        "" => "(nothing)",
        text => text,
    }
}

fn run(cluster: &mut Cluster, command: &str) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let verb = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let first = rest.first().copied().unwrap_or_default();
    match verb {
        "cluster" => {
            let count = |name: &str| {
                let found = rest.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
                found.and_then(|n| n.parse::<u32>().ok())
            };
            let nodes = count("nodes").ok_or("write cluster nodes=3, and managers=3 if there are several")?;
            cluster.begin_with(nodes.into(), count("managers").unwrap_or(1) as usize)?;
        }
        "deploy" => return deploy(cluster, first, rest.get(1..).unwrap_or_default()),
        "scale" => {
            let replicas = number(rest.get(1).copied().unwrap_or_default())?;
            let made = admit::scale_services(&cluster.state, &[(first.to_owned(), replicas)]);
            return ask(cluster, made);
        }
        "rollback" => {
            let now = cluster.managers.log_now(cluster.now);
            let made = admit::rollback_service(&cluster.state, first, None, None, now);
            return ask(cluster, made);
        }
        "steer" => {
            let steer = match rest.get(1).copied() {
                Some("pause") => admit::Steer::Pause,
                Some("resume") => admit::Steer::Resume,
                Some("promote") => admit::Steer::Promote,
                Some("abort") => admit::Steer::Abort,
                _ => return Err("write steer SERVICE pause, resume, promote or abort".into()),
            };
            let now = cluster.managers.log_now(cluster.now);
            let made = admit::steer_rollout(&cluster.state, first, None, steer, now);
            return ask(cluster, made);
        }
        "remove" => {
            let made = admit::remove_services(&cluster.state, &[first.to_owned()]);
            return ask(cluster, made);
        }
        "drain" => {
            let how = rest.get(1).map(|how| drain(how)).transpose()?;
            return change_node(cluster, first, |n| {
                (n.availability, n.drain) = (Availability::Drain, how)
            });
        }
        "pause" => return change_node(cluster, first, |n| n.availability = Availability::Pause),
        "activate" => return change_node(cluster, first, |n| n.availability = Availability::Active),
        "label" => {
            let label = rest.get(1).copied().unwrap_or_default();
            let (key, value) = label.split_once('=').ok_or("write label NODE KEY=VALUE")?;
            return change_node(cluster, first, |n| {
                drop(n.labels.insert(key.into(), value.into()))
            });
        }
        "cut" => link(cluster, first, false, false)?,
        "cut-in" => link(cluster, first, false, true)?,
        "cut-out" => link(cluster, first, true, false)?,
        "heal" => link(cluster, first, true, true)?,
        "restart-agent" => {
            let now = cluster.now;
            host(cluster, first)?.restart(now);
        }
        "pause-host" => {
            let until = cluster.now + time(rest.get(1))?;
            host(cluster, first)?.paused_until = Some(until);
        }
        "clock" => clock(cluster, first, rest.get(1).copied().unwrap_or_default())?,
        "power-off" => {
            let now = cluster.now;
            let host = host(cluster, first)?;
            host.up = false;
            host.reboot(now);
        }
        "power-on" => host(cluster, first)?.up = true,
        "leader" => {
            cluster.depose(Fall::Moves);
            cluster.elect()?;
        }
        "kill-leader" => {
            cluster.depose(Fall::Dies(Duration::from_secs(20)));
        }
        "cut-leader" => {
            cluster.depose(Fall::CutOff(Duration::from_secs(20)));
        }
        "power-failure" => cluster.power_off_everything(),
        "processes" => return Ok(processes(cluster, first)),
        "counts" => return Ok(counts(cluster, &rest)),
        "crash" => {
            let task = cluster
                .state
                .tasks()
                .find(|t| t.name() == first && t.desired.is_live() && !t.status.state.is_terminal())
                .map(|t| (t.id, t.node))
                .ok_or("no such task runs")?;
            let now = cluster.now;
            let host = task
                .1
                .and_then(|n| cluster.hosts.get_mut(&n))
                .ok_or("it has no node")?;
            if !host.crash(task.0, 1, now) {
                return Err("its container does not run".into());
            }
        }
        "advance" => cluster.advance(parse_duration(first).map_err(|e| e.to_string())?)?,
        "settle" => settle(cluster)?,
        "tasks" => return Ok(tasks(cluster, first)),
        "service" => return service(cluster, first),
        "nodes" => return Ok(nodes(cluster)),
        other => return Err(format!("there is no command {other}")),
    }
    Ok(String::new())
}

fn time(text: Option<&&str>) -> Result<Duration, String> {
    parse_duration(text.copied().unwrap_or_default()).map_err(|e| e.to_string())
}

fn link(cluster: &mut Cluster, name: &str, hears: bool, heard: bool) -> Result<(), String> {
    let host = host(cluster, name)?;
    (host.hears, host.heard) = (hears, heard);
    Ok(())
}

/// Sets a wall clock: `+1h`, `-1h`, `+87600h` or `1970`, of a node or of the leader.
fn clock(cluster: &mut Cluster, whose: &str, to: &str) -> Result<(), String> {
    let ahead = match (to, to.strip_prefix('-')) {
        ("1970", _) => i64::MIN,
        (_, Some(back)) => -ms(back)?,
        (ahead, None) => ms(ahead.trim_start_matches('+'))?,
    };
    if whose == "leader" {
        let at = cluster.managers.lead.as_ref().ok_or("nobody leads")?.manager;
        cluster.set_manager_clock(at, ahead);
    } else {
        let id = whose.strip_prefix('n').and_then(|n| n.parse().ok()).map(NodeId);
        cluster.set_host_clock(id.ok_or("name a node, or the leader")?, ahead);
    }
    Ok(())
}

fn ms(text: &str) -> Result<i64, String> {
    let time = parse_duration(text).map_err(|e| e.to_string())?;
    i64::try_from(time.as_millis()).map_err(|_| format!("{text} is too long"))
}

/// The hosts that really run a process of a service, and its tasks.
fn processes(cluster: &Cluster, service: &str) -> String {
    let mut out = String::new();
    let id = cluster
        .state
        .services()
        .find(|s| s.spec.name == service)
        .map(|s| s.id);
    for (node, host) in &cluster.hosts {
        for local in host.tasks.values().filter(|l| l.runs() && Some(l.slot.0) == id) {
            let slot = match local.slot.1 {
                model::object::SlotKey::Replica(n) => format!("{service}.{n}"),
                model::object::SlotKey::Node(_) => service.to_owned(),
            };
            let _ = writeln!(out, "{slot} on n{}", node.0);
        }
    }
    out
}

/// How often things happened; their names are written with `-`.
fn counts(cluster: &Cluster, names: &[&str]) -> String {
    let count = |name: &&str| {
        let words = name.replace('-', " ");
        let count = cluster.counts.get(words.as_str()).copied().unwrap_or(0);
        format!("{words}: {count}\n")
    };
    names.iter().map(count).collect()
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn host<'a>(cluster: &'a mut Cluster, name: &str) -> Result<&'a mut super::host::Host, String> {
    let id = name.strip_prefix('n').and_then(|n| n.parse().ok()).map(NodeId);
    id.and_then(|id| cluster.hosts.get_mut(&id))
        .ok_or_else(|| format!("there is no node {name}"))
}

fn ask(cluster: &mut Cluster, answer: Result<Admitted, Refusal>) -> Result<String, String> {
    match answer {
        Ok(admitted) => {
            let warnings: String = admitted
                .warnings
                .iter()
                .map(|w| format!("warning: {w}\n"))
                .collect();
            if !cluster.commit(Source::Admit, admitted.txn)? {
                return Ok("refused: no manager leads the cluster at the moment\n".into());
            }
            // The leader notices at once.
            cluster.lead()?;
            Ok(warnings)
        }
        Err(refusal) => Ok(format!("refused: {refusal}\n")),
    }
}

/// How a node is drained: `stop-first`, or start-first for so long.
fn drain(how: &str) -> Result<Drain, String> {
    if how == "stop-first" {
        return Ok(Drain::default());
    }
    Ok(Drain {
        order: UpdateOrder::StartFirst,
        deadline: Some(time(Some(&how))?),
        deadline_at: None,
    })
}

fn change_node(
    cluster: &mut Cluster,
    name: &str,
    change: impl FnOnce(&mut NodeSpec),
) -> Result<String, String> {
    let node = cluster
        .state
        .nodes()
        .find(|n| n.description.hostname == name)
        .cloned();
    let node = node.ok_or_else(|| format!("there is no node {name}"))?;
    let mut spec = node.spec.clone();
    change(&mut spec);
    let now = cluster.managers.log_now(cluster.now);
    let made = admit::update_node(
        &cluster.state,
        &node.id.to_string(),
        None,
        spec,
        &Default::default(),
        now,
    );
    ask(cluster, made)
}

fn deploy(cluster: &mut Cluster, name: &str, knobs: &[&str]) -> Result<String, String> {
    let old = cluster.state.services().find(|s| s.spec.name == name).cloned();
    let mut spec = match &old {
        Some(s) => (*s.spec).clone(),
        None => {
            let mut spec = ServiceSpec {
                name: name.into(),
                ..ServiceSpec::default()
            };
            spec.task.container.image = "a".into();
            spec.update.monitor = Duration::ZERO;
            spec
        }
    };
    for knob in knobs {
        let (key, value) = knob.split_once('=').unwrap_or((knob, ""));
        let time = || parse_duration(value).map_err(|e| e.to_string());
        let port = |mode| -> Result<PortSpec, String> {
            Ok(PortSpec {
                name: String::new(),
                protocol: Default::default(),
                target: 80,
                published: value.parse().map_err(|_| format!("{value} is no port"))?,
                mode,
                host_ip: String::new(),
                proxy: false,
            })
        };
        match key {
            "image" => spec.task.container.image = value.into(),
            "replicas" => {
                spec.mode = ServiceMode::Replicated {
                    replicas: number(value)?,
                }
            }
            "global" => spec.mode = ServiceMode::Global,
            "order" if value == "start-first" => spec.update.order = UpdateOrder::StartFirst,
            "order" if value == "stop-first" => spec.update.order = UpdateOrder::StopFirst,
            "parallelism" => spec.update.parallelism = number(value)?,
            "monitor" => spec.update.monitor = time()?,
            "delay" => spec.update.delay = time()?,
            "canary" => spec.update.canary = number(value)?,
            "deadline" => spec.update.progress_deadline = time()?,
            "on-failure" if value == "pause" => spec.update.failure_action = FailureAction::Pause,
            "on-failure" if value == "rollback" => spec.update.failure_action = FailureAction::Rollback,
            "on-failure" if value == "continue" => spec.update.failure_action = FailureAction::Continue,
            "restart" if value == "none" => spec.task.restart.condition = RestartCondition::None,
            "ratio" => {
                spec.update.max_failure_ratio = value.parse().map_err(|_| format!("{value} is no share"))?
            }
            "restart-delay" => spec.task.restart.delay = time()?,
            "restart-max-delay" => spec.task.restart.max_delay = time()?,
            "on-disconnect" if value == "keep" => spec.task.on_disconnect = OnDisconnect::Keep,
            "stop-after" => spec.task.on_disconnect = OnDisconnect::StopAfter(time()?),
            "attempts" => spec.task.restart.max_attempts = number(value)?.into(),
            "constraint" => spec.task.placement.constraints = vec![value.into()],
            "reserve-cpu" => {
                spec.task.resources.reservations.cpu = value.parse::<NanoCpus>().map_err(|e| e.to_string())?
            }
            "publish" => spec.endpoint.ports = vec![port(PublishMode::Ingress)?],
            "host-port" => spec.endpoint.ports = vec![port(PublishMode::Host)?],
            _ => return Err(format!("there is no knob {knob}")),
        }
    }
    let now = cluster.managers.log_now(cluster.now);
    if let Some(old) = old
        .as_ref()
        .filter(|old| cluster.is_well(old) && old.spec.task != spec.task)
    {
        cluster.healthy_updates.insert(old.id);
    }
    let made = match old {
        Some(_) => admit::update_service(&cluster.state, name, None, spec, now),
        None => admit::create_service(&cluster.state, spec, now, &mut cluster.rng),
    };
    ask(cluster, made)
}

/// Time passes until nothing changes any more.
fn settle(cluster: &mut Cluster) -> Result<(), String> {
    let end = cluster.now + SETTLE_MAX;
    let (mut index, mut since) = (cluster.state.index(), cluster.now);
    while cluster.now < end {
        cluster.advance(Duration::from_millis(200))?;
        if cluster.state.index() != index {
            (index, since) = (cluster.state.index(), cluster.now);
        }
        if cluster.now.since(since) > STILL {
            return Ok(());
        }
    }
    Err("it never settles".into())
}

fn node_name(cluster: &Cluster, id: Option<NodeId>) -> String {
    let node = id.and_then(|id| cluster.state.node(id));
    node.map_or("-".into(), |n| n.description.hostname.clone())
}

/// The tasks of a service: slot by slot, those still wanted first.
fn tasks(cluster: &Cluster, service: &str) -> String {
    let mut all: Vec<_> = cluster
        .state
        .tasks()
        .filter(|t| t.service_name == service)
        .collect();
    all.sort_by_key(|t| {
        let node = node_name(cluster, t.node);
        (
            t.slot,
            !t.desired.is_live(),
            std::cmp::Reverse(t.meta.created_at),
            node,
        )
    });
    let mut out = String::new();
    for t in all {
        let slot = match t.slot {
            model::object::SlotKey::Replica(n) => format!("{service}.{n}"),
            model::object::SlotKey::Node(_) => service.to_owned(),
        };
        let line = format!(
            "{slot:8} {:4} {:3} {:10} wanted {:8} {}",
            t.spec.container.image.chars().take(4).collect::<String>(),
            node_name(cluster, t.node),
            t.status.state.as_str(),
            t.desired.as_str(),
            t.status.error
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn service(cluster: &Cluster, name: &str) -> Result<String, String> {
    let service = cluster.state.services().find(|s| s.spec.name == name);
    let service: &Service = service.ok_or("there is no such service")?;
    let running = cluster
        .state
        .tasks_of_service(service.id)
        .filter(|t| t.status.state == model::task_state::TaskState::Running && t.desired.is_live())
        .count();
    let update = service.update.as_ref().map_or("never updated".to_owned(), |u| {
        format!("{:?}: {}", u.state, u.message)
    });
    let image = &service.spec.task.container.image;
    Ok(format!("{name}: {running} running, image {image}, {update}\n"))
}

fn nodes(cluster: &Cluster) -> String {
    let mut all: Vec<_> = cluster
        .state
        .nodes()
        .filter(|n| cluster.hosts.contains_key(&n.id))
        .collect();
    all.sort_by_key(|n| n.id);
    let line = |n: &std::sync::Arc<model::object::Node>| {
        format!(
            "{} {} {}\n",
            n.description.hostname,
            format!("{:?}", n.status.state).to_lowercase(),
            format!("{:?}", n.spec.availability).to_lowercase()
        )
    };
    all.into_iter().map(line).collect()
}
