//! Which other hosts this one does not reach over the data plane; pure. Each is asked again and again, and the kernel there answers,
//! whether its daemon runs or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use model::Timestamp;

use crate::net::{There, WantedNet};

/// Time between two questions.
pub const EVERY: Duration = Duration::from_secs(2);
/// Rounds of which one asks with large packets as well.
pub const LARGE_EVERY: u32 = 5;
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(1);
/// Who gives no answer for so long is not reached: three questions, and what the answers may take.
pub const SILENT: Duration = Duration::from_secs(7);

/// One way to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Its address.
    pub host: Ipv4Addr,
    /// By the encrypted device.
    pub encrypted: bool,
}

impl Way {
    /// The way to a task on another host.
    fn to(there: &There) -> Self {
        Self {
            host: there.host,
            encrypted: there.encrypted,
        }
    }
}

/// When each way was heard last, with packets of either size.
#[derive(Debug, Default)]
pub struct Pulses {
    heard: BTreeMap<(Way, bool), Timestamp>,
}

impl Pulses {
    /// Takes a round: who was asked, and who has answered a small question and a large one (true).
    pub fn take(&mut self, asked: &BTreeSet<Way>, answered: &BTreeSet<(Way, bool)>, now: Timestamp) {
        self.heard.retain(|(way, _), _| asked.contains(way));
        for way in asked {
            for large in [false, true] {
                let key = (*way, large);
                // One that is new has time from now on.
                let heard = self.heard.entry(key).or_insert(now);
                if answered.contains(&key) {
                    *heard = now;
                }
            }
        }
    }

    fn silent(&self, now: Timestamp, large: bool) -> BTreeSet<Way> {
        let limit = if large { SILENT * LARGE_EVERY } else { SILENT };
        let silent = |(_, at): &(&(Way, bool), &Timestamp)| now.since(**at) >= limit;
        let of_size = self.heard.iter().filter(|((_, size), _)| *size == large);
        of_size.filter(silent).map(|((way, _), _)| *way).collect()
    }

    /// Ways on which nothing comes back.
    pub fn unreached(&self, now: Timestamp) -> BTreeSet<Way> {
        self.silent(now, false)
    }

    /// Ways on which small packets pass and large ones do not: something between says nothing of the size it takes.
    pub fn narrow(&self, now: Timestamp) -> BTreeSet<Way> {
        &self.silent(now, true) - &self.silent(now, false)
    }
}

/// Ways to all hosts that have containers which this one may reach, and that answer when they are asked.
pub fn ways(net: &WantedNet) -> BTreeSet<Way> {
    let asked = net
        .remote
        .values()
        .filter(|there| net.answering.contains(&there.host));
    asked.map(Way::to).collect()
}

/// Takes what is behind ways that lead nowhere out of balancing and names, as long as anything else is there.
pub fn avoid(net: &mut WantedNet, unreached: &BTreeSet<Way>) {
    if unreached.is_empty() {
        return;
    }
    let lost: BTreeSet<_> = (net.remote.iter())
        .filter(|(_, there)| unreached.contains(&Way::to(there)))
        .map(|(address, _)| *address)
        .collect();
    fn keep<T>(list: &mut Vec<T>, is_lost: impl Fn(&T) -> bool) {
        if list.iter().any(|x| !is_lost(x)) {
            list.retain(|x| !is_lost(x));
        }
    }
    for (_, behind) in net.vips.values_mut() {
        keep(behind, |address| lost.contains(address));
    }
    for behind in net.ports.values_mut() {
        keep(behind, |(address, _)| lost.contains(address));
    }
    for addresses in net.names.values_mut() {
        keep(addresses, |address| lost.contains(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(host: u8, encrypted: bool) -> Way {
        Way {
            host: Ipv4Addr::new(10, 99, 0, host),
            encrypted,
        }
    }

    #[test]
    fn who_is_silent_for_long_is_not_reached_and_one_answer_is_enough() {
        let at = |s: u64| Timestamp(s * 1000);
        let (two, three) = (way(2, false), way(3, true));
        let mut pulses = Pulses::default();
        let all: BTreeSet<Way> = [two, three].into();
        let both = |w: Way| [(w, false), (w, true)];
        // Seconds, who answers, who is not reached then, and where large packets are lost.
        type Row<'a> = (u64, Vec<(Way, bool)>, &'a [Way], &'a [Way]);
        let rows: [Row<'_>; 9] = [
            (10, vec![], &[], &[]),
            (12, both(two).into(), &[], &[]),
            (16, both(two).into(), &[], &[]),
            (17, both(two).into(), &[three], &[]),
            (18, both(three).into(), &[], &[]),
            (20, vec![(two, false), (three, false)], &[], &[]),
            (51, vec![(two, false), (three, false)], &[], &[]),
            (52, vec![(two, false), (three, false)], &[], &[two]),
            (53, vec![(two, false)], &[], &[two, three]),
        ];
        for (seconds, answered, unreached, narrow) in rows {
            pulses.take(&all, &answered.into_iter().collect(), at(seconds));
            assert_eq!(
                pulses.unreached(at(seconds)),
                unreached.iter().copied().collect(),
                "{seconds}"
            );
            assert_eq!(
                pulses.narrow(at(seconds)),
                narrow.iter().copied().collect(),
                "{seconds}"
            );
        }
        // Who is not asked any more is forgotten, and has time again when it is back.
        pulses.take(&[two].into(), &BTreeSet::new(), at(60));
        assert_eq!(pulses.unreached(at(60)), [two].into());
        pulses.take(&all, &BTreeSet::new(), at(61));
        assert_eq!(pulses.unreached(at(61)), [two].into());
    }

    #[test]
    fn what_leads_nowhere_is_avoided_while_there_is_something_else() {
        let ip = |n: u8| std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
        let there = |host: u8, encrypted| There {
            network: 7,
            host: Ipv4Addr::new(10, 99, 0, host),
            encrypted,
        };
        let mut net = WantedNet {
            vips: [
                (ip(100), (7, vec![ip(1), ip(2), ip(3)])),
                (ip(101), (7, vec![ip(2)])),
            ]
            .into(),
            ports: [((model::spec::Protocol::Tcp, 80), vec![(ip(2), 80), (ip(3), 80)])].into(),
            names: [((7, "tasks.web".to_owned()), vec![ip(1), ip(2)])].into(),
            remote: [(ip(2), there(2, false)), (ip(3), there(2, true))].into(),
            ..WantedNet::default()
        };
        assert_eq!(ways(&net), BTreeSet::new(), "it does not answer");
        net.answering.insert(Ipv4Addr::new(10, 99, 0, 2));
        assert_eq!(ways(&net), [way(2, false), way(2, true)].into());
        let before = net.clone();
        avoid(&mut net, &[way(2, false), way(9, true)].into());
        assert_eq!(net.vips[&ip(100)].1, [ip(1), ip(3)]);
        assert_eq!(net.vips[&ip(101)].1, [ip(2)], "there is nothing else");
        assert_eq!(net.ports.values().next().unwrap(), &[(ip(3), 80)]);
        assert_eq!(net.names.values().next().unwrap(), &[ip(1)]);
        assert_eq!(
            net.remote, before.remote,
            "the way stays, so that it is found again"
        );
    }
}
