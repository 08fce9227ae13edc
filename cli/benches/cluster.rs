//! What a cluster costs and how quick it is: real daemons on loopback, and agents that only pretend to run containers.
//!
//! `cargo bench --bench cluster` prints one JSON object at the end; figures are of one run, ratios where they compare.
//! Needs root, as daemons do. `--only NAME` runs one part: writes, failover, reconnect, flap or large.
#![allow(
    clippy::unwrap_used,
    reason = "a bench stops where something is not as it should be"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_core::contact;
use model::NodeId;
use proto::ca::IssueRequest;
use proto::ca::ca_client::CaClient;
use proto::channel::{self, Expect};
use proto::control::control_client::ControlClient;
use proto::control::{self, GetInfoRequest};
use proto::dispatch::dispatcher_client::DispatcherClient;
use proto::identity::{self, Keychain, Papers};
use proto::{dispatch, types};
use tonic::Status;
use tonic::transport::Channel;

const RSWARM: &str = env!("CARGO_BIN_EXE_rswarm");
/// Nothing in here takes longer.
const LIMIT: Duration = Duration::from_secs(120);
/// Writes that are measured, one after another.
const WRITES: usize = 400;
/// Leaders that are lost.
const ROUNDS: usize = 20;
/// Agents that come back at once.
const AGENTS: usize = 1000;
/// A large cluster.
const LARGE_AGENTS: usize = 500;
const LARGE_TASKS: u32 = 20_000;
/// What a sync takes longer in the second part of the writes.
const SLOWER: Duration = Duration::from_millis(2);
/// How long agents come and go, a tenth of them a minute, each away for one of these times in turn: it is missed, or Down.
const FLAPS: Duration = Duration::from_secs(90);
const AWAY: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(60)];
/// How often a pretended host looks whether it is gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Joins at the same time.
const JOINS: usize = 16;

struct Daemon {
    name: String,
    dir: PathBuf,
    child: Child,
    /// What every sync of its log takes longer than the disk does.
    slower: Duration,
}

impl Daemon {
    fn start(dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let child = Self::spawn(&dir, name, Duration::ZERO);
        let daemon = Self {
            name: name.into(),
            dir,
            child,
            slower: Duration::ZERO,
        };
        daemon.wait();
        daemon
    }

    fn spawn(dir: &Path, name: &str, slower: Duration) -> Child {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        #[allow(clippy::disallowed_methods, reason = "a bench starts the real binary")]
        Command::new(RSWARM)
            .arg("-H")
            .arg(dir.join("sock"))
            .args(["daemon", "--hostname", name, "--dataplane", name, "--data-dir"])
            .arg(dir.join("data"))
            .envs((!slower.is_zero()).then(|| {
                let sleep = format!("raft.before_append_fsync=sleep({})", slower.as_millis());
                ("FAILPOINTS", sleep)
            }))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    fn wait(&self) {
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(began.elapsed() < LIMIT, "{} does not start", self.name);
            pause(20);
        }
    }

    fn cli(&self, args: &[&str]) -> String {
        #[allow(clippy::disallowed_methods, reason = "a bench runs the real command line")]
        let output = Command::new(RSWARM)
            .arg("-H")
            .arg(self.socket())
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    async fn control(&self) -> ControlClient<Channel> {
        let channel = channel::connect(&self.socket()).await.unwrap();
        ControlClient::new(channel).max_decoding_message_size(256 << 20)
    }

    async fn info(&self) -> control::Info {
        let mut control = self.control().await;
        control.get_info(GetInfoRequest {}).await.unwrap().into_inner()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.dir, &self.name, self.slower);
        self.wait();
    }

    fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // So that it takes its namespaces down; then it is ended whatever became of that.
        #[allow(clippy::disallowed_methods, reason = "a bench runs the real command line")]
        let _ = Command::new(RSWARM)
            .arg("-H")
            .arg(self.socket())
            .args(["swarm", "leave", "--force"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        pause(300);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "a bench that waits for a process polls")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Managers on loopback that agree.
async fn managers(dir: &Path, count: usize, prefix: &str) -> Vec<Daemon> {
    let mut all: Vec<Daemon> = Vec::new();
    for n in 1..=count {
        let daemon = Daemon::start(dir, &format!("{prefix}{n}"));
        if let Some(first) = all.first() {
            let token = first.cli(&["swarm", "join-token", "-q", "manager"]);
            let info = first.info().await;
            let args = [
                "swarm",
                "join",
                "--listen-addr",
                "127.0.0.1:0",
                "--token",
                &token,
                &info.node_address,
            ];
            daemon.cli(&args);
        } else {
            daemon.cli(&[
                "swarm",
                "init",
                "--listen-addr",
                "127.0.0.1:0",
                "--availability",
                "drain",
            ]);
        }
        all.push(daemon);
        let began = Instant::now();
        loop {
            let shown = all[0].cli(&["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"]);
            let ready = shown
                .lines()
                .filter(|l| matches!(*l, "Ready Leader" | "Ready Reachable"))
                .count();
            if ready == n {
                break;
            }
            assert!(began.elapsed() < LIMIT, "{shown}");
            pause(50);
        }
    }
    for daemon in &all[1..] {
        all[0].cli(&["node", "update", "--availability", "drain", &daemon.name]);
    }
    all
}

fn percentile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index below the length"
    )]
    let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
    times[at - 1]
}

fn config(name: String) -> control::CreateRequest {
    control::CreateRequest {
        spec: Some(control::Spec {
            spec: Some(control::spec::Spec::Config(types::ConfigSpec {
                name,
                data: b"x".to_vec(),
                ..types::ConfigSpec::default()
            })),
        }),
        ..control::CreateRequest::default()
    }
}

/// What writes take: a median over that of an fdatasync, and calls a second.
struct WriteFigures {
    over_fdatasync: f64,
    one: f64,
    many: f64,
    refused: f64,
    slower_one: f64,
    slower_many: f64,
}

/// One write after another, beside an fdatasync of 4 KiB on the same disk; then 64 writers at once. Then both again as if
/// the disk were one whose sync takes longer.
async fn writes(dir: &Path) -> WriteFigures {
    let mut daemons = managers(dir, 1, "bw").await;
    let mut client = daemons[0].control().await;
    let mut raw = std::fs::File::create(dir.join("raw")).unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for n in 0..WRITES {
        let began = Instant::now();
        client.create(config(format!("c{n}"))).await.unwrap();
        ours.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        raw.write_all(&[7; 4096]).unwrap();
        raw.sync_data().unwrap();
        floor.push(began.elapsed().as_secs_f64());
    }
    let one = WRITES as f64 / ours.iter().sum::<f64>();
    let many = by_64(&client, "w", true).await;
    let refused = by_64(&client, "r", false).await;
    daemons[0].slower = SLOWER;
    daemons[0].kill();
    daemons[0].restart();
    let mut client = daemons[0].control().await;
    client.create(config("first".into())).await.unwrap();
    let began = Instant::now();
    for n in 0..WRITES {
        client.create(config(format!("s{n}"))).await.unwrap();
    }
    let slower_one = WRITES as f64 / began.elapsed().as_secs_f64();
    let slower_many = by_64(&client, "x", true).await;
    let (ours, floor) = (percentile(&mut ours, 0.5), percentile(&mut floor, 0.5));
    WriteFigures {
        over_fdatasync: ours / floor,
        one,
        many,
        refused,
        slower_one,
        slower_many,
    }
}

/// Calls a second of 64 callers at once: writes, or calls that are refused before anything is decided, which is what the
/// transport alone can do on this machine.
async fn by_64(client: &ControlClient<Channel>, prefix: &'static str, written: bool) -> f64 {
    let began = Instant::now();
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let mut request = config(format!("{prefix}{caller}-{n}"));
                    if !written {
                        request.spec = None;
                    }
                    assert_eq!(client.create(request).await.is_ok(), written);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    (64 * WRITES) as f64 / began.elapsed().as_secs_f64()
}

/// The leader is killed; the next write comes from another manager.
async fn failover(dir: &Path) -> (f64, f64, usize) {
    let mut daemons = managers(dir, 3, "bf").await;
    let mut times = Vec::new();
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        let leader = leader_of(&daemons).await;
        let next = (leader + 1) % daemons.len();
        let mut client = daemons[next].control().await;
        daemons[leader].kill();
        let began = Instant::now();
        client.create(config(format!("f{round}"))).await.unwrap();
        times.push(began.elapsed().as_secs_f64());
        written.push(format!("f{round}"));
        daemons[leader].restart();
        let began = Instant::now();
        loop {
            let shown = daemons[next].cli(&["node", "ls", "--format", "{{.ManagerStatus}}"]);
            if shown.lines().all(|l| matches!(l, "Leader" | "Reachable")) {
                break;
            }
            assert!(began.elapsed() < LIMIT, "{shown}");
            pause(100);
        }
    }
    let there = daemons[0].cli(&["config", "ls", "--format", "{{.Name}}"]);
    let lost = written
        .iter()
        .filter(|w| !there.lines().any(|l| l == w.as_str()))
        .count();
    let median = percentile(&mut times, 0.5);
    (percentile(&mut times, 0.95), median, lost)
}

