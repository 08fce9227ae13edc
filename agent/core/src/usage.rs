//! Two counts of what tasks used → what they use.

use std::collections::BTreeMap;

use model::object::NodeUse;
use model::{Bytes, NanoCpus, TaskId, Timestamp};

/// What a task used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory now, in bytes.
    pub memory: u64,
}

/// Nano-CPUs and bytes of each task that was counted before, too. Times are of the clock since the host's start.
pub fn used(
    before: &BTreeMap<TaskId, (Timestamp, Counted)>,
    counted: &BTreeMap<TaskId, Counted>,
    now: Timestamp,
) -> Vec<(TaskId, u64, u64)> {
    let of = |(task, counted): (&TaskId, &Counted)| {
        let (at, earlier) = before.get(task)?;
        let passed = now.since(*at).as_nanos();
        // A container that was begun anew counts from zero.
        let used = u128::from(counted.cpu_ns.checked_sub(earlier.cpu_ns)?);
        let share = (used * 1_000_000_000).checked_div(passed)?;
        Some((*task, u64::try_from(share).unwrap_or(u64::MAX), counted.memory))
    };
    counted.iter().filter_map(of).collect()
}

/// What all of them use together of a host that has so much.
pub fn together(each: &[(TaskId, u64, u64)], cpus: NanoCpus, memory: Bytes) -> NodeUse {
    let share = |used: u64, all: u64| {
        let share = (u128::from(used) * 1_000).checked_div(all.into()).unwrap_or(0);
        u16::try_from(share).unwrap_or(u16::MAX)
    };
    let sum = |of: fn(&(TaskId, u64, u64)) -> u64| each.iter().map(of).fold(0, u64::saturating_add);
    NodeUse {
        cpu: share(sum(|t| t.1), cpus.0),
        memory: share(sum(|t| t.2), memory.0),
    }
    .within_bounds()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tasks_use_is_a_share_of_their_host() {
        let (cpus, memory) = (NanoCpus(2_000_000_000), Bytes(1 << 30));
        let task = |cpu, memory| (TaskId(1), cpu, memory);
        for (each, cpu, memory_used) in [
            (vec![], 0, 0),
            (
                vec![task(500_000_000, 1 << 28), task(500_000_000, 1 << 28)],
                500,
                500,
            ),
            (vec![task(u64::MAX, 1), task(5, 0)], 1_000, 0),
        ] {
            let expected = NodeUse {
                cpu,
                memory: memory_used,
            };
            assert_eq!(together(&each, cpus, memory), expected, "{each:?}");
        }
        assert_eq!(together(&[task(1, 1)], NanoCpus(0), Bytes(0)), NodeUse::default());
    }

    #[test]
    fn what_is_used_is_what_was_added_over_the_time_that_passed() {
        let counted = |cpu_ns| Counted { cpu_ns, memory: 7 };
        let (early, late) = (Timestamp(1_000), Timestamp(6_000));
        let before = [(TaskId(1), (early, counted(4))), (TaskId(2), (early, counted(9)))].into();
        let after = [
            (TaskId(1), counted(2_500_000_004)),
            (TaskId(2), counted(3)),
            (TaskId(3), counted(5)),
        ];
        let after = after.into();
        assert_eq!(
            used(&before, &after, late),
            [(TaskId(1), 500_000_000, 7)],
            "half a CPU; one begun anew, and one that is new, say nothing yet"
        );
        assert!(used(&before, &after, early).is_empty(), "no time has passed");
    }
}
