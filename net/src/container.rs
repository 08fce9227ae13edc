//! A container's end of its link: addresses, and routes to the gateway.

use std::io;

use crate::dataplane::{EndpointAddress, NETLINK_ROUTE, NetError, at};
use crate::family::Family;
use crate::sys::link;
use crate::sys::netlink::Socket;
use crate::uplink::{gateway, setting};

/// Makes the end of the link as it has to be; the thread is in the container's namespace. One without IPv6 addresses is left as the kernel makes it.
pub(crate) fn make_end(addresses: &[EndpointAddress], gateway_mac: [u8; 6]) -> Result<(), NetError> {
    let mut links = Socket::open(NETLINK_ROUTE).map_err(at("open netlink"))?;
    let find = |links: &mut Socket, name: &str| -> Result<u32, NetError> {
        link::index(links, name)
            .map_err(at("list links"))?
            .ok_or_else(|| at(name)(io::ErrorKind::NotFound.into()))
    };
    let of = |family: Family| addresses.iter().filter(move |a| Family::of(a.address) == family);
    if of(Family::V6).next().is_some() {
        // It is told all there is to know: no router, and nobody else with its addresses, has to be asked.
        for (path, value) in [
            ("all/disable_ipv6", "0"),
            ("eth0/accept_ra", "0"),
            ("eth0/autoconf", "0"),
            ("eth0/dad_transmits", "0"),
        ] {
            setting(Family::V6, &format!("conf/{path}"), value)?;
        }
    }
    let lo = find(&mut links, "lo")?;
    link::up(&mut links, lo).map_err(at("put lo up"))?;
    let eth = find(&mut links, "eth0")?;
    for EndpointAddress { address, .. } in addresses {
        link::address(&mut links, eth, *address, Family::of(*address).bits())
            .map_err(at(format!("give the container {address}")))?;
    }
    link::up(&mut links, eth).map_err(at("put eth0 up"))?;
    for family in Family::ALL {
        if *family == Family::V6 && of(*family).next().is_none() {
            continue;
        }
        let gateway = gateway(*family);
        link::neighbour(&mut links, eth, gateway, gateway_mac).map_err(at("know the gateway"))?;
        let outward = of(*family).find(|a| !a.internal).map(|a| a.address);
        let everywhere = (family.unspecified(), 0);
        link::route_from(&mut links, everywhere, eth, Some(gateway), outward)
            .map_err(at("route to the gateway"))?;
        for EndpointAddress { address, subnets, .. } in of(*family) {
            for (subnet, bits) in subnets {
                link::route_from(&mut links, (*subnet, *bits), eth, Some(gateway), Some(*address))
                    .map_err(at(format!("route to {subnet}/{bits} from {address}")))?;
            }
        }
    }
    Ok(())
}
