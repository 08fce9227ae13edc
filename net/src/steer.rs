//! Which CPUs carry packets through the dataplane's links.

use std::fs;

/// Which CPUs carry packets through the dataplane's links (RPS, kernel documentation: networking/scaling).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Steering {
    /// Every flow has one of all CPUs: a stream is faster, as its sender is not what it waits for; a new connection is slower
    /// where waking another CPU takes long.
    #[default]
    Spread,
    /// The one that sends carries a packet through every link of its way.
    Sender,
}

/// Most CPUs that are read of a list; Linux knows 8192.
const CPUS_MAX: usize = 8192;
/// What new links of a namespace begin with.
const DEFAULT_MASK: &str = "/proc/sys/net/core/rps_default_mask";

/// Makes it so for links that are made in the thread's namespace from now on. Where the kernel has no such setting (before 6.3)
/// or refuses it, as on hosts that keep CPUs to themselves, senders carry their packets.
pub(crate) fn steer(steering: Steering) {
    let all = || mask(&fs::read_to_string("/sys/devices/system/cpu/online").ok()?);
    let mask = match steering {
        Steering::Spread => all(),
        Steering::Sender => None,
    };
    let _ = fs::write(DEFAULT_MASK, mask.as_deref().unwrap_or("0"));
}

/// A list of CPUs (`0-3,8`) as the kernel reads masks: words of 32 bits in hexadecimal, the highest first. None for fewer than
/// two, which have nobody to share with, and for what is no list.
fn mask(list: &str) -> Option<String> {
    let mut words: Vec<u32> = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        words.resize(words.len().max(last / 32 + 1), 0);
        for cpu in first..=last {
            *words.get_mut(cpu / 32)? |= 1 << (cpu % 32);
        }
    }
    let many = words.iter().map(|w| w.count_ones()).sum::<u32>() > 1;
    let text: Vec<String> = words.iter().rev().map(|w| format!("{w:08x}")).collect();
    many.then(|| text.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_become_masks() {
        let all = format!("{}ffffffff", "ffffffff,".repeat(255));
        for (list, wanted) in [
            ("0-1\n", Some("00000003")),
            ("0-3,8", Some("0000010f")),
            ("0-31", Some("ffffffff")),
            ("0,32-33", Some("00000003,00000001")),
            ("5,70", Some("00000040,00000000,00000020")),
            ("0-8191", Some(all.as_str())),
            ("0-8192", None),
            ("0", None),
            ("3-3", None),
            ("", None),
            ("3-1", None),
            ("a-b", None),
            ("0-1-2", None),
            ("-1", None),
        ] {
            assert_eq!(mask(list).as_deref(), wanted, "{list:?}");
        }
    }
}
