//! Encrypted networks: nothing is read between hosts, and keys change without anybody noticing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, PATIENCE, equal, is, until};
use crate::rolling::{begin, none_failed};

/// How long clients ask while nothing happens.
const ASKS: Duration = Duration::from_secs(1);
/// What every answer has in it.
const ANSWER: &str = "hello";

/// By which the others know a host.
fn key(bed: &Bed, host: u8) -> Result<String, Failed> {
    let line = format!("node inspect h{host} --format '{{{{.Description.WireGuardKey}}}}'");
    Ok(bed.ok(1, &line)?.trim().to_owned())
}

fn keys(bed: &Bed) -> Result<Vec<String>, Failed> {
    (1..=3).map(|host| key(bed, host)).collect()
}

/// Requests over an encrypted network, by its virtual address and by a published port, are not seen on the wire; none is lost
/// while all hosts take new certificates and keys; a daemon that starts anew is in it again.
pub(crate) fn nobody_listens(bed: &Bed) -> Outcome {
    bed.refused(1, "network create --opt encrypted=perhaps back", "encrypted=true")?;
    let clients = begin(bed, "--opt encrypted")?;
    let hosts: BTreeSet<Ipv4Addr> = (1..=3).map(|host| bed.host(host).address()).collect();
    for host in 1..=3 {
        let asks = || std::thread::sleep(ASKS);
        let ((), seen) = hosts::overhear(bed.host(host).namespace(), &hosts, ANSWER, asks)?;
        equal("enough packets between hosts", seen.packets > 100, true)?;
        equal(
            &format!("of {} packets of h{host} can be read", seen.packets),
            seen.with,
            0,
        )?;
    }
    let before = keys(bed)?;
    let began = Instant::now();
    bed.ok(1, "swarm ca --rotate -q")?;
    until("every host has another key", PATIENCE, || {
        let now = keys(bed)?;
        Ok(is(
            now.iter().zip(&before).filter(|(now, old)| now == old).count(),
            0,
        ))
    })?;
    std::thread::sleep(ASKS);
    none_failed(clients, began.elapsed())?;
    let (known, again) = (key(bed, 2)?, bed.host(2));
    equal("h2's daemon ended with", again.stop(), Some(0))?;
    again.boot()?;
    again.answers()?;
    until("h2 is in the network again", PATIENCE, || {
        let now = key(bed, 2)?;
        let container = bed.containers(1, "ask")?.into_keys().next().unwrap_or_default();
        let mut asked = Vec::new();
        for slot in 1..=4 {
            let ask = format!("exec {container} busybox timeout 2 wget -q -O - http://web.{slot}:8080/");
            asked.push(bed.types(1, &ask)?.all().contains(ANSWER));
        }
        Ok(is((now != known, asked), (true, vec![true; 4])))
    })?;
    Ok(())
}
