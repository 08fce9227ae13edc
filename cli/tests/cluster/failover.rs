//! The leader is lost, cut off or paused: the others go on, and nothing is said that is not so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hosts::Host;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until, within};

/// Until a write is accepted after the leader was lost. The promise is 3 s on a quiet machine (SPEC.md); tests share one.
const FAILOVER: Duration = Duration::from_secs(5);
/// Until it is said that there is no quorum.
const NO_QUORUM: Duration = Duration::from_secs(3);
/// Until another leads whose disk is not slow.
const SLOW_DISK: Duration = Duration::from_secs(10);
/// A write beside a manager that is slow.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// Until the host of a leader is: an election, which takes a second more where its first votes are split (one in eight or so), and two
/// periods.
const LEADER_DOWN: Duration = Duration::from_secs(7);
/// Until the tasks of a lost worker run elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(8);
pub(crate) const SLEEPERS: &str = "service create -q --name web --replicas 5 web:v1 sleep 1000000";

/// Term and index of a manager's log, and whether it leads.
pub(crate) fn position(bed: &Bed, number: u8) -> Result<(u64, u64), libtest_mimic::Failed> {
    let text = bed.ok(number, "info --format '{{.RaftTerm}} {{.RaftIndex}}'")?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(term)), Some(Ok(index))) => Ok((term, index)),
        _ => fail(format!("no term and index: {text}")),
    }
}

/// Waits until the managers' logs are the same.
fn one_history(bed: &Bed, managers: u8) -> Outcome {
    until("the managers agree", PATIENCE, || {
        let mut seen = BTreeSet::new();
        for number in 1..=managers {
            seen.insert((
                position(bed, number)?,
                bed.ok(number, "network ls --format {{.Name}}")?,
            ));
        }
        Ok(if seen.len() == 1 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        })
    })?;
    Ok(())
}

/// The leader is killed: the next write through another manager succeeds, and no task is restarted.
pub(crate) fn leader_killed(bed: &Bed) -> Outcome {
    bed.ok(1, SLEEPERS)?;
    bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    let (leader, other) = (bed.leader()?, bed.followers(3)?[0]);
    leader.kill();
    let began = Instant::now();
    bed.ok(other.number, "network create after")?;
    within("leader killed: the next write took", began.elapsed(), FAILOVER)?;
    leader.start()?;
    bed.settled(3, 2)?;
    one_history(bed, 3)?;
    equal("containers", bed.all_containers("web")?, before)?;
    equal("tasks", bed.tasks(1, "web")?.len(), 5)
}

/// The leader is killed, and a worker is cut off half a second after the next one leads: it is found as soon as any other,
/// as it has registered again by then.
pub(crate) fn worker_lost_after_the_leader(bed: &Bed) -> Outcome {
    bed.ok(1, SLEEPERS)?;
    bed.runs(1, "web", 5)?;
    let (leader, asked, lost) = (bed.leader()?, bed.followers(3)?[0].number, bed.host(5));
    leader.kill();
    bed.ok(asked, "network create after")?;
    leader.start()?;
    std::thread::sleep(Duration::from_millis(500));
    bed.hosts.isolate(&[lost])?;
    let began = Instant::now();
    until("five tasks run elsewhere", PATIENCE, || {
        let tasks = bed.running(asked, "web")?;
        Ok(is(tasks.iter().filter(|t| t.node != lost.name).count(), 5))
    })?;
    within(
        "worker lost after the leader: its task ran elsewhere after",
        began.elapsed(),
        ELSEWHERE,
    )?;
    bed.hosts.heal()?;
    bed.settled(3, 2)
}

