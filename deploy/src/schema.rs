//! Which keys there are, what they hold and what becomes of them; brings a file into its long form.
//!
//! The table follows what `docker stack deploy` converts (schema 3.13). Where ours takes more, it takes what
//! `docker compose config` prints: ports as texts, cpus as numbers.

use model::{Bytes, NanoCpus};

use crate::grammar;
use crate::node::{Entry, Node, Value};
use crate::problem::Report;

/// What a key holds.
#[derive(Debug)]
pub(crate) enum Shape {
    /// A text; numbers are taken as written.
    Text,
    /// One of some words.
    Word(&'static [&'static str]),
    /// A boolean, also as `yes`, `no`, `on`, `off`.
    Bool,
    /// A whole number within bounds.
    Int(i64, i64),
    /// A number from 0 to 1.
    Share,
    /// A Go duration.
    Duration,
    /// Bytes, such as `64m`.
    Size,
    /// A number of CPUs.
    Cpus,
    /// Per cent, such as `60` or `60%`.
    Percent,
    /// Permission bits, octal.
    Mode,
    /// `no`, `always`, `unless-stopped`, `on-failure[:n]`.
    Restart,
    /// A mapping with known keys.
    Object(&'static [Key]),
    /// A mapping from names to one shape.
    Named(&'static Shape),
    /// A list of one shape.
    List(&'static Shape),
    /// A list of texts.
    Texts,
    /// One text or a list of them.
    TextOrTexts,
    /// A list, or a text that is split as a shell does.
    Command,
    /// A list, or a text for the shell.
    Test,
    /// A mapping or a list of `KEY=VALUE`; `true`: a key without value stays without.
    Pairs(bool),
    /// `host:address`, as list or mapping.
    Hosts,
    /// Ports in both forms.
    Ports,
    /// Mounts in both forms.
    Mounts,
    /// Secrets or configs of a service in both forms.
    Files,
    /// Networks of a service in both forms.
    Networks,
    /// Limits of a process in both forms.
    Ulimits,
    /// `true`, or a mapping with a name.
    External,
    /// `keep`, or a mapping with `stop_after`.
    OnDisconnect,
    /// `PORT[/PATH]`, or a mapping.
    Http,
    /// An HTTP status, or a range of them.
    Statuses,
    /// The text of cron(8), or a mapping with it.
    Schedule,
    /// Names of services, or a mapping from them.
    DependsOn,
}

/// One key of a mapping.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
}

/// What becomes of a key.
#[derive(Debug)]
pub(crate) enum Class {
    Used(Shape),
    Ignored(&'static str),
    Refused(&'static str),
}

const fn used(name: &'static str, shape: Shape) -> Key {
    Key {
        name,
        class: Class::Used(shape),
    }
}

const fn ignored(name: &'static str, why: &'static str) -> Key {
    Key {
        name,
        class: Class::Ignored(why),
    }
}

const fn refused(name: &'static str, why: &'static str) -> Key {
    Key {
        name,
        class: Class::Refused(why),
    }
}

const SWARM: &str = "ignoring unsupported option: containers of services do not have it";
const LATER: &str = "is not supported yet: take it out";
const U32: i64 = 0xffff_ffff;
const PRIORITY: i64 = model::spec::PRIORITY_MAX as i64;
const UNITS: i64 = model::spec::UNITS_MAX as i64;

/// The whole file.
pub(crate) const FILE: Shape = Shape::Object(&[
    used("version", Shape::Text),
    ignored("name", "ignored: a stack has the name that the command gives it"),
    used("services", Shape::Named(&SERVICE)),
    used("networks", Shape::Named(&NETWORK)),
    used("volumes", Shape::Named(&VOLUME)),
    used("secrets", Shape::Named(&SECRET)),
    used("configs", Shape::Named(&CONFIG)),
    refused("include", "is not supported: give every file with -c"),
    refused("models", LATER),
]);

const SERVICE: Shape = Shape::Object(&[
    used("image", Shape::Text),
    used("command", Shape::Command),
    used("entrypoint", Shape::Command),
    used("environment", Shape::Pairs(true)),
    used("env_file", Shape::TextOrTexts),
    used("hostname", Shape::Text),
    used("extra_hosts", Shape::Hosts),
    used("dns", Shape::TextOrTexts),
    used("dns_search", Shape::TextOrTexts),
    used("dns_opt", Shape::TextOrTexts),
    used("healthcheck", HEALTHCHECK),
    used("readiness", READINESS),
    used("labels", Shape::Pairs(false)),
    used("logging", LOGGING),
    used("networks", Shape::Networks),
    used("ports", Shape::Ports),
    used("volumes", Shape::Mounts),
    used("tmpfs", Shape::TextOrTexts),
    used("secrets", Shape::Files),
    used("configs", Shape::Files),
    used("user", Shape::Text),
    used("group_add", Shape::Texts),
    used("working_dir", Shape::Text),
    used("stop_signal", Shape::Text),
    used("stop_grace_period", Shape::Duration),
    used("tty", Shape::Bool),
    used("stdin_open", Shape::Bool),
    used("read_only", Shape::Bool),
    used("init", Shape::Bool),
    used("sysctls", Shape::Pairs(false)),
    used("cap_add", Shape::Texts),
    used("cap_drop", Shape::Texts),
    used("ulimits", Shape::Ulimits),
    used("oom_score_adj", Shape::Int(-1000, 1000)),
    used("restart", Shape::Restart),
    used("deploy", DEPLOY),
    used("depends_on", Shape::DependsOn),
    ignored(
        "build",
        "ignored: a stack does not build images; use `rswarm image build`",
    ),
    ignored("cgroupns_mode", SWARM),
    ignored("cgroup_parent", SWARM),
    ignored("devices", SWARM),
    ignored("domainname", SWARM),
    ignored("external_links", SWARM),
    ignored("ipc", SWARM),
    ignored(
        "links",
        "ignored: services of one network find each other by name",
    ),
    ignored("mac_address", SWARM),
    ignored("network_mode", "ignored: use networks"),
    ignored("pid", SWARM),
    ignored("privileged", SWARM),
    ignored("security_opt", SWARM),
    ignored("shm_size", SWARM),
    ignored("userns_mode", SWARM),
    ignored("isolation", SWARM),
    ignored("credential_spec", SWARM),
    ignored(
        "container_name",
        "ignored: the containers of a service have names of their own",
    ),
    ignored("expose", "ignored: services of one network reach every port"),
    refused(
        "extends",
        "is not supported by stacks: use YAML anchors or a second file with -c",
    ),
    refused(
        "volume_driver",
        "was removed: name the driver in the top-level volumes",
    ),
    refused("volumes_from", "was removed: name a volume in both services"),
    refused("cpu_quota", "was removed: use deploy.resources.limits.cpus"),
    refused(
        "cpu_shares",
        "was removed: use deploy.resources.reservations.cpus",
    ),
    refused("cpuset", "was removed: use deploy.resources"),
    refused("mem_limit", "was removed: use deploy.resources.limits.memory"),
    refused("memswap_limit", "was removed: use deploy.resources.limits.memory"),
    refused(
        "pids_limit",
        "belongs to deploy: use deploy.resources.limits.pids",
    ),
    refused("scale", "belongs to deploy: use deploy.replicas"),
    refused("profiles", LATER),
    refused("pull_policy", LATER),
    refused(
        "platform",
        "is not supported yet: use deploy.placement.constraints with node.platform.arch",
    ),
    refused("gpus", LATER),
    refused("develop", LATER),
    refused("runtime", LATER),
    refused("label_file", LATER),
    refused("annotations", LATER),
    refused("attach", LATER),
    used("pre_start", Shape::List(&PRE_START)),
    used("post_start", Shape::List(&HOOK)),
    used("pre_stop", Shape::List(&HOOK)),
]);

pub(crate) const DEPENDENCY: Shape = Shape::Object(&[
    used(
        "condition",
        Shape::Word(&[
            "service_started",
            "service_healthy",
            "service_completed_successfully",
        ]),
    ),
    used("required", Shape::Bool),
    used("restart", Shape::Bool),
]);

const HEALTHCHECK: Shape = Shape::Object(&[
    used("test", Shape::Test),
    used("interval", Shape::Duration),
    used("timeout", Shape::Duration),
    used("retries", Shape::Int(0, U32)),
    used("start_period", Shape::Duration),
    used("start_interval", Shape::Duration),
    used("disable", Shape::Bool),
    used("http", Shape::Http),
    used("tcp", Shape::Int(1, 65_535)),
]);

const HOOK: Shape = Shape::Object(&[
    used("command", Shape::Command),
    used("user", Shape::Text),
    used("working_dir", Shape::Text),
    used("environment", Shape::Pairs(true)),
    refused(
        "privileged",
        "is not supported: a hook may do what its container may",
    ),
]);

const PRE_START: Shape = Shape::Object(&[
    used("command", Shape::Command),
    used("user", Shape::Text),
    used("working_dir", Shape::Text),
    used("environment", Shape::Pairs(true)),
    refused(
        "image",
        "is not supported yet: it runs in the image of the service",
    ),
    refused("per_replica", "is not needed: it runs before each task"),
    refused(
        "privileged",
        "is not supported: a hook may do what its container may",
    ),
]);

const READINESS: Shape = Shape::Object(&[
    used("test", Shape::Test),
    used("http", Shape::Http),
    used("tcp", Shape::Int(1, 65_535)),
    used("interval", Shape::Duration),
    used("timeout", Shape::Duration),
    used("retries", Shape::Int(0, U32)),
    used("start_interval", Shape::Duration),
    refused(
        "start_period",
        "is not needed: before it was ready for the first time a task is not ready anyway",
    ),
    refused("disable", "is not needed: leave readiness out"),
]);

const HTTP: Shape = Shape::Object(&[
    used("port", Shape::Int(1, 65_535)),
    used("path", Shape::Text),
    used("status", Shape::Statuses),
    used("scheme", Shape::Word(&["http"])),
]);

const LOGGING: Shape = Shape::Object(&[used("driver", Shape::Text), used("options", Shape::Pairs(false))]);

const DEPLOY: Shape = Shape::Object(&[
    used(
        "mode",
        Shape::Word(&["replicated", "global", "replicated-job", "global-job"]),
    ),
    used("replicas", Shape::Int(0, model::spec::REPLICAS_MAX as i64)),
    used("max_concurrent", Shape::Int(1, model::spec::REPLICAS_MAX as i64)),
    used("schedule", Shape::Schedule),
    used("endpoint_mode", Shape::Word(&["vip", "dnsrr"])),
    used("labels", Shape::Pairs(false)),
    used("update_config", UPDATE),
    used("rollback_config", ROLLBACK),
    used(
        "resources",
        Shape::Object(&[
            used(
                "limits",
                Shape::Object(&[
                    used("cpus", Shape::Cpus),
                    used("memory", Shape::Size),
                    used("pids", Shape::Int(-1, 4_194_304)),
                ]),
            ),
            used(
                "reservations",
                Shape::Object(&[
                    used("cpus", Shape::Cpus),
                    used("memory", Shape::Size),
                    used(
                        "generic_resources",
                        Shape::List(&Shape::Object(&[used(
                            "discrete_resource_spec",
                            Shape::Object(&[used("kind", Shape::Text), used("value", Shape::Int(1, UNITS))]),
                        )])),
                    ),
                    refused("devices", LATER),
                ]),
            ),
        ]),
    ),
    used(
        "restart_policy",
        Shape::Object(&[
            used("condition", Shape::Word(&["none", "on-failure", "any"])),
            used("delay", Shape::Duration),
            used("max_attempts", Shape::Int(0, i64::MAX)),
            used("window", Shape::Duration),
            used("max_delay", Shape::Duration),
            used("reset_after", Shape::Duration),
        ]),
    ),
    used(
        "placement",
        Shape::Object(&[
            used("constraints", Shape::Texts),
            used(
                "preferences",
                Shape::List(&Shape::Object(&[used("spread", Shape::Text)])),
            ),
            used("max_replicas_per_node", Shape::Int(0, U32)),
            used("strategy", Shape::Word(&["spread", "binpack"])),
            used("rebalance", Shape::Word(&["never", "on-join"])),
            used("affinity", Shape::Texts),
        ]),
    ),
    used("on_disconnect", Shape::OnDisconnect),
    used(
        "autoscale",
        Shape::Object(&[
            used("min", Shape::Int(1, model::spec::REPLICAS_MAX as i64)),
            used("max", Shape::Int(1, model::spec::REPLICAS_MAX as i64)),
            used("cpu", Shape::Percent),
            used("memory", Shape::Percent),
            used("scale_down_after", Shape::Duration),
        ]),
    ),
    used("priority", Shape::Int(0, PRIORITY)),
]);

const SCHEDULE: Shape = Shape::Object(&[
    used("cron", Shape::Text),
    used("timezone", Shape::Text),
    used("concurrency", Shape::Word(&["forbid", "allow", "replace"])),
    used("history", Shape::Int(1, model::spec::HISTORY_MAX as i64)),
    used("starting_deadline", Shape::Duration),
]);

const UPDATE: Shape = Shape::Object(&[
    used("parallelism", Shape::Int(0, U32)),
    used("delay", Shape::Duration),
    used("monitor", Shape::Duration),
    used("failure_action", Shape::Word(&["pause", "continue", "rollback"])),
    used("max_failure_ratio", Shape::Share),
    used("order", Shape::Word(&["stop-first", "start-first"])),
    used("canary", Shape::Int(0, U32)),
    used("progress_deadline", Shape::Duration),
]);

const ROLLBACK: Shape = Shape::Object(&[
    used("parallelism", Shape::Int(0, U32)),
    used("delay", Shape::Duration),
    used("monitor", Shape::Duration),
    used("failure_action", Shape::Word(&["pause", "continue"])),
    used("max_failure_ratio", Shape::Share),
    used("order", Shape::Word(&["stop-first", "start-first"])),
    used("progress_deadline", Shape::Duration),
]);

const NETWORK: Shape = Shape::Object(&[
    used("name", Shape::Text),
    used("external", Shape::External),
    used("driver", Shape::Text),
    used("driver_opts", Shape::Pairs(false)),
    used("internal", Shape::Bool),
    used("attachable", Shape::Bool),
    used("labels", Shape::Pairs(false)),
    used(
        "ipam",
        Shape::Object(&[
            ignored("driver", "ignored: the cluster hands out addresses"),
            ignored("options", "ignored: the cluster hands out addresses"),
            used(
                "config",
                Shape::List(&Shape::Object(&[
                    used("subnet", Shape::Text),
                    ignored("gateway", "ignored: containers have a route of their own"),
                    ignored("ip_range", "ignored: the whole subnet is used"),
                    ignored("aux_addresses", "ignored: the whole subnet is used"),
                ])),
            ),
        ]),
    ),
    used("enable_ipv6", Shape::Bool),
    refused("enable_ipv4", LATER),
]);

const VOLUME: Shape = Shape::Object(&[
    used("name", Shape::Text),
    used("external", Shape::External),
    used("driver", Shape::Text),
    used("driver_opts", Shape::Pairs(false)),
    used("labels", Shape::Pairs(false)),
]);

const SECRET: Shape = Shape::Object(&[
    used("name", Shape::Text),
    used("external", Shape::External),
    used("file", Shape::Text),
    used("environment", Shape::Text),
    used("labels", Shape::Pairs(false)),
    refused("driver", LATER),
    refused("driver_opts", LATER),
    refused("template_driver", LATER),
]);

const CONFIG: Shape = Shape::Object(&[
    used("name", Shape::Text),
    used("external", Shape::External),
    used("file", Shape::Text),
    used("environment", Shape::Text),
    used("content", Shape::Text),
    used("labels", Shape::Pairs(false)),
    refused("template_driver", LATER),
]);

const EXTERNAL: Shape = Shape::Object(&[used("name", Shape::Text)]);

const ON_DISCONNECT: Shape = Shape::Object(&[used("stop_after", Shape::Duration)]);

const PORT: Shape = Shape::Object(&[
    used("target", Shape::Int(1, 65_535)),
    used("published", Shape::Int(0, 65_535)),
    used("protocol", Shape::Word(&["tcp", "udp", "sctp"])),
    used("mode", Shape::Word(&["ingress", "host"])),
    used("name", Shape::Text),
    used("host_ip", Shape::Text),
    used("proxy_protocol", Shape::Word(&["v2"])),
    ignored("app_protocol", "ignored: ports are balanced by connection"),
]);

const MOUNT: Shape = Shape::Object(&[
    used(
        "type",
        Shape::Word(&["volume", "bind", "tmpfs", "npipe", "cluster", "image"]),
    ),
    used("source", Shape::Text),
    used("target", Shape::Text),
    used("read_only", Shape::Bool),
    ignored("consistency", "ignored: it has a meaning on other systems only"),
    used(
        "bind",
        Shape::Object(&[
            used("propagation", Shape::Word(PROPAGATION)),
            used("create_host_path", Shape::Bool),
            ignored("selinux", SWARM),
            ignored("recursive", SWARM),
        ]),
    ),
    used(
        "volume",
        Shape::Object(&[
            used("nocopy", Shape::Bool),
            used("subpath", Shape::Text),
            used("labels", Shape::Pairs(false)),
        ]),
    ),
    used(
        "tmpfs",
        Shape::Object(&[used("size", Shape::Size), used("mode", Shape::Mode)]),
    ),
]);

const PROPAGATION: &[&str] = &["rprivate", "private", "rshared", "shared", "rslave", "slave"];

const FILE_REF: Shape = Shape::Object(&[
    used("source", Shape::Text),
    used("target", Shape::Text),
    used("uid", Shape::Int(0, U32)),
    used("gid", Shape::Int(0, U32)),
    used("mode", Shape::Mode),
]);

const ATTACHMENT: Shape = Shape::Object(&[
    used("aliases", Shape::Texts),
    used("ipv4_address", Shape::Text),
    used("ipv6_address", Shape::Text),
    ignored("link_local_ips", SWARM),
    ignored("mac_address", SWARM),
    ignored("driver_opts", SWARM),
    ignored("priority", SWARM),
    ignored("gw_priority", SWARM),
    ignored("interface_name", SWARM),
]);

const ULIMIT: Shape = Shape::Object(&[
    used("soft", Shape::Int(-1, i64::MAX)),
    used("hard", Shape::Int(-1, i64::MAX)),
]);

/// Brings a tree into its long form and reports everything that does not fit; what is ignored is left out.
pub(crate) fn normalise(node: &Node, shape: &Shape, path: &str, report: &mut Report) -> Option<Node> {
    let at = node.at;
    let mut refuse = |message: String| -> Option<Node> {
        report.problem(at, path, message);
        None
    };
    let must = |what: &str| format!("must be {what}, not {}", node.kind());
    match shape {
        Shape::Text => match &node.value {
            Value::Text(t) | Value::Number(t) => Some(Node::text(at, t.clone())),
            Value::Bool(b) => refuse(format!("must be a text: write \"{b}\" with quotes")),
            Value::Null | Value::List(_) | Value::Map(_) => refuse(must("a text")),
        },
        Shape::Word(words) => match node.scalar() {
            Some(t) if words.contains(&t) => Some(Node::text(at, t)),
            Some(t) => refuse(format!("\"{t}\" is none of {}", words.join(", "))),
            None => refuse(must("a text")),
        },
        Shape::Bool => match node.scalar().map(truth) {
            Some(Some(b)) => Some(Node::new(at, Value::Bool(b))),
            Some(None) => refuse(format!("\"{}\" is neither true nor false", scalar(node))),
            None => refuse(must("true or false")),
        },
        Shape::Int(least, most) => match node.scalar().map(whole) {
            Some(Some(n)) if (*least..=*most).contains(&n) => {
                Some(Node::new(at, Value::Number(n.to_string())))
            }
            Some(Some(n)) => refuse(format!("{n} is out of range: {least} to {most}")),
            Some(None) => refuse(format!("\"{}\" is no whole number", scalar(node))),
            None => refuse(must("a whole number")),
        },
        Shape::Share => match node.scalar().map(str::parse::<f64>) {
            Some(Ok(n)) if (0.0..=1.0).contains(&n) => Some(Node::new(at, Value::Number(n.to_string()))),
            Some(_) => refuse(format!("\"{}\" is no number from 0 to 1", scalar(node))),
            None => refuse(must("a number")),
        },
        Shape::Duration => match node.scalar().map(model::units::parse_duration) {
            Some(Ok(d)) => Some(Node::text(at, model::units::format_duration(d))),
            Some(Err(e)) => refuse(e.to_string()),
            None => refuse(must("a duration such as 10s")),
        },
        Shape::Size => match node.scalar().map(str::parse::<Bytes>) {
            Some(Ok(b)) => Some(Node::text(at, b.0.to_string())),
            Some(Err(e)) => refuse(e.to_string()),
            None => refuse(must("a size such as 64m")),
        },
        Shape::Cpus => match node.scalar() {
            Some(t) => match t.parse::<NanoCpus>() {
                Ok(_) => Some(Node::text(at, t)),
                Err(e) => refuse(e.to_string()),
            },
            None => refuse(must("a number of CPUs such as 0.5")),
        },
        Shape::Percent => match node.scalar() {
            Some(t) => match t.trim_end_matches('%').trim_end().parse::<u32>() {
                Ok(n @ 1..=1000) => Some(Node::text(at, n.to_string())),
                Ok(_) | Err(_) => refuse(format!("\"{t}\" is no number of per cent from 1 to 1000")),
            },
            None => refuse(must("a number of per cent such as 60%")),
        },
        Shape::Mode => mode(node, path, report),
        Shape::Restart => match node.scalar() {
            Some("false") => Some(Node::text(at, "no")),
            Some(t) if crate::convert::restart(t).is_some() => Some(Node::text(at, t)),
            Some(t) => refuse(format!(
                "\"{t}\" is none of no, always, unless-stopped, on-failure[:attempts]"
            )),
            None => refuse(must("a text")),
        },
        Shape::Object(keys) => object(node, keys, path, report),
        Shape::Named(inner) => named(node, path, report, |n, path, report| {
            let empty = Node::new(n.at, Value::Map(Vec::new()));
            let n = if n.value == Value::Null { &empty } else { n };
            normalise(n, inner, path, report)
        }),
        Shape::List(inner) => list(node, path, report, |n, path, report| {
            normalise(n, inner, path, report).into_iter().collect()
        }),
        Shape::Texts => list(node, path, report, |n, path, report| {
            normalise(n, &Shape::Text, path, report).into_iter().collect()
        }),
        Shape::TextOrTexts => match node.scalar() {
            Some(_) => {
                normalise(node, &Shape::Text, path, report).map(|text| Node::new(at, Value::List(vec![text])))
            }
            None => normalise(node, &Shape::Texts, path, report),
        },
        Shape::Command => match &node.value {
            Value::Text(t) => match shlex::split(t) {
                Some(words) => Some(Node::new(
                    at,
                    Value::List(words.into_iter().map(|w| Node::text(at, w)).collect()),
                )),
                None => refuse("a quote is not closed".into()),
            },
            _ => normalise(node, &Shape::TextOrTexts, path, report),
        },
        Shape::Test => match &node.value {
            Value::Text(t) => Some(Node::new(
                at,
                Value::List(vec![Node::text(at, "CMD-SHELL"), Node::text(at, t.clone())]),
            )),
            _ => test(node, path, report),
        },
        Shape::Pairs(keep) => pairs(node, *keep, path, report),
        Shape::Hosts => hosts(node, path, report),
        Shape::Ports => list(node, path, report, port),
        Shape::Mounts => list(node, path, report, |n, path, report| {
            mount(n, path, report).into_iter().collect()
        }),
        Shape::Files => list(node, path, report, |n, path, report| {
            let long = short(n, |t| vec![("source", t.to_owned())]);
            normalise(&long, &FILE_REF, path, report).into_iter().collect()
        }),
        Shape::Networks => networks(node, path, report),
        Shape::Ulimits => named(node, path, report, |n, path, report| {
            let long = short(n, |t| vec![("soft", t.to_owned()), ("hard", t.to_owned())]);
            let long = normalise(&long, &ULIMIT, path, report)?;
            if long.get("soft").is_none() || long.get("hard").is_none() {
                report.problem(n.at, path, "needs both soft and hard");
            }
            Some(long)
        }),
        Shape::External => match &node.value {
            Value::Map(_) => normalise(node, &EXTERNAL, path, report),
            _ => normalise(node, &Shape::Bool, path, report),
        },
        Shape::OnDisconnect => match &node.value {
            Value::Map(_) => normalise(node, &ON_DISCONNECT, path, report),
            _ => normalise(node, &Shape::Word(&["keep"]), path, report),
        },
        Shape::Http => {
            let long = short(node, |t| {
                let (port, of_port) = crate::check::split(t);
                vec![("port", port.to_owned()), ("path", of_port.to_owned())]
            });
            let long = normalise(&long, &HTTP, path, report)?;
            if long.get("port").is_none() {
                report.problem(at, path, "needs a port");
            }
            Some(long)
        }
        Shape::Statuses => match node.scalar().map(|t| (t, crate::check::parse_status(t))) {
            Some((t, Ok(_))) => Some(Node::text(at, t)),
            Some((_, Err(e))) => refuse(e),
            None => refuse(must("an HTTP status such as 200, or 200-399")),
        },
        Shape::Schedule => schedule(node, path, report),
        Shape::DependsOn => crate::order::long(node, path, report),
    }
}

/// The text of cron(8) becomes a mapping with it.
fn schedule(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let at = node.at;
    if let Value::Map(_) = &node.value {
        let map = normalise(node, &SCHEDULE, path, report)?;
        if map.get("cron").is_none() {
            report.problem(at, path, "needs cron, such as \"*/5 * * * *\"");
        }
        return Some(map);
    }
    let Some(text) = node.scalar() else {
        let message = format!(
            "must be a text such as \"*/5 * * * *\" or a mapping, not {}",
            node.kind()
        );
        report.problem(at, path, message);
        return None;
    };
    let cron = Entry {
        key: "cron".to_owned(),
        at,
        node: Node::text(at, text),
    };
    Some(Node::new(at, Value::Map(vec![cron])))
}

fn scalar(node: &Node) -> &str {
    node.scalar().unwrap_or_default()
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" => Some(true),
        "false" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number as YAML 1.2 writes it: decimal, `0x…`, `0o…`.
fn whole(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = digits.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok();
    }
    if let Some(octal) = digits.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok();
    }
    digits.parse().ok()
}

/// `0440`, `0o440` and `"440"` are octal; a bare `440` is decimal, as it always was, and gets a warning.
fn mode(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let text = match &node.value {
        Value::Text(t) | Value::Number(t) => t.as_str(),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            let message = format!("must be permission bits such as 0440, not {}", node.kind());
            report.problem(node.at, path, message);
            return None;
        }
    };
    let decimal = matches!(node.value, Value::Number(_)) && !text.starts_with('0');
    let bits = if decimal {
        text.parse().ok()
    } else {
        u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok()
    };
    let Some(bits) = bits.filter(|b| *b <= 0o7777) else {
        let message = format!("\"{text}\" are no permission bits: write them as 0440");
        report.problem(node.at, path, message);
        return None;
    };
    if decimal && (3..=4).contains(&text.len()) && text.bytes().all(|b| b < b'8') {
        let message = format!("{text} is a decimal number and means {bits:04o}: write 0{text} for octal");
        report.warn(node.at, path, message);
    }
    Some(Node::text(node.at, format!("{bits:04o}")))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn object(node: &Node, keys: &[Key], path: &str, report: &mut Report) -> Option<Node> {
    let Value::Map(entries) = &node.value else {
        report.problem(node.at, path, format!("must be a mapping, not {}", node.kind()));
        return None;
    };
    let mut all = Vec::new();
    for entry in entries.iter().filter(|e| !e.key.starts_with("x-")) {
        let path = join(path, &entry.key);
        let Some(key) = keys.iter().find(|k| k.name == entry.key) else {
            let known = keys
                .iter()
                .filter(|k| matches!(k.class, Class::Used(_)))
                .map(|k| k.name);
            let hint = nearest(&entry.key, known).map_or(String::new(), |n| format!("; did you mean {n}?"));
            report.problem(entry.at, &path, format!("there is no such key{hint}"));
            continue;
        };
        match &key.class {
            Class::Used(_) if entry.node.value == Value::Null => {}
            Class::Used(shape) => {
                all.extend(normalise(&entry.node, shape, &path, report).map(|n| entry.with(n)));
            }
            Class::Ignored(why) => report.warn(entry.at, &path, *why),
            Class::Refused(why) => report.problem(entry.at, &path, *why),
        }
    }
    Some(Node::new(node.at, Value::Map(all)))
}

/// The known key that differs in the fewest letters, when that is few.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::damerau_levenshtein(key, k), k))
        .filter(|(distance, _)| *distance <= 1 + key.len() / 4)
        .min()
        .map(|(_, k)| k)
}

pub(crate) fn named(
    node: &Node,
    path: &str,
    report: &mut Report,
    mut inner: impl FnMut(&Node, &str, &mut Report) -> Option<Node>,
) -> Option<Node> {
    let Value::Map(entries) = &node.value else {
        report.problem(node.at, path, format!("must be a mapping, not {}", node.kind()));
        return None;
    };
    let mut all = Vec::new();
    for entry in entries {
        all.extend(inner(&entry.node, &join(path, &entry.key), report).map(|n| entry.with(n)));
    }
    Some(Node::new(node.at, Value::Map(all)))
}

fn list(
    node: &Node,
    path: &str,
    report: &mut Report,
    mut inner: impl FnMut(&Node, &str, &mut Report) -> Vec<Node>,
) -> Option<Node> {
    let Value::List(items) = &node.value else {
        report.problem(node.at, path, format!("must be a list, not {}", node.kind()));
        return None;
    };
    let mut all = Vec::new();
    for (i, item) in items.iter().enumerate() {
        all.extend(inner(item, &format!("{path}[{i}]"), report));
    }
    Some(Node::new(node.at, Value::List(all)))
}

/// A scalar as the mapping it stands for; anything else as it is.
fn short(node: &Node, long: impl FnOnce(&str) -> Vec<(&'static str, String)>) -> Node {
    match node.scalar() {
        Some(text) => map(node, long(text)),
        None => node.clone(),
    }
}

fn map(node: &Node, entries: Vec<(&'static str, String)>) -> Node {
    let entries = entries.into_iter().map(|(key, value)| Entry {
        key: key.to_owned(),
        at: node.at,
        node: Node::text(node.at, value),
    });
    Node::new(node.at, Value::Map(entries.collect()))
}

fn test(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let found = normalise(node, &Shape::Texts, path, report)?;
    let first = found.items().first().and_then(Node::scalar);
    if matches!(first, None | Some("NONE" | "CMD" | "CMD-SHELL")) {
        return Some(found);
    }
    report.problem(node.at, path, "must begin with NONE, CMD or CMD-SHELL");
    None
}

fn pairs(node: &Node, keep: bool, path: &str, report: &mut Report) -> Option<Node> {
    let blank = if keep {
        Value::Null
    } else {
        Value::Text(String::new())
    };
    let mut all: Vec<Entry> = Vec::new();
    match &node.value {
        Value::Map(entries) => {
            for e in entries {
                let value = match (&e.node.value, e.node.scalar()) {
                    (Value::Null, _) => blank.clone(),
                    (_, Some(text)) => Value::Text(text.to_owned()),
                    (_, None) => {
                        let message = format!("must be a text or a number, not {}", e.node.kind());
                        report.problem(e.node.at, &join(path, &e.key), message);
                        continue;
                    }
                };
                all.push(Entry {
                    key: e.key.clone(),
                    at: e.at,
                    node: Node::new(e.node.at, value),
                });
            }
        }
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                let Some(text) = item.scalar() else {
                    let message = format!("must be KEY=VALUE, not {}", item.kind());
                    report.problem(item.at, &format!("{path}[{i}]"), message);
                    continue;
                };
                let (key, value) = match text.split_once('=') {
                    Some((key, value)) => (key, Value::Text(value.to_owned())),
                    None => (text, blank.clone()),
                };
                all.retain(|e| e.key != key);
                all.push(Entry {
                    key: key.to_owned(),
                    at: item.at,
                    node: Node::new(item.at, value),
                });
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {
            let message = format!("must be a mapping or a list of KEY=VALUE, not {}", node.kind());
            report.problem(node.at, path, message);
            return None;
        }
    }
    for e in &all {
        if e.key.is_empty() {
            report.problem(e.at, path, "a key is empty");
        }
    }
    Some(Node::new(node.at, Value::Map(all)))
}

fn hosts(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let mut all = Vec::new();
    match &node.value {
        Value::Map(entries) => {
            for e in entries {
                let addresses = match &e.node.value {
                    Value::List(items) => items.as_slice(),
                    _ => std::slice::from_ref(&e.node),
                };
                for address in addresses {
                    match address.scalar() {
                        Some(text) => all.push(Node::text(e.at, format!("{}:{text}", e.key))),
                        None => report.problem(e.at, &join(path, &e.key), "must be an address"),
                    }
                }
            }
        }
        _ => {
            return list(node, path, report, |n, path, report| {
                host(n, path, report).into_iter().collect()
            });
        }
    }
    Some(Node::new(node.at, Value::List(all)))
}

fn host(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let parts = node
        .scalar()
        .and_then(|t| t.split_once('=').or_else(|| t.split_once(':')));
    match parts {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => {
            Some(Node::text(node.at, format!("{name}:{address}")))
        }
        _ => {
            report.problem(node.at, path, "must be HOST:ADDRESS");
            None
        }
    }
}

fn port(node: &Node, path: &str, report: &mut Report) -> Vec<Node> {
    let Some(text) = node.scalar() else {
        let Some(long) = normalise(node, &PORT, path, report) else {
            return Vec::new();
        };
        if long.get("target").is_none() {
            report.problem(node.at, path, "target is missing");
        }
        return vec![long];
    };
    let parsed = match grammar::parse_ports(text) {
        Ok(all) if !text.contains('=') => all,
        Ok(_) => {
            report.problem(
                node.at,
                path,
                format!("{text}: write a mapping with target and published"),
            );
            return Vec::new();
        }
        Err(e) => {
            report.problem(node.at, path, e);
            return Vec::new();
        }
    };
    let long = parsed.into_iter().map(|p| {
        let mut all = vec![
            ("mode", "ingress".to_owned()),
            ("target", p.target.to_string()),
            ("protocol", p.protocol.as_str().to_owned()),
        ];
        if p.published != 0 {
            all.push(("published", p.published.to_string()));
        }
        if !p.host_ip.is_empty() {
            all.push(("host_ip", p.host_ip));
        }
        map(node, all)
    });
    long.filter_map(|n| normalise(&n, &PORT, path, report)).collect()
}

fn mount(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let long = match node.scalar() {
        Some(text) => match short_mount(node, text) {
            Ok(long) => long,
            Err(e) => {
                report.problem(node.at, path, e);
                return None;
            }
        },
        None => node.clone(),
    };
    let mut long = normalise(&long, &MOUNT, path, report)?;
    let kind = long
        .get("type")
        .and_then(Node::scalar)
        .unwrap_or("volume")
        .to_owned();
    if long.get("type").is_none() {
        report.problem(node.at, path, "type is missing: volume, bind or tmpfs");
    }
    if long.get("target").is_none() {
        report.problem(node.at, path, "target is missing");
    }
    if kind == "bind" && long.get("source").is_none() {
        report.problem(
            node.at,
            path,
            "source is missing: a bind needs a path of the node",
        );
    }
    if matches!(kind.as_str(), "npipe" | "cluster" | "image") {
        report.problem(node.at, path, format!("mounts of type {kind} are not supported"));
    }
    if let Value::Map(entries) = &mut long.value {
        entries.retain(|e| {
            let foreign = matches!(e.key.as_str(), "bind" | "volume" | "tmpfs") && e.key != kind;
            if foreign {
                let message = format!("does not go with type {kind}");
                report.problem(e.at, &join(path, &e.key), message);
            }
            !foreign
        });
    }
    Some(long)
}

/// `[SOURCE:]TARGET[:OPTIONS]`.
fn short_mount(node: &Node, text: &str) -> Result<Node, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] if target.starts_with('/') => (*source, *target, ""),
        [target, options] if target.starts_with('/') => ("", *target, *options),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(format!("{text}: write [SOURCE:]TARGET[:OPTIONS]")),
    };
    if target.is_empty() || (parts.len() == 3 && source.is_empty()) {
        return Err(format!("{text}: write [SOURCE:]TARGET[:OPTIONS]"));
    }
    let bind = source.starts_with(['.', '/', '~']);
    let mut all = vec![
        ("type", if bind { "bind" } else { "volume" }.to_owned()),
        ("target", target.to_owned()),
    ];
    if !source.is_empty() {
        all.push(("source", source.to_owned()));
    }
    let mut inner = None;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => all.push(("read_only", "true".to_owned())),
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" if !bind => inner = Some(("volume", ("nocopy", "true".to_owned()))),
            p if bind && PROPAGATION.contains(&p) => {
                inner = Some(("bind", ("propagation", p.to_owned())));
            }
            other => return Err(format!("{text}: there is no option {other}")),
        }
    }
    let mut long = map(node, all);
    if let (Some((key, entry)), Value::Map(entries)) = (inner, &mut long.value) {
        entries.push(Entry {
            key: key.to_owned(),
            at: node.at,
            node: map(node, vec![entry]),
        });
    }
    Ok(long)
}

fn networks(node: &Node, path: &str, report: &mut Report) -> Option<Node> {
    let empty = |at| Node::new(at, Value::Map(Vec::new()));
    if let Value::Map(_) = &node.value {
        return named(node, path, report, |n, path, report| {
            if n.value == Value::Null {
                return Some(empty(n.at));
            }
            normalise(n, &ATTACHMENT, path, report)
        });
    }
    let texts = normalise(node, &Shape::Texts, path, report)?;
    let mut all: Vec<Entry> = Vec::new();
    for name in texts.items() {
        if all.iter().all(|e| e.key != scalar(name)) {
            all.push(Entry {
                key: scalar(name).to_owned(),
                at: name.at,
                node: empty(name.at),
            });
        }
    }
    Some(Node::new(node.at, Value::Map(all)))
}
