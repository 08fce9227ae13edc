//! `swarm`, `info`, `version`.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use model::object::{Availability, Object};
use model::units::parse_duration;
use proto::control::{
    BackupRequest, GetInfoRequest, InitClusterRequest, JoinClusterRequest, JoinTokenRequest,
    LeaveClusterRequest, RestoreRequest, RotateAuthorityRequest, UnlockKeyRequest, UpdateClusterRequest,
};
use proto::identity::digest as issuer_of;
use proto::types::{self, Kind};
use serde_json::json;

use crate::client::{Client, Fail};
use crate::render;

/// Bytes of a backup in one message.
const PIECE_BYTES: usize = 256 << 10;
/// Such messages under way.
const PIECES_QUEUED: usize = 4;

/// Make, join, change or leave a cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make this node the first manager of a new cluster.
    Init(InitArgs),
    /// Make this node part of a cluster, as what the token says.
    Join(JoinArgs),
    /// Show how hosts join, or make the tokens for it anew.
    #[command(
        after_help = "Beyond Docker: --expires, --uses and --allow-labels make a further token for an occasion; the standing one stays as it is. --rotate makes every token of the role invalid; nodes that joined stay."
    )]
    JoinToken {
        /// `worker` or `manager`.
        role: String,
        /// Show only the token.
        #[arg(long, short)]
        quiet: bool,
        /// Make all tokens of the role invalid, and a new one.
        #[arg(long)]
        rotate: bool,
        /// Make a further token that is valid for so long.
        #[arg(long, conflicts_with = "rotate")]
        expires: Option<String>,
        /// Make a further token for so many hosts.
        #[arg(long, conflicts_with = "rotate")]
        uses: Option<u32>,
        /// Make a further token with which hosts may bring labels.
        #[arg(long, conflicts_with = "rotate")]
        allow_labels: bool,
    },
    /// Change the cluster's settings.
    Update {
        /// Finished tasks kept per slot.
        #[arg(long)]
        task_history_limit: Option<i32>,
        /// Time between two heartbeats of a node.
        #[arg(long)]
        dispatcher_heartbeat: Option<String>,
        /// Lifetime of certificates made from now on.
        #[arg(long)]
        cert_expiry: Option<String>,
        /// Whether the keys on managers' disks are locked with an unlock key.
        #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        autolock: Option<bool>,
        /// What the log and messages may contain from now on: "newest" is what every node's rswarm knows. After it no
        /// host can go back to an older rswarm. `rswarm info` says when it can be raised.
        #[arg(long, value_parser = level)]
        level: Option<u32>,
    },
    /// Show the certificate authority, or replace it.
    Ca {
        /// Replace it: every node gets a new certificate.
        #[arg(long)]
        rotate: bool,
        /// File with the certificate of the authority to use.
        #[arg(long, requires = "rotate", requires = "ca_key")]
        ca_cert: Option<std::path::PathBuf>,
        /// File with its key.
        #[arg(long, requires = "ca_cert")]
        ca_key: Option<std::path::PathBuf>,
        /// Return at once.
        #[arg(long, short)]
        detach: bool,
        /// Show no progress.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Open this manager, which is locked since it started, with the unlock key.
    #[command(
        after_help = "The key is asked for on a terminal, and not shown; elsewhere it is one line of standard input."
    )]
    Unlock,
    /// Show the key that opens locked managers.
    UnlockKey {
        /// Show only the key.
        #[arg(long, short)]
        quiet: bool,
        /// Make a new one.
        #[arg(long)]
        rotate: bool,
    },
    /// Write the whole state of the cluster to a file, while it goes on.
    #[command(
        after_help = "The file holds everything: services, secrets, the certificate authority. It opens only with its key, which is printed once, or kept in --key-file; keep the two apart."
    )]
    Backup {
        /// File to write; it must not exist.
        #[arg(long, short)]
        output: std::path::PathBuf,
        /// File with the key; made with a new one where it does not exist.
        #[arg(long)]
        key_file: Option<std::path::PathBuf>,
    },
    /// Make this node, which is part of no cluster, the first manager of the cluster in a backup.
    #[command(
        after_help = "Nodes of the old cluster are refused until they leave it and join this one. The key is read from --key-file, or from a line of the standard input."
    )]
    Restore {
        /// File with the key.
        #[arg(long)]
        key_file: Option<std::path::PathBuf>,
        /// Where to listen for other nodes: IP or INTERFACE, either with :PORT.
        #[arg(long, default_value = "0.0.0.0:2377")]
        listen_addr: String,
        /// Where others reach this node: IP, NAME or INTERFACE, each with :PORT or without.
        #[arg(long, default_value = "")]
        advertise_addr: String,
        /// The backup.
        file: std::path::PathBuf,
    },
    /// Take this node out of its cluster.
    #[command(after_help = "Unlike in Docker, a node that leaves is no longer listed by the others.")]
    Leave {
        /// Also when it is a manager; the cluster goes with its last one.
        #[arg(long, short)]
        force: bool,
    },
}

