//! Everything is slow, busy or lossy at the same time, for as long as one likes: nobody is taken for dead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hosts::Host;

use crate::bed::{Bed, Outcome, contains, equal, fail, within};
use crate::failover::{SLEEPERS, position};

/// How long each of these lasts, unless `RSWARM_STRAIN_SECONDS` says so.
const LASTS: Duration = Duration::from_secs(20);
/// Of each slice a busy thread works so much and sleeps the rest: 80 %.
const SLICE: Duration = Duration::from_millis(50);
const WORK: Duration = Duration::from_millis(40);
/// A write where every sync takes half a second: its own, and one it finds under way.
const SLOW_WRITE: Duration = Duration::from_secs(2);
/// A write over links that lose every third packet.
const LOSSY_WRITE: Duration = Duration::from_secs(20);

/// How long a strain lasts; `RSWARM_STRAIN_SECONDS` says otherwise.
pub(crate) fn lasts() -> Duration {
    let asked = std::env::var("RSWARM_STRAIN_SECONDS").ok();
    asked
        .and_then(|text| text.parse().ok())
        .map_or(LASTS, Duration::from_secs)
}

fn logged(hosts: &[Host], what: &str) -> usize {
    hosts.iter().map(|h| h.whole_log().matches(what).count()).sum()
}

/// Writes again and again for as long as it lasts; answers how many were carried out, and how many refused as there was no
/// quorum or no leader at that moment.
fn keep_writing(bed: &Bed, limit: Duration) -> Result<(usize, usize), libtest_mimic::Failed> {
    let (began, mut slowest, mut carried, mut refused) = (Instant::now(), Duration::ZERO, 0, 0);
    while began.elapsed() < lasts() {
        let one = Instant::now();
        let number = u8::try_from((carried + refused) % 3).unwrap_or(0) + 1;
        let said = bed.types(number, &format!("node update --label-add n={carried} h4"))?;
        slowest = slowest.max(one.elapsed());
        if said.ok() {
            carried += 1;
        } else {
            // One of the two, and nothing else: which managers answer is asked over the same lines.
            contains(&said.all(), "E_NO_QUORUM").or_else(|_| contains(&said.all(), "E_NO_LEADER"))?;
            refused += 1;
        }
    }
    within("the slowest write", slowest, limit)?;
    Ok((carried, refused))
}

/// Both cores work four fifths of the time on something else: no node is Down, no task is touched, nobody else leads.
pub(crate) fn the_machine_is_busy(bed: &Bed) -> Outcome {
    bed.ok(1, SLEEPERS)?;
    let tasks = bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    let ended = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let looks = std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    while began.elapsed() < WORK {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(SLICE - WORK);
                }
            });
        }
        let began = Instant::now();
        let mut looks = Ok(0);
        while let (Ok(count), true) = (&looks, began.elapsed() < lasts()) {
            looks = bed.nodes(1).and_then(|nodes| {
                let ready = nodes.values().filter(|n| n.status == "Ready").count();
                equal("nodes that are Ready", ready, 5)?;
                Ok(count + 1)
            });
            std::thread::sleep(Duration::from_millis(500));
        }
        ended.store(true, Ordering::Relaxed);
        looks
    })?;
    println!("    {looks} looks in {:?} on a busy machine", lasts());
    equal("nodes that were down", logged(bed.hosts.all(), "node is down"), 0)?;
    let leaders = bed
        .hosts
        .all()
        .iter()
        .filter(|h| h.whole_log().contains("leading the cluster"));
    equal("leaders", leaders.count(), 1)?;
    equal("containers", bed.all_containers("web")?, before)?;
    equal("tasks", bed.tasks(1, "web")?, tasks)
}

/// Every sync of every manager's log takes half a second (M17): no election, and writes within two seconds.
pub(crate) fn every_disk_is_slow(bed: &Bed) -> Outcome {
    for host in bed.hosts.all().iter().take(3) {
        host.stop();
        host.boot_with(&[("FAILPOINTS", "raft.before_append_fsync=sleep(500)")])?;
        host.answers()?;
    }
    bed.settled(3, 1)?;
    let (term, _) = position(bed, 1)?;
    let (count, refused) = keep_writing(bed, SLOW_WRITE)?;
    equal("refused", refused, 0)?;
    let elections = position(bed, 1)?.0 - term;
    println!(
        "    {count} writes in {:?} on slow disks, {elections} elections",
        lasts()
    );
    equal("elections", elections, 0)?;
    equal("nodes that were down", logged(bed.hosts.all(), "node is down"), 0)
}

/// Managers lose 30 % of the packets between them (M18): few elections, no node Down, and writes go on. One may be told that
/// there is no quorum, when two managers in a row do not answer in time, or that there is no leader.
pub(crate) fn managers_hear_each_other_badly(bed: &Bed) -> Outcome {
    let managers: Vec<&Host> = bed.hosts.all().iter().take(3).collect();
    let (term, _) = position(bed, 1)?;
    bed.hosts.noise(&managers, 30)?;
    let (count, refused) = keep_writing(bed, LOSSY_WRITE)?;
    bed.hosts.heal()?;
    equal("more writes are carried out than refused", count > refused, true)?;
    bed.settled(3, 1)?;
    let elections = position(bed, 1)?.0 - term;
    println!(
        "    {count} writes in {:?} over bad links, {refused} refused, {elections} elections",
        lasts()
    );
    let most = 3 * (1 + lasts().as_secs() / 300);
    if elections > most {
        return fail(format!("{elections} elections, more than {most}"));
    }
    // Of 100 packets 30 are lost both ways: five in a row, which is a line that says nothing for 5 s, happens to somebody now and then.
    let down = logged(bed.hosts.all(), "node is down");
    let most_down = 1 + usize::try_from(lasts().as_secs() / 60).unwrap_or(usize::MAX);
    equal(
        &format!("{down} nodes were down, at most {most_down}"),
        down <= most_down,
        true,
    )
}
