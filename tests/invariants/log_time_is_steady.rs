//! The time of the log never steps back, and under one leader it leaps no more than a clock that leans a tenth (M25).

use std::time::Duration;

use super::Seen;

/// What a clock adds that leans the other way all of a sudden: a fifth of the second after which it is read off.
const TURN: Duration = Duration::from_millis(210);

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let Some((term, time, real)) = seen.cluster.last_entry else {
        return Ok(());
    };
    let is = seen.entry.now;
    if is < time {
        return Err(format!(
            "entry {} is of {is:?}, the one before of {time:?}",
            seen.entry.index
        ));
    }
    let same = seen
        .cluster
        .managers
        .lead
        .as_ref()
        .is_some_and(|l| l.term == term);
    let elapsed = seen.cluster.now.since(real);
    if same && is.since(time) > elapsed + elapsed / 10 + TURN {
        return Err(format!(
            "the log went on by {:?} within {elapsed:?}",
            is.since(time)
        ));
    }
    Ok(())
}
