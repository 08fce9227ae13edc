//! Docker Swarm's traps, and the test that shows each is none here: a list that cannot name a test that is not there.

use std::fs;
use std::path::Path;

/// The trap's number in the list of Swarm's defects, what it is, and where a test shows that it is not so here.
const TRAPS: &[(&str, &str, &str, &str)] = &[
    (
        "D1",
        "the old task is stopped before the new one's image is there",
        "manager/core/src/orchestrate_tests.rs",
        "fn a_missing_image_leaves_the_old_task_alone_and_pauses",
    ),
    (
        "D2",
        "the next slots do not wait for monitor",
        "manager/core/src/orchestrate_tests.rs",
        "fn the_monitor_gates_the_next_slot",
    ),
    (
        "D3",
        "a task that never runs is waited for for ever, and one bad node holds up a global update",
        "manager/core/src/rollout_tests.rs",
        "fn a_task_that_does_not_come_up_in_time_is_a_failure",
    ),
    (
        "D3",
        "the same, of a global service",
        "manager/core/src/rollout_tests.rs",
        "fn one_node_that_does_not_come_holds_up_no_global_rollout",
    ),
    (
        "D4",
        "scaling resumes a paused rollout",
        "tests/invariants/scaling_is_no_rollout.rs",
        "(D4)",
    ),
    (
        "D5",
        "scaling overwrites the spec to go back to, and going back undoes the scaling",
        "manager/core/src/rollout_tests.rs",
        "fn specs_are_kept_and_can_be_gone_back_to",
    ),
    (
        "D6",
        "an automatic rollback ends with 0",
        "cli/tests/cluster/rollouts.rs",
        "equal(\"exit code\", run.code, Some(2))",
    ),
    (
        "D8",
        "an updated image is not pinned",
        "manager/core/src/admit/pin.rs",
        "fn a_name_is_pinned_once_and_follows_its_tag_only_when_asked",
    ),
    (
        "D12",
        "a generic resource that is none is taken",
        "cli/tests/cluster/placement.rs",
        "bed.refused(",
    ),
    (
        "D13",
        "a constraint with an unknown key never holds",
        "manager/core/src/schedule/constraint.rs",
        "fn an_unknown_key_is_an_error_and_not_a_constraint_that_never_holds",
    ),
    (
        "D13",
        "an unknown spread is ignored",
        "manager/core/src/rollout_tests.rs",
        "fn what_docker_takes_without_a_word_is_refused",
    ),
    (
        "D14",
        "a failed rollback counts as a completed update",
        "manager/core/src/orchestrate_tests.rs",
        "fn a_failed_rollback_is_paused_not_completed",
    ),
    (
        "D15",
        "scaling a job runs all of it again",
        "manager/core/src/orchestrate/job_tests.rs",
        "fn a_job_runs_so_many_times_never_more_at_once_and_scaling_runs_only_what_is_more",
    ),
    (
        "D16",
        "with failure action continue failures are not counted",
        "manager/core/src/rollout_tests.rs",
        "(trap D16)",
    ),
    (
        "D17",
        "a network without addresses leaves tasks new, and says so in a log of a daemon",
        "cli/tests/cluster/network.rs",
        "fn a_network_is_used_up",
    ),
    (
        "D18",
        "a label that changes stops tasks at once",
        "manager/core/src/orchestrate/leave_tests.rs",
        "fn a_label_that_goes_takes_no_task_down",
    ),
    (
        "D20",
        "a rollout's own writes make users' updates out of sequence",
        "cli/tests/cluster/rollouts.rs",
        "(trap D20)",
    ),
];

#[test]
fn every_trap_has_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (trap, what, file, test) in TRAPS {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(
            text.contains(test),
            "{trap} ({what}): there is no \"{test}\" in {file}"
        );
    }
}
