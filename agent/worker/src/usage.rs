//! What tasks use, for managers that scale services by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use agent_core::usage::{Counted, together, used};
use model::{TaskId, Timestamp};
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use runtime::ContainerState;
use tonic::transport::Channel;

use crate::agent::Shared;
use crate::contact::boottime;
use crate::tasks::blocking;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Most tasks in one report.
const REPORT_MAX: usize = 10_000;

/// Reports while that is asked for; returns only when it is not carried out any more.
pub(crate) async fn run(shared: &Arc<Shared>, mut client: DispatcherClient<Channel>, session: String) {
    let mut asked = shared.measures.subscribe();
    let mut before = BTreeMap::new();
    while asked.wait_for(|asked| *asked).await.is_ok() {
        tokio::time::sleep(EVERY).await;
        let (now, counted) = (boottime(), count(shared).await);
        let usage = used(&before, &counted, now);
        before = dated(counted, now);
        let usage = usage
            .into_iter()
            .take(REPORT_MAX)
            .map(|(task, cpu, memory)| w::TaskUsage {
                task: task.to_string(),
                nano_cpus: cpu,
                memory_bytes: memory,
            });
        let request = w::ReportUsageRequest {
            session: session.clone(),
            usage: usage.collect(),
        };
        // The session ends by its heartbeats where that is the reason, and the next report comes soon.
        if let Err(status) = client.report_usage(request).await {
            tracing::debug!("what tasks use was not taken: {status}");
        }
    }
}

/// Time between two counts of what all tasks use together, and how many counts it is measured over: half a minute.
const TOGETHER_EVERY: Duration = Duration::from_secs(10);
const TOGETHER_OVER: usize = 3;

/// Measures what all tasks use together; never returns.
pub(crate) async fn measure(shared: &Arc<Shared>) {
    let mut earlier = VecDeque::new();
    loop {
        let (now, counted) = (boottime(), count(shared).await);
        if earlier.len() == TOGETHER_OVER
            && let Some(before) = earlier.pop_front()
        {
            let about = shared.description();
            let together = together(&used(&before, &counted, now), about.cpus, about.memory);
            shared.node_use.send_replace(Some(together));
        }
        earlier.push_back(dated(counted, now));
        tokio::time::sleep(TOGETHER_EVERY).await;
    }
}

/// Counts with their time, for the next ones to be compared with.
fn dated(counted: BTreeMap<TaskId, Counted>, now: Timestamp) -> BTreeMap<TaskId, (Timestamp, Counted)> {
    counted
        .into_iter()
        .map(|(id, counted)| (id, (now, counted)))
        .collect()
}

/// What the running containers have used so far.
async fn count(shared: &Shared) -> BTreeMap<TaskId, Counted> {
    let runtime = shared.runtime.clone();
    let counted = blocking(move || {
        let running =
            (runtime.list().into_iter()).filter(|i| matches!(i.state, ContainerState::Running { .. }));
        let counted = running.filter_map(|info| {
            let used = runtime.stats(&info.id)?;
            let counted = Counted {
                cpu_ns: used.cpu_ns,
                memory: used.memory,
            };
            Some((info.id.parse().ok()?, counted))
        });
        counted.collect()
    });
    counted.await.unwrap_or_default()
}
