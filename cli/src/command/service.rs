//! `service`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deploy::grammar;
use model::object::{Object, Service, SlotKey, Task};
use model::spec::{
    EndpointMode, FailureAction, Healthcheck, PublishMode, RestartCondition, ServiceMode, ServiceSpec,
    UpdateConfig, UpdateOrder,
};
use model::task_state::{DesiredState, TaskState};
use model::units::parse_duration;
use model::{Bytes, NanoCpus, NodeId, ServiceId};
use proto::control::{
    CreateRequest, RemoveRequest, RollbackServiceRequest, Scale, ScaleServicesRequest, Spec, UpdateRequest,
    spec,
};
use proto::types::Kind;
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::command::container;
use crate::command::network::pairs;
use crate::progress::Board;
use crate::render::{self, ListArgs};
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
        #[arg(long, short)]
        format: Option<String>,
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
        service: String,
    },
    /// Remove services.
    Rm {
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show the output of a service's tasks on this node.
    Logs {
        #[arg(long, short)]
        follow: bool,
        #[arg(long, short = 'n', default_value = "all")]
        tail: String,
        #[arg(long, short)]
        timestamps: bool,
        #[arg(long)]
        since: Option<String>,
        /// The lines alone, without the task before each.
        #[arg(long)]
        raw: bool,
        service: String,
    },
}

/// Whether and how long to wait.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Wait {
    /// Return at once.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// No progress.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Wait no longer than this (exit code 4).
    #[arg(long)]
    pub(crate) timeout: Option<String>,
}