async fn leader_of(daemons: &[Daemon]) -> usize {
    let began = Instant::now();
    loop {
        for (at, daemon) in daemons.iter().enumerate() {
            let info = daemon.info().await;
            if info.leader {
                return at;
            }
        }
        assert!(began.elapsed() < LIMIT, "nobody leads");
        pause(50);
    }
}

/// What all pretended agents share.
struct Crowd {
    managers: Mutex<Vec<(NodeId, String)>>,
    registered: Mutex<BTreeMap<NodeId, Instant>>,
    /// Hosts that are gone at the moment, and until when.
    away: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Crowd {
    fn away(&self, node: NodeId) -> Option<Instant> {
        self.away.lock().unwrap().get(&node).copied()
    }

    /// Waits until a host is gone.
    async fn lost(&self, node: NodeId) {
        while self.away(node).is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Joins as a worker and pretends to be one until the task is aborted. It looks for its manager as a real agent does.
async fn agent(crowd: Arc<Crowd>, keychain: Keychain) {
    let node = keychain.node().unwrap();
    let mut hint: Option<(NodeId, String)> = None;
    let mut search = Search::default();
    let mut lost = None;
    // Numbers that look random and differ from node to node (an xorshift).
    let mut dice = u64::try_from(node.0 >> 64).unwrap() | 1;
    let mut share = move || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 11) as f64 / (1u64 << 53) as f64
    };
    loop {
        if let Some(until) = crowd.away(node) {
            tokio::time::sleep_until(until.into()).await;
            crowd.away.lock().unwrap().remove(&node);
        }
        let target = hint.take().unwrap_or_else(|| {
            let managers = crowd.managers.lock().unwrap();
            if search.round.is_empty() {
                let ids: Vec<NodeId> = managers.iter().map(|(id, _)| *id).collect();
                search.round = contact::order(&ids, node, lost, share());
                search.round.reverse();
            }
            let next = search.round.pop().unwrap();
            managers.iter().find(|(id, _)| *id == next).unwrap().clone()
        });
        let ended = tokio::select! {
            ended = serve(&crowd, &keychain, &target, &mut search) => ended,
            () = crowd.lost(node) => continue,
        };
        lost = Some(target.0);
        let mut electing = false;
        if let Err(status) = ended {
            electing = proto::status::may_be_retried(&status);
            hint = proto::status::leader_of(&status).filter(|to| *to != target);
            if hint.is_some() {
                let wait = contact::hint_pause(search.period).mul_f64(share());
                tokio::time::sleep(wait).await;
                continue;
            }
        }
        let pause = search.pause.unwrap_or(contact::PAUSE_FIRST);
        tokio::time::sleep(pause.mul_f64(share())).await;
        search.pause = Some(contact::next_pause(pause, electing, search.period));
    }
}

/// Which manager is tried next, and how soon.
#[derive(Default)]
struct Search {
    pause: Option<Duration>,
    period: Option<Duration>,
    unreached: u32,
    round: Vec<NodeId>,
}

async fn serve(
    crowd: &Crowd,
    keychain: &Keychain,
    (manager, address): &(NodeId, String),
    search: &mut Search,
) -> Result<(), Status> {
    let node = keychain.node().unwrap();
    let limit = contact::connect_limit(search.unreached, search.period);
    let connecting = channel::connect_node(keychain, address, Expect::Node(*manager));
    let Ok(Ok(channel)) = tokio::time::timeout(limit, connecting).await else {
        search.unreached += 1;
        return Err(Status::unavailable("cannot be reached"));
    };
    let mut client = DispatcherClient::new(channel).max_decoding_message_size(8 << 20);
    let description = types::NodeDescription {
        hostname: format!("a{}", node.short()),
        platform: Some(types::Platform {
            os: "linux".into(),
            arch: "amd64".into(),
        }),
        nano_cpus: 64_000_000_000,
        memory_bytes: 256 << 30,
        level: model::Level::OURS.number(),
        ..types::NodeDescription::default()
    };
    let request = dispatch::SessionRequest {
        description: Some(description),
        raft_id: 0,
    };
    let mut messages = client.session(request).await?.into_inner();
    let first = messages
        .message()
        .await?
        .ok_or_else(|| Status::unavailable("no session"))?;
    *search = Search {
        period: Some(Duration::from_nanos(first.heartbeat_ns)),
        ..Search::default()
    };
    crowd.registered.lock().unwrap().insert(node, Instant::now());
    let session = first.session;
    let request = dispatch::AssignmentsRequest {
        session: session.clone(),
    };
    let mut assignments = client.assignments(request).await?.into_inner();
    let mut period = Duration::from_nanos(first.heartbeat_ns);
    let beating = {
        let (mut client, session) = (client.clone(), session.clone());
        async move {
            loop {
                tokio::time::sleep(period).await;
                let request = dispatch::HeartbeatRequest {
                    used: None,
                    session: session.clone(),
                    unreached: None,
                };
                let reply = tokio::time::timeout(period, client.heartbeat(request)).await;
                let reply = reply.map_err(|_| Status::unavailable("no answer"))??;
                period = Duration::from_nanos(reply.into_inner().heartbeat_ns);
            }
        }
    };
    let working = async {
        while let Some(message) = assignments.message().await? {
            let updates: Vec<_> = message.tasks.iter().filter_map(react).collect();
            for updates in updates.chunks(1000) {
                let request = dispatch::UpdateTaskStatusRequest {
                    session: session.clone(),
                    updates: updates.to_vec(),
                };
                client.update_task_status(request).await?;
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = beating => ended,
        ended = working => ended,
        ended = messages.message() => ended.map(drop),
    }
}

/// What an agent says of a task: it runs as soon as it is to.
fn react(task: &types::Task) -> Option<dispatch::TaskUpdate> {
    let state = task.status.as_ref().map_or(0, |s| s.state);
    let wanted = match task.desired() {
        types::DesiredState::DesiredReady if state < 384 => 384,
        types::DesiredState::DesiredRunning if state < 512 => 512,
        types::DesiredState::DesiredShutdown | types::DesiredState::DesiredRemove if state < 576 => 640,
        _ => return None,
    };
    Some(dispatch::TaskUpdate {
        task: task.id.clone(),
        status: Some(types::TaskStatus {
            state: wanted,
            at_ms: 1,
            ..types::TaskStatus::default()
        }),
    })
}

/// Joins so many workers and has them register.
async fn crowd(daemons: &[Daemon], count: usize) -> (Arc<Crowd>, Vec<tokio::task::JoinHandle<()>>) {
    let token = daemons[0].cli(&["swarm", "join-token", "-q", "worker"]);
    let secret = token.rsplit('-').next().unwrap().to_owned();
    let leader = leader_of(daemons).await;
    let info = daemons[leader].info().await;
    let managers = info
        .known_managers
        .iter()
        .map(|p| (p.node_id.parse().unwrap(), p.address.clone()))
        .collect();
    let crowd = Arc::new(Crowd {
        managers: Mutex::new(managers),
        registered: Mutex::default(),
        away: Mutex::default(),
    });
    let authority = daemons[0].cli(&["swarm", "ca"]);
    let roots = identity::roots(&authority).unwrap();
    let (address, next) = (info.node_address, Arc::new(Mutex::new(0)));
    let joins: Vec<_> = (0..JOINS)
        .map(|_| {
            let (roots, address, secret, next) =
                (roots.clone(), address.clone(), secret.clone(), next.clone());
            tokio::spawn(async move {
                let channel = channel::connect_stranger(&address, roots).await.unwrap();
                let mut client = CaClient::new(channel);
                let mut joined = Vec::new();
                loop {
                    let n = {
                        let mut next = next.lock().unwrap();
                        *next += 1;
                        *next
                    };
                    if n > count {
                        return joined;
                    }
                    joined.push(join(&mut client, &secret, n).await);
                }
            })
        })
        .collect();
    let mut tasks = Vec::new();
    for join in joins {
        for keychain in join.await.unwrap() {
            tasks.push(tokio::spawn(agent(crowd.clone(), keychain)));
        }
    }
    let began = Instant::now();
    while crowd.registered.lock().unwrap().len() < count {
        assert!(
            began.elapsed() < LIMIT,
            "{} registered",
            crowd.registered.lock().unwrap().len()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (crowd, tasks)
}

async fn join(client: &mut CaClient<Channel>, secret: &str, n: usize) -> Keychain {
    let key = identity::new_key().unwrap();
    let node = {
        use model::ids::IdSource;
        NodeId(manager_server::RandomIds.next_id())
    };
    let request = IssueRequest {
        token: secret.into(),
        node_id: node.to_string(),
        csr: identity::request(&key).unwrap(),
        hostname: format!("a{n}"),
        address: format!("127.1.{}.{}:2377", n / 250, n % 250 + 1),
        level: model::Level::OURS.number(),
        ..IssueRequest::default()
    };
    let reply = client.issue(request).await.unwrap().into_inner();
    let keychain = Keychain::new(Path::new("/nonexistent"));
    let papers = Papers {
        key,
        certificates: reply.certificates,
        authorities: reply.authorities,
    };
    keychain.use_papers(papers).unwrap();
    keychain
}

/// A thousand agents lose their leader at the same moment.
async fn reconnect(dir: &Path) -> (f64, f64, u64, usize) {
    let mut daemons = managers(dir, 3, "br").await;
    let (crowd, tasks) = crowd(&daemons, AGENTS).await;
    let leader = leader_of(&daemons).await;
    let next = (leader + 1) % 3;
    let index = |info: control::Info| info.index;
    let mut client = daemons[next].control().await;
    let before = index(client.get_info(GetInfoRequest {}).await.unwrap().into_inner());
    daemons[leader].kill();
    let killed = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let registered = crowd.registered.lock().unwrap();
        if registered.values().filter(|at| **at > killed).count() == AGENTS {
            break;
        }
        assert!(killed.elapsed() < LIMIT, "not all agents came back");
    }
    let mut times: Vec<f64> = crowd
        .registered
        .lock()
        .unwrap()
        .values()
        .map(|at| at.duration_since(killed).as_secs_f64())
        .collect();
    let entries = index(client.get_info(GetInfoRequest {}).await.unwrap().into_inner()) - before;
    // Long enough for a node to be declared down that nobody heard of.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let shown = daemons[next].cli(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
    let down = shown
        .lines()
        .filter(|l| l.starts_with('a') && !l.ends_with("Ready"))
        .count();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    daemons[leader].restart();
    let p99 = percentile(&mut times, 0.99);
    (p99, percentile(&mut times, 1.0), entries, down)
}

/// Services of a thousand tasks each, all running; answers after how many seconds.
async fn run_tasks(daemon: &Daemon, services: u32) -> f64 {
    for n in 0..services {
        let (name, network) = (format!("s{n}"), format!("n{n}"));
        // The ingress network, which a service without one uses, has no 20,000 addresses.
        let subnet = format!("10.{}.0.0/20", 100 + n);
        daemon.cli(&["network", "create", "--subnet", &subnet, &network]);
        daemon.cli(&[
            "service",
            "create",
            "-d",
            "-q",
            "--no-resolve-image",
            "--name",
            &name,
            "--network",
            &network,
            "--replicas",
            "1000",
            "nothing:1",
        ]);
    }
    let began = Instant::now();
    loop {
        let shown = daemon.cli(&["service", "ls", "--format", "{{.Replicas}}"]);
        if shown.lines().filter(|l| *l == "1000/1000").count() == services as usize {
            break;
        }
        assert!(began.elapsed() < LIMIT, "{shown}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    began.elapsed().as_secs_f64()
}

/// A thousand agents with ten thousand tasks, of which a tenth comes and goes each minute: what a write takes meanwhile.
async fn flap(dir: &Path) -> (f64, f64, f64) {
    let daemons = managers(dir, 3, "bx").await;
    let (crowd, tasks) = crowd(&daemons, AGENTS).await;
    run_tasks(&daemons[0], 10).await;
    let nodes: Vec<NodeId> = crowd.registered.lock().unwrap().keys().copied().collect();
    let mut client = daemons[0].control().await;
    let (began, mut times, mut gone) = (Instant::now(), Vec::new(), 0);
    while began.elapsed() < FLAPS {
        let passed = usize::try_from(began.elapsed().as_millis()).unwrap();
        let due = passed * nodes.len() / 10 / 60_000;
        while gone < due {
            // Spread, so that a service loses tasks everywhere.
            let node = nodes[gone * 7 % nodes.len()];
            let until = Instant::now() + AWAY[gone % AWAY.len()];
            crowd.away.lock().unwrap().insert(node, until);
            gone += 1;
        }
        let one = Instant::now();
        client.create(config(format!("x{}", times.len()))).await.unwrap();
        times.push(one.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let leader = leader_of(&daemons).await;
    let rss = daemons[leader].rss_mb();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    (
        percentile(&mut times, 0.99) * 1e3,
        percentile(&mut times, 1.0) * 1e3,
        rss,
    )
}

/// Many agents with many tasks.
async fn large(dir: &Path) -> (f64, f64, f64) {
    let daemons = managers(dir, 1, "bl").await;
    let (_crowd, tasks) = crowd(&daemons, LARGE_AGENTS).await;
    let placed = run_tasks(&daemons[0], LARGE_TASKS / 1000).await;
    let mut times = Vec::new();
    for _ in 0..11 {
        let began = Instant::now();
        daemons[0].cli(&["service", "ls"]);
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let rss = daemons[0].rss_mb();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    (percentile(&mut times, 0.5), rss, placed)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    // `cargo test --benches` only asks whether it starts.
    if args.iter().any(|a| a == "--test") {
        println!("cluster: run with cargo bench");
        return;
    }
    let only = args
        .iter()
        .position(|a| a == "--only")
        .and_then(|at| args.get(at + 1))
        .cloned();
    let wanted = |part: &str| only.as_deref().is_none_or(|o| o == part);
    let dir = tempfile::tempdir().unwrap();
    let mut figures: Vec<(&str, f64)> = Vec::new();
    if wanted("writes") {
        let WriteFigures {
            over_fdatasync,
            one,
            many,
            refused,
            slower_one,
            slower_many,
        } = writes(dir.path()).await;
        println!(
            "a durable write: {over_fdatasync:.2} × an fdatasync; 64 writers {:.1} × one ({one:.0} and {many:.0} \
             writes/s; {refused:.0} calls/s that are refused at once)",
            many / one
        );
        println!(
            "with syncs that take {SLOWER:?} longer: 64 writers {:.1} × one ({slower_one:.0} and {slower_many:.0} writes/s)",
            slower_many / slower_one
        );
        figures.extend([
            ("write_over_fdatasync", over_fdatasync),
            ("writers64_over_1", many / one),
            ("writers64_over_refused", many / refused),
            ("writers64_over_1_slower", slower_many / slower_one),
        ]);
    }
    if wanted("failover") {
        let (p95, median, lost) = failover(dir.path()).await;
        println!(
            "leader killed → next write: median {median:.2} s, p95 {p95:.2} s of {ROUNDS}; {lost} acknowledged writes lost"
        );
        figures.extend([
            ("failover_p95_s", p95),
            ("failover_median_s", median),
            ("lost_writes", lost as f64),
        ]);
    }
    if wanted("reconnect") {
        let (p99, last, entries, down) = reconnect(dir.path()).await;
        println!(
            "{AGENTS} agents lose their leader: p99 {p99:.1} s, last {last:.1} s, {entries} log entries, {down} taken for down"
        );
        figures.extend([
            ("reconnect_1000_p99_s", p99),
            ("reconnect_1000_entries", entries as f64),
            ("reconnect_1000_down", down as f64),
        ]);
    }
    if wanted("flap") {
        let (p99, slowest, rss) = flap(dir.path()).await;
        println!(
            "{AGENTS} agents with 10,000 tasks, a tenth comes and goes each minute: a write takes p99 {p99:.0} ms, at most \
             {slowest:.0} ms; leader {rss:.0} MB"
        );
        figures.extend([("flap_write_p99_ms", p99), ("flap_leader_rss_mb", rss)]);
    }
    if wanted("large") {
        let (ls, rss, placed) = large(dir.path()).await;
        println!(
            "{LARGE_AGENTS} agents, {LARGE_TASKS} tasks (running after {placed:.1} s): service ls {ls:.0} ms, leader {rss:.0} MB"
        );
        figures.extend([("service_ls_20000_ms", ls), ("leader_rss_mb", rss)]);
    }
    let text: Vec<String> = figures
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value:.3}"))
        .collect();
    println!("{{{}}}", text.join(","));
}
