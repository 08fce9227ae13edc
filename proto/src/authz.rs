//! Who may call what: read from the protocol files, and nobody where they say nothing.

use model::NodeId;

use crate::roles;

/// Every rpc as a path of HTTP/2, with the numbers of [`roles::Caller`] that may call it.
pub const TABLE: &[(&str, &[i32])] = include!(concat!(env!("OUT_DIR"), "/authz_table.rs"));

/// Who calls, as the channel says it. No message is believed about this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who showed no certificate.
    Anyone,
    /// A node, by its certificate. What it may is not said by the certificate alone, but by the log.
    Node(NodeId),
    /// An operator at the unix socket.
    Operator,
}

/// What a caller counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known of it.
    Anyone,
    /// A node of the cluster.
    Worker,
    /// A manager of the cluster.
    Manager,
    /// An operator of this host.
    Operator,
}

/// Whether a caller of this standing may call an rpc. An rpc that is not in the table may be called by nobody.
pub fn allows(path: &str, standing: Standing) -> bool {
    let number = match standing {
        Standing::Anyone => roles::Caller::Anyone,
        Standing::Worker => roles::Caller::Worker,
        Standing::Manager => roles::Caller::Manager,
        Standing::Operator => roles::Caller::Operator,
    } as i32;
    let anyone = roles::Caller::Anyone as i32;
    (TABLE.iter().find(|(known, _)| *known == path))
        .is_some_and(|(_, callers)| callers.contains(&number) || callers.contains(&anyone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_says_who_may_call_it() {
        assert!(TABLE.len() > 40, "{}", TABLE.len());
        for (path, callers) in TABLE {
            assert!(!callers.is_empty(), "{path} has no option rswarm.roles.allow");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_allowed_to_nobody() {
        for standing in [
            Standing::Anyone,
            Standing::Worker,
            Standing::Manager,
            Standing::Operator,
        ] {
            assert!(!allows("/rswarm.control.Control/Unknown", standing));
        }
    }

    #[test]
    fn workers_reach_only_what_is_meant_for_them() {
        let worker: Vec<&str> = (TABLE.iter().map(|(path, _)| *path))
            .filter(|path| allows(path, Standing::Worker))
            .collect();
        for path in worker {
            let meant = ["/rswarm.ca.", "/rswarm.dispatch.", "/rswarm.images."];
            assert!(meant.iter().any(|m| path.starts_with(m)), "{path}");
        }
        assert!(!allows("/rswarm.raft.Raft/Append", Standing::Worker));
        assert!(allows("/rswarm.ca.Ca/Issue", Standing::Anyone));
        assert!(!allows("/rswarm.ca.Ca/Renew", Standing::Anyone));
    }
}