/// What a service is; each flag as Docker has it.
#[derive(clap::Args, Default)]
pub(crate) struct SpecArgs {
    #[arg(long)]
    replicas: Option<u32>,
    #[arg(long)]
    entrypoint: Option<String>,
    #[arg(long, short = 'w')]
    workdir: Option<String>,
    #[arg(long, short = 'u')]
    user: Option<String>,
    #[arg(long)]
    hostname: Option<String>,
    #[arg(long)]
    read_only: bool,
    #[arg(long, short = 't')]
    tty: bool,
    #[arg(long)]
    init: bool,
    #[arg(long)]
    stop_signal: Option<String>,
    #[arg(long)]
    stop_grace_period: Option<String>,
    #[arg(long)]
    limit_cpu: Option<String>,
    #[arg(long)]
    limit_memory: Option<String>,
    #[arg(long)]
    limit_pids: Option<u64>,
    #[arg(long)]
    reserve_cpu: Option<String>,
    #[arg(long)]
    reserve_memory: Option<String>,
    #[arg(long)]
    replicas_max_per_node: Option<u32>,
    #[arg(long)]
    restart_condition: Option<String>,
    #[arg(long)]
    restart_delay: Option<String>,
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    #[arg(long)]
    restart_window: Option<String>,
    #[arg(long)]
    update_parallelism: Option<u32>,
    #[arg(long)]
    update_delay: Option<String>,
    #[arg(long)]
    update_monitor: Option<String>,
    #[arg(long)]
    update_failure_action: Option<String>,
    #[arg(long)]
    update_max_failure_ratio: Option<f64>,
    #[arg(long)]
    update_order: Option<String>,
    #[arg(long)]
    rollback_parallelism: Option<u32>,
    #[arg(long)]
    rollback_delay: Option<String>,
    #[arg(long)]
    rollback_monitor: Option<String>,
    #[arg(long)]
    rollback_failure_action: Option<String>,
    #[arg(long)]
    rollback_max_failure_ratio: Option<f64>,
    #[arg(long)]
    rollback_order: Option<String>,
    #[arg(long)]
    health_cmd: Option<String>,
    #[arg(long)]
    health_interval: Option<String>,
    #[arg(long)]
    health_timeout: Option<String>,
    #[arg(long)]
    health_retries: Option<u32>,
    #[arg(long)]
    health_start_period: Option<String>,
    #[arg(long)]
    health_start_interval: Option<String>,
    #[arg(long)]
    no_healthcheck: bool,
    #[arg(long)]
    endpoint_mode: Option<String>,
    #[arg(long)]
    cap_add: Vec<String>,
    #[arg(long)]
    cap_drop: Vec<String>,
    #[arg(long)]
    placement_pref: Vec<String>,
    #[arg(long)]
    log_driver: Option<String>,
    #[arg(long)]
    log_opt: Vec<String>,
    /// Accepted for Docker's habits: images are resolved on the nodes.
    #[arg(long)]
    no_resolve_image: bool,
    /// Accepted for Docker's habits: there is no registry yet.
    #[arg(long)]
    with_registry_auth: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Make a service.
#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    #[arg(long, default_value = "")]
    name: String,
    #[arg(long, default_value = "replicated")]
    mode: String,
    #[arg(long, short)]
    env: Vec<String>,
    #[arg(long)]
    env_file: Vec<String>,
    #[arg(long, short)]
    label: Vec<String>,
    #[arg(long)]
    container_label: Vec<String>,
    #[arg(long, short)]
    publish: Vec<String>,
    #[arg(long)]
    mount: Vec<String>,
    #[arg(long)]
    network: Vec<String>,
    #[arg(long)]
    constraint: Vec<String>,
    #[arg(long)]
    secret: Vec<String>,
    #[arg(long)]
    config: Vec<String>,
    #[arg(long)]
    host: Vec<String>,
    #[arg(long)]
    dns: Vec<String>,
    #[arg(long)]
    ulimit: Vec<String>,
    #[arg(long)]
    sysctl: Vec<String>,
    #[command(flatten)]
    spec: SpecArgs,
    image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Change a service.
#[derive(clap::Args)]
pub(crate) struct UpdateArgs {
    #[arg(long)]
    image: Option<String>,
    #[arg(long)]
    args: Option<String>,
    #[arg(long)]
    env_add: Vec<String>,
    #[arg(long)]
    env_rm: Vec<String>,
    #[arg(long)]
    label_add: Vec<String>,
    #[arg(long)]
    label_rm: Vec<String>,
    #[arg(long)]
    container_label_add: Vec<String>,
    #[arg(long)]
    publish_add: Vec<String>,
    /// Target port (with /PROTOCOL where it is not TCP).
    #[arg(long)]
    publish_rm: Vec<String>,
    #[arg(long)]
    mount_add: Vec<String>,
    #[arg(long)]
    mount_rm: Vec<String>,
    #[arg(long)]
    network_add: Vec<String>,
    #[arg(long)]
    network_rm: Vec<String>,
    #[arg(long)]
    constraint_add: Vec<String>,
    #[arg(long)]
    constraint_rm: Vec<String>,
    #[arg(long)]
    secret_add: Vec<String>,
    #[arg(long)]
    secret_rm: Vec<String>,
    #[arg(long)]
    config_add: Vec<String>,
    #[arg(long)]
    config_rm: Vec<String>,
    /// Replace every task although nothing changed.
    #[arg(long)]
    force: bool,
    /// Go back to the spec before the last change.
    #[arg(long)]
    rollback: bool,
    #[command(flatten)]
    spec: SpecArgs,
    service: String,
}

fn time(flag: &str, text: Option<&String>, into: &mut Duration) -> Result<(), Fail> {
    if let Some(text) = text {
        *into = parse_duration(text).map_err(|e| Fail::new(format!("--{flag}: {e}")))?;
    }
    Ok(())
}

fn set<T>(from: &Option<T>, into: &mut T)
where
    T: Clone,
{
    if let Some(value) = from {
        into.clone_from(value);
    }
}

fn failure_action(text: &str) -> Result<FailureAction, Fail> {
    match text {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        "rollback" => Ok(FailureAction::Rollback),
        other => Err(Fail::new(format!(
            "there is no failure action {other}: use pause, continue or rollback"
        ))),
    }
}

fn order(text: &str) -> Result<UpdateOrder, Fail> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        other => Err(Fail::new(format!(
            "there is no order {other}: use stop-first or start-first"
        ))),
    }
}

