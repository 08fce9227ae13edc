//! Objects as Docker's API shows them, and the rows of lists.

use std::net::IpAddr;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use model::job::JobStatus;
use model::object::{
    Availability, Config, Drain, Network, Node, NodeRole, NodeState, Secret, Service, SlotKey, Task,
};
use model::spec::{
    Amounts, FailureAction, GenericResources, Healthcheck, Hook, ImageRef, Mount, MountKind, Names, NetProbe,
    OnDisconnect, PortSpec, PublishMode, RestartCondition, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    UpdateOrder,
};
use model::{NetworkId, Timestamp};
use serde_json::{Value, json};

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn meta(m: model::object::Meta) -> (Value, String, String) {
    (
        json!({"Index": m.version}),
        m.created_at.rfc3339(),
        m.updated_at.rfc3339(),
    )
}

fn update(u: &UpdateConfig) -> Value {
    json!({
        "Parallelism": u.parallelism,
        "Delay": ns(u.delay),
        "FailureAction": match u.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        },
        "Monitor": ns(u.monitor),
        "MaxFailureRatio": u.max_failure_ratio,
        "Order": order(u.order),
        "Canary": u.canary,
        "ProgressDeadline": ns(u.progress_deadline),
    })
}

fn port(p: &PortSpec) -> Value {
    json!({
        "Protocol": p.protocol.as_str(),
        "TargetPort": p.target,
        "PublishedPort": p.published,
        "PublishMode": if p.mode == PublishMode::Host { "host" } else { "ingress" },
        "HostIP": p.host_ip,
        "ProxyProtocol": if p.proxy { "v2" } else { "" },
    })
}

fn mount(m: &Mount) -> Value {
    let mut value = match &m.kind {
        MountKind::Volume {
            name,
            no_copy,
            subpath,
            driver,
            options,
            labels,
        } => json!({"Type": "volume", "Source": name, "VolumeOptions": {
            "NoCopy": no_copy, "Subpath": subpath, "Labels": labels, "DriverConfig": {"Name": driver, "Options": options},
        }}),
        MountKind::Bind {
            source,
            propagation,
            non_recursive,
            create_source,
        } => json!({"Type": "bind", "Source": source, "BindOptions": {
            "Propagation": propagation, "NonRecursive": non_recursive, "CreateMountpoint": create_source,
        }}),
        MountKind::Tmpfs { size, mode } => {
            json!({"Type": "tmpfs", "TmpfsOptions": {"SizeBytes": size.map(|s| s.0), "Mode": mode}})
        }
    };
    value["Target"] = m.target.as_str().into();
    value["ReadOnly"] = m.read_only.into();
    value
}

fn check(h: &Healthcheck) -> Value {
    let net = h.net.as_ref().map(|net| match net {
        NetProbe::Http { port, path, status } => {
            json!({"HTTP": {"Port": port, "Path": path, "Status": format!("{}-{}", status.start(), status.end())}})
        }
        NetProbe::Tcp { port } => json!({"TCP": {"Port": port}}),
    });
    json!({
        "Test": h.test, "Probe": net, "Interval": ns(h.interval), "Timeout": ns(h.timeout), "Retries": h.retries,
        "StartPeriod": ns(h.start_period), "StartInterval": ns(h.start_interval),
    })
}

fn hook(h: &Hook) -> Value {
    json!({"Command": h.command, "User": h.user, "Dir": h.dir, "Env": h.env})
}