/// The leader's host and a worker are lost together: the next leader gives the worker nothing although it still counts as
/// Ready, and the tasks of the leader's host run elsewhere as soon as those of any other.
pub(crate) fn leader_and_worker_lost_together(bed: &Bed) -> Outcome {
    bed.ok(1, SLEEPERS)?;
    bed.runs(1, "web", 5)?;
    let (leader, asked, lost) = (bed.leader()?, bed.followers(3)?[0].number, bed.host(5));
    // No word comes from either, as when the power is gone.
    bed.hosts.isolate(&[leader, lost])?;
    leader.kill();
    let began = Instant::now();
    bed.ok(asked, "service scale -d web=11")?;
    let gone = [leader.name.as_str(), lost.name.as_str()];
    until("nine tasks run where they can", PATIENCE, || {
        let tasks = bed.running(asked, "web")?;
        Ok(is(
            tasks.iter().filter(|t| !gone.contains(&t.node.as_str())).count(),
            9,
        ))
    })?;
    within(
        "leader and worker lost: six more tasks ran after",
        began.elapsed(),
        FAILOVER,
    )?;
    let given = (bed.tasks(asked, "web")?.iter())
        .filter(|t| gone.contains(&t.node.as_str()))
        .count();
    equal("tasks of the lost hosts", given, 2)?;
    until("the leader's host is Down", PATIENCE, || {
        Ok(is(bed.nodes(asked)?[&leader.name].status.as_str(), "Down"))
    })?;
    within("the leader's host was Down after", began.elapsed(), LEADER_DOWN)?;
    until("its task runs elsewhere", PATIENCE, || {
        let tasks = bed.running(asked, "web")?;
        let elsewhere = tasks.iter().filter(|t| !gone.contains(&t.node.as_str()));
        Ok(is(elsewhere.count() >= 10, true))
    })?;
    within("and its task ran elsewhere after", began.elapsed(), ELSEWHERE)?;
    bed.hosts.heal()?;
    leader.start()?;
    bed.settled(3, 2)
}

/// The leader is cut off from everybody: the majority goes on, the minority says so, and afterwards there is one history.
pub(crate) fn leader_cut_off(bed: &Bed) -> Outcome {
    // Its host is away for longer than one may be with heartbeats of 1.5 s, and its task is to stay.
    bed.ok(1, "swarm update --dispatcher-heartbeat 6s")?;
    bed.ok(1, SLEEPERS)?;
    bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    let (leader, other) = (bed.leader()?, bed.followers(3)?[0]);
    bed.hosts.isolate(&[leader])?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let minority = scope.spawn(|| {
            let said = bed.refused(leader.number, "network create minority", "E_NO_QUORUM")?;
            within("leader cut off: it refused a write after", said.took, NO_QUORUM)?;
            let said = bed.refused(leader.number, "service ls", "E_NO_QUORUM")?;
            within("and a read after", said.took, NO_QUORUM)
        });
        bed.ok(other.number, "network create majority")?;
        within("leader cut off: the next write took", began.elapsed(), FAILOVER)?;
        minority
            .join()
            .unwrap_or_else(|_| fail("the minority's operator panicked"))
    })?;
    bed.hosts.heal()?;
    let healed = Instant::now();
    bed.settled(3, 2)?;
    within("healed: all managers agreed after", healed.elapsed(), PATIENCE)?;
    one_history(bed, 3)?;
    let networks = bed.ok(leader.number, "network ls --format {{.Name}}")?;
    contains(&networks, "majority")?;
    equal("a write that was refused", networks.contains("minority"), false)?;
    equal("containers", bed.all_containers("web")?, before)
}

/// A follower that was cut off comes back and forces no election; one-way losses end in a cluster that works.
pub(crate) fn follower_cut_off(bed: &Bed) -> Outcome {
    let (leader, followers) = (bed.leader()?, bed.followers(3)?);
    let (one, two) = (followers[0], followers[1]);
    let (term, _) = position(bed, leader.number)?;
    bed.hosts.isolate(&[one])?;
    bed.refused(one.number, "network create nowhere", "E_NO_QUORUM")?;
    for round in 0..20 {
        bed.ok(two.number, &format!("network create n{round}"))?;
    }
    bed.hosts.heal()?;
    one_history(bed, 3)?;
    equal(
        "term after a follower came back",
        position(bed, leader.number)?.0,
        term,
    )?;
    equal("the leader", bed.leader()?.number, leader.number)?;
    // The leader hears one follower no more, which hears it: whoever leads then, writes go on.
    bed.hosts.lose(one, leader, true)?;
    for round in 20..25 {
        bed.ok(two.number, &format!("network create n{round}"))?;
    }
    bed.hosts.heal()?;
    // Nor does a follower the leader, while both hear the third.
    let leader = bed.leader()?;
    let one = bed.followers(3)?[0];
    bed.hosts.cut(&[leader], &[one])?;
    for round in 25..30 {
        bed.ok(two.number, &format!("network create n{round}"))?;
    }
    bed.hosts.heal()?;
    one_history(bed, 3)?;
    let (last, _) = position(bed, 1)?;
    println!("    elections under one-way and partial cuts: {}", last - term);
    equal("elections are few", last - term <= 4, true)?;
    equal(
        "networks",
        bed.ok(1, "network ls -q")?.lines().count() >= 30,
        true,
    )
}

