//! `service`.

use std::sync::Arc;

use model::Timestamp;
use model::object::{Object, Service};
use model::spec::ServiceSpec;
use model::units::parse_duration;
use proto::control::{
    CreateRequest, GetRequest, RebalanceServiceRequest, RemoveRequest, RollbackServiceRequest, Scale,
    ScaleServicesRequest, Spec, Steer, SteerRolloutRequest, UpdateRequest, spec,
};
use proto::types::Kind;
use serde_json::json;

use crate::client::{Client, Fail};
use crate::command::service_flags::{CreateArgs, UpdateArgs, Wait, from_create, from_update};
use crate::command::service_list::{ls, task_rows};
use crate::command::{exec, job, logs, revisions};
use crate::progress::{Board, Target, last_rollout};
use crate::render::{self, InspectArgs, ListArgs};
use crate::{inspect, progress};

/// Manage services.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a service.
    Create(Box<CreateArgs>),
    /// Change a service.
    Update(Box<UpdateArgs>),
    /// List services.
    #[command(alias = "list")]
    Ls(ListArgs),
    /// List tasks of services.
    Ps {
        #[command(flatten)]
        list: ListArgs,
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show services.
    Inspect {
        #[arg(required = true)]
        services: Vec<String>,
        #[command(flatten)]
        how: InspectArgs,
    },
    /// Set the number of replicas: NAME=NUMBER.
    Scale {
        #[command(flatten)]
        wait: Wait,
        #[arg(required = true)]
        scales: Vec<String>,
    },
    /// Go back to the spec before the last change.
    Rollback {
        #[command(flatten)]
        wait: Wait,
        /// The revision to go back to, as `service history` numbers them.
        #[arg(long, value_name = "REVISION")]
        to: Option<u64>,
        service: String,
    },
    History(revisions::HistoryArgs),
    Diff(revisions::DiffArgs),
    /// Stop a rollout where it is: no further slot is changed.
    Pause {
        service: String,
    },
    /// Go on with a rollout that was paused, by hand or by failures.
    Resume(SteerArgs),
    /// Change the rest, once the canaries are good.
    Promote(SteerArgs),
    /// Go back to the spec from before a rollout.
    Abort(SteerArgs),
    /// Move tasks to nodes that have fewer of them, each once its successor runs.
    Rebalance {
        /// How many move at once.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        parallelism: u32,
        /// Only show which would move.
        #[arg(long)]
        dry_run: bool,
        service: String,
    },
    /// Show why tasks have no node: what each node says to them, and to one more where all have one.
    Why(WhyArgs),
    /// Run a job once more, now.
    Run {
        #[command(flatten)]
        wait: Wait,
        service: String,
    },
    /// List the last runs of a job.
    Runs {
        service: String,
        /// `table`, `json`, a Go template, or `table TEMPLATE`.
        #[arg(long)]
        format: Option<String>,
    },
    /// Remove services.
    Rm {
        #[arg(required = true)]
        services: Vec<String>,
    },
    Logs(logs::ServiceLogsArgs),
    Exec(exec::ServiceExecArgs),
}

/// Waits for the one service of a command, unless that is not wanted; `known` as in [`Target`].
async fn one(client: &Client, service: &str, known: Option<Timestamp>, wait: &Wait) -> Result<u8, Fail> {
    let target = Target {
        service,
        label: "",
        known,
        by_hand: false,
    };
    attached(client, &target, wait, &Board::new(wait.quiet)).await
}

/// Waits for a service unless that is not wanted.
pub(crate) async fn attached(
    client: &Client,
    target: &Target<'_>,
    wait: &Wait,
    board: &Board,
) -> Result<u8, Fail> {
    if wait.detach {
        return Ok(0);
    }
    let limit = wait
        .timeout
        .as_ref()
        .map(|t| parse_duration(t))
        .transpose()
        .map_err(|e| e.to_string())?;
    progress::wait(client, target, limit, board).await
}

async fn get(client: &Client, reference: &str) -> Result<Arc<Service>, Fail> {
    match client.get(Kind::Service, reference).await? {
        Object::Service(s) => Ok(s),
        _ => Err(Fail::new("the daemon answered another kind of object")),
    }
}

