//! `node`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::object::{Availability, Cluster, Drain, Node, NodeRole, NodeSpec, Object};
use model::spec::UpdateOrder;
use model::units::{format_duration, parse_duration};
use model::{Level, NodeId};
use proto::control::{GetInfoRequest, RemoveRequest, Spec, UpdateRequest, spec};
use proto::identity::digest;
use proto::types::{Kind, ManagerStatus};
use serde_json::json;

use crate::client::{Client, Fail};
use crate::command::service_flags::order;
use crate::command::service_list::task_rows;
use crate::command::swarm;
use crate::inspect;
use crate::render::{self, InspectArgs, ListArgs};

/// Exit code of a wait that took too long.
const TIMED_OUT: u8 = 4;
/// How often a drained node is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Manage nodes.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List nodes.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show nodes; `self` is this one.
    Inspect {
        #[arg(required = true)]
        nodes: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Change a node.
    Update {
        /// `active`, `pause` or `drain`. Drained, its tasks serve until their successors do elsewhere; Docker stops them first: for that,
        /// and for a deadline, see `rswarm node drain`.
        #[arg(long)]
        availability: Option<String>,
        /// `worker` or `manager`.
        #[arg(long)]
        role: Option<String>,
        #[arg(long)]
        label_add: Vec<String>,
        #[arg(long)]
        label_rm: Vec<String>,
        node: String,
    },
    /// List the tasks of a node; of this one where none is named.
    Ps {
        #[command(flatten)]
        list: ListArgs,
        #[arg(default_value = "self")]
        node: String,
    },
    /// Make nodes managers.
    Promote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers.
    Demote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Move the tasks of a node elsewhere; `node update --availability active` calls it off and lets them come back.
    ///
    /// A task of a replicated service that is ready serves until its successor runs and is ready on another node, as many of a service
    /// at once as its update parallelism says. Other tasks (of services with `on_disconnect: stop_after`, which must never run twice, too) are stopped at once, as are all with `--order stop-first`, which is what Docker
    /// does. What no other node can take stays until the deadline: `rswarm service ps` and `rswarm service why` say why.
    Drain {
        /// `start-first` or `stop-first`.
        #[arg(long = "order", default_value = "start-first")]
        how: String,
        /// Stop what is left after this time, such as 5m; without it, what no other node can take stays.
        #[arg(long, value_parser = parse_duration)]
        deadline: Option<Duration>,
        /// Return when the node runs no task of a service any more.
        #[arg(long)]
        wait: bool,
        /// Longest wait, such as 10m; then this fails with exit code 4. The node stays drained.
        #[arg(long, requires = "wait", value_parser = parse_duration)]
        timeout: Option<Duration>,
        node: String,
    },
    /// Remove nodes that are down.
    Rm {
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        nodes: Vec<String>,
    },
}

async fn own(client: &Client, reference: &str) -> Result<String, Fail> {
    if reference != "self" {
        return Ok(reference.to_owned());
    }
    Ok(client
        .control()
        .await?
        .get_info(GetInfoRequest {})
        .await?
        .into_inner()
        .node_id)
}

fn manager_status(node: &Node, manager: Option<&ManagerStatus>) -> &'static str {
    match manager {
        _ if node.spec.role == NodeRole::Worker => "",
        Some(m) if m.leader => "Leader",
        Some(m) if m.reachable && m.voter => "Reachable",
        // It listens until it has caught up.
        Some(m) if m.reachable => "Joining",
        Some(_) => "Unreachable",
        None => "Joining",
    }
}

/// Whether a node has a certificate of the authority that signs now, in Docker's words.
fn tls_status(node: &Node, cluster: &Cluster) -> &'static str {
    match node.identity.issuer.as_str() {
        "" => "Unknown",
        issuer if issuer == digest(&cluster.security.signing().certificate) => "Ready",
        _ => "Needs Rotation",
    }
}

fn role_of(text: &str) -> Result<NodeRole, Fail> {
    match text {
        "worker" => Ok(NodeRole::Worker),
        "manager" => Ok(NodeRole::Manager),
        other => Err(Fail::new(format!(
            "there is no role {other}: use worker or manager"
        ))),
    }
}

