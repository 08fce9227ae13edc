//! The gate before every service: who calls, whether it may, and where the call is carried out.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, Limited};
use model::NodeId;
use model::object::NodeRole;
use proto::authz::{self, Caller, Standing};
use proto::listener::Remote;
use proto::status::RETRY;
use tonic::body::Body;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::server::{Manager, Membership, NEEDS_UNLOCKING, NOT_A_MANAGER, NOT_IN_CLUSTER, REQUEST_MAX};

/// Largest answer that is passed on whole: a list of 20,000 tasks has some 30 MB.
const ANSWER_MAX: usize = 256 << 20;
/// How long a write waits for a leader: several elections.
const WRITE_LIMIT: Duration = Duration::from_secs(15);
/// Names the node whose host is meant, on calls of the Host service.
pub const NODE: &str = "rswarm-node";
/// Says who asks: a user of the host whose socket the call came by. The gate writes it, and believes it of managers alone.
pub(crate) const OPERATOR: &str = "rswarm-operator";
/// Identifies a request over all tries.
pub const REQUEST: &str = "rswarm-request";

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// By which way a call comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The unix socket: operators of this host.
    Socket,
    /// The port: other nodes.
    Port,
}

/// Puts the gate before services.
#[derive(Clone)]
pub struct Gate {
    manager: Manager,
    side: Side,
}

/// Services behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl Manager {
    /// The gate for one side of this node.
    pub fn gate(&self, side: Side) -> Gate {
        Gate {
            manager: self.clone(),
            side,
        }
    }

    /// What a caller counts as. What is in the log counts, not what a certificate says.
    ///
    /// # Errors
    /// PERMISSION_DENIED for a node that is not part of the cluster any more.
    pub fn standing(&self, caller: Caller, path: &str) -> Result<Standing, Status> {
        let node = match caller {
            Caller::Anyone => return Ok(Standing::Anyone),
            Caller::Operator => return Ok(Standing::Operator),
            Caller::Node(node) => node,
        };
        let told = || (self.keychain().place().managers.iter()).any(|(known, _)| *known == node);
        let Some(state) = self.known() else {
            // A worker, or a manager that is still being told: whom it was told are the managers.
            return Ok(if told() {
                Standing::Manager
            } else {
                Standing::Worker
            });
        };
        // Until the log has changed its members, one of them still takes part in it, whatever it is to become. And a
        // manager whose log lags hears from the leader that it became a manager only if it listens to it: the leader
        // tells every node by its session as well who the managers are.
        let takes_part = path.starts_with("/rswarm.raft.")
            && (told()
                || (self.cluster()).is_some_and(|c| c.writer.log.members().iter().any(|m| m.1 == node)));
        match state.node(node) {
            _ if takes_part => Ok(Standing::Manager),
            Some(known) if known.spec.role == NodeRole::Manager => Ok(Standing::Manager),
            Some(_) => Ok(Standing::Worker),
            None => Err(Status::permission_denied(format!(
                "E_NODE_REMOVED: node {node} is not part of this cluster any more: leave with rswarm swarm leave, and \
                 join again"
            ))),
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            gate: self.clone(),
        }
    }
}

