//! From the merged long form to what the manager takes; every rule is `docker stack deploy`'s unless it says so.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use model::spec::{
    Amounts, Autoscale, ConfigRef, ConfigSpec, ContainerSpec, DnsConfig, EndpointMode, EndpointSpec,
    FailureAction, FileTarget, Healthcheck, Hook, Labels, Limits, LogDriver, Mount, MountKind,
    NetworkAttachment, NetworkSpec, OnDisconnect, Placement, PortSpec, Protocol, PublishMode, Reservations,
    Resources, RestartCondition, RestartPolicy, SCALE_DOWN_AFTER, STACK_LABEL, SecretRef, SecretSpec,
    ServiceSpec, StackSpec, TaskSpec, Ulimit, UpdateConfig, UpdateOrder, check_name,
};
use model::units::parse_duration;
use model::{Bytes, ConfigId, NanoCpus, NetworkId, SecretId};

use crate::grammar;
use crate::job;
use crate::node::{Entry, Node, Value};
use crate::order;
use crate::problem::Report;

/// Label with the image as the file names it.
pub const IMAGE_LABEL: &str = "com.docker.stack.image";
/// Name of the network of services that name none.
const DEFAULT_NETWORK: &str = "default";

/// Reads a file of at most the given number of bytes.
pub type Read<'a> = &'a dyn Fn(&str, usize) -> Result<Vec<u8>, String>;

/// What a stack takes from the machine of the user.
pub struct Surroundings<'a> {
    /// Folder of the first file, absolute: relative paths begin there.
    pub folder: &'a str,
    /// Home of the user, for `~`.
    pub home: &'a str,
    /// Variables of the environment.
    pub vars: crate::compose::Vars<'a>,
    /// Reads a file of at most the given number of bytes; an error says what and why.
    pub read: Read<'a>,
}

pub(crate) fn convert(
    tree: &Node,
    namespace: &str,
    from: &Surroundings<'_>,
    report: &mut Report,
) -> StackSpec {
    let mut stack = StackSpec {
        namespace: namespace.to_owned(),
        ..StackSpec::default()
    };
    let mut to = Converter {
        tree,
        namespace,
        from,
        report,
        used: BTreeSet::new(),
    };
    for entry in section(tree, "services") {
        let service = to.service(entry);
        stack.services.push(service);
    }
    order::check(tree, &stack.services, to.report);
    to.networks(&mut stack);
    let (secrets, external_secrets) = to.files("secret", model::spec::SECRET_MAX);
    let (configs, external_configs) = to.files("config", model::spec::CONFIG_MAX);
    let secret = |File { name, labels, data }| SecretSpec { name, labels, data };
    let config = |File { name, labels, data }| ConfigSpec { name, labels, data };
    stack.secrets = secrets.into_iter().map(secret).collect();
    stack.configs = configs.into_iter().map(config).collect();
    (stack.external_secrets, stack.external_configs) = (external_secrets, external_configs);
    stack
}

/// A secret or config to be made.
struct File {
    name: String,
    labels: Labels,
    data: Vec<u8>,
}

struct Converter<'a> {
    tree: &'a Node,
    namespace: &'a str,
    from: &'a Surroundings<'a>,
    report: &'a mut Report,
    /// Networks, by key, that some service joins.
    used: BTreeSet<String>,
}

pub(crate) fn section<'a>(tree: &'a Node, name: &str) -> &'a [Entry] {
    tree.get(name).map_or(&[], Node::entries)
}

pub(crate) fn at<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node, |n, key| n.get(key))
}

// The schema has read every scalar once, so that what cannot be read here is absent.
pub(crate) fn parsed<T: std::str::FromStr>(node: &Node, path: &[&str]) -> Option<T> {
    at(node, path)?.scalar()?.parse().ok()
}

pub(crate) fn text(node: &Node, path: &[&str]) -> String {
    at(node, path)
        .and_then(Node::scalar)
        .unwrap_or_default()
        .to_owned()
}