impl SpecArgs {
    /// Puts what was given into a spec; the rest stays.
    fn apply(&self, s: &mut ServiceSpec) -> Result<(), Fail> {
        let words = |t: &str| shlex::split(t).ok_or_else(|| Fail::new(format!("{t}: a quote is not closed")));
        if let Some(replicas) = self.replicas {
            if s.mode == ServiceMode::Global {
                return Err(Fail::new(
                    "--replicas cannot be used with mode global: it has a task on every node",
                ));
            }
            s.mode = ServiceMode::Replicated { replicas };
        }
        let c = &mut s.task.container;
        if let Some(text) = &self.entrypoint {
            c.command = words(text)?;
        }
        set(&self.workdir, &mut c.dir);
        set(&self.user, &mut c.user);
        set(&self.hostname, &mut c.hostname);
        set(&self.stop_signal, &mut c.stop_signal);
        c.read_only |= self.read_only;
        c.tty |= self.tty;
        if self.init {
            c.init = Some(true);
        }
        if let Some(text) = &self.stop_grace_period {
            c.stop_grace = Some(parse_duration(text).map_err(|e| e.to_string())?);
        }
        c.cap_add.extend(self.cap_add.clone());
        c.cap_drop.extend(self.cap_drop.clone());
        self.health(&mut c.healthcheck)?;
        let cpus = |t: &Option<String>, into: &mut NanoCpus| -> Result<(), Fail> {
            if let Some(t) = t {
                *into = t.parse().map_err(|e: model::units::UnitError| e.to_string())?;
            }
            Ok(())
        };
        let bytes = |t: &Option<String>, into: &mut Bytes| -> Result<(), Fail> {
            if let Some(t) = t {
                *into = t.parse().map_err(|e: model::units::UnitError| e.to_string())?;
            }
            Ok(())
        };
        let r = &mut s.task.resources;
        cpus(&self.limit_cpu, &mut r.limits.cpu)?;
        bytes(&self.limit_memory, &mut r.limits.memory)?;
        set(&self.limit_pids, &mut r.limits.pids);
        cpus(&self.reserve_cpu, &mut r.reservations.cpu)?;
        bytes(&self.reserve_memory, &mut r.reservations.memory)?;
        set(
            &self.replicas_max_per_node,
            &mut s.task.placement.max_replicas_per_node,
        );
        for pref in &self.placement_pref {
            let label = pref
                .strip_prefix("spread=")
                .ok_or_else(|| Fail::new(format!("{pref}: write spread=node.labels.NAME")))?;
            s.task.placement.spread.push(label.into());
        }
        set(&self.log_driver, &mut s.task.log.name);
        s.task.log.options.extend(pairs(&self.log_opt));
        let restart = &mut s.task.restart;
        if let Some(text) = &self.restart_condition {
            restart.condition = match text.as_str() {
                "none" => RestartCondition::None,
                "on-failure" => RestartCondition::OnFailure,
                "any" => RestartCondition::Any,
                other => {
                    return Err(Fail::new(format!(
                        "there is no restart condition {other}: use none, on-failure or any"
                    )));
                }
            };
        }
        time("restart-delay", self.restart_delay.as_ref(), &mut restart.delay)?;
        time(
            "restart-window",
            self.restart_window.as_ref(),
            &mut restart.window,
        )?;
        set(&self.restart_max_attempts, &mut restart.max_attempts);
        self.rollout(s)?;
        if let Some(mode) = &self.endpoint_mode {
            s.endpoint.mode = match mode.as_str() {
                "vip" => EndpointMode::Vip,
                "dnsrr" => EndpointMode::DnsRr,
                other => {
                    return Err(Fail::new(format!(
                        "there is no endpoint mode {other}: use vip or dnsrr"
                    )));
                }
            };
        }
        Ok(())
    }

