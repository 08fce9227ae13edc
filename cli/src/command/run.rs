//! `run`: one container that is no service's, on a node and in networks that allow it.
//!
//! It is a job of one task, so that a manager knows of it: whoever is in its networks reaches it, `ps` and `logs` show it, and
//! it takes part in what nodes have left.

use deploy::grammar;
use model::NodeId;
use model::object::{Object, Task};
use model::spec::{Mount, MountKind, NetworkAttachment, RestartCondition, ServiceMode, ServiceSpec};
use model::task_state::TaskState;
use proto::control::{GetInfoRequest, RemoveRequest, WatchRequest};
use proto::types::Kind;

use crate::client::{Client, Fail};
use crate::command::logs;
use crate::command::service::create;
use crate::command::service_flags::env_entries;
use crate::progress::INTERRUPTED;
use crate::render;

/// As Docker says that a container could not be run at all.
const NOT_RUN: u8 = 125;

/// Run a container once, show its output, and end as it does.
///
/// It is a job with one task, which rswarm service rm ends and removes; a terminal (-it) it has not: use exec.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// Remove it once it ended.
    #[arg(long)]
    rm: bool,
    /// Print its id and return at once.
    #[arg(long, short)]
    detach: bool,
    /// Its name [default: run- and a number].
    #[arg(long)]
    name: Option<String>,
    /// A network it joins, made with --attachable; NAME, or name=NAME,alias=….
    #[arg(long)]
    network: Vec<String>,
    #[arg(long, short)]
    env: Vec<String>,
    /// NAME-OR-PATH:TARGET[:ro].
    #[arg(long, short)]
    volume: Vec<String>,
    /// As --mount of service create.
    #[arg(long)]
    mount: Vec<String>,
    /// Where, by name or id [default: here].
    #[arg(long)]
    node: Option<String>,
    #[arg(long)]
    entrypoint: Option<String>,
    #[arg(long, short)]
    workdir: Option<String>,
    #[arg(long, short)]
    user: Option<String>,
    image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// `run`.
