//! Specs.

use std::time::Duration;

use model::spec as m;
use model::{Bytes, ConfigId, NanoCpus, NetworkId, SecretId};

use super::{WireError, all, id_or_empty, nanos, need, parse, parse_or_nil, small, wire};
use crate::types as w;

impl From<&m::ServiceSpec> for w::ServiceSpec {
    fn from(s: &m::ServiceSpec) -> Self {
        Self {
            name: s.name.clone(),
            labels: s.labels.clone(),
            task: Some((&s.task).into()),
            mode: Some(w::ServiceMode {
                mode: Some(match s.mode {
                    m::ServiceMode::Replicated { replicas } => w::service_mode::Mode::Replicated(replicas),
                    m::ServiceMode::Global => w::service_mode::Mode::Global(true),
                    m::ServiceMode::ReplicatedJob {
                        completions,
                        max_concurrent,
                    } => w::service_mode::Mode::ReplicatedJob(w::ReplicatedJob {
                        completions,
                        max_concurrent,
                    }),
                    m::ServiceMode::GlobalJob => w::service_mode::Mode::GlobalJob(true),
                }),
            }),
            update: Some((&s.update).into()),
            rollback: Some((&s.rollback).into()),
            endpoint: Some((&s.endpoint).into()),
            autoscale: s.autoscale.as_ref().map(|a| w::Autoscale {
                min: a.min,
                max: a.max,
                cpu_percent: a.cpu,
                memory_percent: a.memory,
                scale_down_after_ns: nanos(a.scale_down_after),
            }),
            schedule: s.schedule.as_ref().map(Into::into),
            rebalance_on_join: s.rebalance == m::Rebalance::OnJoin,
        }
    }
}

impl TryFrom<w::ServiceSpec> for m::ServiceSpec {
    type Error = WireError;
    fn try_from(s: w::ServiceSpec) -> Result<Self, WireError> {
        Ok(Self {
            name: s.name,
            labels: s.labels,
            task: need(s.task, "task")?.try_into()?,
            mode: match need(s.mode.and_then(|m| m.mode), "mode")? {
                w::service_mode::Mode::Replicated(replicas) => m::ServiceMode::Replicated { replicas },
                w::service_mode::Mode::Global(_) => m::ServiceMode::Global,
                w::service_mode::Mode::ReplicatedJob(job) => m::ServiceMode::ReplicatedJob {
                    completions: job.completions,
                    max_concurrent: job.max_concurrent,
                },
                w::service_mode::Mode::GlobalJob(_) => m::ServiceMode::GlobalJob,
            },
            update: need(s.update, "update")?.try_into()?,
            rollback: need(s.rollback, "rollback")?.try_into()?,
            endpoint: need(s.endpoint, "endpoint")?.try_into()?,
            autoscale: s.autoscale.map(|a| m::Autoscale {
                min: a.min,
                max: a.max,
                cpu: a.cpu_percent,
                memory: a.memory_percent,
                scale_down_after: Duration::from_nanos(a.scale_down_after_ns),
            }),
            schedule: s.schedule.map(Into::into),
            rebalance: if s.rebalance_on_join {
                m::Rebalance::OnJoin
            } else {
                m::Rebalance::Never
            },
        })
    }
}

impl From<&m::TaskSpec> for w::TaskSpec {
    fn from(s: &m::TaskSpec) -> Self {
        Self {
            container: Some((&s.container).into()),
            resources: Some(w::Resources {
                limits: Some(w::Limits {
                    nano_cpus: s.resources.limits.cpu.0,
                    memory_bytes: s.resources.limits.memory.0,
                    pids: s.resources.limits.pids,
                    generic: Vec::new(),
                }),
                reservations: Some(w::Limits {
                    nano_cpus: s.resources.reservations.cpu.0,
                    memory_bytes: s.resources.reservations.memory.0,
                    pids: 0,
                    generic: wire_amounts(&s.resources.reservations.generic),
                }),
            }),
            restart: Some((&s.restart).into()),
            placement: Some((&s.placement).into()),
            networks: wire(&s.networks),
            log: Some(w::LogDriver {
                name: s.log.name.clone(),
                options: s.log.options.clone(),
            }),
            force_update: s.force_update,
            priority: s.priority,
            depends_on: s.depends_on.iter().map(Into::into).collect(),
            stop_after_ns: match s.on_disconnect {
                m::OnDisconnect::Keep => None,
                m::OnDisconnect::StopAfter(after) => Some(nanos(after)),
            },
        }
    }
}

