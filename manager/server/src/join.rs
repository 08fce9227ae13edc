//! How this host becomes a node of a cluster of others, and how it leaves it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::object::{Availability, NodeRole};
use model::{ClusterId, NodeId};
use proto::ca::ca_client::CaClient;
use proto::ca::{GetAuthorityRequest, IssueReply, IssueRequest};
use proto::channel::{self, Expect, RemoteError};
use proto::dispatch::LeaveRequest;
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::identity::{self, IdentityError, Keychain, Papers, Subject};
use proto::status::leader_of;
use tonic::{Code, Status};

use crate::ca::{Token, TokenError};
use crate::init::{PORT, place, with_port};
use crate::server::{ClusterError, Manager, ManagerConfig};
use crate::writer::RandomIds;

/// How long a cluster without a leader is waited for, as during an election.
const LIMIT: Duration = Duration::from_secs(20);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a node that leaves waits for the others.
const GOODBYE_LIMIT: Duration = Duration::from_secs(10);
/// One call of it.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// A host that wants to join.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Managers, one of which is asked.
    pub(crate) managers: Vec<String>,
    pub(crate) token: String,
    /// Where to listen.
    pub(crate) listen: String,
    /// Where others reach it; empty: where the manager sees it come from.
    pub(crate) advertise: String,
    pub(crate) availability: Availability,
    pub(crate) labels: model::spec::Labels,
}

/// Why a host was not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No manager was named.
    #[error("no manager was named: write HOST:2377 of one behind the token")]
    Nowhere,
    /// Who answers is not the cluster the token is of. Nothing secret was sent.
    #[error(
        "E_CA_MISMATCH: {address} is not a manager of the cluster this token is for: its certificate authority is another \
         one; nothing was sent to it. Compare with `rswarm swarm join-token` there"
    )]
    Foreign {
        /// Who.
        address: String,
    },
    /// A manager cannot be reached.
    #[error("{0}")]
    Remote(String),
    /// The manager said no.
    #[error("{0}")]
    Refused(String),
    /// A file of the host.
    #[error("keep the key of this host in {}", path.display())]
    Pending {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl From<RemoteError> for JoinError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error.chain())
    }
}

/// Asks the managers in turn, until one lets this host in or says why not.
pub(crate) async fn join(
    config: &ManagerConfig,
    keychain: &Keychain,
    request: &Request,
    listener: &TcpListener,
) -> Result<(ClusterId, NodeRole), ClusterError> {
    let token = Token::parse(&request.token).map_err(JoinError::from)?;
    let mut managers = Vec::new();
    for manager in &request.managers {
        managers.push(with_port(manager, PORT)?);
    }
    let mut here = place(&request.listen, &request.advertise, listener)?;
    if request.advertise.is_empty() {
        let port = here.address.rsplit_once(':').map_or("", |(_, port)| port);
        here.address = format!(":{port}");
    }
    let pending = Pending::open(&config.data_dir).map_err(ClusterError::Join)?;
    crash::point("join.before_ask");
    let asked = IssueRequest {
        token: token.secret.clone(),
        node_id: pending.node.to_string(),
        csr: identity::request(&pending.key)?,
        hostname: config.hostname.clone(),
        address: here.address.clone(),
        labels: request.labels.clone(),
        availability: proto::types::Availability::from(request.availability).into(),
        level: config.level.number(),
    };
    let (reply, authority) = ask_all(&managers, &token, &asked).await?;
    let papers = Papers {
        key: pending.key.clone(),
        certificates: reply.certificates.clone(),
        authorities: reply.authorities.clone(),
    };
    check(&reply, &authority, pending.node)?;
    let subject = Subject::read(&identity::certificates(&papers.certificates, "certificate")?[0])?;
    here.address.clone_from(&reply.address);
    for peer in &reply.managers {
        if let Ok(node) = peer.node_id.parse() {
            here.managers.push((node, peer.address.clone()));
        }
    }
    crash::point("join.before_papers");
    keychain.install(papers, &pending.key, here)?;
    crash::point("join.after_papers");
    pending.forget();
    Ok((subject.cluster, subject.role))
}

