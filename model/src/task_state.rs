//! The ladder of states of a task, who owns each rung, and how late news is merged.

/// How far a task has come. The numbers are Docker's, so that they sort and survive a restart alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Made by the orchestrator.
    New = 0,
    /// Has its addresses and ports; waits for a node.
    Pending = 64,
    /// Has a node.
    Assigned = 192,
    /// The node's agent knows it.
    Accepted = 256,
    /// Image, volumes and network are being made ready.
    Preparing = 320,
    /// Can start at once; waits to be wanted running.
    Ready = 384,
    /// Its process runs; not yet healthy.
    Starting = 448,
    /// Its process runs, healthy if that is checked.
    Running = 512,
    /// Ended by itself with exit code 0.
    Complete = 576,
    /// Stopped because it was not wanted any more.
    Shutdown = 640,
    /// Ended by itself with another exit code, or became unhealthy.
    Failed = 704,
    /// Could not be started.
    Rejected = 768,
    /// Only as a wish; no task reports it.
    Remove = 800,
    /// Its node was lost.
    Orphaned = 832,
}

/// The one component that may move a task on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Gives addresses and ports.
    Allocator,
    /// Gives a node.
    Scheduler,
    /// Runs it.
    Agent,
    /// Deletes it.
    Reaper,
}

impl TaskState {
    /// Every state, lowest first.
    pub const ALL: [TaskState; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// The one component that may move a task on from here, so that two loops never race for it.
    ///
    /// One exception: node health makes any unfinished task of a node it declared down Orphaned; and a task without a
    /// node that is not wanted any more is ended by the orchestrator.
    pub const fn owner(self) -> Owner {
        match self {
            Self::New => Owner::Allocator,
            Self::Pending => Owner::Scheduler,
            Self::Assigned
            | Self::Accepted
            | Self::Preparing
            | Self::Ready
            | Self::Starting
            | Self::Running => Owner::Agent,
            Self::Complete
            | Self::Shutdown
            | Self::Failed
            | Self::Rejected
            | Self::Remove
            | Self::Orphaned => Owner::Reaper,
        }
    }

    /// Whether nothing of the task runs any more, or ever will.
    pub const fn is_terminal(self) -> bool {
        matches!(self.owner(), Owner::Reaper)
    }

    /// The newer of two sightings, so that reports may arrive late, twice or out of order.
    pub fn merge(self, seen: TaskState) -> TaskState {
        self.max(seen)
    }

    /// Docker's number of the state.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The state with Docker's number `n`.
    pub fn from_number(n: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.number() == n)
    }

    /// Lower-case name, as filters and `inspect` print it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What the manager wants of a task. It only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DesiredState {
    /// Prepare it, and wait.
    Ready,
    /// Run it.
    Running,
    /// Stop it, keep it as history.
    Shutdown,
    /// Stop it and forget it.
    Remove,
}

impl DesiredState {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
        }
    }

    /// Whether the task is wanted to run, now or soon.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Ready | Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_the_same_in_any_order_and_twice() {
        for a in TaskState::ALL {
            for b in TaskState::ALL {
                assert_eq!(a.merge(b), b.merge(a));
                assert_eq!(a.merge(b).merge(b), a.merge(b));
            }
        }
    }

    #[test]
    fn numbers_name_states() {
        for s in TaskState::ALL {
            assert_eq!(TaskState::from_number(s.number()), Some(s));
        }
        assert_eq!(TaskState::from_number(7), None);
    }
}
