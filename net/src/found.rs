//! What the kernel has: read at the start and again from time to time, as others may change it.

use std::net::Ipv4Addr;

use crate::dataplane::{NetError, at};
use crate::overlay::{self, Ways};
use crate::plan::{self, Elements, HOST_SETS, SETS};
use crate::ruleset::{self, TABLE};
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, Batch};
use crate::tunnel;
use crate::wireguard::{self, Wireguard};

/// Names and addresses that follow from a dataplane's name.
pub(crate) struct Transit {
    pub(crate) host_end: String,
    pub(crate) inner_end: String,
    pub(crate) table: String,
    pub(crate) host: Ipv4Addr,
    pub(crate) inner: Ipv4Addr,
}

impl Transit {
    pub(crate) fn of(name: &str) -> Self {
        // One of 64 x 63 link-local /30s, chosen by the name (FNV-1a); 169.254.1.0 is left to the containers' gateway.
        let hash = name.bytes().fold(2_166_136_261u32, |h, b| {
            (h ^ u32::from(b)).wrapping_mul(16_777_619)
        });
        let third = u8::try_from(64 + hash % 64).unwrap_or(64);
        let fourth = u8::try_from((hash >> 8) % 63 * 4).unwrap_or(0);
        Self {
            host_end: format!("rs-{name}"),
            inner_end: "uplink".into(),
            table: format!("rswarm-{name}"),
            host: Ipv4Addr::new(169, 254, third, fourth + 1),
            inner: Ipv4Addr::new(169, 254, third, fourth + 2),
        }
    }
}

/// What the kernel has.
pub(crate) struct Found {
    pub(crate) elements: Elements,
    pub(crate) host_sets: Elements,
    pub(crate) ways: Ways,
}

impl Found {
    /// How many things of one are not in the other.
    pub(crate) fn apart(&self, other: &Self) -> usize {
        let sets = |a: &Elements, b: &Elements| -> usize {
            let changes = plan::diff(a, b);
            changes
                .values()
                .map(|(gone, new)| gone.len().max(new.len()))
                .sum()
        };
        let (before, after) = overlay::steps(&self.ways, &other.ways);
        before.len()
            + after.len()
            + sets(&self.elements, &other.elements)
            + sets(&self.host_sets, &other.host_sets)
    }
}

/// Makes a table, also in the place of one with other rules, as an earlier version made: with the elements that were in its
/// sets, as far as they fit, so that everything goes on.
fn make_table(
    tables: &mut Socket,
    name: &str,
    sets: &[&'static str],
    rules: &dyn Fn() -> Batch,
) -> Result<(), NetError> {
    let mut batch = rules();
    let mark = format!("rules-{:016x}", batch.fingerprint());
    batch.set(&mark, 4, None);
    if nft::table_exists(tables, name).map_err(at("list tables"))? {
        if nft::elements(tables, name, &mark).is_ok() {
            return Ok(());
        }
        let mut kept = rules();
        kept.set(&mark, 4, None);
        for set in sets {
            if let Ok(elements) = nft::elements(tables, name, set) {
                kept.add(set, &elements);
            }
        }
        // Each in one transaction; one that is too large, or whose elements have another form, comes without them.
        if kept.instead().commit(tables).is_ok() {
            return Ok(());
        }
        batch = batch.instead();
    }
    batch.commit(tables).map_err(at(format!("make the table {name}")))
}

/// Makes the host's table.
pub(crate) fn make_host_table(tables: &mut Socket, transit: &Transit) -> Result<(), NetError> {
    let sets: Vec<&str> = HOST_SETS.iter().map(|(set, _)| *set).collect();
    let rules = || ruleset::host(&transit.table, &transit.host_end, transit.inner, tunnel::NUMBER);
    make_table(tables, &transit.table, &sets, &rules)
}

/// Makes the dataplane's table.
pub(crate) fn make_inner_table(tables: &mut Socket, transit: &Transit) -> Result<(), NetError> {
    let sets: Vec<&str> = SETS.iter().map(|(set, ..)| *set).collect();
    let rules = || {
        ruleset::dataplane(
            &transit.inner_end,
            [tunnel::DEVICE, wireguard::DEVICE],
            transit.inner,
        )
    };
    make_table(tables, TABLE, &sets, &rules)
}

/// Reads what the kernel has.
pub(crate) fn look(
    links: &mut Socket,
    tables: &mut Socket,
    host_tables: &mut Socket,
    transit: &Transit,
    wireguard: Option<&mut Wireguard>,
) -> Result<Found, NetError> {
    let ways = tunnel::found(links, tables, wireguard)?;
    let read = |tables: &mut Socket, table: &str, set: &'static str| {
        let elements =
            nft::elements(tables, table, set).map_err(at(format!("read the set {set} of {table}")))?;
        Ok((set, elements.into_iter().collect()))
    };
    let inner = SETS.iter().map(|(set, ..)| read(tables, TABLE, set));
    let elements = inner.collect::<Result<Elements, NetError>>()?;
    let host = HOST_SETS
        .iter()
        .map(|(set, _)| read(host_tables, &transit.table, set));
    let host_sets = host.collect::<Result<Elements, NetError>>()?;
    Ok(Found {
        elements,
        host_sets,
        ways,
    })
}
