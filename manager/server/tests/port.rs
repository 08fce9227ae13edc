//! The port of a manager: who may call what, and what becomes of certificates, tokens and messages that are not right.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use manager_server::{Manager, ManagerConfig, Side};
use model::NodeId;
use model::ids::IdSource;
use proto::authz::{self, Standing};
use proto::ca::ca_client::CaClient;
use proto::channel::{self, Expect};
use proto::control::control_client::ControlClient;
use proto::identity::{self, Keychain, Papers};
use proto::raft::raft_client::RaftClient;
use proto::status::leader_of;
use proto::{ca, control, raft, types};
use tokio::io::AsyncReadExt;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::Service;

/// A manager with its port open, and its socket.
struct Node {
    manager: Manager,
    address: String,
    control: ControlClient<Channel>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(ManagerConfig {
            data_dir: dir.path().to_path_buf(),
            hostname: "host".into(),
            level: model::Level::OURS,
        })
        .await
        .unwrap();
        let control = socket(&manager, dir.path()).await;
        Self {
            manager,
            address: String::new(),
            control,
            _dir: dir,
        }
    }

    async fn init() -> Self {
        let mut node = Self::start().await;
        let request = control::InitClusterRequest {
            listen_addr: "127.0.0.1:0".into(),
            ..control::InitClusterRequest::default()
        };
        node.address = node
            .control
            .init_cluster(request)
            .await
            .unwrap()
            .into_inner()
            .address;
        node.serve();
        node
    }

    async fn info(&mut self) -> control::Info {
        let asked = self.control.get_info(control::GetInfoRequest {});
        asked.await.unwrap().into_inner()
    }

    fn serve(&self) {
        let listener = self.manager.take_listener().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let connections = proto::listener::accept(listener, self.manager.keychain().clone());
        let (control, dispatcher) = self.manager.services();
        let (ca, raft) = self.manager.port_services();
        let router = proto::listener::server()
            .layer(self.manager.gate(Side::Port))
            .add_service(ca)
            .add_service(raft)
            .add_service(dispatcher)
            .add_service(control);
        let incoming = tokio_stream::wrappers::ReceiverStream::new(connections);
        tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
    }

    async fn token(&mut self, manager: bool) -> String {
        let request = control::JoinTokenRequest {
            manager,
            ..control::JoinTokenRequest::default()
        };
        self.control.join_token(request).await.unwrap().into_inner().token
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        identity::roots(&self.manager.keychain().identity().unwrap().papers.authorities).unwrap()
    }

    async fn stranger(&self) -> Channel {
        channel::connect_stranger(&self.address, self.roots())
            .await
            .unwrap()
    }

    async fn issue(&self, request: ca::IssueRequest) -> Result<ca::IssueReply, Status> {
        let mut client = CaClient::new(self.stranger().await);
        Ok(client.issue(request).await?.into_inner())
    }

    /// A node that has joined, ready to call.
    async fn joined(&mut self, manager: bool) -> Member {
        let token = self.token(manager).await;
        let secret = token.rsplit('-').next().unwrap().to_owned();
        let (request, key, node) = request(secret);
        let reply = self.issue(request).await.unwrap();
        Member::new(node, key, reply.certificates, reply.authorities)
    }
}

