//! `service history` and `service diff`: the specs a service had.

use std::collections::BTreeMap;

use model::object::Revision;
use model::spec::{ImageRef, ServiceSpec};
use proto::control::GetRequest;
use proto::types::Kind;
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::inspect;
use crate::render::{self, ListArgs};

/// List the specs a service had: when, by whom, and how each differs from the one before. The last 20 are kept.
#[derive(clap::Args)]
pub(crate) struct HistoryArgs {
    service: String,
    /// `table`, `json`, a Go template, or `table TEMPLATE`.
    #[arg(long)]
    format: Option<String>,
    /// Nothing cut off.
    #[arg(long)]
    no_trunc: bool,
}

/// Show how two specs of a service differ: the one a rollback goes to and the present one, unless numbers are given.
#[derive(clap::Args)]
pub(crate) struct DiffArgs {
    service: String,
    /// The earlier revision.
    from: Option<u64>,
    /// The later revision; the present one unless given.
    to: Option<u64>,
}

/// Widest cell of changes in a table.
const CHANGES_MAX: usize = 60;

async fn revisions(client: &Client, service: &str) -> Result<(Vec<Revision>, u64), Fail> {
    let request = GetRequest {
        kind: Kind::Service.into(),
        reference: service.into(),
    };
    let reply = client
        .control()
        .await?
        .service_history(request)
        .await?
        .into_inner();
    let all = reply.revisions.into_iter().map(TryInto::try_into);
    Ok((all.collect::<Result<_, _>>()?, reply.previous))
}

pub(crate) async fn history(client: &Client, args: &HistoryArgs) -> Result<(), Fail> {
    let (revisions, previous) = revisions(client, &args.service).await?;
    let present = revisions.last().map(|r| r.number);
    let mut before: Option<&Revision> = None;
    let mut rows = Vec::new();
    for revision in &revisions {
        let changes = before
            .map(|b| summary(&b.spec, &revision.spec))
            .unwrap_or_default();
        let short: String = match changes.char_indices().nth(CHANGES_MAX) {
            Some((end, _)) if !args.no_trunc => format!("{}…", &changes[..end]),
            Some(_) | None => changes.clone(),
        };
        let at = revision.made.at;
        rows.push(json!({
            "ID": revision.number.to_string(),
            "Revision": revision.number,
            "Now": if Some(revision.number) == present { "*" } else if revision.number == previous { "previous" } else { "" },
            "CreatedAt": if at.0 == 0 { String::new() } else { at.rfc3339() },
            "Created": if at.0 == 0 { String::new() } else { render::ago(at.0) },
            "By": if revision.made.by.is_empty() { "(cluster)" } else { &revision.made.by },
            "Cause": revision.made.cause,
            "Image": ImageRef::shown(&revision.spec.task.container.image),
            "Changes": if args.format.is_some() { changes } else { short },
        }));
        before = Some(revision);
    }
    let columns = [
        ("REVISION", "Revision"),
        ("", "Now"),
        ("CREATED", "Created"),
        ("BY", "By"),
        ("CAUSE", "Cause"),
        ("IMAGE", "Image"),
        ("CHANGES", "Changes"),
    ];
    let how = ListArgs {
        format: args.format.clone(),
        ..ListArgs::default()
    };
    render::list(&rows, &columns, &how)
}

pub(crate) async fn diff(client: &Client, args: &DiffArgs) -> Result<u8, Fail> {
    let (revisions, previous) = revisions(client, &args.service).await?;
    let numbered = |number: u64| {
        let found = revisions.iter().find(|r| r.number == number);
        found.ok_or_else(|| {
            Fail::new(format!(
                "service {} has no revision {number}, or it is too old to be kept: `rswarm service history {}` shows those there are",
                args.service, args.service
            ))
        })
    };
    let present = revisions.last().map_or(0, |r| r.number);
    let from = match args.from {
        Some(number) => number,
        None if previous == 0 => {
            return Err(Fail::new(format!(
                "service {} was never updated: there is nothing to compare",
                args.service
            )));
        }
        None => previous,
    };
    let (from, to) = (numbered(from)?, numbered(args.to.unwrap_or(present))?);
    render::line(format!("--- revision {}", from.number));
    render::line(format!("+++ revision {}", to.number));
    for (path, old, new) in differences(&from.spec, &to.spec) {
        old.iter()
            .for_each(|old| render::line(format!("- {path}: {old}")));
        new.iter()
            .for_each(|new| render::line(format!("+ {path}: {new}")));
    }
    Ok(0)
}

