//! Properties that must hold after every event, one a file.

mod addresses_are_unique;
mod capacity_is_kept;
mod desired_grows;
mod history_is_bounded;
mod networks_are_apart;
mod one_task_a_slot;
mod placement_is_allowed;
mod ports_are_unique;
mod rollback_is_final;
mod rollout_keeps_serving;
mod secrets_stay_near;
mod state_grows;
mod state_is_sound;
mod task_is_fixed;
mod tasks_have_a_service;
mod transition_by_owner;
mod versions_grow;
mod views_are_whole;

use manager_core::{Changes, Entry, State};
use model::object::{Object, Task};

use crate::sim::cluster::Cluster;
use crate::sim::log::Source;

/// One applied entry and all around it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The state before.
    pub before: &'a State,
    /// The state after.
    pub after: &'a State,
    /// What changed.
    pub changes: &'a Changes,
    /// Who proposed it.
    pub source: Source,
    /// The entry.
    pub entry: &'a Entry,
    /// Everything else.
    pub cluster: &'a Cluster,
}

impl Seen<'_> {
    /// Tasks that changed, as they were and are.
    fn tasks(&self) -> impl Iterator<Item = (&Task, &Task)> {
        self.changes
            .items
            .iter()
            .filter_map(|c| match (&c.before, &c.after) {
                (Some(Object::Task(before)), Some(Object::Task(after))) => Some((&**before, &**after)),
                _ => None,
            })
    }
}

/// A property of an entry and its name.
type Always = (&'static str, fn(&Seen<'_>) -> Result<(), String>);
/// A property of a planned state and its name.
type Settled = (&'static str, fn(&State) -> Result<(), String>);

/// After every entry.
const ALWAYS: &[Always] = &[
    ("addresses_are_unique", addresses_are_unique::check),
    ("capacity_is_kept", capacity_is_kept::check),
    ("desired_grows", desired_grows::check),
    ("networks_are_apart", networks_are_apart::check),
    ("one_task_a_slot", one_task_a_slot::check),
    ("placement_is_allowed", placement_is_allowed::check),
    ("ports_are_unique", ports_are_unique::check),
    ("rollback_is_final", rollback_is_final::check),
    ("rollout_keeps_serving", rollout_keeps_serving::check),
    ("secrets_stay_near", secrets_stay_near::check),
    ("state_grows", state_grows::check),
    ("state_is_sound", state_is_sound::check),
    ("task_is_fixed", task_is_fixed::check),
    ("transition_by_owner", transition_by_owner::check),
    ("versions_grow", versions_grow::check),
    ("views_are_whole", views_are_whole::check),
];

/// When the leader has nothing left to do.
const SETTLED: &[Settled] = &[
    ("history_is_bounded", history_is_bounded::check),
    ("tasks_have_a_service", tasks_have_a_service::check),
];

/// The first property that an entry broke.
pub fn check(seen: &Seen<'_>) -> Option<String> {
    ALWAYS
        .iter()
        .find_map(|(name, holds)| holds(seen).err().map(|why| format!("{name}: {why}")))
}

/// The first property that a planned state breaks.
pub fn check_settled(state: &State) -> Option<String> {
    SETTLED
        .iter()
        .find_map(|(name, holds)| holds(state).err().map(|why| format!("{name}: {why}")))
}
