//! What is left when most is lost: a backup, one manager of several, hosts without any.

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until};

/// A backup taken while the cluster goes on is the cluster again on a new disk; hosts of the old one are refused until
/// they join it, by the token they had.
pub(crate) fn backup_and_restore(bed: &Bed) -> Outcome {
    bed.ok(1, "network create before")?;
    bed.ok(
        1,
        "service create -q --name web --replicas 2 --constraint node.hostname==h2 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 2)?;
    let token = bed.ok(1, "swarm join-token -q worker")?;
    let (file, key) = (
        bed.hosts.dir().join("backup").display().to_string(),
        bed.hosts.dir().join("key").display().to_string(),
    );
    bed.ok(1, &format!("swarm backup -o {file} --key-file {key}"))?;
    bed.refused(1, &format!("swarm backup -o {file} --key-file {key}"), "exist")?;
    bed.ok(1, "network create after")?;
    bed.refused(
        1,
        &format!("swarm restore --key-file {key} {file}"),
        "part of a cluster",
    )?;
    bed.host(1).kill();
    bed.host(1).wipe()?;
    bed.host(1).start()?;
    // Half a backup, and another key, change nothing.
    let bytes = std::fs::read(&file)?;
    let half = format!("{file}.half");
    std::fs::write(&half, &bytes[..bytes.len() / 2])?;
    let said = bed.types(1, &format!("swarm restore --key-file {key} {half}"))?;
    equal("half a backup", said.code, Some(1))?;
    let other = format!("{key}.other");
    let text = std::fs::read_to_string(&key)?;
    std::fs::write(&other, text.chars().rev().collect::<String>())?;
    let said = bed.types(1, &format!("swarm restore --key-file {other} {file}"))?;
    equal("another key", said.code, Some(1))?;
    bed.refused(1, "node ls", "not part of a cluster")?;
    bed.ok(1, &format!("swarm restore --key-file {key} {file}"))?;
    let networks = bed.ok(1, "network ls --format {{.Name}}")?;
    contains(&networks, "before")?;
    equal("what came after the backup", networks.contains("after"), false)?;
    bed.ok(2, "swarm leave")?;
    bed.join(2, token.trim())?;
    bed.settled(1, 1)?;
    bed.runs(1, "web", 2)?;
    bed.ok(1, "service scale web=3")?;
    bed.runs(1, "web", 3).map(drop)
}

/// Two of three managers are lost for ever: the third goes on alone when it is told to, and nothing stops.
pub(crate) fn forced_new_cluster(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 2 --constraint node.hostname==h4 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 2)?;
    let containers = bed.containers(4, "web")?;
    bed.host(2).kill();
    bed.host(3).kill();
    bed.refused(1, "network create nowhere", "E_NO_QUORUM")?;
    bed.ok(1, "swarm init --force-new-cluster")?;
    bed.ok(1, "network create again")?;
    until("the worker is Ready, the others are not", PATIENCE, || {
        let nodes = bed.nodes(1)?;
        let of = |name: &str| nodes.get(name).map(|n| n.status.clone()).unwrap_or_default();
        Ok(is(
            (of("h4"), of("h2") == "Ready", of("h3") == "Ready"),
            ("Ready".to_owned(), false, false),
        ))
    })?;
    bed.runs(1, "web", 2)?;
    equal("containers", bed.containers(4, "web")?, containers.clone())?;
    // One of the others comes back with the old log: it must not lead anybody.
    bed.host(2).boot()?;
    bed.ok(1, "network create third")?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    let said = bed.types(2, "network create old")?;
    equal("a write in the old cluster succeeds", said.ok(), false)?;
    // Managers join again as new ones, and the cluster outlives that (Swarm does not).
    let token = bed.ok(1, "swarm join-token -q manager")?;
    for number in [2, 3] {
        bed.host(number).kill();
        bed.host(number).wipe()?;
        bed.host(number).start()?;
        bed.join(number, token.trim())?;
    }
    bed.settled(3, 1)?;
    bed.ok(3, "network create fourth")?;
    equal("containers", bed.containers(4, "web")?, containers)
}

/// A container ends while no manager is there: its host restarts it, and the manager that comes back agrees.
pub(crate) fn restarted_without_a_manager(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --restart-delay 100ms --constraint node.hostname==h2 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 1)?;
    let before = bed.containers(2, "web")?;
    // What was assigned is kept within a second.
    let kept = bed.host(2).data().join("assigned");
    until("the host keeps what it was assigned", PATIENCE, || {
        let text = std::fs::read(&kept).unwrap_or_default();
        Ok(is(String::from_utf8_lossy(&text).contains("sleep"), true))
    })?;
    bed.host(1).kill();
    // Its daemon knows by the file alone what there is to do.
    bed.host(2).kill();
    bed.host(2).start()?;
    equal("containers", bed.containers(2, "web")?, before.clone())?;
    let (_, pid) = before.iter().next().ok_or("web does not run")?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(*pid)?).ok_or("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    until("its host restarts it", PATIENCE, || {
        let now = bed.containers(2, "web")?;
        Ok(is((now.len(), now != before), (1, true)))
    })?;
    let restarted = bed.containers(2, "web")?;
    bed.host(1).start()?;
    bed.settled(1, 1)?;
    bed.runs(1, "web", 1)?;
    equal("containers", bed.containers(2, "web")?, restarted)
}
