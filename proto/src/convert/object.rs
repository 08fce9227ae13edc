//! Objects and their keys.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::object as m;
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, Level, NanoCpus, NetworkId, Timestamp};

use super::{WireError, all, nanos, need, parse, small, wire};
use crate::types as w;

impl From<m::Meta> for w::Meta {
    fn from(x: m::Meta) -> Self {
        Self {
            version: x.version,
            created_at_ms: x.created_at.0,
            updated_at_ms: x.updated_at.0,
        }
    }
}

fn meta(x: Option<w::Meta>) -> m::Meta {
    let x = x.unwrap_or_default();
    m::Meta {
        version: x.version,
        created_at: Timestamp(x.created_at_ms),
        updated_at: Timestamp(x.updated_at_ms),
    }
}

fn nets(texts: &[String], field: &'static str) -> Result<Vec<IpNet>, WireError> {
    texts.iter().map(|t| parse(t, field)).collect()
}

impl From<&m::Cluster> for w::Cluster {
    fn from(c: &m::Cluster) -> Self {
        Self {
            id: c.id.to_string(),
            meta: Some(c.meta.into()),
            task_history_limit: c.task_history_limit,
            heartbeat_ns: nanos(c.heartbeat),
            address_pools: c.address_pools.iter().map(ToString::to_string).collect(),
            subnet_prefix: c.subnet_prefix.into(),
            security: Some((&c.security).into()),
            level: c.level.number(),
        }
    }
}

impl From<&m::Authority> for w::Authority {
    fn from(a: &m::Authority) -> Self {
        Self {
            certificate: a.certificate.clone(),
            key: a.key.clone(),
        }
    }
}

impl From<w::Authority> for m::Authority {
    fn from(a: w::Authority) -> Self {
        Self {
            certificate: a.certificate,
            key: a.key,
        }
    }
}

impl From<&m::Security> for w::Security {
    fn from(s: &m::Security) -> Self {
        let next = s.next.as_ref();
        Self {
            authority: Some((&s.authority).into()),
            next: next.map(|n| (&n.authority).into()),
            next_cross_signed: next.map(|n| n.cross_signed.clone()).unwrap_or_default(),
            next_since_ms: next.map_or(0, |n| n.since.0),
            certificate_expiry_ns: nanos(s.certificate_expiry),
            token_key: s.token_key.clone(),
            tokens: wire(&s.tokens),
            last_token: s.last_token,
            unlock_key: s.unlock_key.clone(),
            epoch: s.epoch,
            autolock: !s.unlock_key.is_empty(),
        }
    }
}

impl From<w::Security> for m::Security {
    fn from(s: w::Security) -> Self {
        Self {
            authority: s.authority.unwrap_or_default().into(),
            next: s.next.map(|next| m::NextAuthority {
                authority: next.into(),
                cross_signed: s.next_cross_signed,
                since: Timestamp(s.next_since_ms),
            }),
            certificate_expiry: Duration::from_nanos(s.certificate_expiry_ns),
            token_key: s.token_key,
            tokens: s.tokens.into_iter().map(Into::into).collect(),
            last_token: s.last_token,
            unlock_key: s.unlock_key,
            epoch: s.epoch,
        }
    }
}

fn role(manager: bool) -> m::NodeRole {
    if manager {
        m::NodeRole::Manager
    } else {
        m::NodeRole::Worker
    }
}

impl From<&m::JoinToken> for w::JoinToken {
    fn from(t: &m::JoinToken) -> Self {
        Self {
            serial: t.serial,
            manager: t.role == m::NodeRole::Manager,
            standing: t.standing,
            expires_at_ms: t.expires_at.map(|at| at.0),
            uses_left: t.uses_left,
            labels: t.labels,
        }
    }
}

impl From<w::JoinToken> for m::JoinToken {
    fn from(t: w::JoinToken) -> Self {
        Self {
            serial: t.serial,
            role: role(t.manager),
            standing: t.standing,
            expires_at: t.expires_at_ms.map(Timestamp),
            uses_left: t.uses_left,
            labels: t.labels,
        }
    }
}

impl From<&m::NodeIdentity> for w::NodeIdentity {
    fn from(i: &m::NodeIdentity) -> Self {
        Self {
            key: i.key.clone(),
            issuer: i.issuer.clone(),
            expires_at_ms: i.expires_at.0,
            raft_id: i.raft_id,
        }
    }
}

