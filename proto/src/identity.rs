//! Who this node is to others: its certificate and key on disk and in memory, now and when they are renewed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use model::object::NodeRole;
use model::{ClusterId, NodeId, Timestamp};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;

/// Organisational unit of managers in a certificate's subject.
pub const UNIT_MANAGER: &str = "rswarm-manager";
/// Organisational unit of workers.
pub const UNIT_WORKER: &str = "rswarm-worker";
/// The name under which any manager answers.
pub const NAME_MANAGER: &str = "manager.rswarm";
/// How far the wall clock may be from the cluster's before certificates are judged by the cluster's.
const SKEW_MAX: Duration = Duration::from_secs(24 * 3600);
/// Certificates between a node's and an authority.
const CHAIN_MAX: usize = 4;
/// The key and the certificate, in one file so that they always belong together.
const NODE: &str = "node.pem";
const AUTHORITIES: &str = "authorities.pem";
const PLACE: &str = "place";
/// How a certificate begins in PEM.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
/// Managers that are remembered.
const MANAGERS_MAX: usize = 32;

/// The name under which one node answers.
pub fn name_of(node: NodeId) -> String {
    format!("{node}.node.rswarm")
}

/// Why an identity cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("{what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file or message does not hold what it should.
    #[error("the node's {what} cannot be used: {why}")]
    Content {
        /// Which part.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

fn content(what: &'static str, why: impl ToString) -> IdentityError {
    IdentityError::Content {
        what,
        why: why.to_string(),
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The role it was made for; what counts is the role in the log.
    pub role: NodeRole,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

impl Subject {
    /// Reads a node's certificate. It verifies nothing.
    ///
    /// # Errors
    /// [`IdentityError::Content`] when it is not one of ours.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let wrong = |why: &str| content("certificate", why);
        let (_, x509) =
            x509_parser::parse_x509_certificate(certificate).map_err(|e| content("certificate", e))?;
        fn text<'a>(
            mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
        ) -> Option<&'a str> {
            values.next().and_then(|v| v.as_str().ok())
        }
        let subject = x509.subject();
        let node = text(subject.iter_common_name()).ok_or_else(|| wrong("it names no node"))?;
        let cluster = text(subject.iter_organization()).ok_or_else(|| wrong("it names no cluster"))?;
        let role = match text(subject.iter_organizational_unit()) {
            Some(UNIT_MANAGER) => NodeRole::Manager,
            Some(UNIT_WORKER) => NodeRole::Worker,
            _ => return Err(wrong("it names no role")),
        };
        let time = |t: x509_parser::time::ASN1Time| {
            Timestamp(u64::try_from(t.timestamp()).unwrap_or(0).saturating_mul(1000))
        };
        Ok(Self {
            node: node.parse().map_err(|e| content("certificate", e))?,
            cluster: cluster.parse().map_err(|e| content("certificate", e))?,
            role,
            not_before: time(x509.validity().not_before),
            not_after: time(x509.validity().not_after),
        })
    }
}

/// Where a node listens and where others are, as it knew when it was last told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Where it listens, host:port.
    pub listen: String,
    /// Where others reach it, host:port.
    pub address: String,
    /// Managers: node and address.
    pub managers: Vec<(NodeId, String)>,
    /// Highest epoch of the cluster that was heard of.
    pub epoch: u64,
}

impl Place {
    fn write(&self) -> String {
        let mut text = format!(
            "listen {}\naddress {}\nepoch {}\n",
            self.listen, self.address, self.epoch
        );
        for (node, address) in self.managers.iter().take(MANAGERS_MAX) {
            text.push_str(&format!("manager {node} {address}\n"));
        }
        text
    }

    fn read(text: &str) -> Result<Self, IdentityError> {
        let mut place = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["listen", at] => place.listen = (*at).into(),
                ["epoch", n] => place.epoch = n.parse().map_err(|e| content("place", e))?,
                ["address", at] => place.address = (*at).into(),
                ["manager", node, at] => {
                    let node = node.parse().map_err(|e| content("place", e))?;
                    place.managers.push((node, (*at).into()));
                }
                _ => {
                    return Err(content(
                        "place",
                        format!("the line \"{line}\" is not one of ours"),
                    ));
                }
            }
        }
        Ok(place)
    }
}