pub(crate) async fn run(client: &Client, args: RunArgs) -> Result<u8, Fail> {
    let node = node(client, args.node.as_deref()).await?;
    let spec = spec(&args, node)?;
    for joined in &spec.task.networks {
        attachable(client, joined).await?;
    }
    let id = create(client, &spec, false).await?;
    if args.detach {
        render::line(&id);
        return Ok(0);
    }
    let ended = tokio::select! {
        ended = attend(client, &id) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    let name = &spec.name;
    if args.rm
        && let Err(error) = remove(client, &id).await
    {
        // How the container ended is what was asked for.
        eprintln!(
            "{name} is not removed: {}: `rswarm service rm {name}` does that",
            error.message
        );
    }
    match ended {
        Some(ended) => ended,
        None => {
            if !args.rm {
                eprintln!("{name} goes on: `rswarm service rm {name}` ends it");
            }
            Ok(INTERRUPTED)
        }
    }
}

/// The node it is to run on.
async fn node(client: &Client, reference: Option<&str>) -> Result<NodeId, Fail> {
    if let Some(reference) = reference {
        return match client.get(Kind::Node, reference).await? {
            Object::Node(node) => Ok(node.id),
            _ => Err(Fail::new("the daemon answered another kind of object")),
        };
    }
    let info = client
        .control()
        .await?
        .get_info(GetInfoRequest {})
        .await?
        .into_inner();
    (info.node_id.parse()).map_err(|_| {
        Fail::new("this host is in no cluster: run `rswarm swarm init` or `rswarm swarm join` first")
    })
}

/// Refuses a network that is for services alone.
async fn attachable(client: &Client, joined: &NetworkAttachment) -> Result<(), Fail> {
    let Object::Network(network) = client.get(Kind::Network, &joined.name).await? else {
        return Err(Fail::new("the daemon answered another kind of object"));
    };
    if network.spec.attachable {
        return Ok(());
    }
    Err(Fail::new(format!(
        "network {} is not attachable: only services join it. Make one for both with `rswarm network create --attachable NAME`",
        network.spec.name
    )))
}

fn spec(args: &RunArgs, node: NodeId) -> Result<ServiceSpec, Fail> {
    let mut spec = ServiceSpec {
        name: args
            .name
            .clone()
            .unwrap_or_else(|| format!("run-{:x}", render::now_ms())),
        mode: ServiceMode::ReplicatedJob {
            completions: 1,
            max_concurrent: 1,
        },
        ..ServiceSpec::default()
    };
    spec.task.restart.condition = RestartCondition::None;
    spec.task.placement.constraints = vec![format!("node.id=={node}")];
    for text in &args.network {
        spec.task.networks.push(grammar::parse_network(text)?);
    }
    let container = &mut spec.task.container;
    container.image.clone_from(&args.image);
    container.args.clone_from(&args.args);
    container.env = env_entries(&args.env);
    if let Some(text) = &args.entrypoint {
        container.command =
            shlex::split(text).ok_or_else(|| Fail::new(format!("{text}: a quote is not closed")))?;
    }
    container.dir = args.workdir.clone().unwrap_or_default();
    container.user = args.user.clone().unwrap_or_default();
    for text in &args.mount {
        container.mounts.push(grammar::parse_mount(text)?);
    }
    for text in &args.volume {
        container.mounts.push(volume(text)?);
    }
    Ok(spec)
}

/// `NAME-OR-PATH:TARGET[:ro]`; a path of the host is made where it is missing, as `docker run` does.
fn volume(text: &str) -> Result<Mount, Fail> {
    let wrong = || {
        Fail::new(format!(
            "--volume {text}: write NAME:TARGET or /PATH:TARGET, with :ro to read only"
        ))
    };
    let mut parts = text.split(':');
    let (source, target, how) = (parts.next(), parts.next(), parts.next());
    let (Some(source), Some(target), None) = (source, target, parts.next()) else {
        return Err(wrong());
    };
    let read_only = match how {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(wrong()),
    };
    let kind = if source.starts_with(['/', '.']) {
        let path = std::path::absolute(source).map_err(|e| Fail::new(format!("--volume {text}: {e}")))?;
        MountKind::Bind {
            source: path.display().to_string(),
            propagation: String::new(),
            non_recursive: false,
            create_source: true,
        }
    } else if source.is_empty() {
        return Err(wrong());
    } else {
        grammar::volume(source)
    };
    Ok(Mount {
        kind,
        target: target.to_owned(),
        read_only,
    })
}

async fn remove(client: &Client, id: &str) -> Result<(), Fail> {
    let request = RemoveRequest {
        kind: Kind::Service.into(),
        references: vec![id.to_owned()],
        force: false,
    };
    client.control().await?.remove(request).await?;
    Ok(())
}

/// Shows what the container prints until it ends; answers its exit code.
async fn attend(client: &Client, id: &str) -> Result<u8, Fail> {
    let started = reaches(client, id, TaskState::Running).await?;
    if started.status.container.is_some() {
        // What it printed stays to be seen when it has ended already.
        if let Err(error) = logs::follow(client, &started.id.to_string()).await {
            eprintln!("{}", error.message);
        }
    }
    let ended = reaches(client, id, TaskState::Complete).await?;
    let code = ended.status.container.as_ref().and_then(|c| c.exit_code);
    match (ended.status.state, code.map(u8::try_from)) {
        (TaskState::Complete | TaskState::Failed, Some(Ok(code))) => Ok(code),
        _ => {
            let why = if ended.status.error.is_empty() {
                &ended.status.message
            } else {
                &ended.status.error
            };
            eprintln!("{} is {}: {why}", ended.name(), ended.status.state.as_str());
            Ok(NOT_RUN)
        }
    }
}

/// Waits until the task of the job came so far; says on the way why it has no node.
async fn reaches(client: &Client, id: &str, state: TaskState) -> Result<Task, Fail> {
    let request = WatchRequest {
        kinds: vec![Kind::Service.into(), Kind::Task.into()],
        service: id.to_owned(),
    };
    let mut events = client.control().await?.watch(request).await?.into_inner();
    let mut said = String::new();
    while let Some(event) = events.message().await? {
        for object in event.changed {
            let Object::Task(task) = Object::try_from(object)? else {
                continue;
            };
            if task.status.state >= state {
                return Ok((*task).clone());
            }
            let waits = task.status.state == TaskState::Pending && !task.status.error.is_empty();
            if waits && task.status.error != said {
                eprintln!("{} waits: {}", task.name(), task.status.error);
                said.clone_from(&task.status.error);
            }
        }
        for key in event.removed {
            if proto::types::Key::from(model::object::Key::try_from(key)?).id == id {
                return Err(Fail::new("it was removed meanwhile"));
            }
        }
    }
    Err(Fail::new("the daemon ended the watch: is it still running?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_or_paths() {
        let read = |text: &str| volume(text).map(|m| (m.kind, m.target, m.read_only));
        assert_eq!(
            read("data:/x:ro").ok(),
            Some((grammar::volume("data"), "/x".to_owned(), true))
        );
        let bind = read("/srv:/x").ok().map(|(kind, ..)| kind);
        assert!(matches!(bind, Some(MountKind::Bind { source, .. }) if source == "/srv"));
        for wrong in ["/x", ":/x", "a:/x:rx", "a:/x:ro:z"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }
}
