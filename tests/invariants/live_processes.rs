//! The disconnect rule, counted in processes: what a slot has beside its one task runs on a node that was given up, one
//! a node, and is stopped when that is back (I21); with `stop_after` there is never a second one (I21b).

use std::collections::BTreeMap;
use std::time::Duration;

use model::NodeId;
use model::object::{SlotKey, Task};
use model::spec::OnDisconnect;
use model::task_state::TaskState;
use model::{ServiceId, TaskId};

use crate::sim::cluster::Cluster;
use crate::sim::host::{Host, Local};

/// Time in which a host that is told everything has stopped what it should.
const TOLD: Duration = Duration::from_secs(15);
/// Time in which a host that stood still may still have what was replaced meanwhile.
const RESUMED: Duration = Duration::from_millis(1_500);

#[derive(Default)]
struct Slot {
    /// Processes of tasks that have not ended for the managers.
    known: u32,
    /// Others, by node.
    extra: BTreeMap<NodeId, u32>,
    /// All on hosts that do not stand still.
    moving: u32,
    /// Whether any of them is kept when its node is cut off.
    kept: bool,
}

pub(super) fn check(cluster: &Cluster) -> Result<(), String> {
    let mut slots: BTreeMap<(ServiceId, SlotKey), Slot> = BTreeMap::new();
    for (node, host) in &cluster.hosts {
        for (id, local) in host.tasks.iter().filter(|(_, l)| l.runs()) {
            let slot = slots.entry(local.slot).or_default();
            count(cluster, (*node, host), (*id, local), slot)?;
        }
    }
    for ((service, key), slot) in slots {
        // A rollout that starts first has pairs, and so have moves of what may run twice.
        let pairs =
            cluster.start_first.contains(&service) || (slot.kept && cluster.moved.contains(&(service, key)));
        let most = if pairs { 2 } else { 1 };
        if slot.known > most {
            return Err(format!(
                "slot {key:?} of {service} has {} processes at once",
                slot.known
            ));
        }
        if let Some((node, count)) = slot.extra.iter().find(|(_, count)| **count > most) {
            return Err(format!(
                "node {} has {count} processes that slot {key:?} lost",
                node.0
            ));
        }
        if !slot.kept && most == 1 && slot.moving > 1 {
            return Err(format!(
                "(I21b) slot {key:?} of {service} has {} processes",
                slot.moving
            ));
        }
    }
    Ok(())
}

fn has_pairs(cluster: &Cluster, slot: (ServiceId, SlotKey)) -> bool {
    cluster.start_first.contains(&slot.0) || cluster.moved.contains(&slot)
}

fn count(
    cluster: &Cluster,
    (node, host): (NodeId, &Host),
    (id, local): (TaskId, &Local),
    slot: &mut Slot,
) -> Result<(), String> {
    slot.kept |= local.on_disconnect() == OnDisconnect::Keep;
    let still = host.paused_until.is_some() || cluster.now.since(host.resumed_at) < RESUMED;
    slot.moving += u32::from(!still);
    let task: Option<&Task> = cluster.state.task(id).map(|t| &**t);
    let over = |t: &Task| t.status.state.is_terminal();
    if let Some(task) = task.filter(|t| !over(t)) {
        // Of rollouts that follow one another and start first, more than one may still be stopping.
        let counts = task.desired.is_live() || !has_pairs(cluster, (task.service, task.slot));
        slot.known += u32::from(counts);
        return Ok(());
    }
    // One that is being stopped may be beside another that was begun there since, when both are lost.
    *slot.extra.entry(node).or_default() += u32::from(!local.is_ending());
    if let Some(task) = task.filter(|t| t.status.state != TaskState::Orphaned) {
        return Err(format!(
            "{} is {:?} and has a process",
            task.name(),
            task.status.state
        ));
    }
    let since = host.session.as_ref().map(|s| s.since.max(host.resumed_at));
    let told = since.is_some_and(|s| cluster.now.since(s) >= TOLD);
    if told && cluster.is_connected(node) && host.hears && !still {
        return Err(format!(
            "node {} is back and still runs task {id}, which it lost",
            node.0
        ));
    }
    Ok(())
}
