//! `logs` and `service logs`: output of tasks on any node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::object::{Key, NodeState, Object};
use model::{NodeId, ServiceId, TaskId};
use proto::control::{WatchEvent, WatchRequest};
use proto::host::{LogEntry, LogsRequest};
use proto::types::Kind;
use runtime::merge::{Merge, Next, Patience};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::client::{Client, Fail};
use crate::command::service_list::tasks;
use crate::fan::{Act, Fan, NodeView, TaskView};
use crate::locate::{self, locate};
use crate::output::{Line, Output};
use crate::prefix::Names;
use crate::{moment, render};

/// Lines of one node that are read before it is their turn, each of 16 KiB at most.
const AHEAD: usize = 32;
/// Events under way from all nodes.
const QUEUE: usize = 64;
/// A node that does not begin to answer within this is out of reach.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// How long others wait for a node that says nothing, when all there is is to be shown in order.
const FETCH: Patience = Patience {
    first_ms: 2000,
    later_ms: 1000,
};
/// And when new lines are to be shown soon.
const FOLLOW: Patience = Patience {
    first_ms: 2000,
    later_ms: 100,
};

/// Show the output of a container.
///
/// On a manager the container may be on any node.
#[derive(clap::Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    which: Which,
    /// Only until then, written as with --since.
    #[arg(long)]
    until: Option<String>,
    /// On this node only, by name or id.
    #[arg(long)]
    node: Option<String>,
    /// Container, task (`web.1`), or the beginning of an id.
    container: String,
}

/// Show the output of a service's tasks, on whichever nodes they are.
///
/// Lines are merged by time. Other than with Docker a node that is down or dies is told with one warning and the rest
/// goes on; with --follow its lines come when it is back, and following ends when the service is removed.
#[derive(clap::Args)]
pub(crate) struct ServiceLogsArgs {
    #[command(flatten)]
    which: Which,
    /// The lines alone, without the task before each.
    #[arg(long)]
    raw: bool,
    /// Ids of tasks in full.
    #[arg(long)]
    no_trunc: bool,
    /// Names of tasks without their ids.
    #[arg(long)]
    no_task_ids: bool,
    /// Ids instead of names.
    #[arg(long)]
    no_resolve: bool,
    /// Service, or one task (`web.1`).
    #[arg(value_name = "SERVICE|TASK")]
    service: String,
}

#[derive(clap::Args)]
struct Which {
    /// Go on with what comes.
    #[arg(long, short)]
    follow: bool,
    /// The last lines of each container only; `all` for all.
    #[arg(long, short = 'n', default_value = "all")]
    tail: String,
    /// With the time of each line.
    #[arg(long, short)]
    timestamps: bool,
    /// Only from then on: `10m`, `2024-05-01T12:00:00Z`, or seconds since 1970.
    #[arg(long)]
    since: Option<String>,
    /// With the ids of node, service and task before each line.
    #[arg(long)]
    details: bool,
}

impl Which {
    fn request(&self) -> Result<LogsRequest, Fail> {
        let tail = match self.tail.as_str() {
            "all" => None,
            // Docker reads every negative number so.
            number if number.parse::<i64>().is_ok_and(|n| n < 0) => None,
            number => Some(
                number
                    .parse()
                    .map_err(|_| Fail::new(format!("--tail {number}: write a number or \"all\"")))?,
            ),
        };
        let since = self
            .since
            .as_ref()
            .map(|text| moment::parse(text, moment::now_ns()));
        Ok(LogsRequest {
            containers: Vec::new(),
            tail,
            since_ns: since.transpose()?.unwrap_or(0),
            follow: self.follow,
            lenient: false,
        })
    }
}

/// `logs` of one container.
pub(crate) async fn logs(client: &Client, args: LogsArgs) -> Result<u8, Fail> {
    let mut request = args.which.request()?;
    let until = args
        .until
        .as_ref()
        .map(|text| moment::parse(text, moment::now_ns()));
    let until = until.transpose()?.unwrap_or(u64::MAX);
    let mut located = locate(client, &args.container, args.node.as_deref()).await?;
    request.containers = vec![located.container.clone()];
    let details = if args.which.details {
        let found = proto::host::ContainerRequest {
            container: located.container.clone(),
        };
        let labels = located.host.find_container(found).await?.into_inner().labels;
        let ids = ["node.id", "service.id", "task.id"].map(|key| {
            let key = format!("com.docker.swarm.{key}");
            let value = labels.get(&key).cloned().unwrap_or_default();
            format!("{key}={value}")
        });
        format!("{} ", ids.join(","))
    } else {
        String::new()
    };
    let mut entries = located.host.logs(request).await?.into_inner();
    let mut out = Output::new(args.which.timestamps);
    loop {
        let entry = match entries.message().await {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(status) => {
                out.flush();
                return Err(Fail::new(format!(
                    "the connection to {} was lost: {}",
                    located.place,
                    status.message()
                )));
            }
        };
        if entry.time_ns > until {
            break;
        }
        let line = Line {
            time_ns: entry.time_ns,
            stderr: entry.stderr,
            prefix: &details,
            text: &entry.line,
            whole: false,
        };
        if !out.put(&line) {
            return Ok(0);
        }
        out.flush();
    }
    Ok(0)
}

