//! A task and its image → what the runtime is asked for, as Docker merges the two.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use image::Image;
use model::assignment::AssignmentSet;
use model::object::{SlotKey, Task};
use model::spec::{ContainerSpec, Healthcheck, Hook, Mount, MountKind, OnDisconnect, resource_variable};
use model::{Bytes, NetworkId, NodeId};
use runtime::{
    ContainerConfig, FileMount, LogConfig, MountConfig, MountSource, NetworkNamespace, Resources, Ulimit,
};

use crate::contact::STOP_AFTER_LABEL;
use crate::devices;
use crate::volumes::{VolumeRecord, Volumes};

/// Who and where a task is, for templates.
pub(crate) struct Place<'a> {
    pub(crate) node: NodeId,
    pub(crate) hostname: &'a str,
}

/// Labels by which a container's task is found again.
pub(crate) const TASK_LABEL: &str = "com.docker.swarm.task.id";
pub(crate) const SERVICE_LABEL: &str = "com.docker.swarm.service.name";
pub(crate) const NAME_LABEL: &str = "com.docker.swarm.task.name";
pub(crate) const IMAGE_LABEL: &str = "rswarm.image";
pub(crate) const IMAGE_ID_LABEL: &str = "rswarm.image.id";

/// Fills in `{{.Service.Name}}` and its like; anything else in braces is refused.
pub(crate) fn template(text: &str, task: &Task, place: &Place<'_>) -> Result<String, String> {
    let slot = match task.slot {
        SlotKey::Replica(n) => n.to_string(),
        SlotKey::Node(id) => id.to_string(),
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        out.push_str(&rest[..at]);
        let end = rest[at..]
            .find("}}")
            .ok_or_else(|| format!("{text}: a template is not closed"))?;
        let name = rest[at + 2..at + end].trim();
        out.push_str(&match name {
            ".Service.ID" => task.service.to_string(),
            ".Service.Name" => task.service_name.clone(),
            ".Node.ID" => place.node.to_string(),
            ".Node.Hostname" => place.hostname.to_owned(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => task.container_name(),
            ".Task.Slot" => slot.clone(),
            other => return Err(format!("{text}: there is no template field {other}")),
        });
        rest = &rest[at + end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Program and arguments: a command replaces the image's entrypoint, arguments alone go to it.
fn argv(spec: &ContainerSpec, image: &Image) -> Vec<String> {
    if !spec.command.is_empty() {
        return [spec.command.clone(), spec.args.clone()].concat();
    }
    let args = if spec.args.is_empty() {
        &image.config.cmd
    } else {
        &spec.args
    };
    [image.config.entrypoint.clone(), args.clone()].concat()
}

/// Environment: the image's, then the spec's; a later value of a name wins.
fn env(spec: &[String], image: &Image) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for entry in image.config.env.iter().chain(spec) {
        let name = entry.split('=').next().unwrap_or_default();
        all.retain(|e| e.split('=').next() != Some(name));
        all.push(entry.clone());
    }
    all
}

/// The health check of a task: its own, or the image's; absent when there is nothing to check. An image has no probe over
/// the network.
pub(crate) fn healthcheck(spec: &ContainerSpec, image: &Image) -> Option<Healthcheck> {
    let own = spec.healthcheck.clone();
    let from_image = image.config.healthcheck.as_ref().map(|h| Healthcheck {
        test: h.test.clone(),
        net: None,
        interval: std::time::Duration::from_nanos(h.interval),
        timeout: std::time::Duration::from_nanos(h.timeout),
        retries: h.retries,
        start_period: std::time::Duration::from_nanos(h.start_period),
        start_interval: std::time::Duration::from_nanos(h.start_interval),
    });
    let merged = match (own, from_image) {
        // Without a test of its own, the spec's times go with the image's test.
        (Some(mut own), Some(image)) if own.test.is_empty() && own.net.is_none() => {
            own.test = image.test;
            Some(own)
        }
        (Some(own), _) => Some(own),
        (None, image) => image,
    };
    merged.filter(Healthcheck::asks)
}

/// The signal that asks a task to stop.
pub(crate) fn stop_signal(spec: &ContainerSpec, image: Option<&Image>) -> i32 {
    let name = if spec.stop_signal.is_empty() {
        image.map(|i| i.config.stop_signal.clone()).unwrap_or_default()
    } else {
        spec.stop_signal.clone()
    };
    signal(&name).unwrap_or(15)
}

fn signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let names = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
    ];
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    names.iter().find(|(n, _)| *n == bare).map(|(_, number)| *number)
}

/// Everything the runtime needs.
///
/// # Errors
/// One sentence for the operator: a bind source that is missing, a template that cannot be read, a lost secret.
pub(crate) fn container(
    task: &Task,
    image: &Image,
    set: &AssignmentSet,
    volumes: &Volumes,
    place: &Place<'_>,
    namespace: PathBuf,
) -> Result<ContainerConfig, String> {
    let spec = &task.spec.container;
    let hostname = if spec.hostname.is_empty() {
        task.id.short()
    } else {
        template(&spec.hostname, task, place)?
    };
    let mut mounts: Vec<MountConfig> = Vec::new();
    for mount in &spec.mounts {
        mounts.push(translate_mount(mount, task, image, volumes, place)?);
    }
    for target in image.config.volumes.iter().flat_map(BTreeMap::keys) {
        if !spec
            .mounts
            .iter()
            .any(|m| m.target.trim_end_matches('/') == target.trim_end_matches('/'))
        {
            let anonymous = MountKind::Volume {
                name: String::new(),
                no_copy: false,
                subpath: String::new(),
                driver: String::new(),
                options: BTreeMap::new(),
                labels: BTreeMap::new(),
            };
            let mount = Mount {
                kind: anonymous,
                target: target.clone(),
                read_only: false,
            };
            mounts.push(translate_mount(&mount, task, image, volumes, place)?);
        }
    }
    mounts.extend(devices::mounts(&task.granted)?);
    let mut labels = image.config.labels.clone().unwrap_or_default();
    // Labels of an image tell; those by which we find our own must come from us alone.
    labels.retain(|k, _| !k.starts_with("com.docker.swarm.") && !k.starts_with("rswarm."));
    labels.extend(spec.labels.clone());
    labels.extend([
        (TASK_LABEL.to_owned(), task.id.to_string()),
        (NAME_LABEL.to_owned(), task.container_name()),
        (SERVICE_LABEL.to_owned(), task.service_name.clone()),
        ("com.docker.swarm.service.id".to_owned(), task.service.to_string()),
        ("com.docker.swarm.node.id".to_owned(), place.node.to_string()),
        (IMAGE_LABEL.to_owned(), spec.image.clone()),
        (IMAGE_ID_LABEL.to_owned(), image.id.clone()),
    ]);
    if let OnDisconnect::StopAfter(after) = task.spec.on_disconnect {
        labels.insert(STOP_AFTER_LABEL.to_owned(), after.as_millis().to_string());
    }
    let limits = &task.spec.resources.limits;
    let mut env = spec
        .env
        .iter()
        .map(|e| template(e, task, place))
        .collect::<Result<Vec<_>, _>>()?;
    env.extend(resource_env(task));
    // Last, so that nothing else has its name.
    env.push(format!("RSWARM_FENCE={}", task.fence));
    Ok(ContainerConfig {
        id: task.id.to_string(),
        files: files(task, set, &hostname)?,
        hostname,
        argv: argv(spec, image),
        env: self::env(&env, image),
        cwd: if spec.dir.is_empty() {
            image.config.working_dir.clone()
        } else {
            spec.dir.clone()
        },
        user: if spec.user.is_empty() {
            image.config.user.clone()
        } else {
            spec.user.clone()
        },
        groups: spec.groups.clone(),
        layers: image.layers.clone(),
        read_only: spec.read_only,
        mounts,
        network: NetworkNamespace::Path(namespace),
        resources: Resources {
            nano_cpus: limits.cpu.0,
            memory: limits.memory.0,
            pids: limits.pids,
        },
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        ulimits: spec
            .ulimits
            .iter()
            .map(|u| Ulimit {
                name: u.name.clone(),
                soft: u.soft,
                hard: u.hard,
            })
            .collect(),
        sysctls: spec.sysctls.clone(),
        init: spec.init.unwrap_or(false),
        tty: spec.tty,
        log: log(task)?,
        oom_score_adj: spec.oom_score_adj,
        labels,
    })
}

/// The container of a step before the start: the one of the task, with the step's program.
#[expect(clippy::too_many_arguments, reason = "those of `container`, and which step")]
pub(crate) fn step(
    task: &Task,
    hook: &Hook,
    id: String,
    image: &Image,
    set: &AssignmentSet,
    volumes: &Volumes,
    place: &Place<'_>,
    namespace: PathBuf,
) -> Result<ContainerConfig, String> {
    let mut spec = (*task.spec).clone();
    let c = &mut spec.container;
    (c.command, c.args, c.tty) = (hook.command.clone(), Vec::new(), false);
    c.env.extend(hook.env.iter().cloned());
    for (own, of_step) in [(&mut c.user, &hook.user), (&mut c.dir, &hook.dir)] {
        if !of_step.is_empty() {
            own.clone_from(of_step);
        }
    }
    let task = Task {
        spec: spec.into(),
        ..task.clone()
    };
    let mut config = container(&task, image, set, volumes, place, namespace)?;
    // Who looks for the task finds the one that stays.
    config.labels.remove(TASK_LABEL);
    let suffix = id.trim_start_matches(&task.id.to_string());
    let name = format!("{}{suffix}", task.container_name());
    config.labels.insert(NAME_LABEL.to_owned(), name);
    config.id = id;
    Ok(config)
}

fn log(task: &Task) -> Result<LogConfig, String> {
    let mut log = LogConfig {
        discard: task.spec.log.name == "none",
        ..LogConfig::default()
    };
    for (key, value) in &task.spec.log.options {
        match key.as_str() {
            "max-size" => {
                log.max_size = value
                    .parse::<Bytes>()
                    .map_err(|e| format!("log option max-size: {e}"))?
                    .0
                    .max(4096)
            }
            "max-file" => {
                log.max_files = value
                    .parse()
                    .map_err(|_| format!("log option max-file: {value} is no number"))?;
            }
            _ => {}
        }
    }
    Ok(log)
}

fn translate_mount(
    mount: &Mount,
    task: &Task,
    image: &Image,
    volumes: &Volumes,
    place: &Place<'_>,
) -> Result<MountConfig, String> {
    let source = match &mount.kind {
        MountKind::Tmpfs { size, mode } => MountSource::Tmpfs {
            size: size.map_or(0, |s| s.0),
            mode: mode.unwrap_or(0o1777),
        },
        MountKind::Bind {
            source,
            non_recursive,
            create_source,
            ..
        } => {
            let path = PathBuf::from(template(source, task, place)?);
            if !path.exists() {
                if !create_source {
                    return Err(format!(
                        "invalid mount config: the bind source {} does not exist on this node",
                        path.display()
                    ));
                }
                std::fs::create_dir_all(&path)
                    .map_err(|e| format!("make the bind source {}: {e}", path.display()))?;
            }
            MountSource::Bind {
                path,
                recursive: !non_recursive,
            }
        }
        MountKind::Volume {
            name,
            no_copy,
            subpath,
            options,
            labels,
            ..
        } => {
            let anonymous = name.is_empty();
            let name = if anonymous {
                format!(
                    "{}-{:x}",
                    task.id,
                    mount
                        .target
                        .bytes()
                        .fold(5381u64, |h, b| h.wrapping_mul(33) ^ u64::from(b))
                )
            } else {
                template(name, task, place)?
            };
            let record = VolumeRecord {
                name: name.clone(),
                labels: labels.clone(),
                options: options.clone(),
                created_ms: crate::agent::now().0,
                anonymous_of: anonymous.then(|| task.id.to_string()),
            };
            let fail = |e: std::io::Error| format!("make the volume {name}: {e}");
            if volumes.ensure(&record).map_err(fail)? && !no_copy {
                volumes.fill(&name, &image.layers, &mount.target).map_err(fail)?;
            }
            let path = volumes.path(&name).join(subpath);
            if !path.exists() {
                return Err(format!("the volume {name} has no folder {subpath}"));
            }
            MountSource::Bind {
                path,
                recursive: true,
            }
        }
    };
    Ok(MountConfig {
        target: mount.target.clone(),
        source,
        read_only: mount.read_only,
    })
}

/// Which generic resources are a task's own, under our name and Docker's: those with names by name, of others how many.
fn resource_env(task: &Task) -> Vec<String> {
    let asked = task.spec.resources.reservations.generic.iter();
    let lines = asked.flat_map(|(kind, count)| {
        let variable = resource_variable(kind);
        let own = task.granted.get(kind).map_or_else(
            || count.to_string(),
            |names| names.iter().map(String::as_str).collect::<Vec<_>>().join(","),
        );
        ["RSWARM", "DOCKER"].map(|whose| format!("{whose}_{variable}={own}"))
    });
    lines.collect()
}

/// Lines of `/etc/hosts` by which a task finds itself: its addresses in the first of its networks.
fn own_lines(addresses: &[(NetworkId, IpAddr)], hostname: &str) -> String {
    let first = addresses.chunk_by(|(a, _), (b, _)| a == b).next();
    let line = |(_, address): &(NetworkId, IpAddr)| format!("{address}\t{hostname}\n");
    first.unwrap_or_default().iter().map(line).collect()
}

/// Secrets, configs, and the files that name hosts.
fn files(task: &Task, set: &AssignmentSet, hostname: &str) -> Result<Vec<FileMount>, String> {
    let spec = &task.spec.container;
    let mut files = Vec::new();
    for reference in &spec.secrets {
        let secret = set
            .secrets
            .get(&reference.id)
            .ok_or_else(|| format!("secret {} is gone", reference.name))?;
        let name = &reference.target.name;
        files.push(FileMount {
            target: if name.starts_with('/') {
                name.clone()
            } else {
                format!("/run/secrets/{name}")
            },
            content: secret.spec.data.clone(),
            uid: reference.target.uid,
            gid: reference.target.gid,
            mode: reference.target.mode,
            writable: false,
        });
    }
    for reference in &spec.configs {
        let config = set
            .configs
            .get(&reference.id)
            .ok_or_else(|| format!("config {} is gone", reference.name))?;
        let name = &reference.target.name;
        files.push(FileMount {
            target: if name.starts_with('/') {
                name.clone()
            } else {
                format!("/{name}")
            },
            content: config.spec.data.clone(),
            uid: reference.target.uid,
            gid: reference.target.gid,
            mode: reference.target.mode,
            writable: false,
        });
    }
    let mut hosts = String::from("127.0.0.1\tlocalhost\n");
    hosts.push_str(&own_lines(&task.addresses, hostname));
    for (name, address) in &spec.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let servers = if spec.dns.servers.is_empty() {
        vec!["127.0.0.11".to_owned()]
    } else {
        spec.dns.servers.clone()
    };
    let mut resolv: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
    if !spec.dns.search.is_empty() {
        resolv.push_str(&format!("search {}\n", spec.dns.search.join(" ")));
    }
    let options = if spec.dns.options.is_empty() {
        "ndots:0".to_owned()
    } else {
        spec.dns.options.join(" ")
    };
    resolv.push_str(&format!("options {options}\n"));
    for (target, content) in [
        ("/etc/hosts", hosts),
        ("/etc/resolv.conf", resolv),
        ("/etc/hostname", format!("{hostname}\n")),
    ] {
        files.push(FileMount {
            target: target.into(),
            content: content.into_bytes(),
            uid: 0,
            gid: 0,
            mode: 0o644,
            writable: true,
        });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_finds_itself_by_both_addresses_of_its_first_network() {
        let all: Vec<(NetworkId, IpAddr)> =
            [(1, "10.0.0.2"), (1, "fd00::2"), (2, "10.0.1.2"), (2, "fd01::2")]
                .map(|(network, address)| (NetworkId(network), address.parse().unwrap()))
                .into();
        for (name, addresses, want) in [
            ("none", &all[..0], ""),
            ("one", &all[..1], "10.0.0.2\th\n"),
            ("all", &all[..], "10.0.0.2\th\nfd00::2\th\n"),
        ] {
            assert_eq!(own_lines(addresses, "h"), want, "{name}");
        }
    }
}
