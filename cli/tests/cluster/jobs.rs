//! Jobs: tasks that end, as often and as many at a time as was asked, whoever leads.

use std::collections::BTreeSet;
use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until};

/// How many runs of a schedule are looked at, about half of them after the leader was killed.
const RUNS: u64 = 8;

fn replicas(bed: &Bed, number: u8, service: &str) -> Result<String, Failed> {
    let line = format!("service ls -f name={service} --format '{{{{.Mode}}}} {{{{.Replicas}}}}'");
    Ok(bed.ok(number, &line)?.trim().to_owned())
}

/// Waits until a job completed; answers the most of its containers that were there at a time.
fn completes(bed: &Bed, service: &str, shown: &str) -> Result<usize, Failed> {
    let mut most = 0;
    until(&format!("{service} is complete"), PATIENCE, || {
        most = most.max(bed.all_containers(service)?.len());
        Ok(is(replicas(bed, 1, service)?.as_str(), shown))
    })?;
    Ok(most)
}

/// Twenty tasks, three at a time; five more when it is scaled up, and nothing for a label; exit codes say how it ended.
pub(crate) fn jobs_run_to_their_end(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -d --name batch --mode replicated-job --replicas 20 --max-concurrent 3 web:v1 sh -c 'sleep 0.5; echo done'",
    )?;
    let most = completes(bed, "batch", "replicated job 0/3 (20/20 completed)")?;
    println!("    containers at a time: {most}");
    equal(
        "never more than three, and more than one",
        (2..=3).contains(&most),
        true,
    )?;
    let first: BTreeSet<String> = bed.tasks(1, "batch")?.into_iter().map(|t| t.id).collect();
    equal("tasks", first.len(), 20)?;
    equal(
        "waiting for more ends with",
        bed.types(1, "service scale batch=25")?.code,
        Some(0),
    )?;
    let tasks = bed.tasks(1, "batch")?;
    equal(
        "all are complete",
        tasks.iter().filter(|t| t.state == "Complete").count(),
        25,
    )?;
    equal(
        "five are new",
        tasks.iter().filter(|t| !first.contains(&t.id)).count(),
        5,
    )?;
    bed.ok(1, "service update -q --label-add a=b batch")?;
    equal("a label runs nothing", bed.tasks(1, "batch")?.len(), 25)?;
    bed.ok(1, "service update -q --force batch")?;
    equal(
        "all once more",
        replicas(bed, 1, "batch")?.as_str(),
        "replicated job 0/3 (25/25 completed)",
    )?;
    bed.ok(1, "service run -q batch")?;
    contains(&bed.ok(1, "service runs batch")?, "25")?;
    equal(
        "runs",
        bed.ok(1, "service runs --format '{{.ID}} {{.State}}' batch")?
            .as_str(),
        "3 completed\n2 completed\n1 completed\n",
    )?;

    let failing = "service create -q --name bad --mode replicated-job --replicas 2 --restart-max-attempts 1 --restart-delay 100ms web:v1";
    let said = bed.types(1, &format!("{failing} sh -c 'exit 3'"))?;
    equal("a job that fails for good ends with", said.code, Some(1))?;
    contains(&said.all(), "2 failed for good")?;
    equal("attempts", bed.tasks(1, "bad")?.len(), 4)?;
    bed.refused(
        1,
        "service create --mode replicated-job --restart-condition any web:v1",
        "on-failure",
    )?;
    bed.refused(
        1,
        "service create --mode global-job --update-delay 3s web:v1",
        "no rollout",
    )?;
    bed.refused(1, "service create --schedule @daily web:v1", "is for jobs")?;
    bed.refused(1, "service rollback bad", "no rollout")?;
    bed.refused(1, "service run web", "not found")?;

    bed.ok(
        1,
        "service create -q --name sweep --mode global-job web:v1 sh -c 'echo swept'",
    )?;
    equal(
        "once on every node",
        replicas(bed, 1, "sweep")?.as_str(),
        "global job 0/0 (2/2 completed)",
    )?;
    bed.ok(1, "service rm batch bad sweep")?;

    let file = bed.hosts.dir().join("job.yml");
    let text = "services:\n  once:\n    image: web:v1\n    command: sh -c 'echo once'\n    deploy: {mode: replicated-job, replicas: 2, max_concurrent: 1}\n";
    std::fs::write(&file, text)?;
    let deploy = format!("stack deploy -c {} st", file.display());
    for _ in 0..2 {
        let said = bed.types(1, &deploy)?;
        equal("deploying a job ends with", said.code, Some(0))?;
        equal(
            "tasks, also after the same again",
            bed.tasks(1, "st_once")?.len(),
            2,
        )?;
    }
    bed.ok(1, "stack rm st").map(drop)
}

