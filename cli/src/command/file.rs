//! `secret` and `config`: the same commands for both.

use std::io::Read;

use model::object::Object;
use model::spec::{CONFIG_MAX, ConfigSpec, SECRET_MAX, SecretSpec};
use proto::control::{CreateRequest, RemoveRequest, Spec, spec};
use proto::types::Kind;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::command::network::pairs;
use crate::inspect;
use crate::render::{self, InspectArgs, ListArgs};

/// Manage secrets or configs.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make one from a file, or from standard input (`-`).
    Create {
        #[arg(long, short)]
        label: Vec<String>,
        name: String,
        file: String,
    },
    /// List them.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show them; the content of a secret is never shown.
    Inspect {
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Remove them.
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(crate) async fn run(client: &Client, command: Command, secret: bool) -> Result<u8, Fail> {
    let kind = if secret { Kind::Secret } else { Kind::Config };
    match command {
        Command::Create { label, name, file } => {
            // One byte more than the bound is enough to know that it is too much.
            let most = if secret { SECRET_MAX } else { CONFIG_MAX } as u64 + 1;
            let mut data = Vec::new();
            if file == "-" {
                std::io::stdin().lock().take(most).read_to_end(&mut data)?;
            } else {
                let open = std::fs::File::open(&file).map_err(|e| Fail::new(format!("read {file}: {e}")))?;
                open.take(most)
                    .read_to_end(&mut data)
                    .map_err(|e| Fail::new(format!("read {file}: {e}")))?;
            }
            let labels = pairs(&label);
            let spec = if secret {
                spec::Spec::Secret((&SecretSpec { name, labels, data }).into())
            } else {
                spec::Spec::Config((&ConfigSpec { name, labels, data }).into())
            };
            let request = CreateRequest {
                spec: Some(Spec { spec: Some(spec) }),
                ..CreateRequest::default()
            };
            render::line(client.control().await?.create(request).await?.into_inner().id);
        }
        Command::Ls(args) => {
            let row = |id: String, name: &str, meta: model::object::Meta| json!({"ID": id, "Name": name, "CreatedAt": render::ago(meta.created_at.0), "UpdatedAt": render::ago(meta.updated_at.0)});
            let objects = client.list(kind, &args.filter).await?;
            let rows: Vec<_> = objects
                .iter()
                .filter_map(|o| match o {
                    Object::Secret(s) => Some(row(s.id.to_string(), &s.spec.name, s.meta)),
                    Object::Config(c) => Some(row(c.id.to_string(), &c.spec.name, c.meta)),
                    _ => None,
                })
                .collect();
            render::list(
                &rows,
                &[
                    ("ID", "ID"),
                    ("NAME", "Name"),
                    ("CREATED", "CreatedAt"),
                    ("UPDATED", "UpdatedAt"),
                ],
                &args,
            )?;
        }
        Command::Inspect { names, how } => {
            let mut values = Vec::new();
            for name in &names {
                match client.get(kind, name).await? {
                    Object::Secret(s) => values.push(inspect::secret(&s)),
                    Object::Config(c) => values.push(inspect::config(&c)),
                    _ => {}
                }
            }
            render::inspect(&values, &how)?;
        }
        Command::Rm { names } => {
            client
                .control()
                .await?
                .remove(RemoveRequest {
                    kind: kind.into(),
                    references: names.clone(),
                    force: false,
                })
                .await?;
            names.iter().for_each(render::line);
        }
    }
    Ok(0)
}
