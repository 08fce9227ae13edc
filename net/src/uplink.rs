//! The link between the dataplane and its host, and what of IPv6 the host itself has to do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::OnceLock;

use crate::dataplane::{NetError, at};
use crate::family::Family;
use crate::ruleset::Own;
use crate::sys::link;
use crate::sys::netlink::Socket;

/// Bits that both ends have in common.
const fn prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 30,
        Family::V6 => 126,
    }
}

/// Gateway of every container: link-local, the same everywhere.
pub(crate) const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    }
}

/// Why the kernel has no tables of IPv6, once that was found.
static NO_TABLES: OnceLock<String> = OnceLock::new();

/// Why this host does without IPv6, if it does: its kernel was started with `ipv6.disable=1`, or lacks parts of it.
pub(crate) fn no_ipv6() -> Option<String> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Some("this host's kernel has no IPv6 (it was started with ipv6.disable=1?)".into());
    }
    NO_TABLES.get().cloned()
}

/// The families that are used.
pub(crate) fn families() -> &'static [Family] {
    if no_ipv6().is_none() {
        Family::ALL
    } else {
        &[Family::V4]
    }
}

/// Does without IPv6 from now on, as its tables cannot be made; the thread is in the dataplane's namespace, through which nothing
/// of it may pass then.
pub(crate) fn give_up_ipv6(why: &NetError) -> Result<(), NetError> {
    setting(Family::V6, "conf/all/disable_ipv6", "1")?;
    let _ = NO_TABLES.set(format!(
        "this host's kernel has IPv6, but not what its tables need (modules nft_fib_ipv6 and nft_reject_ipv6?): {why}"
    ));
    Ok(())
}

/// Names and addresses that follow from a dataplane's name.
pub(crate) struct Transit {
    pub(crate) host_end: String,
    pub(crate) inner_end: String,
    pub(crate) table: String,
    hash: u32,
}

impl Transit {
    pub(crate) fn of(name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(2_166_136_261u32, |h, b| {
            (h ^ u32::from(b)).wrapping_mul(16_777_619)
        });
        Self {
            host_end: format!("rs-{name}"),
            inner_end: "uplink".into(),
            table: format!("rswarm-{name}"),
            hash,
        }
    }

    /// The addresses of the host's end and of the dataplane's.
    pub(crate) fn ends(&self, family: Family) -> (IpAddr, IpAddr) {
        match family {
            // One of 64 x 63 link-local /30s, chosen by the name; 169.254.1.0 is left to the containers' gateway.
            Family::V4 => {
                let third = u8::try_from(64 + self.hash % 64).unwrap_or(64);
                let fourth = u8::try_from((self.hash >> 8) % 63 * 4).unwrap_or(0);
                let end = |n| IpAddr::V4(Ipv4Addr::new(169, 254, third, fourth + n));
                (end(1), end(2))
            }
            // Unique local ones (RFC 4193), as no other end could have a link-local one as the target of its connections. They
            // leave the host as little as those above do.
            Family::V6 => {
                let [a, b, c, d] = self.hash.to_be_bytes();
                let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                let end = |n| IpAddr::V6(Ipv6Addr::new(0xfd72, 0x7377, 0x6172, 0x6d00, 0, high, low, n));
                (end(1), end(2))
            }
        }
    }

    /// What the dataplane is called.
    pub(crate) fn own(&self, family: Family) -> Own {
        let address = self.ends(family).1;
        Own {
            address,
            gateway: match family {
                Family::V4 => gateway(family),
                // What is of a link only reaches no further.
                Family::V6 => address,
            },
        }
    }

    /// What the ends of the link are called on it.
    pub(crate) fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (
            crate::dataplane::mac(&self.host_end, 1),
            crate::dataplane::mac(&self.host_end, 2),
        )
    }
}

/// Sets `net.ipv4.…` or `net.ipv6.…` of the thread's namespace.
pub(crate) fn setting(family: Family, path: &str, value: &str) -> Result<(), NetError> {
    let of = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    fs::write(format!("/proc/sys/net/{of}/{path}"), value)
        .map_err(at(format!("set net.{of}.{path} to {value}")))
}

