//! The dataplane's namespace and the one thread that works on it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::container;
use crate::dns;
use crate::family::Family;
use crate::flows::Flows;
use crate::found::{self, Found};
use crate::overlay::{self, Step, Way, Ways};
use crate::plan::{self, Elements, Wanted};
use crate::proxy::{Ports, Proxy};
use crate::pulse::{Probe, Pulse};
use crate::ruleset::TABLE;
use crate::steer::{self, Steering};
use crate::sys;
use crate::sys::link;
use crate::sys::netlink::Socket;
use crate::sys::nft::{self, Batch};
use crate::tunnel::Tunnel;
use crate::uplink::{self, Transit};
use crate::wireguard::{Encryption, Key, Wireguard};

/// MTU of containers on one host; across hosts it follows from the underlay.
const MTU: u32 = 1500;
pub(crate) const NETLINK_ROUTE: i32 = 0;
pub(crate) const NETLINK_NETFILTER: i32 = 12;

/// Where a dataplane is and what it is called.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// Name among the dataplanes of this machine: 1 to 8 of a-z and 0-9.
    pub name: String,
    /// Folder for the namespaces' files.
    pub state_dir: PathBuf,
    /// Name servers that are asked about other names.
    pub upstream: Vec<SocketAddr>,
    /// How networks are encrypted.
    pub encryption: Encryption,
    /// Which CPUs carry packets.
    pub steering: Steering,
}

/// A container to attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Its id.
    pub id: String,
    /// Its addresses, the one of each family by which it is reached from outside first.
    pub addresses: Vec<EndpointAddress>,
}

/// An address of a container in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointAddress {
    /// The address.
    pub address: IpAddr,
    /// Subnets of its network of the same family, address and bits: it speaks from this address to them, as only members are
    /// heard there.
    pub subnets: Vec<(IpAddr, u8)>,
    /// Its network has no way out: the container speaks from another address to the world.
    pub internal: bool,
}

/// What [`Dataplane::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Elements, routes and hosts that changed.
    pub changed: usize,
    /// How long the kernel took for the dataplane's maps.
    pub kernel: Duration,
    /// The first way to another host, or out of this one, that could not be made; what is on this host works all the same,
    /// and the next call tries again.
    pub unreachable: Option<NetError>,
    /// Flows to addresses that nothing leads to any more are being forgotten.
    forgotten: Option<oneshot::Receiver<Result<(), NetError>>>,
}

impl Applied {
    /// Waits until nothing goes where it did before.
    async fn settled(mut self) -> Result<Self, NetError> {
        if let Some(forgotten) = self.forgotten.take() {
            forgotten.await.map_err(|_| NetError::Gone)??;
        }
        Ok(self)
    }
}

/// Why the dataplane is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A step failed.
    #[error("network: {step}")]
    Step {
        /// What was attempted, on what.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its thread is gone.
    #[error("network: the dataplane's thread ended: restart the daemon")]
    Gone,
    /// A name that cannot be used.
    #[error("network: \"{0}\" cannot name a dataplane: use 1 to 8 of a-z and 0-9")]
    Name(String),
}

pub(crate) fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let step = step.into();
    move |source| NetError::Step { step, source }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// The dataplane of one daemon. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Dataplane {
    jobs: mpsc::Sender<Job>,
    names: Arc<dns::Server>,
    flows: Flows,
    pulse: Pulse,
    config: Arc<DataplaneConfig>,
}

