//! Networks of both families: names lead to IPv4 and IPv6 addresses, and what works by one works by the other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use libtest_mimic::Failed;

use crate::bed::{Bed, Outcome, equal, fail};
use crate::network::{WEB, all_behind_the_port, asked, from_outside};

/// The machine outside, as busybox's httpd writes it.
const CLIENT: &str = "[fd99::c8]";

/// The addresses that a name has for a task, of one type of record.
fn looked_up(bed: &Bed, host: u8, task: &str, name: &str, kind: &str) -> Result<BTreeSet<IpAddr>, Failed> {
    let containers = bed.containers(host, task)?;
    let Some(container) = containers.keys().next() else {
        return fail(format!("no task {task} on h{host}"));
    };
    let line = format!("exec {container} sh -c 'busybox nslookup -type={kind} {name} 127.0.0.11'");
    let said = bed.ok(host, &line)?;
    let answers = said.lines().skip_while(|line| !line.starts_with("Name"));
    let words = answers.flat_map(str::split_whitespace);
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

/// Every host reaches the service and each of its tasks by IPv6, with the names that lead to IPv4 as well; clients outside do by
/// the hosts' IPv6 addresses, and are seen as they are. A network without IPv6 beside it has none of that.
pub(crate) fn both_families_over_hosts(bed: &Bed) -> Outcome {
    bed.ok(1, "network create -d overlay --ipv6 back")?;
    bed.ok(1, "network create -d overlay front")?;
    bed.ok(1, WEB)?;
    for (name, network) in [("ask", "back"), ("other", "front")] {
        let line = "--mode global web:v1 sleep 1000000";
        bed.ok(
            1,
            &format!("service create -q --name {name} --network {network} {line}"),
        )?;
    }
    bed.runs(1, "web", 3)?;
    bed.runs(1, "ask", 3)?;
    bed.runs(1, "other", 3)?;
    for host in 1..=3 {
        for (name, count) in [("web", 1), ("tasks.web", 3), ("web.2", 1)] {
            let four = looked_up(bed, host, "ask", name, "a")?;
            let six = looked_up(bed, host, "ask", name, "aaaa")?;
            let families = (four.iter().all(IpAddr::is_ipv4), six.iter().all(IpAddr::is_ipv6));
            equal(
                &format!("addresses of {name}"),
                (four.len(), six.len()),
                (count, count),
            )?;
            equal(&format!("families of {name}"), families, (true, true))?;
            // By its virtual address it is another task each time.
            let times = if name == "web" { 40 } else { 2 };
            let by = |all: &BTreeSet<IpAddr>| -> Result<BTreeSet<String>, Failed> {
                let mut tasks = BTreeSet::new();
                for address in all {
                    let written = match address {
                        IpAddr::V4(address) => address.to_string(),
                        IpAddr::V6(address) => format!("[{address}]"),
                    };
                    tasks.extend(asked(bed, host, "ask", &written, times)?);
                }
                Ok(tasks)
            };
            let (by_four, by_six) = (by(&four)?, by(&six)?);
            let tasks = if name == "web.2" { 1 } else { 3 };
            equal("requests that failed", by_six.contains("failed"), false)?;
            equal(
                &format!("tasks that h{host} reaches by IPv6 of {name}"),
                by_six.len(),
                tasks,
            )?;
            equal("by IPv4 they are the same", by_four, by_six)?;
        }
        let none = looked_up(bed, host, "other", "other", "aaaa")?;
        equal("IPv6 of a network without", none, BTreeSet::new())?;
        let web = looked_up(bed, host, "ask", "web", "aaaa")?;
        for address in web {
            let apart = asked(bed, host, "other", &format!("[{address}]"), 1)?;
            equal(
                "from another network",
                apart,
                BTreeSet::from(["failed".to_owned()]),
            )?;
        }
        all_behind_the_port(bed, bed.host(host).address_ipv6(), CLIENT)?;
    }
    // A daemon that starts anew finds all of it.
    let again = bed.host(2);
    equal("h2's daemon ended with", again.stop(), Some(0))?;
    again.boot()?;
    again.answers()?;
    from_outside(bed, again.address_ipv6())?;
    let six = looked_up(bed, 2, "ask", "web", "aaaa")?;
    for address in six {
        let reached = asked(bed, 2, "ask", &format!("[{address}]"), 10)?;
        equal("requests that failed", reached.contains("failed"), false)?;
    }
    Ok(())
}
