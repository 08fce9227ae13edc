//! Once the leader has nothing to do, no slot keeps more ended tasks than the limit (I24).

use std::collections::BTreeMap;

use manager_core::State;

pub(super) fn check(state: &State) -> Result<(), String> {
    let limit = state.cluster().map_or(0, |c| c.task_history_limit);
    let limit = u64::try_from(limit).unwrap_or_default();
    let open: BTreeMap<_, _> = (state.services())
        .filter_map(|s| Some((s.id, s.job.as_ref()?.open(&s.spec))))
        .collect();
    let mut slots: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for task in state.tasks().filter(|t| t.status.state.is_terminal()) {
        // A run under way keeps what it has to count, beside the history.
        let run = open
            .get(&task.service)
            .is_some_and(|o| o.contains(&task.iteration));
        let slot = (slots.entry((task.service, task.slot, run.then_some(task.iteration)))).or_default();
        slot.0 += 1;
        // As many are kept as the restart policy has to count.
        let policy = &task.spec.restart;
        let (attempts, steps) = (policy.max_attempts, u64::from(policy.steps()));
        let between = u64::from(attempts > 0 && steps > 0);
        slot.1 = slot.1.max(attempts.max(steps) + between + 1);
    }
    for ((_, slot, _), (count, counted)) in slots {
        if count > limit.max(counted) {
            return Err(format!("slot {slot:?} keeps {count} ended tasks"));
        }
    }
    Ok(())
}
