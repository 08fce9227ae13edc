//! Published ports that the cluster chooses.

use model::spec::Protocol;

use crate::state::State;

/// Ports given where none was asked for (Docker's range).
const RANGE: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The lowest free port of the range for a protocol, other than those just `taken`.
pub(crate) fn free_port(state: &State, protocol: Protocol, taken: &[u16]) -> Option<u16> {
    RANGE
        .into_iter()
        .find(|p| !taken.contains(p) && state.port_holder(protocol, *p).is_none())
}
