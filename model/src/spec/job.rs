//! Jobs: services whose tasks end, now or whenever a schedule says so.

use std::time::Duration;

/// When a job runs, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Five fields of cron(8), or six with seconds before them, or a nickname such as `@daily`.
    pub cron: String,
    /// Name in the IANA time zone database; empty: UTC.
    pub timezone: String,
    /// What happens when a run is still under way.
    pub concurrency: Concurrency,
    /// Runs that are remembered, 1 to [`HISTORY_MAX`].
    pub history: u32,
    /// A run that could not begin for this long is left out; zero: it begins however late it is.
    pub starting_deadline: Duration,
}

/// Runs that are remembered where nothing is said.
pub const HISTORY_DEFAULT: u32 = 10;
/// Most runs that are remembered: all of them are in one object.
pub const HISTORY_MAX: u32 = 100;
/// Most runs of one job at a time.
pub const RUNS_ACTIVE_MAX: usize = 10;

/// What happens when a run is due and another is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// The one that is due is left out.
    #[default]
    Forbid,
    /// Both run, up to [`RUNS_ACTIVE_MAX`].
    Allow,
    /// The one under way is ended.
    Replace,
}

impl Concurrency {
    /// Its name in flags and files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forbid => "forbid",
            Self::Allow => "allow",
            Self::Replace => "replace",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Forbid, Self::Allow, Self::Replace]
            .into_iter()
            .find(|c| c.as_str() == name)
    }
}
