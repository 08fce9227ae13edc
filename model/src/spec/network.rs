//! Networks, how tasks join them, and how services are reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Labels;
use crate::NetworkId;

/// Version of the Internet Protocol, to which every address and subnet belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Of a subnet.
    pub const fn of_subnet(subnet: &IpNet) -> Self {
        match subnet {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A network as the user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// `overlay` (also when empty) is the only driver.
    pub driver: String,
    /// Options of the driver, such as `encrypted`.
    pub options: BTreeMap<String, String>,
    /// Without a way out of the network.
    pub internal: bool,
    /// May be joined by containers that belong to no service.
    pub attachable: bool,
    /// The network of published ports; one in a cluster.
    pub ingress: bool,
    /// With IPv6 addresses beside those of IPv4, which every network has.
    pub ipv6: bool,
    /// Subnets asked for. Of IPv4 none: taken from the cluster's pool; of IPv6 none: from its unique local prefix.
    pub subnets: Vec<IpNet>,
}

/// The option that encrypts a network.
pub const ENCRYPTED: &str = "encrypted";

impl NetworkSpec {
    /// The families of which whoever joins gets one address each, IPv4 first.
    pub const fn families(&self) -> &'static [Family] {
        if self.ipv6 {
            &[Family::V4, Family::V6]
        } else {
            &[Family::V4]
        }
    }

    /// Whether nothing of it passes between hosts in the open: Docker's option `encrypted`, alone or with a yes.
    ///
    /// # Errors
    /// The value, when it is neither a yes nor a no.
    pub fn encrypted(&self) -> Result<bool, &str> {
        match self.options.get(ENCRYPTED).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(other),
        }
    }
}

/// How the tasks of a service join one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAttachment {
    /// Which network; in a request [`NetworkId::NIL`] asks the manager to find it by `name`.
    pub network: NetworkId,
    /// Its name, for messages and for that search.
    pub name: String,
    /// Nothing of it passes between hosts in the open: kept here, as tasks outlive a network that is removed. The manager finds
    /// it out.
    pub encrypted: bool,
    /// More names of the service in this network.
    pub aliases: Vec<String>,
    /// Virtual address that the service is to have in this network; none: one is chosen.
    pub address: Option<Ipv4Addr>,
    /// The same of IPv6, in a network that has it.
    pub address6: Option<Ipv6Addr>,
}

impl NetworkAttachment {
    /// The virtual address of a family that the service is to have, if one was asked for.
    pub fn asked(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.address.map(IpAddr::V4),
            Family::V6 => self.address6.map(IpAddr::V6),
        }
    }
}

/// How a service is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSpec {
    /// What the service's name resolves to.
    pub mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<PortSpec>,
}

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointMode {
    /// One virtual address of each family.
    #[default]
    Vip,
    /// The addresses of its tasks.
    DnsRr,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    /// Name for SRV records; may be empty.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the container.
    pub target: u16,
    /// Port of the nodes; 0: one of 30000-32767 is chosen.
    pub published: u16,
    /// Where it is published.
    pub mode: PublishMode,
    /// Address of the node to which it is bound; empty: all.
    pub host_ip: String,
    /// A connection to a task begins with who its client is (PROXY protocol v2).
    pub proxy: bool,
}

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PublishMode {
    /// On every node, to any task.
    #[default]
    Ingress,
    /// On the node of each task, to that task.
    Host,
}
