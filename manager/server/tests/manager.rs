//! A whole manager over a real socket, with an agent that only pretends to run containers.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manager_server::{Manager, ManagerConfig};
use proto::control::control_client::ControlClient;
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::{control, dispatch, types};
use tonic::Code;
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_secs(20);

fn request() -> control::InitClusterRequest {
    control::InitClusterRequest {
        listen_addr: "127.0.0.1:0".into(),
        ..control::InitClusterRequest::default()
    }
}

struct Daemon {
    manager: Manager,
    channel: Channel,
    server: tokio::task::JoinHandle<()>,
}

impl Daemon {
    async fn start(dir: &Path) -> Self {
        let config = ManagerConfig {
            data_dir: dir.to_path_buf(),
            hostname: "host".into(),
            level: model::Level::OURS,
        };
        let manager = Manager::open(config).await.unwrap();
        let socket = dir.join("sock");
        let _ = std::fs::remove_file(&socket);
        let (channel, server) = common::serve(&manager, &socket).await;
        Self {
            manager,
            channel,
            server,
        }
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    async fn init(&self) {
        self.control().init_cluster(request()).await.unwrap();
    }

    async fn stop(self) {
        self.manager.close().await;
        self.server.abort();
    }
}

/// Runs what it is assigned, in its mind.
struct Agent {
    seen: Arc<Mutex<Vec<dispatch::AssignmentsMessage>>>,
    fail: tokio::sync::mpsc::UnboundedSender<String>,
    task: tokio::task::JoinHandle<()>,
    _session: tonic::Streaming<dispatch::SessionMessage>,
}

impl Agent {
    async fn start(channel: Channel) -> Self {
        let mut client = DispatcherClient::new(channel);
        let description = types::NodeDescription {
            hostname: "host".into(),
            platform: Some(types::Platform {
                os: "linux".into(),
                arch: "x86_64".into(),
            }),
            nano_cpus: 8_000_000_000,
            memory_bytes: 8 << 30,
            level: model::Level::OURS.number(),
            ..types::NodeDescription::default()
        };
        let request = dispatch::SessionRequest {
            description: Some(description),
            raft_id: 0,
        };
        let mut session = client.session(request).await.unwrap().into_inner();
        let id = session.message().await.unwrap().unwrap().session;
        let request = dispatch::AssignmentsRequest { session: id.clone() };
        let mut stream = client.assignments(request).await.unwrap().into_inner();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (fail, mut failing) = tokio::sync::mpsc::unbounded_channel::<String>();
        let log = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let updates = tokio::select! {
                    message = stream.message() => {
                        let Ok(Some(message)) = message else { return };
                        log.lock().unwrap().push(message.clone());
                        message.tasks.iter().filter_map(react).collect()
                    }
                    Some(task) = failing.recv() => vec![update(task, 704)],
                };
                let request = dispatch::UpdateTaskStatusRequest {
                    session: id.clone(),
                    updates,
                };
                if client.update_task_status(request).await.is_err() {
                    return;
                }
            }
        });
        Self {
            seen,
            fail,
            task,
            _session: session,
        }
    }
}

fn update(task: String, state: i32) -> dispatch::TaskUpdate {
    let status = types::TaskStatus {
        state,
        at_ms: 1,
        ..types::TaskStatus::default()
    };
    dispatch::TaskUpdate {
        task,
        status: Some(status),
    }
}

fn react(task: &types::Task) -> Option<dispatch::TaskUpdate> {
    let state = task.status.as_ref().map_or(0, |s| s.state);
    match task.desired() {
        types::DesiredState::DesiredReady if state < 384 => Some(update(task.id.clone(), 384)),
        types::DesiredState::DesiredRunning if state < 512 => Some(update(task.id.clone(), 512)),
        types::DesiredState::DesiredShutdown | types::DesiredState::DesiredRemove if state < 576 => {
            Some(update(task.id.clone(), 640))
        }
        _ => None,
    }
}