async fn socket(manager: &Manager, dir: &Path) -> ControlClient<Channel> {
    let path = dir.join("sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (control, _) = manager.services();
    let router = proto::listener::server()
        .layer(manager.gate(Side::Socket))
        .add_service(control);
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
    ControlClient::new(channel::connect(&path).await.unwrap())
}

/// A host's request for a certificate, its key and its id.
fn request(token: String) -> (ca::IssueRequest, String, NodeId) {
    let node = NodeId(manager_server::RandomIds.next_id());
    let key = identity::new_key().unwrap();
    let request = ca::IssueRequest {
        token,
        node_id: node.to_string(),
        csr: identity::request(&key).unwrap(),
        hostname: "joiner".into(),
        address: "10.0.0.9:2377".into(),
        level: model::Level::OURS.number(),
        ..ca::IssueRequest::default()
    };
    (request, key, node)
}

struct Member {
    node: NodeId,
    key: String,
    keychain: Keychain,
}

impl Member {
    fn new(node: NodeId, key: String, certificates: String, authorities: String) -> Self {
        let keychain = Keychain::new(Path::new("/nonexistent"));
        let papers = Papers {
            key: key.clone(),
            certificates,
            authorities,
        };
        keychain.use_papers(papers).unwrap();
        Self { node, key, keychain }
    }

    async fn channel(&self, node: &Node) -> Result<Channel, String> {
        let connected = channel::connect_node(&self.keychain, &node.address, Expect::Manager).await;
        connected.map_err(|e| e.chain())
    }
}

/// Calls an rpc with an empty message; answers how it ended.
async fn call(channel: &Channel, path: &str) -> Code {
    let mut channel = channel.clone();
    let request = http::Request::post(format!("http://x{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(http_body_util::Full::new(bytes::Bytes::from_static(
            &[0; 5],
        ))))
        .unwrap();
    std::future::poll_fn(|cx| Service::<http::Request<Body>>::poll_ready(&mut channel, cx))
        .await
        .unwrap();
    let answer = async {
        let response = channel.call(request).await.map_err(|_| Code::Unknown)?;
        let status = |headers: &http::HeaderMap| Status::from_header_map(headers).map(|s| s.code());
        if let Some(code) = status(response.headers()) {
            return Ok::<_, Code>(code);
        }
        let body = response.into_body().collect().await.map_err(|_| Code::Unknown)?;
        Ok(body.trailers().and_then(status).unwrap_or(Code::Unknown))
    };
    // A stream that goes on was let in.
    match tokio::time::timeout(Duration::from_millis(300), answer).await {
        Ok(Ok(code)) | Ok(Err(code)) => code,
        Err(_) => Code::Ok,
    }
}

