//! A cluster, the whole way: the real binary on hosts that are network namespaces, and what happens to hosts.
//!
//! Needs root and busybox. Every scenario has hosts of its own, reads like an operator's report, and leaves nothing.

#[path = "cluster/autoscale.rs"]
mod autoscale;
#[path = "cluster/bed.rs"]
mod bed;
#[path = "cluster/crashes.rs"]
mod crashes;
#[path = "cluster/drain.rs"]
mod drain;
#[path = "cluster/dual.rs"]
mod dual;
#[path = "cluster/encrypted.rs"]
mod encrypted;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/health.rs"]
mod health;
#[path = "cluster/hooks.rs"]
mod hooks;
#[path = "cluster/jobs.rs"]
mod jobs;
#[path = "cluster/joining.rs"]
mod joining;
#[path = "cluster/keys.rs"]
mod keys;
#[path = "cluster/levels.rs"]
mod levels;
#[path = "cluster/losses.rs"]
mod losses;
#[path = "cluster/many.rs"]
mod many;
#[path = "cluster/members.rs"]
mod members;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/order.rs"]
mod order;
#[path = "cluster/placement.rs"]
mod placement;
#[path = "cluster/recovery.rs"]
mod recovery;
#[path = "cluster/rolling.rs"]
mod rolling;
#[path = "cluster/rollouts.rs"]
mod rollouts;
#[path = "cluster/strain.rs"]
mod strain;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use bed::{Bed, Outcome};
use libtest_mimic::{Arguments, Trial};

/// Scenarios at the same time: they wait for time-outs more than for the machine.
const TOGETHER: usize = 3;

/// What a scenario begins with.
#[derive(Clone, Copy)]
enum Start {
    /// So many hosts in no cluster.
    Hosts(u8),
    /// A cluster of so many managers and workers.
    Cluster(u8, u8),
    /// A cluster of as many nodes as were asked for.
    Many,
}

type Scenario = fn(&Bed) -> Outcome;