/// Where a node is, and what it brings.
#[derive(clap::Args)]
pub(crate) struct HereArgs {
    /// Where to listen for other nodes: IP or INTERFACE, either with :PORT.
    #[arg(long, default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Where others reach this node: IP, NAME or INTERFACE, each with :PORT or without. Found out where it is not given.
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// `active`, `pause` or `drain`.
    #[arg(long, default_value = "active")]
    availability: String,
    /// Label of the node, KEY=VALUE (repeatable).
    #[arg(long)]
    label: Vec<String>,
}

/// How a cluster is made.
#[derive(clap::Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    here: HereArgs,
    /// Finished tasks kept per slot.
    #[arg(long)]
    task_history_limit: Option<i32>,
    /// Time between two heartbeats of a node.
    #[arg(long)]
    dispatcher_heartbeat: Option<String>,
    /// Lifetime of certificates.
    #[arg(long)]
    cert_expiry: Option<String>,
    /// Lock the keys on managers' disks with an unlock key.
    #[arg(long)]
    autolock: bool,
    /// Pool for the subnets of networks (repeatable).
    #[arg(long)]
    default_addr_pool: Vec<String>,
    /// Prefix length of such subnets.
    #[arg(long, default_value_t = 0)]
    default_addr_pool_mask_length: u32,
    /// Make this manager, which lost the others for good, the only one, with the state it has.
    #[arg(long)]
    force_new_cluster: bool,
}

/// Which cluster is joined.
#[derive(clap::Args)]
pub(crate) struct JoinArgs {
    /// Token from `rswarm swarm join-token`; it says whether this becomes a worker or a manager.
    #[arg(long)]
    token: String,
    #[command(flatten)]
    here: HereArgs,
    /// A manager, HOST:2377; several may be named, the first that answers is asked.
    #[arg(required = true)]
    managers: Vec<String>,
}

/// How it is printed.
#[derive(clap::Args)]
pub(crate) struct InfoArgs {
    /// A Go template, or `json`.
    #[arg(long, short)]
    format: Option<String>,
}

fn nanos(text: Option<&str>) -> Result<Option<u64>, Fail> {
    let Some(text) = text else { return Ok(None) };
    let duration = parse_duration(text).map_err(|e| e.to_string())?;
    Ok(Some(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
}

pub(crate) fn availability(text: &str) -> Result<Availability, Fail> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(Fail::new(format!(
            "there is no availability {other}: use active, pause or drain"
        ))),
    }
}

fn labels(given: &[String]) -> BTreeMap<String, String> {
    let pair = |label: &String| {
        let (k, v) = label.split_once('=').unwrap_or((label, ""));
        (k.to_owned(), v.to_owned())
    };
    given.iter().map(pair).collect()
}

