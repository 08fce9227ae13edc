//! Which container is meant, and what is said of it.

use proto::host as w;
use runtime::{ContainerInfo, ContainerState};
use tonic::Status;

use super::HostService;
use crate::translate::{IMAGE_LABEL, NAME_LABEL, SERVICE_LABEL, TASK_LABEL};

impl HostService {
    /// The container that `reference` names: id, name, `web.1`, or a unique beginning of one.
    ///
    /// # Errors
    /// NOT_FOUND when there is none, INVALID_ARGUMENT when several match.
    pub(super) fn find(&self, reference: &str) -> Result<ContainerInfo, Status> {
        let all = self.shared.runtime.list();
        let label = |c: &ContainerInfo, key: &str| c.labels.get(key).cloned().unwrap_or_default();
        let exact = all
            .iter()
            .find(|c| c.id == reference || label(c, NAME_LABEL) == reference);
        if let Some(found) = exact {
            return Ok(found.clone());
        }
        let running = |c: &&ContainerInfo| matches!(c.state, ContainerState::Running { .. });
        // `web.1` is whatever runs in that slot: while it is handed over, the newer one.
        let of_slot = |c: &&ContainerInfo| {
            label(c, NAME_LABEL)
                .rsplit_once('.')
                .is_some_and(|(task, _)| task == reference)
        };
        if let Some(found) = all
            .iter()
            .filter(of_slot)
            .max_by_key(|c| (running(c), c.created_ms))
        {
            return Ok(found.clone());
        }
        let begin = |c: &&ContainerInfo| {
            !reference.is_empty()
                && (c.id.starts_with(reference) || label(c, NAME_LABEL).starts_with(&format!("{reference}.")))
        };
        let mut candidates: Vec<&ContainerInfo> = all.iter().filter(begin).collect();
        if candidates.len() > 1 {
            candidates.retain(running);
        }
        match candidates.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Status::not_found(format!("No such container: {reference}"))),
            many => Err(Status::invalid_argument(format!(
                "container {reference} is ambiguous: {} match",
                many.len()
            ))),
        }
    }
}

/// A container as clients see it.
pub(super) fn container(info: ContainerInfo) -> w::Container {
    let label = |key: &str| info.labels.get(key).cloned().unwrap_or_default();
    let (state, pid, exit_code, finished) = match info.state {
        ContainerState::Created => ("created", 0, None, 0),
        ContainerState::Running { pid } => ("running", pid, None, 0),
        ContainerState::Exited(exit) => ("exited", 0, exit.code, exit.finished_ms),
    };
    w::Container {
        name: label(NAME_LABEL),
        image: label(IMAGE_LABEL),
        task: label(TASK_LABEL),
        service: label(SERVICE_LABEL),
        command: info.argv,
        created_at_ms: info.created_ms,
        state: state.into(),
        pid,
        exit_code,
        started_at_ms: info.started_ms,
        finished_at_ms: finished,
        health: String::new(),
        labels: info.labels,
        id: info.id,
    }
}