fn task_spec(t: &TaskSpec) -> Value {
    let c = &t.container;
    json!({
        "ContainerSpec": {
            "Image": c.image,
            "Command": c.command,
            "Args": c.args,
            "Env": c.env,
            "Hostname": c.hostname,
            "Dir": c.dir,
            "User": c.user,
            "Labels": c.labels,
            "ReadOnly": c.read_only,
            "TTY": c.tty,
            "StopSignal": c.stop_signal,
            "StopGracePeriod": ns(c.stop_grace_or_default()),
            "Mounts": c.mounts.iter().map(mount).collect::<Vec<_>>(),
            "Groups": c.groups,
            "OpenStdin": c.open_stdin,
            "Init": c.init,
            "Hosts": c.hosts.iter().map(|(name, address)| format!("{address} {name}")).collect::<Vec<_>>(),
            "DNSConfig": {"Nameservers": c.dns.servers, "Search": c.dns.search, "Options": c.dns.options},
            "CapabilityAdd": c.cap_add,
            "CapabilityDrop": c.cap_drop,
            "Ulimits": c.ulimits.iter().map(|u| json!({"Name": u.name, "Soft": u.soft, "Hard": u.hard})).collect::<Vec<_>>(),
            "Sysctls": c.sysctls,
            "OomScoreAdj": c.oom_score_adj,
            "Secrets": c.secrets.iter().map(|s| json!({"SecretID": s.id.to_string(), "SecretName": s.name, "File": {"Name": s.target.name, "Mode": s.target.mode}})).collect::<Vec<_>>(),
            "Configs": c.configs.iter().map(|s| json!({"ConfigID": s.id.to_string(), "ConfigName": s.name, "File": {"Name": s.target.name, "Mode": s.target.mode}})).collect::<Vec<_>>(),
            "Healthcheck": c.healthcheck.as_ref().map(check),
            "Readiness": c.readiness.as_ref().map(check),
            "PreStart": c.pre_start.iter().map(hook).collect::<Vec<_>>(),
            "PostStart": c.post_start.iter().map(hook).collect::<Vec<_>>(),
            "PreStop": c.pre_stop.iter().map(hook).collect::<Vec<_>>(),
        },
        "Resources": {
            "Limits": {"NanoCPUs": t.resources.limits.cpu.0, "MemoryBytes": t.resources.limits.memory.0, "Pids": t.resources.limits.pids},
            "Reservations": {"NanoCPUs": t.resources.reservations.cpu.0, "MemoryBytes": t.resources.reservations.memory.0, "GenericResources": generic(&t.resources.reservations.generic)},
        },
        "RestartPolicy": {
            "Condition": match t.restart.condition { RestartCondition::Any => "any", RestartCondition::OnFailure => "on-failure", RestartCondition::None => "none" },
            "Delay": ns(t.restart.delay),
            "MaxAttempts": t.restart.max_attempts,
            "Window": ns(t.restart.window),
            "MaxDelay": ns(t.restart.max_delay),
            "ResetAfter": ns(t.restart.reset_after),
        },
        "Placement": {
            "Constraints": t.placement.constraints,
            "Preferences": t.placement.spread.iter().map(|s| json!({"Spread": {"SpreadDescriptor": s}})).collect::<Vec<_>>(),
            "MaxReplicas": t.placement.max_replicas_per_node,
            "Strategy": t.placement.strategy.as_str(),
            "Affinity": t.placement.affinity,
            "Platforms": t.placement.platforms.iter().map(|p| json!({"OS": p.os, "Architecture": p.arch})).collect::<Vec<_>>(),
        },
        "LogDriver": {"Name": t.log.name, "Options": t.log.options},
        "Priority": t.priority,
        "DependsOn": t.depends_on.iter().map(|d| json!({"Service": d.service, "Condition": d.condition.as_str(), "Required": !d.optional})).collect::<Vec<_>>(),
        "Networks": t.networks.iter().map(|n| json!({"Target": n.network.to_string(), "Aliases": n.aliases, "Address": n.address.map(|a| a.to_string()), "Address6": n.address6.map(|a| a.to_string())})).collect::<Vec<_>>(),
        "ForceUpdate": t.force_update,
        "OnDisconnect": match t.on_disconnect {
            OnDisconnect::Keep => json!("keep"),
            OnDisconnect::StopAfter(after) => json!({"StopAfter": ns(after)}),
        },
    })
}

/// Docker's shape of generic resources that are counted.
fn generic(amounts: &Amounts) -> Vec<Value> {
    let of = |(kind, n)| json!({"DiscreteResourceSpec": {"Kind": kind, "Value": n}});
    amounts.iter().map(of).collect()
}

/// Docker's shape of what a node has of them.
fn generic_of(all: &GenericResources) -> Vec<Value> {
    [generic(&all.counted), names(&all.named)].concat()
}

/// Docker's shape of those that have names.
fn names(names: &Names) -> Vec<Value> {
    let all = names
        .iter()
        .flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
    all.map(|(kind, name)| json!({"NamedResourceSpec": {"Kind": kind, "Value": name}}))
        .collect()
}

