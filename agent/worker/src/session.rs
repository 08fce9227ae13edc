//! Finding the manager that leads, staying connected, taking assignments.

use std::sync::Arc;
use std::time::Duration;

use agent_core::assignments::Frames;
use agent_core::contact::{self, PAUSE_FIRST, hint_pause, next_pause};
use model::assignment::AssignmentSet;
use model::object::NodeRole;
use model::{NodeId, Timestamp};
use proto::channel::{self, Expect};
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::status::{leader_of, may_be_retried};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::Shared;
use crate::contact::boottime;
use crate::heartbeat;
use crate::identity::{self, Told};
use crate::link::Link;
use crate::report;
use crate::tasks::Tasks;
use crate::usage;

/// Largest frame a manager sends.
const FRAME_MAX: usize = 8 << 20;
/// How long registering may take; a thousand nodes may do it at the same time.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);

/// A manager to talk to.
pub(crate) type Target = (NodeId, String);

/// Why a session ended, and who is to be tried next if that is known.
struct Ended {
    reason: String,
    leader: Option<Target>,
    /// A manager answered that nobody leads at the moment: an election is over soon.
    electing: bool,
    /// This node ended it, to register anew with the same manager.
    again: bool,
}

impl From<String> for Ended {
    fn from(reason: String) -> Self {
        Self {
            reason,
            leader: None,
            electing: false,
            again: false,
        }
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self {
            reason: status.message().to_owned(),
            leader: leader_of(&status),
            electing: status.code() == Code::Unavailable && may_be_retried(&status),
            again: false,
        }
    }
}

/// Which manager is tried next, and how soon.
#[derive(Default)]
struct Search {
    /// Bound of the next pause.
    pause: Duration,
    /// The period of heartbeats as it was told last.
    period: Option<Duration>,
    /// Managers to whom no connection could be made since the node was registered.
    unreached: u32,
    /// Who is to be tried in this round, the next one last. It ends when the node registers.
    round: Vec<NodeId>,
}

/// Serves managers until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut tasks = Tasks::resume(shared.clone()).await;
    let mut search = Search {
        pause: PAUSE_FIRST,
        ..Search::default()
    };
    let mut next: Option<Target> = None;
    let mut lost = None;
    loop {
        let target = next.take().or_else(|| choose(&shared, &mut search.round, lost));
        let Some(target) = target else {
            tracing::error!("this node knows no manager: it has to join again");
            return;
        };
        let ended = tokio::select! {
            result = serve(&shared, &mut tasks, &mut search, &target) => result,
            _ = stop.wait_for(|s| *s) => return,
        };
        shared.contact.lost();
        shared.network.set_registered(false);
        lost = Some(target.0);
        if ended.again {
            tracing::info!(manager = %target.1, reason = %ended.reason, "registering again");
            next = Some(target);
            continue;
        }
        if ended.leader.as_ref().is_some_and(|l| *l != target) {
            // Somebody else leads, and nothing is wrong. All nodes hear of an election at the same time.
            next = ended.leader;
            tracing::debug!(reason = %ended.reason, "another manager leads");
            let wait = hint_pause(search.period).mul_f64(random_share());
            tokio::select! {
                () = tokio::time::sleep(wait) => continue,
                _ = stop.wait_for(|s| *s) => return,
            }
        }
        tracing::info!(manager = %target.1, reason = %ended.reason, "the session with the manager ended");
        let wait = search.pause.mul_f64(random_share());
        search.pause = next_pause(search.pause, ended.electing, search.period);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}

/// The next manager of a round, or the first of another one.
fn choose(shared: &Shared, round: &mut Vec<NodeId>, lost: Option<NodeId>) -> Option<Target> {
    let keychain = &shared.config.keychain;
    let managers = keychain.place().managers;
    loop {
        if round.is_empty() {
            let ids: Vec<NodeId> = managers.iter().map(|(id, _)| *id).collect();
            let own = keychain.identity()?.subject.node;
            *round = contact::order(&ids, own, lost, random_share());
            round.reverse();
        }
        let id = round.pop()?;
        // One that is no manager any more is passed over.
        if let Some(target) = managers.iter().find(|(known, _)| *known == id) {
            return Some(target.clone());
        }
    }
}