/// What came back must be for this host, and of the authority the token names.
fn check(reply: &IssueReply, authority: &str, node: NodeId) -> Result<(), ClusterError> {
    let wrong = |why: &str| {
        ClusterError::Join(JoinError::Refused(format!(
            "the manager's answer cannot be used: {why}"
        )))
    };
    if !reply.authorities.contains(authority.trim()) {
        return Err(wrong("it names another authority"));
    }
    let chain = identity::certificates(&reply.certificates, "certificate")?;
    if Subject::read(&chain[0])?.node != node {
        return Err(wrong("the certificate is another node's"));
    }
    Ok(())
}

async fn ask_all(
    managers: &[String],
    token: &Token,
    asked: &IssueRequest,
) -> Result<(IssueReply, String), ClusterError> {
    let mut next: Vec<String> = managers.to_vec();
    let began = Instant::now();
    let mut last = JoinError::Nowhere;
    while let Some(address) = next.first().cloned() {
        match ask(&address, token, asked).await {
            Ok(done) => return Ok(done),
            // Who leads is asked next; without a leader, all again in a moment.
            Err(Answer::Leader(to)) if to != address => {
                next.insert(0, to);
                next.truncate(64);
            }
            Err(Answer::Leader(_) | Answer::Wait) => tokio::time::sleep(PAUSE).await,
            Err(Answer::No(error @ (JoinError::Foreign { .. } | JoinError::Refused(_)))) => {
                return Err(error.into());
            }
            Err(Answer::No(error)) => {
                last = error;
                next.remove(0);
                if next.is_empty() && began.elapsed() < LIMIT / 10 {
                    // The only one there is may be starting.
                    tokio::time::sleep(PAUSE).await;
                    next = managers.to_vec();
                }
            }
        }
        if began.elapsed() > LIMIT {
            let why = "the cluster has no leader at the moment: try again, or see `rswarm info` on a manager";
            return Err(JoinError::Remote(why.into()).into());
        }
    }
    Err(last.into())
}

/// What came of asking one manager.
enum Answer {
    /// Somebody else leads.
    Leader(String),
    /// Nobody leads yet.
    Wait,
    /// No.
    No(JoinError),
}

async fn ask(address: &str, token: &Token, asked: &IssueRequest) -> Result<(IssueReply, String), Answer> {
    let remote = |e: RemoteError| Answer::No(e.into());
    let said = |e: Status| Answer::No(JoinError::Remote(format!("{address}: {}", e.message())));
    let stranger = channel::connect_unverified(address).await.map_err(remote)?;
    let authority = CaClient::new(stranger)
        .get_authority(GetAuthorityRequest {})
        .await
        .map_err(said)?
        .into_inner()
        .certificate;
    if !token.is_of(&authority) {
        return Err(Answer::No(JoinError::Foreign {
            address: address.into(),
        }));
    }
    let wrong = |e: IdentityError| Answer::No(JoinError::Refused(e.to_string()));
    let roots = identity::roots(&authority).map_err(wrong)?;
    let channel = channel::connect_stranger(address, roots).await.map_err(remote)?;
    match CaClient::new(channel).issue(asked.clone()).await {
        Ok(reply) => Ok((reply.into_inner(), authority)),
        Err(status) if status.code() == Code::Unavailable => Err(match leader_of(&status) {
            Some((_, leader)) => Answer::Leader(leader),
            None => Answer::Wait,
        }),
        Err(status) => Err(Answer::No(JoinError::Refused(status.message().into()))),
    }
}

/// Id and key of a host that is about to join. They are kept, so that a join that was cut off and is repeated is the
/// same node's.
struct Pending {
    path: PathBuf,
    node: NodeId,
    key: String,
}

impl Pending {
    fn open(data: &Path) -> Result<Self, JoinError> {
        let path = data.join("joining");
        if let Ok(text) = fs::read_to_string(&path)
            && let Some((node, key)) = text.split_once('\n')
            && let Ok(node) = node.parse()
            && identity::request(key).is_ok()
        {
            return Ok(Self {
                path,
                node,
                key: key.into(),
            });
        }
        let node = NodeId::new(&mut RandomIds);
        let key = identity::new_key().map_err(|e| JoinError::Refused(e.to_string()))?;
        let text = format!("{node}\n{key}");
        identity::replace(&path, text.as_bytes()).map_err(|source| JoinError::Pending {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, node, key })
    }

