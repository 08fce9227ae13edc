//! `ps` of this node.

use model::spec::ImageRef;
use proto::host::ListContainersRequest;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::render::{self, ListArgs, Look};

/// List containers of this node.
#[derive(clap::Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run.
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) async fn ps(client: &Client, args: PsArgs) -> Result<u8, Fail> {
    let reply = client
        .host()
        .await?
        .list_containers(ListContainersRequest {
            // As with Docker, asking for a state asks for all states.
            all: args.all
                || args
                    .list
                    .filter
                    .iter()
                    .any(|f| f.starts_with("status=") || f.starts_with("exited=")),
        })
        .await?
        .into_inner();
    let mut rows: Vec<_> = reply
        .containers
        .iter()
        .map(|c| {
            let status = match c.state.as_str() {
                "running" => format!("Up {}", render::ago(c.started_at_ms).trim_end_matches(" ago")),
                "exited" => format!("Exited ({}) {}", c.exit_code.map_or("?".into(), |e| e.to_string()), render::ago(c.finished_at_ms)),
                _ => "Created".into(),
            };
            json!({
                "ID": c.id, "Shown": render::short(&c.id, args.list.no_trunc), "Image": if args.list.no_trunc { &c.image } else { ImageRef::shown(&c.image) }, "Command": format!("\"{}\"", c.command.join(" ")),
                "CreatedAt": render::ago(c.created_at_ms), "Status": status, "Names": c.name, "Pid": c.pid, "State": c.state, "ExitCode": c.exit_code, "Labels": c.labels,
            })
        })
        .collect();
    let known = [
        ("id", Look::Begins("ID")),
        ("name", Look::Holds("Names")),
        ("label", Look::Label("Labels")),
        ("status", Look::Is("State")),
        ("ancestor", Look::Is("Image")),
        ("exited", Look::Is("ExitCode")),
    ];
    render::filter(&mut rows, &args.list.filter, &known)?;
    let columns = [
        ("CONTAINER ID", "Shown"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "CreatedAt"),
        ("STATUS", "Status"),
        ("NAMES", "Names"),
    ];
    render::list(&rows, &columns, &args.list)?;
    Ok(0)
}
