//! What a leader hears of images, and what it makes of their names, over a real socket.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

mod common;

use manager_server::{Manager, ManagerConfig};
use model::spec::ImageId;
use proto::control::control_client::ControlClient;
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::{control, dispatch, types};
use tonic::Code;
use tonic::transport::Channel;

struct Cluster {
    manager: Manager,
    control: ControlClient<Channel>,
    dispatcher: DispatcherClient<Channel>,
    session: String,
    _open: tonic::Streaming<dispatch::SessionMessage>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(ManagerConfig {
            data_dir: dir.path().to_path_buf(),
            hostname: "host".into(),
            level: model::Level::OURS,
        })
        .await
        .unwrap();
        let (channel, _) = common::serve(&manager, &dir.path().join("sock")).await;
        let mut control = ControlClient::new(channel.clone());
        let init = control::InitClusterRequest {
            listen_addr: "127.0.0.1:0".into(),
            advertise_addr: "192.0.2.7".into(),
            ..control::InitClusterRequest::default()
        };
        control.init_cluster(init).await.unwrap();
        let mut dispatcher = DispatcherClient::new(channel);
        let request = dispatch::SessionRequest {
            description: Some(types::NodeDescription {
                level: model::Level::OURS.number(),
                ..types::NodeDescription::default()
            }),
            raft_id: 0,
        };
        let mut open = dispatcher.session(request).await.unwrap().into_inner();
        let session = open.message().await.unwrap().unwrap().session;
        Self {
            manager,
            control,
            dispatcher,
            session,
            _open: open,
            _dir: dir,
        }
    }

    async fn report(&mut self, images: &[(u8, &str)]) -> Result<(), tonic::Status> {
        let held = |(n, name): &(u8, &str)| dispatch::HeldImage {
            id: ImageId([*n; 32]).to_string(),
            references: vec![(*name).to_owned()],
            created_ms: u64::from(*n),
        };
        self.send(images.iter().map(held).collect()).await
    }

    async fn send(&mut self, images: Vec<dispatch::HeldImage>) -> Result<(), tonic::Status> {
        let request = dispatch::ReportImagesRequest {
            session: self.session.clone(),
            images,
        };
        self.dispatcher.report_images(request).await.map(drop)
    }

    async fn find(&mut self, reference: &str) -> Result<dispatch::FindImageReply, tonic::Status> {
        let request = dispatch::FindImageRequest {
            session: self.session.clone(),
            reference: reference.into(),
        };
        Ok(self.dispatcher.find_image(request).await?.into_inner())
    }

    async fn create(&mut self, name: &str, image: &str, no_resolve_image: bool) -> Vec<String> {
        let request = control::CreateRequest {
            spec: Some(control::Spec {
                spec: Some(control::spec::Spec::Service(spec(name, image))),
            }),
            no_resolve_image,
        };
        self.control.create(request).await.unwrap().into_inner().warnings
    }

    async fn update(&mut self, name: &str, image: &str) -> Vec<String> {
        let request = control::UpdateRequest {
            reference: name.into(),
            version: 0,
            spec: Some(control::Spec {
                spec: Some(control::spec::Spec::Service(spec(name, image))),
            }),
            no_resolve_image: false,
        };
        self.control.update(request).await.unwrap().into_inner().warnings
    }

    async fn deploy(&mut self, image: &str, when: control::ResolveImage) -> (control::Change, Vec<String>) {
        let request = control::DeployStackRequest {
            stack: Some(types::StackSpec {
                namespace: "s".into(),
                services: vec![spec("s_web", image)],
                ..types::StackSpec::default()
            }),
            prune: false,
            resolve_image: when.into(),
        };
        let reply = self.control.deploy_stack(request).await.unwrap().into_inner();
        (reply.changes[0].change(), reply.warnings)
    }

    async fn image(&mut self, name: &str) -> String {
        let request = control::GetRequest {
            kind: types::Kind::Service.into(),
            reference: name.into(),
        };
        let object = self.control.get(request).await.unwrap().into_inner();
        let Some(types::object::Object::Service(service)) = object.object else {
            panic!("it is no service");
        };
        let container = service.spec.unwrap().task.unwrap().container.unwrap();
        container.image
    }
}

fn spec(name: &str, image: &str) -> types::ServiceSpec {
    let mut spec = model::spec::ServiceSpec {
        name: name.into(),
        ..model::spec::ServiceSpec::default()
    };
    spec.task.container.image = image.into();
    (&spec).into()
}

