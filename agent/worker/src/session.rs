//! Finding the manager, staying connected, taking assignments.

use std::sync::Arc;
use std::time::Duration;

use agent_core::assignments::Frames;
use agent_core::contact::session_over;
use model::assignment::AssignmentSet;
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::agent::Shared;
use crate::contact::boottime;
use crate::report;
use crate::tasks::Tasks;

/// Bounds of the pause before the next try; each is chosen at random below a bound that doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Largest frame a manager sends.
const FRAME_MAX: usize = 8 << 20;

/// Serves managers until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut tasks = Tasks::new(shared.clone());
    let mut pause = PAUSE_FIRST;
    loop {
        let ended = tokio::select! {
            result = serve(&shared, &mut tasks, &mut pause) => result,
            _ = stop.wait_for(|s| *s) => return,
        };
        shared.contact.lost();
        tracing::info!(reason = %ended, "the session with the manager ended");
        let wait = pause.mul_f64(random_share());
        pause = (pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}

/// A number from 0 to 1 (full jitter), so that a thousand agents do not come back at once.
fn random_share() -> f64 {
    let mut bytes = [0u8; 4];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes));
    if read.is_err() {
        return 1.0;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

/// One session, from registration to its end; answers why it ended.
async fn serve(shared: &Arc<Shared>, tasks: &mut Tasks, pause: &mut Duration) -> String {
    let channel = match proto::channel::connect(&shared.config.manager).await {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    let mut client = DispatcherClient::new(channel).max_decoding_message_size(FRAME_MAX);
    let node_id = shared.config.node_id.to_string();
    let description = Some((&shared.description()).into());
    let request = w::SessionRequest {
        node_id: node_id.clone(),
        description,
    };
    let sent = boottime();
    let mut messages = match client.session(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    let first = match messages.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return "the manager closed the session".into(),
        Err(status) => return status.message().to_owned(),
    };
    *pause = PAUSE_FIRST;
    shared.contact.heard(sent);
    let heartbeat = heartbeats(
        shared,
        client.clone(),
        node_id.clone(),
        first.session.clone(),
        first.heartbeat_ns,
    );
    let reports = report::run(shared.clone(), client.clone(), first.session.clone());
    let assignments = assignments(client, node_id, first.session, tasks);
    tokio::select! {
        status = heartbeat => status.message().to_owned(),
        status = reports => status.message().to_owned(),
        reason = assignments => reason,
        message = async { loop { match messages.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break "the manager closed the session".to_owned(),
            Err(status) => break status.message().to_owned(),
        } } } => message,
    }
}

async fn heartbeats(
    shared: &Shared,
    mut client: DispatcherClient<Channel>,
    node_id: String,
    session: String,
    mut period_ns: u64,
) -> tonic::Status {
    let mut last = boottime();
    loop {
        // Within 10 % of the period, so that agents do not beat in step.
        let period = Duration::from_nanos(period_ns.max(10_000_000)).mul_f64(0.9 + 0.2 * random_share());
        tokio::time::sleep(period).await;
        let request = w::HeartbeatRequest {
            node_id: node_id.clone(),
            session: session.clone(),
        };
        // One that is not answered within a period ends the session: what may not outlive its manager depends on it.
        let sent = boottime();
        if session_over(last, period, sent) {
            return tonic::Status::deadline_exceeded(
                "this host stood still for longer than its session lasts",
            );
        }
        match tokio::time::timeout(period, client.heartbeat(request)).await {
            Ok(Ok(reply)) => period_ns = reply.into_inner().heartbeat_ns,
            Ok(Err(status)) => return status,
            Err(_) => {
                return tonic::Status::deadline_exceeded("a heartbeat was not answered within its period");
            }
        }
        shared.contact.heard(sent);
        last = sent;
    }
}

async fn assignments(
    mut client: DispatcherClient<Channel>,
    node_id: String,
    session: String,
    tasks: &mut Tasks,
) -> String {
    let mut stream = match client
        .assignments(w::AssignmentsRequest { node_id, session })
        .await
    {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    let mut set = AssignmentSet::default();
    let mut frames = Frames::default();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return "the manager ended the assignments".into(),
            Err(status) => return status.message().to_owned(),
        };
        let (full, more) = (message.full, message.more);
        let frame = match message.try_into() {
            Ok(frame) => frame,
            Err(error) => return format!("the manager sent what cannot be read: {error}"),
        };
        if let Some(next) = frames.take(&set, frame, full, more) {
            set = next;
            tasks.assign(&set).await;
        }
    }
}