fn role(text: &str) -> Result<bool, Fail> {
    match text {
        "worker" => Ok(false),
        "manager" => Ok(true),
        other => Err(Fail::new(format!(
            "there is no role {other}: use worker or manager"
        ))),
    }
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Init(args) => init(client, args).await?,
        Command::Join(args) => join(client, args).await?,
        Command::JoinToken {
            role: named,
            quiet,
            rotate,
            expires,
            uses,
            allow_labels,
        } => {
            let request = JoinTokenRequest {
                manager: role(&named)?,
                rotate,
                make: expires.is_some() || uses.is_some() || allow_labels,
                ttl_ns: nanos(expires.as_deref())?.unwrap_or(0),
                uses: uses.unwrap_or(0),
                labels: allow_labels,
            };
            let reply = client.control().await?.join_token(request).await?.into_inner();
            if quiet {
                render::line(&reply.token);
            } else {
                if rotate {
                    render::line(format!("Successfully rotated {named} join token.\n"));
                }
                join_line(&named, &reply.token, &reply.address);
            }
        }
        Command::Update {
            task_history_limit,
            dispatcher_heartbeat,
            cert_expiry,
            autolock,
            level,
        } => {
            let request = UpdateClusterRequest {
                version: 0,
                task_history_limit,
                heartbeat_ns: nanos(dispatcher_heartbeat.as_deref())?,
                certificate_expiry_ns: nanos(cert_expiry.as_deref())?,
                autolock,
                rotate_unlock_key: false,
                level,
            };
            let reply = client
                .control()
                .await?
                .update_cluster(request)
                .await?
                .into_inner();
            render::line("Swarm updated.");
            unlock_line(&reply.unlock_key);
            match level {
                None => {}
                Some(asked) if reply.level == 0 || reply.level < asked => {
                    return Err(Fail::new(
                        "the level was not raised: the manager that leads knows no levels; install a newer rswarm there",
                    ));
                }
                Some(_) => render::line(format!("Its log and messages are of level {} now.", reply.level)),
            }
        }
        Command::Ca {
            rotate,
            ca_cert,
            ca_key,
            detach,
            quiet,
        } => authority(client, rotate, ca_cert, ca_key, detach, quiet).await?,
        Command::Unlock => return crate::command::unlock::run(client).await,
        Command::UnlockKey { quiet, rotate } => {
            let mut control = client.control().await?;
            let key = if rotate {
                let request = UpdateClusterRequest {
                    rotate_unlock_key: true,
                    ..UpdateClusterRequest::default()
                };
                control.update_cluster(request).await?.into_inner().unlock_key
            } else {
                control.unlock_key(UnlockKeyRequest {}).await?.into_inner().key
            };
            if key.is_empty() {
                return Err(Fail::new(
                    "there is no unlock key: managers are not locked; rswarm swarm update --autolock",
                ));
            }
            if quiet {
                render::line(&key);
            } else {
                unlock_line(&key);
            }
        }
        Command::Backup { output, key_file } => backup(client, &output, key_file.as_deref()).await?,
        Command::Restore {
            key_file,
            listen_addr,
            advertise_addr,
            file,
        } => restore(client, &file, key_file.as_deref(), listen_addr, advertise_addr).await?,
        Command::Leave { force } => {
            let request = LeaveClusterRequest { force };
            let reply = client.control().await?.leave_cluster(request).await?.into_inner();
            render::line("Node left the swarm.");
            if !reply.warning.is_empty() {
                render::warn(&reply.warning);
            }
        }
    }
    Ok(0)
}

async fn init(client: &Client, args: InitArgs) -> Result<(), Fail> {
    let request = InitClusterRequest {
        advertise_addr: args.here.advertise_addr,
        listen_addr: args.here.listen_addr,
        task_history_limit: args.task_history_limit,
        heartbeat_ns: nanos(args.dispatcher_heartbeat.as_deref())?.unwrap_or(0),
        certificate_expiry_ns: nanos(args.cert_expiry.as_deref())?.unwrap_or(0),
        address_pools: args.default_addr_pool,
        subnet_prefix: args.default_addr_pool_mask_length,
        availability: types::Availability::from(availability(&args.here.availability)?).into(),
        labels: labels(&args.here.label),
        autolock: args.autolock,
        force_new: args.force_new_cluster,
    };
    let reply = client.control().await?.init_cluster(request).await?.into_inner();
    render::line(format!(
        "Swarm initialized: current node ({}) is now a manager.\n",
        reply.node_id
    ));
    join_line("worker", &reply.token, &reply.address);
    render::line(
        "\nTo add a manager to this swarm, run 'rswarm swarm join-token manager' and follow the instructions.",
    );
    unlock_line(&reply.unlock_key);
    Ok(())
}

async fn join(client: &Client, args: JoinArgs) -> Result<(), Fail> {
    let request = JoinClusterRequest {
        managers: args.managers,
        token: args.token,
        listen_addr: args.here.listen_addr,
        advertise_addr: args.here.advertise_addr,
        availability: types::Availability::from(availability(&args.here.availability)?).into(),
        labels: labels(&args.here.label),
    };
    let reply = client.control().await?.join_cluster(request).await?.into_inner();
    render::line(format!(
        "This node joined a swarm as a {}.",
        if reply.manager { "manager" } else { "worker" }
    ));
    Ok(())
}

