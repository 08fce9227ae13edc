//! What operators do with rollouts: look back, go back, pause, and let a few slots go first.

use std::time::Duration;

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until};

const WEB: &str = "service create -q --name web --network back --replicas 4 --update-monitor 0s --update-delay 0s --env V=1 web:v1";

/// Values of a variable of the running tasks' spec, by slot.
fn versions(bed: &Bed, number: u8) -> Result<Vec<String>, Failed> {
    let mut said = Vec::new();
    for task in bed.running(number, "web")? {
        let line = format!(
            "inspect --format '{{{{json .Spec.ContainerSpec.Env}}}}' {}",
            task.id
        );
        let shown = bed.ok(number, &line)?;
        said.push((task.name, shown.trim().trim_matches(['[', ']', '"']).to_owned()));
    }
    said.sort();
    Ok(said.into_iter().map(|(_, version)| version).collect())
}

/// Every spec is kept with who asked for it, can be compared and gone back to, and scaling is no part of it.
pub(crate) fn specs_are_kept(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay back")?;
    bed.ok(1, WEB)?;
    bed.ok(1, "service update -q --env-add V=2 web")?;
    bed.ok(1, "service scale web=2")?;
    // Asked of another manager: it still says whose socket it came by.
    bed.ok(2, "service update -q --env-add V=3 --limit-memory 64m web")?;
    let history = bed.ok(3, "service history web")?;
    let lines: Vec<&str> = history.lines().skip(1).collect();
    equal("revisions", lines.len(), 3)?;
    for (line, parts) in lines.iter().zip([
        &["1 ", "root@h1", "create"][..],
        &["2 ", "previous", "root@h1", "update", "V: 1 → 2"],
        &["3 ", "*", "root@h2", "update", "V: 2 → 3"],
    ]) {
        parts.iter().try_for_each(|part| contains(line, part))?;
    }
    let diff = bed.ok(1, "service diff web")?;
    for part in [
        "-",
        "--- revision 2",
        "+++ revision 3",
        "Env.V: 2",
        "Env.V: 3",
        "MemoryBytes: 64MiB",
    ] {
        contains(&diff, part)?;
    }
    let whole = bed.ok(1, "service diff web 1 3")?;
    contains(&whole, "- TaskTemplate.ContainerSpec.Env.V: 1")?;
    // The leader that follows knows all of it.
    let asked = bed.followers(3)?[0].number;
    let leader = bed.leader()?;
    leader.kill();
    bed.ok(asked, "service rollback -q --to 1 web")?;
    equal("versions", versions(bed, asked)?, vec!["V=1".to_owned(); 2])?;
    let history = bed.ok(asked, "service history web")?;
    contains(history.lines().last().unwrap_or_default(), "rollback to 1")?;
    bed.refused(asked, "service rollback --to 9 web", "no revision 9")?;
    bed.refused(asked, "service diff web 1 9", "no revision 9")?;
    Ok(())
}

/// Canaries are promoted or aborted, rollouts paused and resumed, and one that does not come up in time is given up.
pub(crate) fn rollouts_are_steered(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay back")?;
    bed.ok(1, &format!("{WEB} httpd -f -p 8080 -h /www"))?;
    let said = bed.ok(1, "service update --update-canary 1 --env-add V=2 web")?;
    contains(&said, "rswarm service promote web")?;
    equal(
        "versions",
        versions(bed, 1)?,
        ["V=2", "V=1", "V=1", "V=1"].map(str::to_owned).to_vec(),
    )?;
    bed.ok(1, "service abort -q web")?;
    equal("versions", versions(bed, 1)?, vec!["V=1".to_owned(); 4])?;
    bed.ok(1, "service update -q --env-add V=3 --update-canary 2 web")?;
    // Neither scaling nor labels go on with it (trap D4).
    bed.ok(1, "service scale -d web=5")?;
    bed.ok(1, "service update -d --label-add team=shop web")?;
    until("five run", PATIENCE, || {
        Ok(is(
            versions(bed, 1)?,
            ["V=3", "V=3", "V=1", "V=1", "V=1"].map(str::to_owned).to_vec(),
        ))
    })?;
    bed.ok(1, "service promote -q web")?;
    equal("versions", versions(bed, 1)?, vec!["V=3".to_owned(); 5])?;
    bed.refused(1, "service promote web", "there is none under way")?;

    bed.ok(
        1,
        "service update -d --update-canary 0 --update-delay 2s --env-add V=4 web",
    )?;
    until("it has begun", PATIENCE, || {
        Ok(is(versions(bed, 1)?.contains(&"V=4".to_owned()), true))
    })?;
    bed.ok(1, "service pause web")?;
    let stands = versions(bed, 1)?;
    std::thread::sleep(Duration::from_secs(5));
    equal("nothing goes on", versions(bed, 1)?, stands)?;
    bed.ok(1, "service resume -q web")?;
    equal("versions", versions(bed, 1)?, vec!["V=4".to_owned(); 5])?;

    // The rollout writes the service as well, and nobody's change is out of sequence for that (trap D20).
    bed.ok(1, "service update -d --update-delay 0s --env-add V=5 web")?;
    for label in 0..10 {
        bed.ok(1, &format!("service update -d --label-add n{label}=1 web"))?;
    }
    until("it is updated", PATIENCE, || {
        Ok(is(versions(bed, 1)?, vec!["V=5".to_owned(); 5]))
    })?;
    let labels = bed.ok(1, "service inspect --format '{{json .Spec.Labels}}' web")?;
    (0..10).try_for_each(|label| contains(&labels, &format!("n{label}")))?;

    // Nowhere is so much memory: Docker would wait for ever (trap D3).
    let run = bed.types(1, "service update --update-deadline 4s --reserve-memory 900g web")?;
    if run.code != Some(4) {
        return fail(format!("exit code {:?}: {}{}", run.code, run.out, run.err));
    }
    contains(&run.err, "did not run within 4s")?;
    contains(&run.err, "insufficient resources")?;
    equal("versions", versions(bed, 1)?, vec!["V=5".to_owned(); 5])?;
    let run = bed.types(
        1,
        "service update --update-failure-action rollback --update-deadline 4s --reserve-memory 901g web",
    )?;
    equal("exit code", run.code, Some(2))?;
    equal("versions", versions(bed, 1)?, vec!["V=5".to_owned(); 5])
}