/// When each run that is known was due, by its number.
fn due(bed: &Bed, number: u8) -> Result<Vec<(u64, String)>, Failed> {
    let text = bed.ok(number, "service inspect --format '{{json .JobStatus}}' tick")?;
    let status: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let runs = status["Runs"].as_array().cloned().unwrap_or_default();
    let one = |run: &Value| Some((run["Run"].as_u64()?, run["DueAt"].as_str()?.to_owned()));
    Ok(runs.iter().filter_map(one).collect())
}

/// A schedule that fires every three seconds goes on when the leader is killed, and no time fires twice.
pub(crate) fn a_schedule_outlives_its_leader(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name tick --mode replicated-job --schedule '*/3 * * * * *' --schedule-history 50 web:v1 sh -c 'sleep 0.2'",
    )?;
    until("it fired thrice", PATIENCE, || {
        Ok(is(due(bed, 1)?.len() >= 3, true))
    })?;
    let (leader, other) = (bed.leader()?, bed.followers(3)?[0].number);
    leader.kill();
    let mut runs = Vec::new();
    until("it goes on", PATIENCE, || {
        // Until another leads there is nobody to ask.
        runs = due(bed, other).unwrap_or_default();
        Ok(is(runs.len() as u64 >= RUNS, true))
    })?;
    leader.start()?;
    let times: BTreeSet<&String> = runs.iter().map(|(_, at)| at).collect();
    equal("each time fired once", times.len(), runs.len())?;
    let numbers: Vec<u64> = runs.iter().map(|(n, _)| *n).collect();
    equal(
        "runs have their numbers",
        numbers,
        (1..=runs.len() as u64).collect(),
    )?;
    if let Some((_, odd)) = runs.iter().find(|(_, at)| !at.ends_with(".000Z")) {
        return fail(format!("{odd} is no time of the schedule"));
    }
    std::thread::sleep(Duration::from_secs(1));
    let table = bed.ok(other, "service ls")?;
    contains(&table, "NEXT RUN")?;
    contains(&bed.ok(other, "service runs tick")?, "completed")?;
    bed.ok(other, "service update -q --schedule '' tick")?;
    bed.settled(3, 0)?;
    bed.ok(other, "service rm tick").map(drop)
}

/// A container of nobody's service reaches a service by name on a network that allows it, says what the program says, and ends
/// as it does; on others it is refused.
pub(crate) fn one_container_is_run(bed: &Bed) -> Outcome {
    bed.ok(1, "network create --attachable open")?;
    bed.ok(1, "network create closed")?;
    bed.ok(
        1,
        "service create -q --name web --network open --network closed web:v1",
    )?;
    for number in [1, 2] {
        let name = format!("ask{number}");
        let line = format!(
            "run --rm --name {name} --network open --node h{number} web:v1 wget -q -O - http://web:8080/"
        );
        let said = bed.types(1, &line)?;
        equal(
            "it ends with",
            (said.code, said.out.as_str()),
            (Some(0), "hello\n"),
        )?;
    }
    bed.refused(
        1,
        "run --rm --network closed web:v1 sh -c 'exit 0'",
        "network create --attachable",
    )?;
    equal(
        "nothing of it is left",
        bed.ok(1, "service ls --format {{.Name}}")?.as_str(),
        "web\n",
    )?;
    let said = bed.types(
        1,
        "run --name seven -e WHO=me web:v1 sh -c 'echo $WHO; echo wrong >&2; exit 7'",
    )?;
    equal("exit code", said.code, Some(7))?;
    equal(
        "what it printed",
        (said.out.as_str(), said.all().contains("wrong")),
        ("me\n", true),
    )?;
    equal(
        "it stays to be seen",
        replicas(bed, 1, "seven")?.as_str(),
        "replicated job 0/1 (0/1 completed)",
    )?;
    equal(
        "its node",
        bed.tasks(1, "seven")?.first().map(|t| t.node.clone()).as_deref(),
        Some("h1"),
    )?;
    let said = bed.types(1, "run --rm web:v1 /no/such/program")?;
    equal("what cannot run ends with", said.code, Some(125))?;
    let id = bed.ok(1, "run -d --name back web:v1 sleep 1000")?;
    bed.runs(1, "back", 1)?;
    bed.ok(1, &format!("service rm {} seven web", id.trim()))
        .map(drop)
}
