//! Statuses up to the manager until it has them.

use std::sync::{Arc, PoisonError};

use model::TaskId;
use model::object::TaskStatus;
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use tonic::transport::Channel;

use crate::agent::Shared;

/// Puts a status out for the manager.
pub(crate) fn put(shared: &Shared, task: TaskId, status: TaskStatus) {
    shared
        .outbox
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .put(task, status);
    shared.told.notify_one();
}

/// Sends what waits, again and again; returns when the manager refuses or is gone.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut client: DispatcherClient<Channel>,
    session: String,
) -> tonic::Status {
    loop {
        let batch = shared
            .outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .batch();
        if batch.is_empty() {
            shared.told.notified().await;
            continue;
        }
        let updates = batch
            .iter()
            .map(|(id, status)| w::TaskUpdate {
                task: id.to_string(),
                status: Some(status.into()),
            })
            .collect();
        let request = w::UpdateTaskStatusRequest {
            session: session.clone(),
            updates,
        };
        crash::point("agent.before_report");
        if let Err(status) = client.update_task_status(request).await {
            return status;
        }
        crash::point("agent.after_report");
        shared
            .outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .acknowledge(&batch);
    }
}
