//! `stack`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use deploy::{Compose, Problem, Source, Surroundings};
use futures::future::join_all;
use model::object::Object;
use model::spec::{STACK_LABEL, check_name};
use proto::control::{Change, DeployStackRequest, RemoveStacksRequest, ResolveImage, StackChange};
use proto::types::Kind;
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::command::service;
use crate::command::service_flags::Wait;
use crate::command::service_list;
use crate::progress::{Board, Target, last_rollout};
use crate::render::{self, ListArgs};

/// Manage stacks.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Deploy a stack, or change it to what its files say.
    ///
    /// Everything is checked first and then applied at once: on an error nothing has changed. Other than Docker, it
    /// waits until every service converged (exit codes 0, 2 rolled back, 3 paused, 4 timed out); -d returns at once.
    #[command(alias = "up")]
    Deploy(DeployArgs),
    /// Print the files as one, merged and in long form.
    Config {
        #[command(flatten)]
        files: Files,
        /// Leave variables as they are.
        #[arg(long)]
        skip_interpolation: bool,
    },
    /// List stacks.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// List the tasks of a stack.
    Ps {
        #[command(flatten)]
        list: ListArgs,
        stack: String,
    },
    /// List the services of a stack.
    Services {
        #[command(flatten)]
        list: ListArgs,
        stack: String,
    },
    /// Remove stacks.
    #[command(alias = "remove", alias = "down")]
    Rm {
        /// Accepted for Docker's habits: the tasks always end in the background.
        #[arg(long, short)]
        detach: bool,
        #[arg(required = true)]
        stacks: Vec<String>,
    },
}

/// Where a stack is described.
#[derive(clap::Args)]
pub(crate) struct Files {
    /// A compose file, or - for standard input; of several, the later ones win.
    #[arg(
        long = "compose-file",
        short = 'c',
        value_name = "FILE",
        required = true,
        value_delimiter = ','
    )]
    files: Vec<String>,
}

/// When names of images are looked up.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Resolve {
    Always,
    Changed,
    Never,
}

impl From<Resolve> for ResolveImage {
    fn from(when: Resolve) -> Self {
        match when {
            Resolve::Always => Self::Always,
            Resolve::Changed => Self::Changed,
            Resolve::Never => Self::Never,
        }
    }
}

/// What is deployed and how.
#[derive(clap::Args)]
pub(crate) struct DeployArgs {
    #[command(flatten)]
    files: Files,
    /// Remove services that the files no longer have.
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    wait: Wait,
    /// When to look up which image a name means: at each deploy, only where the name changed, or never.
    #[arg(long, value_enum, default_value = "always")]
    resolve_image: Resolve,
    /// Accepted for Docker's habits: there is no registry yet.
    #[arg(long)]
    with_registry_auth: bool,
    stack: String,
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Deploy(args) => return deploy_stack(client, &args).await,
        Command::Config {
            files,
            skip_interpolation,
        } => {
            let mut compose = load(&files, skip_interpolation)?;
            warn(compose.warnings());
            compose.absolute(&folder(&files)?, &std::env::var("HOME").unwrap_or_default());
            render::line(compose.to_yaml().trim_end());
        }
        Command::Ls(args) => ls(client, &args).await?,
        Command::Ps { mut list, stack } => {
            list.filter.push(label(&stack));
            if client.list(Kind::Service, &[label(&stack)]).await?.is_empty()
                && client.list(Kind::Task, &[label(&stack)]).await?.is_empty()
            {
                return Err(Fail::new(format!("nothing found in stack: {stack}")));
            }
            service_list::task_rows(client, &list).await?;
        }
        Command::Services { mut list, stack } => {
            list.filter.push(label(&stack));
            if client.list(Kind::Service, &[label(&stack)]).await?.is_empty() {
                return Err(Fail::new(format!("nothing found in stack: {stack}")));
            }
            service_list::ls(client, &list).await?;
        }
        Command::Rm { detach: _, stacks } => {
            let request = RemoveStacksRequest { namespaces: stacks };
            let reply = client.control().await?.remove_stacks(request).await?.into_inner();
            reply.changes.iter().for_each(say);
        }
    }
    Ok(0)
}

fn label(stack: &str) -> String {
    format!("label={STACK_LABEL}={stack}")
}