impl Dataplane {
    /// Makes the dataplane, or adopts the one that is there with its containers and connections.
    ///
    /// # Errors
    /// [`NetError`] with the step that failed.
    pub async fn open(config: DataplaneConfig) -> Result<Self, NetError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if config.name.is_empty() || config.name.len() > 8 || !config.name.chars().all(good) {
            return Err(NetError::Name(config.name));
        }
        let names =
            Arc::new(dns::Server::start(config.upstream.clone()).map_err(at("start the name server"))?);
        let config = Arc::new(config);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, opened) = oneshot::channel();
        let of = config.clone();
        std::thread::Builder::new()
            .name("dataplane".into())
            .spawn(move || {
                let mut worker = match Worker::open(&of) {
                    Ok(worker) => worker,
                    Err(e) => {
                        let _ = ready.send(Err(e));
                        return;
                    }
                };
                let _ = ready.send(Ok((worker.flows.clone(), worker.pulse.clone())));
                while let Ok(job) = queue.recv() {
                    job(&mut worker);
                }
            })
            .map_err(at("start the dataplane's thread"))?;
        let (flows, pulse) = opened.await.map_err(|_| NetError::Gone)??;
        Ok(Self {
            jobs,
            names,
            flows,
            pulse,
            config,
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Worker) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            let _ = done.send(job(worker));
        });
        self.jobs.send(job).map_err(|_| NetError::Gone)?;
        result.await.map_err(|_| NetError::Gone)?
    }

    /// Gives a container its network namespace; one that has it keeps it. Answers the namespace's path.
    ///
    /// # Errors
    /// [`NetError`] with the step that failed; then nothing of it is left.
    pub async fn attach(&self, endpoint: EndpointConfig) -> Result<PathBuf, NetError> {
        let (id, names) = (endpoint.id.clone(), self.names.clone());
        let (path, sockets) = self.run(move |worker| worker.attach(&endpoint)).await?;
        names.serve(id, sockets);
        Ok(path)
    }

    /// Gives a container that is attached the routes of networks that have grown.
    ///
    /// # Errors
    /// [`NetError`] with the step that failed.
    pub async fn reroute(&self, endpoint: EndpointConfig) -> Result<(), NetError> {
        self.run(move |worker| worker.reroute(&endpoint)).await
    }

    /// Takes a container's namespace away; one that is gone is no error.
    ///
    /// # Errors
    /// [`NetError`] when it cannot be let go.
    pub async fn detach(&self, id: &str) -> Result<(), NetError> {
        self.names.forget(id);
        let id = id.to_owned();
        self.run(move |worker| worker.detach(&id)).await
    }

    /// Where a container's namespace is kept.
    pub(crate) fn namespace_of(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("netns").join(id)
    }

    /// Containers that are attached.
    pub fn attached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.config.state_dir.join("netns")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Makes the kernel's tables, the ways to other hosts and the names as wanted.
    ///
    /// # Errors
    /// [`NetError`]; then some of it may be done: [`Dataplane::repair`] does the rest. A way to another host that cannot be
    /// made is no error.
    pub async fn apply(&self, mut wanted: Wanted) -> Result<Applied, NetError> {
        if !Self::has_ipv6() {
            wanted = wanted.without_ipv6();
        }
        self.names.set_zone(std::mem::take(&mut wanted.zone));
        let applied = self.run(move |worker| worker.apply(Arc::new(wanted))).await?;
        applied.settled().await
    }

    /// Reads what the kernel really has, and makes it as it was last wanted. Answers how many elements, routes and hosts
    /// somebody else had changed.
    ///
    /// # Errors
    /// [`NetError`]; what could be repaired is.
    pub async fn repair(&self) -> Result<Applied, NetError> {
        self.run(Worker::repair).await?.settled().await
    }

    /// Whether clients have TCP connections to any of these addresses.
    ///
    /// # Errors
    /// [`NetError`] when the kernel does not say.
    pub async fn is_connected(&self, addresses: Vec<IpAddr>) -> Result<bool, NetError> {
        self.flows.is_connected(addresses).await
    }

    /// Asks other hosts over the data plane; answers what came back within a time. Kernels answer each other, also without a
    /// daemon; one without IPv6 neither asks nor answers.
    ///
    /// # Errors
    /// [`NetError`] when nobody can be asked.
    pub async fn ask(&self, probes: BTreeSet<Probe>, limit: Duration) -> Result<BTreeSet<Probe>, NetError> {
        self.pulse.ask(probes, limit).await
    }

    /// Whether this host's kernel has IPv6. Where it has not, addresses of it are left out of everything.
    pub fn has_ipv6() -> bool {
        uplink::no_ipv6().is_none()
    }

    /// Why this host does without IPv6, if it does. Known once its dataplane is open.
    pub fn no_ipv6() -> Option<String> {
        uplink::no_ipv6()
    }

    /// The public key by which other hosts are to know this one, for encrypted networks.
    ///
    /// # Errors
    /// Why this host cannot encrypt, for the operator; [`NetError::Gone`] as a text.
    pub async fn key(&self) -> Result<Key, String> {
        let key = self.run(|worker| {
            Ok(worker
                .wireguard
                .as_ref()
                .map(Wireguard::key)
                .map_err(String::clone))
        });
        key.await.map_err(|e| e.to_string())?
    }

    /// Takes another key. Nothing encrypted passes until the other hosts know it.
    ///
    /// # Errors
    /// [`NetError`]; then the key is the one before.
    pub async fn renew_key(&self) -> Result<(), NetError> {
        self.run(|worker| match &mut worker.wireguard {
            Ok(wireguard) => wireguard.renew(),
            Err(_) => Ok(()),
        })
        .await
    }

    /// Removes everything: containers' namespaces, the dataplane's, the host's veth and table.
    ///
    /// # Errors
    /// The first step that failed; the others are done all the same.
    pub async fn destroy(&self) -> Result<(), NetError> {
        for id in self.attached() {
            self.names.forget(&id);
        }
        self.run(Worker::destroy).await
    }
}

