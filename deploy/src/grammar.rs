//! Short forms that files and flags share: ports, mounts, secrets, networks, environment, what a cut off task does.

use std::collections::BTreeMap;

use model::spec::{
    Autoscale, ConfigRef, FileTarget, Mount, MountKind, NetworkAttachment, OnDisconnect, PortSpec, Protocol,
    PublishMode, SCALE_DOWN_AFTER, SecretRef, Ulimit,
};
use model::units::parse_duration;
use model::{Bytes, ConfigId, NetworkId, SecretId};

/// Most ports one range stands for.
const RANGE_MAX: usize = 1_000;

fn fields(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .map(|f| {
            f.split_once('=')
                .map_or((f.trim().to_owned(), "true".to_owned()), |(k, v)| {
                    (k.trim().to_owned(), v.trim().to_owned())
                })
        })
        .collect()
}

fn yes(key: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "y" | "on" => Ok(true),
        "false" | "0" | "no" | "n" | "off" => Ok(false),
        other => Err(format!("{key}={other}: write true or false")),
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        other => Err(format!("there is no protocol {other}: use tcp, udp or sctp")),
    }
}

/// `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]` with ranges, or `published=…,target=…,protocol=…,mode=…`.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_ports(text: &str) -> Result<Vec<PortSpec>, String> {
    if text.contains('=') {
        return long_port(text).map(|p| vec![p]);
    }
    let wrong = || format!("{text}: write [PUBLISHED:]TARGET[/PROTOCOL], such as 8080:80/tcp");
    let (ports, kind) = text.split_once('/').unwrap_or((text, "tcp"));
    let kind = protocol(kind)?;
    let parts: Vec<&str> = ports.rsplitn(3, ':').collect();
    let (target, published, host_ip) = match parts.as_slice() {
        [target] => (*target, "", ""),
        [target, published] => (*target, *published, ""),
        [target, published, ip] => (*target, *published, ip.trim_matches(['[', ']'])),
        _ => return Err(wrong()),
    };
    let targets = range(target).ok_or_else(wrong)?;
    let publisheds = if published.is_empty() {
        vec![0; targets.len()]
    } else {
        range(published).ok_or_else(wrong)?
    };
    if targets.len() != publisheds.len() {
        return Err(format!("{text}: both ranges must have the same length"));
    }
    Ok(targets
        .into_iter()
        .zip(publisheds)
        .map(|(target, published)| PortSpec {
            name: String::new(),
            protocol: kind,
            target,
            published,
            mode: PublishMode::Ingress,
            host_ip: host_ip.to_owned(),
            proxy: false,
        })
        .collect())
}

fn range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let list: Vec<u16> = (first..=last).collect();
    (first > 0 && !list.is_empty() && list.len() <= RANGE_MAX).then_some(list)
}

fn long_port(text: &str) -> Result<PortSpec, String> {
    let mut port = PortSpec {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 0,
        published: 0,
        mode: PublishMode::Ingress,
        host_ip: String::new(),
        proxy: false,
    };
    for (key, value) in fields(text) {
        let number = || {
            value
                .parse::<u16>()
                .map_err(|_| format!("{key}={value} is no port"))
        };
        match key.as_str() {
            "target" => port.target = number()?,
            "published" => port.published = number()?,
            "protocol" => port.protocol = protocol(&value)?,
            "mode" => port.mode = publish_mode(&value)?,
            "name" => port.name = value,
            "host_ip" => port.host_ip = value,
            "proxy_protocol" if value == "v2" => port.proxy = true,
            "proxy_protocol" => return Err(format!("{text}: of the PROXY protocol there is v2 only")),
            other => return Err(format!("{text}: there is no field {other}")),
        }
    }
    if port.target == 0 {
        Err(format!("{text}: target is missing"))
    } else {
        Ok(port)
    }
}

/// `ingress` or `host`.
///
/// # Errors
/// Anything else.
pub fn publish_mode(text: &str) -> Result<PublishMode, String> {
    match text {
        "ingress" => Ok(PublishMode::Ingress),
        "host" => Ok(PublishMode::Host),
        other => Err(format!("there is no publish mode {other}: use ingress or host")),
    }
}