/// The host's end for IPv4; the thread is in the host's namespace.
pub(crate) fn host_end(links: &mut Socket, transit: &Transit) -> Result<(), NetError> {
    let index = index_of(links, &transit.host_end)?;
    link::up(links, index).map_err(at("put the host's end of the link up"))?;
    link::address(links, index, transit.ends(Family::V4).0, prefix(Family::V4))
        .map_err(at("give the host its end of the link"))?;
    setting(Family::V4, "ip_forward", "1")?;
    setting(
        Family::V4,
        &format!("conf/{}/route_localnet", transit.host_end),
        "1",
    )?;
    setting(Family::V4, &format!("conf/{}/rp_filter", transit.host_end), "0")
}

/// The host's end for IPv6, where a container needs it; the thread is in the host's namespace.
pub(crate) fn host_end_ipv6(links: &mut Socket, transit: &Transit) -> Result<(), NetError> {
    let index = index_of(links, &transit.host_end)?;
    setting(
        Family::V6,
        &format!("conf/{}/disable_ipv6", transit.host_end),
        "0",
    )?;
    let (outer, inner) = transit.ends(Family::V6);
    link::address(links, index, outer, prefix(Family::V6))
        .map_err(at("give the host its IPv6 end of the link"))?;
    link::neighbour(links, index, inner, transit.macs().1).map_err(at("know the dataplane's end of the link"))
}

/// Lets the host pass IPv6 on; the thread is in its namespace.
pub(crate) fn pass_ipv6_on() -> Result<(), NetError> {
    let all = "/proc/sys/net/ipv6/conf";
    if fs::read_to_string(format!("{all}/all/forwarding")).is_ok_and(|on| on.trim() == "1") {
        return Ok(());
    }
    // A router believes no other router (RFC 4862): an interface that got its address and its way out from one would lose them
    // with the next line. 2 means: believe them all the same. `default` is for interfaces that come later.
    let interfaces = fs::read_dir(all).map_err(at("list the settings of interfaces"))?;
    for interface in interfaces.flatten() {
        let name = interface.file_name();
        let believes = fs::read_to_string(interface.path().join("accept_ra"));
        if believes.is_ok_and(|b| b.trim() == "1") {
            setting(Family::V6, &format!("conf/{}/accept_ra", name.display()), "2")?;
        }
    }
    setting(Family::V6, "conf/all/forwarding", "1")
}

/// The dataplane's end, and its namespace; the thread is in it.
pub(crate) fn inner_end(links: &mut Socket, transit: &Transit, families: &[Family]) -> Result<(), NetError> {
    if families.contains(&Family::V6) {
        // Nobody here finds out for itself what it is called: addresses of its own, asking whether another has one, and
        // routers.
        for (path, value) in [
            ("all/disable_ipv6", "0"),
            ("default/disable_ipv6", "0"),
            ("default/accept_ra", "0"),
            ("default/autoconf", "0"),
            ("default/dad_transmits", "0"),
            ("default/addr_gen_mode", "1"),
            ("all/forwarding", "1"),
        ] {
            setting(Family::V6, &format!("conf/{path}"), value)?;
        }
    }
    if let Some(lo) = link::index(links, "lo").map_err(at("list links"))? {
        link::up(links, lo).map_err(at("put lo up"))?;
    }
    let uplink = index_of(links, &transit.inner_end)?;
    link::up(links, uplink).map_err(at("put the dataplane's end of the link up"))?;
    for family in families {
        let (outer, inner) = transit.ends(*family);
        link::address(links, uplink, inner, prefix(*family))
            .map_err(at("give the dataplane its end of the link"))?;
        if *family == Family::V6 {
            link::neighbour(links, uplink, outer, transit.macs().0)
                .map_err(at("know the host's end of the link"))?;
        }
        link::route(links, (family.unspecified(), 0), uplink, Some(outer)).map_err(at("route out"))?;
    }
    link::address(links, uplink, gateway(Family::V4), 32)
        .map_err(at("give the dataplane the gateway's address"))?;
    setting(Family::V4, "ip_forward", "1")?;
    // Strict on containers' links: a packet with another's source is dropped. The way out takes any source.
    setting(Family::V4, "conf/all/rp_filter", "0")?;
    setting(Family::V4, "conf/default/rp_filter", "1")?;
    setting(Family::V4, &format!("conf/{}/rp_filter", transit.inner_end), "0")
}

fn index_of(links: &mut Socket, name: &str) -> Result<u32, NetError> {
    link::index(links, name)
        .map_err(at("list links"))?
        .ok_or_else(|| at(format!("find the link {name}"))(std::io::ErrorKind::NotFound.into()))
}