fn refused(code: Code) -> bool {
    matches!(code, Code::PermissionDenied | Code::Unauthenticated)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_is_open_to_those_in_its_table_and_to_nobody_else() {
    let mut node = Node::init().await;
    let worker = node.joined(false).await;
    let manager = node.joined(true).await;
    let callers: BTreeMap<&str, (Standing, Channel)> = BTreeMap::from([
        ("anyone", (Standing::Anyone, node.stranger().await)),
        ("worker", (Standing::Worker, worker.channel(&node).await.unwrap())),
        (
            "manager",
            (Standing::Manager, manager.channel(&node).await.unwrap()),
        ),
    ]);
    let before = node.manager.keychain().node();
    let mut cells = 0;
    for (path, _) in authz::TABLE {
        // These would take a node out of the cluster, or are only said to this host.
        let skip = path.ends_with("/Leave");
        for (name, (standing, channel)) in &callers {
            if skip && authz::allows(path, *standing) {
                continue;
            }
            let code = call(channel, path).await;
            let allowed = authz::allows(path, *standing);
            // What is let in may still be refused for its content, but not like this: an empty token is no node's.
            let content = allowed && path.ends_with("Ca/Issue");
            assert!(
                content || allowed != refused(code),
                "{name} calls {path}: {code:?}"
            );
            cells += 1;
        }
    }
    assert!(cells > 150, "{cells}");
    assert_eq!(node.manager.keychain().node(), before);
    let info = node.info().await;
    assert!(info.leader && info.nodes == 3, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_or_demoted_is_refused_at_its_next_call() {
    let mut node = Node::init().await;
    let worker = node.joined(false).await;
    let manager = node.joined(true).await;
    let channel = worker.channel(&node).await.unwrap();
    assert!(!refused(
        call(&channel, "/rswarm.dispatch.Dispatcher/Heartbeat").await
    ));
    let remove = control::RemoveRequest {
        kind: types::Kind::Node.into(),
        references: vec![worker.node.to_string()],
        force: true,
    };
    node.control.remove(remove).await.unwrap();
    // On the connection that stands, and on a new one.
    assert_eq!(
        call(&channel, "/rswarm.dispatch.Dispatcher/Heartbeat").await,
        Code::PermissionDenied
    );
    let again = worker.channel(&node).await.unwrap();
    assert_eq!(call(&again, "/rswarm.ca.Ca/Renew").await, Code::PermissionDenied);

    let channel = manager.channel(&node).await.unwrap();
    assert!(!refused(call(&channel, "/rswarm.control.Control/List").await));
    let worker_again = types::NodeSpec::default();
    let update = control::UpdateRequest {
        reference: manager.node.to_string(),
        spec: Some(control::Spec {
            spec: Some(control::spec::Spec::Node(worker_again)),
        }),
        ..control::UpdateRequest::default()
    };
    node.control.update(update).await.unwrap();
    for path in [
        "/rswarm.control.Control/List",
        "/rswarm.raft.Raft/Vote",
        "/rswarm.raft.Raft/AppendOnce",
    ] {
        assert_eq!(call(&channel, path).await, Code::PermissionDenied, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_belongs_to_another_cluster_gets_no_connection() {
    let mut node = Node::init().await;
    let mut other = Node::init().await;
    let foreign = other.joined(true).await;
    // It does not trust us, nor we it.
    let error = foreign.channel(&node).await.unwrap_err();
    assert!(error.contains("E_TLS"), "{error}");
    // One that would trust us is cut off in the handshake, or at its first call.
    let own = node.joined(false).await;
    let mixed = Member::new(
        foreign.node,
        foreign.key.clone(),
        foreign.keychain.identity().unwrap().papers.certificates.clone(),
        own.keychain.identity().unwrap().papers.authorities.clone(),
    );
    match mixed.channel(&node).await {
        Err(_) => {}
        Ok(channel) => assert!(call(&channel, "/rswarm.control.Control/List").await != Code::Ok),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_let_in_as_what_they_say_for_as_long_as_they_say() {
    let mut node = Node::init().await;
    let worker = node.joined(false).await;
    let subject = worker.keychain.identity().unwrap().subject.clone();
    assert_eq!(subject.role, model::object::NodeRole::Worker);
    // Asked for again with the same key it is the same node; with another it is somebody else.
    let secret = node.token(false).await.rsplit('-').next().unwrap().to_owned();
    let (mut again, _, _) = request(secret.clone());
    again.node_id = worker.node.to_string();
    assert_eq!(
        node.issue(again.clone()).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    again.csr = identity::request(&worker.key).unwrap();
    node.issue(again).await.unwrap();
    // One use, then none.
    let make = control::JoinTokenRequest {
        make: true,
        uses: 1,
        ..control::JoinTokenRequest::default()
    };
    let once = node.control.join_token(make).await.unwrap().into_inner().token;
    let once = once.rsplit('-').next().unwrap().to_owned();
    node.issue(request(once.clone()).0).await.unwrap();
    let error = node.issue(request(once).0).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("E_TOKEN_EXPIRED"), "{error:?}");
    // Labels only where the token allows them.
    let (mut labelled, _, _) = request(secret.clone());
    labelled.labels.insert("zone".into(), "a".into());
    let error = node.issue(labelled).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    // Rotated out.
    let rotate = control::JoinTokenRequest {
        rotate: true,
        ..control::JoinTokenRequest::default()
    };
    node.control.join_token(rotate).await.unwrap();
    let error = node.issue(request(secret).0).await.unwrap_err();
    assert!(error.message().contains("E_TOKEN_INVALID"), "{error:?}");
    // Who goes on guessing has to wait.
    let mut last = error;
    for _ in 0..6 {
        last = node.issue(request("0".repeat(25)).0).await.unwrap_err();
    }
    assert_eq!(last.code(), Code::ResourceExhausted, "{last:?}");
    assert!(leader_of(&last).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_certificates_that_are_not_right_make_no_node() {
    let mut node = Node::init().await;
    let secret = node.token(true).await.rsplit('-').next().unwrap().to_owned();
    let good = identity::request(&identity::new_key().unwrap()).unwrap();
    let mut broken = good.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    for (name, csr) in [
        ("empty", vec![]),
        ("1 MiB", vec![0; 1 << 20]),
        ("another's signature", broken),
    ] {
        let (mut asked, _, _) = request(secret.clone());
        asked.csr = csr;
        let error = node.issue(asked).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error:?}");
    }
    for id in ["", "x", "../../x", &"0".repeat(26)] {
        let (mut asked, _, _) = request(secret.clone());
        asked.node_id = id.into();
        assert_eq!(
            node.issue(asked).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{id}"
        );
    }
    for address in ["", "a b", "http://x", "10.0.0.1:99999"] {
        let (mut asked, _, _) = request(secret.clone());
        asked.address = address.into();
        assert_eq!(
            node.issue(asked).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{address}"
        );
    }
    let info = node.info().await;
    assert_eq!(info.nodes, 1, "no row without a certificate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_has_ended_gets_another_with_its_own_key_alone() {
    let mut node = Node::init().await;
    let worker = node.joined(false).await;
    let (mut asked, _, _) = request(String::new());
    asked.node_id = worker.node.to_string();
    let error = node.issue(asked.clone()).await.unwrap_err();
    assert_eq!(
        error.code(),
        Code::PermissionDenied,
        "a key that is another's: {error:?}"
    );
    asked.csr = identity::request(&worker.key).unwrap();
    let reply = node.issue(asked.clone()).await.unwrap();
    let renewed = Member::new(
        worker.node,
        worker.key.clone(),
        reply.certificates,
        reply.authorities,
    );
    assert!(!refused(
        call(&renewed.channel(&node).await.unwrap(), "/rswarm.ca.Ca/Renew").await
    ));
    asked.node_id = NodeId(99).to_string();
    assert_eq!(
        node.issue(asked).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_take_no_votes_that_would_end_the_terms_and_no_message_for_others() {
    let mut node = Node::init().await;
    let manager = node.joined(true).await;
    let mut client = RaftClient::new(manager.channel(&node).await.unwrap());
    let own = client
        .status(raft::StatusRequest { barrier: false })
        .await
        .unwrap()
        .into_inner();
    let cluster_id = node
        .manager
        .keychain()
        .identity()
        .unwrap()
        .subject
        .cluster
        .to_string();
    let vote = |target, cluster_id: &str, term| raft::VoteRequest {
        target,
        cluster_id: cluster_id.into(),
        vote: Some(raft::VoteOf {
            term,
            node: 7,
            committed: false,
        }),
        last: None,
        transfer: false,
    };
    for (target, cluster, term, wanted) in [
        (own.raft_id, cluster_id.as_str(), u64::MAX, "E_TERM_JUMP"),
        (own.raft_id + 1, cluster_id.as_str(), 2, "E_WRONG_TARGET"),
        (own.raft_id, "another", 2, "E_WRONG_TARGET"),
    ] {
        let error = client.vote(vote(target, cluster, term)).await.unwrap_err();
        assert!(error.message().contains(wanted), "{error:?}");
    }
    let after = client
        .status(raft::StatusRequest { barrier: false })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(after.term, own.term);
    // A snapshot that is cut off is refused, and the state is as it was.
    let head = raft::SnapshotHead {
        target: own.raft_id,
        cluster_id: cluster_id.clone(),
        vote: Some(raft::VoteOf {
            term: own.term,
            node: own.raft_id,
            committed: true,
        }),
        last: Some(raft::LogId {
            term: own.term,
            index: 1_000_000,
        }),
        ..raft::SnapshotHead::default()
    };
    let piece = raft::SnapshotPiece {
        head: Some(head),
        data: b"RSWSNP\r\nrubbish".to_vec(),
    };
    let error = client.snapshot(tokio_stream::iter([piece])).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error:?}");
    let info = node.info().await;
    assert!(info.leader && info.nodes == 2, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_again_is_carried_out_once() {
    let mut node = Node::init().await;
    let create = |name: &str| control::CreateRequest {
        spec: Some(control::Spec {
            spec: Some(control::spec::Spec::Config(types::ConfigSpec {
                name: name.into(),
                data: b"x".to_vec(),
                ..types::ConfigSpec::default()
            })),
        }),
        ..control::CreateRequest::default()
    };
    let with_id = |name: &str, id: &str| {
        let mut request = tonic::Request::new(create(name));
        request
            .metadata_mut()
            .insert(manager_server::REQUEST, id.parse().unwrap());
        request
    };
    let first = node
        .control
        .create(with_id("c", "abc1"))
        .await
        .unwrap()
        .into_inner();
    let again = node
        .control
        .create(with_id("c", "abc1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let other = node.control.create(with_id("d", "abc1")).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert!(other.message().contains("E_REQID_REUSE"), "{other:?}");
    assert_eq!(
        node.control
            .create(with_id("c", "abc2"))
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
    assert_eq!(
        node.control
            .create(with_id("e", "no id"))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_tls_1_3_is_cut_off_without_a_word() {
    let node = Node::init().await;
    for hello in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // A record of TLS 1.0 that is not one.
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x80\x2e\x01\x00\x02",
    ] {
        let mut stream = tokio::net::TcpStream::connect(&node.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, hello)
            .await
            .unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{hello:?} is not cut off");
        // At most an alert of TLS.
        assert!(answer.len() <= 7, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_have_a_bounded_number_of_connections_and_others_are_served_all_the_same() {
    let mut node = Node::init().await;
    let worker = node.joined(false).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        if let Ok(stream) = tokio::net::TcpStream::connect(&node.address).await {
            idle.push(stream);
        }
    }
    // The idle ones are let go in time, and who has a certificate comes in then at the latest.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    loop {
        if let Ok(channel) = worker.channel(&node).await
            && !refused(call(&channel, "/rswarm.dispatch.Dispatcher/Heartbeat").await)
        {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the port is blocked by idle connections"
        );
    }
    drop(idle);
}
