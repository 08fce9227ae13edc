//! Services that ask for it use nodes that joined or came back: a task at a time, each once its successor runs.

use std::collections::{BTreeMap, BTreeSet};

use model::object::Service;
use model::spec::{PlacementStrategy, Rebalance, ServiceMode};
use model::{NodeId, ServiceId};

use super::is_live;
use crate::schedule::{self, filter};
use crate::state::{Scratch, State};

/// Most services that give tasks to new nodes at a time: each has one task more than was asked for meanwhile.
pub(crate) const AT_ONCE: usize = 4;

/// Marks the tasks of services that are to move, of the first that have some; answers which these are. Whose turn it is not is
/// looked at again when a task has moved.
pub(crate) fn spread(scratch: &mut Scratch) -> BTreeSet<ServiceId> {
    let asking: Vec<ServiceId> = scratch.services().filter(|s| asks(s)).map(|s| s.id).collect();
    let (busy, free): (Vec<ServiceId>, Vec<ServiceId>) =
        asking.into_iter().partition(|id| moves(scratch, *id));
    let mut begun = BTreeSet::new();
    for id in free {
        if busy.len() + begun.len() >= AT_ONCE {
            break;
        }
        if !is_uneven(scratch, id) {
            continue;
        }
        for task in schedule::rebalance::moves(scratch, id) {
            scratch.edit_task(task.id, |t| t.moving = 1);
            begun.insert(id);
        }
    }
    begun
}

fn asks(service: &Service) -> bool {
    let spec = &service.spec;
    spec.rebalance == Rebalance::OnJoin
        && matches!(spec.mode, ServiceMode::Replicated { .. })
        && spec.task.placement.strategy == PlacementStrategy::Spread
        && !spec.is_exclusive(&spec.task)
        && !service.update.as_ref().is_some_and(|u| u.state.is_active())
}

fn moves(state: &State, id: ServiceId) -> bool {
    state.tasks_of_service(id).any(|t| t.moving > 0 && is_live(t))
}

/// Whether a look at every node may pay: some node that takes tasks has two fewer than another.
fn is_uneven(state: &State, id: ServiceId) -> bool {
    let Some(service) = state.service(id) else {
        return false;
    };
    let mut there: BTreeMap<NodeId, usize> = BTreeMap::new();
    for task in state.tasks_of_service(id).filter(|t| is_live(t)) {
        task.node
            .iter()
            .for_each(|node| *there.entry(*node).or_default() += 1);
    }
    // Labels by which tasks are spread may be uneven where nodes are not.
    let spreads = !service.spec.task.placement.spread.is_empty();
    let mut counts = (state.nodes())
        .filter(|n| filter::takes(n) && filter::suits(n, &service.spec.task))
        .map(|n| there.get(&n.id).copied().unwrap_or(0));
    let Some(first) = counts.next() else { return false };
    let (least, most) = counts.fold((first, first), |(least, most), n| (least.min(n), most.max(n)));
    spreads || most >= least + 2
}
