//! How many replicas services need that are scaled by what their tasks use; pure.
//!
//! As in Kubernetes: replicas × use ÷ target, rounded up, unless within a tenth of the target; more at once, fewer once that was
//! enough for some time. What tasks use is in the leader's memory alone: one that follows sees anew, and takes nothing away before
//! it has watched for as long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use model::object::{Key, Object, Scaled, Service, Task};
use model::spec::{Autoscale, ServiceMode, ServiceSpec};
use model::task_state::{DesiredState, TaskState};
use model::{Bytes, NanoCpus, NodeId, ServiceId, TaskId, Timestamp};

use crate::state::State;
use crate::txn::{Action, Txn};

/// Time between two reports of a node, and between two looks at what they say.
pub const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A task counts as measured for so long after a report.
const FRESH: Duration = Duration::from_secs(16);
/// Most tasks in one report.
pub const REPORT_MAX: usize = 10_000;
/// Within so many per cent of the target nothing changes.
const TOLERANCE: u128 = 10;

/// What a task used over the last [`REPORT_EVERY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time per time.
    pub cpu: NanoCpus,
    /// Memory, without what the kernel can take back.
    pub memory: Bytes,
}

/// What one leader was told and saw. Times are of a clock that nobody sets.
#[derive(Debug, Default)]
pub struct Scaler {
    used: BTreeMap<TaskId, (Timestamp, Usage)>,
    seen: BTreeMap<ServiceId, Seen>,
}

/// How many replicas a service needed, look by look, as far back as counts.
#[derive(Debug)]
struct Seen {
    since: Timestamp,
    needed: VecDeque<(Timestamp, u32)>,
}

/// Whether tasks have to be measured at all.
pub fn measures(state: &State) -> bool {
    state.services().any(|s| s.spec.autoscale.is_some())
}

impl Scaler {
    /// Takes what tasks of a node use; what is not that node's is left out.
    pub fn say(
        &mut self,
        state: &State,
        node: NodeId,
        usage: impl IntoIterator<Item = (TaskId, Usage)>,
        now: Timestamp,
    ) {
        for (id, usage) in usage.into_iter().take(REPORT_MAX) {
            if state.task(id).is_some_and(|t| t.node == Some(node)) {
                self.used.insert(id, (now, usage));
            }
        }
    }

    /// Services that need another number of replicas, as one transaction: `now` of the clock that nobody sets, `at` of the log.
    pub fn review(&mut self, state: &State, now: Timestamp, at: Timestamp) -> Txn {
        self.used
            .retain(|id, (heard, _)| now.since(*heard) <= FRESH && state.task(*id).is_some());
        let scales = |s: &ServiceId| state.service(*s).is_some_and(|s| s.spec.autoscale.is_some());
        self.seen.retain(|id, _| scales(id));
        let mut txn = Txn::default();
        for service in state.services() {
            let (Some(rule), ServiceMode::Replicated { replicas }) =
                (&service.spec.autoscale, &service.spec.mode)
            else {
                continue;
            };
            // Somebody stopped it: that is no matter of load.
            if *replicas == 0 {
                continue;
            }
            let Some((to, why)) = self.decide(state, service, rule, *replicas, now) else {
                continue;
            };
            txn.expect.push((Key::Service(service.id), service.meta.version));
            let mut next = (**service).clone();
            next.spec = Arc::new(ServiceSpec {
                mode: ServiceMode::Replicated { replicas: to },
                ..(*service.spec).clone()
            });
            next.history.clear();
            next.scaled = Some(Scaled {
                at,
                from: *replicas,
                to,
                why,
            });
            txn.actions.push(Action::Put(Object::Service(Arc::new(next))));
        }
        txn
    }

