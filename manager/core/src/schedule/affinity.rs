//! Which services a task wants beside it on its node, and which not.

use model::object::{Node, Task};
use model::spec::check_name;
use model::{ServiceId, TaskId};

use crate::state::State;

/// Most affinities of one service.
pub const AFFINITIES_MAX: usize = 32;

/// One affinity, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// Whether a task of the service has to be there, or must not.
    pub together: bool,
    /// Name of the service.
    pub service: String,
}

/// Reads `service==NAME` or `service!=NAME`.
///
/// # Errors
/// What is wrong, for an operator.
pub fn parse(text: &str) -> Result<Affinity, String> {
    let form = || format!("\"{text}\" is no affinity: write service==NAME or service!=NAME");
    let rest = text.trim().strip_prefix("service").ok_or_else(form)?.trim_start();
    let (together, name) = match (rest.strip_prefix("=="), rest.strip_prefix("!=")) {
        (Some(name), _) => (true, name.trim()),
        (None, Some(name)) => (false, name.trim()),
        (None, None) => return Err(form()),
    };
    check_name("service", name).map_err(|e| format!("{}: {e}", form()))?;
    Ok(Affinity {
        together,
        service: name.to_owned(),
    })
}

/// Whether a task waits for another's, which may be placed at any time.
pub(crate) fn wants_company(task: &Task) -> bool {
    let mut asked = task.spec.placement.affinity.iter();
    asked.any(|text| parse(text).is_ok_and(|a| a.together))
}

/// What a task asks of its neighbours, and who wants none of it.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    asked: Vec<Affinity>,
    /// Services that do not want it beside them: what they asked holds for those that come later, too.
    shunned_by: Vec<ServiceId>,
}

impl Neighbours {
    pub(super) fn of(state: &State, task: &Task) -> Self {
        let shuns = |text: &String| parse(text).is_ok_and(|a| !a.together && a.service == task.service_name);
        let services = state.choosy().filter(|s| s.id != task.service);
        Self {
            // One that cannot be read is refused by admission.
            asked: task
                .spec
                .placement
                .affinity
                .iter()
                .filter_map(|t| parse(t).ok())
                .collect(),
            shunned_by: services
                .filter(|s| s.spec.task.placement.affinity.iter().any(shuns))
                .map(|s| s.id)
                .collect(),
        }
    }

    /// Whether anybody may be beside it.
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.shunned_by.is_empty()
    }

    /// Whether what runs on a node, or will, is as it was asked for.
    pub(super) fn hold(&self, state: &State, node: &Node, task: &Task) -> bool {
        if self.is_empty() {
            return true;
        }
        // A task that is replaced goes as its successor comes.
        let own = |t: &Task| {
            let follows = t.iteration == task.iteration || !t.desired.is_live();
            t.service == task.service && t.slot == task.slot && follows
        };
        let there = || {
            let tasks = state.tasks_of_node(node.id);
            tasks.filter(|t| t.id != TaskId::NIL && !t.status.state.is_terminal() && !own(t))
        };
        let has = |name: &str, leaving: bool| {
            there().any(|t| t.service_name == name && (leaving || t.desired.is_live()))
        };
        // What is about to go is no company, and is in the way until it is gone.
        self.asked
            .iter()
            .all(|a| has(&a.service, !a.together) == a.together)
            && !there().any(|t| self.shunned_by.contains(&t.service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_names_a_service() {
        let read = |text: &str| parse(text).map(|a| (a.together, a.service));
        assert_eq!(read("service==db"), Ok((true, "db".into())));
        assert_eq!(read(" service != shop_db "), Ok((false, "shop_db".into())));
        for bad in [
            "",
            "db",
            "service=db",
            "service==",
            "node==db",
            "service==a b",
            "service==/",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