/// What the thread holds. It lives in the dataplane's namespace.
struct Worker {
    config: DataplaneConfig,
    host: File,
    inside: File,
    links: Socket,
    tables: Socket,
    flows: Flows,
    pulse: Pulse,
    proxy: Proxy,
    host_links: Socket,
    host_tables: Socket,
    found: Elements,
    host_sets: Elements,
    ways: Ways,
    /// What encrypts, or why nothing does.
    wireguard: Result<Wireguard, String>,
    /// What it is to be, since it was said.
    wanted: Option<Arc<Wanted>>,
    /// The sets are as that says.
    sure: bool,
    /// What the kernel knows.
    families: &'static [Family],
    /// The host was made to pass IPv6 on.
    passes_ipv6: bool,
}

impl Worker {
    fn namespace(config: &DataplaneConfig) -> PathBuf {
        config.state_dir.join("dataplane")
    }

    /// The namespace of the kernel's WireGuard.
    fn secret(config: &DataplaneConfig) -> PathBuf {
        config.state_dir.join("wireguard")
    }

    fn open(config: &DataplaneConfig) -> Result<Self, NetError> {
        let transit = Transit::of(&config.name);
        let mut families = uplink::families();
        let host = File::open("/proc/thread-self/ns/net").map_err(at("open the host's network namespace"))?;
        let path = Self::namespace(config);
        let fresh = !is_namespace(&path);
        if fresh {
            let _ = sys::drop_namespace(&path);
            sys::make_namespace(&path).map_err(at("make the dataplane's namespace"))?;
        }
        let inside = File::open(&path).map_err(at("open the dataplane's namespace"))?;
        let mut host_links = Socket::open(NETLINK_ROUTE).map_err(at("open netlink"))?;
        let mut host_tables = Socket::open(NETLINK_NETFILTER).map_err(at("open netlink"))?;
        if fresh {
            // What is left of one that was not taken down leads nowhere.
            link::delete(&mut host_links, &transit.host_end).map_err(at("remove a link that was left"))?;
            remove_host_tables(&mut host_tables, &transit, families)
                .map_err(at("remove a table that was left"))?;
        }
        if link::index(&mut host_links, &transit.host_end)
            .map_err(at("list the host's links"))?
            .is_none()
        {
            link::veth(
                &mut host_links,
                &transit.host_end,
                (&transit.inner_end, &inside),
                transit.macs(),
                MTU,
            )
            .map_err(at(format!("make the link {}", transit.host_end)))?;
        }
        uplink::host_end(&mut host_links, &transit)?;
        found::make_host_table(&mut host_tables, &transit, Family::V4)?;
        sys::enter(&inside).map_err(at("enter the dataplane's namespace"))?;
        steer::steer(config.steering);
        let mut links = Socket::open(NETLINK_ROUTE).map_err(at("open netlink"))?;
        let mut tables = Socket::open(NETLINK_NETFILTER).map_err(at("open netlink"))?;
        found::make_inner_tables(&mut tables, &transit, &[Family::V4])?;
        if families.contains(&Family::V6)
            && let Err(why) = found::make_inner_tables(&mut tables, &transit, &[Family::V6])
        {
            uplink::give_up_ipv6(&why)?;
            families = uplink::families();
        }
        uplink::inner_end(&mut links, &transit, families)?;
        let mut wireguard = Wireguard::open(Self::secret(config), &inside, config.encryption);
        let found = found::look(
            &mut links,
            &mut tables,
            &mut host_tables,
            &transit,
            wireguard.as_mut().ok(),
            families,
        )?;
        let flows = inside.try_clone().map_err(at("open the dataplane's namespace"))?;
        let pulse = inside.try_clone().map_err(at("open the dataplane's namespace"))?;
        let proxy = inside.try_clone().map_err(at("open the dataplane's namespace"))?;
        Ok(Self {
            config: config.clone(),
            host,
            inside,
            flows: Flows::start(flows)?,
            pulse: Pulse::start(pulse)?,
            proxy: Proxy::start(proxy)?,
            links,
            tables,
            host_links,
            host_tables,
            found: found.elements,
            host_sets: found.host_sets,
            ways: found.ways,
            wireguard,
            wanted: None,
            sure: false,
            families,
            passes_ipv6: false,
        })
    }