    fn decide(
        &mut self,
        state: &State,
        service: &Service,
        rule: &Autoscale,
        replicas: u32,
        now: Timestamp,
    ) -> Option<(u32, String)> {
        if !(rule.min..=rule.max).contains(&replicas) {
            let to = replicas.clamp(rule.min, rule.max);
            return Some((to, format!("between {} and {} are allowed", rule.min, rule.max)));
        }
        let (needed, why) = self.needed(state, service, rule, replicas, now)?;
        let seen = self.seen.entry(service.id).or_insert_with(|| Seen {
            since: now,
            needed: VecDeque::new(),
        });
        seen.needed.push_back((now, needed));
        while seen
            .needed
            .front()
            .is_some_and(|(at, _)| now.since(*at) > rule.scale_down_after)
        {
            seen.needed.pop_front();
        }
        if needed > replicas {
            return Some((needed, why));
        }
        let most = seen.needed.iter().map(|(_, n)| *n).max().unwrap_or(needed);
        let watched = now.since(seen.since) >= rule.scale_down_after;
        (watched && most < replicas).then_some((most, why))
    }

    /// How many replicas are needed now, and what says so; nothing where nobody was measured.
    fn needed(
        &self,
        state: &State,
        service: &Service,
        rule: &Autoscale,
        replicas: u32,
        now: Timestamp,
    ) -> Option<(u32, String)> {
        let used: Vec<Usage> = (state.tasks_of_service(service.id))
            .filter(|t| t.status.state == TaskState::Running && t.desired == DesiredState::Running)
            .filter_map(|t| self.measured(t, now))
            .take(replicas as usize)
            .collect();
        if used.is_empty() {
            return None;
        }
        let resources = &service.spec.task.resources;
        let cpu = cpus_of(&service.spec).0;
        let memory = match resources.reservations.memory.0 {
            0 => resources.limits.memory.0,
            reserved => reserved,
        };
        let metrics = [
            (
                "cpu",
                rule.cpu,
                cpu,
                used.iter().map(|u| u128::from(u.cpu.0)).sum(),
            ),
            (
                "memory",
                rule.memory,
                memory,
                used.iter().map(|u| u128::from(u.memory.0)).sum(),
            ),
        ];
        let missing = u128::from(replicas) - used.len() as u128;
        let of = |(name, target, whole, sum): (&str, Option<u32>, u64, u128)| {
            let target = u128::from(target?) * u128::from(whole);
            if target == 0 {
                return None;
            }
            let needed = needed(sum * 100, target, missing, replicas);
            let average = sum * 100 / used.len() as u128 / u128::from(whole);
            Some((
                needed,
                format!("{name} {average} % of {} % wanted", target / u128::from(whole)),
            ))
        };
        let (needed, why) = metrics
            .into_iter()
            .filter_map(of)
            .max_by_key(|(needed, _)| *needed)?;
        // Not all at once: what more there is shows first whether it helps.
        let most = replicas.saturating_mul(2).max(replicas.saturating_add(4));
        Some((needed.min(most).clamp(rule.min, rule.max), why))
    }

    fn measured(&self, task: &Task, now: Timestamp) -> Option<Usage> {
        let (heard, usage) = self.used.get(&task.id)?;
        (now.since(*heard) <= FRESH).then_some(*usage)
    }
}

/// The CPUs of a task: what it reserves, else its limit, else one.
pub fn cpus_of(spec: &ServiceSpec) -> NanoCpus {
    let resources = &spec.task.resources;
    let given = [resources.reservations.cpu, resources.limits.cpu];
    (given.into_iter().find(|cpu| cpu.0 > 0)).unwrap_or(NanoCpus(1_000_000_000))
}

/// Replicas that bring `sum` to `target` each, where `missing` of `replicas` were not measured: those count as idle when more are
/// asked for, and as on target when fewer are.
fn needed(sum: u128, target: u128, missing: u128, replicas: u32) -> u32 {
    let whole = target * u128::from(replicas);
    let up = sum;
    let down = sum + missing * target;
    let ceil = |sum: u128| u32::try_from(sum.div_ceil(target)).unwrap_or(u32::MAX);
    if up * 100 > whole * (100 + TOLERANCE) {
        ceil(up)
    } else if down * 100 < whole * (100 - TOLERANCE) {
        ceil(down)
    } else {
        replicas
    }
}

#[cfg(test)]
#[path = "autoscale_tests.rs"]
mod tests;
