//! Generic resources, affinity, strategy and priority, as an operator meets them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until, within};

/// How soon a task of a high priority runs on a full cluster.
const PREEMPTS: Duration = Duration::from_secs(5);

/// Device nodes of this machine that read as zeros; gone with this value.
struct DeviceNodes([String; 2]);

impl DeviceNodes {
    fn make() -> Result<Self, Failed> {
        let own = std::process::id();
        let nodes = Self(["a", "b"].map(|name| format!("/dev/rswarm-{own}-{name}")));
        for path in &nodes.0 {
            let zeros = rustix::fs::makedev(1, 5);
            let mode = rustix::fs::Mode::from(0o666);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::CharacterDevice,
                mode,
                zeros,
            )
            .map_err(|e| format!("make {path}: {e}"))?;
        }
        Ok(nodes)
    }
}

impl Drop for DeviceNodes {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Of two devices each is one task's, who finds it in its `/dev` and no other, and the third task says why it waits.
fn devices_are_given_out(bed: &Bed, nodes: &DeviceNodes) -> Outcome {
    bed.ok(
        1,
        "service create -q -d --name rig --replicas 3 --generic-resource rig=1 web:v1 sleep 1000000",
    )?;
    let mut own = BTreeSet::new();
    for task in bed.runs(1, "rig", 2)? {
        let seen = bed.ok(1, &format!("exec {} busybox find /dev -name rswarm-*", task.id))?;
        let node = seen.trim().to_owned();
        let read = bed.ok(1, &format!("exec {} busybox head -c 3 {node}", task.id))?;
        equal("it is the device", read.as_str(), "\0\0\0")?;
        own.insert(node);
    }
    equal("each has its own", own, nodes.0.iter().cloned().collect())?;
    until("the third says why it waits", PATIENCE, || {
        let why = bed.ok(1, "service ps --no-trunc rig")?;
        Ok(is(why.contains("insufficient generic resources (rig=1)"), true))
    })?;
    bed.ok(1, "service rm rig").map(drop)
}

/// Hosts with two GPUs each give out every one once; who finds none says so, and who is of a higher priority gets one.
pub(crate) fn resources_are_given_out_and_taken_back(bed: &Bed) -> Outcome {
    let nodes = DeviceNodes::make()?;
    for number in 2..=3 {
        let (host, mut has) = (bed.host(number), format!("gpu=h{number}-a,gpu=h{number}-b"));
        if number == 3 {
            nodes.0.iter().for_each(|path| has += &format!(",rig={path}"));
        }
        host.kill();
        host.boot_with(&[("RSWARM_NODE_GENERIC_RESOURCES", &has)])?;
        host.answers()?;
    }
    until("the GPUs are known", PATIENCE, || {
        let seen = (2..=3).map(|n| bed.ok(1, &format!("node inspect h{n}")));
        let seen = seen.collect::<Result<Vec<_>, _>>()?;
        Ok(is(
            seen.iter().map(|s| s.matches("NamedResourceSpec").count()).sum(),
            6,
        ))
    })?;
    bed.refused(
        1,
        "service create --generic-resource 'g/u=1' web:v1",
        "no kind of generic resource",
    )?;
    bed.refused(
        1,
        "service create --generic-resource gpu=x web:v1",
        "asks for a number",
    )?;
    bed.refused(1, "service create --priority 101 web:v1", "not between 0 and 100")?;
    bed.refused(1, "service create --affinity db web:v1", "no affinity")?;
    devices_are_given_out(bed, &nodes)?;
    bed.ok(
        1,
        "service create -q -d --name low --replicas 5 --generic-resource gpu=1 web:v1 sleep 1000000",
    )?;
    let low = bed.runs(1, "low", 4)?;
    let mut own = BTreeSet::new();
    for task in &low {
        let env = bed.ok(1, &format!("inspect --type task {}", task.id))?;
        let after = env.split("\"NamedResourceSpec\"").nth(1).unwrap_or_default();
        let name = after
            .split("\"Value\": \"")
            .nth(1)
            .and_then(|t| t.split('"').next());
        let name = name.unwrap_or_default().to_owned();
        let seen = bed.ok(1, &format!("exec {} busybox env", task.id))?;
        contains(&seen, &format!("RSWARM_RESOURCE_GPU={name}\n"))?;
        contains(&seen, &format!("DOCKER_RESOURCE_GPU={name}\n"))?;
        own.insert(name);
    }
    equal("each has its own", own.len(), 4)?;
    until("the fifth says why it waits", PATIENCE, || {
        let why = bed.ok(1, "service ps --no-trunc low")?;
        Ok(is(
            why.contains("insufficient generic resources (gpu=1) on 3 nodes"),
            true,
        ))
    })?;
    let began = Instant::now();
    bed.ok(
        1,
        "service create -q -d --name high --replicas 2 --priority 90 --generic-resource gpu=1 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "high", 2)?;
    within(
        "tasks of priority 90 run on a full cluster",
        began.elapsed(),
        PREEMPTS,
    )?;
    equal(
        "no more of the others go than needed",
        bed.running(1, "low")?.len(),
        2,
    )?;
    contains(
        &bed.ok(1, "service ps --no-trunc low")?,
        "preempted by high.1 (priority 90)",
    )?;
    bed.ok(1, "service rm high")?;
    bed.runs(1, "low", 4)?;

    bed.ok(
        1,
        "service create -q -d --name db --strategy binpack --replicas 2 web:v1 sleep 1000000",
    )?;
    let db: BTreeSet<String> = bed.runs(1, "db", 2)?.into_iter().map(|t| t.node).collect();
    equal("few nodes are used", db.len(), 1)?;
    for (name, affinity, beside) in [("near", "service==db", true), ("far", "service!=db", false)] {
        bed.ok(
            1,
            &format!(
                "service create -q -d --name {name} --affinity '{affinity}' --replicas 2 web:v1 sleep 1000000"
            ),
        )?;
        let there = bed.runs(1, name, 2)?;
        equal(name, there.iter().all(|t| db.contains(&t.node) == beside), true)?;
    }
    let why = bed.ok(1, "service why far")?;
    contains(&why, "affinity not satisfied (service!=db)")?;

    bed.ok(1, "node update --availability drain h3")?;
    bed.ok(
        1,
        "service create -q -d --name web --replicas 6 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 6)?;
    bed.refused(
        1,
        "service create --mode global --rebalance on-join web:v1",
        "needs mode replicated",
    )?;
    bed.ok(
        1,
        "service create -q -d --name keen --rebalance on-join --replicas 6 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "keen", 6)?;
    bed.ok(1, "node update --availability active h3")?;
    let two_each = |name: &str| {
        until(&format!("two of {name} are on each"), PATIENCE, || {
            let tasks = bed.running(1, name)?;
            let on = |host: &str| tasks.iter().filter(|t| t.node == host).count();
            Ok(is(["h1", "h2", "h3"].map(on), [2; 3]))
        })
    };
    two_each("keen")?;
    let would = bed.ok(1, "service rebalance --dry-run web")?;
    equal("floor(6 / 3) would move", would.matches(" leaves h").count(), 2)?;
    equal(
        "none has",
        bed.running(1, "web")?.iter().filter(|t| t.node == "h3").count(),
        0,
    )?;
    bed.ok(1, "service rebalance web")?;
    two_each("web")?;
    equal(
        "the second moves none",
        bed.ok(1, "service rebalance web")?.contains("leaves"),
        false,
    )
}

/// How busy a host is counts although nothing is reserved there, once it was so for half a minute.
pub(crate) fn busy_hosts_are_spared(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q -d --name burn --constraint node.hostname==h2 --limit-cpu 0.9 web:v1 sh -c 'while :; do :; done'",
    )?;
    bed.runs(1, "burn", 1)?;
    let began = Instant::now();
    let used = |host: &str| -> Result<u32, Failed> {
        let text = bed.ok(
            1,
            &format!("node inspect --format '{{{{.Status.Used.CPU}}}}' {host}"),
        )?;
        Ok(text.trim().parse()?)
    };
    until("what h2 uses is known", PATIENCE * 2, || {
        Ok(is(used("h2")? >= 150, true))
    })?;
    within("what h2 uses is known", began.elapsed(), Duration::from_secs(90))?;
    equal("what h3 uses", used("h3")?, 0)?;
    bed.ok(
        1,
        "service create -q -d --name cool --replicas 2 web:v1 sleep 1000000",
    )?;
    let there: BTreeSet<String> = bed.runs(1, "cool", 2)?.into_iter().map(|t| t.node).collect();
    equal(
        "where tasks run",
        there,
        ["h1", "h3"].map(str::to_owned).into_iter().collect(),
    )
}