impl From<w::NodeIdentity> for m::NodeIdentity {
    fn from(i: w::NodeIdentity) -> Self {
        Self {
            key: i.key,
            issuer: i.issuer,
            expires_at: Timestamp(i.expires_at_ms),
            raft_id: i.raft_id,
        }
    }
}

impl TryFrom<w::Cluster> for m::Cluster {
    type Error = WireError;
    fn try_from(c: w::Cluster) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&c.id, "id")?,
            meta: meta(c.meta),
            task_history_limit: c.task_history_limit,
            heartbeat: Duration::from_nanos(c.heartbeat_ns),
            address_pools: nets(&c.address_pools, "address_pools")?,
            subnet_prefix: small(c.subnet_prefix, "subnet_prefix")?,
            security: c.security.unwrap_or_default().into(),
            level: Level::new(c.level),
        })
    }
}

impl From<&m::Node> for w::Node {
    fn from(n: &m::Node) -> Self {
        Self {
            id: n.id.to_string(),
            meta: Some(n.meta.into()),
            spec: Some((&n.spec).into()),
            description: Some((&n.description).into()),
            status: Some((&n.status).into()),
            identity: Some((&n.identity).into()),
            manager: None,
        }
    }
}

impl TryFrom<w::Node> for m::Node {
    type Error = WireError;
    fn try_from(n: w::Node) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&n.id, "id")?,
            meta: meta(n.meta),
            spec: n.spec.unwrap_or_default().into(),
            description: n.description.unwrap_or_default().into(),
            status: n.status.unwrap_or_default().into(),
            identity: n.identity.unwrap_or_default().into(),
        })
    }
}

impl From<&m::NodeSpec> for w::NodeSpec {
    fn from(s: &m::NodeSpec) -> Self {
        Self {
            labels: s.labels.clone(),
            availability: w::Availability::from(s.availability).into(),
            manager: s.role == m::NodeRole::Manager,
            drain: s.drain.map(|d| w::NodeDrain {
                order: w::UpdateOrder::from(d.order).into(),
                deadline_ns: d.deadline.map_or(0, nanos),
                deadline_at_ms: d.deadline_at.map_or(0, |at| at.0),
            }),
        }
    }
}

impl From<w::NodeSpec> for m::NodeSpec {
    fn from(s: w::NodeSpec) -> Self {
        Self {
            availability: s.availability().into(),
            labels: s.labels,
            role: role(s.manager),
            drain: s.drain.map(|d| m::Drain {
                order: d.order().into(),
                deadline: (d.deadline_ns > 0).then(|| Duration::from_nanos(d.deadline_ns)),
                deadline_at: (d.deadline_at_ms > 0).then_some(Timestamp(d.deadline_at_ms)),
            }),
        }
    }
}

impl From<m::Availability> for w::Availability {
    fn from(a: m::Availability) -> Self {
        match a {
            m::Availability::Active => Self::Active,
            m::Availability::Pause => Self::Paused,
            m::Availability::Drain => Self::Drain,
        }
    }
}

impl From<w::Availability> for m::Availability {
    fn from(a: w::Availability) -> Self {
        match a {
            w::Availability::Active => Self::Active,
            w::Availability::Paused => Self::Pause,
            w::Availability::Drain => Self::Drain,
        }
    }
}

impl From<&m::NodeDescription> for w::NodeDescription {
    fn from(d: &m::NodeDescription) -> Self {
        Self {
            hostname: d.hostname.clone(),
            platform: Some((&d.platform).into()),
            nano_cpus: d.cpus.0,
            memory_bytes: d.memory.0,
            engine_version: d.engine_version.clone(),
            engine_labels: d.engine_labels.clone(),
            address: d.address.clone(),
            level: d.level.number(),
            tunnel_key: super::key_bytes(d.tunnel_key),
            answers: d.answers,
            generic: super::spec::wire_generic(&d.generic),
        }
    }
}

impl From<w::NodeDescription> for m::NodeDescription {
    fn from(d: w::NodeDescription) -> Self {
        Self {
            hostname: d.hostname,
            platform: d.platform.unwrap_or_default().into(),
            cpus: NanoCpus(d.nano_cpus),
            memory: Bytes(d.memory_bytes),
            engine_version: d.engine_version,
            engine_labels: d.engine_labels,
            address: d.address,
            level: Level::new(d.level),
            tunnel_key: super::key_of(&d.tunnel_key),
            answers: d.answers,
            generic: super::spec::generic(d.generic),
        }
    }
}