/// What a service was asked to be.
pub(crate) fn spec(s: &ServiceSpec) -> Value {
    json!({
        "Name": s.name,
        "Labels": s.labels,
        "TaskTemplate": task_spec(&s.task),
        "Mode": match s.mode {
            ServiceMode::Replicated { replicas } => json!({"Replicated": {"Replicas": replicas}}),
            ServiceMode::Global => json!({"Global": {}}),
            ServiceMode::ReplicatedJob { completions, .. } => json!({"ReplicatedJob": {
                "MaxConcurrent": s.mode.concurrent(), "TotalCompletions": completions,
            }}),
            ServiceMode::GlobalJob => json!({"GlobalJob": {}}),
        },
        "Autoscale": s.autoscale.as_ref().map(|a| json!({
            "Min": a.min, "Max": a.max, "CPU": a.cpu, "Memory": a.memory, "ScaleDownAfter": ns(a.scale_down_after),
        })),
        "Rebalance": s.rebalance.as_str(),
        "Schedule": s.schedule.as_ref().map(|s| json!({
            "Cron": s.cron, "Timezone": if s.timezone.is_empty() { "UTC" } else { &s.timezone }, "Concurrency": s.concurrency.as_str(),
            "History": s.history, "StartingDeadline": ns(s.starting_deadline),
        })),
        "UpdateConfig": update(&s.update),
        "RollbackConfig": update(&s.rollback),
        "EndpointSpec": {
            "Mode": if s.endpoint.mode == model::spec::EndpointMode::Vip { "vip" } else { "dnsrr" },
            "Ports": s.endpoint.ports.iter().map(port).collect::<Vec<_>>(),
        },
    })
}

/// A service; for people its images are shown by name alone.
pub(crate) fn service(s: &Service, for_people: bool) -> Value {
    let spec = |s: &ServiceSpec| {
        let mut value = spec(s);
        if for_people {
            value["TaskTemplate"]["ContainerSpec"]["Image"] = ImageRef::shown(&s.task.container.image).into();
        }
        value
    };

    let (version, created, updated) = meta(s.meta);
    json!({
        "ID": s.id.to_string(), "Version": version, "CreatedAt": created, "UpdatedAt": updated,
        "Spec": spec(&s.spec),
        // People compare with `service diff`.
        "PreviousSpec": s.previous_spec.as_ref().filter(|_| !for_people).map(|p| spec(p)),
        "UpdateStatus": s.update.as_ref().map(|u| json!({
            "State": u.state.as_str(), "StartedAt": u.started_at.rfc3339(),
            "CompletedAt": u.completed_at.map(Timestamp::rfc3339), "Message": u.message,
        })),
        "Scaled": s.scaled.as_ref().map(|s| json!({
            "At": s.at.rfc3339(), "From": s.from, "To": s.to, "Why": s.why,
        })),
        "JobStatus": s.job.as_ref().map(job),
        "Endpoint": {
            "Ports": s.endpoint.ports.iter().map(port).collect::<Vec<_>>(),
            "VirtualIPs": s.endpoint.vips.iter().map(|(n, a)| json!({"NetworkID": n.to_string(), "Addr": a.to_string()})).collect::<Vec<_>>(),
        },
    })
}

/// The runs of a job.
fn job(job: &JobStatus) -> Value {
    let when = |at: Option<Timestamp>| at.map(Timestamp::rfc3339);
    json!({
        "JobIteration": {"Index": job.iteration},
        "LastExecution": when(job.runs.last().map(|r| r.started_at)),
        "NextExecution": when(job.next_at),
        "Missed": job.missed,
        "Runs": job.runs.iter().map(|r| json!({
            "Run": r.iteration, "State": r.state.as_str(), "DueAt": when(r.due_at), "StartedAt": when(Some(r.started_at)),
            "EndedAt": when(r.ended_at), "Completed": r.completed, "Failed": r.failed,
        })).collect::<Vec<_>>(),
    })
}