    fn path_of(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("netns").join(id)
    }

    /// The addresses that the kernel can give a container.
    fn addresses(&self, endpoint: &EndpointConfig) -> Vec<EndpointAddress> {
        let known = |a: &&EndpointAddress| self.families.contains(&Family::of(a.address));
        endpoint.addresses.iter().filter(known).cloned().collect()
    }

    fn attach(&mut self, endpoint: &EndpointConfig) -> Result<(PathBuf, dns::Sockets), NetError> {
        let path = self.path_of(&endpoint.id);
        let fresh = !is_namespace(&path);
        if fresh {
            let _ = sys::drop_namespace(&path);
            sys::make_namespace(&path).map_err(at("make a container's namespace"))?;
        }
        let result = self.connect(endpoint, &path, fresh);
        if result.is_err() && fresh {
            let _ = sys::drop_namespace(&path);
        }
        Ok((path, result?))
    }

    fn connect(
        &mut self,
        endpoint: &EndpointConfig,
        path: &Path,
        fresh: bool,
    ) -> Result<dns::Sockets, NetError> {
        let namespace = File::open(path).map_err(at("open a container's namespace"))?;
        let name = interface(&endpoint.id);
        let (outer, inner) = (mac(&endpoint.id, 1), mac(&endpoint.id, 2));
        if fresh {
            link::veth(&mut self.links, &name, ("eth0", &namespace), (outer, inner), MTU)
                .map_err(at(format!("make the link {name}")))?;
        }
        let index = link::index(&mut self.links, &name).map_err(at("list links"))?;
        let index =
            index.ok_or_else(|| at(format!("find the link {name}"))(io::ErrorKind::NotFound.into()))?;
        link::up(&mut self.links, index).map_err(at(format!("put the link {name} up")))?;
        let addresses = self.addresses(endpoint);
        for EndpointAddress { address, .. } in &addresses {
            link::neighbour(&mut self.links, index, *address, inner)
                .map_err(at(format!("know {address}")))?;
            link::route(
                &mut self.links,
                (*address, Family::of(*address).bits()),
                index,
                None,
            )
            .map_err(at(format!("route to {address}")))?;
        }
        sys::enter(&namespace).map_err(at("enter a container's namespace"))?;
        // One that is there may be of an earlier version, and its networks may have grown.
        let made = container::make_end(&addresses, outer);
        let sockets = made.and_then(|()| dns::Sockets::open().map_err(at("listen on 127.0.0.11:53")));
        sys::enter(&self.inside).map_err(at("return to the dataplane's namespace"))?;
        sockets
    }

    fn reroute(&mut self, endpoint: &EndpointConfig) -> Result<(), NetError> {
        let namespace = File::open(self.path_of(&endpoint.id)).map_err(at("open a container's namespace"))?;
        let addresses = self.addresses(endpoint);
        sys::enter(&namespace).map_err(at("enter a container's namespace"))?;
        let made = container::make_end(&addresses, mac(&endpoint.id, 1));
        sys::enter(&self.inside).map_err(at("return to the dataplane's namespace"))?;
        made
    }