/// A number from 0 to 1 (full jitter), so that a thousand agents do not come back at once.
pub(crate) fn random_share() -> f64 {
    let mut bytes = [0u8; 4];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes));
    if read.is_err() {
        return 1.0;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

/// One session, from registration to its end.
async fn serve(shared: &Arc<Shared>, tasks: &mut Tasks, search: &mut Search, target: &Target) -> Ended {
    let keychain = &shared.config.keychain;
    if let Err(status) = identity::recover(shared, &target.1).await {
        return status.into();
    }
    let limit = contact::connect_limit(search.unreached, search.period);
    let connecting = channel::connect_node(keychain, &target.1, Expect::Node(target.0));
    let late = |_| format!("{} cannot be reached: no answer within {limit:?}", target.1);
    let connected = tokio::time::timeout(limit, connecting).await.map_err(late);
    let channel = match connected.and_then(|c| c.map_err(|e| e.chain())) {
        Ok(channel) => channel,
        Err(reason) => {
            search.unreached = search.unreached.saturating_add(1);
            return reason.into();
        }
    };
    let mut raft_id = shared.config.raft_id.clone();
    let mut tunnel_key = shared.network.key();
    tunnel_key.mark_unchanged();
    let mut client = DispatcherClient::new(channel.clone()).max_decoding_message_size(FRAME_MAX);
    let request = w::SessionRequest {
        description: Some((&shared.description()).into()),
        raft_id: *raft_id.borrow_and_update(),
    };
    let sent = boottime();
    let registering = async {
        let mut messages = client.session(request).await?.into_inner();
        let first = messages.message().await?;
        Ok::<_, Status>((messages, first))
    };
    let (mut messages, first) = match tokio::time::timeout(REGISTER_LIMIT, registering).await {
        Ok(Ok((messages, Some(first)))) => (messages, first),
        Ok(Ok((_, None))) => return String::from("the manager closed the session").into(),
        Ok(Err(status)) => return status.into(),
        Err(_) => return String::from("the manager does not answer").into(),
    };
    let known = keychain.place().epoch;
    if first.epoch < known {
        return format!(
            "this manager is of epoch {} of the cluster, which went on without it in epoch {known}: it has to leave and join again",
            first.epoch
        )
        .into();
    }
    search.pause = PAUSE_FIRST;
    search.round.clear();
    shared.network.set_registered(true);
    search.unreached = 0;
    search.period = Some(Duration::from_nanos(first.heartbeat_ns));
    shared.contact.heard(sent);
    tracing::info!(manager = %target.1, "registered with the manager");
    let session = first.session.clone();
    let told = watch::Sender::new(Told::default());
    let _link = shared.links.hold(Link {
        client: client.clone(),
        session: session.clone(),
    });
    let heartbeat = heartbeat::run(
        shared,
        target,
        client.clone(),
        session.clone(),
        first.heartbeat_ns,
    );
    take(shared, &told, first);
    let reports = report::run(shared.clone(), client.clone(), session.clone());
    let done = watch::Sender::new(0);
    let acknowledgements = acknowledge(client.clone(), session.clone(), done.subscribe());
    let usage = usage::run(shared, client.clone(), session.clone());
    let assignments = assignments(client, session, tasks, &done);
    let renewals = identity::renew(shared, channel, told.subscribe());
    tokio::select! {
        status = heartbeat => status.into(),
        status = reports => status.into(),
        ended = assignments => ended,
        () = usage => String::from("what tasks use is not measured any more").into(),
        () = usage::measure(shared) => String::from("what tasks use is not measured any more").into(),
        () = acknowledgements => String::from("nothing is acknowledged any more").into(),
        () = renewals => String::from("this node has no identity any more").into(),
        _ = raft_id.changed() => Ended {
            again: true,
            ..String::from("this manager has a new number: it registers again").into()
        },
        _ = tunnel_key.changed() => Ended {
            again: true,
            ..String::from("this node has a new key for encrypted networks: it registers again").into()
        },
        ended = async { loop { match messages.message().await {
            Ok(Some(message)) => take(shared, &told, message),
            Ok(None) => break String::from("the manager closed the session").into(),
            Err(status) => break status.into(),
        } } } => ended,
    }
}

/// Takes what every node is told.
fn take(shared: &Shared, told: &watch::Sender<Told>, message: w::SessionMessage) {
    let keychain = &shared.config.keychain;
    keychain.clock().said(Timestamp(message.now_ms));
    let managers = (message.managers.into_iter())
        .filter_map(|peer| Some((peer.node_id.parse().ok()?, peer.address)))
        .collect();
    if let Err(error) = keychain.set_managers(managers, message.epoch) {
        tracing::warn!(%error, "remember the managers");
    }
    let role = if message.manager {
        NodeRole::Manager
    } else {
        NodeRole::Worker
    };
    told.send_replace(Told {
        role: Some(role),
        renew: message.renew,
        authorities: message.authorities,
    });
    shared
        .role
        .send_if_modified(|known| known.replace(role) != Some(role));
}

async fn assignments(
    mut client: DispatcherClient<Channel>,
    session: String,
    tasks: &mut Tasks,
    done: &watch::Sender<u64>,
) -> Ended {
    let mut stream = match client.assignments(w::AssignmentsRequest { session }).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.into(),
    };
    let mut set = AssignmentSet::default();
    let mut frames = Frames::default();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return String::from("the manager ended the assignments").into(),
            Err(status) => return status.into(),
        };
        let (full, more, number) = (message.full, message.more, message.acknowledge);
        let frame = match message.try_into() {
            Ok(frame) => frame,
            Err(error) => return format!("the manager sent what cannot be read: {error}").into(),
        };
        if let Some(next) = frames.take(&set, frame, full, more) {
            set = next;
            crash::point("agent.before_assign");
            let brought = tasks.assign(&set).await;
            if brought && number != 0 {
                done.send_replace(number);
            }
        }
    }
}

/// Says which messages the kernel does as, whenever a manager has asked. One that does not hear it goes on after a while.
async fn acknowledge(mut client: DispatcherClient<Channel>, session: String, mut done: watch::Receiver<u64>) {
    while done.changed().await.is_ok() {
        let number = *done.borrow_and_update();
        let request = w::AcknowledgeRequest {
            session: session.clone(),
            number,
        };
        if let Err(error) = client.acknowledge(request).await {
            tracing::debug!(%error, number, "acknowledge assignments");
        }
    }
}