/// Creates a service; answers its id. Its image is pinned to what its name means now, unless that is not wanted.
pub(crate) async fn create(
    client: &Client,
    spec: &ServiceSpec,
    no_resolve_image: bool,
) -> Result<String, Fail> {
    let request = CreateRequest {
        spec: Some(Spec {
            spec: Some(spec::Spec::Service(spec.into())),
        }),
        no_resolve_image,
    };
    let reply = client.control().await?.create(request).await?.into_inner();
    reply.warnings.iter().for_each(|w| eprintln!("Warning: {w}"));
    Ok(reply.id)
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Create(args) => {
            let id = create(client, &from_create(&args)?, args.spec.no_resolve_image).await?;
            render::line(&id);
            return one(client, &id, None, &args.spec.wait).await;
        }
        Command::Update(args) => {
            let old = get(client, &args.service).await?;
            if args.rollback {
                return roll_back(client, &args.service, None, &args.spec.wait).await;
            }
            let new = from_update(&args, &old.spec)?;
            let spec = Some(Spec {
                spec: Some(spec::Spec::Service((&new).into())),
            });
            let request = UpdateRequest {
                reference: old.id.to_string(),
                version: old.meta.version,
                spec,
                no_resolve_image: args.spec.no_resolve_image,
            };
            let mut result = client.control().await?.update(request.clone()).await;
            // The rollout itself writes the service: the user's change is made on what it is now (trap D20).
            for _ in 0..10 {
                if !matches!(&result, Err(s) if s.code() == tonic::Code::Aborted) {
                    break;
                }
                let now = get(client, &args.service).await?;
                let new = from_update(&args, &now.spec)?;
                let spec = Some(Spec {
                    spec: Some(spec::Spec::Service((&new).into())),
                });
                result = client
                    .control()
                    .await?
                    .update(UpdateRequest {
                        version: now.meta.version,
                        spec,
                        ..request.clone()
                    })
                    .await;
            }
            result?
                .into_inner()
                .warnings
                .iter()
                .for_each(|w| eprintln!("Warning: {w}"));
            render::line(&args.service);
            return one(client, &args.service, last_rollout(&old), &args.spec.wait).await;
        }
        Command::Ls(args) => ls(client, &args).await?,
        Command::Ps { mut list, services } => {
            for service in services {
                list.filter
                    .push(format!("service={}", get(client, &service).await?.id));
            }
            task_rows(client, &list).await?;
        }
        Command::Inspect { services, how } => {
            let mut values = Vec::new();
            for service in &services {
                values.push(inspect::service(&*get(client, service).await?, how.pretty));
            }
            render::inspect(&values, &how)?;
        }
        Command::Scale { wait, scales } => {
            let mut list = Vec::new();
            for text in &scales {
                let wrong = || Fail::new(format!("{text}: write SERVICE=REPLICAS, such as web=5"));
                let (reference, number) = text.split_once('=').ok_or_else(wrong)?;
                list.push(Scale {
                    reference: reference.into(),
                    replicas: number.parse().map_err(|_| wrong())?,
                });
            }
            let mut known = Vec::new();
            for scale in &list {
                known.push(last_rollout(&*get(client, &scale.reference).await?));
            }
            client
                .control()
                .await?
                .scale_services(ScaleServicesRequest { scales: list.clone() })
                .await?;
            list.iter()
                .for_each(|s| render::line(format!("{} scaled to {}", s.reference, s.replicas)));
            let mut worst = 0;
            for scale in list {
                worst = worst.max(one(client, &scale.reference, known.remove(0), &wait).await?);
            }
            return Ok(worst);
        }
        Command::Why(args) => why(client, &args).await?,
        Command::Rollback { wait, to, service } => return roll_back(client, &service, to, &wait).await,
        Command::History(args) => revisions::history(client, &args).await?,
        Command::Diff(args) => return revisions::diff(client, &args).await,
        Command::Pause { service } => {
            steer(client, &service, Steer::Pause).await?;
        }
        Command::Resume(args) => {
            let known = steer(client, &args.service, Steer::Resume).await?;
            return one(client, &args.service, known, &args.wait).await;
        }
        Command::Promote(args) => {
            let known = steer(client, &args.service, Steer::Promote).await?;
            return one(client, &args.service, known, &args.wait).await;
        }
        Command::Abort(args) => {
            let known = steer(client, &args.service, Steer::Abort).await?;
            return went_back(one(client, &args.service, known, &args.wait).await?);
        }
        Command::Run { wait, service } => {
            job::run(client, &service).await?;
            render::line(&service);
            let target = Target {
                service: &service,
                label: "",
                known: None,
                by_hand: true,
            };
            return attached(client, &target, &wait, &Board::new(wait.quiet)).await;
        }
        Command::Runs { service, format } => job::runs(&*get(client, &service).await?, format)?,
        Command::Rebalance {
            parallelism,
            dry_run,
            service,
        } => rebalance(client, service, parallelism, dry_run).await?,
        Command::Rm { services } => {
            client
                .control()
                .await?
                .remove(RemoveRequest {
                    kind: Kind::Service.into(),
                    references: services.clone(),
                    force: false,
                })
                .await?;
            services.iter().for_each(render::line);
        }
        Command::Logs(args) => return logs::service_logs(client, args).await,
        Command::Exec(args) => return exec::service_exec(client, args).await,
    }
    Ok(0)
}