impl From<&m::NodeStatus> for w::NodeStatus {
    fn from(s: &m::NodeStatus) -> Self {
        let state = match s.state {
            m::NodeState::Unknown => w::NodeState::Unknown,
            m::NodeState::Ready => w::NodeState::Ready,
            m::NodeState::Down => w::NodeState::Down,
        };
        Self {
            state: state.into(),
            message: s.message.clone(),
            silent_ns: nanos(s.silent),
            unreached: s.unreached.iter().map(ToString::to_string).collect(),
            used: (s.used != m::NodeUse::default()).then(|| s.used.into()),
        }
    }
}

impl From<m::NodeUse> for w::NodeUse {
    fn from(used: m::NodeUse) -> Self {
        Self {
            cpu: used.cpu.into(),
            memory: used.memory.into(),
        }
    }
}

impl From<w::NodeUse> for m::NodeUse {
    fn from(used: w::NodeUse) -> Self {
        let bounded = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Self {
            cpu: bounded(used.cpu),
            memory: bounded(used.memory),
        }
        .within_bounds()
    }
}

impl From<w::NodeStatus> for m::NodeStatus {
    fn from(s: w::NodeStatus) -> Self {
        let state = match s.state() {
            w::NodeState::Unknown => m::NodeState::Unknown,
            w::NodeState::Ready => m::NodeState::Ready,
            w::NodeState::Down => m::NodeState::Down,
        };
        Self {
            state,
            message: s.message,
            silent: Duration::from_nanos(s.silent_ns),
            // What is no id is nobody.
            unreached: s.unreached.iter().filter_map(|id| id.parse().ok()).collect(),
            used: s.used.map(Into::into).unwrap_or_default(),
        }
    }
}

pub(super) fn addresses(list: Vec<w::Address>) -> Result<Vec<(NetworkId, std::net::IpAddr)>, WireError> {
    list.into_iter()
        .map(|a| Ok((parse(&a.network, "address.network")?, parse(&a.ip, "address.ip")?)))
        .collect()
}

pub(super) fn wire_addresses(list: &[(NetworkId, std::net::IpAddr)]) -> Vec<w::Address> {
    list.iter()
        .map(|(network, ip)| w::Address {
            network: network.to_string(),
            ip: ip.to_string(),
        })
        .collect()
}

impl From<&m::Service> for w::Service {
    fn from(s: &m::Service) -> Self {
        Self {
            id: s.id.to_string(),
            meta: Some(s.meta.into()),
            spec: Some((&*s.spec).into()),
            spec_version: s.spec_version,
            previous_spec: s.previous_spec.as_deref().map(Into::into),
            update: s.update.as_ref().map(Into::into),
            ports: wire(&s.endpoint.ports),
            vips: wire_addresses(&s.endpoint.vips),
            status: None,
            previous_version: s.previous_version,
            made: s.made.as_ref().map(Into::into),
            history: s.history.iter().map(|r| (&**r).into()).collect(),
            scaled: s.scaled.as_ref().map(|s| w::Scaled {
                at_ms: s.at.0,
                from: s.from,
                to: s.to,
                why: s.why.clone(),
            }),
            job: s.job.as_ref().map(Into::into),
            tally: None,
        }
    }
}

impl From<&m::Made> for w::Made {
    fn from(made: &m::Made) -> Self {
        Self {
            at_ms: made.at.0,
            by: made.by.clone(),
            cause: made.cause.clone(),
        }
    }
}

impl From<w::Made> for m::Made {
    fn from(made: w::Made) -> Self {
        Self {
            at: Timestamp(made.at_ms),
            by: made.by,
            cause: made.cause,
        }
    }
}

impl From<&m::Revision> for w::Revision {
    fn from(r: &m::Revision) -> Self {
        Self {
            number: r.number,
            spec: Some((&*r.spec).into()),
            made: Some((&r.made).into()),
        }
    }
}

impl TryFrom<w::Revision> for m::Revision {
    type Error = WireError;
    fn try_from(r: w::Revision) -> Result<Self, WireError> {
        Ok(Self {
            number: r.number,
            spec: Arc::new(need(r.spec, "revision.spec")?.try_into()?),
            made: need(r.made, "revision.made")?.into(),
        })
    }
}