const ALL: &[(&str, Start, Scenario)] = &[
    (
        "writes go on while leaders die",
        Start::Cluster(3, 2),
        failover::writes_while_leaders_die,
    ),
    (
        "a daemon dies anywhere while it gets tasks",
        Start::Cluster(1, 1),
        crashes::an_agent_dies_anywhere,
    ),
    (
        "a manager dies anywhere while it gives tasks",
        Start::Cluster(1, 1),
        crashes::a_manager_dies_anywhere,
    ),
    (
        "a daemon dies anywhere while a cluster forms",
        Start::Hosts(2),
        crashes::a_cluster_forms_although_a_daemon_dies,
    ),
    (
        "managers are promoted and demoted",
        Start::Cluster(3, 2),
        members::promote_and_demote,
    ),
    (
        "five hosts join by the printed line, and leave",
        Start::Hosts(5),
        joining::five_hosts_join_by_the_printed_line,
    ),
    (
        "tokens let in whom they should",
        Start::Hosts(3),
        joining::tokens_let_in_whom_they_should,
    ),
    (
        "the leader is killed",
        Start::Cluster(3, 2),
        failover::leader_killed,
    ),
    (
        "a worker is lost right after the leader",
        Start::Cluster(3, 2),
        failover::worker_lost_after_the_leader,
    ),
    (
        "the leader's host and a worker are lost together",
        Start::Cluster(3, 2),
        failover::leader_and_worker_lost_together,
    ),
    (
        "the leader is cut off",
        Start::Cluster(3, 2),
        failover::leader_cut_off,
    ),
    (
        "a follower is cut off, and links are lost one way",
        Start::Cluster(3, 0),
        failover::follower_cut_off,
    ),
    (
        "the leader's disk is slow",
        Start::Hosts(3),
        failover::disk_of_the_leader_is_slow,
    ),
    (
        "paused managers answer nothing stale",
        Start::Cluster(3, 0),
        failover::paused_managers_answer_nothing_stale,
    ),
    (
        "a worker is lost and comes back",
        Start::Cluster(1, 2),
        losses::worker_lost,
    ),
    (
        "short losses are no losses",
        Start::Cluster(1, 1),
        losses::short_losses_are_no_losses,
    ),
    ("a node is removed", Start::Cluster(1, 2), losses::node_removed),
    (
        "every daemon restarts at once",
        Start::Cluster(3, 2),
        losses::every_daemon_restarts,
    ),
    (
        "with no manager at all, what runs goes on",
        Start::Cluster(2, 1),
        losses::no_manager_at_all,
    ),
    (
        "a leader that was never heard of is followed",
        Start::Cluster(3, 2),
        members::unknown_leader_is_followed,
    ),
    (
        "one of two managers is lost",
        Start::Cluster(2, 1),
        members::one_of_two_managers_lost,
    ),
    (
        "a wiped manager joins again",
        Start::Cluster(3, 0),
        members::wiped_manager_joins_again,
    ),
    (
        "locked managers wait for their key",
        Start::Cluster(3, 0),
        keys::autolock,
    ),
    (
        "the authority is replaced",
        Start::Cluster(3, 2),
        keys::authority_rotated,
    ),
    (
        "certificates of many nodes are replaced under writes",
        Start::Many,
        many::certificates_of_many,
    ),
    (
        "members change while lines fail",
        Start::Cluster(3, 2),
        many::members_change_while_lines_fail,
    ),
    (
        "a host is away while all changes",
        Start::Cluster(1, 3),
        many::away_while_all_changes,
    ),
    (
        "old and new builds are in one cluster",
        Start::Hosts(4),
        levels::old_and_new_builds,
    ),
    (
        "tasks meet over hosts by name and by port",
        Start::Cluster(1, 2),
        network::tasks_meet_over_hosts,
    ),
    (
        "a network has IPv4 and IPv6 over three hosts",
        Start::Cluster(1, 2),
        dual::both_families_over_hosts,
    ),
    (
        "a network is used up, and grows",
        Start::Cluster(1, 1),
        network::a_network_is_used_up,
    ),
    (
        "tasks churn while packets are lost",
        Start::Cluster(1, 2),
        network::tasks_churn_under_loss,
    ),
    (
        "tasks are told of their clients in the connection",
        Start::Cluster(1, 1),
        network::tasks_are_told_of_their_clients,
    ),
    (
        "specs of a service are kept and gone back to",
        Start::Cluster(3, 0),
        rollouts::specs_are_kept,
    ),
    (
        "rollouts are steered",
        Start::Cluster(1, 1),
        rollouts::rollouts_are_steered,
    ),
    (
        "load chooses the replicas",
        Start::Cluster(3, 0),
        autoscale::load_chooses_the_replicas,
    ),
    (
        "nodes are chosen by what they are, and say why not",
        Start::Cluster(1, 1),
        network::nodes_are_chosen_and_say_why_not,
    ),
    (
        "busy hosts are spared",
        Start::Cluster(1, 2),
        placement::busy_hosts_are_spared,
    ),
    (
        "resources are given out, and taken back for who is of a higher priority",
        Start::Cluster(1, 2),
        placement::resources_are_given_out_and_taken_back,
    ),
    (
        "tasks leave nodes unnoticed",
        Start::Cluster(1, 2),
        drain::tasks_leave_unnoticed,
    ),
    (
        "what fits nowhere else waits for a deadline",
        Start::Cluster(1, 2),
        drain::what_fits_nowhere_else_waits,
    ),
    (
        "packets of networks are lost, and nothing else",
        Start::Cluster(3, 0),
        network::packets_of_networks_are_lost,
    ),
    (
        "nobody listens to an encrypted network",
        Start::Cluster(1, 2),
        encrypted::nobody_listens,
    ),
    (
        "no request is lost while tasks come and go",
        Start::Cluster(1, 2),
        rolling::no_request_is_lost,
    ),
    (
        "readiness comes and goes",
        Start::Cluster(1, 2),
        health::readiness_comes_and_goes,
    ),
    (
        "health is apart from readiness",
        Start::Cluster(1, 2),
        health::health_is_apart,
    ),
    (
        "what is never ready stops nothing",
        Start::Cluster(1, 2),
        health::never_ready_stops_nothing,
    ),
    (
        "hooks run around a task",
        Start::Cluster(1, 1),
        hooks::hooks_run_around_a_task,
    ),
    (
        "services start, change and go in order",
        Start::Cluster(1, 1),
        order::services_start_change_and_go_in_order,
    ),
    (
        "jobs run to their end",
        Start::Cluster(1, 1),
        jobs::jobs_run_to_their_end,
    ),
    (
        "a schedule outlives its leader",
        Start::Cluster(3, 0),
        jobs::a_schedule_outlives_its_leader,
    ),
    (
        "one container is run",
        Start::Cluster(1, 1),
        jobs::one_container_is_run,
    ),
    (
        "the machine is busy",
        Start::Cluster(3, 2),
        strain::the_machine_is_busy,
    ),
    (
        "every manager's disk is slow",
        Start::Cluster(3, 1),
        strain::every_disk_is_slow,
    ),
    (
        "managers hear each other badly",
        Start::Cluster(3, 1),
        strain::managers_hear_each_other_badly,
    ),
    (
        "a backup is the cluster again",
        Start::Cluster(1, 1),
        recovery::backup_and_restore,
    ),
    (
        "one manager of three goes on alone when told to",
        Start::Cluster(3, 1),
        recovery::forced_new_cluster,
    ),
    (
        "without a manager a host restarts what failed",
        Start::Cluster(1, 1),
        recovery::restarted_without_a_manager,
    ),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads = args.test_threads.or(Some(TOGETHER));
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: the tests of a cluster need root and /bin/busybox (Debian: busybox-static)");
        return ExitCode::SUCCESS;
    }
    let trials = ALL.iter().map(|(name, start, scenario)| {
        Trial::test(*name, move || {
            let began = Instant::now();
            let (hosts, cluster) = match *start {
                Start::Hosts(count) => (count, None),
                Start::Cluster(managers, workers) => (managers + workers, Some((managers, workers))),
                Start::Many => (3 + many::workers(), Some((3, many::workers()))),
            };
            let bed = Bed::hosts(hosts)?;
            let formed = cluster.map_or(Ok(()), |(managers, workers)| bed.form(managers, workers));
            let outcome = formed.and_then(|()| scenario(&bed));
            if outcome.is_err() {
                eprintln!("{}", bed.logs());
            }
            println!("    {:.1} s: {name}", began.elapsed().as_secs_f64());
            let ended = bed.end();
            outcome.and(ended)
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}
