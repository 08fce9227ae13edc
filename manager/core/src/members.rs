//! Who of the managers takes part in the log: the next change of its members, given who should and who does.

use std::collections::{BTreeMap, BTreeSet};

use model::NodeId;

use crate::state::State;

/// Most managers: each more makes writes slower and survives little more.
pub const MANAGERS_MAX: usize = 7;

/// How many of `managers` must agree.
pub const fn quorum(managers: usize) -> usize {
    managers / 2 + 1
}

/// What an operator should know of a number of managers.
pub fn advice(managers: usize) -> Option<String> {
    match managers {
        0 | 1 => None,
        2 => Some(
            "the cluster has 2 managers now: if either is lost, nothing can be changed until it is back. Add a third"
                .into(),
        ),
        n if n % 2 == 0 => Some(format!(
            "the cluster has {n} managers now, which survives no more losses than {}: an odd number is better",
            n - 1
        )),
        _ => None,
    }
}

/// Members of the log as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Every member, with its node: those that vote and those that only listen.
    pub members: BTreeMap<u64, NodeId>,
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that have nearly all of the log.
    pub caught_up: BTreeSet<u64>,
    /// Those that were heard of a moment ago, the leader among them.
    pub reached: BTreeSet<u64>,
    /// The leader.
    pub leader: u64,
}

/// The next change of the members. One is made at a time, and the next is planned on its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be, or nothing can be done at the moment.
    Nothing,
    /// Lets a manager listen until it has caught up.
    Listen {
        /// Its number.
        raft_id: u64,
        /// Its node.
        node: NodeId,
    },
    /// Changes who votes, in one joint change.
    Vote {
        /// Who votes from then on.
        voters: BTreeSet<u64>,
    },
    /// Forgets one that only listens.
    Forget {
        /// Its number.
        raft_id: u64,
    },
    /// Lets another lead, as the leader itself is to go.
    Transfer {
        /// Who.
        to: u64,
    },
}

