//! Names: one small name server, listening at 127.0.0.11:53 in every container's namespace.

mod answer;
mod server;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub(crate) use server::{Server, Sockets};

/// Every name, by network, and who may ask for which.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Zone {
    /// Containers by id: numbers of their networks, and whether all of those are without a way out.
    pub askers: BTreeMap<String, (Vec<u32>, bool)>,
    /// Names in lower case with what they stand for, addresses of IPv4 and IPv6.
    pub names: BTreeMap<(u32, String), Vec<IpAddr>>,
    /// Names of addresses.
    pub reverse: BTreeMap<IpAddr, String>,
    /// Names of ports, such as `_http._tcp.web`, in lower case: names and ports they stand for (RFC 2782).
    pub located: BTreeMap<(u32, String), Vec<(String, u16)>>,
}
