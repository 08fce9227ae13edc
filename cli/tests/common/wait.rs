//! What a test waits for, at most so long.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;

/// How long anything may take: the machine of a test may be busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> Result<bool, Failed>) -> Result<(), Failed> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not after {PATIENCE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
