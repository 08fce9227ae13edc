//! Properties that must hold after every event, one a file.

mod addresses_are_complete;
mod addresses_are_unique;
mod canaries_are_few;
mod capacity_is_kept;
mod clients_leave_first;
mod containers_are_assigned;
mod counters_survive;
mod desired_grows;
mod down_needs_misses;
mod drained_nodes_are_empty;
mod ends_have_a_cause;
mod first_tasks_wait;
mod history_is_bounded;
mod ids_and_fences_are_new;
mod jobs_keep_their_word;
mod live_processes;
mod log_time_is_steady;
mod moves_keep_serving;
mod networks_are_apart;
mod one_task_a_slot;
mod placement_is_allowed;
mod ports_are_unique;
mod readiness_is_told;
mod rollback_is_final;
mod rollout_keeps_serving;
mod room_is_made_by_lower_ones;
mod same_state;
mod scaling_is_no_rollout;
mod secrets_stay_near;
mod session_is_current;
mod slots_match_replicas;
mod state_grows;
mod state_is_sound;
mod stops_have_a_reason;
mod task_is_fixed;
mod tasks_have_a_service;
mod transition_by_owner;
mod versions_grow;
mod views_are_whole;

use std::collections::BTreeMap;

use manager_core::schedule::filter;
use manager_core::{Changes, Entry, State};
use model::NodeId;
use model::object::{Availability, Key, Object, Task};

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

/// A property with its name and its number in the list of promises.
type Property<T> = (&'static str, &'static str, fn(&T) -> Result<(), String>);
/// A property of an entry.
type Always = (&'static str, &'static str, fn(&Seen<'_>) -> Result<(), String>);

/// After every entry.
const ALWAYS: &[Always] = &[
    ("addresses_are_complete", "I28", addresses_are_complete::check),
    ("addresses_are_unique", "I28", addresses_are_unique::check),
    ("canaries_are_few", "I34", canaries_are_few::check),
    ("capacity_is_kept", "I25", capacity_is_kept::check),
    ("counters_survive", "I35", counters_survive::check),
    ("desired_grows", "I13", desired_grows::check),
    ("down_needs_misses", "I42", down_needs_misses::check),
    ("ends_have_a_cause", "I41", ends_have_a_cause::check),
    ("first_tasks_wait", "D10", first_tasks_wait::check),
    ("ids_and_fences_are_new", "I17", ids_and_fences_are_new::check),
    ("jobs_keep_their_word", "D15", jobs_keep_their_word::check),
    ("log_time_is_steady", "M25", log_time_is_steady::check),
    ("moves_keep_serving", "D18", moves_keep_serving::check),
    ("networks_are_apart", "I31", networks_are_apart::check),
    ("one_task_a_slot", "I20", one_task_a_slot::check),
    (
        "placement_is_allowed",
        "I25, I26, I27",
        placement_is_allowed::check,
    ),
    ("ports_are_unique", "I30", ports_are_unique::check),
    ("rollback_is_final", "I36", rollback_is_final::check),
    ("rollout_keeps_serving", "I34", rollout_keeps_serving::check),
    ("scaling_is_no_rollout", "D4, D5", scaling_is_no_rollout::check),
    ("secrets_stay_near", "I43", secrets_stay_near::check),
    ("session_is_current", "I39", session_is_current::check),
    ("state_grows", "I12", state_grows::check),
    ("state_is_sound", "I29", state_is_sound::check),
    (
        "room_is_made_by_lower_ones",
        "I41",
        room_is_made_by_lower_ones::check,
    ),
    ("stops_have_a_reason", "I41", stops_have_a_reason::check),
    ("task_is_fixed", "I14, I15", task_is_fixed::check),
    ("transition_by_owner", "I16, I19", transition_by_owner::check),
    ("versions_grow", "I11", versions_grow::check),
    ("views_are_whole", "I10", views_are_whole::check),
];

/// When the leader has nothing left to do.
const SETTLED: &[Property<State>] = &[
    ("drained_nodes_are_empty", "I27", drained_nodes_are_empty::check),
    ("history_is_bounded", "I24", history_is_bounded::check),
    ("slots_match_replicas", "I22", slots_match_replicas::check),
    ("tasks_have_a_service", "I18", tasks_have_a_service::check),
];

/// At every moment.
const MOMENT: &[Property<Cluster>] = &[
    ("clients_leave_first", "I33", clients_leave_first::check),
    ("live_processes", "I21, I21b", live_processes::check),
];

/// Whether a task may not stay on a node.
pub fn must_leave(state: &State, node: NodeId, task: &Task) -> bool {
    state.node(node).is_some_and(|n| {
        n.spec.availability == Availability::Drain
            || !filter::constraints_hold(n, &task.spec.placement.constraints)
    })
}

/// Some time after the last fault.
const QUIET: &[Property<Cluster>] = &[
    ("containers_are_assigned", "I40", containers_are_assigned::check),
    ("readiness_is_told", "I33", readiness_is_told::check),
];

/// The first property of a table that does not hold.
fn first<T>(table: &[Property<T>], what: &T) -> Option<String> {
    table
        .iter()
        .find_map(|(name, number, holds)| holds(what).err().map(|why| format!("{name} ({number}): {why}")))
}

/// The first property that an entry broke.
pub fn check(seen: &Seen<'_>) -> Option<String> {
    ALWAYS
        .iter()
        .find_map(|(name, number, holds)| holds(seen).err().map(|why| format!("{name} ({number}): {why}")))
}

/// The first property that a planned state breaks.
pub fn check_settled(state: &State) -> Option<String> {
    first(SETTLED, state)
}

/// The first property that the cluster breaks right now.
pub fn check_moment(cluster: &Cluster) -> Option<String> {
    first(MOMENT, cluster)
}

/// The first property that the cluster breaks at rest.
pub fn check_quiet(cluster: &Cluster) -> Option<String> {
    first(QUIET, cluster)
}

/// Whether a manager that has applied the whole log has the state of the log (I2, I4).
///
/// # Errors
/// What differs.
pub fn same_state(mine: &State, log: &State, acked: &BTreeMap<Key, u64>) -> Result<(), String> {
    same_state::check(mine, log, acked).map_err(|why| format!("same_state (I2, I4): {why}"))
}