    fn rollout(&self, s: &mut ServiceSpec) -> Result<(), Fail> {
        let one = |u: &mut UpdateConfig,
                   texts: [&Option<String>; 4],
                   parallelism: &Option<u32>,
                   ratio: &Option<f64>|
         -> Result<(), Fail> {
            let [delay, monitor, action, kind] = texts;
            set(parallelism, &mut u.parallelism);
            set(ratio, &mut u.max_failure_ratio);
            time("delay", delay.as_ref(), &mut u.delay)?;
            time("monitor", monitor.as_ref(), &mut u.monitor)?;
            if let Some(text) = action {
                u.failure_action = failure_action(text)?;
            }
            if let Some(text) = kind {
                u.order = order(text)?;
            }
            Ok(())
        };
        let update = [
            &self.update_delay,
            &self.update_monitor,
            &self.update_failure_action,
            &self.update_order,
        ];
        one(
            &mut s.update,
            update,
            &self.update_parallelism,
            &self.update_max_failure_ratio,
        )?;
        let back = [
            &self.rollback_delay,
            &self.rollback_monitor,
            &self.rollback_failure_action,
            &self.rollback_order,
        ];
        one(
            &mut s.rollback,
            back,
            &self.rollback_parallelism,
            &self.rollback_max_failure_ratio,
        )
    }

    fn health(&self, check: &mut Option<Healthcheck>) -> Result<(), Fail> {
        if self.no_healthcheck {
            *check = Some(Healthcheck {
                test: vec!["NONE".into()],
                ..Healthcheck::default()
            });
            return Ok(());
        }
        let given = self.health_cmd.is_some()
            || self.health_retries.is_some()
            || [
                &self.health_interval,
                &self.health_timeout,
                &self.health_start_period,
                &self.health_start_interval,
            ]
            .iter()
            .any(|t| t.is_some());
        if !given {
            return Ok(());
        }
        let h = check.get_or_insert_default();
        if let Some(command) = &self.health_cmd {
            h.test = vec!["CMD-SHELL".into(), command.clone()];
        }
        set(&self.health_retries, &mut h.retries);
        time("health-interval", self.health_interval.as_ref(), &mut h.interval)?;
        time("health-timeout", self.health_timeout.as_ref(), &mut h.timeout)?;
        time(
            "health-start-period",
            self.health_start_period.as_ref(),
            &mut h.start_period,
        )?;
        time(
            "health-start-interval",
            self.health_start_interval.as_ref(),
            &mut h.start_interval,
        )
    }
}

fn all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Fail> {
    texts.iter().map(|t| parse(t).map_err(Fail::new)).collect()
}

fn env_entries(list: &[String]) -> Vec<String> {
    // A name alone takes its value from here; one that is not set here is left out.
    list.iter()
        .filter_map(|e| {
            if e.contains('=') {
                Some(e.clone())
            } else {
                std::env::var(e).ok().map(|v| format!("{e}={v}"))
            }
        })
        .collect()
}