    fn forget(self) {
        // One that stays would be used by the next join of this host, which then finds its id taken and says so.
        let _ = fs::remove_file(self.path);
    }
}

/// Tells the managers that this node goes; an error says what they will still show.
pub(crate) async fn say_goodbye(manager: &Manager) -> Result<(), String> {
    let keychain = manager.keychain();
    let own = manager.node_id();
    let mut next: Vec<(Option<NodeId>, String)> = (keychain.place().managers.into_iter())
        .filter(|(node, _)| *node != own)
        .map(|(node, address)| (Some(node), address))
        .collect();
    let began = Instant::now();
    let mut tries = 0;
    while !next.is_empty() && began.elapsed() < GOODBYE_LIMIT {
        let (node, address) = next[tries % next.len()].clone();
        tries += 1;
        let expect = node.map_or(Expect::Manager, Expect::Node);
        let Ok(channel) = channel::connect_node(keychain, &address, expect).await else {
            next.retain(|(_, a)| *a != address);
            continue;
        };
        let asked = DispatcherClient::new(channel).leave(LeaveRequest {}).await;
        match asked {
            Ok(_) => return Ok(()),
            Err(status) => match leader_of(&status) {
                Some((node, address)) => {
                    next = vec![(Some(node), address)];
                    tries = 0;
                }
                None if matches!(status.code(), Code::Unavailable | Code::FailedPrecondition) => {
                    tokio::time::sleep(PAUSE).await;
                }
                // It is not known there any more.
                None if status.code() == Code::PermissionDenied => return Ok(()),
                None => return Err(status.message().into()),
            },
        }
    }
    Err("no manager could be told: the cluster lists this node until `rswarm node rm` there".into())
}

/// Demotes this manager and waits until the others do without it, then says good-bye.
pub(crate) async fn withdraw(manager: &Manager) -> Result<(), String> {
    use proto::control::control_client::ControlClient;
    use proto::control::{Spec, UpdateRequest, spec};
    let cluster = manager.cluster().ok_or("this node is no manager")?;
    let log = &cluster.writer.log;
    let own = manager.node_id();
    let began = Instant::now();
    while began.elapsed() < GOODBYE_LIMIT {
        let state = log.read();
        let Some(node) = state.node(own) else { break };
        // Once it only listens nobody waits for it, and that it is forgotten then it is not told any more.
        let votes = (log.members().into_iter()).any(|(_, node, _, votes)| votes && node == own);
        if node.spec.role == NodeRole::Worker && !votes {
            break;
        }
        let mut spec = node.spec.clone();
        spec.role = NodeRole::Worker;
        let request = UpdateRequest {
            reference: own.to_string(),
            version: 0,
            spec: Some(Spec {
                spec: Some(spec::Spec::Node((&spec).into())),
            }),
            ..UpdateRequest::default()
        };
        if node.spec.role == NodeRole::Manager {
            let reached = log.reached().await;
            let result = match log.leader() {
                None => {
                    let decided = cluster.writer.write(move |state, now, _| {
                        manager_core::admit::update_node(
                            state,
                            &own.to_string(),
                            None,
                            spec.clone(),
                            &reached,
                            now,
                        )
                    });
                    decided.await.map(drop).map_err(|e| e.to_string())
                }
                Some((leader, address)) => {
                    let mut client = ControlClient::new(manager.shared.links.to(leader, &address));
                    let call = tokio::time::timeout(CALL_LIMIT, client.update(request)).await;
                    match call {
                        Ok(reply) => reply.map(drop).map_err(|e| e.message().to_owned()),
                        Err(_) => Err("the leader does not answer".into()),
                    }
                }
            };
            if let Err(error) = result {
                return Err(format!(
                    "this manager could not be demoted ({error}): the others still count it; remove it there with \
                     `rswarm node demote` and `rswarm node rm`"
                ));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    say_goodbye(manager).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_that_is_repeated_is_the_same_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pending::open(dir.path()).unwrap();
        let second = Pending::open(dir.path()).unwrap();
        assert_eq!((first.node, &first.key), (second.node, &second.key));
        second.forget();
        assert_ne!(Pending::open(dir.path()).unwrap().node, first.node);
    }
}