impl TryFrom<w::Service> for m::Service {
    type Error = WireError;
    fn try_from(s: w::Service) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&s.id, "id")?,
            meta: meta(s.meta),
            spec: Arc::new(need(s.spec, "spec")?.try_into()?),
            spec_version: s.spec_version,
            previous_spec: s.previous_spec.map(|p| p.try_into().map(Arc::new)).transpose()?,
            previous_version: s.previous_version,
            made: s.made.map(Into::into),
            history: (s.history.into_iter())
                .map(|r| r.try_into().map(Arc::new))
                .collect::<Result<_, _>>()?,
            update: s.update.map(TryInto::try_into).transpose()?,
            scaled: s.scaled.map(|s| m::Scaled {
                at: Timestamp(s.at_ms),
                from: s.from,
                to: s.to,
                why: s.why,
            }),
            endpoint: m::Endpoint {
                ports: all(s.ports)?,
                vips: addresses(s.vips)?,
            },
            job: s.job.map(Into::into),
        })
    }
}

impl From<&m::UpdateStatus> for w::UpdateStatus {
    fn from(u: &m::UpdateStatus) -> Self {
        let state = match u.state {
            m::UpdateState::Updating => w::UpdateState::Updating,
            m::UpdateState::Paused => w::UpdateState::UpdatePaused,
            m::UpdateState::Completed => w::UpdateState::UpdateCompleted,
            m::UpdateState::RollbackStarted => w::UpdateState::RollbackStarted,
            m::UpdateState::RollbackPaused => w::UpdateState::RollbackPaused,
            m::UpdateState::RollbackCompleted => w::UpdateState::RollbackCompleted,
            m::UpdateState::Canary => w::UpdateState::UpdateCanary,
        };
        Self {
            state: state.into(),
            started_at_ms: u.started_at.0,
            completed_at_ms: u.completed_at.map(|t| t.0),
            message: u.message.clone(),
            failed_slots: wire(u.failed_slots.iter().copied()),
            total_slots: u.total_slots,
            last_slot_at_ms: u.last_slot_at.map(|t| t.0),
            promoted: u.promoted,
            timed_out: u.timed_out,
        }
    }
}

impl TryFrom<w::UpdateStatus> for m::UpdateStatus {
    type Error = WireError;
    fn try_from(u: w::UpdateStatus) -> Result<Self, WireError> {
        let state = match u.state() {
            w::UpdateState::Updating => m::UpdateState::Updating,
            w::UpdateState::UpdatePaused => m::UpdateState::Paused,
            w::UpdateState::UpdateCompleted => m::UpdateState::Completed,
            w::UpdateState::RollbackStarted => m::UpdateState::RollbackStarted,
            w::UpdateState::RollbackPaused => m::UpdateState::RollbackPaused,
            w::UpdateState::RollbackCompleted => m::UpdateState::RollbackCompleted,
            w::UpdateState::UpdateCanary => m::UpdateState::Canary,
        };
        Ok(Self {
            state,
            started_at: Timestamp(u.started_at_ms),
            completed_at: u.completed_at_ms.map(Timestamp),
            message: u.message,
            failed_slots: all(u.failed_slots)?,
            total_slots: u.total_slots,
            last_slot_at: u.last_slot_at_ms.map(Timestamp),
            promoted: u.promoted,
            timed_out: u.timed_out,
        })
    }
}

impl From<m::SlotKey> for w::Slot {
    fn from(s: m::SlotKey) -> Self {
        let slot = match s {
            m::SlotKey::Replica(n) => w::slot::Slot::Replica(n),
            m::SlotKey::Node(id) => w::slot::Slot::Node(id.to_string()),
        };
        Self { slot: Some(slot) }
    }
}

impl TryFrom<w::Slot> for m::SlotKey {
    type Error = WireError;
    fn try_from(s: w::Slot) -> Result<Self, WireError> {
        Ok(match need(s.slot, "slot")? {
            w::slot::Slot::Replica(n) => Self::Replica(n),
            w::slot::Slot::Node(id) => Self::Node(parse(&id, "slot.node")?),
        })
    }
}

