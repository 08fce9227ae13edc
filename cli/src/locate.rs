//! Where a container is: on this host, or on whichever node its task was given to.

use std::sync::Arc;

use model::NodeId;
use model::object::{Node, NodeState, Object, Task};
use model::task_state::TaskState;
use proto::host::ContainerRequest;
use proto::types::Kind;
use tonic::Code;

use crate::client::{Client, Fail, RemoteHost};
use crate::command::service_list::tasks;

/// A container and the host that has it.
pub(crate) struct Located {
    pub(crate) host: RemoteHost,
    /// As that host is asked for it.
    pub(crate) container: String,
    /// The node, when it is not this one or may not be.
    pub(crate) node: Option<NodeId>,
    /// For people: `this node`, or `node h2`.
    pub(crate) place: String,
}

/// Finds a container by id, name, task (`web.1`) or the beginning of an id; with `node`, there only.
///
/// On a manager the whole cluster is looked at when this host has none that runs. Of several in one slot the one that
/// runs is meant, and of those the newest.
pub(crate) async fn locate(client: &Client, reference: &str, node: Option<&str>) -> Result<Located, Fail> {
    if let Some(name) = node {
        let node = node_of(client, name).await?;
        return remote(client, &node, reference.into()).await;
    }
    let mut host = client.host_of(None).await?;
    let request = ContainerRequest {
        container: reference.into(),
    };
    let here = host.find_container(request).await;
    let here_it = |host, container| Located {
        host,
        container,
        node: None,
        place: "this node".into(),
    };
    let refusal = match here {
        Ok(found) => {
            let found = found.into_inner();
            if found.state == "running" {
                return Ok(here_it(host, found.id));
            }
            Ok(found.id)
        }
        Err(status) if status.code() == Code::NotFound => Err(status),
        Err(status) => return Err(status.into()),
    };
    match candidates(client, reference).await? {
        Some(found) => {
            let task = best(&found, reference)?;
            let node = task.node.ok_or_else(|| {
                Fail::new(format!(
                    "{} has no node yet: `rswarm service ps {}` says why",
                    task.name(),
                    task.service_name
                ))
            })?;
            let Object::Node(node) = client.get(Kind::Node, &node.to_string()).await? else {
                return Err(Fail::new("the daemon answered another kind of object"));
            };
            remote(client, &node, task.id.to_string()).await
        }
        None => match refusal {
            Ok(id) => Ok(here_it(host, id)),
            Err(status) => Err(status.into()),
        },
    }
}

/// A node by name or id.
pub(crate) async fn node_of(client: &Client, name: &str) -> Result<Arc<Node>, Fail> {
    match client.get(Kind::Node, name).await? {
        Object::Node(node) => Ok(node),
        _ => Err(Fail::new("the daemon answered another kind of object")),
    }
}

async fn remote(client: &Client, node: &Node, container: String) -> Result<Located, Fail> {
    let place = format!("node {}", node.description.hostname);
    // Asked all the same it would answer nothing, after a while.
    if node.status.state == NodeState::Down {
        return Err(Fail::new(format!(
            "{container} is on {place}, which is down: {}",
            node.status.message
        )));
    }
    Ok(Located {
        host: client.host_of(Some(node.id)).await?,
        container,
        node: Some(node.id),
        place,
    })
}

/// Tasks of the cluster that a reference may mean; absent where there are none, or this node does not know them.
pub(crate) async fn candidates(client: &Client, reference: &str) -> Result<Option<Vec<Arc<Task>>>, Fail> {
    let filter = |key: &str| [format!("{key}={reference}")];
    let list = async {
        // The filter takes beginnings of names; of those `web.1` must not mean `web.10`.
        let mut found = tasks(client, &filter("name")).await?;
        found.retain(|t| t.name() == reference || t.container_name() == reference);
        if found.is_empty() && !reference.is_empty() {
            found = tasks(client, &filter("id")).await?;
        }
        Ok::<_, Fail>(found)
    };
    match list.await {
        Ok(found) => Ok((!found.is_empty()).then_some(found)),
        Err(error) if error.code == Some(Code::FailedPrecondition) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The task that is meant: of one slot, the one that runs, or the newest.
pub(crate) fn best(found: &[Arc<Task>], reference: &str) -> Result<Arc<Task>, Fail> {
    let of_one_slot = found
        .iter()
        .all(|t| (t.service, t.slot) == (found[0].service, found[0].slot));
    if !of_one_slot {
        return Err(Fail::new(format!(
            "{reference} is ambiguous: the ids of {} tasks begin so",
            found.len()
        )));
    }
    let rank = |t: &&Arc<Task>| {
        let runs = matches!(t.status.state, TaskState::Starting | TaskState::Running);
        (
            runs,
            t.desired.is_live(),
            t.node.is_some(),
            t.meta.created_at,
            t.id,
        )
    };
    let best = found.iter().max_by_key(rank).cloned();
    best.ok_or_else(|| Fail::new(format!("No such container: {reference}")))
}

/// The tasks of a service that run, by slot; an error when there is no such service, none when `reference` is no
/// service.
pub(crate) async fn of_service(client: &Client, reference: &str) -> Result<Option<Vec<Arc<Task>>>, Fail> {
    let service = match client.get(Kind::Service, reference).await {
        Ok(Object::Service(service)) => service,
        Ok(_) => return Err(Fail::new("the daemon answered another kind of object")),
        Err(error) if matches!(error.code, Some(Code::NotFound | Code::FailedPrecondition)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut found = tasks(client, &[format!("service={}", service.id)]).await?;
    found.retain(|t| t.status.state == TaskState::Running && t.desired.is_live() && t.node.is_some());
    found.sort_by_key(|t| (t.slot, t.id));
    Ok(Some(found))
}
