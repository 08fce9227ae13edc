//! `stats`: what containers use, on this node or on any.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::NodeId;
use model::object::NodeState;
use proto::host::{ContainerStats, StatsReply, StatsRequest};
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::locate::{self, locate};
use crate::render::{self, ListArgs};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A node that does not answer within this is left out of one look.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Show what containers use, again every second.
///
/// Without names: those of this node, or with --cluster of all nodes. On a manager a name may be a container or task of
/// any node, or a service: its running tasks. A node that cannot be reached is told once and left out.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One look, one second long.
    #[arg(long)]
    no_stream: bool,
    /// Nothing cut off.
    #[arg(long)]
    no_trunc: bool,
    /// `table`, `json`, a Go template, or `table TEMPLATE`.
    #[arg(long)]
    format: Option<String>,
    /// Containers of all nodes.
    #[arg(long, conflicts_with = "containers")]
    cluster: bool,
    /// On this node only, by name or id.
    #[arg(long, conflicts_with = "cluster")]
    node: Option<String>,
    /// Also those that do not run. Accepted as Docker has it: of these there is nothing to show.
    #[arg(long, short, hide = true)]
    all: bool,
    containers: Vec<String>,
}

/// A node that is asked; absent: this one.
type Asked = (Option<NodeId>, String);

pub(crate) async fn run(client: &Client, args: Args) -> Result<u8, Fail> {
    let targets = targets(client, &args).await?;
    let named: usize = targets.values().map(Vec::len).sum();
    let list = ListArgs {
        format: args.format.clone(),
        no_trunc: args.no_trunc,
        ..ListArgs::default()
    };
    let several = args.cluster || targets.keys().any(|(node, _)| node.is_some());
    let terminal = rustix::termios::isatty(rustix::stdio::stdout()) && !args.no_stream;
    let mut told = BTreeSet::new();
    let mut before = look(client, &targets, &mut told).await;
    if before.is_empty() && !targets.is_empty() {
        return Err(Fail::new("no node answered"));
    }
    loop {
        tokio::time::sleep(EVERY).await;
        let now = look(client, &targets, &mut told).await;
        let rows = rows(&before, &now, args.no_trunc);
        if terminal {
            // From the top; what the new table does not cover is cleared below it.
            render::text("\u{1b}[H\u{1b}[J");
        }
        render::list(&rows, columns(several), &list)?;
        if args.no_stream || (named > 0 && rows.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}

/// Which containers of which nodes are looked at; of a node without any, all.
async fn targets(client: &Client, args: &Args) -> Result<BTreeMap<Asked, Vec<String>>, Fail> {
    let mut targets: BTreeMap<Asked, Vec<String>> = BTreeMap::new();
    if args.cluster {
        for (node, _) in client.nodes(&[]).await? {
            let hostname = node.description.hostname.clone();
            if node.status.state == NodeState::Down {
                render::warn(&format!("node {hostname} is down: its containers are left out"));
            } else {
                targets.insert((Some(node.id), hostname), Vec::new());
            }
        }
        return Ok(targets);
    }
    if args.containers.is_empty() {
        let asked = match &args.node {
            None => (None, String::new()),
            Some(name) => {
                let node = locate::node_of(client, name).await?;
                (Some(node.id), node.description.hostname.clone())
            }
        };
        targets.insert(asked, Vec::new());
    }
    for reference in &args.containers {
        let of_service = if args.node.is_some() {
            None
        } else {
            locate::of_service(client, reference).await?
        };
        let found = match of_service {
            None => vec![reference.clone()],
            Some(running) if running.is_empty() => {
                return Err(Fail::new(format!(
                    "no task of {reference} runs: `rswarm service ps {reference}` says why"
                )));
            }
            Some(running) => running.iter().map(|t| t.id.to_string()).collect(),
        };
        for reference in found {
            match locate(client, &reference, args.node.as_deref()).await {
                Ok(located) => {
                    let name = located.place.trim_start_matches("node ").to_owned();
                    let name = if located.node.is_some() {
                        name
                    } else {
                        String::new()
                    };
                    targets
                        .entry((located.node, name))
                        .or_default()
                        .push(located.container);
                }
                // Of a service, the others are still worth looking at.
                Err(error) if args.containers.contains(&reference) => return Err(error),
                Err(error) => render::warn(&error.message),
            }
        }
    }
    Ok(targets)
}

type Look = BTreeMap<Asked, StatsReply>;

async fn look(client: &Client, targets: &BTreeMap<Asked, Vec<String>>, told: &mut BTreeSet<Asked>) -> Look {
    let asked = targets.iter().map(|(asked, containers)| async move {
        let containers = containers.clone();
        let answer = async {
            let mut host = client.host_of(asked.0).await?;
            Ok::<_, Fail>(host.stats(StatsRequest { containers }).await?.into_inner())
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(Fail::new("no answer in time")));
        (asked.clone(), answer)
    });
    let mut all = Look::new();
    for (asked, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(reply) => {
                told.remove(&asked);
                all.insert(asked, reply);
            }
            Err(error) => {
                if told.insert(asked.clone()) {
                    let whose = if asked.0.is_some() {
                        format!("node {}", asked.1)
                    } else {
                        "this node".into()
                    };
                    render::warn(&format!("{whose} is left out: {}", error.message));
                }
            }
        }
    }
    all
}

fn columns(several: bool) -> &'static [(&'static str, &'static str)] {
    const ALL: [(&str, &str); 9] = [
        ("CONTAINER ID", "Shown"),
        ("NAME", "Name"),
        ("CPU %", "CPUPerc"),
        ("MEM USAGE / LIMIT", "MemUsage"),
        ("MEM %", "MemPerc"),
        ("NET I/O", "NetIO"),
        ("BLOCK I/O", "BlockIO"),
        ("PIDS", "PIDs"),
        ("NODE", "Node"),
    ];
    if several { &ALL } else { &ALL[..8] }
}

