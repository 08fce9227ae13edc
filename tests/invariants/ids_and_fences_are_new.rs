//! The id of a task is never used again (I17), and each task of a slot has a higher fence than those before it.

use model::object::Object;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    for change in &seen.changes.items {
        let Some(Object::Task(task)) = &change.after else {
            continue;
        };
        if let Some(Object::Task(before)) = &change.before {
            if before.fence != task.fence {
                return Err(format!("{} changed its fence", task.name()));
            }
            continue;
        }
        if seen.cluster.ids.contains(&task.id) {
            return Err(format!("{} has the id of an earlier task", task.name()));
        }
        let before = seen.before.tasks_of_service(task.service);
        let highest = before.filter(|t| t.slot == task.slot).map(|t| t.fence).max();
        if highest.is_some_and(|h| h >= task.fence) || task.fence == 0 {
            return Err(format!(
                "{} has fence {}, and there was {highest:?}",
                task.name(),
                task.fence
            ));
        }
    }
    Ok(())
}
