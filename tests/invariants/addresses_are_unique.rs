//! No address of a network is held twice, by tasks or by services (I28).

use std::collections::BTreeSet;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let mut held = BTreeSet::new();
    let vips = seen.after.services().flat_map(|s| s.endpoint.vips.iter());
    let live = seen.after.tasks().filter(|t| !t.status.state.is_terminal());
    for address in vips.chain(live.flat_map(|t| t.addresses.iter())) {
        if !held.insert(*address) {
            return Err(format!("{} is held twice", address.1));
        }
    }
    Ok(())
}