/// Changes what operators set on a node; again, when somebody else changed it at the same time.
async fn change(
    client: &Client,
    reference: &str,
    edit: impl Fn(&mut NodeSpec) -> Result<(), Fail>,
) -> Result<Arc<Node>, Fail> {
    loop {
        let Object::Node(node) = client.get(Kind::Node, reference).await? else {
            return Err(Fail::new("the manager answered something else than a node"));
        };
        let mut new = node.spec.clone();
        edit(&mut new)?;
        let request = UpdateRequest {
            reference: node.id.to_string(),
            version: node.meta.version,
            spec: Some(Spec {
                spec: Some(spec::Spec::Node((&new).into())),
            }),
            ..UpdateRequest::default()
        };
        match client.control().await?.update(request).await {
            Ok(reply) => {
                reply.into_inner().warnings.iter().for_each(|w| render::warn(w));
                return Ok(node);
            }
            Err(status) if status.code() == tonic::Code::Aborted => {}
            Err(status) => return Err(status.into()),
        }
    }
}

async fn set_role(client: &Client, nodes: &[String], role: NodeRole) -> Result<(), Fail> {
    for name in nodes {
        let before = change(client, &own(client, name).await?, |spec| {
            spec.role = role;
            Ok(())
        })
        .await?;
        render::line(match (before.spec.role == role, role) {
            (true, NodeRole::Manager) => format!("Node {name} is already a manager."),
            (true, NodeRole::Worker) => format!("Node {name} is already a worker."),
            (false, NodeRole::Manager) => format!("Node {name} promoted to a manager in the swarm."),
            (false, NodeRole::Worker) => format!("Manager {name} demoted in the swarm."),
        });
    }
    Ok(())
}

async fn drain(
    client: &Client,
    name: &str,
    how: Option<Drain>,
    (wait, timeout): (bool, Option<Duration>),
) -> Result<u8, Fail> {
    let node = change(client, &own(client, name).await?, |spec| {
        (spec.availability, spec.drain) = (Availability::Drain, how);
        Ok(())
    })
    .await?;
    if wait && !is_empty(client, &node, timeout).await? {
        return Ok(TIMED_OUT);
    }
    render::line(name);
    Ok(0)
}

