//! The cluster's certificate authority: what it signs, and the tokens that let hosts in.

use model::object::{Authority, JoinToken, NodeRole, Security};
use model::{ClusterId, NodeId, Timestamp};
use proto::identity::{self, NAME_MANAGER, UNIT_MANAGER, UNIT_WORKER, hex, name_of};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use ring::digest::{SHA256, digest};
use ring::hmac;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::writer::random;

/// Lifetime of an authority (Docker's).
const AUTHORITY_YEARS: i64 = 20;
/// A certificate begins so long before now, for hosts whose clock is late (Docker's).
const BACKDATE_MS: u64 = 3600 * 1000;
/// Largest request for a certificate.
const REQUEST_MAX: usize = 4096;
/// Digits of a digest and of a secret in a token.
const DIGEST_LEN: usize = 50;
const SECRET_LEN: usize = 25;
const TOKEN_PREFIX: &str = "SWMTKN-1-";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is not one for a certificate.
    #[error("E_CSR: the request for a certificate cannot be used: {0}")]
    Request(String),
    /// The request is not signed by the key it is for.
    #[error("E_CSR_SIG: the request for a certificate is not signed by its own key")]
    Signature,
    /// The authority cannot be used.
    #[error("the cluster's certificate authority cannot be used: {0}")]
    Authority(String),
}

/// What is wrong with a text that should be a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "E_TOKEN_FORMAT: this is not a join token: {why}; `rswarm swarm join-token worker` on a manager prints one"
)]
pub struct TokenError {
    why: &'static str,
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// The node's certificate, and one between it and an older authority where there is a rotation; PEM.
    pub certificates: String,
    /// SHA-256 of the node's public key, hex.
    pub key: String,
    /// SHA-256 of the authority, hex.
    pub issuer: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

fn authority_error(e: impl ToString) -> CaError {
    CaError::Authority(e.to_string())
}

fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at.0 / 1000).unwrap_or(i64::MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn authority_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "rswarm-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(Timestamp(now.0.saturating_sub(BACKDATE_MS)));
    params.not_after = params.not_before + time::Duration::days(AUTHORITY_YEARS * 365);
    params
}

