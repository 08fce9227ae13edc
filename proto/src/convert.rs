//! Wire <-> model: total one way, `Result` the other.

use std::str::FromStr;
use std::time::Duration;

mod assignment;
mod health;
mod job;
mod object;
mod order;
mod spec;

/// A message that is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field \"{field}\" of the message {problem}")]
pub struct WireError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl WireError {
    fn missing(field: &'static str) -> Self {
        Self {
            field,
            problem: "is missing".into(),
        }
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::missing(field))
}

fn parse<T: FromStr>(text: &str, field: &'static str) -> Result<T, WireError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| WireError {
        field,
        problem: format!("cannot be read: {e}"),
    })
}

/// An id, or the zero id where the text is empty.
fn parse_or_nil<T: FromStr>(text: &str, nil: T, field: &'static str) -> Result<T, WireError>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        Ok(nil)
    } else {
        parse(text, field)
    }
}

fn small<T: TryFrom<u32>>(value: u32, field: &'static str) -> Result<T, WireError> {
    T::try_from(value).map_err(|_| WireError {
        field,
        problem: format!("is out of range: {value}"),
    })
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn all<W, M: TryFrom<W, Error = WireError>>(items: Vec<W>) -> Result<Vec<M>, WireError> {
    items.into_iter().map(M::try_from).collect()
}

fn wire<M, W: From<M>>(items: impl IntoIterator<Item = M>) -> Vec<W> {
    items.into_iter().map(W::from).collect()
}

/// A key as the wire has it: nothing where there is none, or where it is none.
fn key_bytes(key: Option<model::object::TunnelKey>) -> Vec<u8> {
    key.map(|key| key.0.to_vec()).unwrap_or_default()
}

fn key_of(bytes: &[u8]) -> Option<model::object::TunnelKey> {
    bytes.try_into().ok().map(model::object::TunnelKey)
}

/// The id of an object as the wire has it, or empty for the zero id.
fn id_or_empty<T: PartialEq + ToString>(id: T, nil: T) -> String {
    if id == nil { String::new() } else { id.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::assignment::{ServiceEndpoints, ServiceNetwork};
    use model::object::{NodeDescription, NodeState, NodeStatus};
    use model::spec::{
        Dependency, DependencyCondition, EndpointMode, GenericResources, NetworkAttachment, OnDisconnect,
        PlacementStrategy, TaskSpec,
    };
    use model::{NetworkId, ServiceId};

    #[test]
    fn what_is_asked_of_nodes_survives_the_wire() {
        for rule in [
            OnDisconnect::Keep,
            OnDisconnect::StopAfter(Duration::from_millis(12_345)),
        ] {
            let spec = TaskSpec {
                on_disconnect: rule,
                ..TaskSpec::default()
            };
            let wire = crate::types::TaskSpec::from(&spec);
            assert_eq!(TaskSpec::try_from(wire), Ok(spec));
        }
        let mut spec = TaskSpec {
            priority: 90,
            ..TaskSpec::default()
        };
        let conditions = ["started", "healthy", "completed"].map(DependencyCondition::parse);
        for (n, condition) in conditions.into_iter().flatten().enumerate() {
            spec.depends_on.push(Dependency {
                service: format!("s{n}"),
                condition,
                optional: n == 1,
            });
        }
        spec.placement.strategy = PlacementStrategy::Binpack;
        spec.placement.affinity = vec!["service==db".into()];
        spec.resources.reservations.generic = [("gpu".to_owned(), 2)].into();
        assert_eq!(TaskSpec::try_from(crate::types::TaskSpec::from(&spec)), Ok(spec));
        let has = NodeDescription {
            generic: GenericResources::parse(["gpu=A", "gpu=B", "fpga=2"]).unwrap(),
            ..NodeDescription::default()
        };
        assert_eq!(
            NodeDescription::from(crate::types::NodeDescription::from(&has)),
            has
        );
        let status = NodeStatus {
            state: NodeState::Down,
            message: "silent".into(),
            silent: Duration::from_millis(16_500),
            unreached: vec![model::NodeId(3)],
            used: model::object::NodeUse {
                cpu: 7,
                memory: 1_000,
            },
        };
        assert_eq!(NodeStatus::from(crate::types::NodeStatus::from(&status)), status);
    }

    #[test]
    fn jobs_survive_the_wire_and_a_policy_of_old_reads_as_before() {
        use model::job::{JobRun, JobStatus, RunState};
        use model::spec::{Concurrency, RestartPolicy, Schedule, ServiceMode, ServiceSpec};
        let modes = [
            ServiceMode::GlobalJob,
            ServiceMode::ReplicatedJob {
                completions: 20,
                max_concurrent: 3,
            },
        ];
        for (mode, concurrency) in modes.into_iter().zip([Concurrency::Allow, Concurrency::Replace]) {
            let mut spec = ServiceSpec {
                mode,
                schedule: Some(Schedule {
                    cron: "@daily".into(),
                    timezone: "Europe/Berlin".into(),
                    concurrency,
                    history: 3,
                    starting_deadline: Duration::from_secs(5),
                }),
                ..ServiceSpec::default()
            };
            spec.task.restart.max_delay = Duration::from_secs(300);
            spec.task.restart.reset_after = Duration::from_secs(7);
            let wire = crate::types::ServiceSpec::from(&spec);
            assert_eq!(ServiceSpec::try_from(wire), Ok(spec));
        }
        let states = [
            RunState::Active,
            RunState::Completed,
            RunState::Failed,
            RunState::Replaced,
        ];
        let run = |(n, state)| JobRun {
            iteration: n,
            due_at: (n > 1).then_some(model::Timestamp(n)),
            started_at: model::Timestamp(n + 1),
            ended_at: (n > 1).then_some(model::Timestamp(n + 2)),
            state,
            completed: 4,
            failed: 5,
        };
        let status = JobStatus {
            iteration: 4,
            runs: (1..).zip(states).map(run).collect(),
            next_at: Some(model::Timestamp(9)),
            missed: 2,
        };
        assert_eq!(JobStatus::from(crate::types::JobStatus::from(&status)), status);
        let old = crate::types::RestartPolicy {
            delay_ns: 5_000_000_000,
            ..crate::types::RestartPolicy::default()
        };
        assert_eq!(RestartPolicy::try_from(old), Ok(RestartPolicy::default()));
    }

    #[test]
    fn addresses_of_both_families_survive_the_wire_and_older_builds_read_the_first() {
        for (name, vips, first, more) in [
            ("dnsrr", &[][..], "", &[][..]),
            ("IPv4", &["10.0.0.9"], "10.0.0.9", &[]),
            ("both", &["10.0.0.9", "fd00::9"], "10.0.0.9", &["fd00::9"]),
        ] {
            let service = ServiceEndpoints {
                id: ServiceId(1),
                name: "web".into(),
                mode: EndpointMode::Vip,
                networks: vec![ServiceNetwork {
                    network: NetworkId(2),
                    aliases: Vec::new(),
                    vips: vips.iter().map(|a| a.parse().unwrap()).collect(),
                }],
                ports: Vec::new(),
                backends: Vec::new(),
                others: Vec::new(),
                encrypted: Vec::new(),
            };
            let wire = crate::dispatch::ServiceEndpoints::from(&service);
            assert_eq!(wire.networks[0].vip, first, "{name}");
            assert_eq!(wire.networks[0].more_vips, more, "{name}");
            assert_eq!(ServiceEndpoints::try_from(wire), Ok(service), "{name}");
        }
        let asked = NetworkAttachment {
            encrypted: false,
            network: NetworkId(2),
            name: "n".into(),
            aliases: Vec::new(),
            address: Some("10.0.0.9".parse().unwrap()),
            address6: Some("fd00::9".parse().unwrap()),
        };
        let mut wire = crate::types::NetworkAttachment::from(&asked);
        assert_eq!(NetworkAttachment::try_from(wire.clone()), Ok(asked));
        wire.address = "fd00::9".into();
        assert!(NetworkAttachment::try_from(wire).is_err(), "of the other family");
    }
}
