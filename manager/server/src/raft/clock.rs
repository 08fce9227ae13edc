//! The clocks of this machine under the clock of the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use manager_core::log_time::LogClock;
use model::Timestamp;

/// The clock of the log on this manager.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    log: Mutex<LogClock>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            log: Mutex::new(LogClock::new(wall(), Timestamp::default())),
        }
    }

    /// An entry of this time was applied.
    pub(super) fn applied(&self, entry: Timestamp) {
        let mono = Timestamp::default() + self.began.elapsed();
        (self.log.lock().unwrap_or_else(PoisonError::into_inner)).applied(entry, mono);
    }

    /// The time for the next entry.
    pub(super) fn now(&self) -> Timestamp {
        let mono = Timestamp::default() + self.began.elapsed();
        (self.log.lock().unwrap_or_else(PoisonError::into_inner)).now(wall(), mono)
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