/// A new authority.
///
/// # Errors
/// [`CaError::Authority`] when no key can be made.
pub(crate) fn new_authority(now: Timestamp) -> Result<Authority, CaError> {
    let key = KeyPair::generate().map_err(authority_error)?;
    let certificate = authority_params(now).self_signed(&key).map_err(authority_error)?;
    Ok(Authority {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// An authority that an operator brings.
///
/// # Errors
/// [`CaError::Authority`] when certificate and key do not belong together, or the certificate is not an authority's.
pub(crate) fn given_authority(certificate: &str, key: &str) -> Result<Authority, CaError> {
    let pair = KeyPair::from_pem(key).map_err(authority_error)?;
    let der = der(certificate)?;
    let (_, x509) = x509_parser::parse_x509_certificate(&der).map_err(authority_error)?;
    if !x509.is_ca() {
        return Err(CaError::Authority(
            "the certificate is not one of an authority".into(),
        ));
    }
    if x509.public_key().raw != pair.subject_public_key_info() {
        return Err(CaError::Authority("the key is not the certificate's".into()));
    }
    Ok(Authority {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
    })
}

/// The new authority's key, signed by the old one: nodes that trust only the old one follow it.
///
/// # Errors
/// [`CaError::Authority`] when one of them cannot be used.
pub(crate) fn cross_sign(old: &Authority, new: &Authority, now: Timestamp) -> Result<String, CaError> {
    let issuer = issuer(old)?;
    let der = der(&new.certificate)?;
    let (_, x509) = x509_parser::parse_x509_certificate(&der).map_err(authority_error)?;
    let key = rcgen::SubjectPublicKeyInfo::from_der(x509.public_key().raw).map_err(authority_error)?;
    let mut params = authority_params(now);
    // The same name as in what it signs: a chain is built by names.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = x509
        .subject()
        .iter_common_name()
        .next()
        .and_then(|n| n.as_str().ok());
    params
        .distinguished_name
        .push(DnType::CommonName, name.unwrap_or("rswarm-ca"));
    Ok(params.signed_by(&key, &issuer).map_err(authority_error)?.pem())
}

fn der(pem: &str) -> Result<Vec<u8>, CaError> {
    let der = rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).map_err(authority_error)?;
    Ok(der.as_ref().to_vec())
}

fn issuer(authority: &Authority) -> Result<Issuer<'static, KeyPair>, CaError> {
    let key = KeyPair::from_pem(&authority.key).map_err(authority_error)?;
    Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(authority_error)
}

/// Signs a request. Of the request only its key is taken: name, role and uses are what the cluster says.
///
/// # Errors
/// [`CaError`] when the request is malformed, or its key is of a kind that is not taken (P-256 and Ed25519 are).
pub(crate) fn sign(
    security: &Security,
    csr: &[u8],
    node: NodeId,
    role: NodeRole,
    cluster: ClusterId,
    now: Timestamp,
) -> Result<Issued, CaError> {
    if csr.is_empty() || csr.len() > REQUEST_MAX {
        return Err(CaError::Request(format!(
            "it has {} bytes, between 1 and {REQUEST_MAX} are taken",
            csr.len()
        )));
    }
    let request =
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec()))
            .map_err(|e| match e {
                rcgen::Error::InvalidCertificationRequestSignature | rcgen::Error::RingUnspecified => {
                    CaError::Signature
                }
                other => CaError::Request(other.to_string()),
            })?;
    let algorithm = request.public_key.algorithm();
    if *algorithm != rcgen::PKCS_ECDSA_P256_SHA256 && *algorithm != rcgen::PKCS_ED25519 {
        return Err(CaError::Request("its key is neither P-256 nor Ed25519".into()));
    }
    let (authority, between) = match &security.next {
        Some(next) => (&next.authority, next.cross_signed.as_str()),
        None => (&security.authority, ""),
    };
    let expires_at = now + security.certificate_expiry;
    let mut params = CertificateParams::new(names(node, role)).map_err(authority_error)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, node.to_string());
    params
        .distinguished_name
        .push(DnType::OrganizationName, cluster.to_string());
    let unit = match role {
        NodeRole::Manager => UNIT_MANAGER,
        NodeRole::Worker => UNIT_WORKER,
    };
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, unit);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = date(Timestamp(now.0.saturating_sub(BACKDATE_MS)));
    params.not_after = date(expires_at);
    let certificate = params
        .signed_by(&request.public_key, &issuer(authority)?)
        .map_err(authority_error)?;
    Ok(Issued {
        certificates: format!("{}{between}", certificate.pem()),
        key: hex(digest(&SHA256, &request.public_key.subject_public_key_info()).as_ref()),
        issuer: identity::digest(&authority.certificate),
        expires_at,
    })
}

fn names(node: NodeId, role: NodeRole) -> Vec<String> {
    match role {
        NodeRole::Manager => vec![name_of(node), NAME_MANAGER.into()],
        NodeRole::Worker => vec![name_of(node)],
    }
}

/// Whom nodes are to trust: during a rotation both.
pub(crate) fn authorities(security: &Security) -> String {
    let next = security.next.as_ref().map(|n| n.authority.certificate.as_str());
    format!("{}{}", security.authority.certificate, next.unwrap_or_default())
}

/// Digest of the authority that signs now, hex.
pub(crate) fn current_issuer(security: &Security) -> String {
    identity::digest(&security.signing().certificate)
}

/// A number, highest byte first, as `len` digits of base 36.
fn base36(bytes: &[u8], len: usize) -> String {
    let mut rest = bytes.to_vec();
    let mut digits = vec![b'0'; len];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut rest {
            let value = remainder * 256 + u32::from(*byte);
            *byte = u8::try_from(value / 36).unwrap_or(0);
            remainder = value % 36;
        }
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[remainder as usize];
    }
    String::from_utf8(digits).unwrap_or_default()
}

/// A join token as an operator types it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    digest: String,
    /// What shows that its holder may join.
    pub(crate) secret: String,
}

