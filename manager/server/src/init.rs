//! The first manager of a new cluster: its authority, its own certificate, its log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use manager_core::State;
use manager_core::admit::{self, ClusterRequest};
use model::object::{NodeDescription, NodeRole};
use model::{ClusterId, NodeId, Timestamp};
use proto::identity::{self, Papers, Place};

use crate::raft::{KeyRing, Log};
use crate::server::{ClusterError, Manager, Membership, bind, identity_of, raft_id, wipe};
use crate::writer::{RandomIds, WriteError, Writer};
use crate::{ca, interface};

/// Port of a node for other nodes (Docker's).
pub(crate) const PORT: u16 = 2377;

/// What a new cluster is made with.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitRequest {
    /// The cluster's settings; authority, identity and description are filled in.
    pub(crate) cluster: ClusterRequest,
    /// Where to listen; empty: every address, port 2377.
    pub(crate) listen: String,
    /// Where others reach it; empty: found out.
    pub(crate) advertise: String,
}

/// A cluster that was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    /// A worker's join token.
    pub(crate) token: String,
    /// Where this node is reached.
    pub(crate) address: String,
}

impl Manager {
    /// Makes a cluster with this node as its first manager. A request that is refused leaves nothing behind.
    pub(crate) async fn init(&self, request: InitRequest) -> Result<Made, ClusterError> {
        let _change = self.shared.change.lock().await;
        if *self.membership().borrow() != Membership::None {
            return Err(ClusterError::Active);
        }
        let listener = bind(&listen_address(&request.listen)?)?;
        let place = place(&request.listen, &request.advertise, &listener)?;
        let now = now();
        let (node, cluster) = (NodeId::new(&mut RandomIds), ClusterId::new(&mut RandomIds));
        let mut security = ca::new_security(now)?;
        security.certificate_expiry = request.cluster.security.certificate_expiry;
        security
            .unlock_key
            .clone_from(&request.cluster.security.unlock_key);
        let key = identity::new_key()?;
        let mut admitted = ClusterRequest {
            id: cluster,
            security,
            description: NodeDescription {
                hostname: self.config().hostname.clone(),
                address: place.address.clone(),
                level: self.config().level,
                ..NodeDescription::default()
            },
            ..request.cluster
        };
        // Once to see whether it is refused, and for the lifetime that certificates get.
        let checked = admit::init_cluster(&State::new(), &admitted, node, now, &mut RandomIds)
            .map_err(WriteError::Refused)?;
        drop(checked);
        if admitted.security.certificate_expiry.is_zero() {
            admitted.security.certificate_expiry = admit::EXPIRY_DEFAULT;
        }
        let issued = ca::sign(
            &admitted.security,
            &identity::request(&key)?,
            node,
            NodeRole::Manager,
            cluster,
            now,
        )?;
        let raft_id = raft_id();
        admitted.identity = identity_of(&issued, Some(raft_id));
        let papers = Papers {
            key: key.clone(),
            certificates: issued.certificates,
            authorities: ca::authorities(&admitted.security),
        };
        self.keychain().use_papers(papers.clone())?;
        let made = self.make(&admitted, node, raft_id, &place.address).await;
        let log = match made {
            Ok(log) => log,
            Err(error) => {
                self.keychain().forget()?;
                wipe(&self.dir())?;
                return Err(error);
            }
        };
        crash::point("init.before_papers");
        // Last: from here on there is a cluster.
        let managers = vec![(node, place.address.clone())];
        let address = place.address.clone();
        self.keychain()
            .install(papers, &key, Place { managers, ..place })?;
        let standing = ca::standing(&admitted.security, NodeRole::Worker);
        let token = standing
            .map(|t| ca::token_text(&admitted.security, t))
            .transpose()?;
        self.listen(listener);
        self.start(log);
        Ok(Made {
            node,
            cluster,
            token: token.unwrap_or_default(),
            address,
        })
    }