/// An identity as bytes: what stands on disk, and what a manager answers to a host that joins.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Papers {
    /// The key, PKCS#8 in PEM. Not what stands on disk where managers are locked.
    pub key: String,
    /// The certificate, and those between it and the authority, PEM.
    pub certificates: String,
    /// The authorities to trust, PEM.
    pub authorities: String,
}

/// An identity in use.
pub struct Identity {
    /// What its certificate says.
    pub subject: Subject,
    /// Its bytes.
    pub papers: Papers,
    /// For connections that it opens.
    pub client: Arc<ClientConfig>,
    /// For connections that it takes. Callers without a certificate are let in, and may do next to nothing.
    pub server: Arc<ServerConfig>,
}

/// The time by which certificates are judged: the wall clock, unless it is a day or more from what the cluster says.
#[derive(Debug, Default)]
pub struct ClusterClock {
    said: Mutex<Option<(Timestamp, Instant)>>,
}

impl ClusterClock {
    /// Takes the cluster's time, as a manager said it or the log has it.
    pub fn said(&self, now: Timestamp) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
    }

    /// The time, and whether the wall clock was not believed.
    pub fn now(&self) -> (Timestamp, bool) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        judge(wall, said.map(|(at, since)| at + since.elapsed()))
    }
}

/// Which of two clocks counts; the second is the cluster's, if it is known.
fn judge(wall: Timestamp, cluster: Option<Timestamp>) -> (Timestamp, bool) {
    match cluster {
        Some(at) if wall.since(at).max(at.since(wall)) > SKEW_MAX => (at, true),
        Some(_) | None => (wall, false),
    }
}

impl TimeProvider for ClusterClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().0.0)))
    }
}

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A new key for a node (P-256), PKCS#8 in PEM.
///
/// # Errors
/// [`IdentityError::Content`] when the system gives no random numbers.
pub fn new_key() -> Result<String, IdentityError> {
    let key = rcgen::KeyPair::generate().map_err(|e| content("key", e))?;
    Ok(key.serialize_pem())
}

/// A request for a certificate of a key (PKCS#10, DER). What the certificate says, its authority decides.
///
/// # Errors
/// [`IdentityError::Content`] when the key cannot be read.
pub fn request(key: &str) -> Result<Vec<u8>, IdentityError> {
    let wrong = |e: rcgen::Error| content("key", e);
    let key = rcgen::KeyPair::from_pem(key).map_err(wrong)?;
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .map_err(wrong)?;
    Ok(request.der().to_vec())
}

/// Certificates of a PEM text, in order.
///
/// # Errors
/// [`IdentityError::Content`] when it is not PEM, or holds none.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| content(what, e))?;
    if all.is_empty() {
        return Err(content(what, "there is no certificate in it"));
    }
    Ok(all)
}

/// SHA-256 of the first certificate of a PEM text, hex; empty where there is none.
pub fn digest(pem: &str) -> String {
    let Ok(all) = certificates(pem, "certificate") else {
        return String::new();
    };
    hex(ring::digest::digest(&ring::digest::SHA256, &all[0]).as_ref())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The authorities of a PEM text.
///
/// # Errors
/// [`IdentityError::Content`] when one of them is not a certificate.
pub fn roots(pem: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, "authority")? {
        store.add(certificate).map_err(|e| content("authority", e))?;
    }
    Ok(Arc::new(store))
}