pub(crate) fn ports(list: &[PortSpec]) -> String {
    let one = |p: &PortSpec| {
        let ip = if p.host_ip.is_empty() { "*" } else { &p.host_ip };
        format!("{ip}:{}->{}/{}", p.published, p.target, p.protocol.as_str())
    };
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The networks of a task, each with its addresses there.
fn attachments(t: &Task) -> Vec<Value> {
    let one = |of_one: &[(NetworkId, IpAddr)]| {
        let addresses: Vec<_> = of_one.iter().map(|(_, a)| a.to_string()).collect();
        json!({"Network": {"ID": of_one[0].0.to_string()}, "Addresses": addresses})
    };
    t.addresses.chunk_by(|(a, _), (b, _)| a == b).map(one).collect()
}

pub(crate) fn task(t: &Task) -> Value {
    let (version, created, updated) = meta(t.meta);
    json!({
        "ID": t.id.to_string(), "Version": version, "CreatedAt": created, "UpdatedAt": updated,
        "Name": t.name(), "ServiceID": t.service.to_string(), "NodeID": t.node.map(|n| n.to_string()),
        "Slot": match t.slot { SlotKey::Replica(n) => n, SlotKey::Node(_) => 0 },
        "Spec": task_spec(&t.spec),
        "DesiredState": t.desired.as_str(),
        "Status": {
            "State": t.status.state.as_str(), "Ready": t.is_ready(), "Timestamp": t.status.at.rfc3339(), "Message": t.status.message, "Err": t.status.error,
            "ContainerStatus": t.status.container.as_ref().map(|c| json!({"ContainerID": c.id, "PID": c.pid, "ExitCode": c.exit_code})),
        },
        "NetworksAttachments": attachments(t),
        "AssignedGenericResources": names(&t.granted),
    })
}

pub(crate) fn node(n: &Node) -> Value {
    let (version, created, updated) = meta(n.meta);
    json!({
        "ID": n.id.to_string(), "Version": version, "CreatedAt": created, "UpdatedAt": updated,
        "Spec": {"Labels": n.spec.labels, "Availability": availability(n).to_lowercase(), "Role": if n.spec.role == NodeRole::Manager { "manager" } else { "worker" }, "Drain": n.spec.drain.as_ref().map(drain)},
        "Description": {
            "Hostname": n.description.hostname,
            "Platform": {"OS": n.description.platform.os, "Architecture": n.description.platform.arch},
            "Resources": {
                "NanoCPUs": n.description.cpus.0, "MemoryBytes": n.description.memory.0,
                "GenericResources": generic_of(&n.description.generic),
            },
            "Engine": {"EngineVersion": n.description.engine_version, "Labels": n.description.engine_labels},
            // As `wg` shows it.
            "WireGuardKey": n.description.tunnel_key.map(|key| BASE64_STANDARD.encode(key.0)),
        },
        "Status": {
            "State": state(n).to_lowercase(), "Message": n.status.message, "Addr": n.description.address,
            "Used": {"CPU": n.status.used.cpu, "Memory": n.status.used.memory},
            "DataPlane": data_plane(n), "Unreached": n.status.unreached.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "TLSInfo": {"CertIssuer": n.identity.issuer, "CertExpiresAt": n.identity.expires_at.0},
        "ManagerStatus": (n.spec.role == NodeRole::Manager).then(|| json!({"Leader": true, "Reachability": "reachable"})),
    })
}

fn drain(d: &Drain) -> Value {
    json!({
        "Order": order(d.order), "Deadline": d.deadline.map(ns), "DeadlineAt": d.deadline_at.map(|at| at.rfc3339()),
    })
}

fn order(order: UpdateOrder) -> &'static str {
    match order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    }
}

pub(crate) fn availability(n: &Node) -> &'static str {
    match n.spec.availability {
        Availability::Active => "Active",
        Availability::Pause => "Pause",
        Availability::Drain => "Drain",
    }
}

/// Whether packets of networks are exchanged with all other nodes.
pub(crate) fn data_plane(n: &Node) -> &'static str {
    if n.status.unreached.is_empty() {
        "ok"
    } else {
        "degraded"
    }
}

pub(crate) fn state(n: &Node) -> &'static str {
    match n.status.state {
        NodeState::Unknown => "Unknown",
        NodeState::Ready => "Ready",
        NodeState::Down => "Down",
    }
}

pub(crate) fn network(n: &Network) -> Value {
    let (version, created, _) = meta(n.meta);
    json!({
        "Name": n.spec.name, "ID": n.id.to_string(), "Id": n.id.to_string(), "Version": version, "Created": created,
        "Scope": "swarm", "Driver": n.spec.driver, "EnableIPv4": true, "EnableIPv6": n.spec.ipv6, "Internal": n.spec.internal, "Attachable": n.spec.attachable,
        "Ingress": n.spec.ingress, "Labels": n.spec.labels, "Options": n.spec.options,
        "IPAM": {"Driver": "default", "Config": n.subnets.iter().map(|s| json!({"Subnet": s.to_string()})).collect::<Vec<_>>()},
        "VNI": n.vni,
    })
}

pub(crate) fn secret(s: &Secret) -> Value {
    let (version, created, updated) = meta(s.meta);
    json!({"ID": s.id.to_string(), "Version": version, "CreatedAt": created, "UpdatedAt": updated, "Spec": {"Name": s.spec.name, "Labels": s.spec.labels}})
}

pub(crate) fn config(c: &Config) -> Value {
    let (version, created, updated) = meta(c.meta);
    json!({"ID": c.id.to_string(), "Version": version, "CreatedAt": created, "UpdatedAt": updated, "Spec": {"Name": c.spec.name, "Labels": c.spec.labels, "Data": String::from_utf8_lossy(&c.spec.data)}})
}
