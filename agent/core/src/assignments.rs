//! The assignment set of this node, brought forward frame by frame.

use model::assignment::{AssignmentDiff, AssignmentSet};

/// Applies a difference.
pub fn apply(set: &mut AssignmentSet, diff: AssignmentDiff) {
    set.tasks.extend(diff.update.tasks);
    set.networks.extend(diff.update.networks);
    set.secrets.extend(diff.update.secrets);
    set.configs.extend(diff.update.configs);
    set.services.extend(diff.update.services);
    diff.remove_tasks.iter().for_each(|id| drop(set.tasks.remove(id)));
    diff.remove_networks
        .iter()
        .for_each(|id| drop(set.networks.remove(id)));
    diff.remove_secrets
        .iter()
        .for_each(|id| drop(set.secrets.remove(id)));
    diff.remove_configs
        .iter()
        .for_each(|id| drop(set.configs.remove(id)));
    diff.remove_services
        .iter()
        .for_each(|id| drop(set.services.remove(id)));
}

/// Frames of a full set, collected until it is whole.
#[derive(Debug, Default)]
pub struct Frames {
    collected: Option<AssignmentDiff>,
    full: bool,
}

impl Frames {
    /// Takes one frame; answers the new set once the last frame of a change is in.
    pub fn take(
        &mut self,
        set: &AssignmentSet,
        frame: AssignmentDiff,
        full: bool,
        more: bool,
    ) -> Option<AssignmentSet> {
        let collected = self.collected.get_or_insert_default();
        self.full |= full;
        collected.update.tasks.extend(frame.update.tasks);
        collected.update.networks.extend(frame.update.networks);
        collected.update.secrets.extend(frame.update.secrets);
        collected.update.configs.extend(frame.update.configs);
        collected.update.services.extend(frame.update.services);
        collected.remove_tasks.extend(frame.remove_tasks);
        collected.remove_networks.extend(frame.remove_networks);
        collected.remove_secrets.extend(frame.remove_secrets);
        collected.remove_configs.extend(frame.remove_configs);
        collected.remove_services.extend(frame.remove_services);
        if more {
            return None;
        }
        let full = std::mem::take(&mut self.full);
        let change = self.collected.take().unwrap_or_default();
        let mut next = if full {
            AssignmentSet::default()
        } else {
            set.clone()
        };
        apply(&mut next, change);
        Some(next)
    }
}