/// Shows the output of one container from its beginning until it ends.
pub(crate) async fn follow(client: &Client, container: &str) -> Result<u8, Fail> {
    let args = LogsArgs {
        which: Which {
            follow: true,
            tail: "all".into(),
            timestamps: false,
            since: None,
            details: false,
        },
        until: None,
        node: None,
        container: container.to_owned(),
    };
    logs(client, args).await
}

/// What is followed.
struct Subject {
    service: ServiceId,
    /// Only this task of it.
    task: Option<TaskId>,
}

impl Subject {
    async fn find(client: &Client, reference: &str) -> Result<Self, Fail> {
        match client.get(Kind::Service, reference).await {
            Ok(Object::Service(service)) => {
                return Ok(Self {
                    service: service.id,
                    task: None,
                });
            }
            Ok(_) => return Err(Fail::new("the daemon answered another kind of object")),
            Err(error) if error.code == Some(tonic::Code::NotFound) => {}
            Err(error) => return Err(error),
        }
        let found = locate::candidates(client, reference).await?;
        let found = found.ok_or_else(|| {
            Fail::new(format!(
                "no such task or service: {reference}: `rswarm service ls` lists what there is"
            ))
        })?;
        let task = locate::best(&found, reference)?;
        Ok(Self {
            service: task.service,
            task: Some(task.id),
        })
    }
}

/// What happens while logs are read.
enum Event {
    Opened(u64),
    /// The permit is the line's place ahead of its turn.
    Line(u64, LogEntry, OwnedSemaphorePermit),
    Ended(u64, Result<(), String>),
    Changed(WatchEvent),
    Lost(String),
}

struct Follower<'c> {
    client: &'c Client,
    subject: Subject,
    names: Names,
    fan: Fan,
    events: mpsc::Sender<Event>,
    began: Instant,
    merge: Merge<(LogEntry, OwnedSemaphorePermit)>,
    /// A warning was given.
    warned: bool,
}

/// `service logs`.
pub(crate) async fn service_logs(client: &Client, args: ServiceLogsArgs) -> Result<u8, Fail> {
    let request = args.which.request()?;
    let subject = Subject::find(client, &args.service).await?;
    let follow = request.follow;
    let (events, mut queue) = mpsc::channel(QUEUE);
    let mut follower = Follower {
        client,
        names: Names {
            raw: args.raw,
            details: args.which.details,
            no_trunc: args.no_trunc,
            no_task_ids: args.no_task_ids,
            no_resolve: args.no_resolve,
            ..Names::default()
        },
        fan: Fan::new(request),
        events,
        began: Instant::now(),
        merge: Merge::new(if follow { FOLLOW } else { FETCH }),
        warned: false,
        subject,
    };
    if follow {
        follower.watch(vec![Kind::Node.into()], String::new()).await?;
        let kinds = vec![Kind::Task.into(), Kind::Service.into()];
        follower
            .watch(kinds, follower.subject.service.to_string())
            .await?;
        // Both first events come before anything is opened, so that no node is taken for one that left.
        let mut snapshots = 0;
        while snapshots < 2 {
            match queue.recv().await {
                Some(Event::Changed(event)) => {
                    snapshots += usize::from(event.snapshot);
                    follower.change(event)?;
                }
                Some(Event::Lost(reason)) => return Err(lost(&reason)),
                Some(Event::Opened(_) | Event::Line(..) | Event::Ended(..)) | None => {}
            }
        }
    } else {
        for object in client.list(Kind::Node, &[]).await? {
            follower.object(&object);
        }
        let filter = format!("service={}", follower.subject.service);
        for task in tasks(client, &[filter]).await? {
            follower.object(&Object::Task(task));
        }
    }
    let mut out = Output::new(args.which.timestamps);
    follower.run(&mut queue, &mut out).await?;
    out.flush();
    // Of a service the rest was shown; of one task there is no rest.
    Ok(u8::from(follower.warned && follower.subject.task.is_some()))
}

fn lost(reason: &str) -> Fail {
    Fail::new(format!(
        "this node's daemon does not say any more what changes in the cluster: {reason}"
    ))
}