/// A rollout that goes on.
#[derive(clap::Args)]
pub(crate) struct SteerArgs {
    #[command(flatten)]
    wait: Wait,
    service: String,
}

async fn steer(client: &Client, service: &str, steer: Steer) -> Result<Option<Timestamp>, Fail> {
    let known = last_rollout(&*get(client, service).await?);
    let request = SteerRolloutRequest {
        reference: service.into(),
        version: 0,
        steer: steer.into(),
    };
    client.control().await?.steer_rollout(request).await?;
    render::line(service);
    Ok(known)
}

/// `service why`.
#[derive(clap::Args)]
pub(crate) struct WhyArgs {
    service: String,
    /// As JSON, or by a template.
    #[arg(long)]
    format: Option<String>,
}

async fn why(client: &Client, args: &WhyArgs) -> Result<(), Fail> {
    let request = GetRequest {
        kind: Kind::Service.into(),
        reference: args.service.clone(),
    };
    let reply = client.control().await?.service_why(request).await?.into_inner();
    let shown = reply.tasks.len();
    let waiting = usize::try_from(reply.waiting).unwrap_or(usize::MAX);
    if reply.tasks.is_empty() {
        render::progress(&format!("{} has no tasks", args.service));
    }
    for task in reply.tasks {
        let rows: Vec<_> = (task.nodes.iter())
            .map(|n| {
                let fits = n.reason.is_empty();
                json!({
                    "ID": n.node, "Node": n.hostname, "Fits": if fits { "yes" } else { "no" }, "Reason": n.reason, "Task": task.name,
                    "Message": task.message,
                })
            })
            .collect();
        if args.format.is_none() {
            let name = if waiting == 0 { &args.service } else { &task.name };
            render::line(format!("{name}: {}", task.message));
        }
        // What waits for other services has nothing to ask nodes.
        if task.nodes.is_empty() && args.format.is_none() {
            continue;
        }
        let columns = [("NODE", "Node"), ("FITS", "Fits"), ("REASON", "Reason")];
        let how = ListArgs {
            format: args.format.clone(),
            ..ListArgs::default()
        };
        render::list(&rows, &columns, &how)?;
    }
    if waiting > shown {
        render::progress(&format!("{} more tasks have no node", waiting - shown));
    }
    Ok(())
}

/// Prints the tasks that move, with the nodes that they leave.
async fn rebalance(client: &Client, service: String, parallelism: u32, dry_run: bool) -> Result<(), Fail> {
    let name = service.clone();
    let request = RebalanceServiceRequest {
        reference: service,
        parallelism,
        dry_run,
    };
    let moving = client
        .control()
        .await?
        .rebalance_service(request)
        .await?
        .into_inner()
        .tasks;
    let nodes = client.nodes(&[]).await?;
    for id in &moving {
        let Object::Task(task) = client.get(Kind::Task, id).await? else {
            continue;
        };
        let host = nodes.iter().find(|(n, _)| Some(n.id) == task.node);
        let host = host.map_or("a node that is gone", |(n, _)| n.description.hostname.as_str());
        render::line(format!("{} leaves {host}", task.name()));
    }
    let verb = if dry_run { "would move" } else { "to move" };
    render::progress(&format!("{name}: {} {verb}", render::tasks(moving.len())));
    Ok(())
}

async fn roll_back(client: &Client, service: &str, to: Option<u64>, wait: &Wait) -> Result<u8, Fail> {
    if to == Some(0) {
        return Err(Fail::new(format!(
            "there is no revision 0: `rswarm service history {service}` shows those there are"
        )));
    }
    let known = last_rollout(&*get(client, service).await?);
    client
        .control()
        .await?
        .rollback_service(RollbackServiceRequest {
            reference: service.into(),
            version: 0,
            revision: to.unwrap_or(0),
        })
        .await?;
    render::line(service);
    went_back(one(client, service, known, wait).await?)
}

/// Going back is what was asked for here, so it is success.
fn went_back(code: u8) -> Result<u8, Fail> {
    match code {
        progress::ROLLED_BACK => Ok(0),
        code => Ok(code),
    }
}