impl Token {
    /// Reads a token; nothing is asked of anybody.
    ///
    /// # Errors
    /// [`TokenError`] when it has not the form of one.
    pub(crate) fn parse(text: &str) -> Result<Self, TokenError> {
        let wrong = |why| Err(TokenError { why });
        let Some(rest) = text.trim().strip_prefix(TOKEN_PREFIX) else {
            return wrong("it does not begin with SWMTKN-1-");
        };
        let Some((digest, secret)) = rest.split_once('-') else {
            return wrong("its second part is missing");
        };
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if digest.len() != DIGEST_LEN || secret.len() != SECRET_LEN {
            return wrong("its parts have 50 and 25 digits");
        }
        if !digits(digest) || !digits(secret) {
            return wrong("its digits are 0-9 and a-z");
        }
        Ok(Self {
            digest: digest.into(),
            secret: secret.into(),
        })
    }

    /// Whether the certificate is that of the authority the token is of.
    pub(crate) fn is_of(&self, certificate: &str) -> bool {
        der(certificate).is_ok_and(|der| base36(digest(&SHA256, &der).as_ref(), DIGEST_LEN) == self.digest)
    }
}

/// The text of a token.
///
/// # Errors
/// [`CaError::Authority`] when the authority's certificate cannot be read.
pub(crate) fn token_text(security: &Security, token: &JoinToken) -> Result<String, CaError> {
    let digest = base36(
        digest(&SHA256, &der(&security.signing().certificate)?).as_ref(),
        DIGEST_LEN,
    );
    Ok(format!(
        "{TOKEN_PREFIX}{digest}-{}",
        secret(security, token.serial)
    ))
}

fn secret(security: &Security, serial: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &security.token_key);
    let tag = hmac::sign(&key, format!("join token {serial}").as_bytes());
    base36(&tag.as_ref()[..16], SECRET_LEN)
}

/// The number of the token that has this secret. The time it takes says nothing of how much of it was right.
pub(crate) fn serial_of(security: &Security, given: &str) -> Option<u64> {
    let mut found = None;
    for token in &security.tokens {
        let known = secret(security, token.serial);
        // Both have 25 digits; a comparison of digests takes the same time whatever is in them.
        let (known, given) = (
            digest(&SHA256, known.as_bytes()),
            digest(&SHA256, given.as_bytes()),
        );
        let differ = (known.as_ref().iter().zip(given.as_ref())).fold(0u8, |all, (a, b)| all | (a ^ b));
        if differ == 0 {
            found = Some(token.serial);
        }
    }
    found
}

/// The standing token of a role.
pub(crate) fn standing(security: &Security, role: NodeRole) -> Option<&JoinToken> {
    security
        .tokens
        .iter()
        .rev()
        .find(|t| t.standing && t.role == role)
}

