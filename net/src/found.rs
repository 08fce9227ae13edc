//! What the kernel has: read at the start and again from time to time, as others may change it.

use std::collections::BTreeMap;

use crate::dataplane::{NetError, at};
use crate::family::Family;
use crate::overlay::{self, Ways};
use crate::plan::{self, Elements, SETS, Set, host_sets};
use crate::ruleset::{self, TABLE};
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, Batch};
use crate::tunnel;
use crate::uplink::Transit;
use crate::wireguard::{self, Wireguard};

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
    (family, name): (Family, &str),
    sets: &[&'static str],
    rules: &dyn Fn() -> Batch,
) -> Result<(), NetError> {
    let mut batch = rules();
    let mark = format!("rules-{:016x}", batch.fingerprint());
    batch.set(&mark, 4, None);
    if nft::table_exists(tables, family, name).map_err(at("list tables"))? {
        if nft::elements(tables, family, name, &mark).is_ok() {
            return Ok(());
        }
        let mut kept = rules();
        kept.set(&mark, 4, None);
        for set in sets {
            if let Ok(elements) = nft::elements(tables, family, name, set) {
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

/// Makes the host's table of a family.
pub(crate) fn make_host_table(
    tables: &mut Socket,
    transit: &Transit,
    family: Family,
) -> Result<(), NetError> {
    let sets: Vec<&str> = host_sets(family).iter().map(|(set, _)| *set).collect();
    let inner = transit.ends(family).1;
    let rules = || ruleset::host(&transit.table, &transit.host_end, inner, tunnel::NUMBER);
    make_table(tables, (family, &transit.table), &sets, &rules)
}

/// Makes the dataplane's tables.
pub(crate) fn make_inner_tables(
    tables: &mut Socket,
    transit: &Transit,
    families: &[Family],
) -> Result<(), NetError> {
    let sets: Vec<&str> = SETS.iter().map(|(set, ..)| *set).collect();
    for family in families {
        let rules = || {
            ruleset::dataplane(
                &transit.inner_end,
                [tunnel::DEVICE, wireguard::DEVICE],
                transit.own(*family),
            )
        };
        make_table(tables, (*family, TABLE), &sets, &rules)?;
    }
    Ok(())
}

/// Reads what the kernel has, once the devices have what nobody counts.
pub(crate) fn look(
    links: &mut Socket,
    tables: &mut Socket,
    host_tables: &mut Socket,
    transit: &Transit,
    wireguard: Option<&mut Wireguard>,
    families: &'static [Family],
) -> Result<Found, NetError> {
    tunnel::complete(links, families)?;
    let ways = tunnel::found(links, tables, wireguard, families)?;
    let (mut elements, mut host_sets) = (Elements::new(), Elements::new());
    for family in families {
        for (set, ..) in SETS {
            elements.extend([read(tables, TABLE, (*family, set))?]);
        }
        host_sets.extend(host_elements(host_tables, transit, *family)?);
    }
    Ok(Found {
        elements,
        host_sets,
        ways,
    })
}

/// What the host's table of a family has; none is no set. The host has none of IPv6 before it is needed.
pub(crate) fn host_elements(
    tables: &mut Socket,
    transit: &Transit,
    family: Family,
) -> Result<Elements, NetError> {
    let there = nft::table_exists(tables, family, &transit.table);
    if !there.map_err(at("list the host's tables"))? {
        return Ok(Elements::new());
    }
    let sets = host_sets(family).iter();
    sets.map(|(set, _)| read(tables, &transit.table, (family, set)))
        .collect()
}

type Read = (Set, BTreeMap<Vec<u8>, Option<Vec<u8>>>);

fn read(tables: &mut Socket, table: &str, (family, set): Set) -> Result<Read, NetError> {
    let elements =
        nft::elements(tables, family, table, set).map_err(at(format!("read the set {set} of {table}")))?;
    Ok(((family, set), elements.into_iter().collect()))
}
