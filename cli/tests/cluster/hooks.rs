//! Commands around the life of a task: before its start, after it, and before its stop.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until};

/// A service with a volume and these hooks; what it runs is asked by signal, and ends at once.
fn deploy(bed: &Bed, hooks: &str, version: u8) -> Outcome {
    let file = bed.hosts.dir().join("stack.yaml");
    let text = format!(
        "services:\n  app:\n    image: web:v1\n    environment: [VERSION={version}, WHO=app]\n    volumes: [data:/data]\n    \
         stop_grace_period: 4s\n    deploy: {{placement: {{constraints: [node.hostname==h2]}}, restart_policy: {{delay: 200ms}}, \
         update_config: {{monitor: 0s, max_failure_ratio: 1}}}}\n{hooks}\nvolumes: {{data: {{}}}}\n"
    );
    fs::write(&file, text)?;
    bed.ok(1, &format!("stack deploy -d -c {} st", file.display()))?;
    Ok(())
}

fn app(bed: &Bed) -> Result<BTreeMap<String, u64>, Failed> {
    bed.containers(2, "st_app")
}

/// What a file of the volume has in it, as a task sees it.
fn file(bed: &Bed, name: &str) -> Result<String, Failed> {
    let all = app(bed)?;
    let container = all.keys().next().ok_or("nothing runs")?;
    Ok(bed
        .ok(2, &format!("exec {container} cat {name}"))?
        .trim()
        .to_owned())
}

fn runs_version(bed: &Bed, version: &str, began: &str) -> Outcome {
    until(&format!("version {version} runs"), PATIENCE, || {
        Ok(is(
            (
                bed.running(1, "st_app")?.len(),
                file(bed, began).unwrap_or_default(),
            ),
            (1, version.to_owned()),
        ))
    })?;
    Ok(())
}

/// Steps before a start run in order, as they are told, in the task's network and volumes; those after it in the task; those
/// before a stop while it still runs. A step before a start that fails costs the old version nothing, one after it fails
/// the task, one before a stop is noted; and what is removed meanwhile leaves nothing.
pub(crate) fn hooks_run_around_a_task(bed: &Bed) -> Outcome {
    let good = |version: u8| {
        format!(
            "    pre_start:\n      - {{command: [sh, -c, 'echo first $$WHO > /data/made; busybox ip -4 -o addr show eth0 | busybox wc \
             -l >> /data/made'], environment: {{WHO: step}}}}\n      - {{command: [sh, -c, 'echo second $$WHO $$(busybox id -u) >> \
             /data/made; test -e /data/made'], user: '0'}}\n    post_start:\n      - {{command: [sh, -c, 'echo {version} > \
             /began']}}\n    pre_stop:\n      - {{command: [sh, -c, 'echo {version} $$(busybox pidof httpd) > /data/bye']}}\n      - \
             {{command: [sh, -c, 'echo no; exit 7']}}"
        )
    };
    deploy(bed, &good(1), 1)?;
    runs_version(bed, "1", "/began")?;
    equal(
        "what the steps wrote",
        file(bed, "/data/made")?,
        "first step\n1\nsecond app 0".to_owned(),
    )?;
    let before = app(bed)?;

    // A migration that fails: the old version goes on, and the reason is shown.
    deploy(
        bed,
        "    pre_start: [{command: [sh, -c, 'echo the table is locked; exit 3']}]",
        2,
    )?;
    let mut shown = String::new();
    until("the new task is rejected again and again", PATIENCE, || {
        shown = bed.ok(1, "service ps --no-trunc st_app")?;
        Ok(is(shown.matches("Rejected").count() >= 2, true).map_err(|_| shown.clone()))
    })?;
    contains(&shown, "pre_start 1 (sh -c")?;
    contains(&shown, "exit code 3: the table is locked")?;
    equal("what runs after that", app(bed)?, before.clone())?;

    // The next version takes its place; before the old one was asked to stop its hooks ran, while it ran.
    deploy(bed, &good(3), 3)?;
    runs_version(bed, "3", "/began")?;
    let bye = file(bed, "/data/bye")?;
    equal("the version that said good bye", bye.split(' ').next(), Some("1"))?;
    equal("its process was there", bye.split(' ').count(), 2)?;
    until("the failed hook is noted", PATIENCE, || {
        let tasks = bed.tasks(1, "st_app")?;
        let old = tasks
            .iter()
            .find(|t| t.state == "Shutdown")
            .ok_or("no old task")?;
        let text = bed.ok(1, &format!("inspect {}", old.id))?;
        Ok(is(
            text.contains("finished; pre_stop: sh -c") && text.contains("exit code 7: no"),
            true,
        )
        .map_err(|_| text))
    })?;

    // A hook that hangs before a stop has the grace, less what the process needs; one that fails after a start fails the task.
    deploy(bed, "    pre_stop: [{command: [sleep, '1000']}]", 4)?;
    until("version 4 runs", PATIENCE, || {
        Ok(is(
            bed.running(1, "st_app")?.len() == 1 && app(bed)?.len() == 1 && app(bed)? != before,
            true,
        ))
    })?;
    deploy(
        bed,
        "    post_start: [{command: [sh, -c, 'echo not today; exit 9']}]",
        5,
    )?;
    until(
        "the task whose hook fails after its start fails",
        PATIENCE,
        || {
            shown = bed.ok(1, "service ps --no-trunc st_app")?;
            let failed = shown.lines().find(|l| l.contains("Failed"));
            Ok(is(failed.is_some_and(|l| l.contains("post_start: sh -c")), true).map_err(|_| shown.clone()))
        },
    )?;
    contains(&shown, "exit code 9: not today")?;

    // A step that hangs is seen; after the agent was killed it runs anew, once; and it ends with its service.
    deploy(bed, "    pre_start: [{command: [sleep, '1000']}]", 6)?;
    until("the step is shown", PATIENCE, || {
        shown = bed.ok(1, "service ps --no-trunc st_app")?;
        Ok(is(shown.contains("pre_start 1 of 1"), true).map_err(|_| shown.clone()))
    })?;
    let first = app(bed)?;
    equal("steps that run", first.len(), 1)?;
    bed.host(2).kill();
    bed.host(2).boot()?;
    bed.settled(1, 1)?;
    until("the step runs anew", PATIENCE, || {
        let now = app(bed)?;
        let anew = now.len() == 1 && now.values().ne(first.values());
        Ok(is(anew, true).map_err(|_| format!("{now:?}")))
    })?;
    bed.ok(1, "stack rm st")?;
    until("nothing is left", Duration::from_secs(15), || {
        Ok(is(app(bed)?.len(), 0))
    })?;
    Ok(())
}
