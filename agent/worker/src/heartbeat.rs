//! Heartbeats of a session, over a second connection as well where the first is slow to answer.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use agent_core::beats::Beats;
use agent_core::contact::{connect_limit, session_over};
use futures::stream::{FuturesUnordered, StreamExt};
use model::Timestamp;
use proto::channel::{self, Expect};
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::agent::Shared;
use crate::contact::boottime;
use crate::session::{Target, random_share};

/// Periods of heartbeats are at least this long, whatever a manager says.
const PERIOD_MIN: Duration = Duration::from_millis(10);
/// Heartbeats under way at the same time.
const UNDER_WAY_MAX: usize = 16;
/// Nodes that a heartbeat says are not reached: it is to stay small.
const UNREACHED_MAX: usize = 256;

type Client = DispatcherClient<Channel>;
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// When a heartbeat was sent, over which connection, and its answer.
type Answer = (Timestamp, usize, Result<w::HeartbeatReply, Status>);

fn period(ns: u64) -> Duration {
    Duration::from_nanos(ns).max(PERIOD_MIN)
}

/// Within 10 % of the period, so that agents do not beat in step.
fn next(period: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + period.mul_f64(0.9 + 0.2 * random_share())
}

async fn wait_until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(boottime())).await,
        None => std::future::pending().await,
    }
}

/// Keeps a session alive; answers why it is over.
pub(crate) async fn run(
    shared: &Shared,
    target: &Target,
    client: Client,
    session: String,
    period_ns: u64,
) -> Status {
    let mut beats = Beats::new(period(period_ns), boottime());
    let mut lines = vec![client];
    let mut turn = 0;
    let mut opening: Option<Boxed<'_, Option<Client>>> = None;
    let mut refused = false;
    let mut under_way: FuturesUnordered<Boxed<'_, Answer>> = FuturesUnordered::new();
    let mut due = next(beats.period());
    loop {
        let wanted = beats.another_at().filter(|_| opening.is_none() && !refused);
        let beat = tokio::select! {
            // What may not outlive its manager depends on this.
            () = wait_until(beats.over_at()) => {
                return Status::deadline_exceeded("a heartbeat was not answered within its period");
            }
            Some((sent, line, answer)) = under_way.next() => {
                match answer {
                    Ok(reply) => {
                        beats.answered(sent, period(reply.heartbeat_ns));
                        shared.contact.heard(sent);
                        shared.measures.send_if_modified(|asked| std::mem::replace(asked, reply.measure) != reply.measure);
                        refused = false;
                    }
                    // The connection broke; the first is also that of everything else.
                    Err(status) if line > 0 && broke(&status) => lines.truncate(1),
                    Err(status) => return status,
                }
                false
            }
            () = wait_until(wanted) => {
                opening = Some(Box::pin(open(shared, target, beats.period())));
                false
            }
            line = async { match &mut opening {
                Some(opening) => opening.await,
                None => std::future::pending().await,
            } } => {
                opening = None;
                refused = line.is_none();
                lines.extend(line);
                !refused
            }
            () = tokio::time::sleep_until(due) => {
                due = next(beats.period());
                true
            }
        };
        beats.stand(lines.len());
        if !beat || under_way.len() >= UNDER_WAY_MAX {
            continue;
        }
        let now = boottime();
        if session_over(beats.last(), beats.period(), now) {
            return Status::deadline_exceeded("this host stood still for longer than its session lasts");
        }
        turn = (turn + 1) % lines.len();
        beats.send(now);
        let unreached = shared.network.unreached().map(|nodes| w::Unreached {
            nodes: nodes
                .iter()
                .take(UNREACHED_MAX)
                .map(ToString::to_string)
                .collect(),
        });
        let used = shared.node_use.borrow().map(Into::into);
        let (mut client, session, line) = (lines[turn].clone(), session.clone(), turn);
        under_way.push(Box::pin(async move {
            let request = w::HeartbeatRequest {
                session,
                unreached,
                used,
            };
            let answer = client.heartbeat(request).await;
            (now, line, answer.map(tonic::Response::into_inner))
        }));
    }
}

/// Whether a call failed on its way, and was not refused by the manager.
fn broke(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

async fn open(shared: &Shared, target: &Target, period: Duration) -> Option<Client> {
    let limit = connect_limit(0, Some(period));
    let connecting = channel::connect_node(&shared.config.keychain, &target.1, Expect::Node(target.0));
    let connected = tokio::time::timeout(limit, connecting).await;
    connected.ok()?.ok().map(DispatcherClient::new)
}