/// What differs, in a line.
fn summary(old: &ServiceSpec, new: &ServiceSpec) -> String {
    let all = differences(old, new)
        .into_iter()
        .map(|(path, old, new)| match (old, new) {
            (Some(old), Some(new)) => {
                let (old, new) = without_digests(&old, &new);
                format!("{}: {old} → {new}", key(&path))
            }
            (None, Some(new)) => format!("+{}: {new}", key(&path)),
            (Some(old), None) => format!("-{}: {old}", key(&path)),
            (None, None) => String::new(),
        });
    all.collect::<Vec<_>>().join(", ")
}

/// The last part of a path.
fn key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Two images without their digests where their names tell them apart, else with the beginnings of these; anything else as it
/// is.
fn without_digests(old: &str, new: &str) -> (String, String) {
    let parts = |text: &str| {
        let (name, digest) = text.split_once("@sha256:").unwrap_or((text, ""));
        (name.to_owned(), render::short(digest, false))
    };
    let ((old_name, old_digest), (new_name, new_digest)) = (parts(old), parts(new));
    if old_name != new_name {
        return (old_name, new_name);
    }
    let whole = |digest: &str| match digest {
        "" => old_name.clone(),
        digest => format!("{old_name}@sha256:{digest}"),
    };
    (whole(&old_digest), whole(&new_digest))
}

/// Every field that differs: its path, and what it was and is.
fn differences(old: &ServiceSpec, new: &ServiceSpec) -> Vec<(String, Option<String>, Option<String>)> {
    let (old, new) = (flat(&inspect::spec(old)), flat(&inspect::spec(new)));
    let mut paths: Vec<&String> = old.keys().chain(new.keys()).collect();
    paths.sort();
    paths.dedup();
    (paths.into_iter())
        .filter(|path| old.get(*path) != new.get(*path))
        .map(|path| (path.clone(), old.get(path).cloned(), new.get(path).cloned()))
        .collect()
}

/// The leaves of a value by their paths. Entries of a list of texts stand for themselves, so that one more moves no other.
fn flat(value: &Value) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        let below = |name: &str| match path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, v)| walk(&below(name), v, into)),
            Value::Array(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    match entry.as_str() {
                        // NAME=VALUE is known by its name.
                        Some(text) => match text.split_once('=') {
                            Some((name, value)) => into.insert(below(name), value.to_owned()),
                            None => into.insert(format!("{path}[{at}]"), text.to_owned()),
                        },
                        None => {
                            walk(&format!("{path}[{at}]"), entry, into);
                            None
                        }
                    };
                }
            }
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => {
                into.insert(path.to_owned(), text.clone());
            }
            other => {
                into.insert(path.to_owned(), render::scalar(key(path), other));
            }
        }
    }
    let mut into = BTreeMap::new();
    walk("", value, &mut into);
    into
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_difference_names_the_field_and_what_it_was_and_is() {
        let mut old = ServiceSpec::default();
        old.task.container.image = "web:1".into();
        old.task.container.env = vec!["A=1".into(), "B=2".into()];
        let mut new = old.clone();
        new.task.container.image = "web:2".into();
        new.task.container.env = vec!["C=3".into(), "B=2".into()];
        new.update.parallelism = 3;
        let path = |p: &str| format!("TaskTemplate.ContainerSpec.{p}");
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(
            differences(&old, &new),
            [
                (path("Env.A"), some("1"), None),
                (path("Env.C"), None, some("3")),
                (path("Image"), some("web:1"), some("web:2")),
                ("UpdateConfig.Parallelism".into(), some("1"), some("3")),
            ]
        );
        assert_eq!(
            summary(&old, &new),
            "-A: 1, +C: 3, Image: web:1 → web:2, Parallelism: 1 → 3"
        );
        assert!(differences(&old, &old).is_empty());
        // Of images in a line what tells them apart; the digests stand in the whole difference.
        let digest = |c: char| format!("web:2@sha256:{}", String::from(c).repeat(64));
        old.update.parallelism = 3;
        old.task.container.env.clone_from(&new.task.container.env);
        new.task.container.image = digest('a');
        new.update.delay = Duration::from_millis(1500);
        assert_eq!(summary(&old, &new), "Image: web:1 → web:2, Delay: 0s → 1.5s");
        (old.task.container.image, old.update) = (digest('b'), new.update.clone());
        assert_eq!(
            summary(&old, &new),
            "Image: web:2@sha256:bbbbbbbbbbbb → web:2@sha256:aaaaaaaaaaaa"
        );
    }
}