impl Identity {
    /// Makes an identity of its bytes.
    ///
    /// # Errors
    /// [`IdentityError::Content`] when a part is not what it should be, or they do not belong together.
    pub fn new(papers: Papers, clock: &Arc<ClusterClock>) -> Result<Self, IdentityError> {
        let chain = certificates(&papers.certificates, "certificate")?;
        if chain.len() > CHAIN_MAX {
            return Err(content(
                "certificate",
                format!("its chain has more than {CHAIN_MAX}"),
            ));
        }
        let subject = Subject::read(&chain[0])?;
        let key = PrivateKeyDer::from_pem_slice(papers.key.as_bytes()).map_err(|e| content("key", e))?;
        let roots = roots(&papers.authorities)?;
        let (provider, time) = (provider(), clock.clone() as Arc<dyn TimeProvider>);
        let both = |e: rustls::Error| content("certificate and key", e);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| content("authority", e))?;
        let mut client = ClientConfig::builder_with_details(provider.clone(), time.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(both)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(both)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| content("authority", e))?;
        let mut server = ServerConfig::builder_with_details(provider, time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(both)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(both)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep what was verified for an earlier certificate.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            subject,
            papers,
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// The identity of this node, if it has one. Clones are the same keychain.
#[derive(Clone)]
pub struct Keychain {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    current: ArcSwapOption<Identity>,
    place: Mutex<Place>,
    /// The text of the key as it stands on disk, where it may be sealed.
    key_file: Mutex<String>,
    changed: watch::Sender<u64>,
    clock: Arc<ClusterClock>,
}

impl Keychain {
    /// A keychain whose files are in `dir`, without an identity yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                current: ArcSwapOption::empty(),
                place: Mutex::default(),
                key_file: Mutex::default(),
                changed: watch::Sender::new(0),
                clock: Arc::default(),
            }),
        }
    }

    /// What stands on disk, if anything does: the text of the key, which may be sealed, and the certificates.
    ///
    /// # Errors
    /// [`IdentityError::Io`] when a file is there and cannot be read.
    pub fn stored(&self) -> Result<Option<(String, Papers)>, IdentityError> {
        let Some(node) = self.file(NODE)? else {
            return Ok(None);
        };
        let missing = || content("files", "some are missing; remove the folder and join again");
        let authorities = self.file(AUTHORITIES)?.ok_or_else(missing)?;
        let place = Place::read(&self.file(PLACE)?.ok_or_else(missing)?)?;
        *self.inner.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        let split = node.find(CERTIFICATE).ok_or_else(missing)?;
        let papers = Papers {
            key: String::new(),
            certificates: node[split..].to_owned(),
            authorities,
        };
        let key = node[..split].to_owned();
        self.key_file().clone_from(&key);
        Ok(Some((key, papers)))
    }

    fn file(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.inner.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Io {
                what: "read",
                path,
                source,
            }),
        }
    }

    /// Uses an identity from now on; nothing is written.
    ///
    /// # Errors
    /// [`IdentityError::Content`] when it cannot be used.
    pub fn use_papers(&self, papers: Papers) -> Result<(), IdentityError> {
        let identity = Identity::new(papers, &self.inner.clock)?;
        self.inner.current.store(Some(Arc::new(identity)));
        self.inner.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Keeps an identity on disk and uses it from now on. `key_file` is what is written for its key.
    ///
    /// After a crash there is the old identity or the new one, whole: key and certificate are one file, and it is
    /// written last.
    ///
    /// # Errors
    /// [`IdentityError`]; then the old one is still used.
    pub fn install(&self, papers: Papers, key_file: &str, place: Place) -> Result<(), IdentityError> {
        // First of all: what cannot be used is not kept.
        Identity::new(papers.clone(), &self.inner.clock)?;
        let dir = &self.inner.dir;
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("make", dir))?;
        let written = place.write();
        let node = format!("{key_file}{}", papers.certificates);
        let files = [
            (PLACE, written.as_str()),
            (AUTHORITIES, papers.authorities.as_str()),
            (NODE, node.as_str()),
        ];
        for (name, bytes) in files {
            replace(&dir.join(name), bytes.as_bytes()).map_err(io("write", &dir.join(name)))?;
        }
        *self.inner.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        key_file.clone_into(&mut self.key_file());
        self.use_papers(papers)
    }

    fn key_file(&self) -> MutexGuard<'_, String> {
        self.inner.key_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps and uses a new certificate of the same key, and these authorities, PEM.
    ///
    /// # Errors
    /// [`IdentityError`]; then the old one is still used.
    pub fn renew(&self, certificates: &str, authorities: &str) -> Result<(), IdentityError> {
        let own = self
            .identity()
            .ok_or_else(|| content("identity", "there is none"))?;
        let papers = Papers {
            key: own.papers.key.clone(),
            certificates: certificates.to_owned(),
            authorities: authorities.to_owned(),
        };
        let key_file = self.key_file().clone();
        self.install(papers, &key_file, self.place())
    }

    /// Writes the key anew: sealed, or not any more.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn rewrite_key(&self, key_file: &str) -> Result<(), IdentityError> {
        let Some(identity) = self.identity() else {
            return Ok(());
        };
        key_file.clone_into(&mut self.key_file());
        let path = self.inner.dir.join(NODE);
        let text = format!("{key_file}{}", identity.papers.certificates);
        replace(&path, text.as_bytes()).map_err(|source| IdentityError::Io {
            what: "write",
            path,
            source,
        })
    }

    /// Remembers which managers there are, and the epoch of their cluster.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; they are known until the next start all the same.
    pub fn set_managers(&self, managers: Vec<(NodeId, String)>, epoch: u64) -> Result<(), IdentityError> {
        let text = {
            let mut place = self.inner.place.lock().unwrap_or_else(PoisonError::into_inner);
            if (place.managers == managers && place.epoch == epoch) || managers.is_empty() {
                return Ok(());
            }
            place.managers = managers;
            place.epoch = epoch;
            place.write()
        };
        let path = self.inner.dir.join(PLACE);
        replace(&path, text.as_bytes()).map_err(|source| IdentityError::Io {
            what: "write",
            path,
            source,
        })
    }

    /// Forgets the identity, on disk as well.
    ///
    /// # Errors
    /// [`IdentityError::Io`] when its folder cannot be removed.
    pub fn forget(&self) -> Result<(), IdentityError> {
        self.inner.current.store(None);
        *self.inner.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::default();
        let dir = &self.inner.dir;
        let gone = |result: io::Result<()>| match result {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(IdentityError::Io {
                what: "remove",
                path: dir.clone(),
                source: e,
            }),
            _ => Ok(()),
        };
        // The key first: without it the folder is none.
        gone(fs::remove_file(dir.join(NODE)))?;
        let result = gone(fs::remove_dir_all(dir));
        self.inner.changed.send_modify(|n| *n += 1);
        result
    }

    /// The identity in use.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.inner.current.load_full()
    }

    /// This node, if it is one.
    pub fn node(&self) -> Option<NodeId> {
        self.identity().map(|i| i.subject.node)
    }

    /// Where it listens and where managers are.
    pub fn place(&self) -> Place {
        self.inner
            .place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes whenever the identity does.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// The time by which certificates are judged.
    pub fn clock(&self) -> &Arc<ClusterClock> {
        &self.inner.clock
    }
}

