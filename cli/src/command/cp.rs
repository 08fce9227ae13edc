//! `cp`: files between this host and a container on any node.

use std::io::{Read, Write};
use std::path::Path;

use proto::host::{CopyFromRequest, CopyInput, CopySource, CopyStart};
use runtime::copy::{self, CopyError, Options, Owner, Shape};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, Fail};
use crate::locate::{Located, locate};
use crate::render;

/// Bytes of one message.
const PIECE: usize = 128 << 10;
/// Messages under way.
const QUEUE: usize = 4;

/// Copy files between this host and a container that runs or failed, on any node.
///
/// `-` as SRC unpacks a tar from standard input into the folder DST, `-` as DST writes one to standard output; it is
/// never compressed. SRC that ends with `/.` means what is in the folder. Of a container that does not run its volumes
/// are not seen, and only one that failed still has files.
///
/// Other than with Docker, nothing is written outside the folder that is copied to, whatever links are there; without
/// --archive what comes out of a container loses set-user-id bits and device nodes; device nodes do not go into one.
#[derive(clap::Args)]
#[command(
    override_usage = "rswarm cp [OPTIONS] CONTAINER:SRC DST|-\n       rswarm cp [OPTIONS] SRC|- CONTAINER:DST"
)]
pub(crate) struct Args {
    /// Keep owners: user and group as numbers. Otherwise files are root's in the container, and yours here.
    #[arg(long, short)]
    archive: bool,
    /// Copy what a link at SRC leads to.
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Do not say what was copied.
    #[arg(long, short)]
    quiet: bool,
    /// On this node only, by name or id.
    #[arg(long)]
    node: Option<String>,
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: String,
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Container(&'a str, &'a str),
    Here(&'a str),
    Stream,
}

/// `web.1:/path` is in a container; what begins with `/` or `.` is here, whatever colons it has.
fn side(text: &str) -> Side<'_> {
    if text == "-" {
        return Side::Stream;
    }
    match text.split_once(':') {
        Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
            Side::Container(container, path)
        }
        _ => Side::Here(text),
    }
}

pub(crate) async fn run(client: &Client, args: Args) -> Result<u8, Fail> {
    match (side(&args.source), side(&args.destination)) {
        (Side::Container(..), Side::Container(..)) => Err(Fail::new(
            "copying between containers is not supported: copy to a file of this host first, or through a pipe with -",
        )),
        (Side::Container(container, path), destination) => {
            let located = locate(client, container, args.node.as_deref()).await?;
            from(located, path, &destination, &args).await
        }
        (source, Side::Container(container, path)) => {
            let located = locate(client, container, args.node.as_deref()).await?;
            to(located, path, &source, &args).await
        }
        (Side::Here(_) | Side::Stream, Side::Here(_) | Side::Stream) => Err(Fail::new(
            "neither side is in a container: write one as CONTAINER:PATH, such as web.1:/etc/hosts",
        )),
    }
}

fn chain(error: &CopyError) -> Fail {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    Fail::new(text)
}

fn copied(args: &Args, bytes: u64, devices_left_out: u64) {
    if devices_left_out > 0 {
        render::warn(&format!("{devices_left_out} device nodes were left out"));
    }
    if !args.quiet {
        let size = render::bytes(bytes, 1000, 3);
        render::progress(&format!("Successfully copied {size} to {}", args.destination));
    }
}

/// Runs what blocks.
async fn aside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Fail> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|e| Fail::new(e.to_string()))
}

