//! What is said beside a refusal that another try may mend: that it may, and who leads.

use model::NodeId;
use tonic::Status;

/// Says who leads, on a refusal of one who does not.
const LEADER: &str = "rswarm-leader";
/// Says that the same request may be tried again.
pub const RETRY: &str = "rswarm-retry";

/// A refusal of a manager that does not lead.
pub fn not_leader(text: impl Into<String>, leader: Option<(NodeId, String)>) -> Status {
    let mut status = Status::unavailable(text);
    if let Some((node, address)) = leader
        && let Ok(value) = format!("{node}@{address}").parse()
    {
        status.metadata_mut().insert(LEADER, value);
    }
    may_retry(status)
}

/// Marks a refusal as one after which the same request may be tried again.
pub fn may_retry(mut status: Status) -> Status {
    status
        .metadata_mut()
        .insert(RETRY, tonic::metadata::MetadataValue::from_static("1"));
    status
}

/// Whether the same request may be tried again.
pub fn may_be_retried(status: &Status) -> bool {
    status.metadata().contains_key(RETRY)
}

/// Who leads, as a refusal says.
pub fn leader_of(status: &Status) -> Option<(NodeId, String)> {
    let text = status.metadata().get(LEADER)?.to_str().ok()?;
    let (node, address) = text.split_once('@')?;
    Some((node.parse().ok()?, address.to_owned()))
}