impl<S> Service<Request> for Gated<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let clone = self.inner.clone();
        // The one that is ready is used, the clone waits for the next call.
        let inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move {
            match gate.pass(request, inner).await {
                Ok(response) => Ok(response),
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

impl Gate {
    async fn pass<S>(&self, mut request: Request, mut inner: S) -> Result<Response, Status>
    where
        S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let path = request.uri().path().to_owned();
        let caller = match self.side {
            Side::Socket => Caller::Operator,
            Side::Port => (request.extensions().get::<Remote>()).map_or(Caller::Anyone, |r| r.caller),
        };
        let standing = self.manager.standing(caller, &path)?;
        if !authz::allows(&path, standing) {
            return Err(refusal(&path, standing));
        }
        request.extensions_mut().insert(caller);
        self.sign(&mut request, standing);
        if self.side == Side::Socket {
            if let Some(node) = named(&request)?.filter(|node| *node != self.manager.node_id()) {
                return self.pass_to_host(request, node).await;
            }
            if led(&path) {
                return self.pass_to_leader(request, inner).await;
            }
        }
        let Ok(response) = inner.call(request).await;
        Ok(response)
    }

    /// Writes down who asks, for the history of what changed.
    fn sign(&self, request: &mut Request, standing: Standing) {
        if self.side == Side::Port && standing == Standing::Manager {
            return;
        }
        request.headers_mut().remove(OPERATOR);
        let peer = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|i| i.peer_cred);
        if let Some(peer) = peer.filter(|_| self.side == Side::Socket) {
            let by = format!(
                "{}@{}",
                user_name(peer.uid()),
                self.manager.shared.config.hostname
            );
            if let Ok(by) = http::HeaderValue::from_str(&by) {
                request.headers_mut().insert(OPERATOR, by);
            }
        }
    }

    /// Carries a call out at another host. What is said in both directions passes through as it comes.
    async fn pass_to_host(&self, mut request: Request, node: NodeId) -> Result<Response, Status> {
        let state = self.manager.known().ok_or_else(|| self.no_manager())?;
        let known = state
            .node(node)
            .ok_or_else(|| Status::not_found(format!("node {node} is not part of this cluster")))?;
        request.headers_mut().remove(NODE);
        let hostname = &known.description.hostname;
        let links = &self.manager.shared.links;
        let (mut channel, cut) = links.once(node, &links.address(node, &known.description.address));
        let away = |e: &dyn std::fmt::Display| {
            Status::unavailable(format!(
                "node {hostname} ({}) cannot be reached: {e}",
                known.description.address
            ))
        };
        let ready = std::future::poll_fn(|cx| Service::<Request>::poll_ready(&mut channel, cx));
        tokio::time::timeout(CONNECT_LIMIT, ready)
            .await
            .map_err(|_| away(&"no answer in time"))?
            .map_err(|e| away(&e))?;
        let response = channel.call(request).await.map_err(|e| away(&innermost(&e)))?;
        // Whoever asked may leave in the middle: with the answer goes the connection, and with that what was started.
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &cut;
                frame
            }))
        }))
    }

    /// Carries a call out at the leader, wherever it is, and again after an election.
    async fn pass_to_leader<S>(&self, request: Request, inner: S) -> Result<Response, Status>
    where
        S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let (mut parts, body) = request.into_parts();
        let body = Limited::new(body, REQUEST_MAX + 1024).collect().await;
        let body =
            body.map_err(|_| Status::out_of_range(format!("the request has more than {REQUEST_MAX} bytes")))?;
        let body = body.to_bytes();
        let id = identify(parts.headers.get(REQUEST), parts.uri.path(), &body)?;
        parts.headers.insert(REQUEST, id);
        let began = Instant::now();
        loop {
            let Some(cluster) = self.manager.cluster() else {
                return Err(self.no_manager());
            };
            let log = &cluster.writer.log;
            let role = *log.role().borrow();
            let answer = if role.leader {
                let mut inner = inner.clone();
                let ready = std::future::poll_fn(|cx| inner.poll_ready(cx)).await;
                let Ok(()) = ready;
                let Ok(response) = inner.call(rebuild(&parts, &body)).await;
                Some(response)
            } else if let Some((node, address)) = log.leader() {
                let channel = self.manager.shared.links.to(node, &address);
                let mut role_now = log.role();
                // It broke, or was not answered by the time somebody else leads: whether it was carried out is found
                // out by the next try, as it is the same request.
                tokio::select! {
                    answer = whole(channel, rebuild(&parts, &body)) => answer.ok(),
                    _ = role_now.wait_for(|now| now.leader || now.leader_id != role.leader_id) => None,
                }
            } else {
                None
            };
            if let Some(answer) = answer.filter(|a| !may_be_tried_again(a)) {
                return Ok(answer);
            }
            // Somebody else leads by now: there is nothing to wait for.
            if *log.role().borrow() != role && began.elapsed() < WRITE_LIMIT {
                continue;
            }
            if let Err(error) = log.bear_with(began, WRITE_LIMIT).await {
                return Err(Status::unavailable(error.to_string()));
            }
        }
    }

    fn no_manager(&self) -> Status {
        match *self.manager.membership().borrow() {
            Membership::None => Status::failed_precondition(NOT_IN_CLUSTER),
            Membership::Locked => Status::failed_precondition(NEEDS_UNLOCKING),
            Membership::Worker | Membership::Manager => Status::failed_precondition(NOT_A_MANAGER),
        }
    }
}

/// How long a connection to another host may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(6);

