//! `volume`.

use proto::host::{ListVolumesRequest, RemoveVolumesRequest, Volume};
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::command::network::pairs;
use crate::render::{self, InspectArgs, ListArgs, Look};

/// Manage volumes of this node.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a volume.
    Create {
        #[arg(long, short, default_value = "local")]
        driver: String,
        #[arg(long)]
        label: Vec<String>,
        #[arg(long, short)]
        opt: Vec<String>,
        #[arg(default_value = "")]
        name: String,
    },
    /// List volumes.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show volumes.
    Inspect {
        #[arg(required = true)]
        volumes: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Remove volumes.
    Rm {
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

fn value(v: &Volume) -> Value {
    json!({"ID": v.name, "Name": v.name, "Driver": v.driver, "Mountpoint": v.mountpoint, "Labels": v.labels, "Options": v.options, "Scope": "local", "CreatedAt": model::Timestamp(v.created_at_ms).rfc3339()})
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Create {
            driver,
            label,
            opt,
            name,
        } => {
            let volume = Volume {
                name,
                driver,
                labels: pairs(&label),
                options: pairs(&opt),
                ..Volume::default()
            };
            render::line(
                client
                    .host()
                    .await?
                    .create_volume(volume)
                    .await?
                    .into_inner()
                    .name,
            );
        }
        Command::Ls(args) => {
            let reply = client
                .host()
                .await?
                .list_volumes(ListVolumesRequest { names: vec![] })
                .await?
                .into_inner();
            let mut rows: Vec<Value> = reply.volumes.iter().map(value).collect();
            let known = [
                ("name", Look::Holds("Name")),
                ("driver", Look::Is("Driver")),
                ("label", Look::Label("Labels")),
            ];
            render::filter(&mut rows, &args.filter, &known)?;
            render::list(&rows, &[("DRIVER", "Driver"), ("VOLUME NAME", "Name")], &args)?;
        }
        Command::Inspect { volumes, how } => {
            let reply = client
                .host()
                .await?
                .list_volumes(ListVolumesRequest { names: volumes })
                .await?
                .into_inner();
            render::inspect(&reply.volumes.iter().map(value).collect::<Vec<_>>(), &how)?;
        }
        Command::Rm { force, volumes } => {
            client
                .host()
                .await?
                .remove_volumes(RemoveVolumesRequest {
                    names: volumes.clone(),
                    force,
                })
                .await?;
            volumes.iter().for_each(render::line);
        }
    }
    Ok(0)
}