/// Rows of what runs now and ran before, by node and name.
fn rows(before: &Look, now: &Look, no_trunc: bool) -> Vec<Value> {
    let mut rows = Vec::new();
    for (asked, reply) in now {
        let Some(old) = before.get(asked) else { continue };
        let wall_ns = reply.read_at_ns.saturating_sub(old.read_at_ns).max(1);
        let mut list: Vec<&ContainerStats> = reply.containers.iter().collect();
        list.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        for stats in list {
            if let Some(then) = old.containers.iter().find(|o| o.id == stats.id) {
                rows.push(row(then, stats, wall_ns, &asked.1, no_trunc));
            }
        }
    }
    rows
}

fn row(then: &ContainerStats, now: &ContainerStats, wall_ns: u64, node: &str, no_trunc: bool) -> Value {
    let cpu = now.cpu_ns.saturating_sub(then.cpu_ns) as f64 * 100.0 / wall_ns as f64;
    let limit = now.memory_limit_bytes.max(1);
    let memory = now.memory_bytes as f64 * 100.0 / limit as f64;
    let binary = |n| render::bytes(n, 1024, 4);
    let decimal = |n| render::bytes(n, 1000, 3);
    let disk = match (now.disk_read_bytes, now.disk_written_bytes) {
        (Some(read), Some(written)) => format!("{} / {}", decimal(read), decimal(written)),
        // A host that does not count must not look like one that did nothing.
        _ => "--".into(),
    };
    json!({
        "Container": now.id, "ID": now.id, "Shown": render::short(&now.id, no_trunc), "Name": now.name,
        "CPUPerc": format!("{cpu:.2}%"), "MemPerc": format!("{memory:.2}%"),
        "MemUsage": format!("{} / {}", binary(now.memory_bytes), binary(now.memory_limit_bytes)),
        "NetIO": format!("{} / {}", decimal(now.received_bytes), decimal(now.sent_bytes)),
        "BlockIO": disk, "PIDs": now.pids.to_string(), "Node": node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cpu_ns: u64) -> ContainerStats {
        ContainerStats {
            id: "0123456789abcdef".into(),
            name: "web.1.x".into(),
            cpu_ns,
            memory_bytes: 64 << 20,
            memory_limit_bytes: 256 << 20,
            pids: 3,
            received_bytes: 1500,
            sent_bytes: 2_000_000,
            disk_read_bytes: Some(0),
            disk_written_bytes: Some(4096),
        }
    }

    #[test]
    fn figures_are_those_of_the_time_between_two_looks() {
        let row = row(
            &stats(1_000_000_000),
            &stats(2_500_000_000),
            1_000_000_000,
            "h1",
            false,
        );
        for (field, wanted) in [
            ("Shown", "0123456789ab"),
            ("CPUPerc", "150.00%"),
            ("MemUsage", "64MiB / 256MiB"),
            ("MemPerc", "25.00%"),
            ("NetIO", "1.5kB / 2MB"),
            ("BlockIO", "0B / 4.1kB"),
            ("PIDs", "3"),
            ("Node", "h1"),
        ] {
            assert_eq!(row[field], wanted, "{field}");
        }
        let mut uncounted = stats(0);
        uncounted.disk_read_bytes = None;
        assert_eq!(super::row(&stats(0), &uncounted, 1, "", false)["BlockIO"], "--");
    }

    #[test]
    fn what_was_not_there_before_waits_for_the_next_look() {
        let look = |ids: &[&str], at| {
            let containers = ids.iter().map(|id| ContainerStats {
                id: (*id).into(),
                ..stats(0)
            });
            let reply = StatsReply {
                containers: containers.collect(),
                read_at_ns: at,
            };
            Look::from([((None, String::new()), reply)])
        };
        let ids = |rows: Vec<Value>| {
            rows.iter()
                .map(|r| r["ID"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            ids(rows(&look(&["a", "b"], 1), &look(&["b", "c"], 2), false)),
            ["b"]
        );
        assert_eq!(
            ids(rows(&Look::new(), &look(&["b"], 2), false)),
            Vec::<String>::new()
        );
    }
}
