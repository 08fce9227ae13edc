//! Places at which a test lets a process die, or wait, to see what the next start makes of what it left.
//!
//! With the feature `failpoints`, which only dev-dependencies turn on, the environment tells:
//! `FAILPOINTS="raft.before_append_fsync=20*off->return"` kills the process when it comes there the 21st time, and
//! `=sleep(6000)` is a disk that is slow. Several are separated by semicolons. Without the feature a place is no code.
#![forbid(unsafe_code)]

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::Once;

    /// Kills this process, as a power cut or the kernel would: nothing is unwound, flushed or closed.
    fn die() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is delivered before that call returns.
        std::process::abort();
    }

    /// A place with a name, as it is written in `FAILPOINTS`.
    #[allow(
        clippy::panic,
        reason = "only tests have this, and one that kills nobody would pass"
    )]
    pub fn point(name: &str) {
        static READ: Once = Once::new();
        READ.call_once(|| {
            let places = std::env::var("FAILPOINTS").unwrap_or_default();
            for place in places.split(';').filter(|p| !p.trim().is_empty()) {
                let (name, action) = place.split_once('=').unwrap_or((place, "return"));
                if let Err(why) = fail::cfg(name.trim(), action.trim()) {
                    panic!("FAILPOINTS: \"{place}\" is not NAME=ACTION: {why}");
                }
            }
        });
        fail::fail_point!(name, |_| die());
    }

    /// A number that a test gives by the environment.
    pub fn number(variable: &str) -> Option<u32> {
        std::env::var(variable).ok()?.parse().ok()
    }
}

#[cfg(feature = "failpoints")]
pub use armed::{number, point};

/// A place with a name. No code: the feature is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn point(_name: &str) {}

/// A number that a test gives. None: the feature is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn number(_variable: &str) -> Option<u32> {
    None
}
