//! Real servers over unix sockets: honest, busy, dying and lying ones.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use image::BuildRequest;
use model::spec::ImageRef;
use proto::images as w;
use proto::images::images_client::ImagesClient;
use proto::images::images_server::{Images, ImagesServer};
use tokio::sync::{Barrier, Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::images::{ImagesService, PIECE, TRANSFERS_MAX};

const LIMIT: Duration = Duration::from_secs(60);

/// What a node does beside serving.
#[derive(Clone)]
enum Manners {
    Honest,
    /// Breaks the stream off after so many bytes.
    Dies(u64),
    /// Changes a bit in the piece with this number.
    Lies(usize),
    /// Takes the call and sends nothing.
    Silent,
    /// Sends once so many transfers are open in all.
    Together(Arc<Barrier>),
    /// Describes once this happened.
    Late(Arc<Notify>),
}

#[derive(Default)]
struct Counts {
    /// Layer and offset of each transfer.
    fetched: Mutex<Vec<(String, u64)>>,
    begun: Arc<Notify>,
}

/// The service as it is, with manners.
struct Server {
    inner: ImagesServer<ImagesService>,
    client: tokio::sync::OnceCell<ImagesClient<Channel>>,
    socket: PathBuf,
    manners: Manners,
    counts: Arc<Counts>,
}

impl Server {
    /// The real service, behind a socket of its own.
    async fn real(&self) -> ImagesClient<Channel> {
        let connect = || async {
            let listener = tokio::net::UnixListener::bind(&self.socket).expect("a socket");
            let router = tonic::transport::Server::builder().add_service(self.inner.clone());
            tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
            let channel = proto::channel::connect(&self.socket).await.expect("it answers");
            ImagesClient::new(channel)
        };
        self.client.get_or_init(connect).await.clone()
    }
}

#[tonic::async_trait]
impl Images for Server {
    type FetchStream = ReceiverStream<Result<w::Piece, Status>>;

    async fn describe(&self, r: Request<w::DescribeRequest>) -> Result<Response<w::Description>, Status> {
        if let Manners::Late(notify) = &self.manners {
            notify.notified().await;
        }
        self.real().await.describe(r).await
    }

    async fn fetch(&self, r: Request<w::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let request = r.get_ref().clone();
        let mut stream = self.real().await.fetch(r).await?.into_inner();
        let asked = (request.diff_id, request.offset);
        self.counts
            .fetched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(asked);
        self.counts.begun.notify_one();
        let (sender, receiver) = mpsc::channel(1);
        let manners = self.manners.clone();
        tokio::spawn(async move {
            if let Manners::Together(barrier) = &manners {
                barrier.wait().await;
            }
            if matches!(manners, Manners::Silent) {
                sender.closed().await;
            }
            let (mut sent, mut pieces) = (0, 0);
            while let Ok(Some(mut piece)) = stream.message().await {
                sent += piece.data.len() as u64;
                match manners {
                    Manners::Dies(after) if sent > after => {
                        let _ = sender.send(Err(Status::unavailable("power loss"))).await;
                        return;
                    }
                    Manners::Lies(at) if pieces == at => piece.data[1_000] ^= 4,
                    _ => {}
                }
                pieces += 1;
                if sender.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A node of the test.
struct Node {
    dir: tempfile::TempDir,
    store: ImageStore,
    counts: Arc<Counts>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ImageStore::open(&dir.path().join("store")).expect("a store");
        Self {
            dir,
            store,
            counts: Arc::default(),
        }
    }

    fn serving(manners: Manners) -> Self {
        let node = Self::new();
        let server = Server {
            inner: ImagesService::server(node.store.clone(), None),
            client: tokio::sync::OnceCell::new(),
            socket: node.dir.path().join("real"),
            manners,
            counts: node.counts.clone(),
        };
        let listener = tokio::net::UnixListener::bind(node.socket()).expect("a socket");
        let router = tonic::transport::Server::builder().add_service(ImagesServer::new(server));
        tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
        node
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// An image of one layer for each length, with content of no pattern.
    fn build(&self, tag: &str, layers: &[usize]) -> String {
        let mut context = tar::Builder::new(Vec::new());
        let mut dockerfile = "FROM scratch\n".to_owned();
        for (i, length) in layers.iter().enumerate() {
            let name = format!("f{i}");
            dockerfile.push_str(&format!("COPY {name} /{name}\n"));
            append(&mut context, &name, &noise(i as u64 + 1, *length));
        }
        append(&mut context, "Dockerfile", dockerfile.as_bytes());
        let context = context.into_inner().expect("a context");
        let request = BuildRequest {
            tags: vec![tag.to_owned()],
            ..BuildRequest::default()
        };
        let built = self.store.build(&context[..], &request, &mut |_| {});
        built.expect("an image")
    }

    fn offsets(&self) -> Vec<u64> {
        let fetched = self.counts.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.iter().map(|(_, offset)| *offset).collect()
    }

    /// Layers, packed layers and work in progress.
    fn kept(&self) -> [usize; 3] {
        let files = |f: &str| std::fs::read_dir(self.dir.path().join("store").join(f)).expect("a folder");
        ["layers", "blobs", "tmp"].map(|f| files(f).count())
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append_data(&mut header, name, content).expect("append");
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[derive(Debug)]
struct Sockets;

#[tonic::async_trait]
impl Peers for Sockets {
    async fn connect(&self, _: NodeId, address: &str) -> Result<Channel, String> {
        proto::channel::connect(Path::new(address))
            .await
            .map_err(|e| e.to_string())
    }
}

/// A manager that knows one image.
#[derive(Default)]
struct Manager {
    found: Found,
    asked: AtomicUsize,
}

#[tonic::async_trait]
impl Finder for Manager {
    async fn find(&self, _: &str) -> Result<Found, FindError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.found.id.is_empty() {
            return Err(FindError::Nobody);
        }
        Ok(self.found.clone())
    }
}

fn manager(id: &str, nodes: &[&Node]) -> Arc<Manager> {
    let sources = nodes.iter().zip(1..);
    let found = Found {
        id: id.to_owned(),
        sources: sources
            .map(|(node, n)| (NodeId(n), node.socket().display().to_string()))
            .collect(),
    };
    Arc::new(Manager {
        found,
        asked: AtomicUsize::new(0),
    })
}

fn fetcher(to: &Node, manager: &Arc<Manager>) -> Arc<Fetcher> {
    Arc::new(Fetcher::new(
        to.store.clone(),
        Some(Arc::new(Sockets)),
        manager.clone(),
    ))
}

/// Waits for the end of a fetch.
async fn end(mut flight: watch::Receiver<Flight>) -> Result<(), String> {
    let over = flight.wait_for(|f| matches!(f, Flight::Over(_)));
    let state = tokio::time::timeout(LIMIT, over).await.expect("it ends");
    match &*state.expect("it says how it ended") {
        Flight::Over(result) => result.clone(),
        Flight::Looking | Flight::Moving(..) => unreachable!("it was waited for"),
    }
}

fn same(a: &Node, b: &Node, reference: &str) {
    let (x, y) = (a.store.resolve(reference), b.store.resolve(reference));
    let (x, y) = (x.expect("there"), y.expect("here"));
    assert_eq!(x.id, y.id);
    assert_eq!(x.layers.len(), y.layers.len());
    for (x, y) in x.layers.iter().zip(&y.layers) {
        for entry in std::fs::read_dir(x).expect("a layer") {
            let name = entry.expect("a file").file_name();
            let read = |layer: &Path| std::fs::read(layer.join(&name)).expect("a file");
            assert!(read(x) == read(y), "{}", name.display());
        }
    }
    assert!(b.store.offer(&y.id).is_some(), "it can be sent on from here");
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers keep owners, which needs root");
    }
    root
}

/// Waits until something is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_layers_come_from_three_nodes_at_the_same_time() {
    if !is_root() {
        return;
    }
    // None of them sends anything before all three are asked for a layer.
    let barrier = Arc::new(Barrier::new(3));
    let nodes: Vec<Node> = (0..3)
        .map(|_| Node::serving(Manners::Together(barrier.clone())))
        .collect();
    let build = |node: &Node| node.build("shop/web:1", &[600_000, 700_000, 800_000]);
    let ids: Vec<String> = nodes.iter().map(build).collect();
    let (here, manager) = (Node::new(), manager(&ids[0], &[&nodes[0], &nodes[1], &nodes[2]]));
    end(fetcher(&here, &manager).get("shop/web:1"))
        .await
        .expect("it comes");
    same(&nodes[0], &here, "shop/web:1");
    for node in &nodes {
        assert_eq!(node.offsets(), [0], "one layer from each");
    }
    assert_eq!(here.kept(), [3, 3, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_dies_another_goes_on_where_it_was() {
    if !is_root() {
        return;
    }
    let first = Node::serving(Manners::Dies(2_000_000));
    let second = Node::serving(Manners::Late(first.counts.begun.clone()));
    let id = first.build("web:1", &[5_000_000]);
    assert_eq!(second.build("web:1", &[5_000_000]), id);
    let (here, manager) = (Node::new(), manager(&id, &[&first, &second]));
    end(fetcher(&here, &manager).get("web:1"))
        .await
        .expect("it comes");
    same(&second, &here, "web:1");
    assert_eq!(first.offsets(), [0]);
    let offsets = second.offsets();
    assert!(
        matches!(offsets[..], [from] if (1_500_000..=2_000_000).contains(&from)),
        "{offsets:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_is_found_out_and_not_asked_again() {
    if !is_root() {
        return;
    }
    for at in [0, 3, 7] {
        let liar = Node::serving(Manners::Lies(at));
        let honest = Node::serving(Manners::Late(liar.counts.begun.clone()));
        let id = liar.build("web:1", &[2_000_000, 500]);
        honest.build("web:1", &[2_000_000, 500]);
        let (here, manager) = (Node::new(), manager(&id, &[&liar, &honest]));
        end(fetcher(&here, &manager).get("web:1"))
            .await
            .expect("it comes");
        same(&honest, &here, "web:1");
        assert!(honest.offsets().contains(&0), "the whole layer anew: piece {at}");
        assert_eq!(here.kept(), [2, 2, 0]);
    }
    let liars = [Node::serving(Manners::Lies(1)), Node::serving(Manners::Lies(2))];
    let id = liars[0].build("web:1", &[2_000_000]);
    liars[1].build("web:1", &[2_000_000]);
    let (here, manager) = (Node::new(), manager(&id, &[&liars[0], &liars[1]]));
    let error = end(fetcher(&here, &manager).get("web:1")).await;
    assert_eq!(error, Err("no node that has it could send it whole".into()));
    assert_eq!(here.kept(), [0, 0, 0], "nothing of it is kept");
    assert!(here.store.resolve("web:1").is_err());
    assert_eq!((liars[0].offsets(), liars[1].offsets()), (vec![0], vec![0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_left_after_its_time() {
    if !is_root() {
        return;
    }
    let silent = Node::serving(Manners::Silent);
    let second = Node::serving(Manners::Late(silent.counts.begun.clone()));
    let id = silent.build("web:1", &[100_000]);
    second.build("web:1", &[100_000]);
    let (here, manager) = (Node::new(), manager(&id, &[&silent, &second]));
    end(fetcher(&here, &manager).get("web:1"))
        .await
        .expect("it comes");
    assert_eq!((silent.offsets(), second.offsets()), (vec![0], vec![0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_tasks_fetch_an_image_once_and_images_share_layers() {
    if !is_root() {
        return;
    }
    let node = Node::serving(Manners::Honest);
    let id = node.build("web:1", &[3_000_000, 400_000]);
    // The first layer is the same.
    let other = node.build("other:1", &[3_000_000]);
    let here = Node::new();
    let (web, third) = (manager(&id, &[&node]), manager(&other, &[&node]));
    let fetcher_of_web = fetcher(&here, &web);
    let waits: Vec<_> = (0..10).map(|_| fetcher_of_web.get("web:1")).collect();
    for flight in waits {
        end(flight).await.expect("it comes");
    }
    assert_eq!(web.asked.load(Ordering::SeqCst), 1);
    assert_eq!(node.offsets(), [0, 0], "each layer once");
    end(fetcher(&here, &third).get("other:1"))
        .await
        .expect("it comes");
    assert_eq!(node.offsets(), [0, 0], "its layer was here");
    same(&node, &here, "other:1");
    assert!(fetcher_of_web.flights().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_at_the_same_time_fetch_their_common_layer_once() {
    if !is_root() {
        return;
    }
    struct Two(BTreeMap<String, Found>);
    #[tonic::async_trait]
    impl Finder for Two {
        async fn find(&self, reference: &str) -> Result<Found, FindError> {
            self.0.get(reference).cloned().ok_or(FindError::Nobody)
        }
    }
    let node = Node::serving(Manners::Honest);
    let ids = [
        node.build("a:1", &[4_000_000, 100]),
        node.build("b:1", &[4_000_000]),
    ];
    let found = |id: &String| manager(id, &[&node]).found.clone();
    let two = Two(BTreeMap::from([
        ("a:1".into(), found(&ids[0])),
        ("b:1".into(), found(&ids[1])),
    ]));
    let here = Node::new();
    let both = Arc::new(Fetcher::new(
        here.store.clone(),
        Some(Arc::new(Sockets)),
        Arc::new(two),
    ));
    let (a, b) = (both.get("a:1"), both.get("b:1"));
    let (a, b) = tokio::join!(end(a), end(b));
    assert_eq!((a, b), (Ok(()), Ok(())));
    assert_eq!(node.offsets(), [0, 0], "two layers, twice wanted the one");
    same(&node, &here, "a:1");
    same(&node, &here, "b:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_said_and_names_are_given_sparingly() {
    if !is_root() {
        return;
    }
    let (node, here) = (Node::serving(Manners::Honest), Node::new());
    let nobody = fetcher(&here, &Arc::default());
    assert_eq!(
        end(nobody.get("x:1")).await,
        Err("no node of the cluster has it".into())
    );
    let id = node.build("web:1", &[1_000]);
    let manager = manager(&id, &[&node]);
    let alone = Arc::new(Fetcher::new(here.store.clone(), None, manager.clone()));
    assert!(end(alone.get("web:1")).await.is_err(), "nobody can be reached");
    let with_peers = fetcher(&here, &manager);
    let pinned = format!("web:1@{id}");
    end(with_peers.get(&pinned)).await.expect("it comes");
    assert_eq!(here.store.resolve(&pinned).expect("here").id, id);
    assert!(
        here.store.resolve("web:1").is_err(),
        "a name is not given by a digest"
    );
    end(with_peers.get("web:1")).await.expect("it is here");
    assert_eq!(here.store.resolve("web:1").expect("named").id, id);
    assert_eq!(node.offsets(), [0], "nothing was fetched again");
    assert_eq!(names_for(&id, &id), None);
    assert_eq!(names_for(&id[7..15], &id), None);
    // Both parsers read a name in the same way.
    for name in [
        "busybox",
        "docker.io/library/a:1",
        "docker.io/x/y",
        "r:5000/a/b",
        "r.io/a:v1",
    ] {
        let reference: Reference = name.parse().expect("a name");
        assert_eq!(ImageRef::parse(name).key(), reference.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_nobody_waits_for_is_given_up_without_a_trace() {
    if !is_root() {
        return;
    }
    let node = Node::serving(Manners::Silent);
    let id = node.build("web:1", &[100_000]);
    let (here, manager) = (Node::new(), manager(&id, &[&node]));
    let fetcher = fetcher(&here, &manager);
    let flight = fetcher.get("web:1");
    until("the transfer begins", || node.offsets() == [0]).await;
    assert_eq!(here.kept()[2], 1);
    drop(flight);
    until("it is given up", || fetcher.flights().is_empty()).await;
    until("nothing is left", || here.kept() == [0, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_eight_at_once_and_the_ninth_waits_its_turn() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let id = node.build("web:1", &[12_000_000]);
    let listener = tokio::net::UnixListener::bind(node.socket()).expect("a socket");
    let router =
        tonic::transport::Server::builder().add_service(ImagesService::server(node.store.clone(), None));
    tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
    let channel = proto::channel::connect(&node.socket()).await.expect("it answers");
    let mut client = ImagesClient::new(channel.clone());
    let described = client
        .describe(w::DescribeRequest {
            reference: id.clone(),
        })
        .await;
    let layer = described.expect("described").into_inner().layers.remove(0);
    let request = |offset| w::FetchRequest {
        diff_id: layer.diff_id.clone(),
        offset,
    };
    let mut open = Vec::new();
    for _ in 0..TRANSFERS_MAX {
        // Each over a connection of its own: streams that nobody reads fill the window of the one they share.
        let channel = proto::channel::connect(&node.socket()).await.expect("it answers");
        let mut client = ImagesClient::new(channel);
        open.push(client.fetch(request(0)).await.expect("served").into_inner());
    }
    let refused = client.fetch(request(0)).await.expect_err("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (here, manager) = (Node::new(), manager(&id, &[&node]));
    let flight = fetcher(&here, &manager).get("web:1");
    until("the manager is asked for others", || {
        manager.asked.load(Ordering::SeqCst) > 1
    })
    .await;
    let mut bytes = 0;
    let mut first = open.pop().expect("one");
    while let Some(piece) = first.message().await.expect("it goes on") {
        assert!(piece.data.len() <= PIECE);
        bytes += piece.data.len() as u64;
    }
    assert_eq!(bytes, layer.bytes);
    end(flight).await.expect("then it is its turn");
    same(&node, &here, "web:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_make_no_sense_are_refused() {
    if !is_root() {
        return;
    }
    let node = Node::serving(Manners::Honest);
    let id = node.build("web:1", &[1_000]);
    let channel = proto::channel::connect(&node.socket()).await.expect("it answers");
    let mut client = ImagesClient::new(channel);
    let layer = node.store.offer(&id).expect("offered").layers.remove(0);
    let unknown = format!("sha256:{}", "0".repeat(64));
    for (diff_id, offset, want) in [
        ("", 0, Code::InvalidArgument),
        ("sha256:../../images/x", 0, Code::InvalidArgument),
        ("../../../etc/passwd", 0, Code::InvalidArgument),
        (unknown.as_str(), 0, Code::NotFound),
        (&layer.diff_id, layer.bytes + 1, Code::OutOfRange),
        (&layer.diff_id, u64::MAX, Code::OutOfRange),
    ] {
        let request = w::FetchRequest {
            diff_id: diff_id.into(),
            offset,
        };
        let got = client.fetch(request).await.expect_err(diff_id);
        assert_eq!(got.code(), want, "{diff_id} {offset}");
    }
    let at_the_end = w::FetchRequest {
        diff_id: layer.diff_id.clone(),
        offset: layer.bytes,
    };
    let mut stream = client.fetch(at_the_end).await.expect("served").into_inner();
    assert!(stream.message().await.expect("it ends").is_none());
    for (reference, want) in [
        ("nosuch:1", Code::NotFound),
        ("../../x", Code::NotFound),
        (&"x".repeat(10_000), Code::InvalidArgument),
    ] {
        let request = w::DescribeRequest {
            reference: reference.into(),
        };
        let got = client.describe(request).await.expect_err("refused");
        assert_eq!(got.code(), want, "{reference:.20}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_is_fetched_at_some_speed() {
    if !is_root() {
        return;
    }
    let node = Node::serving(Manners::Honest);
    let id = node.build("big:1", &[64_000_000]);
    let (here, manager) = (Node::new(), manager(&id, &[&node]));
    let began = Instant::now();
    let mut flight = fetcher(&here, &manager).get("big:1");
    let mut told = Vec::new();
    let watching = async {
        while flight.changed().await.is_ok() {
            told.push(flight.borrow_and_update().clone());
        }
    };
    tokio::time::timeout(LIMIT, watching).await.expect("it ends");
    let took = began.elapsed();
    assert_eq!(told.pop(), Some(Flight::Over(Ok(()))));
    same(&node, &here, "big:1");
    let most = took.as_secs() + 2;
    assert!(told.len() as u64 <= most, "{} words in {took:?}", told.len());
    println!(
        "64 MB over a unix socket, verified and unpacked: {:.0} MB/s ({took:?})",
        64.0 / took.as_secs_f64()
    );
}