/// Writes a small file that only its owner reads, so that after a crash it is the old one or the new one.
///
/// # Errors
/// As the disk has them; what was there is there still.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    crash::point("identity.before_rename");
    fs::rename(&aside, path)?;
    crash::point("identity.after_rename");
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_it_was_written() {
        let place = Place {
            listen: "0.0.0.0:2377".into(),
            address: "10.0.0.1:2377".into(),
            managers: vec![(NodeId(5), "10.0.0.2:2377".into())],
            epoch: 3,
        };
        assert_eq!(Place::read(&place.write()).ok(), Some(place));
        assert!(Place::read("nonsense 1\n").is_err());
    }

    #[test]
    fn a_wall_clock_that_is_a_day_off_is_not_believed() {
        let day = 24 * 3600 * 1000;
        let at = Timestamp(100 * day);
        for (wall, cluster, believed) in [
            (at, None, true),
            (at, Some(at), true),
            (Timestamp(at.0 + day), Some(at), true),
            (Timestamp(at.0 + day + 1), Some(at), false),
            (Timestamp(0), Some(at), false),
            (Timestamp(at.0 - day), Some(at), true),
        ] {
            let (now, doubted) = judge(wall, cluster);
            assert_eq!(doubted, !believed, "{wall:?} {cluster:?}");
            assert_eq!(now, if believed { wall } else { at });
        }
    }
}