async fn deploy_stack(client: &Client, args: &DeployArgs) -> Result<u8, Fail> {
    check_name("stack", &args.stack).map_err(|e| Fail::new(e.to_string()))?;
    let mut compose = load(&args.files, false)?;
    let (folder, home) = (folder(&args.files)?, std::env::var("HOME").unwrap_or_default());
    let stack = compose.convert(
        &args.stack,
        &Surroundings {
            folder: &folder,
            home: &home,
            vars: &variable,
            read: &read,
        },
    );
    warn(compose.warnings());
    let stack = stack.map_err(|all| fail(&all))?;
    // How rollouts of earlier deploys ended is not this one's doing.
    let mut known = BTreeMap::new();
    for object in client.list(Kind::Service, &[label(&args.stack)]).await? {
        if let Object::Service(s) = object {
            known.insert(s.id.to_string(), last_rollout(&s));
        }
    }
    let request = DeployStackRequest {
        stack: Some((&stack).into()),
        prune: args.prune,
        resolve_image: ResolveImage::from(args.resolve_image).into(),
    };
    let reply = client.control().await?.deploy_stack(request).await?.into_inner();
    reply.warnings.iter().for_each(|w| eprintln!("Warning: {w}"));
    reply.changes.iter().for_each(say);
    let kept = |c: &&StackChange| c.kind() == Kind::Service && c.change() != Change::Removed;
    let services: Vec<&StackChange> = reply.changes.iter().filter(kept).collect();
    let board = Board::new(args.wait.quiet);
    let targets: Vec<Target<'_>> = services
        .iter()
        .map(|c| Target {
            service: &c.id,
            label: &c.name,
            known: known.get(&c.id).copied().flatten(),
            by_hand: false,
        })
        .collect();
    let waits = targets
        .iter()
        .map(|target| service::attached(client, target, &args.wait, &board));
    let codes = join_all(waits).await;
    // The worst of them; Docker's numbers happen to rise with how much there is to do.
    codes.into_iter().try_fold(0, |worst, code| Ok(worst.max(code?)))
}

/// One line per change, in Docker's words.
fn say(change: &StackChange) {
    let kind = match change.kind() {
        Kind::Service => "service",
        Kind::Network => "network",
        Kind::Secret => "secret",
        Kind::Config => "config",
        Kind::Cluster | Kind::Node | Kind::Task => "object",
    };
    let (name, id) = (&change.name, &change.id);
    match change.change() {
        Change::Created => render::line(format!("Creating {kind} {name}")),
        Change::Updated => render::line(format!("Updating {kind} {name} (id: {id})")),
        Change::Removed => render::line(format!("Removing {kind} {name}")),
        Change::Unchanged => {}
    }
}

async fn ls(client: &Client, args: &ListArgs) -> Result<(), Fail> {
    let mut stacks: BTreeMap<String, usize> = BTreeMap::new();
    for object in client.list(Kind::Service, &args.filter).await? {
        if let Object::Service(s) = object
            && let Some(stack) = s.spec.labels.get(STACK_LABEL)
        {
            *stacks.entry(stack.clone()).or_default() += 1;
        }
    }
    let rows: Vec<Value> = stacks
        .into_iter()
        .map(|(name, services)| json!({"ID": name, "Name": name, "Services": services.to_string()}))
        .collect();
    render::list(&rows, &[("NAME", "Name"), ("SERVICES", "Services")], args)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn load(files: &Files, raw: bool) -> Result<Compose, Fail> {
    let sources = files
        .files
        .iter()
        .map(|name| source(name))
        .collect::<Result<Vec<_>, _>>()?;
    let vars: deploy::Vars<'_> = &variable;
    deploy::load(&sources, (!raw).then_some(vars)).map_err(|all| fail(&all))
}

fn source(name: &str) -> Result<Source, Fail> {
    let wrong = |e: &dyn std::fmt::Display| Fail::new(format!("read {name}: {e}"));
    let bytes = if name == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .take(deploy::FILE_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        bytes
    } else {
        bounded(Path::new(name), deploy::FILE_MAX).map_err(|e| wrong(&e))?
    };
    Ok(Source {
        name: if name == "-" { "<stdin>" } else { name }.to_owned(),
        text: String::from_utf8(bytes).map_err(|_| wrong(&"it is no UTF-8 text"))?,
    })
}

/// The folder of the first file: relative paths begin there.
fn folder(files: &Files) -> Result<String, Fail> {
    let first = files.files.first().map_or("-", String::as_str);
    let folder = match first {
        "-" => PathBuf::new(),
        file => Path::new(file).parent().map(Path::to_owned).unwrap_or_default(),
    };
    let absolute = std::env::current_dir()?.join(folder);
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| Fail::new(format!("{}: the path is no UTF-8 text", absolute.display())))
}

/// A file of at most `max` bytes.
fn bounded(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(std::io::Error::other("it is a folder"));
    }
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(std::io::Error::other(format!("it has more than {max} bytes")));
    }
    Ok(bytes)
}

fn read(path: &str, max: usize) -> Result<Vec<u8>, String> {
    bounded(Path::new(path), max).map_err(|e| format!("read {path}: {e}"))
}

fn warn(all: &[Problem]) {
    all.iter().for_each(|w| eprintln!("Warning: {w}"));
}

/// All problems as one message; the first stands behind `Error:`.
fn fail(all: &[Problem]) -> Fail {
    let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
    Fail::new(lines.join("\n"))
}