/// Managers are paused and wake up: they answer nothing that is no longer so.
pub(crate) fn paused_managers_answer_nothing_stale(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q -d --name a --replicas 1 --constraint node.labels.no==where web:v1",
    )?;
    let replicas = |number: u8| {
        bed.ok(
            number,
            "service inspect a --format {{.Spec.Mode.Replicated.Replicas}}",
        )
    };
    let leader = bed.leader()?;
    let others: Vec<&Host> = bed.followers(3)?;
    leader.pause();
    let began = Instant::now();
    bed.ok(others[0].number, "service scale -d a=7")?;
    within(
        "leader paused: the next write took",
        began.elapsed(),
        FAILOVER * 2,
    )?;
    // Asked while it sleeps, it answers when it is awake: with what is so by then.
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| replicas(leader.number));
        until("the others agree on a leader", PATIENCE, || {
            let found = bed.leader_by(others[0].number)?;
            Ok(if found.is_some_and(|l| l.number != leader.number) {
                Ok(())
            } else {
                Err("none".into())
            })
        })?;
        leader.resume();
        asked.join().unwrap_or_else(|_| fail("the operator panicked"))
    })?;
    equal("replicas, read where it slept", asked.trim(), "7")?;
    bed.settled(3, 0)?;
    // Two of three sleep: nothing is acknowledged, and nothing of it turns up later under the same name.
    let (leader, one) = (bed.leader()?, bed.followers(3)?[0]);
    let awake = bed.followers(3)?[1];
    leader.pause();
    one.pause();
    let said = bed.refused(awake.number, "service scale -d a=3", "E_NO_QUORUM")?;
    within("two of three paused: refused after", said.took, NO_QUORUM)?;
    bed.refused(awake.number, "service ls", "E_NO_QUORUM")?;
    leader.resume();
    one.resume();
    bed.settled(3, 0)?;
    one_history(bed, 3)?;
    bed.ok(awake.number, "service scale -d a=5")?;
    for number in 1..=3 {
        equal("replicas", replicas(number)?.trim(), "5")?;
    }
    Ok(())
}

/// Leaders that are killed, unless `RSWARM_KILLS` says how many; writes for each of them, and how many operators send them.
const KILLS: usize = 5;
const WRITES_A_KILL: usize = 100;
const OPERATORS: usize = 4;