    fn detach(&mut self, id: &str) -> Result<(), NetError> {
        // Its links go with it, in the kernel's own time: taken one by one they cost 20 ms each.
        sys::drop_namespace(&self.path_of(id)).map_err(at(format!("let go of the namespace of {id}")))
    }

    /// Takes steps, and the others although one fails; remembers those that were taken, so that the next call tries again.
    fn take(&mut self, steps: &[(Way, Step)], done: &mut Applied) {
        let mut tunnel = Tunnel {
            host_links: &mut self.host_links,
            links: &mut self.links,
            tables: &mut self.tables,
            host: &self.host,
            inside: &self.inside,
            wireguard: self.wireguard.as_mut().ok(),
            families: self.families,
            device: None,
        };
        for (way, step) in steps {
            match tunnel.take(*way, *step) {
                Ok(()) => {
                    self.ways.take(*way, *step);
                    done.changed += 1;
                }
                Err(error) => drop(done.unreachable.get_or_insert(error)),
            }
        }
    }

    fn repair(&mut self) -> Result<Applied, NetError> {
        let Some(wanted) = self.wanted.clone() else {
            return Ok(Applied::default());
        };
        self.sure = false;
        let transit = Transit::of(&self.config.name);
        found::make_host_table(&mut self.host_tables, &transit, Family::V4)?;
        found::make_inner_tables(&mut self.tables, &transit, self.families)?;
        // Before a table that was taken away is there again.
        let host_sets = self.host_sets.clone();
        self.passes_ipv6 = false;
        // What cannot be done is tried again, and said, below.
        let _ = self.pass_ipv6(&wanted);
        let found = found::look(
            &mut self.links,
            &mut self.tables,
            &mut self.host_tables,
            &transit,
            self.wireguard.as_mut().ok(),
            self.families,
        )?;
        let known = Found {
            elements: std::mem::take(&mut self.found),
            host_sets,
            ways: std::mem::take(&mut self.ways),
        };
        let changed = known.apart(&found);
        (self.found, self.host_sets, self.ways) = (found.elements, found.host_sets, found.ways);
        let done = self.apply(wanted)?;
        Ok(Applied { changed, ..done })
    }

    /// Makes the host itself pass IPv6 on, once a container of this host or a port needs it: nothing of a host that has none
    /// is touched.
    fn pass_ipv6(&mut self, wanted: &Wanted) -> Result<(), NetError> {
        if self.passes_ipv6 || !wanted.passes_ipv6() {
            return Ok(());
        }
        let transit = Transit::of(&self.config.name);
        sys::enter(&self.host).map_err(at("enter the host's namespace"))?;
        let made = uplink::host_end_ipv6(&mut self.host_links, &transit)
            .and_then(|()| found::make_host_table(&mut self.host_tables, &transit, Family::V6))
            .and_then(|()| uplink::pass_ipv6_on());
        sys::enter(&self.inside).map_err(at("return to the dataplane's namespace"))?;
        made?;
        let sets = found::host_elements(&mut self.host_tables, &transit, Family::V6)?;
        self.host_sets.extend(sets);
        self.passes_ipv6 = true;
        Ok(())
    }

