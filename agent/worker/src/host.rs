//! The service for operators of this host: images, volumes, containers, exec, logs.

use std::sync::Arc;

use image::{BuildRequest, Removed, StoreError};
use proto::host as w;
use proto::host::host_server::Host;
use runtime::{ContainerInfo, ContainerState, ExecConfig, ExecError, LogQuery, LogStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::{Shared, now};
use crate::streams::ChunkReader;
use crate::tasks::{blocking, chain};
use crate::translate::{IMAGE_ID_LABEL, IMAGE_LABEL, NAME_LABEL, SERVICE_LABEL, TASK_LABEL};
use crate::volumes::VolumeRecord;

/// Messages under way to a client that is slower than we are.
const QUEUE: usize = 64;
/// Largest piece of a process's output in one message.
const PIECE: usize = 32 << 10;

type Events<T> = ReceiverStream<Result<T, Status>>;

/// The service; see `proto/rswarm/host.proto`.
pub struct HostService {
    shared: Arc<Shared>,
}

impl HostService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn find(&self, reference: &str) -> Result<ContainerInfo, Status> {
        let all = self.shared.runtime.list();
        let label = |c: &ContainerInfo, key: &str| c.labels.get(key).cloned().unwrap_or_default();
        let exact = all
            .iter()
            .find(|c| c.id == reference || label(c, NAME_LABEL) == reference);
        if let Some(found) = exact {
            return Ok(found.clone());
        }
        let running = |c: &&ContainerInfo| matches!(c.state, ContainerState::Running { .. });
        // `web.1` is whatever runs in that slot: while it is handed over, the newer one.
        let of_slot = |c: &&ContainerInfo| {
            label(c, NAME_LABEL)
                .rsplit_once('.')
                .is_some_and(|(task, _)| task == reference)
        };
        if let Some(found) = all
            .iter()
            .filter(of_slot)
            .max_by_key(|c| (running(c), c.created_ms))
        {
            return Ok(found.clone());
        }
        let begin = |c: &&ContainerInfo| {
            !reference.is_empty()
                && (c.id.starts_with(reference) || label(c, NAME_LABEL).starts_with(&format!("{reference}.")))
        };
        let mut candidates: Vec<&ContainerInfo> = all.iter().filter(begin).collect();
        if candidates.len() > 1 {
            candidates.retain(running);
        }
        match candidates.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Status::not_found(format!("No such container: {reference}"))),
            many => Err(Status::invalid_argument(format!(
                "container {reference} is ambiguous: {} match",
                many.len()
            ))),
        }
    }
}

fn store_status(error: &StoreError) -> Status {
    let text = chain(error);
    match error {
        StoreError::NotFound(_) | StoreError::NoBlob(_) => Status::not_found(text),
        StoreError::InUse(_) | StoreError::SeveralReferences(_) => Status::failed_precondition(text),
        StoreError::Ambiguous(_) | StoreError::Reference(_) | StoreError::Config(_) => {
            Status::invalid_argument(text)
        }
        StoreError::Io { .. } => Status::internal(text),
    }
}

fn broken(text: String) -> Status {
    Status::internal(text)
}

/// Runs an image job that blocks; its words go to the client as they come, and the last ones once the manager knows.
fn image_job<F>(shared: &Arc<Shared>, job: F) -> Response<Events<w::ImageEvent>>
where
    F: FnOnce(&mut dyn FnMut(&str)) -> Result<Vec<w::ImageEvent>, Status> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        let words = sender.clone();
        let mut say = move |text: &str| {
            let _ = words.blocking_send(Ok(w::ImageEvent {
                status: text.into(),
                ..w::ImageEvent::default()
            }));
        };
        match job(&mut say) {
            Ok(events) => {
                tokio::runtime::Handle::current().block_on(shared.images_told());
                events.into_iter().for_each(|e| drop(sender.blocking_send(Ok(e))));
            }
            Err(status) => drop(sender.blocking_send(Err(status))),
        }
    });
    Response::new(ReceiverStream::new(receiver))
}

fn done(status: String, image_id: String, references: Vec<String>) -> w::ImageEvent {
    w::ImageEvent {
        status,
        image_id,
        references,
        ..w::ImageEvent::default()
    }
}

async fn first(stream: &mut Streaming<w::Chunk>) -> Result<w::Chunk, Status> {
    stream
        .message()
        .await?
        .ok_or_else(|| Status::invalid_argument("nothing was sent"))
}

#[tonic::async_trait]
impl Host for HostService {
    type LoadImageStream = Events<w::ImageEvent>;
    type ImportImageStream = Events<w::ImageEvent>;
    type BuildImageStream = Events<w::ImageEvent>;
    type ExecStream = Events<w::ExecOutput>;
    type LogsStream = Events<w::LogEntry>;