fn kills_wanted() -> usize {
    let asked = std::env::var("RSWARM_KILLS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

/// Writes through random managers while leaders are killed one after another: none fails, the last one counts, and no task
/// is touched.
pub(crate) fn writes_while_leaders_die(bed: &Bed) -> Outcome {
    let kills_wanted = kills_wanted();
    bed.ok(1, SLEEPERS)?;
    let tasks = bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    for operator in 0..OPERATORS {
        let name = format!("s{operator}");
        // Nothing is to run: this is about what is written.
        bed.ok(
            1,
            &format!(
                "service create -q -d --name {name} --replicas 0 --constraint node.labels.no==where web:v1"
            ),
        )?;
    }
    let (done, cut, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let last = std::thread::scope(|scope| {
        let operators: Vec<_> = (0..OPERATORS)
            .map(|operator| {
                let (done, cut) = (&done, &cut);
                let count = kills_wanted * WRITES_A_KILL / OPERATORS;
                scope.spawn(move || writes(bed, operator, count, done, cut))
            })
            .collect();
        let killer = scope.spawn(|| kills(bed, kills_wanted, &done, &ended));
        let last: Result<Vec<usize>, _> = (operators.into_iter())
            .map(|o| o.join().unwrap_or_else(|_| fail("an operator panicked")))
            .collect();
        ended.store(true, Ordering::SeqCst);
        killer.join().unwrap_or_else(|_| fail("the killer panicked"))?;
        last
    })?;
    println!(
        "    {} writes in {:.1} s over {kills_wanted} kills of leaders; {} were cut off with their own daemon and sent again",
        done.load(Ordering::SeqCst),
        began.elapsed().as_secs_f64(),
        cut.load(Ordering::SeqCst)
    );
    bed.settled(3, 2)?;
    for (operator, wanted) in last.iter().enumerate() {
        for number in 1..=3 {
            let line = format!("service inspect s{operator} --format {{{{.Spec.Mode.Replicated.Replicas}}}}");
            equal(
                "replicas in the end",
                bed.ok(number, &line)?.trim(),
                &wanted.to_string(),
            )?;
        }
    }
    equal("containers", bed.all_containers("web")?, before)?;
    equal("tasks", bed.tasks(1, "web")?, tasks)
}

/// One operator's share: each write through some manager whose daemon runs. Only one whose own daemon is killed under it
/// may fail, and is sent again elsewhere.
fn writes(
    bed: &Bed,
    operator: usize,
    count: usize,
    done: &AtomicUsize,
    cut: &AtomicUsize,
) -> Result<usize, libtest_mimic::Failed> {
    let mut replicas = 0;
    for round in 0..count {
        // Spread without chance, so that a failure can be repeated.
        replicas = (round * 7 + operator * 3) % 10;
        let mut turn = round * 5 + operator;
        loop {
            turn += 1;
            let host = &bed.hosts.all()[turn % 3];
            let Some(pid) = host.pid().filter(|_| host.is_up()) else {
                continue;
            };
            let said = bed.types(host.number, &format!("service scale -d s{operator}={replicas}"))?;
            if said.ok() {
                break;
            }
            // A daemon that was just started does not listen yet.
            let listens = !said.all().contains("no rswarm daemon answers");
            if listens && host.pid() == Some(pid) && host.is_up() {
                return fail(format!(
                    "on {}, scale s{operator}={replicas}: {}",
                    host.name,
                    said.all()
                ));
            }
            cut.fetch_add(1, Ordering::SeqCst);
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    Ok(replicas)
}

/// Kills the leader each time another share of the writes is done, and starts it again.
fn kills(bed: &Bed, wanted: usize, done: &AtomicUsize, ended: &AtomicBool) -> Outcome {
    for kill in 1..=wanted {
        until("some more writes are done", PATIENCE, || {
            let so_far = done.load(Ordering::SeqCst);
            let enough =
                so_far >= kill * WRITES_A_KILL * wanted / (wanted + 1) || ended.load(Ordering::SeqCst);
            Ok(if enough { Ok(()) } else { Err(format!("{so_far}")) })
        })?;
        let leader = bed.leader()?;
        leader.kill();
        until("another one leads", PATIENCE, || {
            let other = bed.up()?.number;
            let found = bed.leader_by(other)?;
            Ok(is(found.is_some_and(|l| l.number != leader.number), true))
        })?;
        leader.start()?;
        bed.settled(3, 2)?;
    }
    Ok(())
}

/// The leader's disk becomes so slow that a sync takes six seconds (M16): another one leads soon, once, and a manager
/// with such a disk that follows makes nobody wait.
pub(crate) fn disk_of_the_leader_is_slow(bed: &Bed) -> Outcome {
    let slow = bed.host(1);
    slow.stop();
    // Fast for as long as the cluster needs to form.
    slow.boot_with(&[("FAILPOINTS", "raft.before_append_fsync=150*off->sleep(6000)")])?;
    slow.answers()?;
    bed.ok(1, "swarm init")?;
    let token = bed.ok(1, "swarm join-token -q manager")?;
    for number in [2, 3] {
        bed.join(number, token.trim())?;
    }
    bed.settled(3, 0)?;
    let mut slowest = Duration::ZERO;
    let mut moved = false;
    for n in 0..400 {
        let began = Instant::now();
        bed.ok(2, &format!("network create n{n}"))?;
        slowest = slowest.max(began.elapsed());
        moved = bed
            .leader_by(2)?
            .is_some_and(|leader| leader.number != slow.number);
        if moved {
            break;
        }
    }
    equal("another manager leads", moved, true)?;
    within("slow disk of the leader: the slowest write", slowest, SLOW_DISK)?;
    let (term, _) = position(bed, 2)?;
    let mut slowest = Duration::ZERO;
    for n in 0..40 {
        let began = Instant::now();
        bed.ok(3, &format!("network create after{n}"))?;
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(Duration::from_millis(250));
    }
    within("slow disk of a follower: the slowest write", slowest, UNDISTURBED)?;
    equal("terms since", position(bed, 2)?.0, term)
}
