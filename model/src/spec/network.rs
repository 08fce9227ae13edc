//! Networks, how tasks join them, and how services are reached.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Labels;
use crate::NetworkId;

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
    /// With IPv6 addresses.
    pub ipv6: bool,
    /// Subnets asked for; empty: taken from the cluster's pool.
    pub subnets: Vec<IpNet>,
}

/// The option that encrypts a network.
pub const ENCRYPTED: &str = "encrypted";

impl NetworkSpec {
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
    /// More names of the service in this network.
    pub aliases: Vec<String>,
    /// Virtual address that the service is to have in this network; none: one is chosen.
    pub address: Option<IpAddr>,
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
    /// One virtual address.
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