    fn apply(&mut self, wanted: Arc<Wanted>) -> Result<Applied, NetError> {
        let old = self.wanted.replace(wanted.clone());
        // Until all is done the kernel may have anything in between.
        let old = old.filter(|_| std::mem::take(&mut self.sure));
        let encrypts = wanted.encrypts || wanted.endpoints.values().any(|e| e.encrypted);
        let encrypts = self.wireguard.is_ok() && encrypts;
        let ways = overlay::ways(&wanted.overlay, encrypts, |address| {
            wanted.endpoints.contains_key(address)
        });
        let (before, after) = overlay::steps(&ways, &self.ways);
        let mut done = Applied::default();
        self.take(&before, &mut done);
        let changes = match old {
            Some(old) => plan::between(&old, &wanted, &self.found),
            None => plan::diff(&plan::elements(&wanted, &self.found), &self.found),
        };
        self.proxy.set(Ports {
            own: wanted.overlay.own,
            behind: wanted.behind_proxied(),
        });
        let left = plan::left(&changes, &wanted);
        let began = Instant::now();
        for part in plan::parts(changes) {
            for family in self.families {
                let mut batch = Batch::new(*family, TABLE);
                for ((_, set), (gone, new)) in part.iter().filter(|((of, _), _)| of == family) {
                    done.changed += gone.len() + new.len();
                    batch.remove(set, gone);
                    batch.add(set, new);
                }
                batch
                    .commit(&mut self.tables)
                    .map_err(at("change the dataplane's maps"))?;
            }
            plan::take(&mut self.found, &part);
        }
        done.kernel = began.elapsed();
        // Also where nobody waits for it, and whatever fails after this.
        done.forgotten = self.flows.forget(left);
        if let Err(error) = self.pass_ipv6(&wanted) {
            done.unreachable.get_or_insert(error);
        }
        let host_sets = plan::host_elements(&wanted, &ways);
        for ((family, set), change) in plan::diff(&host_sets, &self.host_sets) {
            // A host that does not pass IPv6 on has no table of it.
            if !self.host_sets.contains_key(&(family, set)) {
                continue;
            }
            let mut batch = Batch::new(family, &Transit::of(&self.config.name).table);
            done.changed += change.0.len() + change.1.len();
            batch.remove(set, &change.0);
            batch.add(set, &change.1);
            batch
                .commit(&mut self.host_tables)
                .map_err(at(format!("change the host's set {set}")))?;
            plan::take(&mut self.host_sets, &[((family, set), change)].into());
        }
        self.take(&after, &mut done);
        self.sure = true;
        Ok(done)
    }

    fn destroy(&mut self) -> Result<(), NetError> {
        let transit = Transit::of(&self.config.name);
        let mut first = None;
        let mut note = |r: Result<(), NetError>| {
            if let (Err(e), None) = (r, &first) {
                first = Some(e);
            }
        };
        if let Ok(entries) = fs::read_dir(self.config.state_dir.join("netns")) {
            for entry in entries.flatten() {
                note(
                    sys::drop_namespace(&entry.path())
                        .map_err(at(format!("let go of {}", entry.path().display()))),
                );
            }
        }
        note(
            remove_host_tables(&mut self.host_tables, &transit, self.families)
                .map_err(at("remove the host's tables")),
        );
        // At once, as its number is taken in the host's namespace until it is gone.
        let mut done = Applied::default();
        self.take(
            &[Way::Plain, Way::Encrypted].map(|way| (way, Step::RemoveDevice)),
            &mut done,
        );
        note(done.unreachable.map_or(Ok(()), Err));
        note(link::delete(&mut self.host_links, &transit.host_end).map_err(at("remove the host's link")));
        note(
            sys::drop_namespace(&Self::namespace(&self.config))
                .map_err(at("let go of the dataplane's namespace")),
        );
        // The thread must not keep the namespace alive.
        note(sys::enter(&self.host).map_err(at("return to the host's namespace")));
        for set in self.found.values_mut() {
            set.clear();
        }
        self.wanted = None;
        first.map_or(Ok(()), Err)
    }
}

/// Removes the host's tables, where they are.
fn remove_host_tables(tables: &mut Socket, transit: &Transit, families: &[Family]) -> io::Result<()> {
    for family in families {
        if nft::table_exists(tables, *family, &transit.table)? {
            let mut batch = Batch::new(*family, &transit.table);
            batch.delete_table();
            batch.commit(tables)?;
        }
    }
    Ok(())
}

/// Whether a path holds a namespace (a mount of nsfs) and not just the file for one.
pub(crate) fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == 0x6e73_6673)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(14_695_981_039_346_656_037u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(1_099_511_628_211)
    })
}

/// Name of a container's link in the dataplane; 15 characters is the kernel's bound.
fn interface(id: &str) -> String {
    format!("c{:013x}", hash(id) & 0xf_ffff_ffff_ffff)
}

/// A locally administered address for one end of a link.
pub(crate) fn mac(id: &str, end: u8) -> [u8; 6] {
    let h = hash(id).to_be_bytes();
    [0x02, end, h[2], h[3], h[4], h[5]]
}
