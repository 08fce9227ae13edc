//! Status reports, gathered into one entry while the entry before is being written.

use std::sync::Arc;

use manager_core::{Action, Txn};
use proto::status;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::raft::{Log, ProposeError};

/// Reports in one entry; it stays below 1 MiB but for unusual texts.
const REPORT_BATCH_MAX: usize = 2048;
/// Calls that wait for the next entry; then agents wait with theirs.
const CALLS_QUEUED: usize = 1024;

type Call = (Vec<Action>, oneshot::Sender<Result<(), Status>>);

pub(super) struct Reports {
    queue: mpsc::Sender<Call>,
}

impl Reports {
    pub(super) fn new(log: Arc<Log>) -> Self {
        let (queue, calls) = mpsc::channel(CALLS_QUEUED);
        tokio::spawn(write(log, calls));
        Self { queue }
    }

    /// Returns once the reports are committed.
    pub(super) async fn commit(&self, actions: Vec<Action>) -> Result<(), Status> {
        if actions.is_empty() {
            return Ok(());
        }
        let stopped = || Status::unavailable("this manager is stopping: report to another");
        let (done, wait) = oneshot::channel();
        self.queue.send((actions, done)).await.map_err(|_| stopped())?;
        wait.await.map_err(|_| stopped())?
    }
}

async fn write(log: Arc<Log>, mut calls: mpsc::Receiver<Call>) {
    while let Some(first) = calls.recv().await {
        let (mut actions, done) = first;
        let mut waiting = vec![done];
        while actions.len() < REPORT_BATCH_MAX
            && let Ok((more, done)) = calls.try_recv()
        {
            actions.extend(more);
            waiting.push(done);
        }
        crash::point("dispatcher.before_reports_commit");
        let result = log
            .propose(Txn {
                expect: Vec::new(),
                actions,
            })
            .await;
        crash::point("dispatcher.after_reports_commit");
        let answer = match &result {
            Ok(_) => Ok(()),
            Err(error @ ProposeError::TooLarge { .. }) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(status::may_retry(Status::unavailable(error.to_string()))),
        };
        for done in waiting {
            // The agent hung up; it will ask again.
            let _ = done.send(answer.clone());
        }
    }
}
