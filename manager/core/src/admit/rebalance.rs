//! Tasks of a service are spread anew over the nodes there are.

use model::Level;
use model::object::Key;
use model::spec::{PlacementStrategy, ServiceMode};

use super::{Admitted, Refusal, level};
use crate::schedule::rebalance;
use crate::state::{Kind, Scratch, State};

/// Marks the tasks that would find nodes with fewer tasks of their service; they move one by one, or `parallelism` at once. With
/// `dry_run` they are only named.
///
/// # Errors
/// [`Refusal`] when it is missing, its tasks cannot move, or its rollout is under way.
pub fn rebalance_service(
    state: &State,
    reference: &str,
    parallelism: u32,
    dry_run: bool,
) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Service, reference)?;
    let Key::Service(id) = key else {
        return Err(Refusal::invalid(format!("{reference} is no service")));
    };
    let Some(service) = state.service(id) else {
        return Err(Refusal::invalid(format!("service {reference} is gone")));
    };
    let name = &service.spec.name;
    level::needs(
        state,
        Level::PLACEMENT,
        &format!("service {name}: rebalance"),
        "leave tasks where they are",
    )?;
    if !matches!(service.spec.mode, ServiceMode::Replicated { .. }) {
        return Err(Refusal::invalid(format!(
            "service {name} is not replicated: its tasks stay where they are"
        )));
    }
    if service.spec.task.placement.strategy == PlacementStrategy::Binpack {
        return Err(Refusal::invalid(format!(
            "service {name} has the strategy binpack, which wants its tasks on few nodes: update it with --strategy spread first"
        )));
    }
    if service.spec.is_exclusive(&service.spec.task) {
        return Err(Refusal::invalid(format!(
            "service {name} has on disconnect: stop-after, so no slot of it may have two live tasks, and a task moves by starting elsewhere first: use rswarm service update --force {name}, which stops each before it starts the next"
        )));
    }
    if service.update.as_ref().is_some_and(|u| u.state.is_active()) {
        return Err(Refusal::invalid(format!(
            "service {name} is being updated: ask again once that has ended (rswarm service ps {name})"
        )));
    }
    let moves = rebalance::moves(state, id);
    let mut scratch = Scratch::new(state);
    for task in moves.iter().filter(|_| !dry_run) {
        scratch.edit_task(task.id, |t| t.moving = parallelism.max(1));
    }
    Ok(Admitted::new(
        scratch,
        moves.iter().map(|t| Key::Task(t.id)).collect(),
    ))
}