fn service(name: &str, replicas: u32) -> control::CreateRequest {
    let spec = model::spec::ServiceSpec {
        name: name.into(),
        task: model::spec::TaskSpec {
            container: model::spec::ContainerSpec {
                image: "busybox".into(),
                ..Default::default()
            },
            restart: model::spec::RestartPolicy {
                delay: Duration::ZERO,
                ..Default::default()
            },
            ..Default::default()
        },
        mode: model::spec::ServiceMode::Replicated { replicas },
        ..Default::default()
    };
    control::CreateRequest {
        spec: Some(control::Spec {
            spec: Some(control::spec::Spec::Service((&spec).into())),
        }),
        ..control::CreateRequest::default()
    }
}

fn config(name: &str) -> control::CreateRequest {
    let spec = types::ConfigSpec {
        name: name.into(),
        labels: BTreeMap::new(),
        data: vec![1],
    };
    control::CreateRequest {
        spec: Some(control::Spec {
            spec: Some(control::spec::Spec::Config(spec)),
        }),
        ..control::CreateRequest::default()
    }
}

fn list(kind: types::Kind, filters: &[(&str, &str)]) -> control::ListRequest {
    let filters = filters.iter().map(|(k, v)| control::Filter {
        key: (*k).into(),
        value: (*v).into(),
    });
    control::ListRequest {
        kind: kind.into(),
        filters: filters.collect(),
    }
}