pub(crate) fn flag(node: &Node, path: &[&str]) -> bool {
    parsed(node, path).unwrap_or(false)
}

pub(crate) fn duration(node: &Node, path: &[&str]) -> Option<Duration> {
    parse_duration(at(node, path)?.scalar()?).ok()
}

fn octal(node: &Node, path: &[&str]) -> Option<u32> {
    u32::from_str_radix(at(node, path)?.scalar()?, 8).ok()
}

pub(crate) fn texts(node: &Node, path: &[&str]) -> Vec<String> {
    let items = at(node, path).map_or(&[][..], Node::items);
    items.iter().filter_map(Node::scalar).map(str::to_owned).collect()
}

fn pairs(node: &Node, path: &[&str]) -> BTreeMap<String, String> {
    let entries = at(node, path).map_or(&[][..], Node::entries);
    entries
        .iter()
        .map(|e| (e.key.clone(), e.node.scalar().unwrap_or_default().to_owned()))
        .collect()
}

/// Whether an object exists already, and under which name.
fn external(node: &Node) -> Option<Option<String>> {
    let found = node.get("external")?;
    match &found.value {
        Value::Bool(false) => None,
        Value::Map(_) => Some(found.get("name").and_then(Node::scalar).map(str::to_owned)),
        _ => Some(None),
    }
}

/// `restart: …` as a restart policy; `None` for other words.
pub(crate) fn restart(word: &str) -> Option<RestartPolicy> {
    let (word, attempts) = word.split_once(':').map_or((word, None), |(w, n)| (w, Some(n)));
    let condition = match word {
        "no" | "none" => RestartCondition::None,
        "always" | "unless-stopped" | "any" => RestartCondition::Any,
        "on-failure" => RestartCondition::OnFailure,
        _ => return None,
    };
    let max_attempts = match attempts {
        None => 0,
        Some(n) if condition == RestartCondition::OnFailure => n.parse().ok()?,
        Some(_) => return None,
    };
    Some(RestartPolicy {
        condition,
        max_attempts,
        ..RestartPolicy::default()
    })
}

