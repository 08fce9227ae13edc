//! `node`.

use model::object::{Availability, NodeRole, Object};
use proto::control::{GetInfoRequest, RemoveRequest, Spec, UpdateRequest, spec};
use proto::types::Kind;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::command::service_list::task_rows;
use crate::inspect;
use crate::render::{self, InspectArgs, ListArgs};

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
        /// `active`, `pause` or `drain`.
        #[arg(long)]
        availability: Option<String>,
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

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Ls(args) => {
            let me = own(client, "self").await?;
            let nodes = client.list(Kind::Node, &args.filter).await?;
            let rows: Vec<_> = nodes
                .iter()
                .filter_map(|o| if let Object::Node(n) = o { Some(n) } else { None })
                .map(|n| {
                    let id = n.id.to_string();
                    let mark = if id == me { " *" } else { "" };
                    json!({
                        "ID": id, "Shown": format!("{id}{mark}"), "Self": id == me, "Hostname": n.description.hostname, "Status": inspect::state(n),
                        "Availability": inspect::availability(n),
                        "ManagerStatus": if n.spec.role == NodeRole::Manager { "Leader" } else { "" },
                        "EngineVersion": n.description.engine_version,
                    })
                })
                .collect();
            let columns = [
                ("ID", "Shown"),
                ("HOSTNAME", "Hostname"),
                ("STATUS", "Status"),
                ("AVAILABILITY", "Availability"),
                ("MANAGER STATUS", "ManagerStatus"),
                ("ENGINE VERSION", "EngineVersion"),
            ];
            render::list(&rows, &columns, &args)?;
        }
        Command::Inspect { nodes, how } => {
            let mut values = Vec::new();
            for node in &nodes {
                if let Object::Node(n) = client.get(Kind::Node, &own(client, node).await?).await? {
                    values.push(inspect::node(&n));
                }
            }
            render::inspect(&values, &how)?;
        }
        Command::Update {
            availability,
            label_add,
            label_rm,
            node,
        } => {
            let Object::Node(n) = client.get(Kind::Node, &own(client, &node).await?).await? else {
                return Err(Fail::new("no node"));
            };
            let mut new = n.spec.clone();
            if let Some(a) = availability {
                new.availability = match a.as_str() {
                    "active" => Availability::Active,
                    "pause" => Availability::Pause,
                    "drain" => Availability::Drain,
                    other => {
                        return Err(Fail::new(format!(
                            "there is no availability {other}: use active, pause or drain"
                        )));
                    }
                };
            }
            for label in &label_add {
                let (k, v) = label.split_once('=').unwrap_or((label, ""));
                new.labels.insert(k.into(), v.into());
            }
            for label in &label_rm {
                if new.labels.remove(label).is_none() {
                    return Err(Fail::new(format!("node {node} has no label {label}")));
                }
            }
            let spec = Some(Spec {
                spec: Some(spec::Spec::Node((&new).into())),
            });
            client
                .control()
                .await?
                .update(UpdateRequest {
                    reference: n.id.to_string(),
                    version: n.meta.version,
                    spec,
                    ..UpdateRequest::default()
                })
                .await?;
            render::line(&node);
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
