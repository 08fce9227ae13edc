//! Tables of services and tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::object::{Object, SlotKey, Task};
use model::spec::{ImageRef, PublishMode, ServiceMode};
use model::task_state::{DesiredState, TaskState};
use model::{NodeId, ServiceId};
use proto::types::{JobTally, Kind, ServiceStatus};
use serde_json::{Value, json};

use crate::client::{Client, Fail};
use crate::command::job;
use crate::inspect;
use crate::render::{self, ListArgs};

/// Tasks that match.
pub(crate) async fn tasks(client: &Client, filters: &[String]) -> Result<Vec<Arc<Task>>, Fail> {
    let objects = client.list(Kind::Task, filters).await?;
    Ok(objects
        .into_iter()
        .filter_map(|o| if let Object::Task(t) = o { Some(t) } else { None })
        .collect())
}

/// The mode as Docker's table has it.
fn mode(mode: &ServiceMode) -> String {
    mode.as_str().replace('-', " ")
}

/// How many tasks run of how many; of a job also how many completed, as Docker says it.
fn replicas(status: ServiceStatus, tally: Option<JobTally>) -> String {
    let running = format!("{}/{}", status.running, status.desired);
    match tally {
        Some(t) => format!("{running} ({}/{} completed)", t.completed, t.total),
        None => running,
    }
}

/// Prints services.
pub(crate) async fn ls(client: &Client, args: &ListArgs) -> Result<(), Fail> {
    let services = client.services(&args.filter).await?;
    let rows: Vec<Value> = services
        .iter()
        .map(|(s, status, tally)| {
            let id = s.id.to_string();
            let (last, next) = job::times(s);
            json!({
                "ID": id, "Shown": render::short(&id, args.no_trunc), "Name": s.spec.name, "Mode": mode(&s.spec.mode),
                "Replicas": replicas(*status, *tally), "Image": ImageRef::shown(&s.spec.task.container.image),
                "Ports": inspect::ports(&s.endpoint.ports), "LastRun": last, "NextRun": next,
            })
        })
        .collect();
    let mut columns = vec![
        ("ID", "Shown"),
        ("NAME", "Name"),
        ("MODE", "Mode"),
        ("REPLICAS", "Replicas"),
        ("IMAGE", "Image"),
        ("PORTS", "Ports"),
    ];
    // Docker's columns, unless there is something to say that Docker has not.
    if services.iter().any(|(s, ..)| s.spec.schedule.is_some()) {
        columns.extend([("LAST RUN", "LastRun"), ("NEXT RUN", "NextRun")]);
    }
    render::list(&rows, &columns, args)
}

/// Characters shown of why a task is not ready; `inspect` shows all of it.
const WHY_MAX: usize = 120;

/// Why a task that runs, or is to, gets no connections: the first line of it; or for which services it waits.
pub(crate) fn not_ready(t: &Task) -> Option<String> {
    let said = t.status.message.starts_with("not ready");
    let held = t.desired == DesiredState::Ready && t.status.message.starts_with("waits for ");
    let now = held || t.status.unready || (t.status.state == TaskState::Starting && said);
    let line = t.status.message.lines().next().unwrap_or_default();
    let cut = if line.chars().count() > WHY_MAX { "…" } else { "" };
    now.then(|| line.chars().take(WHY_MAX).collect::<String>() + cut)
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
        let image = t.spec.container.image.as_str();
        let image = if args.no_trunc {
            image
        } else {
            ImageRef::shown(image)
        };
        // Long enough to be asked about; everything else before Running is over in no time.
        let begun = matches!(t.status.state, TaskState::Preparing | TaskState::Starting);
        let long = ["fetching", "pre_start", "post_start"];
        let doing = if begun && long.iter().any(|what| t.status.message.starts_with(what)) {
            format!(": {}", t.status.message)
        } else {
            not_ready(t).map_or_else(String::new, |why| format!(" ({why})"))
        };
        // What its readiness check says of one that runs changes nothing of that.
        let since = t.running_at.filter(|_| t.status.state == TaskState::Running);
        rows.push(json!({
            "ID": id, "Shown": render::short(&id, args.no_trunc), "Name": t.name(), "ShownName": format!("{}{}", if again { " \\_ " } else { "" }, t.name()),
            "Image": image, "Node": t.node.and_then(|n| nodes.get(&n).cloned()).unwrap_or_default(),
            "DesiredState": desired, "CurrentState": format!("{} {}{doing}", title(t.status.state.as_str()), render::ago(since.unwrap_or(t.status.at).0).to_lowercase()),
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