fn from_create(args: &CreateArgs) -> Result<ServiceSpec, Fail> {
    let mut s = ServiceSpec {
        name: args.name.clone(),
        labels: pairs(&args.label),
        ..ServiceSpec::default()
    };
    if s.name.is_empty() {
        s.name = format!(
            "svc-{:x}",
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis()
        );
    }
    s.mode = match args.mode.as_str() {
        "replicated" => ServiceMode::default(),
        "global" => ServiceMode::Global,
        other => {
            return Err(Fail::new(format!(
                "there is no mode {other}: use replicated or global"
            )));
        }
    };
    let c = &mut s.task.container;
    c.image.clone_from(&args.image);
    c.args.clone_from(&args.args);
    for file in &args.env_file {
        let text = std::fs::read_to_string(file).map_err(|e| Fail::new(format!("read {file}: {e}")))?;
        c.env.extend(
            grammar::parse_env_file(&text, &|n| std::env::var(n).ok())
                .map_err(|e| Fail::new(format!("{file}: {e}")))?,
        );
    }
    c.env.extend(env_entries(&args.env));
    c.labels = pairs(&args.container_label);
    c.mounts = all(&args.mount, grammar::parse_mount)?;
    c.secrets = all(&args.secret, grammar::parse_secret)?;
    c.configs = all(&args.config, grammar::parse_config)?;
    c.ulimits = all(&args.ulimit, grammar::parse_ulimit)?;
    c.sysctls = pairs(&args.sysctl);
    c.dns.servers.clone_from(&args.dns);
    for host in &args.host {
        let (name, ip) = host
            .split_once(':')
            .ok_or_else(|| Fail::new(format!("--host {host}: write NAME:ADDRESS")))?;
        c.hosts.push((name.into(), ip.into()));
    }
    s.task.networks = all(&args.network, grammar::parse_network)?;
    s.task.placement.constraints.clone_from(&args.constraint);
    s.endpoint.ports = all(&args.publish, grammar::parse_ports)?
        .into_iter()
        .flatten()
        .collect();
    args.spec.apply(&mut s)?;
    Ok(s)
}

fn from_update(args: &UpdateArgs, old: &ServiceSpec) -> Result<ServiceSpec, Fail> {
    let mut s = old.clone();
    let c = &mut s.task.container;
    set(&args.image, &mut c.image);
    if let Some(text) = &args.args {
        c.args = shlex::split(text).ok_or_else(|| Fail::new(format!("{text}: a quote is not closed")))?;
    }
    c.env
        .retain(|e| !args.env_rm.iter().any(|n| e.split('=').next() == Some(n)));
    for entry in env_entries(&args.env_add) {
        c.env.retain(|e| e.split('=').next() != entry.split('=').next());
        c.env.push(entry);
    }
    s.labels.extend(pairs(&args.label_add));
    s.labels.retain(|k, _| !args.label_rm.contains(k));
    c.labels.extend(pairs(&args.container_label_add));
    c.mounts.retain(|m| !args.mount_rm.contains(&m.target));
    c.mounts.extend(all(&args.mount_add, grammar::parse_mount)?);
    c.secrets.retain(|r| !args.secret_rm.contains(&r.name));
    c.secrets.extend(all(&args.secret_add, grammar::parse_secret)?);
    c.configs.retain(|r| !args.config_rm.contains(&r.name));
    c.configs.extend(all(&args.config_add, grammar::parse_config)?);
    s.task.networks.retain(|n| !args.network_rm.contains(&n.name));
    s.task
        .networks
        .extend(all(&args.network_add, grammar::parse_network)?);
    s.task
        .placement
        .constraints
        .retain(|c| !args.constraint_rm.contains(c));
    s.task.placement.constraints.extend(args.constraint_add.clone());
    for target in all(&args.publish_rm, grammar::parse_ports)?.into_iter().flatten() {
        s.endpoint
            .ports
            .retain(|p| (p.target, p.protocol) != (target.target, target.protocol));
    }
    s.endpoint.ports.extend(
        all(&args.publish_add, grammar::parse_ports)?
            .into_iter()
            .flatten(),
    );
    s.task.force_update += u64::from(args.force);
    args.spec.apply(&mut s)?;
    Ok(s)
}

/// Waits for the one service of a command, unless that is not wanted.
async fn one(client: &Client, service: &str, wait: &Wait) -> Result<u8, Fail> {
    attached(client, service, "", wait, &Board::new(wait.quiet)).await
}

/// Waits for a service unless that is not wanted; `label` is what its lines begin with.
pub(crate) async fn attached(
    client: &Client,
    service: &str,
    label: &str,
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
    progress::wait(client, service, label, limit, board).await
}

async fn get(client: &Client, reference: &str) -> Result<Arc<Service>, Fail> {
    match client.get(Kind::Service, reference).await? {
        Object::Service(s) => Ok(s),
        _ => Err(Fail::new("the daemon answered another kind of object")),
    }
}