    async fn make(
        &self,
        request: &ClusterRequest,
        node: NodeId,
        raft_id: u64,
        address: &str,
    ) -> Result<Arc<Log>, ClusterError> {
        let dir = self.dir();
        wipe(&dir)?;
        let keys = KeyRing::create(&dir, None)?;
        let log = Log::bootstrap(&dir, raft_id, self.shared.links.clone(), keys, node, address).await?;
        let log = Arc::new(log);
        let request = request.clone();
        let decide = move |state: &State, now, ids: &mut RandomIds| {
            admit::init_cluster(state, &request, node, now, ids)
        };
        crash::point("init.after_log");
        let written = Writer::new(log.clone()).write(decide).await;
        if let Err(error) = written {
            log.close().await;
            return Err(error.into());
        }
        Ok(log)
    }
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// An address to listen at, with the port where none was given.
pub(crate) fn listen_address(text: &str) -> Result<String, ClusterError> {
    if text.is_empty() {
        return Ok(format!("0.0.0.0:{PORT}"));
    }
    with_port(&interface::resolved(text).map_err(ClusterError::Address)?, PORT)
}

/// `IP`, `IP:PORT`, `[IPv6]:PORT` or `NAME:PORT`, with a port.
pub(crate) fn with_port(text: &str, port: u16) -> Result<String, ClusterError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port).to_string());
    }
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, own) = match text.rsplit_once(':') {
        Some((host, own)) => (host, Some(own)),
        None => (text, None),
    };
    let good = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && own.is_none_or(|p| p.parse::<u16>().is_ok());
    if !good {
        return Err(ClusterError::Address(format!(
            "\"{text}\" is no address: write IP, NAME or INTERFACE, each with or without :PORT"
        )));
    }
    Ok(match own {
        Some(_) => text.to_owned(),
        None => format!("{host}:{port}"),
    })
}

/// Where a node listens, really, and where others reach it.
pub(crate) fn place(listen: &str, advertise: &str, listener: &TcpListener) -> Result<Place, ClusterError> {
    let bound = listener
        .local_addr()
        .map_err(|e| ClusterError::Address(format!("listen at {listen}: {e}")))?;
    let address = if advertise.is_empty() {
        let ip = if bound.ip().is_unspecified() {
            outgoing()
        } else {
            bound.ip()
        };
        SocketAddr::new(ip, bound.port()).to_string()
    } else {
        let advertise = interface::resolved(advertise).map_err(ClusterError::Address)?;
        with_port(&advertise, bound.port())?
    };
    if address
        .parse::<SocketAddr>()
        .is_ok_and(|a| a.ip().is_unspecified())
    {
        return Err(ClusterError::Address(format!(
            "{address} is no address at which others reach this node: choose one with --advertise-addr"
        )));
    }
    Ok(Place {
        listen: bound.to_string(),
        address,
        managers: Vec::new(),
        epoch: 0,
    })
}

/// The address of this host towards others: the one its default route leaves from, else its loopback. Nothing is sent.
fn outgoing() -> IpAddr {
    let local = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // An address for documentation (RFC 5737): connecting a datagram socket only looks up the route.
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    local.map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip())
}

/// Labels of a request.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> model::spec::Labels {
    labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_a_port_where_none_was_given() {
        for (text, wanted) in [
            ("10.0.0.1", Some("10.0.0.1:2377")),
            ("10.0.0.1:5000", Some("10.0.0.1:5000")),
            ("::1", Some("[::1]:2377")),
            ("[::1]:5000", Some("[::1]:5000")),
            ("m1", Some("m1:2377")),
            ("m1.example:99", Some("m1.example:99")),
            ("", None),
            ("a b", None),
            ("m1:port", None),
            ("m1:70000", None),
            ("http://m1", None),
        ] {
            assert_eq!(with_port(text, PORT).ok().as_deref(), wanted, "{text}");
        }
    }
}