async fn from(located: Located, path: &str, destination: &Side<'_>, args: &Args) -> Result<u8, Fail> {
    let Located {
        mut host, container, ..
    } = located;
    let request = CopyFromRequest {
        container,
        path: path.into(),
        follow: args.follow_link,
    };
    let mut output = host.copy_from(request).await?.into_inner();
    let first = output.message().await?.and_then(|m| m.source);
    let source = first.ok_or_else(|| Fail::new("the daemon did not say what it copies"))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let path = match destination {
        Side::Here(path) => Some((*path).to_owned()),
        Side::Stream | Side::Container(..) => None,
    };
    if path.is_none() && rustix::termios::isatty(rustix::stdio::stdout()) {
        return Err(Fail::new(
            "a tar is not written to a terminal: name a file, or redirect the output",
        ));
    }
    let archive = args.archive;
    let writer = aside(move || write(receiver, path, &source, archive));
    let pump = async {
        loop {
            match output.message().await {
                Ok(Some(message)) => {
                    if sender.send(Ok(message.data)).await.is_err() {
                        // The writer says why.
                        break;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    let broken = std::io::Error::other(status.message().to_owned());
                    let _ = sender.send(Err(broken)).await;
                    drop(sender);
                    return Err(Fail::from(status));
                }
            }
        }
        drop(sender);
        Ok(())
    };
    let (written, pumped) = tokio::join!(writer, pump);
    // When the far end broke off, what was written is not the reason.
    pumped?;
    let outcome = written?.map_err(|e| chain(&e))?;
    if matches!(destination, Side::Here(_)) {
        copied(args, outcome.bytes, outcome.devices_left_out);
    }
    Ok(0)
}

/// Writes a tar that comes, to standard output or as files.
fn write(
    receiver: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    path: Option<String>,
    source: &CopySource,
    archive: bool,
) -> Result<copy::Outcome, CopyError> {
    let mut data = Incoming {
        receiver,
        rest: std::io::Cursor::new(Vec::new()),
    };
    let Some(path) = path else {
        let mut out = std::io::stdout().lock();
        let written = std::io::copy(&mut data, &mut out).and_then(|n| out.flush().map(|()| n));
        let bytes = written.map_err(|source| CopyError::Io {
            what: "write the tar to standard output".into(),
            source,
        })?;
        return Ok(copy::Outcome {
            bytes,
            devices_left_out: 0,
        });
    };
    let (tree, path) = copy::local(Path::new(&path))?;
    let shape = Shape {
        folder: source.folder,
        contents: source.contents,
    };
    let target = tree.target(&path, shape)?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let options = Options {
        owner: if archive {
            Owner::Kept
        } else {
            Owner::Is(uid.as_raw(), gid.as_raw())
        },
        privileges: archive,
        devices: archive && uid.is_root(),
    };
    let outcome = copy::unpack(&mut data, &target, options)?;
    // Only the whole of it is a success: what broke off would look like a short tar.
    let rest = std::io::copy(&mut data, &mut std::io::sink());
    rest.map_err(|source| CopyError::Io {
        what: "read the end of the copy".into(),
        source,
    })?;
    Ok(outcome)
}

async fn to(located: Located, path: &str, source: &Side<'_>, args: &Args) -> Result<u8, Fail> {
    let Located {
        mut host, container, ..
    } = located;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let here = match source {
        Side::Here(path) => {
            let (path, follow) = ((*path).to_owned(), args.follow_link);
            let found = move || {
                let (tree, path) = copy::local(Path::new(&path))?;
                tree.source(&path, follow)
            };
            Some(aside(found).await?.map_err(|e| chain(&e))?)
        }
        Side::Stream | Side::Container(..) => None,
    };
    let described = here.as_ref().map(|s| CopySource {
        name: s.name.clone(),
        folder: s.shape.folder,
        contents: s.shape.contents,
        size_bytes: s.size(),
    });
    let start = CopyStart {
        container,
        path: path.into(),
        // A tar says whose its files are.
        keep_owners: args.archive || here.is_none(),
        source: described,
    };
    let first = CopyInput {
        start: Some(start),
        data: Vec::new(),
    };
    sender.send(first).await.map_err(|e| Fail::new(e.to_string()))?;
    let (failed, mut failure) = tokio::sync::oneshot::channel();
    // Not waited for: it may be blocked reading standard input when the far end has refused.
    tokio::task::spawn_blocking(move || {
        let mut out = Outgoing {
            sender,
            rest: Vec::with_capacity(PIECE),
        };
        let packed = match here {
            Some(source) => source.pack(&mut out),
            None => std::io::copy(&mut std::io::stdin().lock(), &mut out)
                .map(drop)
                .map_err(|source| CopyError::Io {
                    what: "read the tar from standard input".into(),
                    source,
                }),
        };
        let packed = packed.and_then(|()| {
            out.flush().map_err(|source| CopyError::Io {
                what: "send the copy".into(),
                source,
            })
        });
        // Before the stream ends, so that whoever sees it end sees this.
        let _ = failed.send(packed);
        drop(out);
    });
    let reply = host.copy_to(ReceiverStream::new(receiver)).await;
    match (reply, failure.try_recv()) {
        (Ok(_), Ok(Err(error))) => Err(chain(&error)),
        (Ok(reply), Ok(Ok(())) | Err(_)) => {
            let reply = reply.into_inner();
            copied(args, reply.bytes, reply.devices_left_out);
            Ok(0)
        }
        (Err(status), _) => Err(status.into()),
    }
}

/// Pieces that come, as a reader.
struct Incoming {
    receiver: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    rest: std::io::Cursor<Vec<u8>>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.rest.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = std::io::Cursor::new(piece?),
                None => return Ok(0),
            }
        }
    }
}

/// What is written, as pieces to be sent.
struct Outgoing {
    sender: mpsc::Sender<CopyInput>,
    rest: Vec<u8>,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.rest.len());
        self.rest.extend_from_slice(&bytes[..taken]);
        if self.rest.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.rest, Vec::with_capacity(PIECE));
        let sent = self.sender.blocking_send(CopyInput { start: None, data });
        sent.map_err(|_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the daemon takes no more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_colon_is_in_a_container_unless_it_is_a_path() {
        for (text, wanted) in [
            ("web.1:/etc", Side::Container("web.1", "/etc")),
            ("web:a:b", Side::Container("web", "a:b")),
            ("./web:1", Side::Here("./web:1")),
            ("/tmp/a:b", Side::Here("/tmp/a:b")),
            (":/etc", Side::Here(":/etc")),
            ("file", Side::Here("file")),
            ("-", Side::Stream),
        ] {
            assert_eq!(side(text), wanted, "{text}");
        }
    }
}