/// Creates a service; answers its id.
pub(crate) async fn create(client: &Client, spec: &ServiceSpec) -> Result<String, Fail> {
    let request = CreateRequest {
        spec: Some(Spec {
            spec: Some(spec::Spec::Service(spec.into())),
        }),
    };
    let reply = client.control().await?.create(request).await?.into_inner();
    reply.warnings.iter().for_each(|w| eprintln!("Warning: {w}"));
    Ok(reply.id)
}

pub(crate) async fn run(client: &Client, command: Command) -> Result<u8, Fail> {
    match command {
        Command::Create(args) => {
            let id = create(client, &from_create(&args)?).await?;
            render::line(&id);
            return one(client, &id, &args.spec.wait).await;
        }
        Command::Update(args) => {
            let old = get(client, &args.service).await?;
            if args.rollback {
                return roll_back(client, &args.service, &args.spec.wait).await;
            }
            let new = from_update(&args, &old.spec)?;
            let spec = Some(Spec {
                spec: Some(spec::Spec::Service((&new).into())),
            });
            let request = UpdateRequest {
                reference: old.id.to_string(),
                version: old.meta.version,
                spec,
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
            return one(client, &args.service, &args.spec.wait).await;
        }
        Command::Ls(args) => ls(client, &args).await?,
        Command::Ps { mut list, services } => {
            for service in services {
                list.filter
                    .push(format!("service={}", get(client, &service).await?.id));
            }
            task_rows(client, &list).await?;
        }
        Command::Inspect { services, format } => {
            let mut values = Vec::new();
            for service in &services {
                values.push(inspect::service(&*get(client, service).await?));
            }
            render::inspect(&values, format.as_deref())?;
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
            client
                .control()
                .await?
                .scale_services(ScaleServicesRequest { scales: list.clone() })
                .await?;
            list.iter()
                .for_each(|s| render::line(format!("{} scaled to {}", s.reference, s.replicas)));
            let mut worst = 0;
            for scale in list {
                worst = worst.max(one(client, &scale.reference, &wait).await?);
            }
            return Ok(worst);
        }
        Command::Rollback { wait, service } => return roll_back(client, &service, &wait).await,
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
        Command::Logs {
            follow,
            tail,
            timestamps,
            since,
            raw,
            service,
        } => {
            let s = get(client, &service).await?;
            let tasks = tasks(client, &[format!("service={}", s.id)]).await?;
            let began: Vec<&Arc<Task>> = tasks.iter().filter(|t| t.status.container.is_some()).collect();
            let names: BTreeMap<String, String> = began
                .iter()
                .map(|t| (t.id.to_string(), format!("{} | ", t.name())))
                .collect();
            let request = container::query(
                began.iter().map(|t| t.id.to_string()).collect(),
                &tail,
                since.as_deref(),
                follow,
            )?;
            let prefix = |task: &str| {
                if raw {
                    String::new()
                } else {
                    names.get(task).cloned().unwrap_or_default()
                }
            };
            container::print_logs(client, request, timestamps, &prefix).await?;
        }
    }
    Ok(0)
}

async fn roll_back(client: &Client, service: &str, wait: &Wait) -> Result<u8, Fail> {
    client
        .control()
        .await?
        .rollback_service(RollbackServiceRequest {
            reference: service.into(),
            version: 0,
        })
        .await?;
    render::line(service);
    // Going back is what was asked for here, so it is success.
    match one(client, service, wait).await? {
        progress::ROLLED_BACK => Ok(0),
        code => Ok(code),
    }
}

async fn tasks(client: &Client, filters: &[String]) -> Result<Vec<Arc<Task>>, Fail> {
    let objects = client.list(Kind::Task, filters).await?;
    Ok(objects
        .into_iter()
        .filter_map(|o| if let Object::Task(t) = o { Some(t) } else { None })
        .collect())
}

/// Prints services.
pub(crate) async fn ls(client: &Client, args: &ListArgs) -> Result<(), Fail> {
    let services = client.list(Kind::Service, &args.filter).await?;
    let mut by_service: BTreeMap<ServiceId, Vec<Arc<Task>>> = BTreeMap::new();
    for task in tasks(client, &[]).await? {
        by_service.entry(task.service).or_default().push(task);
    }
    let rows: Vec<Value> = services
        .iter()
        .filter_map(|o| if let Object::Service(s) = o { Some(s) } else { None })
        .map(|s| {
            let own: BTreeMap<_, _> = by_service.remove(&s.id).unwrap_or_default().into_iter().map(|t| (t.id, (*t).clone())).collect();
            let (running, wanted) = progress::count(s, &own);
            let (id, mode) = (s.id.to_string(), if s.spec.mode == ServiceMode::Global { "global" } else { "replicated" });
            json!({"ID": id, "Shown": render::short(&id, args.no_trunc), "Name": s.spec.name, "Mode": mode, "Replicas": format!("{running}/{wanted}"), "Image": s.spec.task.container.image, "Ports": inspect::ports(&s.endpoint.ports)})
        })
        .collect();
    let columns = [
        ("ID", "Shown"),
        ("NAME", "Name"),
        ("MODE", "Mode"),
        ("REPLICAS", "Replicas"),
        ("IMAGE", "Image"),
        ("PORTS", "Ports"),
    ];
    render::list(&rows, &columns, args)
}

/// Prints tasks, by slot, the newest first, older ones of a slot behind ` \_ `.
pub(crate) async fn task_rows(client: &Client, args: &ListArgs) -> Result<(), Fail> {
    let mut list = tasks(client, &args.filter).await?;
    let mut nodes: BTreeMap<NodeId, String> = BTreeMap::new();
    for object in client.list(Kind::Node, &[]).await? {
        if let Object::Node(n) = object {
            nodes.insert(n.id, n.description.hostname.clone());
        }
    }
    list.sort_by_key(|t| {
        (
            t.service_name.clone(),
            t.slot,
            std::cmp::Reverse((t.desired.is_live(), t.meta.created_at)),
            t.id,
        )
    });
    let mut last: Option<(ServiceId, SlotKey)> = None;
    let mut rows = Vec::new();
    for t in &list {
        let again = last.replace((t.service, t.slot)) == Some((t.service, t.slot));
        let id = t.id.to_string();
        let title = |s: &str| {
            s.chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(s.chars().skip(1))
                .collect::<String>()
        };
        let desired = if t.desired == DesiredState::Remove {
            "Remove".into()
        } else {
            title(t.desired.as_str())
        };
        let error = if t.status.error.is_empty() {
            String::new()
        } else {
            format!("\"{}\"", t.status.error)
        };
        let ports: Vec<_> = t
            .host_ports
            .iter()
            .filter(|p| p.mode == PublishMode::Host && t.status.state == TaskState::Running)
            .cloned()
            .collect();
        rows.push(json!({
            "ID": id, "Shown": render::short(&id, args.no_trunc), "Name": t.name(), "ShownName": format!("{}{}", if again { " \\_ " } else { "" }, t.name()),
            "Image": t.spec.container.image, "Node": t.node.and_then(|n| nodes.get(&n).cloned()).unwrap_or_default(),
            "DesiredState": desired, "CurrentState": format!("{} {}", title(t.status.state.as_str()), render::ago(t.status.at.0).to_lowercase()),
            "Error": error, "Ports": inspect::ports(&ports), "Raw": inspect::task(t),
        }));
    }
    let columns = [
        ("ID", "Shown"),
        ("NAME", "ShownName"),
        ("IMAGE", "Image"),
        ("NODE", "Node"),
        ("DESIRED STATE", "DesiredState"),
        ("CURRENT STATE", "CurrentState"),
        ("ERROR", "Error"),
        ("PORTS", "Ports"),
    ];
    render::list(&rows, &columns, args)
}
