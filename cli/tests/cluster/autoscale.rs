//! The cluster chooses how many replicas there are, by what they use.

use std::time::{Duration, Instant};

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until, within};

/// Each task uses what it can get of a quarter of a CPU while its host has the file.
const BUSY: &str = "service create -q --name busy --replicas 2 --limit-cpu 0.25 --update-monitor 0s --stop-grace-period 0s \
--autoscale min=2,max=8,cpu=30,scale_down_after=20s --mount type=bind,source=/tmp,target=/shared web:v1 sh -c";

/// Load brings replicas within 30 s, its absence takes them away, a deploy changes nothing, and another leader goes on.
pub(crate) fn load_chooses_the_replicas(bed: &Bed) -> Outcome {
    let flag = bed.hosts.dir().join("burn");
    let name = flag
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let shared = bed.hosts.dir().to_string_lossy().into_owned();
    let line = BUSY.replace("source=/tmp", &format!("source={shared}"));
    std::fs::write(&flag, "")?;
    let began = Instant::now();
    bed.ok(
        1,
        &format!("{line} 'while :; do if test -e /shared/{name}; then :; else sleep 1; fi; done'"),
    )?;
    until("six run", PATIENCE, || {
        let running = bed.running(1, "busy")?.len();
        Ok(if running >= 6 {
            Ok(())
        } else {
            Err(format!("{running} run"))
        })
    })?;
    within(
        "from the first task to six",
        began.elapsed(),
        Duration::from_secs(45),
    )?;
    // Who asks for two again does not know better.
    bed.ok(1, "service update -d --label-add again=1 --replicas 2 busy")?;
    let shown = bed.ok(1, "service inspect --format '{{json .Scaled}}' busy")?;
    contains(&shown, "% of 30 % wanted")?;
    let replicas = "service inspect --format '{{.Spec.Mode.Replicated.Replicas}}' busy";
    equal("replicas", bed.ok(1, replicas)?.trim().parse::<u32>()? >= 6, true)?;
    bed.refused(1, "service scale busy=9", "between 2 and 8")?;
    let leader = bed.leader()?;
    let asked = bed.followers(3)?[0].number;
    leader.kill();
    std::fs::remove_file(&flag)?;
    let quiet = Instant::now();
    until("two run", PATIENCE * 2, || {
        Ok(is(bed.ok(asked, replicas)?.trim().to_owned(), "2".to_owned()))
    })?;
    within("from idle to two", quiet.elapsed(), Duration::from_secs(60))
}
