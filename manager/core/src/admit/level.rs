//! Old and new builds in one cluster: what all of them know, and who knows too little.

use std::sync::Arc;

use model::object::{Node, TunnelKey};
use model::{Level, NodeId};

use super::{Refusal, RefusalKind};
use crate::state::State;

/// Nodes named in a refusal.
const NAMED_MAX: usize = 5;

/// The level a cluster is written at.
pub fn written(state: &State) -> Level {
    state.cluster().map(|c| c.level).unwrap_or_default()
}

/// Refuses a host whose build knows less than what the cluster writes at.
///
/// # Errors
/// [`RefusalKind::Denied`].
pub fn knows(written: Level, hostname: &str, level: Level) -> Result<(), Refusal> {
    if level >= written {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalKind::Denied,
        format!(
            "E_LEVEL: the cluster writes at level {written}, and the rswarm on {hostname} knows no more than level {level}: \
             install a newer one there. What runs on it goes on"
        ),
    ))
}

/// Refuses what a cluster below a level would get wrong: what hosts that know no more than that would do with it.
///
/// # Errors
/// [`Refusal`] that says how to go on.
pub(super) fn needs(state: &State, level: Level, what: &str, they_would: &str) -> Result<(), Refusal> {
    let written = written(state);
    if written >= level {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "E_LEVEL: {what}: the cluster writes at level {written}, and hosts that know no more than that would {they_would}: it needs \
         level {level}: run rswarm swarm update --level newest"
    )))
}

/// Whether a node's key for encrypted networks may be written: older builds would not see it, and two nodes have no key in common.
pub fn may_say_key(state: &State, node: NodeId, key: &TunnelKey) -> bool {
    let others = || state.nodes().filter(|n| n.id != node);
    written(state) >= Level::ENCRYPTED && !others().any(|n| n.description.tunnel_key.as_ref() == Some(key))
}

/// The highest level that every node's build knows.
pub fn known_by_all(state: &State) -> Level {
    let all = state.nodes().map(|n| n.description.level);
    all.min().unwrap_or_default()
}

/// Whether a cluster may go on at this level. There is no way back.
///
/// # Errors
/// [`Refusal`] when it is lower than what is written, or a node's build, also of one that is down, does not know it.
pub(super) fn may_become(state: &State, written: Level, wanted: Level) -> Result<(), Refusal> {
    if wanted < written {
        return Err(Refusal::invalid(format!(
            "E_LEVEL: the cluster writes at level {written} already, and there is no way back to {wanted}"
        )));
    }
    let lacks = |n: &&Arc<Node>| n.description.level < wanted;
    let behind = state.nodes().filter(lacks).count();
    if behind == 0 {
        return Ok(());
    }
    let named: Vec<String> = (state.nodes().filter(lacks).take(NAMED_MAX))
        .map(|n| format!("{} ({})", n.description.hostname, n.description.level))
        .collect();
    let more = match behind.saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Refusal::invalid(format!(
        "E_LEVEL: the rswarm on {}{more} does not know level {wanted}: install a newer one there, or remove the node",
        named.join(", ")
    )))
}

/// What operators should know of the level; nothing while there is nothing to do.
pub fn advice(state: &State) -> Option<String> {
    let (written, known) = (state.cluster()?.level, known_by_all(state));
    (known > written).then(|| {
        format!(
            "every node's rswarm knows level {known}, and the cluster still writes at level {written}: once nobody is to go \
             back to an older one, run rswarm swarm update --level newest"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::{ClusterChanges, update_cluster};
    use crate::orchestrate_tests::{Sim, node};
    use crate::txn::{Entry, Txn};
    use model::Timestamp;
    use model::object::Object;

    /// A cluster at a level, with nodes that know these.
    fn cluster(written: u32, known: &[u32]) -> State {
        let mut objects: Vec<Object> = Sim::new(0).state.objects().collect();
        for object in &mut objects {
            if let Object::Cluster(cluster) = object {
                Arc::make_mut(cluster).level = Level::new(written);
            }
        }
        objects.retain(|o| !matches!(o, Object::Node(_)));
        for (number, level) in (1u128..).zip(known) {
            let mut host = node(number, &format!("h{number}"));
            host.description.level = Level::new(*level);
            objects.push(Object::Node(host.into()));
        }
        State::from_objects(1, objects)
    }

    fn level_after(mut state: State, wanted: Option<u32>) -> Result<u32, String> {
        let changes = ClusterChanges {
            level: Some(wanted.map_or_else(|| known_by_all(&state), Level::new)),
            ..ClusterChanges::default()
        };
        let admitted = update_cluster(&state, None, &changes).map_err(|r| r.to_string())?;
        let entry = Entry {
            index: state.index() + 1,
            now: Timestamp(0),
            txn: Txn {
                expect: Vec::new(),
                ..admitted.txn
            },
        };
        state.apply(&entry).expect("nothing is expected");
        Ok(state.cluster().expect("a cluster").level.number())
    }

    #[test]
    fn a_level_is_raised_as_far_as_every_node_knows_and_never_lowered() {
        type Row<'a> = (u32, &'a [u32], Option<u32>, Result<u32, &'a str>);
        let rows: [Row<'_>; 7] = [
            (1, &[1, 1], None, Ok(1)),
            (1, &[2, 2], None, Ok(2)),
            (1, &[3, 2], None, Ok(2)),
            (1, &[3, 3], Some(2), Ok(2)),
            (1, &[2, 1], Some(2), Err("h2 (1) does not know level 2")),
            (2, &[3, 3], Some(1), Err("no way back to 1")),
            (
                1,
                &[1, 1, 1, 1, 1, 1, 1],
                Some(2),
                Err("h1 (1), h2 (1), h3 (1), h4 (1), h5 (1) and 2 more does not"),
            ),
        ];
        for (written, known, wanted, expected) in rows {
            let got = level_after(cluster(written, known), wanted);
            match (&got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(*got, expected, "{written} {known:?} {wanted:?}"),
                (Err(got), Err(part)) => assert!(got.contains(part), "{got}"),
                _ => panic!("{written} {known:?} {wanted:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_build_that_knows_too_little_is_refused_and_one_that_knows_more_is_not() {
        let state = cluster(2, &[2]);
        for (level, refused) in [(1, true), (2, false), (3, false)] {
            assert_eq!(
                knows(written(&state), "h9", Level::new(level)).is_err(),
                refused,
                "{level}"
            );
        }
        assert_eq!(advice(&state), None);
        assert!(advice(&cluster(1, &[2, 2])).is_some_and(|a| a.contains("--level newest")));
        assert_eq!(advice(&cluster(1, &[2, 1])), None, "one cannot");
    }
}
