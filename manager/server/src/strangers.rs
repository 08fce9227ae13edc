//! How often somebody without a certificate may try a token.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// Wrong tokens an address may show within [`WINDOW`]; after that one a second.
const FAILURES_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(1);
/// Addresses remembered; the oldest is forgotten first.
const ADDRESSES_MAX: usize = 10_000;

/// Wrong tokens by address.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    failures: Mutex<BTreeMap<IpAddr, Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    since: Instant,
    last: Instant,
}

impl Failures {
    fn blocks(&self, now: Instant) -> bool {
        self.count >= FAILURES_MAX
            && now.duration_since(self.since) < WINDOW
            && now.duration_since(self.last) < SLOW
    }
}

impl Strangers {
    /// Whether an address may show a token now.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED after too many wrong ones.
    pub(crate) fn may_try(&self, address: IpAddr) -> Result<(), Status> {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match all.get_mut(&address) {
            Some(known) if known.blocks(now) => Err(Status::resource_exhausted(
                "too many wrong join tokens came from this address: one a second is looked at for the next minute",
            )),
            Some(known) if now.duration_since(known.since) >= WINDOW => {
                all.remove(&address);
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a wrong token.
    pub(crate) fn failed(&self, address: IpAddr) {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&address) {
            let oldest = all.iter().min_by_key(|(_, f)| f.last).map(|(a, _)| *a);
            if let Some(oldest) = oldest {
                all.remove(&oldest);
            }
        }
        let known = all.entry(address).or_insert(Failures {
            count: 0,
            since: now,
            last: now,
        });
        known.count = known.count.saturating_add(1);
        known.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_try_has_to_wait_and_other_addresses_do_not() {
        let strangers = Strangers::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..FAILURES_MAX {
            assert!(strangers.may_try(one).is_ok());
            strangers.failed(one);
        }
        assert!(strangers.may_try(one).is_err());
        assert!(strangers.may_try(other).is_ok());
    }

    #[test]
    fn a_limited_number_of_addresses_is_remembered() {
        let strangers = Strangers::default();
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 10 {
            strangers.failed(IpAddr::from(n.to_be_bytes()));
        }
        assert_eq!(strangers.failures.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