impl From<&m::Task> for w::Task {
    fn from(t: &m::Task) -> Self {
        let desired = match t.desired {
            DesiredState::Ready => w::DesiredState::DesiredReady,
            DesiredState::Running => w::DesiredState::DesiredRunning,
            DesiredState::Shutdown => w::DesiredState::DesiredShutdown,
            DesiredState::Remove => w::DesiredState::DesiredRemove,
        };
        Self {
            id: t.id.to_string(),
            meta: Some(t.meta.into()),
            service: t.service.to_string(),
            service_name: t.service_name.clone(),
            slot: Some(t.slot.into()),
            spec: Some((&*t.spec).into()),
            spec_version: t.spec_version,
            node: t.node.map(|n| n.to_string()),
            desired: desired.into(),
            run_at_ms: t.run_at.0,
            status: Some((&t.status).into()),
            addresses: wire_addresses(&t.addresses),
            host_ports: wire(&t.host_ports),
            running_at_ms: t.running_at.map(|at| at.0),
            unready_at_ms: t.unready_at.map(|at| at.0),
            ended_at_ms: t.ended_at.map(|at| at.0),
            fence: t.fence,
            iteration: t.iteration,
            granted: super::spec::wire_names(&t.granted),
            moving: t.moving,
        }
    }
}

impl TryFrom<w::Task> for m::Task {
    type Error = WireError;
    fn try_from(t: w::Task) -> Result<Self, WireError> {
        let desired = match t.desired() {
            w::DesiredState::DesiredReady => DesiredState::Ready,
            w::DesiredState::DesiredRunning => DesiredState::Running,
            w::DesiredState::DesiredShutdown => DesiredState::Shutdown,
            w::DesiredState::DesiredRemove => DesiredState::Remove,
        };
        Ok(Self {
            id: parse(&t.id, "id")?,
            meta: meta(t.meta),
            service: parse(&t.service, "service")?,
            service_name: t.service_name,
            slot: need(t.slot, "slot")?.try_into()?,
            spec: Arc::new(need(t.spec, "spec")?.try_into()?),
            spec_version: t.spec_version,
            node: t.node.map(|n| parse(&n, "node")).transpose()?,
            desired,
            run_at: Timestamp(t.run_at_ms),
            status: need(t.status, "status")?.try_into()?,
            addresses: addresses(t.addresses)?,
            host_ports: all(t.host_ports)?,
            running_at: t.running_at_ms.map(Timestamp),
            unready_at: t.unready_at_ms.map(Timestamp),
            ended_at: t.ended_at_ms.map(Timestamp),
            fence: t.fence,
            iteration: t.iteration,
            granted: super::spec::names(t.granted),
            moving: t.moving,
        })
    }
}

impl From<&m::TaskStatus> for w::TaskStatus {
    fn from(s: &m::TaskStatus) -> Self {
        Self {
            state: s.state.number(),
            at_ms: s.at.0,
            message: s.message.clone(),
            error: s.error.clone(),
            container: s.container.as_ref().map(|c| w::ContainerStatus {
                id: c.id.clone(),
                pid: c.pid,
                exit_code: c.exit_code,
                oom_killed: c.oom_killed,
            }),
            unready: s.unready,
        }
    }
}

impl TryFrom<w::TaskStatus> for m::TaskStatus {
    type Error = WireError;
    fn try_from(s: w::TaskStatus) -> Result<Self, WireError> {
        let state = TaskState::from_number(s.state).ok_or_else(|| WireError {
            field: "status.state",
            problem: format!("is no state: {}", s.state),
        })?;
        Ok(Self {
            state,
            at: Timestamp(s.at_ms),
            message: s.message,
            error: s.error,
            container: s.container.map(|c| m::ContainerStatus {
                id: c.id,
                pid: c.pid,
                exit_code: c.exit_code,
                oom_killed: c.oom_killed,
            }),
            unready: s.unready,
        })
    }
}

impl From<&m::Network> for w::Network {
    fn from(n: &m::Network) -> Self {
        Self {
            id: n.id.to_string(),
            meta: Some(n.meta.into()),
            spec: Some((&n.spec).into()),
            subnets: n.subnets.iter().map(ToString::to_string).collect(),
            vni: n.vni,
        }
    }
}

impl TryFrom<w::Network> for m::Network {
    type Error = WireError;
    fn try_from(n: w::Network) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&n.id, "id")?,
            meta: meta(n.meta),
            spec: need(n.spec, "spec")?.try_into()?,
            subnets: nets(&n.subnets, "subnets")?,
            vni: n.vni,
        })
    }
}

impl From<&m::Secret> for w::Secret {
    fn from(s: &m::Secret) -> Self {
        Self {
            id: s.id.to_string(),
            meta: Some(s.meta.into()),
            spec: Some((&*s.spec).into()),
        }
    }
}

impl TryFrom<w::Secret> for m::Secret {
    type Error = WireError;
    fn try_from(s: w::Secret) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&s.id, "id")?,
            meta: meta(s.meta),
            spec: Arc::new(need(s.spec, "spec")?.into()),
        })
    }
}