/// Whether a call is carried out by the leader. Reads are not: any manager can answer them.
fn led(path: &str) -> bool {
    const HERE: [&str; 12] = [
        "GetInfo",
        "InitCluster",
        "JoinCluster",
        "LeaveCluster",
        "Unlock",
        "RestoreCluster",
        "List",
        "Get",
        "Watch",
        "ServiceWhy",
        "ServiceHistory",
        "Backup",
    ];
    path.strip_prefix("/rswarm.control.Control/")
        .is_some_and(|method| !HERE.contains(&method))
}

/// Name of a user of this host (passwd(5)), or its number.
fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| uid.to_string())
}

/// The node a call names.
fn named(request: &Request) -> Result<Option<NodeId>, Status> {
    let Some(value) = request.headers().get(NODE) else {
        return Ok(None);
    };
    let node = value.to_str().ok().and_then(|text| text.parse().ok());
    node.map(Some)
        .ok_or_else(|| Status::invalid_argument("the call names a node by what is no id"))
}

fn refusal(path: &str, standing: Standing) -> Status {
    let who = match standing {
        Standing::Anyone => return Status::unauthenticated("this needs the certificate of a node"),
        Standing::Worker => "a worker",
        Standing::Manager => "a manager",
        Standing::Operator => "an operator",
    };
    Status::permission_denied(format!("{path} may not be called by {who}"))
}

/// The id of a request, the client's own or a new one, with the digest of what it asks for.
fn identify(
    given: Option<&http::HeaderValue>,
    path: &str,
    body: &Bytes,
) -> Result<http::HeaderValue, Status> {
    use model::ids::IdSource;
    let id = match given {
        None => crate::writer::RandomIds.next_id(),
        Some(text) => (text.to_str().ok())
            .and_then(|text| u128::from_str_radix(text, 16).ok())
            .filter(|id| *id != 0)
            .ok_or_else(|| Status::invalid_argument("the id of a request has 1 to 32 hexadecimal digits"))?,
    };
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(path.as_bytes());
    context.update(body);
    let digest = context.finish();
    let digest = digest
        .as_ref()
        .iter()
        .take(8)
        .fold(0u64, |all, byte| (all << 8) | u64::from(*byte));
    http::HeaderValue::from_str(&format!("{id:032x}-{digest:016x}"))
        .map_err(|e| Status::internal(e.to_string()))
}

fn rebuild(parts: &http::request::Parts, body: &Bytes) -> Request {
    let mut request = http::Request::new(Body::new(Full::new(body.clone())));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    *request.extensions_mut() = parts.extensions.clone();
    request
}

/// Calls and waits for all of the answer: one that is cut off is none.
async fn whole(mut channel: tonic::transport::Channel, request: Request) -> Result<Response, ()> {
    let ready = std::future::poll_fn(|cx| Service::<Request>::poll_ready(&mut channel, cx));
    tokio::time::timeout(CONNECT_LIMIT, ready)
        .await
        .map_err(drop)?
        .map_err(drop)?;
    let call = async {
        let (parts, body) = channel.call(request).await.map_err(drop)?.into_parts();
        let body: Collected<Bytes> = Limited::new(body, ANSWER_MAX).collect().await.map_err(drop)?;
        Ok(http::Response::from_parts(parts, again(body)))
    };
    tokio::time::timeout(WRITE_LIMIT, call).await.map_err(drop)?
}

/// A collected body as one that can be sent, with its trailers: there gRPC says how the call ended.
fn again(body: Collected<Bytes>) -> Body {
    let trailers = body.trailers().cloned().map(Ok);
    Body::new(Full::new(body.to_bytes()).with_trailers(std::future::ready(trailers)))
}

fn may_be_tried_again(response: &Response) -> bool {
    let headers = response.headers();
    let unavailable = headers.get("grpc-status").and_then(|v| v.to_str().ok());
    unavailable == Some(&(Code::Unavailable as i32).to_string()) && headers.contains_key(RETRY)
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_the_leaders_and_reads_are_anybodys() {
        for (path, wanted) in [
            ("/rswarm.control.Control/Create", true),
            ("/rswarm.control.Control/DeployStack", true),
            ("/rswarm.control.Control/JoinToken", true),
            ("/rswarm.control.Control/List", false),
            ("/rswarm.control.Control/Watch", false),
            ("/rswarm.control.Control/InitCluster", false),
            ("/rswarm.host.Host/Exec", false),
        ] {
            assert_eq!(led(path), wanted, "{path}");
        }
    }
}
