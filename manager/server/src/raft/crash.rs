//! Places at which a test lets the process die, to see what the next start makes of the disk.
//!
//! `FAILPOINTS="raft.before_append_fsync=20*off->return"` kills the process when the place is reached the 21st time.
//! Without the feature `failpoints` a place is an empty function.

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::Once;

    /// Kills this process, as a power cut or the kernel would: nothing is unwound, flushed or closed.
    fn die() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is delivered before that call returns.
        std::process::abort();
    }

    pub(in crate::raft) fn crash_point(name: &str) {
        static READ: Once = Once::new();
        READ.call_once(|| {
            let places = std::env::var("FAILPOINTS").unwrap_or_default();
            for place in places.split(';').filter(|p| !p.trim().is_empty()) {
                let (name, action) = place.split_once('=').unwrap_or((place, "return"));
                if let Err(why) = fail::cfg(name.trim(), action.trim()) {
                    // A sweep that kills nobody would pass.
                    panic!("FAILPOINTS: \"{place}\" is not NAME=ACTION: {why}");
                }
            }
        });
        fail::fail_point!(name, |_| die());
    }
}

#[cfg(feature = "failpoints")]
pub(super) use armed::crash_point;

/// No code: the feature is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(super) const fn crash_point(_name: &str) {}
