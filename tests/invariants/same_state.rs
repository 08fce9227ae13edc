//! A manager that has applied the whole log has the state that everybody has, with every acknowledged write (I2, I4).

use std::collections::BTreeMap;

use manager_core::State;
use model::object::Key;

pub(super) fn check(mine: &State, log: &State, acked: &BTreeMap<Key, u64>) -> Result<(), String> {
    if !mine.objects().eq(log.objects()) {
        let differs = mine.objects().zip(log.objects()).find(|(a, b)| a != b);
        return Err(format!(
            "a manager applied the same log to another state: {differs:?}"
        ));
    }
    if (mine.index(), mine.time()) != (log.index(), log.time()) {
        return Err("a manager is at another entry or time after the same log".into());
    }
    mine.check().map_err(|problems| problems.join("; "))?;
    for (key, index) in acked {
        if mine.version(*key) < *index {
            return Err(format!("{key:?}, acknowledged in entry {index}, is lost"));
        }
    }
    Ok(())
}