fn of_file<'a>(what: &'a str, path: &'a std::path::Path) -> impl FnOnce(std::io::Error) -> Fail + use<'a> {
    move |e| Fail::new(format!("{what} {}: {e}", path.display()))
}

/// Makes a file only its owner reads, which must not exist.
fn fresh(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

async fn backup(
    client: &Client,
    output: &std::path::Path,
    key_file: Option<&std::path::Path>,
) -> Result<(), Fail> {
    let known = key_file.filter(|path| path.exists());
    let key = match known {
        Some(path) => std::fs::read_to_string(path)
            .map_err(of_file("read the key in", path))?
            .trim()
            .to_owned(),
        None => manager_server::UnlockKey::random()?.to_string(),
    };
    let mut stream = client
        .control()
        .await?
        .backup(BackupRequest { key: key.clone() })
        .await?
        .into_inner();
    let aside = output.with_extension("partial");
    if output.exists() {
        return Err(Fail::new(format!(
            "{} exists already: choose another name",
            output.display()
        )));
    }
    // A rest of one that was cut off.
    let _ = std::fs::remove_file(&aside);
    let mut file = fresh(&aside).map_err(of_file("make", &aside))?;
    let mut bytes = 0;
    while let Some(piece) = stream.message().await? {
        bytes += piece.data.len();
        file.write_all(&piece.data).map_err(of_file("write", &aside))?;
    }
    file.sync_all().map_err(of_file("write", &aside))?;
    std::fs::rename(&aside, output).map_err(of_file("write", output))?;
    render::line(format!(
        "Backup of {bytes} bytes written to {}.",
        output.display()
    ));
    match key_file {
        Some(path) if known.is_none() => {
            let mut file = fresh(path).map_err(of_file("make", path))?;
            writeln!(file, "{key}").map_err(of_file("write", path))?;
            render::line(format!("Its key is in {}: keep the two apart.", path.display()));
        }
        Some(_) => {}
        None => render::line(format!(
            "\nIt opens only with this key, which is shown once:\n\n    {key}\n\nKeep it apart from the file."
        )),
    }
    Ok(())
}

async fn restore(
    client: &Client,
    path: &std::path::Path,
    key_file: Option<&std::path::Path>,
    listen_addr: String,
    advertise_addr: String,
) -> Result<(), Fail> {
    let key = match key_file {
        Some(path) => std::fs::read_to_string(path).map_err(of_file("read the key in", path))?,
        None => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line
        }
    };
    let file = std::fs::File::open(path).map_err(of_file("open", path))?;
    let first = RestoreRequest {
        key: key.trim().to_owned(),
        listen_addr,
        advertise_addr,
        data: Vec::new(),
    };
    let (send, messages) = tokio::sync::mpsc::channel(PIECES_QUEUED);
    tokio::task::spawn_blocking(move || {
        let mut file = file;
        let mut message = first;
        while send.blocking_send(message).is_ok() {
            let mut data = vec![0; PIECE_BYTES];
            match file.read(&mut data) {
                Ok(0) | Err(_) => return,
                Ok(n) => data.truncate(n),
            }
            message = RestoreRequest {
                data,
                ..RestoreRequest::default()
            };
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let reply = client
        .control()
        .await?
        .restore_cluster(stream)
        .await?
        .into_inner();
    render::line(format!(
        "Swarm restored: current node ({}) is now its only manager.\n",
        reply.node_id
    ));
    join_line("worker", &reply.token, &reply.address);
    Ok(())
}

fn join_line(role: &str, token: &str, address: &str) {
    render::line(format!(
        "To add a {role} to this swarm, run the following command:\n\n    rswarm swarm join --token {token} {address}"
    ));
}

fn unlock_line(key: &str) {
    if !key.is_empty() {
        render::line(format!(
            "\nTo unlock a swarm manager after it restarts, run the `rswarm swarm unlock` command and provide the following key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you will not be able to restart the manager."
        ));
    }
}

/// Shows the authority, or replaces it and waits until every node follows the new one.
async fn authority(
    client: &Client,
    rotate: bool,
    certificate: Option<std::path::PathBuf>,
    key: Option<std::path::PathBuf>,
    detach: bool,
    quiet: bool,
) -> Result<(), Fail> {
    if !rotate {
        render::text(&client.cluster().await?.security.authority.certificate);
        return Ok(());
    }
    let read = |path: Option<std::path::PathBuf>| match path {
        Some(path) => {
            std::fs::read_to_string(&path).map_err(|e| Fail::new(format!("read {}: {e}", path.display())))
        }
        None => Ok(String::new()),
    };
    let request = RotateAuthorityRequest {
        certificate: read(certificate)?,
        key: read(key)?,
    };
    client.control().await?.rotate_authority(request).await?;
    if detach {
        return Ok(());
    }
    let mut last = String::new();
    loop {
        let security = &client.cluster().await?.security;
        let Some(next) = &security.next else {
            if !quiet {
                render::text(&security.authority.certificate);
            }
            return Ok(());
        };
        let nodes = client.list(Kind::Node, &[]).await?;
        let issuers: Vec<&str> = (nodes.iter())
            .filter_map(|o| {
                if let Object::Node(n) = o {
                    Some(n.identity.issuer.as_str())
                } else {
                    None
                }
            })
            .collect();
        let issuer = issuers
            .iter()
            .filter(|i| **i == issuer_of(&next.authority.certificate))
            .count();
        let line = format!("rotated TLS certificates: {issuer}/{} nodes", issuers.len());
        if !quiet && line != last {
            render::progress(&line);
            last = line;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// A level, or "newest", which travels as none.
fn level(text: &str) -> Result<u32, String> {
    match (text, text.parse()) {
        ("newest", _) => Ok(0),
        (_, Ok(level @ 1..)) => Ok(level),
        _ => Err("a level is a number from 1, or \"newest\"".into()),
    }
}

pub(crate) async fn info(client: &Client, args: InfoArgs) -> Result<u8, Fail> {
    let i = client
        .control()
        .await?
        .get_info(GetInfoRequest {})
        .await?
        .into_inner();
    let value = json!({
        "Name": i.hostname, "ServerVersion": i.engine_version, "RootDir": i.data_dir,
        "Swarm": {
            "LocalNodeState": if i.active { "active" } else { "inactive" }, "NodeID": i.node_id, "NodeAddr": i.node_address,
            "ControlAvailable": i.manager, "RemoteManagers": i.known_managers.iter().map(|p| json!({"NodeID": p.node_id, "Addr": p.address})).collect::<Vec<_>>(), "Nodes": i.nodes, "Managers": i.managers, "Cluster": {"ID": i.cluster_id},
        },
        "Level": i.level, "LevelKnown": i.level_known,
        "Services": i.services, "Tasks": i.tasks, "RaftIndex": i.index, "RaftTerm": i.raft_term,
    });
    match args.format {
        Some(format) => render::formatted(&[value], Some(&format))?,
        None => {
            let state = if i.active { "active" } else { "inactive" };
            for (name, text) in [
                ("Name", i.hostname),
                ("Server Version", i.engine_version),
                ("Level", i.level_known.to_string()),
                ("Swarm", state.into()),
                (" NodeID", i.node_id),
                (" ClusterID", i.cluster_id),
                (" Is Manager", i.manager.to_string()),
                (" Node Address", i.node_address),
                (" Level", i.level.to_string()),
                (" Managers", i.managers.to_string()),
                (" Nodes", i.nodes.to_string()),
                (" Services", i.services.to_string()),
                (" Tasks", i.tasks.to_string()),
                (" Raft Index", i.index.to_string()),
                ("Root Dir", i.data_dir),
            ] {
                render::line(format!("{name}: {text}"));
            }
            if i.active {
                render::line(" Manager Addresses:");
                i.known_managers
                    .iter()
                    .for_each(|p| render::line(format!("  {}", p.address)));
            }
            i.warnings.iter().for_each(|w| render::warn(w));
        }
    }
    Ok(0)
}

pub(crate) async fn version(client: &Client, args: InfoArgs) -> Result<u8, Fail> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match client.control().await {
        Ok(mut c) => Some(c.get_info(GetInfoRequest {}).await?.into_inner().engine_version),
        Err(_) => None,
    };
    let value = json!({"Client": {"Version": own}, "Server": server.as_ref().map(|v| json!({"Version": v}))});
    match args.format {
        Some(format) => render::formatted(&[value], Some(&format))?,
        None => {
            render::line(format!("Client: {own}"));
            render::line(format!("Server: {}", server.as_deref().unwrap_or("not running")));
        }
    }
    Ok(0)
}