impl TryFrom<w::TaskSpec> for m::TaskSpec {
    type Error = WireError;
    fn try_from(s: w::TaskSpec) -> Result<Self, WireError> {
        let resources = s.resources.unwrap_or_default();
        let (limits, reservations) = (
            resources.limits.unwrap_or_default(),
            resources.reservations.unwrap_or_default(),
        );
        let log = s.log.unwrap_or_default();
        Ok(Self {
            container: need(s.container, "container")?.try_into()?,
            resources: m::Resources {
                limits: m::Limits {
                    cpu: NanoCpus(limits.nano_cpus),
                    memory: Bytes(limits.memory_bytes),
                    pids: limits.pids,
                },
                reservations: m::Reservations {
                    cpu: NanoCpus(reservations.nano_cpus),
                    memory: Bytes(reservations.memory_bytes),
                    generic: amounts(reservations.generic),
                },
            },
            restart: need(s.restart, "restart")?.try_into()?,
            placement: s.placement.unwrap_or_default().into(),
            networks: all(s.networks)?,
            log: m::LogDriver {
                name: log.name,
                options: log.options,
            },
            force_update: s.force_update,
            priority: s.priority,
            depends_on: s.depends_on.into_iter().map(Into::into).collect(),
            on_disconnect: s.stop_after_ns.map_or(m::OnDisconnect::Keep, |ns| {
                m::OnDisconnect::StopAfter(Duration::from_nanos(ns))
            }),
        })
    }
}