    async fn load_image(
        &self,
        request: Request<Streaming<w::Chunk>>,
    ) -> Result<Response<Self::LoadImageStream>, Status> {
        let mut stream = request.into_inner();
        let start = first(&mut stream).await?;
        let (images, reader) = (self.shared.images.clone(), ChunkReader::new(start.data, stream));
        Ok(image_job(&self.shared, move |say| {
            let loaded = images
                .load(reader, say)
                .map_err(|e| Status::invalid_argument(chain(e)))?;
            let line = |id: &str, names: &[String]| match names.first() {
                Some(name) => format!("Loaded image: {name}"),
                None => format!("Loaded image ID: {id}"),
            };
            Ok(loaded
                .into_iter()
                .map(|(id, names)| done(line(&id, &names), id, names))
                .collect())
        }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<w::Chunk>>,
    ) -> Result<Response<Self::ImportImageStream>, Status> {
        let mut stream = request.into_inner();
        let start = first(&mut stream).await?;
        let options = start.import.unwrap_or_default();
        if !options.changes.is_empty() {
            return Err(Status::invalid_argument(
                "--change is not supported: build an image FROM the imported one",
            ));
        }
        let (images, reader) = (self.shared.images.clone(), ChunkReader::new(start.data, stream));
        Ok(image_job(&self.shared, move |_| {
            let name = Some(options.reference.as_str()).filter(|r| !r.is_empty());
            let id = images
                .import(reader, name)
                .map_err(|e| Status::invalid_argument(chain(e)))?;
            Ok(vec![done(id.clone(), id, vec![options.reference])])
        }))
    }

    async fn build_image(
        &self,
        request: Request<Streaming<w::Chunk>>,
    ) -> Result<Response<Self::BuildImageStream>, Status> {
        let mut stream = request.into_inner();
        let start = first(&mut stream).await?;
        let options = start.build.unwrap_or_default();
        let (images, reader) = (self.shared.images.clone(), ChunkReader::new(start.data, stream));
        Ok(image_job(&self.shared, move |say| {
            let request = BuildRequest {
                dockerfile: options.dockerfile,
                tags: options.tags.clone(),
                build_args: options.build_args,
                labels: options.labels,
                target: options.target,
            };
            let id = images
                .build(reader, &request, say)
                .map_err(|e| Status::invalid_argument(chain(e)))?;
            Ok(vec![done(format!("Built {id}"), id, options.tags)])
        }))
    }

    async fn list_images(
        &self,
        _: Request<w::ListImagesRequest>,
    ) -> Result<Response<w::ListImagesReply>, Status> {
        let images = self.shared.images.clone();
        let list = blocking(move || images.list()).await.map_err(broken)?;
        let image = |i: image::ImageSummary| w::Image {
            id: i.id,
            references: i.references,
            created_at_ms: 0,
            size_bytes: i.size,
            labels: i.labels,
        };
        Ok(Response::new(w::ListImagesReply {
            images: list.into_iter().map(image).collect(),
        }))
    }

    async fn inspect_image(
        &self,
        request: Request<w::ImageRequest>,
    ) -> Result<Response<w::InspectImageReply>, Status> {
        let (images, reference) = (self.shared.images.clone(), request.into_inner().reference);
        let value = blocking(move || images.inspect(&reference))
            .await
            .map_err(broken)?
            .map_err(|e| store_status(&e))?;
        Ok(Response::new(w::InspectImageReply {
            json: value.to_string(),
        }))
    }

    async fn tag_image(
        &self,
        request: Request<w::TagImageRequest>,
    ) -> Result<Response<w::TagImageReply>, Status> {
        let (images, r) = (self.shared.images.clone(), request.into_inner());
        blocking(move || images.tag(&r.source, &r.target))
            .await
            .map_err(broken)?
            .map_err(|e| store_status(&e))?;
        self.shared.images_told().await;
        Ok(Response::new(w::TagImageReply {}))
    }

    async fn remove_images(
        &self,
        request: Request<w::RemoveImagesRequest>,
    ) -> Result<Response<w::RemoveImagesReply>, Status> {
        let (shared, r) = (self.shared.clone(), request.into_inner());
        let removed = blocking(move || {
            let used: Vec<String> = shared
                .runtime
                .list()
                .iter()
                .filter_map(|c| c.labels.get(IMAGE_ID_LABEL).cloned())
                .collect();
            let in_use = |id: &str| used.iter().any(|u| u == id);
            let mut all = Vec::new();
            for reference in &r.references {
                all.extend(shared.images.remove(reference, r.force, &in_use)?);
            }
            Ok::<_, StoreError>(all)
        })
        .await
        .map_err(broken)?
        .map_err(|e| store_status(&e))?;
        self.shared.images_told().await;
        let mut reply = w::RemoveImagesReply::default();
        for item in removed {
            match item {
                Removed::Untagged(name) => reply.untagged.push(name),
                Removed::Deleted(id) => reply.deleted.push(id),
            }
        }
        Ok(Response::new(reply))
    }

    async fn create_volume(&self, request: Request<w::Volume>) -> Result<Response<w::Volume>, Status> {
        let mut r = request.into_inner();
        if r.name.is_empty() {
            r.name = format!("{:x}", now().0);
        }
        model::spec::check_name("volume", &r.name).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if !r.driver.is_empty() && r.driver != "local" {
            return Err(Status::invalid_argument(format!(
                "there is no volume driver {}; local is the only one",
                r.driver
            )));
        }
        if !r.options.is_empty() {
            return Err(Status::invalid_argument(
                "the local driver takes no options here: use a bind mount instead",
            ));
        }
        let record = VolumeRecord {
            name: r.name.clone(),
            labels: r.labels,
            options: r.options,
            created_ms: now().0,
            anonymous_of: None,
        };
        self.shared
            .volumes
            .ensure(&record)
            .map_err(|e| Status::internal(format!("make the volume {}: {e}", r.name)))?;
        let record = self.shared.volumes.get(&r.name).unwrap_or(record);
        Ok(Response::new(self.volume(record)))
    }

    async fn list_volumes(
        &self,
        request: Request<w::ListVolumesRequest>,
    ) -> Result<Response<w::ListVolumesReply>, Status> {
        let names = request.into_inner().names;
        let mut volumes = Vec::new();
        if names.is_empty() {
            volumes.extend(self.shared.volumes.list().into_iter().map(|r| self.volume(r)));
        }
        for name in names {
            let record = self.shared.volumes.get(&name).ok_or_else(|| no_volume(&name))?;
            volumes.push(self.volume(record));
        }
        Ok(Response::new(w::ListVolumesReply { volumes }))
    }

    async fn remove_volumes(
        &self,
        request: Request<w::RemoveVolumesRequest>,
    ) -> Result<Response<w::RemoveVolumesReply>, Status> {
        let r = request.into_inner();
        let mounts = std::fs::read_dir("/proc")
            .map(|_| self.shared.runtime.list())
            .unwrap_or_default();
        for name in &r.names {
            if self.shared.volumes.get(name).is_none() && !r.force {
                return Err(no_volume(name));
            }
            let path = self.shared.volumes.path(name).display().to_string();
            let user = mounts.iter().find(|c| match c.state {
                ContainerState::Running { pid } => std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))
                    .is_ok_and(|text| {
                        text.lines().any(|l| {
                            l.split(' ')
                                .nth(3)
                                .is_some_and(|root| path.ends_with(root) && root.len() > 1)
                        })
                    }),
                ContainerState::Created | ContainerState::Exited(_) => false,
            });
            if let Some(user) = user {
                let who = user.labels.get(NAME_LABEL).unwrap_or(&user.id);
                return Err(Status::failed_precondition(format!(
                    "volume {name} is in use by {who}: remove its service first"
                )));
            }
        }
        for name in &r.names {
            if self.shared.volumes.get(name).is_some() {
                self.shared
                    .volumes
                    .remove(name)
                    .map_err(|e| Status::internal(format!("remove the volume {name}: {e}")))?;
            }
        }
        Ok(Response::new(w::RemoveVolumesReply {}))
    }