/// Decides the next change. Applied to its own result it ends at [`Step::Nothing`].
///
/// A change is only made when those of the new set that can be reached are a quorum of it; so a manager that is away is
/// replaced by one that took its place in one change, and never makes the others wait.
pub fn plan(state: &State, found: &Found) -> Step {
    let wanted: BTreeMap<u64, NodeId> = (state.managers())
        .filter_map(|n| Some((n.identity.raft_id?, n.id)))
        .collect();
    let listener = |id: &u64| !found.voters.contains(id);
    if let Some((raft_id, node)) = wanted.iter().find(|(id, _)| !found.members.contains_key(id)) {
        return Step::Listen {
            raft_id: *raft_id,
            node: *node,
        };
    }
    let add: BTreeSet<u64> = (wanted.keys().copied())
        .filter(|id| listener(id) && found.caught_up.contains(id) && found.reached.contains(id))
        .collect();
    let mut drop: BTreeSet<u64> = (found.voters.iter().copied())
        .filter(|id| !wanted.contains_key(id))
        .collect();
    // One that comes is waited for, when one that goes does not answer anyway: both are one change then.
    let comes = wanted
        .keys()
        .any(|id| listener(id) && found.reached.contains(id) && !add.contains(id));
    if comes {
        drop.retain(|id| found.reached.contains(id));
    }
    let stay = |id: &&u64| wanted.contains_key(id) && found.reached.contains(id);
    if drop.contains(&found.leader) {
        let heir = found.voters.iter().filter(stay).find(|id| **id != found.leader);
        if let Some(to) = heir {
            return Step::Transfer { to: *to };
        }
        // Its successor is to vote first.
        drop.remove(&found.leader);
    }
    let voters: BTreeSet<u64> = found.voters.difference(&drop).chain(&add).copied().collect();
    let answer = voters.intersection(&found.reached).count();
    if voters != found.voters && !voters.is_empty() && answer >= quorum(voters.len()) {
        return Step::Vote { voters };
    }
    let gone = (found.members.keys()).find(|id| listener(id) && !wanted.contains_key(id));
    match gone {
        Some(raft_id) => Step::Forget { raft_id: *raft_id },
        None => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrate_tests::node;
    use model::object::NodeRole;
    use model::object::Object;
    use std::sync::Arc;

    /// Managers by the number of their node, which is their number in the log as well.
    fn state(managers: &[u64]) -> State {
        let objects = managers.iter().map(|id| {
            let mut n = node(u128::from(*id), &format!("m{id}"));
            n.spec.role = NodeRole::Manager;
            n.identity.raft_id = Some(*id);
            Object::Node(Arc::new(n))
        });
        State::from_objects(1, objects)
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn found(voters: &[u64], listeners: &[u64], caught_up: &[u64], reached: &[u64]) -> Found {
        Found {
            members: voters
                .iter()
                .chain(listeners)
                .map(|id| (*id, NodeId(u128::from(*id))))
                .collect(),
            voters: set(voters),
            caught_up: set(caught_up),
            reached: set(reached),
            leader: reached[0],
        }
    }

    #[test]
    fn members_follow_the_managers_one_change_at_a_time() {
        let listen = |id: u64| Step::Listen {
            raft_id: id,
            node: NodeId(u128::from(id)),
        };
        let vote = |ids: &[u64]| Step::Vote { voters: set(ids) };
        let rows = [
            (
                "nothing to do",
                state(&[1]),
                found(&[1], &[], &[], &[1]),
                Step::Nothing,
            ),
            (
                "a new manager listens first",
                state(&[1, 2]),
                found(&[1], &[], &[], &[1]),
                listen(2),
            ),
            (
                "it does not vote before it has caught up",
                state(&[1, 2]),
                found(&[1], &[2], &[], &[1, 2]),
                Step::Nothing,
            ),
            (
                "then it votes",
                state(&[1, 2]),
                found(&[1], &[2], &[2], &[1, 2]),
                vote(&[1, 2]),
            ),
            (
                "not while it does not answer",
                state(&[1, 2]),
                found(&[1], &[2], &[2], &[1]),
                Step::Nothing,
            ),
            (
                "one that was demoted votes no more",
                state(&[1, 2]),
                found(&[1, 2, 3], &[], &[], &[1, 2, 3]),
                vote(&[1, 2]),
            ),
            (
                "and is forgotten",
                state(&[1, 2]),
                found(&[1, 2], &[3], &[3], &[1, 2, 3]),
                Step::Forget { raft_id: 3 },
            ),
            (
                "a leader that was demoted lets another lead",
                state(&[2, 3]),
                found(&[1, 2, 3], &[], &[], &[1, 2, 3]),
                Step::Transfer { to: 2 },
            ),
            (
                "but not one that does not answer",
                state(&[2, 3]),
                found(&[1, 2, 3], &[], &[], &[1, 3]),
                Step::Transfer { to: 3 },
            ),
            (
                "a dead one is replaced in one change",
                state(&[1, 2, 4]),
                found(&[1, 2, 3], &[4], &[4], &[1, 2, 4]),
                vote(&[1, 2, 4]),
            ),
            (
                "and waits for the one that comes",
                state(&[1, 2, 4]),
                found(&[1, 2, 3], &[4], &[], &[1, 2, 4]),
                Step::Nothing,
            ),
            (
                "a dead one goes alone when nobody comes",
                state(&[1, 2]),
                found(&[1, 2, 3], &[], &[], &[1, 2]),
                vote(&[1, 2]),
            ),
            (
                "no change without a quorum of the new set",
                state(&[1, 2]),
                found(&[1, 2, 3], &[], &[], &[1]),
                Step::Nothing,
            ),
            (
                "the last one stays",
                state(&[]),
                found(&[1], &[], &[], &[1]),
                Step::Nothing,
            ),
        ];
        for (name, state, found, wanted) in rows {
            assert_eq!(plan(&state, &found), wanted, "{name}");
        }
    }

    #[test]
    fn even_numbers_of_managers_are_advised_against() {
        for (managers, warned) in [(1, false), (2, true), (3, false), (4, true), (5, false)] {
            assert_eq!(advice(managers).is_some(), warned, "{managers}");
        }
    }
}