fn pinned(name: &str, n: u8) -> String {
    format!("{name}@{}", ImageId([n; 32]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_pinned_to_the_image_its_name_means() {
    let mut c = Cluster::start().await;
    let warnings = c.create("early", "web:1", false).await;
    assert!(
        warnings[0].contains("image web:1 could not be found on any node to record its digest"),
        "{warnings:?}"
    );
    assert_eq!(c.image("early").await, "web:1");
    c.report(&[(1, "web:1"), (2, "web:2")]).await.unwrap();
    assert!(c.create("a", "web:1", false).await.is_empty());
    assert_eq!(c.image("a").await, pinned("web:1", 1));
    assert!(c.create("b", "web:1", true).await.is_empty());
    assert_eq!(c.image("b").await, "web:1", "--no-resolve-image");
    // The name is given to another image: what runs stays, until somebody says so.
    c.report(&[(3, "web:1"), (2, "web:2")]).await.unwrap();
    assert_eq!(c.image("a").await, pinned("web:1", 1));
    assert!(c.update("a", "web:2").await.is_empty());
    assert_eq!(c.image("a").await, pinned("web:2", 2));
    c.update("a", "web:1").await;
    assert_eq!(c.image("a").await, pinned("web:1", 3));
    let warnings = c.update("a", "nosuch:1").await;
    assert!(warnings[0].contains("nosuch:1"), "{warnings:?}");
    assert_eq!(c.image("a").await, "nosuch:1");
    c.manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_changes_only_when_its_tag_means_another_image() {
    use control::{Change, ResolveImage};
    let mut c = Cluster::start().await;
    c.report(&[(1, "web:1")]).await.unwrap();
    assert_eq!(c.deploy("web:1", ResolveImage::Always).await.0, Change::Created);
    assert_eq!(c.image("s_web").await, pinned("web:1", 1));
    for when in [ResolveImage::Always, ResolveImage::Changed, ResolveImage::Never] {
        assert_eq!(
            c.deploy("web:1", when).await,
            (Change::Unchanged, vec![]),
            "{when:?}"
        );
    }
    c.report(&[(2, "web:1")]).await.unwrap();
    for when in [ResolveImage::Never, ResolveImage::Changed] {
        assert_eq!(
            c.deploy("web:1", when).await,
            (Change::Unchanged, vec![]),
            "{when:?}"
        );
    }
    assert_eq!(c.deploy("web:1", ResolveImage::Always).await.0, Change::Updated);
    assert_eq!(c.image("s_web").await, pinned("web:1", 2));
    // Nobody has it any more: a reason to say so, none to roll anything out.
    c.report(&[]).await.unwrap();
    let (change, warnings) = c.deploy("web:1", ResolveImage::Always).await;
    assert_eq!(change, Change::Unchanged);
    assert!(
        warnings[0].contains("could not be found on any node now"),
        "{warnings:?}"
    );
    c.manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_checked_and_questions_answered() {
    let mut c = Cluster::start().await;
    let early = c.find("web:1").await.unwrap_err();
    assert_eq!(
        early.code(),
        Code::Unavailable,
        "the leader has heard of nobody yet"
    );
    c.report(&[(1, "web:1")]).await.unwrap();
    assert_eq!(c.find("web:2").await.unwrap_err().code(), Code::NotFound);
    let reply = c.find("web:1").await.unwrap();
    assert_eq!(reply.id, ImageId([1; 32]).to_string());
    assert!(reply.sources.is_empty(), "nobody is sent to itself");
    assert_eq!(c.find(&pinned("other:1", 1)).await.unwrap(), reply);
    let wrong = dispatch::HeldImage {
        id: "sha256:../x".into(),
        ..dispatch::HeldImage::default()
    };
    assert_eq!(
        c.send(vec![wrong]).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let many = dispatch::HeldImage {
        id: reply.id.clone(),
        references: vec!["x".into(); model::spec::IMAGE_NAMES_MAX + 1],
        created_ms: 0,
    };
    assert_eq!(
        c.send(vec![many]).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        c.find("web:1").await.unwrap(),
        reply,
        "what was refused changed nothing"
    );
    c.session = "old".into();
    assert_eq!(c.report(&[]).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(
        c.find("web:1").await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    c.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_vouches_for_nodes_of_its_cluster_to_who_has_a_session() {
    let mut cluster = Cluster::start().await;
    let own = cluster.manager.node_id();
    let stranger = model::NodeId(own.0 ^ 1);
    for (node, member) in [(own, true), (stranger, false)] {
        let request = dispatch::VouchRequest {
            session: cluster.session.clone(),
            node_id: node.to_string(),
        };
        let reply = cluster.dispatcher.vouch(request).await.unwrap().into_inner();
        assert_eq!(reply.member, member);
    }
    for (session, node_id, code) in [
        ("another".to_owned(), own.to_string(), Code::FailedPrecondition),
        (
            cluster.session.clone(),
            "no id!".to_owned(),
            Code::InvalidArgument,
        ),
    ] {
        let request = dispatch::VouchRequest { session, node_id };
        assert_eq!(cluster.dispatcher.vouch(request).await.unwrap_err().code(), code);
    }
}