    async fn list_containers(
        &self,
        request: Request<w::ListContainersRequest>,
    ) -> Result<Response<w::ListContainersReply>, Status> {
        let all = request.into_inner().all;
        let wanted = |c: &ContainerInfo| all || matches!(c.state, ContainerState::Running { .. });
        let containers = self
            .shared
            .runtime
            .list()
            .into_iter()
            .filter(wanted)
            .map(container)
            .collect();
        Ok(Response::new(w::ListContainersReply { containers }))
    }

    async fn stats(&self, request: Request<w::ContainerRequest>) -> Result<Response<w::StatsReply>, Status> {
        let info = self.find(&request.into_inner().container)?;
        let stats = self.shared.runtime.stats(&info.id);
        let stats = stats
            .ok_or_else(|| Status::failed_precondition(format!("container {} is not running", info.id)))?;
        Ok(Response::new(w::StatsReply {
            cpu_ns: stats.cpu_ns,
            memory_bytes: stats.memory,
            memory_limit_bytes: stats.memory_limit,
            pids: stats.pids,
            read_at_ms: now().0,
        }))
    }

    async fn exec(
        &self,
        request: Request<Streaming<w::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let start = input.message().await?.and_then(|m| m.start);
        let start =
            start.ok_or_else(|| Status::invalid_argument("the first message must say what to run"))?;
        if start.privileged {
            return Err(Status::invalid_argument(
                "--privileged is not supported: a container's sandbox holds for exec too",
            ));
        }
        let info = self.find(&start.container)?;
        let size = start.size.unwrap_or(w::Size { rows: 24, cols: 80 });
        let config = ExecConfig {
            argv: start.argv,
            env: start.env,
            user: start.user,
            cwd: start.dir,
            tty: start.tty.then(|| (clip(size.rows), clip(size.cols))),
            stdin: start.stdin,
        };
        let mut session = self
            .shared
            .runtime
            .exec(&info.id, &config)
            .map_err(|e| match &e {
                ExecError::NotRunning { .. } => Status::failed_precondition(chain(&e)),
                ExecError::Config { .. } => Status::invalid_argument(chain(&e)),
                ExecError::Spawn { .. } => Status::internal(chain(&e)),
            })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let mut stdin = session.stdin.take();
        let pump = |stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>, error: bool| {
            let sender = sender.clone();
            async move {
                let Some(mut stream) = stream else { return };
                let mut buffer = vec![0u8; PIECE];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let piece = buffer[..n].to_vec();
                    let (stdout, stderr) = if error {
                        (Vec::new(), piece)
                    } else {
                        (piece, Vec::new())
                    };
                    if sender
                        .send(Ok(w::ExecOutput {
                            stdout,
                            stderr,
                            exit_code: None,
                        }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        };
        let outputs = tokio::spawn({
            let (out, err) = (pump(stdout, false), pump(stderr, true));
            async move {
                tokio::join!(out, err);
            }
        });
        tokio::spawn(async move {
            let mut more = true;
            let code = loop {
                tokio::select! {
                    code = session.wait() => break code.unwrap_or(255),
                    () = sender.closed() => {
                        session.kill();
                        return;
                    }
                    message = input.message(), if more => match message {
                        Ok(Some(message)) => {
                            if let Some(size) = message.resize {
                                session.resize(clip(size.rows), clip(size.cols));
                            }
                            if let Some(pipe) = stdin.as_mut().filter(|_| !message.stdin.is_empty())
                                && (pipe.write_all(&message.stdin).await.is_err() || pipe.flush().await.is_err()) {
                                    stdin = None;
                                }
                            if message.stdin_closed {
                                stdin = None;
                            }
                        }
                        Ok(None) | Err(_) => {
                            stdin = None;
                            more = false;
                        }
                    },
                }
            };
            let _ = outputs.await;
            let _ = sender
                .send(Ok(w::ExecOutput {
                    exit_code: Some(code),
                    ..w::ExecOutput::default()
                }))
                .await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn logs(&self, request: Request<w::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let r = request.into_inner();
        let infos = r
            .containers
            .iter()
            .map(|c| self.find(c))
            .collect::<Result<Vec<_>, _>>()?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let query = LogQuery {
            tail: r.tail.map(|t| usize::try_from(t).unwrap_or(usize::MAX)),
            since_ns: r.since_ns,
            follow: r.follow,
        };
        for info in infos {
            let mut lines = self.shared.runtime.logs(&info.id, query);
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(line) = lines.recv().await {
                    let entry = w::LogEntry {
                        container: info.id.clone(),
                        task: info.labels.get(TASK_LABEL).cloned().unwrap_or_default(),
                        time_ns: line.time_ns,
                        stderr: line.stream == LogStream::Stderr,
                        line: line.text,
                    };
                    if sender.send(Ok(entry)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl HostService {
    fn volume(&self, record: VolumeRecord) -> w::Volume {
        w::Volume {
            mountpoint: self.shared.volumes.path(&record.name).display().to_string(),
            name: record.name,
            driver: "local".into(),
            options: record.options,
            labels: record.labels,
            created_at_ms: record.created_ms,
        }
    }
}

fn no_volume(name: &str) -> Status {
    Status::not_found(format!(
        "no such volume: {name}: `rswarm volume ls` lists what there is"
    ))
}

fn clip(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn container(info: ContainerInfo) -> w::Container {
    let label = |key: &str| info.labels.get(key).cloned().unwrap_or_default();
    let (state, pid, exit_code, finished) = match info.state {
        ContainerState::Created => ("created", 0, None, 0),
        ContainerState::Running { pid } => ("running", pid, None, 0),
        ContainerState::Exited(exit) => ("exited", 0, exit.code, exit.finished_ms),
    };
    w::Container {
        name: label(NAME_LABEL),
        image: label(IMAGE_LABEL),
        task: label(TASK_LABEL),
        service: label(SERVICE_LABEL),
        command: info.argv,
        created_at_ms: info.created_ms,
        state: state.into(),
        pid,
        exit_code,
        started_at_ms: info.started_ms,
        finished_at_ms: finished,
        health: String::new(),
        labels: info.labels,
        id: info.id,
    }
}
