//! Commands around the life of a container.

/// Most hooks of one kind.
pub const HOOKS_MAX: usize = 16;

/// A command that is run before a container starts, after that, or before it is asked to stop. It is not passed to the
/// image's entrypoint. What a hook does may be done twice: where the agent ends meanwhile, the next one runs it again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `user[:group]`; empty: the container's.
    pub user: String,
    /// Absolute working directory; empty: the container's.
    pub dir: String,
    /// `NAME=value`, beside the container's own; a later one wins.
    pub env: Vec<String>,
}
