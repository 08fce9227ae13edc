//! `swarm`, `info`, `version`.

use model::units::parse_duration;
use proto::control::{GetInfoRequest, InitClusterRequest, LeaveClusterRequest};
use serde_json::json;

use crate::client::{Client, Fail};
use crate::render;

/// Make or leave a cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make this node the manager of a new cluster.
    Init {
        /// Address under which others reach this node.
        #[arg(long, default_value = "127.0.0.1")]
        advertise_addr: String,
        /// Finished tasks kept per slot.
        #[arg(long)]
        task_history_limit: Option<i32>,
        /// Time between two heartbeats.
        #[arg(long)]
        dispatcher_heartbeat: Option<String>,
        /// Pool for the subnets of networks (repeatable).
        #[arg(long)]
        default_addr_pool: Vec<String>,
        /// Prefix length of such subnets.
        #[arg(long, default_value_t = 0)]
        default_addr_pool_mask_length: u32,
    },
    /// Take this node out of its cluster.
    Leave {
        /// Also when it is a manager; the cluster goes with its last one.
        #[arg(long, short)]
        force: bool,
    },
}

/// How it is printed.
#[derive(clap::Args)]
pub(crate) struct InfoArgs {
    /// A Go template, or `json`.
    #[arg(long, short)]
    format: Option<String>,
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Init {
            advertise_addr,
            task_history_limit,
            dispatcher_heartbeat,
            default_addr_pool,
            default_addr_pool_mask_length,
        } => {
            let heartbeat = dispatcher_heartbeat
                .map(|t| parse_duration(&t))
                .transpose()
                .map_err(|e| e.to_string())?;
            let request = InitClusterRequest {
                advertise_addr,
                task_history_limit,
                heartbeat_ns: heartbeat.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
                address_pools: default_addr_pool,
                subnet_prefix: default_addr_pool_mask_length,
                availability: 0,
            };
            let reply = client.control().await?.init_cluster(request).await?.into_inner();
            render::line(format!(
                "Swarm initialized: current node ({}) is now a manager.",
                reply.node_id
            ));
        }
        Command::Leave { force } => {
            client
                .control()
                .await?
                .leave_cluster(LeaveClusterRequest { force })
                .await?;
            render::line("Node left the swarm.");
        }
    }
    Ok(0)
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
            "ControlAvailable": i.active, "Nodes": i.nodes, "Managers": i.managers, "Cluster": {"ID": i.cluster_id},
        },
        "Services": i.services, "Tasks": i.tasks, "RaftIndex": i.index, "RaftTerm": i.raft_term,
    });
    match args.format {
        Some(format) => render::formatted(&[value], Some(&format))?,
        None => {
            let state = if i.active { "active" } else { "inactive" };
            for (name, text) in [
                ("Name", i.hostname),
                ("Server Version", i.engine_version),
                ("Swarm", state.into()),
                (" NodeID", i.node_id),
                (" ClusterID", i.cluster_id),
                (" Managers", i.managers.to_string()),
                (" Nodes", i.nodes.to_string()),
                (" Services", i.services.to_string()),
                (" Tasks", i.tasks.to_string()),
                (" Raft Index", i.index.to_string()),
                ("Root Dir", i.data_dir),
            ] {
                render::line(format!("{name}: {text}"));
            }
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
