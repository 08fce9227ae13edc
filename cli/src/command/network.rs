//! `network`.

use model::object::Object;
use model::spec::NetworkSpec;
use proto::control::{CreateRequest, RemoveRequest, Spec, spec};
use proto::types::Kind;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::inspect;
use crate::render::{self, InspectArgs, ListArgs};

/// Manage networks.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a network.
    Create {
        #[arg(long, short, default_value = "overlay")]
        driver: String,
        /// Containers outside of services may join.
        #[arg(long)]
        attachable: bool,
        /// Without a way out.
        #[arg(long)]
        internal: bool,
        #[arg(long)]
        subnet: Vec<String>,
        #[arg(long)]
        label: Vec<String>,
        #[arg(long, short)]
        opt: Vec<String>,
        name: String,
    },
    /// List networks.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show networks.
    Inspect {
        #[arg(required = true)]
        networks: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Remove networks.
    Rm {
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

/// `NAME=VALUE` texts as a map.
pub(crate) fn pairs(list: &[String]) -> std::collections::BTreeMap<String, String> {
    list.iter()
        .map(|l| {
            l.split_once('=')
                .map_or((l.clone(), String::new()), |(k, v)| (k.into(), v.into()))
        })
        .collect()
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Create {
            driver,
            attachable,
            internal,
            subnet,
            label,
            opt,
            name,
        } => {
            let subnets = subnet
                .iter()
                .map(|s| {
                    s.parse()
                        .map_err(|_| Fail::new(format!("--subnet {s}: write a network such as 10.1.0.0/16")))
                })
                .collect::<Result<_, _>>()?;
            let network = NetworkSpec {
                name,
                labels: pairs(&label),
                driver,
                options: pairs(&opt),
                internal,
                attachable,
                subnets,
                ..NetworkSpec::default()
            };
            let spec = Some(Spec {
                spec: Some(spec::Spec::Network((&network).into())),
            });
            let reply = client
                .control()
                .await?
                .create(CreateRequest {
                    spec,
                    ..CreateRequest::default()
                })
                .await?
                .into_inner();
            render::line(reply.id);
        }
        Command::Ls(args) => {
            let rows: Vec<_> = client
                .list(Kind::Network, &args.filter)
                .await?
                .iter()
                .filter_map(|o| if let Object::Network(n) = o { Some(n) } else { None })
                .map(|n| json!({"ID": n.id.to_string(), "Shown": render::short(&n.id.to_string(), args.no_trunc), "Name": n.spec.name, "Driver": n.spec.driver, "Scope": "swarm", "Internal": n.spec.internal}))
                .collect();
            render::list(
                &rows,
                &[
                    ("NETWORK ID", "Shown"),
                    ("NAME", "Name"),
                    ("DRIVER", "Driver"),
                    ("SCOPE", "Scope"),
                ],
                &args,
            )?;
        }
        Command::Inspect { networks, how } => {
            let mut values = Vec::new();
            for name in &networks {
                if let Object::Network(n) = client.get(Kind::Network, name).await? {
                    values.push(inspect::network(&n));
                }
            }
            render::inspect(&values, &how)?;
        }
        Command::Rm { networks } => {
            client
                .control()
                .await?
                .remove(RemoveRequest {
                    kind: Kind::Network.into(),
                    references: networks.clone(),
                    force: false,
                })
                .await?;
            networks.iter().for_each(render::line);
        }
    }
    Ok(0)
}