/// What a new cluster is made with: an authority, a key for tokens, and a standing token of each role.
///
/// # Errors
/// [`CaError::Authority`] when no key can be made.
pub(crate) fn new_security(now: Timestamp) -> Result<Security, CaError> {
    let token = |serial, role| JoinToken {
        serial,
        role,
        standing: true,
        expires_at: None,
        uses_left: None,
        labels: false,
    };
    Ok(Security {
        authority: new_authority(now)?,
        token_key: random::<32>().to_vec(),
        tokens: vec![token(1, NodeRole::Worker), token(2, NodeRole::Manager)],
        last_token: 2,
        ..Security::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::identity::Subject;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn security() -> Security {
        Security {
            certificate_expiry: Duration::from_secs(90 * 24 * 3600),
            ..new_security(NOW).unwrap()
        }
    }

    #[test]
    fn a_certificate_says_what_the_cluster_says_and_not_what_the_request_says() {
        let security = security();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["docker.com".to_string()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, NodeId(1).to_string());
        params.distinguished_name.push(DnType::OrganizationName, "evil");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
        let csr = params.serialize_request(&key).unwrap();
        let issued = sign(
            &security,
            csr.der(),
            NodeId(7),
            NodeRole::Worker,
            ClusterId(3),
            NOW,
        )
        .unwrap();
        let chain = identity::certificates(&issued.certificates, "test").unwrap();
        let subject = Subject::read(&chain[0]).unwrap();
        assert_eq!(
            (subject.node, subject.cluster, subject.role),
            (NodeId(7), ClusterId(3), NodeRole::Worker)
        );
        assert_eq!(subject.not_after, NOW + security.certificate_expiry);
        assert_eq!(subject.not_before.0, NOW.0 - BACKDATE_MS);
        let (_, x509) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert!(!x509.is_ca());
        let text = format!("{:?}", x509.subject_alternative_name().unwrap());
        assert!(
            !text.contains("docker.com") && text.contains(&name_of(NodeId(7))),
            "{text}"
        );
        assert!(!text.contains(NAME_MANAGER));
    }

    #[test]
    fn requests_that_are_none_are_refused() {
        let security = security();
        let sign = |csr: &[u8]| sign(&security, csr, NodeId(7), NodeRole::Worker, ClusterId(3), NOW);
        let key = KeyPair::generate().unwrap();
        let good = CertificateParams::default().serialize_request(&key).unwrap();
        assert!(sign(good.der()).is_ok());
        let mut broken = good.der().to_vec();
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert!(matches!(sign(&broken), Err(CaError::Signature)));
        assert!(matches!(sign(&[]), Err(CaError::Request(_))));
        assert!(matches!(sign(&vec![0; 1 << 20]), Err(CaError::Request(_))));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default().serialize_request(&p384).unwrap();
        assert!(matches!(sign(csr.der()), Err(CaError::Request(_))));
    }

    #[test]
    fn tokens_name_their_authority_and_are_found_by_their_secret() {
        let security = security();
        let text = token_text(&security, standing(&security, NodeRole::Worker).unwrap()).unwrap();
        let token = Token::parse(&text).unwrap();
        assert!(token.is_of(&security.authority.certificate));
        assert!(!token.is_of(&new_authority(NOW).unwrap().certificate));
        assert_eq!(serial_of(&security, &token.secret), Some(1));
        assert_eq!(serial_of(&security, &"0".repeat(SECRET_LEN)), None);
        let (digest, secret) = ("a".repeat(50), "b".repeat(25));
        for (text, good) in [
            (format!("SWMTKN-1-{digest}-{secret}"), true),
            (String::new(), false),
            ("SWMTKN-1-".into(), false),
            (format!("SWMTKN-1-{}-{secret}", "a".repeat(49)), false),
            (format!("SWMTKN-1-{digest}-{}", "B".repeat(25)), false),
            (format!("SWMTKN-1-{digest}-{}", "b!".repeat(12)), false),
            (format!("SWMTKN-2-{digest}-{secret}"), false),
        ] {
            assert_eq!(Token::parse(&text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn numbers_are_written_in_base_36() {
        for (bytes, len, text) in [
            (&[0u8][..], 3, "000"),
            (&[35], 2, "0z"),
            (&[1, 0], 3, "074"),
            (&[255, 255, 255, 255], 7, "1z141z3"),
        ] {
            assert_eq!(base36(bytes, len), text);
        }
    }

    #[test]
    fn a_certificate_of_the_next_authority_is_followed_by_who_trusts_only_the_old_one() {
        let mut security = security();
        let next = new_authority(NOW).unwrap();
        let cross_signed = cross_sign(&security.authority, &next, NOW).unwrap();
        security.next = Some(model::object::NextAuthority {
            authority: next.clone(),
            cross_signed,
            since: NOW,
        });
        let key = identity::new_key().unwrap();
        let csr = identity::request(&key).unwrap();
        let issued = sign(&security, &csr, NodeId(7), NodeRole::Manager, ClusterId(3), NOW).unwrap();
        assert_eq!(issued.issuer, identity::digest(&next.certificate));
        let chain = identity::certificates(&issued.certificates, "test").unwrap();
        assert_eq!(chain.len(), 2);
        for trusted in [&security.authority.certificate, &next.certificate] {
            let roots = identity::roots(trusted).unwrap();
            let verifier =
                rustls::client::WebPkiServerVerifier::builder_with_provider(roots, identity::provider())
                    .build()
                    .unwrap();
            let name = NAME_MANAGER.try_into().unwrap();
            let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(NOW.0));
            let verified = rustls::client::danger::ServerCertVerifier::verify_server_cert(
                &*verifier,
                &chain[0],
                &chain[1..],
                &name,
                &[],
                at,
            );
            assert!(verified.is_ok(), "{verified:?}");
        }
    }
}
