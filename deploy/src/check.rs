//! Health and readiness checks, as compose files and flags write them.

use std::ops::RangeInclusive;

use model::spec::{Healthcheck, NetProbe};

use crate::convert::{duration, flag, parsed, texts};
use crate::node::{Node, Place};

/// `PORT[/PATH]` of an HTTP probe; without a path `/`.
///
/// # Errors
/// One sentence for the user.
pub fn parse_http(text: &str) -> Result<NetProbe, String> {
    let (port, path) = split(text);
    Ok(NetProbe::Http {
        port: parse_port(port).map_err(|e| format!("{text}: {e}: write PORT[/PATH]"))?,
        path: path.to_owned(),
        status: NetProbe::STATUS,
    })
}

/// The port of a probe.
///
/// # Errors
/// One sentence for the user.
pub fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("\"{text}\" is no port from 1 to 65535"))
}

/// Port and path of the short form.
pub(crate) fn split(text: &str) -> (&str, &str) {
    match text.find('/') {
        Some(at) => text.split_at(at),
        None => (text, "/"),
    }
}

/// `200` or `200-399`.
pub(crate) fn parse_status(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let one = |t: &str| t.trim().parse().ok().filter(|n| (100..=599).contains(n));
    match (one(first), one(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(format!(
            "\"{text}\" is no HTTP status or range such as 200 or 200-399"
        )),
    }
}

/// A check in its long form; where it asks in several ways, the second of them is to be reported.
pub(crate) fn read(node: &Node) -> (Healthcheck, Option<Place>) {
    if flag(node, &["disable"]) {
        let none = Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        };
        return (none, None);
    }
    let ways = ["test", "http", "tcp"].iter().filter_map(|key| node.get(key));
    let second = ways.map(|n| n.at).nth(1);
    let time = |key| duration(node, &[key]).unwrap_or_default();
    let http = node.get("http").and_then(|http| {
        Some(NetProbe::Http {
            port: parsed(http, &["port"])?,
            path: (http.get("path").and_then(Node::scalar))
                .unwrap_or("/")
                .to_owned(),
            status: (http.get("status").and_then(Node::scalar))
                .and_then(|text| parse_status(text).ok())
                .unwrap_or(NetProbe::STATUS),
        })
    });
    let tcp = parsed(node, &["tcp"]).map(|port| NetProbe::Tcp { port });
    let check = Healthcheck {
        test: texts(node, &["test"]),
        net: http.or(tcp),
        interval: time("interval"),
        timeout: time("timeout"),
        retries: parsed(node, &["retries"]).unwrap_or(0),
        start_period: time("start_period"),
        start_interval: time("start_interval"),
    };
    (check, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_as_flags_write_them() {
        let http = |port, path: &str| NetProbe::Http {
            port,
            path: path.into(),
            status: 200..=399,
        };
        for (text, want) in [
            ("8080", Some(http(8080, "/"))),
            ("8080/", Some(http(8080, "/"))),
            ("1/a/b?c=/d", Some(http(1, "/a/b?c=/d"))),
            ("0/x", None),
            ("65536", None),
            ("/x", None),
            ("http://x:80/", None),
        ] {
            assert_eq!(parse_http(text).ok(), want, "{text}");
        }
        for (text, want) in [
            ("204", Some(204..=204)),
            ("200-399", Some(200..=399)),
            ("200 - 299", Some(200..=299)),
            ("399-200", None),
            ("99", None),
            ("200-600", None),
            ("2xx", None),
            ("", None),
        ] {
            assert_eq!(parse_status(text).ok(), want, "{text}");
        }
    }
}