/// Waits until a node runs no task any more, and says how far it is; no: it took too long.
async fn is_empty(client: &Client, node: &Node, timeout: Option<Duration>) -> Result<bool, Fail> {
    let began = Instant::now();
    let host = &node.description.hostname;
    let mut last = String::new();
    loop {
        let tasks = client.list(Kind::Task, &[format!("node={}", node.id)]).await?;
        let left = left_on(&tasks, node.id);
        if left.is_empty() {
            return Ok(true);
        }
        let text = format!("{} ({})", count(&left), by_service(client, &left).await?);
        if text != last {
            render::progress(&format!("{host}: {text} left"));
            last.clone_from(&text);
        }
        if let Some(limit) = timeout.filter(|limit| began.elapsed() > *limit) {
            let limit = format_duration(limit);
            render::progress(&format!(
                "{host} is drained, but {text} still run there after {limit}: rswarm service why SERVICE says what no other node can take, \
                 and rswarm node drain --deadline ends the wait for it"
            ));
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How many tasks of each service have not ended on a node.
fn left_on(tasks: &[Object], node: NodeId) -> BTreeMap<String, usize> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for object in tasks {
        if let Object::Task(task) = object
            && task.node == Some(node)
            && !task.status.state.is_terminal()
        {
            *left.entry(task.service_name.clone()).or_default() += 1;
        }
    }
    left
}

fn count(left: &BTreeMap<String, usize>) -> String {
    render::tasks(left.values().sum())
}

/// How many of each service are left, and which of them wait for their service's update: that makes every task anew.
async fn by_service(client: &Client, left: &BTreeMap<String, usize>) -> Result<String, Fail> {
    let services = client.list(Kind::Service, &[]).await?;
    let is_updated = |name: &str| {
        services.iter().any(|object| {
            let Object::Service(service) = object else {
                return false;
            };
            let active = service.update.as_ref().is_some_and(|u| u.state.is_active());
            service.spec.name == name && active
        })
    };
    let each = left.iter().map(|(name, n)| {
        if is_updated(name) {
            format!("{name} {n}, which is being updated and moves with that")
        } else {
            format!("{name} {n}")
        }
    });
    Ok(each.collect::<Vec<_>>().join("; "))
}

/// What drained nodes still run, by service.
async fn left_on_drained(
    client: &Client,
    nodes: impl Iterator<Item = &Node>,
) -> Result<BTreeMap<NodeId, BTreeMap<String, usize>>, Fail> {
    let mut all = BTreeMap::new();
    for node in nodes.filter(|n| n.spec.availability == Availability::Drain) {
        let tasks = client.list(Kind::Task, &[format!("node={}", node.id)]).await?;
        all.insert(node.id, left_on(&tasks, node.id));
    }
    Ok(all)
}

/// How nodes are drained, where the cluster knows of that: below this level they stop first whatever is said.
async fn how_to_drain(
    client: &Client,
    order: UpdateOrder,
    deadline: Option<Duration>,
) -> Result<Option<Drain>, Fail> {
    let plain = order == UpdateOrder::StartFirst && deadline.is_none();
    if plain && client.cluster().await?.level < Level::MOVES {
        render::warn(
            "the cluster's level is too low for start-first: the tasks are stopped first (rswarm swarm update --level newest)",
        );
        return Ok(None);
    }
    Ok(Some(Drain {
        order,
        deadline,
        deadline_at: None,
    }))
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Ls(args) => {
            let me = own(client, "self").await?;
            let cluster = client.cluster().await?;
            let nodes = client.nodes(&args.filter).await?;
            let left = left_on_drained(client, nodes.iter().map(|(n, _)| &**n)).await?;
            let rows: Vec<_> = nodes
                .iter()
                .map(|(n, manager)| {
                    let id = n.id.to_string();
                    let mark = if id == me { " *" } else { "" };
                    let still = left.get(&n.id).filter(|left| !left.is_empty());
                    let availability = inspect::availability(n);
                    let shown = still.map_or_else(|| availability.to_owned(), |left| format!("{availability} ({} left)", count(left)));
                    json!({
                        "ID": id, "Shown": format!("{id}{mark}"), "Self": id == me, "Hostname": n.description.hostname, "Status": inspect::state(n),
                        "DataPlane": inspect::data_plane(n),
                        "Availability": availability, "AvailabilityShown": shown, "ManagerStatus": manager_status(n, manager.as_ref()),
                        "TLSStatus": tls_status(n, &cluster), "EngineVersion": n.description.engine_version, "Address": n.description.address,
                    })
                })
                .collect();
            let mut columns = vec![
                ("ID", "Shown"),
                ("HOSTNAME", "Hostname"),
                ("STATUS", "Status"),
                ("AVAILABILITY", "AvailabilityShown"),
                ("MANAGER STATUS", "ManagerStatus"),
                ("ENGINE VERSION", "EngineVersion"),
            ];
            // What is well needs no column.
            if nodes.iter().any(|(n, _)| !n.status.unreached.is_empty()) {
                columns.insert(3, ("DATA PLANE", "DataPlane"));
            }
            render::list(&rows, &columns, &args)?;
        }
        Command::Inspect { nodes, how } => {
            let mut values = Vec::new();
            for node in &nodes {
                if let Object::Node(n) = client.get(Kind::Node, &own(client, node).await?).await? {
                    let left = left_on_drained(client, std::iter::once(&*n)).await?;
                    let mut value = inspect::node(&n);
                    if let Some(left) = left.get(&n.id) {
                        // Services and how many tasks of theirs are left.
                        value["Draining"] = json!(left);
                    }
                    values.push(value);
                }
            }
            render::inspect(&values, &how)?;
        }
        Command::Update {
            availability,
            role,
            label_add,
            label_rm,
            node,
        } => {
            let reference = own(client, &node).await?;
            let availability = availability.map(|a| swarm::availability(&a)).transpose()?;
            let role = role.map(|r| role_of(&r)).transpose()?;
            change(client, &reference, |spec| {
                spec.availability = availability.unwrap_or(spec.availability);
                spec.role = role.unwrap_or(spec.role);
                for label in &label_add {
                    let (k, v) = label.split_once('=').unwrap_or((label, ""));
                    spec.labels.insert(k.into(), v.into());
                }
                for label in &label_rm {
                    if spec.labels.remove(label).is_none() {
                        return Err(Fail::new(format!("node {node} has no label {label}")));
                    }
                }
                Ok(())
            })
            .await?;
            render::line(&node);
        }
        Command::Promote { nodes } => set_role(client, &nodes, NodeRole::Manager).await?,
        Command::Demote { nodes } => set_role(client, &nodes, NodeRole::Worker).await?,
        Command::Drain {
            how,
            deadline,
            wait,
            timeout,
            node,
        } => {
            let how = how_to_drain(client, order(&how)?, deadline).await?;
            return drain(client, &node, how, (wait, timeout)).await;
        }
        Command::Ps { mut list, node } => {
            list.filter.push(format!("node={}", own(client, &node).await?));
            task_rows(client, &list).await?;
        }
        Command::Rm { force, nodes } => {
            client
                .control()
                .await?
                .remove(RemoveRequest {
                    kind: Kind::Node.into(),
                    references: nodes.clone(),
                    force,
                })
                .await?;
            nodes.iter().for_each(render::line);
        }
    }
    Ok(0)
}
