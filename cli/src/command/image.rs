//! `image`.

use std::io::Read;
use std::path::{Path, PathBuf};

use proto::host::{
    BuildOptions, Chunk, ImageEvent, ImageRequest, ImportOptions, ListImagesRequest, RemoveImagesRequest,
    TagImageRequest,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, Fail};
use crate::command::network::pairs;
use crate::render::{self, InspectArgs, ListArgs, Look};

/// Bytes of one chunk, and chunks under way.
const CHUNK: usize = 512 << 10;
const QUEUE: usize = 4;

/// Manage images of this node.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Load images from a `docker save` archive or an OCI layout.
    Load {
        /// The archive; standard input where none is given.
        #[arg(long, short)]
        input: Option<PathBuf>,
        #[arg(long, short)]
        quiet: bool,
    },
    /// Make an image of the tar of a root file system (`-`: standard input).
    Import {
        file: PathBuf,
        #[arg(default_value = "")]
        reference: String,
    },
    /// Build an image from a Dockerfile. `RUN` is refused: nothing is run in a build yet.
    Build {
        #[arg(long, short)]
        tag: Vec<String>,
        /// Dockerfile in the context.
        #[arg(long, short, default_value = "Dockerfile")]
        file: String,
        #[arg(long)]
        build_arg: Vec<String>,
        #[arg(long)]
        label: Vec<String>,
        #[arg(long, default_value = "")]
        target: String,
        #[arg(long, short)]
        quiet: bool,
        context: PathBuf,
    },
    /// List images.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show images.
    Inspect {
        #[arg(required = true)]
        images: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Give an image a further name.
    Tag { source: String, target: String },
    /// Remove images.
    Rm {
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Sends a reader as chunks, the first with its options.
fn send(mut reader: impl Read + Send + 'static, first: Chunk) -> ReceiverStream<Chunk> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        if sender.blocking_send(first).is_err() {
            return;
        }
        let mut buffer = vec![0u8; CHUNK];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            if sender
                .blocking_send(Chunk {
                    data: buffer[..n].to_vec(),
                    ..Chunk::default()
                })
                .is_err()
            {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn show(mut events: tonic::Streaming<ImageEvent>, quiet: bool) -> Result<Vec<ImageEvent>, Fail> {
    let mut done = Vec::new();
    while let Some(event) = events.message().await? {
        if !quiet {
            render::line(&event.status);
        }
        if !event.image_id.is_empty() {
            done.push(event);
        }
    }
    Ok(done)
}

/// Builds from a folder; answers the image's id.
pub(crate) async fn build(
    client: &Client,
    context: &Path,
    options: BuildOptions,
    quiet: bool,
) -> Result<String, Fail> {
    if !context.is_dir() {
        return Err(Fail::new(format!(
            "the build context {} is no folder",
            context.display()
        )));
    }
    let (reader, writer) = std::io::pipe()?;
    let folder = context.to_owned();
    let packed = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let mut tar = tar::Builder::new(std::io::BufWriter::new(writer));
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &folder)?;
        tar.into_inner()?.into_inner().map_err(|e| e.into_error())?;
        Ok(())
    });
    let first = Chunk {
        build: Some(options),
        ..Chunk::default()
    };
    let events = client
        .host()
        .await?
        .build_image(send(reader, first))
        .await?
        .into_inner();
    let done = show(events, quiet).await?;
    packed
        .await
        .map_err(|e| Fail::new(e.to_string()))?
        .map_err(|e| Fail::new(format!("pack the build context: {e}")))?;
    Ok(done.into_iter().next().map(|e| e.image_id).unwrap_or_default())
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Load { input, quiet } => {
            let stream = match input {
                Some(path) => {
                    let file = std::fs::File::open(&path)
                        .map_err(|e| Fail::new(format!("read {}: {e}", path.display())))?;
                    send(file, Chunk::default())
                }
                None => send(std::io::stdin(), Chunk::default()),
            };
            show(client.host().await?.load_image(stream).await?.into_inner(), quiet).await?;
        }
        Command::Import { file, reference } => {
            let first = Chunk {
                import: Some(ImportOptions {
                    reference,
                    changes: vec![],
                }),
                ..Chunk::default()
            };
            let stream = if file.as_os_str() == "-" {
                send(std::io::stdin(), first)
            } else {
                send(
                    std::fs::File::open(&file)
                        .map_err(|e| Fail::new(format!("read {}: {e}", file.display())))?,
                    first,
                )
            };
            show(
                client.host().await?.import_image(stream).await?.into_inner(),
                false,
            )
            .await?;
        }
        Command::Build {
            tag,
            file,
            build_arg,
            label,
            target,
            quiet,
            context,
        } => {
            let options = BuildOptions {
                dockerfile: file,
                tags: tag,
                build_args: pairs(&build_arg),
                labels: pairs(&label),
                target,
            };
            let id = build(client, &context, options, quiet).await?;
            if quiet {
                render::line(id);
            }
        }
        Command::Ls(args) => {
            let reply = client
                .host()
                .await?
                .list_images(ListImagesRequest {})
                .await?
                .into_inner();
            let mut rows = Vec::new();
            for image in &reply.images {
                let none = vec!["<none>:<none>".to_owned()];
                for reference in if image.references.is_empty() {
                    &none
                } else {
                    &image.references
                } {
                    let (name, tag) = reference.rsplit_once(':').unwrap_or((reference, ""));
                    let shown = if args.no_trunc {
                        image.id.clone()
                    } else {
                        image.id.chars().skip(7).take(12).collect()
                    };
                    rows.push(json!({"ID": shown, "Reference": reference, "Repository": name, "Tag": tag, "Size": model::Bytes(image.size_bytes).to_string()}));
                }
            }
            let known = [("reference", Look::Holds("Reference"))];
            render::filter(&mut rows, &args.filter, &known)?;
            render::list(
                &rows,
                &[
                    ("REPOSITORY", "Repository"),
                    ("TAG", "Tag"),
                    ("IMAGE ID", "ID"),
                    ("SIZE", "Size"),
                ],
                &args,
            )?;
        }
        Command::Inspect { images, how } => {
            let mut values = Vec::new();
            for reference in images {
                let reply = client
                    .host()
                    .await?
                    .inspect_image(ImageRequest { reference })
                    .await?
                    .into_inner();
                values.push(serde_json::from_str(&reply.json).map_err(|e| Fail::new(e.to_string()))?);
            }
            render::inspect(&values, &how)?;
        }
        Command::Tag { source, target } => {
            client
                .host()
                .await?
                .tag_image(TagImageRequest { source, target })
                .await?;
        }
        Command::Rm { force, images } => {
            let reply = client
                .host()
                .await?
                .remove_images(RemoveImagesRequest {
                    references: images,
                    force,
                })
                .await?
                .into_inner();
            reply
                .untagged
                .iter()
                .for_each(|n| render::line(format!("Untagged: {n}")));
            reply
                .deleted
                .iter()
                .for_each(|n| render::line(format!("Deleted: {n}")));
        }
    }
    Ok(0)
}
