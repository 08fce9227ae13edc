//! The service for operators of this host: images, volumes, containers, exec, logs.

mod copy;
mod exec;
mod find;
mod logs;
mod usage;

use std::sync::Arc;

use image::{BuildRequest, Removed, StoreError};
use proto::host as w;
use proto::host::host_server::Host;
use runtime::{ContainerInfo, ContainerState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::{Shared, now};
use crate::streams::ChunkReader;
use crate::tasks::{blocking, chain};
use crate::translate::{IMAGE_ID_LABEL, NAME_LABEL};
use crate::volumes::VolumeRecord;

/// Messages under way to a client that is slower than we are.
const QUEUE: usize = 64;
/// Calls of each kind at the same time: each holds threads or processes as long as a client wants.
const EXECS_MAX: usize = 256;
/// Copies at the same time; each holds one thread, and writes or reads the disk as fast as it can.
const COPIES_MAX: usize = 16;
/// Logs being read at the same time; each holds a thread, of those the daemon's runtime has (`cli/src/main.rs`).
const READERS_MAX: usize = 1024;

type Events<T> = ReceiverStream<Result<T, Status>>;

/// The service; see `proto/rswarm/host.proto`.
pub struct HostService {
    shared: Arc<Shared>,
    execs: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl HostService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            execs: Arc::new(Semaphore::new(EXECS_MAX)),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }
}

/// Takes places of a bounded number, to be held as long as the call goes on.
fn admit(places: &Arc<Semaphore>, wanted: usize, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    let places = places.clone().try_acquire_many_owned(wanted);
    places.map_err(|_| {
        Status::resource_exhausted(format!(
            "this node has as many {what} under way as it takes: try again later"
        ))
    })
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
    type CopyFromStream = Events<w::CopyOutput>;

    async fn load_image(
        &self,
        request: Request<Streaming<w::Chunk>>,
    ) -> Result<Response<Self::LoadImageStream>, Status> {
        let mut stream = request.into_inner();
        let start = first(&mut stream).await?;
        let (images, reader) = (
            self.shared.images.clone(),
            ChunkReader::new(start.data, stream, |c| c.data),
        );
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
        let (images, reader) = (
            self.shared.images.clone(),
            ChunkReader::new(start.data, stream, |c| c.data),
        );
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
        let (images, reader) = (
            self.shared.images.clone(),
            ChunkReader::new(start.data, stream, |c| c.data),
        );
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
            .map(find::container)
            .collect();
        Ok(Response::new(w::ListContainersReply { containers }))
    }

    async fn find_container(
        &self,
        request: Request<w::ContainerRequest>,
    ) -> Result<Response<w::Container>, Status> {
        let found = self.find(&request.into_inner().container)?;
        Ok(Response::new(find::container(found)))
    }

    async fn stats(&self, request: Request<w::StatsRequest>) -> Result<Response<w::StatsReply>, Status> {
        usage::stats(self, request.into_inner().containers)
            .await
            .map(Response::new)
    }

    async fn top(&self, request: Request<w::ContainerRequest>) -> Result<Response<w::TopReply>, Status> {
        usage::top(self, &request.into_inner().container)
            .await
            .map(Response::new)
    }

    async fn exec(
        &self,
        request: Request<Streaming<w::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        exec::start(self, request.into_inner()).await
    }

    async fn logs(&self, request: Request<w::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        logs::start(self, &request.into_inner())
    }

    async fn copy_from(
        &self,
        request: Request<w::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        copy::from(self, request.into_inner()).await
    }

    async fn copy_to(
        &self,
        request: Request<Streaming<w::CopyInput>>,
    ) -> Result<Response<w::CopyToReply>, Status> {
        copy::to(self, request.into_inner()).await.map(Response::new)
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
