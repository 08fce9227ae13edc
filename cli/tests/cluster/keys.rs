//! What lies on disks, and who vouches for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, fail, is, until};

const SECRET: &str = "SECRET-VALUE-7f3a9c51";

/// Every file below a folder, by path.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, libtest_mimic::Failed> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            // What keeps a network namespace looks like a file and has no content.
            if entry.path().ends_with("data/net") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file() {
                found.insert(entry.path().display().to_string(), fs::read(entry.path())?);
            }
        }
    }
    Ok(found)
}

/// Fails when a text stands in a file of a host, or in its environment.
fn nowhere_on_disk(bed: &Bed, text: &str) -> Outcome {
    for host in bed.hosts.all() {
        for (path, bytes) in files(&host.data())? {
            if bytes.windows(text.len()).any(|w| w == text.as_bytes()) {
                return fail(format!("\"{text}\" stands in {path}"));
            }
        }
    }
    Ok(())
}

/// A locked manager that starts takes no part until it is given the key; a wrong one changes nothing.
pub(crate) fn autolock(bed: &Bed) -> Outcome {
    let secret = ["secret", "create", "key", "-"];
    let said = bed.host(1).run_within(&secret, Some(SECRET), PATIENCE)?;
    equal("secret create", said.code, Some(0))?;
    bed.ok(
        1,
        "service create -q --name web --secret key --constraint node.hostname==h2 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 1)?;
    equal(
        "the secret in its container",
        bed.ok(2, "exec web.1 cat /run/secrets/key")?.as_str(),
        SECRET,
    )?;
    nowhere_on_disk(bed, SECRET)?;
    let before = bed.all_containers("web")?;

    contains(&bed.ok(1, "swarm update --autolock=true")?, "SWMKEY-1-")?;
    let key = bed.ok(1, "swarm unlock-key -q")?.trim().to_owned();
    let h2 = bed.host(2);
    // The managers lock their disks one by one, as they hear of it.
    let locked = |name: &str| format!("sealed {name}");
    until("h2 has locked its key", PATIENCE, || {
        let sealed = files(&h2.data().join("identity"))?
            .into_values()
            .any(|b| b.starts_with(locked("").as_bytes()));
        Ok(is(sealed, true))
    })?;
    equal("exit code of a daemon", h2.stop(), Some(0))?;
    h2.start()?;
    for line in ["service ls", "node ls", "network create nowhere"] {
        bed.refused(2, line, "needs to be unlocked")?;
    }
    bed.ok(1, "network create meanwhile")?;
    let disk = files(&h2.data().join("raft"))?;
    let unlock = |key: &str| h2.run_within(&["swarm", "unlock"], Some(&format!("{key}\n")), PATIENCE);
    // A key of the right form: one character is another.
    let at = key.len() - 10;
    let other = if &key[at..=at] == "A" { "B" } else { "A" };
    let wrong = format!("{}{other}{}", &key[..at], &key[at + 1..]);
    for (given, part) in [
        (wrong.as_str(), "not the unlock key"),
        ("SWMKEY-1-x", "not an unlock key"),
        ("", "no unlock key"),
    ] {
        let said = unlock(given)?;
        equal("exit code of a wrong key", said.code, Some(1))?;
        contains(&said.err, part)?;
    }
    equal(
        "the disk after wrong keys is as before",
        files(&h2.data().join("raft"))? == disk,
        true,
    )?;
    bed.refused(2, "service ls", "needs to be unlocked")?;
    contains(&unlock(&key)?.all(), "Swarm unlocked")?;
    bed.settled(3, 0)?;
    contains(&bed.ok(2, "network ls --format {{.Name}}")?, "meanwhile")?;
    contains(&unlock(&key)?.err, "not locked")?;
    equal("containers", bed.all_containers("web")?, before)?;
    nowhere_on_disk(bed, SECRET)?;
    nowhere_on_disk(bed, key.trim_start_matches("SWMKEY-1-"))
}

/// The authority is replaced: every node gets a certificate of the new one, and no task notices.
pub(crate) fn authority_rotated(bed: &Bed) -> Outcome {
    bed.ok(
        1,
        "service create -q --name web --replicas 5 web:v1 sleep 1000000",
    )?;
    bed.runs(1, "web", 5)?;
    let before = bed.all_containers("web")?;
    let issuers = || -> Result<BTreeSet<String>, libtest_mimic::Failed> {
        let text = bed.ok(1, "node inspect h1 h2 h3 h4 h5 --format {{.TLSInfo.CertIssuer}}")?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let (old, certificate) = (issuers()?, bed.ok(1, "swarm ca")?);
    equal("issuers", old.len(), 1)?;
    let token = bed.ok(1, "swarm join-token -q worker")?;
    let said = bed
        .host(2)
        .run_within(&["swarm", "ca", "--rotate", "-q"], None, Duration::from_secs(30))?;
    equal("swarm ca --rotate", said.code, Some(0)).map_err(|e| format!("{e:?}: {}", said.all()))?;
    let new = issuers()?;
    equal("issuers", (new.len(), new.is_disjoint(&old)), (1, true))?;
    equal("another authority", bed.ok(3, "swarm ca")? == certificate, false)?;
    bed.settled(3, 2)?;
    equal("containers", bed.all_containers("web")?, before.clone())?;
    equal(
        "tokens name the new authority",
        bed.ok(1, "swarm join-token -q worker")? == token,
        false,
    )?;
    // All connections are made anew with the new certificates.
    for host in bed.hosts.all() {
        host.kill();
        host.start()?;
    }
    bed.settled(3, 2)?;
    bed.ok(3, "network create after")?;
    equal("containers", bed.all_containers("web")?, before)
}