/// A volume with nothing but a name.
pub fn volume(name: &str) -> MountKind {
    MountKind::Volume {
        name: name.into(),
        no_copy: false,
        subpath: String::new(),
        driver: String::new(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

/// `type=volume|bind|tmpfs,source=…,target=…,readonly`, as `--mount` takes it.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_mount(text: &str) -> Result<Mount, String> {
    let all = fields(text);
    let get = |names: &[&str]| {
        all.iter()
            .find(|(k, _)| names.contains(&k.as_str()))
            .map(|(_, v)| v.clone())
    };
    let source = get(&["source", "src"]).unwrap_or_default();
    let target =
        get(&["target", "destination", "dst"]).ok_or_else(|| format!("{text}: target is missing"))?;
    let mut read_only = false;
    let mut kind = match get(&["type"]).as_deref().unwrap_or("volume") {
        "volume" => volume(&source),
        "bind" => MountKind::Bind {
            source,
            propagation: String::new(),
            non_recursive: false,
            create_source: false,
        },
        "tmpfs" => MountKind::Tmpfs {
            size: None,
            mode: None,
        },
        other => {
            return Err(format!(
                "{text}: there is no mount type {other}: use volume, bind or tmpfs"
            ));
        }
    };
    for (key, value) in &all {
        match (key.as_str(), &mut kind) {
            ("type" | "source" | "src" | "target" | "destination" | "dst", _) => {}
            ("readonly" | "ro", _) => read_only = yes(key, value)?,
            ("volume-nocopy", MountKind::Volume { no_copy, .. }) => *no_copy = yes(key, value)?,
            ("volume-subpath", MountKind::Volume { subpath, .. }) => subpath.clone_from(value),
            ("volume-driver", MountKind::Volume { driver, .. }) => driver.clone_from(value),
            ("volume-label", MountKind::Volume { labels, .. }) => {
                let (k, v) = value.split_once('=').unwrap_or((value, ""));
                labels.insert(k.into(), v.into());
            }
            ("bind-propagation", MountKind::Bind { propagation, .. }) => propagation.clone_from(value),
            ("bind-create-src", MountKind::Bind { create_source, .. }) => *create_source = yes(key, value)?,
            ("tmpfs-size", MountKind::Tmpfs { size, .. }) => {
                *size = Some(value.parse::<Bytes>().map_err(|e| e.to_string())?)
            }
            ("tmpfs-mode", MountKind::Tmpfs { mode, .. }) => {
                *mode = Some(
                    u32::from_str_radix(value, 8)
                        .map_err(|_| format!("tmpfs-mode={value} is no octal mode"))?,
                );
            }
            (other, _) => return Err(format!("{text}: there is no field {other} for this type")),
        }
    }
    Ok(Mount {
        kind,
        target,
        read_only,
    })
}

fn file(text: &str, prefix: &str) -> Result<(String, FileTarget), String> {
    let (mut source, mut target) = (String::new(), String::new());
    let (mut uid, mut gid, mut mode) = (0, 0, 0o444);
    if text.contains('=') {
        for (key, value) in fields(text) {
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| format!("{key}={value} is no number"))
            };
            match key.as_str() {
                "source" | "src" => source = value,
                "target" => target = value,
                "uid" => uid = number()?,
                "gid" => gid = number()?,
                "mode" => {
                    mode = u32::from_str_radix(&value, 8)
                        .map_err(|_| format!("mode={value} is no octal mode"))?
                }
                other => return Err(format!("{text}: there is no field {other}")),
            }
        }
    } else {
        text.clone_into(&mut source);
    }
    if source.is_empty() {
        return Err(format!("{text}: source is missing"));
    }
    if target.is_empty() {
        target = format!("{prefix}{source}");
    }
    Ok((
        source,
        FileTarget {
            name: target,
            uid,
            gid,
            mode,
        },
    ))
}

