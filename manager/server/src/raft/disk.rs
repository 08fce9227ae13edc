//! Whether the disk of the raft log has room, for those who have to act on it.

use std::time::Duration;

/// How often a full disk is tried again: well within the 10 s in which a manager is back once space is free.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Whether the raft log can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskState {
    /// It can.
    #[default]
    Ok,
    /// E_DISK_FULL: the next segment cannot be made. What waits is kept, nothing is acknowledged, and it is tried
    /// again every 500 ms. A leader should hand over to another manager.
    Full,
}
