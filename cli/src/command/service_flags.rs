//! Flags of `service create` and `service update`, and the specs they make.

use std::time::Duration;

use deploy::grammar;
use model::spec::{
    Amounts, EndpointMode, FailureAction, PlacementStrategy, Rebalance, RestartCondition, ServiceMode,
    ServiceSpec, UpdateConfig, UpdateOrder, parse_amount,
};
use model::units::parse_duration;
use model::{Bytes, NanoCpus};

use crate::client::Fail;
use crate::command::check_flags::CheckArgs;
use crate::command::job::JobArgs;
use crate::command::network::pairs;

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
    /// How many tasks; of a replicated-job, how many are to complete.
    #[arg(long)]
    replicas: Option<u32>,
    #[command(flatten)]
    job: JobArgs,
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
    /// Wait twice as long before each restart in a row, from --restart-delay up to this; without it each waits for
    /// --restart-delay, as in Docker.
    #[arg(long)]
    restart_max_delay: Option<String>,
    /// A task that ran for this long was well: the next restart waits for --restart-delay again [default: 60s].
    #[arg(long)]
    restart_reset_after: Option<String>,
    /// What becomes of its tasks on a node that is cut off: keep, or stop-after=TIME, which is for what must never run twice: a
    /// drain stops it before it starts elsewhere, too, unless --update-order is start-first.
    #[arg(long)]
    on_disconnect: Option<String>,
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
    /// Change this many slots and wait for `service promote` or `service abort`; 0: none.
    #[arg(long)]
    update_canary: Option<u32>,
    /// A task that does not run so long after its slot was begun counts as failed (10m unless given; 0: wait for ever, as Docker does).
    #[arg(long)]
    update_deadline: Option<String>,
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
    /// Let the cluster choose the replicas: min=2,max=8,cpu=60,memory=80,scale_down_after=5m, where cpu and memory are per cent of
    /// what a task reserves (else of its limit, else of one CPU); `none` ends that.
    #[arg(long, value_name = "RULE")]
    autoscale: Option<String>,
    /// As --update-deadline.
    #[arg(long)]
    rollback_deadline: Option<String>,
    #[command(flatten)]
    checks: CheckArgs,
    #[arg(long)]
    endpoint_mode: Option<String>,
    #[arg(long)]
    cap_add: Vec<String>,
    #[arg(long)]
    cap_drop: Vec<String>,
    #[arg(long)]
    placement_pref: Vec<String>,
    /// Which of the nodes that fit is taken: spread, the emptiest, or binpack, the fullest.
    #[arg(long)]
    strategy: Option<PlacementStrategy>,
    /// When its tasks are spread anew without being asked: never, or on-join, when a node joins, comes back or takes tasks again;
    /// one at a time, each once its successor runs.
    #[arg(long)]
    rebalance: Option<Rebalance>,
    /// 0 to 100: where there is no room for its tasks, those of a lower one make some.
    #[arg(long)]
    priority: Option<u32>,
    #[arg(long)]
    log_driver: Option<String>,
    #[arg(long)]
    log_opt: Vec<String>,
    /// Leave the image as it is written, without the digest of what its name means now: each node looks it up by itself.
    #[arg(long)]
    pub(super) no_resolve_image: bool,
    /// Accepted for Docker's habits: there is no registry yet.
    #[arg(long)]
    with_registry_auth: bool,
    #[command(flatten)]
    pub(super) wait: Wait,
}

/// Make a service.
#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    #[arg(long, default_value = "")]
    name: String,
    /// replicated, global, replicated-job or global-job.
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
    /// `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`, or fields: published=, target=, protocol=, mode=, host_ip=, name=, and proxy_protocol=v2,
    /// by which connections to tasks begin with who the client is.
    #[arg(long, short)]
    publish: Vec<String>,
    #[arg(long)]
    mount: Vec<String>,
    /// NAME, or name=NAME,alias=…,ip=…,ip6=… with the virtual addresses it is to have there.
    #[arg(long)]
    network: Vec<String>,
    #[arg(long)]
    constraint: Vec<String>,
    /// service==NAME or service!=NAME: a task of that service is on its node, or none is.
    #[arg(long)]
    affinity: Vec<String>,
    /// KIND=NUMBER, such as gpu=1.
    #[arg(long)]
    generic_resource: Vec<String>,
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
    /// SERVICE[=started|healthy|completed][,optional]: no task runs before that holds of the other service.
    #[arg(long, value_name = "DEPENDENCY")]
    depends_on: Vec<String>,
    #[command(flatten)]
    pub(super) spec: SpecArgs,
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
    /// As --publish of create.
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
    affinity_add: Vec<String>,
    #[arg(long)]
    affinity_rm: Vec<String>,
    /// KIND=NUMBER, in the place of what it asked for of that kind.
    #[arg(long)]
    generic_resource_add: Vec<String>,
    /// A kind that it asks for no more.
    #[arg(long)]
    generic_resource_rm: Vec<String>,
    #[arg(long)]
    secret_add: Vec<String>,
    #[arg(long)]
    secret_rm: Vec<String>,
    #[arg(long)]
    config_add: Vec<String>,
    #[arg(long)]
    config_rm: Vec<String>,
    /// As --depends-on of create, in the place of what it depended on of that service.
    #[arg(long, value_name = "DEPENDENCY")]
    depends_on_add: Vec<String>,
    /// A service that it depends on no more.
    #[arg(long, value_name = "SERVICE")]
    depends_on_rm: Vec<String>,
    /// Replace every task although nothing changed.
    #[arg(long)]
    force: bool,
    /// Go back to the spec before the last change.
    #[arg(long)]
    pub(super) rollback: bool,
    #[command(flatten)]
    pub(super) spec: SpecArgs,
    pub(super) service: String,
}

