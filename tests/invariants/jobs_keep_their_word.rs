//! Of a job never more slots have tasks at a time than it allows, a slot of a run completes once, and no time fires twice
//! (D15, row 18).

use std::collections::{BTreeMap, BTreeSet};

use model::job::JobRun;
use model::object::{Object, Service};
use model::task_state::{DesiredState, TaskState};

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        if let (Some(Object::Service(before)), Some(Object::Service(after))) = (&change.before, &change.after)
        {
            fires_grow(before, after)?;
        }
    }
    let touched: BTreeSet<_> = (seen.changes.items.iter())
        .filter_map(|c| match c.after.as_ref().or(c.before.as_ref()) {
            Some(Object::Task(t)) => Some(t.service),
            _ => None,
        })
        .collect();
    for service in touched.iter().filter_map(|id| seen.after.service(*id)) {
        if service.spec.mode.is_job() {
            bounds(seen, service)?;
        }
    }
    Ok(())
}

/// A run that begins by the schedule is due later than all before it, and has the next number.
fn fires_grow(before: &Service, after: &Service) -> Result<(), String> {
    let (Some(was), Some(is)) = (&before.job, &after.job) else {
        return Ok(());
    };
    let name = &after.spec.name;
    let known = was.runs.iter().filter_map(|r| r.due_at).max();
    let fresh: Vec<&JobRun> = is.runs.iter().filter(|r| r.iteration > was.iteration).collect();
    if fresh.len() > 1 || is.iteration != was.iteration + fresh.len() as u64 {
        return Err(format!(
            "{name}: runs {} and then {}",
            was.iteration, is.iteration
        ));
    }
    let again = fresh
        .iter()
        .filter_map(|r| r.due_at)
        .find(|due| known.is_some_and(|k| *due <= k));
    match again {
        Some(due) => Err(format!("{name}: the time {due:?} fired again")),
        None => Ok(()),
    }
}

fn bounds(seen: &Seen<'_>, service: &Service) -> Result<(), String> {
    let name = &service.spec.name;
    let (mut live, mut done) = (BTreeSet::new(), BTreeMap::new());
    for task in seen.after.tasks_of_service(service.id) {
        // One that was closed and is opened again begins anew.
        if task.status.state == TaskState::Complete && task.desired != DesiredState::Remove {
            *done.entry((task.iteration, task.slot)).or_insert(0) += 1;
        }
        if task.desired == DesiredState::Running && !task.status.state.is_terminal() {
            live.insert((task.iteration, task.slot));
        }
    }
    if let Some((slot, count)) = done.into_iter().find(|(_, count)| *count > 1) {
        return Err(format!("{name}: run and slot {slot:?} completed {count} times"));
    }
    let most = service.spec.mode.concurrent().unwrap_or(u32::MAX) as usize;
    // Users may have asked for less since: what runs then goes on, or is ended by the next plan.
    let asked = (seen.before.service(service.id)).is_some_and(|s| s.spec.mode == service.spec.mode);
    let began = (seen.before.tasks_of_service(service.id))
        .filter(|t| t.desired == DesiredState::Running && !t.status.state.is_terminal())
        .count();
    if asked && live.len() > most.max(began) {
        return Err(format!(
            "{name}: {} slots run at a time, and {most} may",
            live.len()
        ));
    }
    Ok(())
}