impl From<&m::Config> for w::Config {
    fn from(s: &m::Config) -> Self {
        Self {
            id: s.id.to_string(),
            meta: Some(s.meta.into()),
            spec: Some((&*s.spec).into()),
        }
    }
}

impl TryFrom<w::Config> for m::Config {
    type Error = WireError;
    fn try_from(s: w::Config) -> Result<Self, WireError> {
        Ok(Self {
            id: parse(&s.id, "id")?,
            meta: meta(s.meta),
            spec: Arc::new(need(s.spec, "spec")?.into()),
        })
    }
}

impl From<&m::Object> for w::Object {
    fn from(o: &m::Object) -> Self {
        use w::object::Object;
        Self {
            object: Some(match o {
                m::Object::Cluster(x) => Object::Cluster((&**x).into()),
                m::Object::Node(x) => Object::Node((&**x).into()),
                m::Object::Service(x) => Object::Service((&**x).into()),
                m::Object::Task(x) => Object::Task((&**x).into()),
                m::Object::Network(x) => Object::Network((&**x).into()),
                m::Object::Secret(x) => Object::Secret((&**x).into()),
                m::Object::Config(x) => Object::Config((&**x).into()),
            }),
        }
    }
}

impl TryFrom<w::Object> for m::Object {
    type Error = WireError;
    fn try_from(o: w::Object) -> Result<Self, WireError> {
        use w::object::Object;
        Ok(match need(o.object, "object")? {
            Object::Cluster(x) => Self::Cluster(Arc::new(x.try_into()?)),
            Object::Node(x) => Self::Node(Arc::new(x.try_into()?)),
            Object::Service(x) => Self::Service(Arc::new(x.try_into()?)),
            Object::Task(x) => Self::Task(Arc::new(x.try_into()?)),
            Object::Network(x) => Self::Network(Arc::new(x.try_into()?)),
            Object::Secret(x) => Self::Secret(Arc::new(x.try_into()?)),
            Object::Config(x) => Self::Config(Arc::new(x.try_into()?)),
        })
    }
}

impl From<m::Key> for w::Key {
    fn from(k: m::Key) -> Self {
        let (kind, id) = match k {
            m::Key::Cluster => (w::Kind::Cluster, String::new()),
            m::Key::Node(id) => (w::Kind::Node, id.to_string()),
            m::Key::Service(id) => (w::Kind::Service, id.to_string()),
            m::Key::Task(id) => (w::Kind::Task, id.to_string()),
            m::Key::Network(id) => (w::Kind::Network, id.to_string()),
            m::Key::Secret(id) => (w::Kind::Secret, id.to_string()),
            m::Key::Config(id) => (w::Kind::Config, id.to_string()),
        };
        Self {
            kind: kind.into(),
            id,
        }
    }
}

impl TryFrom<w::Key> for m::Key {
    type Error = WireError;
    fn try_from(k: w::Key) -> Result<Self, WireError> {
        Ok(match k.kind() {
            w::Kind::Cluster => Self::Cluster,
            w::Kind::Node => Self::Node(parse(&k.id, "key.id")?),
            w::Kind::Service => Self::Service(parse(&k.id, "key.id")?),
            w::Kind::Task => Self::Task(parse(&k.id, "key.id")?),
            w::Kind::Network => Self::Network(parse(&k.id, "key.id")?),
            w::Kind::Secret => Self::Secret(parse(&k.id, "key.id")?),
            w::Kind::Config => Self::Config(parse(&k.id, "key.id")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use model::spec::UpdateOrder;

    use super::*;

    #[test]
    fn how_a_node_is_drained_survives_the_wire() {
        let of = |order, deadline, at| m::Drain {
            order,
            deadline,
            deadline_at: at,
        };
        let minute = Some(Duration::from_secs(60));
        for drain in [
            None,
            Some(m::Drain::default()),
            Some(of(UpdateOrder::StartFirst, None, None)),
            Some(of(UpdateOrder::StartFirst, minute, None)),
            Some(of(
                UpdateOrder::StartFirst,
                minute,
                Some(Timestamp(1_700_000_000_000)),
            )),
        ] {
            let spec = m::NodeSpec {
                availability: m::Availability::Drain,
                drain,
                ..m::NodeSpec::default()
            };
            assert_eq!(m::NodeSpec::from(w::NodeSpec::from(&spec)), spec);
        }
    }
}