impl From<&m::ContainerSpec> for w::ContainerSpec {
    fn from(c: &m::ContainerSpec) -> Self {
        Self {
            image: c.image.clone(),
            command: c.command.clone(),
            args: c.args.clone(),
            env: c.env.clone(),
            hostname: c.hostname.clone(),
            dir: c.dir.clone(),
            user: c.user.clone(),
            groups: c.groups.clone(),
            tty: c.tty,
            open_stdin: c.open_stdin,
            read_only: c.read_only,
            init: c.init,
            labels: c.labels.clone(),
            mounts: wire(&c.mounts),
            secrets: c
                .secrets
                .iter()
                .map(|s| file(id_or_empty(s.id, SecretId::NIL), &s.name, &s.target))
                .collect(),
            configs: c
                .configs
                .iter()
                .map(|s| file(id_or_empty(s.id, ConfigId::NIL), &s.name, &s.target))
                .collect(),
            healthcheck: c.healthcheck.as_ref().map(Into::into),
            readiness: c.readiness.as_ref().map(Into::into),
            pre_start: wire(&c.pre_start),
            post_start: wire(&c.post_start),
            pre_stop: wire(&c.pre_stop),
            hosts: c
                .hosts
                .iter()
                .map(|(name, value)| w::Pair {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
            dns: Some(w::DnsConfig {
                servers: c.dns.servers.clone(),
                search: c.dns.search.clone(),
                options: c.dns.options.clone(),
            }),
            stop_signal: c.stop_signal.clone(),
            stop_grace_ns: c.stop_grace.map(nanos),
            cap_add: c.cap_add.clone(),
            cap_drop: c.cap_drop.clone(),
            ulimits: c
                .ulimits
                .iter()
                .map(|u| w::Ulimit {
                    name: u.name.clone(),
                    soft: u.soft,
                    hard: u.hard,
                })
                .collect(),
            sysctls: c.sysctls.clone(),
            oom_score_adj: c.oom_score_adj,
        }
    }
}

impl TryFrom<w::ContainerSpec> for m::ContainerSpec {
    type Error = WireError;
    fn try_from(c: w::ContainerSpec) -> Result<Self, WireError> {
        let dns = c.dns.unwrap_or_default();
        let secret = |f: w::FileRef| {
            Ok(m::SecretRef {
                id: parse_or_nil(&f.id, SecretId::NIL, "secrets.id")?,
                name: f.name,
                target: m::FileTarget {
                    name: f.target,
                    uid: f.uid,
                    gid: f.gid,
                    mode: f.mode,
                },
            })
        };
        let config = |f: w::FileRef| {
            Ok(m::ConfigRef {
                id: parse_or_nil(&f.id, ConfigId::NIL, "configs.id")?,
                name: f.name,
                target: m::FileTarget {
                    name: f.target,
                    uid: f.uid,
                    gid: f.gid,
                    mode: f.mode,
                },
            })
        };
        Ok(Self {
            image: c.image,
            command: c.command,
            args: c.args,
            env: c.env,
            hostname: c.hostname,
            dir: c.dir,
            user: c.user,
            groups: c.groups,
            tty: c.tty,
            open_stdin: c.open_stdin,
            read_only: c.read_only,
            init: c.init,
            labels: c.labels,
            mounts: all(c.mounts)?,
            secrets: c
                .secrets
                .into_iter()
                .map(secret)
                .collect::<Result<_, WireError>>()?,
            configs: c
                .configs
                .into_iter()
                .map(config)
                .collect::<Result<_, WireError>>()?,
            healthcheck: c.healthcheck.map(TryInto::try_into).transpose()?,
            readiness: c.readiness.map(TryInto::try_into).transpose()?,
            pre_start: c.pre_start.into_iter().map(Into::into).collect(),
            post_start: c.post_start.into_iter().map(Into::into).collect(),
            pre_stop: c.pre_stop.into_iter().map(Into::into).collect(),
            hosts: c.hosts.into_iter().map(|p| (p.name, p.value)).collect(),
            dns: m::DnsConfig {
                servers: dns.servers,
                search: dns.search,
                options: dns.options,
            },
            stop_signal: c.stop_signal,
            stop_grace: c.stop_grace_ns.map(Duration::from_nanos),
            cap_add: c.cap_add,
            cap_drop: c.cap_drop,
            ulimits: c
                .ulimits
                .into_iter()
                .map(|u| m::Ulimit {
                    name: u.name,
                    soft: u.soft,
                    hard: u.hard,
                })
                .collect(),
            sysctls: c.sysctls,
            oom_score_adj: c.oom_score_adj,
        })
    }
}

fn file(id: String, name: &str, target: &m::FileTarget) -> w::FileRef {
    w::FileRef {
        id,
        name: name.to_owned(),
        target: target.name.clone(),
        uid: target.uid,
        gid: target.gid,
        mode: target.mode,
    }
}

impl From<&m::Mount> for w::Mount {
    fn from(mount: &m::Mount) -> Self {
        let kind = match &mount.kind {
            m::MountKind::Volume {
                name,
                no_copy,
                subpath,
                driver,
                options,
                labels,
            } => w::mount::Kind::Volume(w::VolumeMount {
                name: name.clone(),
                no_copy: *no_copy,
                subpath: subpath.clone(),
                driver: driver.clone(),
                options: options.clone(),
                labels: labels.clone(),
            }),
            m::MountKind::Bind {
                source,
                propagation,
                non_recursive,
                create_source,
            } => w::mount::Kind::Bind(w::BindMount {
                source: source.clone(),
                propagation: propagation.clone(),
                non_recursive: *non_recursive,
                create_source: *create_source,
            }),
            m::MountKind::Tmpfs { size, mode } => w::mount::Kind::Tmpfs(w::TmpfsMount {
                size_bytes: size.map(|s| s.0),
                mode: *mode,
            }),
        };
        Self {
            target: mount.target.clone(),
            read_only: mount.read_only,
            kind: Some(kind),
        }
    }
}

impl TryFrom<w::Mount> for m::Mount {
    type Error = WireError;
    fn try_from(mount: w::Mount) -> Result<Self, WireError> {
        let kind = match need(mount.kind, "mounts.kind")? {
            w::mount::Kind::Volume(v) => m::MountKind::Volume {
                name: v.name,
                no_copy: v.no_copy,
                subpath: v.subpath,
                driver: v.driver,
                options: v.options,
                labels: v.labels,
            },
            w::mount::Kind::Bind(b) => m::MountKind::Bind {
                source: b.source,
                propagation: b.propagation,
                non_recursive: b.non_recursive,
                create_source: b.create_source,
            },
            w::mount::Kind::Tmpfs(t) => m::MountKind::Tmpfs {
                size: t.size_bytes.map(Bytes),
                mode: t.mode,
            },
        };
        Ok(Self {
            kind,
            target: mount.target,
            read_only: mount.read_only,
        })
    }
}

impl From<&m::UpdateConfig> for w::UpdateConfig {
    fn from(u: &m::UpdateConfig) -> Self {
        Self {
            parallelism: u.parallelism,
            delay_ns: nanos(u.delay),
            monitor_ns: nanos(u.monitor),
            failure_action: match u.failure_action {
                m::FailureAction::Pause => w::FailureAction::Pause,
                m::FailureAction::Continue => w::FailureAction::Continue,
                m::FailureAction::Rollback => w::FailureAction::Rollback,
            }
            .into(),
            max_failure_ratio: u.max_failure_ratio,
            order: w::UpdateOrder::from(u.order).into(),
            canary: u.canary,
            progress_deadline_ns: Some(nanos(u.progress_deadline)),
        }
    }
}

impl TryFrom<w::UpdateConfig> for m::UpdateConfig {
    type Error = WireError;
    fn try_from(u: w::UpdateConfig) -> Result<Self, WireError> {
        if !u.max_failure_ratio.is_finite() {
            return Err(WireError {
                field: "max_failure_ratio",
                problem: "is not a number".into(),
            });
        }
        Ok(Self {
            parallelism: u.parallelism,
            delay: Duration::from_nanos(u.delay_ns),
            monitor: Duration::from_nanos(u.monitor_ns),
            failure_action: match u.failure_action() {
                w::FailureAction::Pause => m::FailureAction::Pause,
                w::FailureAction::Continue => m::FailureAction::Continue,
                w::FailureAction::Rollback => m::FailureAction::Rollback,
            },
            max_failure_ratio: u.max_failure_ratio,
            order: u.order().into(),
            canary: u.canary,
            progress_deadline: (u.progress_deadline_ns).map_or(m::PROGRESS_DEADLINE, Duration::from_nanos),
        })
    }
}

impl From<m::UpdateOrder> for w::UpdateOrder {
    fn from(order: m::UpdateOrder) -> Self {
        match order {
            m::UpdateOrder::StopFirst => Self::StopFirst,
            m::UpdateOrder::StartFirst => Self::StartFirst,
        }
    }
}

impl From<w::UpdateOrder> for m::UpdateOrder {
    fn from(order: w::UpdateOrder) -> Self {
        match order {
            w::UpdateOrder::StopFirst => Self::StopFirst,
            w::UpdateOrder::StartFirst => Self::StartFirst,
        }
    }
}

impl From<&m::RestartPolicy> for w::RestartPolicy {
    fn from(r: &m::RestartPolicy) -> Self {
        Self {
            condition: match r.condition {
                m::RestartCondition::Any => w::RestartCondition::Any,
                m::RestartCondition::OnFailure => w::RestartCondition::OnFailure,
                m::RestartCondition::None => w::RestartCondition::None,
            }
            .into(),
            delay_ns: nanos(r.delay),
            max_attempts: r.max_attempts,
            window_ns: nanos(r.window),
            max_delay_ns: nanos(r.max_delay),
            reset_after_ns: if r.reset_after == m::RestartPolicy::RESET_AFTER {
                0
            } else {
                nanos(r.reset_after)
            },
        }
    }
}

impl TryFrom<w::RestartPolicy> for m::RestartPolicy {
    type Error = WireError;
    fn try_from(r: w::RestartPolicy) -> Result<Self, WireError> {
        Ok(Self {
            condition: match r.condition() {
                w::RestartCondition::Any => m::RestartCondition::Any,
                w::RestartCondition::OnFailure => m::RestartCondition::OnFailure,
                w::RestartCondition::None => m::RestartCondition::None,
            },
            delay: Duration::from_nanos(r.delay_ns),
            max_attempts: r.max_attempts,
            window: Duration::from_nanos(r.window_ns),
            max_delay: Duration::from_nanos(r.max_delay_ns),
            reset_after: match r.reset_after_ns {
                0 => m::RestartPolicy::RESET_AFTER,
                ns => Duration::from_nanos(ns),
            },
        })
    }
}

fn wire_amounts(amounts: &m::Amounts) -> Vec<w::GenericResource> {
    let of = |(kind, count): (&String, &u64)| w::GenericResource {
        kind: kind.clone(),
        count: *count,
        names: Vec::new(),
    };
    amounts.iter().map(of).collect()
}

fn amounts(wire: Vec<w::GenericResource>) -> m::Amounts {
    wire.into_iter().map(|r| (r.kind, r.count)).collect()
}

/// Of each kind the names.
pub(super) fn wire_names(names: &m::Names) -> Vec<w::GenericResource> {
    let of = |(kind, names): (&String, &std::collections::BTreeSet<String>)| w::GenericResource {
        kind: kind.clone(),
        count: 0,
        names: names.iter().cloned().collect(),
    };
    names.iter().map(of).collect()
}

pub(super) fn names(wire: Vec<w::GenericResource>) -> m::Names {
    let named = wire.into_iter().filter(|r| !r.names.is_empty());
    named.map(|r| (r.kind, r.names.into_iter().collect())).collect()
}

pub(super) fn wire_generic(all: &m::GenericResources) -> Vec<w::GenericResource> {
    let mut wire = wire_amounts(&all.counted);
    wire.extend(wire_names(&all.named));
    wire
}

pub(super) fn generic(wire: Vec<w::GenericResource>) -> m::GenericResources {
    let (named, counted) = wire.into_iter().partition(|r| !r.names.is_empty());
    m::GenericResources {
        counted: amounts(counted),
        named: names(named),
    }
}

impl From<&m::Placement> for w::Placement {
    fn from(p: &m::Placement) -> Self {
        Self {
            constraints: p.constraints.clone(),
            spread: p.spread.clone(),
            max_replicas_per_node: p.max_replicas_per_node,
            platforms: wire(&p.platforms),
            strategy: match p.strategy {
                m::PlacementStrategy::Spread => w::Strategy::Spread,
                m::PlacementStrategy::Binpack => w::Strategy::Binpack,
            }
            .into(),
            affinity: p.affinity.clone(),
        }
    }
}

impl From<w::Placement> for m::Placement {
    fn from(p: w::Placement) -> Self {
        Self {
            strategy: match p.strategy() {
                w::Strategy::Spread => m::PlacementStrategy::Spread,
                w::Strategy::Binpack => m::PlacementStrategy::Binpack,
            },
            affinity: p.affinity,
            constraints: p.constraints,
            spread: p.spread,
            max_replicas_per_node: p.max_replicas_per_node,
            platforms: p.platforms.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&m::Platform> for w::Platform {
    fn from(p: &m::Platform) -> Self {
        Self {
            os: p.os.clone(),
            arch: p.arch.clone(),
        }
    }
}

impl From<w::Platform> for m::Platform {
    fn from(p: w::Platform) -> Self {
        Self {
            os: p.os,
            arch: p.arch,
        }
    }
}

impl From<&m::NetworkAttachment> for w::NetworkAttachment {
    fn from(n: &m::NetworkAttachment) -> Self {
        Self {
            network: id_or_empty(n.network, NetworkId::NIL),
            name: n.name.clone(),
            aliases: n.aliases.clone(),
            encrypted: n.encrypted,
            address: n.address.map(|a| a.to_string()).unwrap_or_default(),
            address6: n.address6.map(|a| a.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<w::NetworkAttachment> for m::NetworkAttachment {
    type Error = WireError;
    fn try_from(n: w::NetworkAttachment) -> Result<Self, WireError> {
        Ok(Self {
            network: parse_or_nil(&n.network, NetworkId::NIL, "networks.network")?,
            name: n.name,
            aliases: n.aliases,
            encrypted: n.encrypted,
            address: match n.address.as_str() {
                "" => None,
                address => Some(parse(address, "networks.address")?),
            },
            address6: match n.address6.as_str() {
                "" => None,
                address => Some(parse(address, "networks.address6")?),
            },
        })
    }
}

impl From<&m::EndpointSpec> for w::EndpointSpec {
    fn from(e: &m::EndpointSpec) -> Self {
        Self {
            dnsrr: e.mode == m::EndpointMode::DnsRr,
            ports: wire(&e.ports),
        }
    }
}

impl TryFrom<w::EndpointSpec> for m::EndpointSpec {
    type Error = WireError;
    fn try_from(e: w::EndpointSpec) -> Result<Self, WireError> {
        Ok(Self {
            mode: if e.dnsrr {
                m::EndpointMode::DnsRr
            } else {
                m::EndpointMode::Vip
            },
            ports: all(e.ports)?,
        })
    }
}

impl From<&m::PortSpec> for w::PortSpec {
    fn from(p: &m::PortSpec) -> Self {
        Self {
            name: p.name.clone(),
            protocol: match p.protocol {
                m::Protocol::Tcp => w::Protocol::Tcp,
                m::Protocol::Udp => w::Protocol::Udp,
                m::Protocol::Sctp => w::Protocol::Sctp,
            }
            .into(),
            target: p.target.into(),
            published: p.published.into(),
            host_mode: p.mode == m::PublishMode::Host,
            host_ip: p.host_ip.clone(),
            proxy: p.proxy,
        }
    }
}

impl TryFrom<w::PortSpec> for m::PortSpec {
    type Error = WireError;
    fn try_from(p: w::PortSpec) -> Result<Self, WireError> {
        let protocol = match p.protocol() {
            w::Protocol::Tcp => m::Protocol::Tcp,
            w::Protocol::Udp => m::Protocol::Udp,
            w::Protocol::Sctp => m::Protocol::Sctp,
        };
        Ok(Self {
            name: p.name,
            protocol,
            target: small(p.target, "ports.target")?,
            published: small(p.published, "ports.published")?,
            mode: if p.host_mode {
                m::PublishMode::Host
            } else {
                m::PublishMode::Ingress
            },
            host_ip: p.host_ip,
            proxy: p.proxy,
        })
    }
}

impl From<&m::NetworkSpec> for w::NetworkSpec {
    fn from(n: &m::NetworkSpec) -> Self {
        Self {
            name: n.name.clone(),
            labels: n.labels.clone(),
            driver: n.driver.clone(),
            options: n.options.clone(),
            internal: n.internal,
            attachable: n.attachable,
            ingress: n.ingress,
            ipv6: n.ipv6,
            subnets: n.subnets.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<w::NetworkSpec> for m::NetworkSpec {
    type Error = WireError;
    fn try_from(n: w::NetworkSpec) -> Result<Self, WireError> {
        Ok(Self {
            name: n.name,
            labels: n.labels,
            driver: n.driver,
            options: n.options,
            internal: n.internal,
            attachable: n.attachable,
            ingress: n.ingress,
            ipv6: n.ipv6,
            subnets: n
                .subnets
                .iter()
                .map(|s| parse(s, "subnets"))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&m::SecretSpec> for w::SecretSpec {
    fn from(s: &m::SecretSpec) -> Self {
        Self {
            name: s.name.clone(),
            labels: s.labels.clone(),
            data: s.data.clone(),
        }
    }
}

impl From<w::SecretSpec> for m::SecretSpec {
    fn from(s: w::SecretSpec) -> Self {
        Self {
            name: s.name,
            labels: s.labels,
            data: s.data,
        }
    }
}

impl From<&m::ConfigSpec> for w::ConfigSpec {
    fn from(s: &m::ConfigSpec) -> Self {
        Self {
            name: s.name.clone(),
            labels: s.labels.clone(),
            data: s.data.clone(),
        }
    }
}

impl From<w::ConfigSpec> for m::ConfigSpec {
    fn from(s: w::ConfigSpec) -> Self {
        Self {
            name: s.name,
            labels: s.labels,
            data: s.data,
        }
    }
}

impl From<&m::StackSpec> for w::StackSpec {
    fn from(s: &m::StackSpec) -> Self {
        Self {
            namespace: s.namespace.clone(),
            services: wire(&s.services),
            networks: wire(&s.networks),
            secrets: wire(&s.secrets),
            configs: wire(&s.configs),
            external_networks: s.external_networks.clone(),
            external_secrets: s.external_secrets.clone(),
            external_configs: s.external_configs.clone(),
        }
    }
}

impl TryFrom<w::StackSpec> for m::StackSpec {
    type Error = WireError;
    fn try_from(s: w::StackSpec) -> Result<Self, WireError> {
        Ok(Self {
            namespace: s.namespace,
            services: all(s.services)?,
            networks: all(s.networks)?,
            secrets: s.secrets.into_iter().map(Into::into).collect(),
            configs: s.configs.into_iter().map(Into::into).collect(),
            external_networks: s.external_networks,
            external_secrets: s.external_secrets,
            external_configs: s.external_configs,
        })
    }
}