/// Waits, by watching, until exactly `n` tasks run; answers their ids and how long it took.
async fn running(control: &mut ControlClient<Channel>, n: usize) -> (Vec<String>, Duration) {
    let began = Instant::now();
    let request = control::WatchRequest {
        kinds: vec![types::Kind::Task.into()],
        service: String::new(),
    };
    let mut events = control.watch(request).await.unwrap().into_inner();
    let mut tasks: BTreeMap<String, types::Task> = BTreeMap::new();
    loop {
        let event = tokio::time::timeout(LIMIT, events.message()).await;
        let event = event
            .unwrap_or_else(|_| panic!("{n} tasks should run: {tasks:#?}"))
            .unwrap()
            .unwrap();
        if event.snapshot {
            tasks.clear();
        }
        for object in event.changed {
            if let Some(types::object::Object::Task(task)) = object.object {
                tasks.insert(task.id.clone(), task);
            }
        }
        for key in event.removed {
            tasks.remove(&key.id);
        }
        let up: Vec<String> = tasks
            .values()
            .filter(|t| t.status.as_ref().is_some_and(|s| s.state == 512))
            .map(|t| t.id.clone())
            .collect();
        let unwanted = tasks.values().any(|t| {
            t.status.as_ref().is_some_and(|s| s.state == 512)
                && t.desired() != types::DesiredState::DesiredRunning
        });
        if up.len() == n && !unwanted {
            return (up, began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_made_scaled_healed_and_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path()).await;
    let mut control = daemon.control();
    let refused = control.list(list(types::Kind::Service, &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        !control
            .get_info(control::GetInfoRequest {})
            .await
            .unwrap()
            .into_inner()
            .active
    );

    daemon.init().await;
    let again = control.init_cluster(request()).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    let agent = Agent::start(daemon.channel.clone()).await;
    control.create(service("web", 0)).await.unwrap();
    assert_eq!(
        control.create(service("web", 1)).await.unwrap_err().code(),
        Code::AlreadyExists
    );

    let scales = vec![control::Scale {
        reference: "web".into(),
        replicas: 50,
    }];
    let began = Instant::now();
    control
        .scale_services(control::ScaleServicesRequest { scales })
        .await
        .unwrap();
    let (up, _) = running(&mut control, 50).await;
    println!("scale 0 -> 50, all running: {:?}", began.elapsed());

    let began = Instant::now();
    agent.fail.send(up[0].clone()).unwrap();
    let mut now_up = up.clone();
    while now_up.contains(&up[0]) || now_up.len() < 50 {
        now_up = running(&mut control, 50).await.0;
    }
    println!("failed -> replacement running: {:?}", began.elapsed());

    let filters = [("service", "web"), ("desired-state", "running")];
    let found = control
        .list(list(types::Kind::Task, &filters))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.objects.len(), 50);
    let unknown = control
        .list(list(types::Kind::Task, &[("colour", "red")]))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    agent.task.abort();
    drop((agent, control));
    daemon.stop().await;

    let began = Instant::now();
    let daemon = Daemon::start(dir.path()).await;
    println!("restart: {:?}", began.elapsed());
    let mut control = daemon.control();
    let info = control
        .get_info(control::GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(info.active && info.leader && info.services == 1, "{info:?}");
    let _agent = Agent::start(daemon.channel.clone()).await;
    running(&mut control, 50).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_at_the_same_time_are_all_kept_and_one_name_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path()).await;
    daemon.init().await;
    let began = Instant::now();
    let writes = (0..64).map(|i| {
        let mut control = daemon.control();
        tokio::spawn(async move { control.create(config(&format!("c{}", i / 2))).await })
    });
    let mut taken = 0;
    for write in writes.collect::<Vec<_>>() {
        match write.await.unwrap() {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => taken += 1,
            Err(status) => panic!("{status}"),
        }
    }
    println!("64 writes by 64 callers: {:?}", began.elapsed());
    assert_eq!(taken, 32);
    let found = daemon
        .control()
        .list(list(types::Kind::Config, &[]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.objects.len(), 32);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_tells_the_agent_to_stop_everything_and_removes_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path()).await;
    daemon.init().await;
    let agent = Agent::start(daemon.channel.clone()).await;
    let mut control = daemon.control();
    control.create(service("web", 2)).await.unwrap();
    running(&mut control, 2).await;
    let refused = control
        .leave_cluster(control::LeaveClusterRequest { force: false })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    control
        .leave_cluster(control::LeaveClusterRequest { force: true })
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, agent.task).await.unwrap().unwrap();
    let last = agent.seen.lock().unwrap().last().cloned().unwrap();
    assert!(last.full && !last.more && last.tasks.is_empty(), "{last:?}");
    assert!(!dir.path().join("raft").exists());
    assert!(
        !control
            .get_info(control::GetInfoRequest {})
            .await
            .unwrap()
            .into_inner()
            .active
    );
    // A new cluster can be made at once.
    daemon.init().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_down_and_is_ready_again_when_it_registers() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path()).await;
    let heartbeat_ns = 100_000_000;
    let request = control::InitClusterRequest {
        listen_addr: "127.0.0.1:0".into(),
        heartbeat_ns,
        ..Default::default()
    };
    daemon.control().init_cluster(request).await.unwrap();
    let _agent = Agent::start(daemon.channel.clone()).await; // It never sends a heartbeat.
    let mut control = daemon.control();
    let request = control::WatchRequest {
        kinds: vec![types::Kind::Node.into()],
        service: String::new(),
    };
    let mut events = control.watch(request).await.unwrap().into_inner();
    let mut states = Vec::new();
    while !states.ends_with(&[types::NodeState::Ready, types::NodeState::Down]) {
        let event = tokio::time::timeout(LIMIT, events.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        for object in event.changed {
            if let Some(types::object::Object::Node(node)) = object.object {
                states.push(node.status.unwrap().state());
            }
        }
    }
    let _again = Agent::start(daemon.channel.clone()).await;
    let request = control::GetRequest {
        kind: types::Kind::Node.into(),
        reference: daemon.manager.node_id().to_string(),
    };
    let node = control.get(request).await.unwrap().into_inner();
    let Some(types::object::Object::Node(node)) = node.object else {
        panic!("no node")
    };
    assert_eq!(node.status.unwrap().state(), types::NodeState::Ready);
    daemon.stop().await;
}