pub(super) fn time(flag: &str, text: Option<&String>, into: &mut Duration) -> Result<(), Fail> {
    if let Some(text) = text {
        *into = parse_duration(text).map_err(|e| Fail::new(format!("--{flag}: {e}")))?;
    }
    Ok(())
}

pub(super) fn set<T>(from: &Option<T>, into: &mut T)
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

pub(crate) fn order(text: &str) -> Result<UpdateOrder, Fail> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        other => Err(Fail::new(format!(
            "there is no order {other}: use stop-first or start-first"
        ))),
    }
}

/// How many of each kind of generic resource.
fn amounts(texts: &[String]) -> Result<Amounts, Fail> {
    let mut all = Amounts::new();
    for text in texts {
        let (kind, count) = parse_amount(text).map_err(Fail::new)?;
        if all.insert(kind.clone(), count).is_some() {
            return Err(Fail::new(format!("generic resource {kind} is asked for twice")));
        }
    }
    Ok(all)
}

impl SpecArgs {
    /// Puts what was given into a spec; the rest stays.
    fn apply(&self, s: &mut ServiceSpec) -> Result<(), Fail> {
        let words = |t: &str| shlex::split(t).ok_or_else(|| Fail::new(format!("{t}: a quote is not closed")));
        self.job.apply(self.replicas, s)?;
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
        self.checks.apply(c)?;
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
        set(&self.strategy, &mut s.task.placement.strategy);
        set(&self.rebalance, &mut s.rebalance);
        set(&self.priority, &mut s.task.priority);
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
        time(
            "restart-max-delay",
            self.restart_max_delay.as_ref(),
            &mut restart.max_delay,
        )?;
        time(
            "restart-reset-after",
            self.restart_reset_after.as_ref(),
            &mut restart.reset_after,
        )?;
        set(&self.restart_max_attempts, &mut restart.max_attempts);
        if let Some(text) = &self.on_disconnect {
            s.task.on_disconnect = grammar::parse_on_disconnect(text)?;
        }
        self.rollout(s)?;
        if let Some(text) = &self.autoscale {
            s.autoscale = grammar::parse_autoscale(text)?;
        }
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
        )?;
        set(&self.update_canary, &mut s.update.canary);
        let deadline = self.update_deadline.as_ref();
        time("update-deadline", deadline, &mut s.update.progress_deadline)?;
        let deadline = self.rollback_deadline.as_ref();
        time("rollback-deadline", deadline, &mut s.rollback.progress_deadline)
    }
}

fn all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Fail> {
    texts.iter().map(|t| parse(t).map_err(Fail::new)).collect()
}

pub(super) fn env_entries(list: &[String]) -> Vec<String> {
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

/// The service that the flags of `create` describe.
pub(super) fn from_create(args: &CreateArgs) -> Result<ServiceSpec, Fail> {
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
        "replicated-job" => ServiceMode::ReplicatedJob {
            completions: 1,
            max_concurrent: 0,
        },
        "global-job" => ServiceMode::GlobalJob,
        other => {
            return Err(Fail::new(format!(
                "there is no mode {other}: use replicated, global, replicated-job or global-job"
            )));
        }
    };
    if s.mode.is_job() {
        // What else would a job do that ended well.
        s.task.restart.condition = RestartCondition::OnFailure;
    }
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
    s.task.placement.affinity.clone_from(&args.affinity);
    s.task.resources.reservations.generic = amounts(&args.generic_resource)?;
    s.task.depends_on = all(&args.depends_on, deploy::parse_dependency)?;
    s.endpoint.ports = all(&args.publish, grammar::parse_ports)?
        .into_iter()
        .flatten()
        .collect();
    args.spec.apply(&mut s)?;
    Ok(s)
}

/// The service that the flags of `update` make of the present one.
pub(super) fn from_update(args: &UpdateArgs, old: &ServiceSpec) -> Result<ServiceSpec, Fail> {
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
    let affinity = &mut s.task.placement.affinity;
    affinity.retain(|a| !args.affinity_rm.contains(a));
    affinity.extend(args.affinity_add.clone());
    let generic = &mut s.task.resources.reservations.generic;
    generic.retain(|kind, _| !args.generic_resource_rm.contains(kind));
    generic.extend(amounts(&args.generic_resource_add)?);
    let depends_on = &mut s.task.depends_on;
    depends_on.retain(|d| !args.depends_on_rm.contains(&d.service));
    for new in all(&args.depends_on_add, deploy::parse_dependency)? {
        depends_on.retain(|d| d.service != new.service);
        depends_on.push(new);
    }
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
