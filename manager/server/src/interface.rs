//! Addresses that are given by the name of an interface, as in Docker: `eth0`, `eth0:2377`.

use std::net::IpAddr;

/// `IFACE` or `IFACE:PORT` with the interface's address in its place; anything else as it is.
///
/// # Errors
/// What is wrong: an interface without an address, or with several of which none is to be preferred.
pub(crate) fn resolved(text: &str) -> Result<String, String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let listed = if_addrs::get_if_addrs().map_err(|e| format!("list the interfaces of this host: {e}"))?;
    let own: Vec<IpAddr> = (listed.iter())
        .filter(|i| i.name == name)
        .map(if_addrs::Interface::ip)
        .collect();
    if own.is_empty() {
        return Ok(text.to_owned());
    }
    let ip = preferred(name, &own)?;
    Ok(match (port, ip) {
        (None, ip) => ip.to_string(),
        (Some(port), IpAddr::V4(ip)) => format!("{ip}:{port}"),
        (Some(port), IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
    })
}

/// The one IPv4 address of an interface, else its one IPv6 address that others can reach.
fn preferred(name: &str, own: &[IpAddr]) -> Result<IpAddr, String> {
    let four: Vec<&IpAddr> = own.iter().filter(|ip| ip.is_ipv4()).collect();
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local());
    let six: Vec<&IpAddr> = own.iter().filter(|ip| ip.is_ipv6() && !link_local(ip)).collect();
    let (kind, of) = if four.is_empty() {
        ("IPv6", six)
    } else {
        ("IPv4", four)
    };
    match of.as_slice() {
        [one] => Ok(**one),
        [] => Err(format!(
            "the interface {name} has no address that others can reach"
        )),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(format!(
                "the interface {name} has several {kind} addresses: give one of {}",
                several.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_stands_for_its_one_address() {
        type Row<'a> = (&'a [&'a str], Result<&'a str, &'a str>);
        let rows: [Row<'_>; 6] = [
            (&["10.0.0.1"], Ok("10.0.0.1")),
            (&["fe80::1", "10.0.0.1", "fd00::1"], Ok("10.0.0.1")),
            (&["fe80::1", "fd00::1"], Ok("fd00::1")),
            (&["fe80::1"], Err("no address that others can reach")),
            (&["10.0.0.1", "10.0.0.2"], Err("give one of 10.0.0.1, 10.0.0.2")),
            (&["fd00::1", "fd00::2"], Err("several IPv6 addresses")),
        ];
        for (own, wanted) in rows {
            let addresses: Vec<IpAddr> = own.iter().map(|a| a.parse().unwrap()).collect();
            match (preferred("eth0", &addresses), wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got.to_string(), wanted),
                (Err(got), Err(part)) => assert!(got.contains(part), "{got}"),
                (got, _) => panic!("{own:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_interface_stays_as_it_is() {
        for text in ["10.0.0.1", "[::1]:2377", "m1.example:99", "a b", ""] {
            assert_eq!(resolved(text).unwrap(), text);
        }
        assert_eq!(resolved("lo:2377").unwrap(), "127.0.0.1:2377");
        assert_eq!(resolved("lo").unwrap(), "127.0.0.1");
    }
}