/// `NAME`, or `source=…,target=…,uid=…,gid=…,mode=…`.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_secret(text: &str) -> Result<SecretRef, String> {
    file(text, "").map(|(name, target)| SecretRef {
        id: SecretId::NIL,
        name,
        target,
    })
}

/// `min=2,max=8,cpu=60,memory=80,scale_down_after=5m`, or `none`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_autoscale(text: &str) -> Result<Option<Autoscale>, String> {
    if text == "none" {
        return Ok(None);
    }
    let (mut min, mut max) = (None, None);
    let mut rule = Autoscale {
        min: 0,
        max: 0,
        cpu: None,
        memory: None,
        scale_down_after: SCALE_DOWN_AFTER,
    };
    for field in text.split(',') {
        let wrong = || format!("autoscale: {field}: write min=2,max=8,cpu=60,memory=80,scale_down_after=5m");
        let (key, value) = field.split_once('=').ok_or_else(wrong)?;
        let number = || value.trim_end_matches('%').parse::<u32>().map_err(|_| wrong());
        match key {
            "min" => min = Some(number()?),
            "max" => max = Some(number()?),
            "cpu" => rule.cpu = Some(number()?),
            "memory" => rule.memory = Some(number()?),
            "scale_down_after" => {
                rule.scale_down_after = parse_duration(value).map_err(|e| format!("autoscale: {e}"))?;
            }
            _ => return Err(wrong()),
        }
    }
    let (Some(min), Some(max)) = (min, max) else {
        return Err("autoscale: min and max are needed: between them the cluster chooses".into());
    };
    Ok(Some(Autoscale { min, max, ..rule }))
}

/// `keep`, or `stop-after=TIME`.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_on_disconnect(text: &str) -> Result<OnDisconnect, String> {
    match (text, text.strip_prefix("stop-after=")) {
        ("keep", _) => Ok(OnDisconnect::Keep),
        (_, Some(time)) => (parse_duration(time).map(OnDisconnect::StopAfter))
            .map_err(|e| format!("on-disconnect {text}: {e}")),
        (other, None) => Err(format!(
            "on-disconnect \"{other}\" is neither keep nor stop-after=TIME, such as stop-after=30s"
        )),
    }
}

/// As [`parse_secret`], for a config.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_config(text: &str) -> Result<ConfigRef, String> {
    file(text, "/").map(|(name, target)| ConfigRef {
        id: ConfigId::NIL,
        name,
        target,
    })
}

/// `NAME`, or `name=…,alias=…,ip=…,ip6=…`.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_network(text: &str) -> Result<NetworkAttachment, String> {
    let mut network = NetworkAttachment {
        encrypted: false,
        network: NetworkId::NIL,
        name: String::new(),
        aliases: Vec::new(),
        address: None,
        address6: None,
    };
    if !text.contains('=') {
        text.clone_into(&mut network.name);
        return Ok(network);
    }
    for (key, value) in fields(text) {
        match key.as_str() {
            "name" => network.name = value,
            "alias" => network.aliases.push(value),
            "ip" => {
                let address = value.parse();
                network.address = Some(
                    address
                        .map_err(|_| format!("{text}: {value} is no IPv4 address; one of IPv6 is ip6=…"))?,
                );
            }
            "ip6" => {
                let address = value.parse();
                network.address6 = Some(
                    address
                        .map_err(|_| format!("{text}: {value} is no IPv6 address; one of IPv4 is ip=…"))?,
                );
            }
            other => return Err(format!("{text}: there is no field {other}")),
        }
    }
    Ok(network)
}

/// `NAME=SOFT[:HARD]`.
///
/// # Errors
/// One sentence that names what cannot be read.
pub fn parse_ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong = || format!("{text}: write NAME=SOFT[:HARD], such as nofile=1024:2048");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit {
        name: name.into(),
        soft: soft.parse().map_err(|_| wrong())?,
        hard: hard.parse().map_err(|_| wrong())?,
    })
}