/// A path of the user's machine, absolute and without `.` and `..`.
pub(crate) fn absolute(path: &str, folder: &str, home: &str) -> String {
    let full = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ if path.starts_with('/') => path.to_owned(),
        _ => format!("{folder}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in full.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

impl Converter<'_> {
    /// The name of an object in the cluster: its own, or that of its key behind the stack's.
    fn name(&self, key: &str, node: &Node) -> String {
        let given = text(node, &["name"]);
        match external(node) {
            Some(Some(name)) => name,
            Some(None) if given.is_empty() => key.to_owned(),
            _ if given.is_empty() => self.scoped(key),
            _ => given,
        }
    }

    fn scoped(&self, key: &str) -> String {
        format!("{}_{key}", self.namespace)
    }

    fn checked(&mut self, kind: &'static str, section: &str, entry: &Entry, name: String) -> String {
        if let Err(e) = check_name(kind, &name) {
            self.report
                .problem(entry.at, &format!("{section}.{}", entry.key), e.to_string());
        }
        name
    }

    fn labels(&self, mut labels: Labels) -> Labels {
        labels.insert(STACK_LABEL.to_owned(), self.namespace.to_owned());
        labels
    }

    fn path(&self, path: &str) -> String {
        absolute(path, self.from.folder, self.from.home)
    }

    fn networks(&mut self, stack: &mut StackSpec) {
        let entries = section(self.tree, "networks");
        let used = std::mem::take(&mut self.used);
        for entry in entries.iter().filter(|e| used.contains(&e.key)) {
            let node = &entry.node;
            let name = self.name(&entry.key, node);
            let name = self.checked("network", "networks", entry, name);
            if external(node).is_some() {
                stack.external_networks.push(name);
                continue;
            }
            let mut subnets = Vec::new();
            let pools = at(node, &["ipam", "config"]).map_or(&[][..], Node::items);
            for (i, pool) in pools.iter().enumerate() {
                let Some(subnet) = pool.get("subnet") else {
                    continue;
                };
                let given = subnet.scalar().unwrap_or_default();
                match given.parse() {
                    Ok(net) => subnets.push(net),
                    Err(_) => self.report.problem(
                        subnet.at,
                        &format!("networks.{}.ipam.config[{i}].subnet", entry.key),
                        format!("\"{given}\" is no subnet: write it as 10.20.0.0/24"),
                    ),
                }
            }
            stack.networks.push(NetworkSpec {
                name,
                labels: self.labels(pairs(node, &["labels"])),
                driver: text(node, &["driver"]),
                options: pairs(node, &["driver_opts"]),
                internal: flag(node, &["internal"]),
                attachable: flag(node, &["attachable"]),
                ingress: false,
                ipv6: flag(node, &["enable_ipv6"]),
                subnets,
            });
        }
        let declared = entries.iter().any(|e| e.key == DEFAULT_NETWORK);
        if used.contains(DEFAULT_NETWORK) && !declared {
            stack.networks.push(NetworkSpec {
                name: self.scoped(DEFAULT_NETWORK),
                labels: self.labels(Labels::new()),
                ..NetworkSpec::default()
            });
        }
        stack.networks.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// The bytes of a secret or config.
    fn data(&mut self, kind: &str, entry: &Entry, max: usize) -> Vec<u8> {
        let path = format!("{kind}s.{}", entry.key);
        let given = ["file", "environment", "content"].map(|k| entry.node.get(k));
        if given.iter().flatten().count() != 1 {
            let message = "needs exactly one of file, environment, content (configs only) or external";
            self.report.problem(entry.at, &path, message);
            return Vec::new();
        }
        let [file, variable, content] = given.map(|n| n.and_then(Node::scalar));
        let bytes = if let Some(file) = file {
            (self.from.read)(&self.path(file), max)
        } else if let Some(name) = variable {
            (self.from.vars)(name)
                .map(String::into_bytes)
                .ok_or_else(|| format!("the variable {name} is not set"))
        } else {
            Ok(content.unwrap_or_default().as_bytes().to_vec())
        };
        match bytes {
            Ok(bytes) if bytes.len() <= max => bytes,
            Ok(bytes) => {
                let message = format!("a {kind} holds at most {max} bytes, and this has {}", bytes.len());
                self.report.problem(entry.at, &path, message);
                Vec::new()
            }
            Err(e) => {
                self.report.problem(entry.at, &path, e);
                Vec::new()
            }
        }
    }

    /// Secrets or configs that are to be made, and the names of those that must be there.
    fn files(&mut self, kind: &'static str, max: usize) -> (Vec<File>, Vec<String>) {
        let (mut own, mut there) = (Vec::new(), Vec::new());
        let section_name = format!("{kind}s");
        for entry in section(self.tree, &section_name) {
            let name = self.name(&entry.key, &entry.node);
            let name = self.checked(kind, &section_name, entry, name);
            if external(&entry.node).is_some() {
                there.push(name);
                continue;
            }
            let data = self.data(kind, entry, max);
            let labels = self.labels(pairs(&entry.node, &["labels"]));
            own.push(File { name, labels, data });
        }
        (own, there)
    }

    /// Affinities to services of this file are to those of this stack.
    fn placement(&self, node: &Node) -> Placement {
        let written = texts(node, &["deploy", "placement", "affinity"]);
        let is_own = |name: &str| section(self.tree, "services").iter().any(|e| e.key == name);
        let named = written.into_iter().map(|text| match text.rsplit_once('=') {
            Some((operator, name)) if is_own(name.trim()) => {
                format!("{operator}={}", self.scoped(name.trim()))
            }
            Some(_) | None => text,
        });
        placement(node, named.collect())
    }

    fn service(&mut self, entry: &Entry) -> ServiceSpec {
        let (key, node) = (&entry.key, &entry.node);
        let path = format!("services.{key}");
        let name = self.checked("service", "services", entry, self.scoped(key));
        let image = text(node, &["image"]);
        if image.is_empty() {
            let message = "image is missing: a service needs one (build is not part of a deploy)";
            self.report.problem(entry.at, &path, message);
        }
        let mut labels = pairs(node, &["deploy", "labels"]);
        labels.insert(IMAGE_LABEL.to_owned(), image.clone());
        let mode = job::mode(node, &path, self.report);
        let namespace = self.namespace;
        let in_stack = |key: &str| format!("{namespace}_{key}");
        let depends_on = order::dependencies(self.tree, key, node, in_stack, self.report);
        ServiceSpec {
            name,
            labels: self.labels(labels),
            task: TaskSpec {
                container: self.container(key, node, image),
                resources: resources(node),
                restart: job::restart_policy(node, &mode),
                placement: self.placement(node),
                networks: self.attachments(key, node),
                log: LogDriver {
                    name: text(node, &["logging", "driver"]),
                    options: pairs(node, &["logging", "options"]),
                },
                force_update: 0,
                priority: parsed(node, &["deploy", "priority"]).unwrap_or(0),
                depends_on,
                on_disconnect: duration(node, &["deploy", "on_disconnect", "stop_after"])
                    .map_or(OnDisconnect::Keep, OnDisconnect::StopAfter),
            },
            schedule: job::schedule(node),
            mode,
            update: update(node, "update_config"),
            rollback: update(node, "rollback_config"),
            endpoint: Self::endpoint(node),
            autoscale: self.autoscale(&path, node),
            rebalance: text(node, &["deploy", "placement", "rebalance"])
                .parse()
                .unwrap_or_default(),
        }
    }

    fn autoscale(&mut self, path: &str, node: &Node) -> Option<Autoscale> {
        let rule = at(node, &["deploy", "autoscale"])?;
        let bound = |key: &str| parsed::<u32>(rule, &[key]);
        let (Some(min), Some(max)) = (bound("min"), bound("max")) else {
            let path = format!("{path}.deploy.autoscale");
            self.report.problem(
                rule.at,
                &path,
                "min and max are needed: between them the cluster chooses",
            );
            return None;
        };
        Some(Autoscale {
            min,
            max,
            cpu: bound("cpu"),
            memory: bound("memory"),
            scale_down_after: duration(rule, &["scale_down_after"]).unwrap_or(SCALE_DOWN_AFTER),
        })
    }

    fn endpoint(node: &Node) -> EndpointSpec {
        let mut ports = Vec::new();
        for port in at(node, &["ports"]).map_or(&[][..], Node::items) {
            ports.push(PortSpec {
                name: text(port, &["name"]),
                protocol: match text(port, &["protocol"]).as_str() {
                    "udp" => Protocol::Udp,
                    "sctp" => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                target: parsed(port, &["target"]).unwrap_or(0),
                published: parsed(port, &["published"]).unwrap_or(0),
                mode: match text(port, &["mode"]).as_str() {
                    "host" => PublishMode::Host,
                    _ => PublishMode::Ingress,
                },
                host_ip: text(port, &["host_ip"]),
                proxy: !text(port, &["proxy_protocol"]).is_empty(),
            });
        }
        EndpointSpec {
            mode: match text(node, &["deploy", "endpoint_mode"]).as_str() {
                "dnsrr" => EndpointMode::DnsRr,
                _ => EndpointMode::Vip,
            },
            ports,
        }
    }

    /// An address a service is to have in a network.
    fn address<A: FromStr>(&mut self, node: &Node, path: &str, key: &str, kind: &str) -> Option<A> {
        let text = text(node, &[key]);
        if text.is_empty() {
            return None;
        }
        let address = text.parse();
        if address.is_err() {
            let message = format!("\"{text}\" is no {kind} address");
            self.report.problem(node.at, &format!("{path}.{key}"), message);
        }
        address.ok()
    }

    fn attachments(&mut self, key: &str, node: &Node) -> Vec<NetworkAttachment> {
        let joined = node.get("networks");
        let mut all = Vec::new();
        for entry in joined.map_or(&[][..], Node::entries) {
            let declared = section(self.tree, "networks").iter().find(|e| e.key == entry.key);
            let name = match declared {
                Some(e) => self.name(&entry.key, &e.node),
                None if entry.key == DEFAULT_NETWORK => self.scoped(DEFAULT_NETWORK),
                None => {
                    let path = format!("services.{key}.networks");
                    let message = format!("undefined network \"{}\"", entry.key);
                    self.report.problem(entry.at, &path, message);
                    continue;
                }
            };
            self.used.insert(entry.key.clone());
            let mut aliases = texts(&entry.node, &["aliases"]);
            aliases.insert(0, key.to_owned());
            let path = format!("services.{key}.networks.{}", entry.key);
            all.push(NetworkAttachment {
                address: self.address(&entry.node, &path, "ipv4_address", "IPv4"),
                address6: self.address(&entry.node, &path, "ipv6_address", "IPv6"),
                ..attachment(name, aliases)
            });
        }
        if joined.is_none() {
            self.used.insert(DEFAULT_NETWORK.to_owned());
            let declared = section(self.tree, "networks")
                .iter()
                .find(|e| e.key == DEFAULT_NETWORK);
            let name = declared.map_or(self.scoped(DEFAULT_NETWORK), |e| self.name(&e.key, &e.node));
            all.push(attachment(name, vec![key.to_owned()]));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn container(&mut self, key: &str, node: &Node, image: String) -> ContainerSpec {
        ContainerSpec {
            image,
            command: texts(node, &["entrypoint"]),
            args: texts(node, &["command"]),
            env: self.environment(key, node),
            hostname: text(node, &["hostname"]),
            dir: text(node, &["working_dir"]),
            user: text(node, &["user"]),
            groups: texts(node, &["group_add"]),
            tty: flag(node, &["tty"]),
            open_stdin: flag(node, &["stdin_open"]),
            read_only: flag(node, &["read_only"]),
            init: parsed(node, &["init"]),
            labels: self.labels(pairs(node, &["labels"])),
            mounts: self.mounts(key, node),
            secrets: self.secret_refs(key, node),
            configs: self.config_refs(key, node),
            healthcheck: self.check(key, node, "healthcheck"),
            readiness: self.check(key, node, "readiness"),
            pre_start: self.hooks(key, node, "pre_start"),
            post_start: self.hooks(key, node, "post_start"),
            pre_stop: self.hooks(key, node, "pre_stop"),
            hosts: texts(node, &["extra_hosts"])
                .iter()
                .filter_map(|h| h.split_once(':'))
                .map(|(name, address)| (name.to_owned(), address.to_owned()))
                .collect(),
            dns: DnsConfig {
                servers: texts(node, &["dns"]),
                search: texts(node, &["dns_search"]),
                options: texts(node, &["dns_opt"]),
            },
            stop_signal: text(node, &["stop_signal"]),
            stop_grace: duration(node, &["stop_grace_period"]),
            cap_add: texts(node, &["cap_add"]),
            cap_drop: texts(node, &["cap_drop"]),
            ulimits: at(node, &["ulimits"])
                .map_or(&[][..], Node::entries)
                .iter()
                .map(|e| Ulimit {
                    name: e.key.clone(),
                    soft: parsed(&e.node, &["soft"]).unwrap_or(0),
                    hard: parsed(&e.node, &["hard"]).unwrap_or(0),
                })
                .collect(),
            sysctls: pairs(node, &["sysctls"]),
            oom_score_adj: parsed(node, &["oom_score_adj"]).unwrap_or(0),
        }
    }

    fn check(&mut self, key: &str, node: &Node, kind: &str) -> Option<Healthcheck> {
        let (check, second) = crate::check::read(node.get(kind)?);
        if let Some(at) = second {
            let path = format!("services.{key}.{kind}");
            self.report
                .problem(at, &path, "asks in several ways: it is one of test, http and tcp");
        }
        Some(check)
    }

    /// Files first, then `environment`; sorted by name, so that order alone changes nothing.
    fn environment(&mut self, key: &str, node: &Node) -> Vec<String> {
        let mut all = BTreeMap::new();
        let files = at(node, &["env_file"]).map_or(&[][..], Node::items);
        for (i, file) in files.iter().enumerate() {
            let path = self.path(file.scalar().unwrap_or_default());
            let read = (self.from.read)(&path, crate::node::FILE_MAX).and_then(|bytes| {
                let text = String::from_utf8(bytes).map_err(|_| format!("{path} is no UTF-8 text"))?;
                grammar::parse_env_file(&text, self.from.vars).map_err(|e| format!("{path}: {e}"))
            });
            match read {
                Ok(lines) => all.extend(lines.iter().map(|l| {
                    let (name, value) = l.split_once('=').unwrap_or((l, ""));
                    (name.to_owned(), value.to_owned())
                })),
                Err(e) => {
                    let at = format!("services.{key}.env_file[{i}]");
                    self.report.problem(file.at, &at, e);
                }
            }
        }
        self.values(&format!("services.{key}"), node, &mut all);
        all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    /// What `environment` sets.
    fn values(&mut self, path: &str, node: &Node, all: &mut BTreeMap<String, String>) {
        for entry in at(node, &["environment"]).map_or(&[][..], Node::entries) {
            match entry.node.scalar() {
                Some(value) => {
                    all.insert(entry.key.clone(), value.to_owned());
                }
                None => match (self.from.vars)(&entry.key) {
                    Some(value) => {
                        all.insert(entry.key.clone(), value);
                    }
                    None => {
                        all.remove(&entry.key);
                        let path = format!("{path}.environment.{}", entry.key);
                        let message = "has no value here and none in your environment: left out";
                        self.report.warn(entry.at, &path, message);
                    }
                },
            }
        }
    }

    fn hooks(&mut self, key: &str, node: &Node, kind: &str) -> Vec<Hook> {
        let items = at(node, &[kind]).map_or(&[][..], Node::items);
        let hook = |(i, item): (usize, &Node)| {
            let path = format!("services.{key}.{kind}[{i}]");
            let command = texts(item, &["command"]);
            if command.is_empty() {
                self.report.problem(item.at, &path, "needs a command");
            }
            let mut env = BTreeMap::new();
            self.values(&path, item, &mut env);
            Hook {
                command,
                user: text(item, &["user"]),
                dir: text(item, &["working_dir"]),
                env: env.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
            }
        };
        items.iter().enumerate().map(hook).collect()
    }

    fn mounts(&mut self, key: &str, node: &Node) -> Vec<Mount> {
        let mut all = Vec::new();
        for (i, mount) in at(node, &["volumes"])
            .map_or(&[][..], Node::items)
            .iter()
            .enumerate()
        {
            let path = format!("services.{key}.volumes[{i}]");
            let source = text(mount, &["source"]);
            let kind = match text(mount, &["type"]).as_str() {
                "bind" => MountKind::Bind {
                    source: self.path(&source),
                    propagation: text(mount, &["bind", "propagation"]),
                    non_recursive: false,
                    create_source: flag(mount, &["bind", "create_host_path"]),
                },
                "tmpfs" => MountKind::Tmpfs {
                    size: parsed::<Bytes>(mount, &["tmpfs", "size"]),
                    mode: octal(mount, &["tmpfs", "mode"]),
                },
                _ => self.volume(mount, &source, &path),
            };
            all.push(Mount {
                kind,
                target: text(mount, &["target"]),
                read_only: flag(mount, &["read_only"]),
            });
        }
        for (i, item) in at(node, &["tmpfs"])
            .map_or(&[][..], Node::items)
            .iter()
            .enumerate()
        {
            match short_tmpfs(item.scalar().unwrap_or_default()) {
                Ok(mount) => all.push(mount),
                Err(e) => {
                    let path = format!("services.{key}.tmpfs[{i}]");
                    self.report.problem(item.at, &path, e);
                }
            }
        }
        all
    }

    fn volume(&mut self, mount: &Node, source: &str, path: &str) -> MountKind {
        let declared = section(self.tree, "volumes").iter().find(|e| e.key == source);
        let mut labels = pairs(mount, &["volume", "labels"]);
        let (mut name, mut driver, mut options) = (String::new(), String::new(), BTreeMap::new());
        match declared {
            Some(entry) => {
                name = self.name(source, &entry.node);
                if external(&entry.node).is_none() {
                    name = self.checked("volume", "volumes", entry, name);
                    driver = text(&entry.node, &["driver"]);
                    options = pairs(&entry.node, &["driver_opts"]);
                    labels.extend(pairs(&entry.node, &["labels"]));
                    labels = self.labels(labels);
                }
            }
            None if source.is_empty() => {}
            None => {
                let message = format!("undefined volume \"{source}\"");
                self.report.problem(mount.at, path, message);
            }
        }
        MountKind::Volume {
            name,
            no_copy: flag(mount, &["volume", "nocopy"]),
            subpath: text(mount, &["volume", "subpath"]),
            driver,
            options,
            labels,
        }
    }

    /// Secrets or configs of a service: name in the cluster, key, and where it appears.
    fn file_refs(&mut self, kind: &str, key: &str, node: &Node) -> Vec<(String, FileTarget)> {
        let mut all = Vec::new();
        let section_name = format!("{kind}s");
        for (i, file) in at(node, &[&section_name])
            .map_or(&[][..], Node::items)
            .iter()
            .enumerate()
        {
            let source = text(file, &["source"]);
            let declared = section(self.tree, &section_name).iter().find(|e| e.key == source);
            let Some(declared) = declared else {
                let path = format!("services.{key}.{section_name}[{i}]");
                let message = format!("undefined {kind} \"{source}\"");
                self.report.problem(file.at, &path, message);
                continue;
            };
            let target = match text(file, &["target"]) {
                t if !t.is_empty() => t,
                _ if kind == "config" => format!("/{source}"),
                _ => source.clone(),
            };
            let target = FileTarget {
                name: target,
                uid: parsed(file, &["uid"]).unwrap_or(0),
                gid: parsed(file, &["gid"]).unwrap_or(0),
                mode: octal(file, &["mode"]).unwrap_or(0o444),
            };
            all.push((self.name(&source, &declared.node), target));
        }
        all
    }

    fn secret_refs(&mut self, key: &str, node: &Node) -> Vec<SecretRef> {
        self.file_refs("secret", key, node)
            .into_iter()
            .map(|(name, target)| SecretRef {
                id: SecretId::NIL,
                name,
                target,
            })
            .collect()
    }

    fn config_refs(&mut self, key: &str, node: &Node) -> Vec<ConfigRef> {
        self.file_refs("config", key, node)
            .into_iter()
            .map(|(name, target)| ConfigRef {
                id: ConfigId::NIL,
                name,
                target,
            })
            .collect()
    }
}

fn attachment(name: String, aliases: Vec<String>) -> NetworkAttachment {
    NetworkAttachment {
        encrypted: false,
        network: NetworkId::NIL,
        name,
        aliases,
        address: None,
        address6: None,
    }
}

/// `PATH[:size=64m,mode=1777,…]`.
fn short_tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut read_only) = (None, None, false);
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => size = Some(value.parse::<Bytes>().map_err(|e| e.to_string())?),
            ("mode", value) => {
                mode = Some(
                    u32::from_str_radix(value, 8)
                        .map_err(|_| format!("mode={value} are no permission bits"))?,
                );
            }
            ("ro", "") => read_only = true,
            ("rw" | "noexec" | "nosuid" | "nodev", "") => {}
            _ => return Err(format!("{text}: there is no option {option}")),
        }
    }
    Ok(Mount {
        kind: MountKind::Tmpfs { size, mode },
        target: target.to_owned(),
        read_only,
    })
}

fn resources(node: &Node) -> Resources {
    let of = |kind| at(node, &["deploy", "resources", kind]);
    let cpu = |n: Option<&Node>| {
        n.and_then(|n| parsed::<NanoCpus>(n, &["cpus"]))
            .unwrap_or_default()
    };
    let memory = |n: Option<&Node>| {
        n.and_then(|n| parsed::<Bytes>(n, &["memory"]))
            .unwrap_or_default()
    };
    let (limits, reservations) = (of("limits"), of("reservations"));
    Resources {
        limits: Limits {
            cpu: cpu(limits),
            memory: memory(limits),
            // -1 is Docker's word for no limit, which is 0 here.
            pids: limits.and_then(|n| parsed::<u64>(n, &["pids"])).unwrap_or(0),
        },
        reservations: Reservations {
            cpu: cpu(reservations),
            memory: memory(reservations),
            generic: generic(reservations),
        },
    }
}

/// Docker's shape: a list of `discrete_resource_spec: {kind, value}`.
fn generic(reservations: Option<&Node>) -> Amounts {
    let list = reservations.and_then(|n| at(n, &["generic_resources"]));
    let asked = list.map_or(&[][..], Node::items).iter().filter_map(|item| {
        let spec = at(item, &["discrete_resource_spec"])?;
        Some((text(spec, &["kind"]), parsed::<u64>(spec, &["value"])?))
    });
    asked.collect()
}

fn placement(node: &Node, affinity: Vec<String>) -> Placement {
    let preferences = at(node, &["deploy", "placement", "preferences"]).map_or(&[][..], Node::items);
    Placement {
        constraints: texts(node, &["deploy", "placement", "constraints"]),
        spread: preferences
            .iter()
            .map(|p| text(p, &["spread"]))
            .filter(|s| !s.is_empty())
            .collect(),
        max_replicas_per_node: parsed(node, &["deploy", "placement", "max_replicas_per_node"]).unwrap_or(0),
        platforms: Vec::new(),
        strategy: text(node, &["deploy", "placement", "strategy"])
            .parse()
            .unwrap_or_default(),
        affinity,
    }
}

fn update(node: &Node, key: &str) -> UpdateConfig {
    let default = UpdateConfig::default();
    let Some(knobs) = at(node, &["deploy", key]) else {
        return default;
    };
    UpdateConfig {
        parallelism: parsed(knobs, &["parallelism"]).unwrap_or(default.parallelism),
        delay: duration(knobs, &["delay"]).unwrap_or(default.delay),
        monitor: duration(knobs, &["monitor"]).unwrap_or(default.monitor),
        failure_action: match text(knobs, &["failure_action"]).as_str() {
            "continue" => FailureAction::Continue,
            "rollback" => FailureAction::Rollback,
            _ => FailureAction::Pause,
        },
        max_failure_ratio: parsed(knobs, &["max_failure_ratio"]).unwrap_or(0.0),
        order: match text(knobs, &["order"]).as_str() {
            "start-first" => UpdateOrder::StartFirst,
            _ => UpdateOrder::StopFirst,
        },
        canary: parsed(knobs, &["canary"]).unwrap_or(0),
        progress_deadline: duration(knobs, &["progress_deadline"]).unwrap_or(default.progress_deadline),
    }
}
