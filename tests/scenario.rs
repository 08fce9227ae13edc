//! Every file of `scenarios/` replayed; `UPDATE=1` writes the replies as they are now.

use std::path::Path;

/// Moments of a rollout, 300 ms apart, at which its leader dies: from its first entry to after its last.
const MOMENTS: u32 = 100;

/// While it is under way no more slots are down than its parallelism (an invariant of the simulation), whoever leads.
#[test]
fn a_rollout_ends_alike_whenever_its_leader_dies() {
    let mut ends = std::collections::BTreeSet::new();
    for moment in 0..MOMENTS {
        let text = format!(
            "cluster nodes=3 managers=3; deploy web replicas=6 parallelism=2 monitor=1s; settle\n\
             deploy web image=b; advance {}ms; kill-leader; settle; service web; counts node-losses\n----\n",
            moment * 300
        );
        let end = tests::sim::script::replay(&text).unwrap_or_else(|e| panic!("moment {moment}: {e}"));
        let reply = end.split_once("----\n").map(|(_, reply)| reply.to_owned());
        ends.insert(reply.unwrap_or_default());
    }
    let wanted = "web: 6 running, image b, Completed: update completed\nnode losses: 0\n";
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), [wanted]);
}

#[test]
fn every_scenario_ends_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|e| e.expect("readable").path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "scenarios are missing");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a text");
        let name = file.display();
        match tests::sim::script::replay(&text) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(now) if now == text => {}
            Ok(now) if std::env::var_os("UPDATE").is_some() => std::fs::write(&file, now).expect("written"),
            Ok(now) => wrong.push(format!("{name} is now:\n{now}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
