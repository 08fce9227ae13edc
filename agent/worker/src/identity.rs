//! Keeping this node's certificate: a new one in time, with another role, or of another authority.

use std::time::Duration;

use model::Timestamp;
use model::object::NodeRole;
use proto::ca::ca_client::CaClient;
use proto::ca::{IssueRequest, RenewRequest};
use proto::channel;
use proto::identity::{self, IdentityError};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::agent::{Shared, now};
use crate::session::random_share;

/// Bounds of the pause after a certificate could not be renewed (Docker's).
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// All nodes are told at the same time to renew: within this they spread.
const SPREAD: Duration = Duration::from_secs(2);
/// Longest sleep: clocks may be set.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// How long a renewal may take.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What the manager said this node is to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Its role; absent: nothing was said yet.
    pub(crate) role: Option<NodeRole>,
    /// Whether it is to ask for a new certificate.
    pub(crate) renew: bool,
    /// Whom to trust, PEM.
    pub(crate) authorities: String,
}

/// Renews the certificate when it is time or the manager says so; returns when this node has none any more.
pub(crate) async fn renew(shared: &Shared, channel: Channel, mut told: watch::Receiver<Told>) {
    let keychain = &shared.config.keychain;
    // Chosen once a session: between 50 and 80 % of the lifetime.
    let share = 0.5 + 0.3 * random_share();
    let mut retry = RETRY_FIRST;
    loop {
        let Some(own) = keychain.identity() else { return };
        let say = told.borrow_and_update().clone();
        if !say.authorities.is_empty() && say.authorities != own.papers.authorities {
            // Trust comes before certificates: those of the new authority are met from now on.
            if let Err(error) = keychain.renew(&own.papers.certificates, &say.authorities) {
                tracing::error!(%error, "take the cluster's certificate authorities");
            }
            continue;
        }
        let at = renew_at(own.subject.not_before, own.subject.not_after, share);
        let wanted = say.renew || say.role.is_some_and(|role| role != own.subject.role);
        if wanted || now() >= at {
            if wanted {
                tokio::time::sleep(SPREAD.mul_f64(random_share())).await;
            }
            match ask(shared, channel.clone(), &say).await {
                Ok(()) => {
                    tracing::info!("this node has a new certificate");
                    shared.network.want_new_key();
                    retry = RETRY_FIRST;
                    // What was said before is done; what is said from now on counts, and time.
                    let next = keychain
                        .identity()
                        .map(|i| renew_at(i.subject.not_before, i.subject.not_after, share));
                    let rest = next.unwrap_or_default().since(now());
                    tokio::select! {
                        () = tokio::time::sleep(rest) => {}
                        changed = told.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
                Err(error) => tracing::warn!("the certificate could not be renewed: {error}"),
            }
            let pause = retry.mul_f64(random_share());
            retry = (retry * 2).min(RETRY_MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = told.changed() => if changed.is_err() { return },
            }
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(at.since(now()).min(SLEEP_MAX)) => {}
            changed = told.changed() => if changed.is_err() { return },
        }
    }
}

/// Asks for a new certificate when the node's own has ended, as it may when a host was off for long.
///
/// # Errors
/// Why there is none, for people.
pub(crate) async fn recover(shared: &Shared, address: &str) -> Result<(), Status> {
    let keychain = &shared.config.keychain;
    let Some(own) = keychain.identity() else {
        return Ok(());
    };
    if keychain.clock().now().0 < own.subject.not_after {
        return Ok(());
    }
    let text = |e: IdentityError| Status::internal(e.to_string());
    let roots = identity::roots(&own.papers.authorities).map_err(text)?;
    let channel = channel::connect_stranger(address, roots).await;
    let channel = channel.map_err(|e| Status::unavailable(e.chain()))?;
    let request = IssueRequest {
        node_id: own.subject.node.to_string(),
        csr: identity::request(&own.papers.key).map_err(text)?,
        ..IssueRequest::default()
    };
    let mut client = CaClient::new(channel);
    let call = tokio::time::timeout(CALL_LIMIT, client.issue(request)).await;
    let reply = call.map_err(|_| Status::unavailable("E_CERT_EXPIRED: no answer in time"))??;
    let reply = reply.into_inner();
    keychain
        .renew(&reply.certificates, &reply.authorities)
        .map_err(text)?;
    tracing::warn!("the certificate of this node had ended: it has a new one");
    Ok(())
}

/// When a certificate is renewed.
fn renew_at(not_before: Timestamp, not_after: Timestamp, share: f64) -> Timestamp {
    not_before + not_after.since(not_before).mul_f64(share)
}

async fn ask(shared: &Shared, channel: Channel, say: &Told) -> Result<(), String> {
    let keychain = &shared.config.keychain;
    let own = keychain.identity().ok_or("this node has no identity")?;
    let text = |e: IdentityError| e.to_string();
    let csr = identity::request(&own.papers.key).map_err(text)?;
    let mut client = CaClient::new(channel);
    let call = tokio::time::timeout(CALL_LIMIT, client.renew(RenewRequest { csr })).await;
    let reply = call.map_err(|_| "no answer in time")?;
    let reply = reply.map_err(|e| e.message().to_owned())?.into_inner();
    let authorities = if say.authorities.is_empty() {
        &reply.authorities
    } else {
        &say.authorities
    };
    keychain.renew(&reply.certificates, authorities).map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_within_its_life() {
        let (from, to) = (Timestamp(1_000), Timestamp(11_000));
        assert_eq!(renew_at(from, to, 0.5), Timestamp(6_000));
        assert_eq!(renew_at(from, to, 0.8), Timestamp(9_000));
        assert_eq!(renew_at(from, from, 0.8), from);
    }
}