/// Lines `NAME=VALUE`; `#` begins a comment, a bare name takes its value from `vars`.
///
/// # Errors
/// The line that cannot be read.
pub fn parse_env_file(text: &str, vars: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!(
                "line {}: \"{name}\" is no name of a variable",
                number + 1
            ));
        }
        if line.contains('=') {
            all.push(line.to_owned());
        } else if let Some(value) = vars(line) {
            all.push(format!("{line}={value}"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_task_is_kept_or_stopped_after_a_time() {
        let read = |text: &str| parse_on_disconnect(text).ok();
        assert_eq!(read("keep"), Some(OnDisconnect::Keep));
        let half = std::time::Duration::from_secs(30);
        assert_eq!(read("stop-after=30s"), Some(OnDisconnect::StopAfter(half)));
        for text in [
            "",
            "stop",
            "stop-after",
            "stop-after=",
            "stop-after=x",
            "stop-after=-1s",
            "keep=1",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn ports_in_every_form() {
        let flat = |t: &str| {
            parse_ports(t).map(|l| {
                l.iter()
                    .map(|p| {
                        (
                            p.host_ip.clone(),
                            p.published,
                            p.target,
                            p.protocol.as_str(),
                            p.mode == PublishMode::Host,
                        )
                    })
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(flat("80"), Ok(vec![(String::new(), 0, 80, "tcp", false)]));
        assert_eq!(
            flat("8080:80/udp"),
            Ok(vec![(String::new(), 8080, 80, "udp", false)])
        );
        assert_eq!(
            flat("127.0.0.1:8080:80"),
            Ok(vec![("127.0.0.1".into(), 8080, 80, "tcp", false)])
        );
        assert_eq!(flat("8000-8001:80-81").map(|l| l.len()), Ok(2));
        assert_eq!(
            flat("published=1,target=2,mode=host"),
            Ok(vec![(String::new(), 1, 2, "tcp", true)])
        );
        for bad in [
            "",
            "x",
            "80/xyz",
            "8000-8002:80-81",
            "0",
            "70000",
            "published=1",
            "target=1,x=2",
            "90-80",
        ] {
            assert!(flat(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_files_networks_and_limits() {
        assert!(matches!(
            parse_mount("type=bind,src=/a,dst=/b,ro").unwrap(),
            Mount {
                read_only: true,
                kind: MountKind::Bind { .. },
                ..
            }
        ));
        assert!(
            matches!(parse_mount("source=v,target=/b").unwrap().kind, MountKind::Volume { name, .. } if name == "v")
        );
        for bad in [
            "type=bind,src=/a",
            "type=x,dst=/b",
            "dst=/a,zzz=1",
            "type=tmpfs,dst=/a,tmpfs-mode=9",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
        let s = parse_secret("source=a,target=b,uid=1,mode=0400").unwrap();
        assert_eq!(
            (
                s.name.as_str(),
                s.target.name.as_str(),
                s.target.uid,
                s.target.mode
            ),
            ("a", "b", 1, 0o400)
        );
        assert_eq!(parse_config("c").unwrap().target.name, "/c");
        assert_eq!(parse_network("name=n,alias=x").unwrap().aliases, ["x"]);
        let fixed = parse_network("name=n,ip=10.0.0.9").unwrap().address;
        assert_eq!(fixed, Some("10.0.0.9".parse().unwrap()));
        let fixed = parse_network("name=n,ip6=fd00::9,ip=10.0.0.9").unwrap();
        assert_eq!(
            (fixed.address, fixed.address6),
            (
                Some("10.0.0.9".parse().unwrap()),
                Some("fd00::9".parse().unwrap())
            )
        );
        for (text, wrong) in [
            ("name=n,ip=10.0.0", "10.0.0 is no IPv4 address"),
            ("name=n,ip=fd00::9", "one of IPv6 is ip6="),
            ("name=n,ip6=10.0.0.9", "one of IPv4 is ip="),
        ] {
            let error = parse_network(text).unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
        assert_eq!(parse_ulimit("nofile=1:2").unwrap().hard, 2);
        assert!(parse_ulimit("nofile").is_err());
        let vars = |n: &str| (n == "B").then(|| "2".to_owned());
        assert_eq!(parse_env_file("# c\nA=1\nB\nC\n", &vars).unwrap(), ["A=1", "B=2"]);
    }
}