impl Follower<'_> {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn watch(&self, kinds: Vec<i32>, service: String) -> Result<(), Fail> {
        let request = WatchRequest { kinds, service };
        let mut changes = self.client.control().await?.watch(request).await?.into_inner();
        let events = self.events.clone();
        tokio::spawn(async move {
            loop {
                let (event, last) = match changes.message().await {
                    Ok(Some(event)) => (Event::Changed(event), false),
                    Ok(None) => (Event::Lost("its connection ended".into()), true),
                    Err(status) => (Event::Lost(status.message().into()), true),
                };
                if events.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(())
    }

    fn object(&mut self, object: &Object) {
        match object {
            Object::Node(node) => {
                let view = NodeView {
                    hostname: node.description.hostname.clone(),
                    down: node.status.state == NodeState::Down,
                };
                self.names.nodes.insert(node.id, view.hostname.clone());
                self.names.ready.clear();
                self.fan.node(node.id, view);
            }
            Object::Task(task) if self.subject.task.is_none_or(|only| only == task.id) => {
                let view = TaskView {
                    name: task.name(),
                    node: task.node,
                    started: task.status.container.is_some(),
                    over: task.status.state.is_terminal(),
                };
                self.names.tasks.insert(task.id, task.clone());
                self.names.ready.clear();
                self.fan.task(task.id, view);
            }
            _ => {}
        }
    }

    fn change(&mut self, event: WatchEvent) -> Result<(), Fail> {
        for object in event.changed {
            let object = Object::try_from(object)?;
            self.object(&object);
        }
        for key in event.removed {
            match Key::try_from(key)? {
                Key::Node(id) => self.fan.node_gone(id),
                Key::Task(id) => {
                    self.fan.task_gone(id);
                    self.names.forget(id);
                    if self.subject.task == Some(id) {
                        self.fan.close();
                    }
                }
                Key::Service(_) => self.fan.close(),
                _ => {}
            }
        }
        if self.subject.task.is_some() {
            // One task has no successor.
            self.fan.close();
        }
        Ok(())
    }

    fn step(&mut self) {
        for act in self.fan.step(self.now()) {
            self.act(act);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Warn(text) => {
                self.warned = true;
                render::warn(&text);
            }
            Act::Open {
                stream,
                node,
                request,
            } => {
                self.merge.add(stream, self.now());
                let socket = Client::new(self.client.socket.clone());
                tokio::spawn(read(socket, node, request, stream, self.events.clone()));
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Fail> {
        match event {
            Event::Opened(stream) => self.fan.opened(stream),
            Event::Line(stream, entry, place) => {
                if self.fan.line(stream, &entry) {
                    self.merge.push(stream, entry.time_ns, (entry, place));
                }
            }
            Event::Ended(stream, result) => {
                self.merge.end(stream);
                if let Some(act) = self.fan.ended(stream, result, self.now()) {
                    self.act(act);
                }
                self.step();
            }
            Event::Changed(change) => {
                self.change(change)?;
                self.step();
            }
            Event::Lost(reason) => return Err(lost(&reason)),
        }
        Ok(())
    }

    async fn run(&mut self, queue: &mut mpsc::Receiver<Event>, out: &mut Output) -> Result<(), Fail> {
        self.step();
        loop {
            while let Ok(event) = queue.try_recv() {
                self.event(event)?;
            }
            let now = self.now();
            let until = match self.merge.next(now) {
                Next::Item((entry, place)) => {
                    drop(place);
                    if !self.names.print(&entry, out) {
                        return Ok(());
                    }
                    continue;
                }
                Next::End if self.fan.is_over() => return Ok(()),
                Next::End => None,
                Next::Wait { until_ms } => until_ms,
            };
            out.flush();
            let wake = until.into_iter().chain(self.fan.wake_ms(now)).min();
            let pause = wake.map(|at| Duration::from_millis(at.saturating_sub(now).max(1)));
            tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.event(event)?,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => self.step(),
            }
        }
    }
}

async fn read(client: Client, node: NodeId, request: LogsRequest, stream: u64, events: mpsc::Sender<Event>) {
    let result = read_to_end(&client, node, request, stream, &events).await;
    let _ = events.send(Event::Ended(stream, result)).await;
}

async fn read_to_end(
    client: &Client,
    node: NodeId,
    request: LogsRequest,
    stream: u64,
    events: &mpsc::Sender<Event>,
) -> Result<(), String> {
    let open = async {
        let mut host = client.host_of(Some(node)).await?;
        Ok::<_, Fail>(host.logs(request).await?.into_inner())
    };
    let opened = tokio::time::timeout(OPEN_LIMIT, open).await;
    let mut entries = opened
        .map_err(|_| format!("no answer within {} s", OPEN_LIMIT.as_secs()))?
        .map_err(|e| e.message)?;
    if events.send(Event::Opened(stream)).await.is_err() {
        return Ok(());
    }
    let ahead = Arc::new(Semaphore::new(AHEAD));
    while let Ok(place) = ahead.clone().acquire_owned().await {
        match entries.message().await {
            Ok(Some(entry)) if !entry.absent.is_empty() => {}
            Ok(Some(entry)) => {
                if events.send(Event::Line(stream, entry, place)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(status.message().to_owned()),
        }
    }
    Ok(())
}
