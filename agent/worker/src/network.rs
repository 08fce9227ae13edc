//! The dataplane kept as wanted: one change after the other, several at once where they wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_core::net::{WantedNet, subnets, wanted};
use agent_core::pulse::{self, Pulses, Way};
use model::assignment::AssignmentSet;
use model::object::{Task, TunnelKey};
use model::spec;
use model::{NetworkId, NodeId, TaskId};
use net::{
    Dataplane, Endpoint, EndpointAddress, EndpointConfig, NetError, Overlay, Probe, Protocol, Remote, Wanted,
    Zone,
};
use proto::identity::Keychain;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use crate::contact::boottime;
use crate::session::random_share;

/// How often it is looked whether the kernel still has what it was given.
const REPAIR_EVERY: Duration = Duration::from_secs(60);
/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often this host takes another key for encrypted networks (Swarm's), give or take a tenth.
const KEY_PERIOD: Duration = Duration::from_secs(12 * 3600);

/// The network of this host.
pub(crate) struct Network {
    plane: Dataplane,
    keychain: Keychain,
    /// What keeps this host from others, as it was logged last.
    problem: Mutex<Option<String>>,
    known: Mutex<Known>,
    applying: tokio::sync::Mutex<u64>,
    /// Told when a way to another host could not be made.
    failed: Notify,
    /// Which hosts are asked over the data plane, as nodes; what was applied last says so.
    asked: Mutex<BTreeMap<Way, NodeId>>,
    /// Nodes that do not answer, once some were asked.
    unreached: Mutex<Option<BTreeSet<NodeId>>>,
    /// By which other hosts know this one in encrypted networks; none: it cannot be in any.
    key: watch::Sender<Option<TunnelKey>>,
    /// Told when it is to be another.
    new_key: Notify,
    /// A manager has this node registered.
    registered: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    set: AssignmentSet,
    attached: BTreeSet<TaskId>,
    serving: BTreeSet<TaskId>,
    /// Tasks whose networks have grown, until they have their routes.
    reroute: BTreeSet<TaskId>,
    /// Ways to other hosts on which nothing comes back.
    unreached: BTreeSet<Way>,
    /// Grows with every change; what is applied is remembered by it.
    generation: u64,
}

impl Network {
    pub(crate) async fn new(plane: Dataplane, keychain: Keychain) -> Self {
        let key = match plane.key().await {
            Ok(key) => Some(TunnelKey(key)),
            Err(why) => {
                tracing::warn!("encrypted networks cannot have tasks on this host: {why}");
                None
            }
        };
        if let Some(why) = Dataplane::no_ipv6() {
            tracing::warn!("{why}: its tasks are reached by their IPv4 addresses alone");
        }
        Self {
            key: watch::Sender::new(key),
            new_key: Notify::new(),
            registered: watch::Sender::new(false),
            plane,
            keychain,
            problem: Mutex::default(),
            asked: Mutex::default(),
            unreached: Mutex::default(),
            known: Mutex::new(Known::default()),
            applying: tokio::sync::Mutex::new(0),
            failed: Notify::new(),
        }
    }

    /// By which other hosts are to know this one in encrypted networks.
    pub(crate) fn key(&self) -> watch::Receiver<Option<TunnelKey>> {
        self.key.subscribe()
    }

    /// Whether anything encrypted goes to this host or from it.
    fn encrypts(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut networks = known.set.tasks.values().flat_map(|t| &t.spec.networks);
        networks.any(|n| n.encrypted) || known.set.services.values().any(|s| !s.encrypted.is_empty())
    }

    /// A manager has this node registered, or no more.
    pub(crate) fn set_registered(&self, registered: bool) {
        self.registered.send_replace(registered);
    }

    /// Has another key taken soon: with a new certificate comes a new key.
    pub(crate) fn want_new_key(&self) {
        self.new_key.notify_one();
    }

    /// Takes another key for encrypted networks from time to time. Until the other hosts have heard of it, which is a matter
    /// of milliseconds, nothing encrypted passes; what is lost then is sent again.
    pub(crate) async fn renew_keys(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(KEY_PERIOD.mul_f64(0.9 + 0.2 * random_share())) => {}
                () = self.new_key.notified() => {}
            }
            // While no manager is there the others would not hear of it.
            if self.registered.subscribe().wait_for(|is| *is).await.is_err() {
                return;
            }
            // One that nobody uses is as good as new, and nobody has to hear of another.
            if self.key.borrow().is_none() || !self.encrypts() {
                continue;
            }
            match self.plane.renew_key().await {
                Ok(()) => {
                    if let Ok(key) = self.plane.key().await {
                        self.key.send_replace(Some(TunnelKey(key)));
                    }
                }
                Err(error) => tracing::warn!("take another key for encrypted networks: {}", chain(&error)),
            }
        }
    }

    fn change(&self, edit: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut known);
        known.generation += 1;
    }

    /// Takes a new assignment set; `serving` tasks were found running by an agent that just started.
    pub(crate) async fn assign(&self, set: AssignmentSet, serving: &[TaskId]) -> Result<(), NetError> {
        self.change(|k| {
            let grown = agent_core::net::grown(&k.set, &set, &k.attached);
            k.reroute.extend(grown);
            k.set = set;
            k.serving.extend(serving);
            k.attached.extend(serving);
        });
        self.apply().await?;
        self.reroute().await;
        Ok(())
    }

    /// Gives tasks whose networks have grown their routes. Where it fails, as for a container that has done away with its
    /// interface, it is tried again, and nothing else waits for it.
    async fn reroute(&self) {
        let waiting: Vec<EndpointConfig> = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let Known {
                set,
                attached,
                reroute,
                ..
            } = &mut *known;
            reroute.retain(|id| attached.contains(id) && set.tasks.contains_key(id));
            let tasks = reroute.iter().filter_map(|id| set.tasks.get(id));
            tasks.map(|task| endpoint(task, set)).collect()
        };
        for endpoint in waiting {
            let id = endpoint.id.clone();
            match self.plane.reroute(endpoint.clone()).await {
                Ok(()) => {
                    let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    let Known { set, reroute, .. } = &mut *known;
                    // It may have grown again since.
                    let task = id.parse().ok().and_then(|id: TaskId| set.tasks.get(&id).cloned());
                    if let Some(task) = task.filter(|t| self::endpoint(t, set) == endpoint) {
                        reroute.remove(&task.id);
                    }
                }
                Err(error) => {
                    tracing::warn!("give the task {id} the routes of its networks: {}", chain(&error));
                }
            }
        }
    }

    /// Gives a task its namespace; answers its path.
    pub(crate) async fn attach(&self, task: &Task) -> Result<PathBuf, NetError> {
        let endpoint = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            endpoint(task, &known.set)
        };
        let path = self.plane.attach(endpoint.clone()).await?;
        self.change(|k| {
            k.attached.insert(task.id);
            // Its networks may have grown meanwhile.
            if self::endpoint(task, &k.set) != endpoint {
                k.reroute.insert(task.id);
            }
        });
        self.apply().await?;
        self.reroute().await;
        Ok(path)
    }

    /// Takes a task's namespace away.
    pub(crate) async fn detach(&self, task: TaskId) -> Result<(), NetError> {
        self.change(|k| {
            k.attached.remove(&task);
            k.serving.remove(&task);
        });
        self.apply().await?;
        self.plane.detach(&task.to_string()).await
    }

    /// Sends connections to a task, or no more; returns once the kernel does so.
    pub(crate) async fn serve(&self, task: TaskId, serves: bool) -> Result<(), NetError> {
        self.change(|k| {
            if serves {
                k.serving.insert(task);
            } else {
                k.serving.remove(&task);
            }
        });
        self.apply().await
    }

    /// Whether a task has connections that clients opened.
    pub(crate) async fn is_connected(&self, task: &Task) -> Result<bool, NetError> {
        let addresses = task.addresses.iter().map(|(_, address)| *address);
        self.plane.is_connected(addresses.collect()).await
    }

    /// Connects to an address as the container of a task does.
    pub(crate) async fn dial(&self, task: TaskId, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.plane.dial(&task.to_string(), address).await
    }

    /// Namespaces of tasks that nobody knows any more.
    pub(crate) fn attached(&self) -> Vec<String> {
        self.plane.attached()
    }

    pub(crate) async fn drop_stray(&self, id: &str) -> Result<(), NetError> {
        self.plane.detach(id).await
    }

    pub(crate) async fn destroy(&self) -> Result<(), NetError> {
        self.plane.destroy().await
    }

    fn ask_from_now_on(&self, net: &WantedNet, set: &AssignmentSet) {
        let nodes = agent_core::net::nodes_at(&set.peers);
        let at = |way: Way| Some((way, *nodes.get(&way.host)?));
        let asked = pulse::ways(net).into_iter().filter_map(at).collect();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// Nodes that this one does not reach over the data plane; nothing before it has looked.
    pub(crate) fn unreached(&self) -> Option<BTreeSet<NodeId>> {
        self.unreached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks other hosts over the data plane, again and again. What is on one that does not answer gets no connections while
    /// there is something else, and the managers are told.
    pub(crate) async fn feel(&self) {
        let (mut pulses, mut narrow, mut deaf) = (Pulses::default(), BTreeSet::new(), false);
        let mut round = 0u32;
        loop {
            tokio::time::sleep(pulse::EVERY).await;
            round = round.wrapping_add(1);
            let sizes: &[bool] = if round.is_multiple_of(pulse::LARGE_EVERY) {
                &[false, true]
            } else {
                &[false]
            };
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let probes = asked.keys().flat_map(|way| {
                sizes.iter().map(|large| Probe {
                    host: way.host,
                    encrypted: way.encrypted,
                    large: *large,
                })
            });
            let answered = match self.plane.ask(probes.collect(), pulse::ANSWER).await {
                Ok(answered) => answered,
                Err(error) => {
                    // What was found before says nothing of now.
                    *self.unreached.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    if !std::mem::replace(&mut deaf, true) {
                        tracing::warn!(
                            "whether other hosts are reached is not looked at: {}",
                            chain(&error)
                        );
                    }
                    continue;
                }
            };
            let now = boottime();
            let way = |p: Probe| Way {
                host: p.host,
                encrypted: p.encrypted,
            };
            let heard = answered.into_iter().map(|p| (way(p), p.large)).collect();
            pulses.take(&asked.keys().copied().collect(), &heard, now);
            let now_narrow = pulses.narrow(now);
            for way in now_narrow.difference(&narrow) {
                tracing::warn!(
                    "large packets to the host {} are lost: something between takes less than the interface says: give the \
                     interface of the host the size that passes (MTU)",
                    way.host
                );
            }
            narrow = now_narrow;
            self.note(pulses.unreached(now), &asked).await;
        }
    }

    async fn note(&self, unreached: BTreeSet<Way>, asked: &BTreeMap<Way, NodeId>) {
        let nodes = unreached
            .iter()
            .filter_map(|way| asked.get(way).copied())
            .collect();
        *self.unreached.lock().unwrap_or_else(PoisonError::into_inner) = Some(nodes);
        let before = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.unreached.clone()
        };
        if before != unreached {
            for way in unreached.difference(&before) {
                tracing::warn!("the host {} does not answer over the data plane", way.host);
            }
            for way in before.difference(&unreached) {
                tracing::info!(
                    "the host {} is asked no more, or answers over the data plane again",
                    way.host
                );
            }
            self.change(|k| k.unreached = unreached);
            if let Err(error) = self.apply().await {
                tracing::warn!("leave out hosts that do not answer: {}", chain(&error));
            }
        }
    }

    fn node(&self) -> NodeId {
        // Without a certificate there are no tasks.
        self.keychain.identity().map_or(NodeId(0), |i| i.subject.node)
    }

    async fn apply(&self) -> Result<(), NetError> {
        let mine = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .generation;
        let mut applied = self.applying.lock().await;
        // Somebody who waited before us has applied our change with theirs.
        if *applied >= mine {
            return Ok(());
        }
        let node = self.node();
        let (net, generation) = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let mut net = wanted(&known.set, node, &known.attached, &known.serving);
            self.ask_from_now_on(&net, &known.set);
            pulse::avoid(&mut net, &known.unreached);
            (net, known.generation)
        };
        let unreached = unreached(&net.unreached).or_else(|| keyless(&net.keyless));
        let done = match self.plane.apply(translate(net)).await {
            Ok(done) => done,
            // What is there may not be what was left there.
            Err(error) => {
                tracing::warn!("{}: looking at what the kernel has", chain(&error));
                let repaired = self.plane.repair().await;
                repaired.inspect_err(|_| self.failed.notify_one())?
            }
        };
        self.say(done.unreachable, unreached);
        *applied = generation;
        Ok(())
    }

    /// Looks from time to time whether the kernel still has what it was given, and tries again what failed.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REPAIR_EVERY) => {}
                () = self.failed.notified() => tokio::time::sleep(RETRY).await,
            }
            // Nothing else is applied meanwhile.
            let _applied = self.applying.lock().await;
            match self.plane.repair().await {
                Ok(repaired) => {
                    if repaired.changed > 0 {
                        tracing::warn!(
                            "{} elements, routes or hosts of the network were not as rswarm had left them: repaired. \
                             Something else changes them: a firewall that is reloaded, or a person",
                            repaired.changed
                        );
                    }
                    let unreached = {
                        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                        let node = self.node();
                        let net = wanted(&known.set, node, &known.attached, &known.serving);
                        unreached(&net.unreached).or_else(|| keyless(&net.keyless))
                    };
                    self.say(repaired.unreachable, unreached);
                    self.reroute().await;
                }
                Err(error) => {
                    tracing::error!("repair the network: {}", chain(&error));
                    self.failed.notify_one();
                }
            }
        }
    }

    /// Logs what keeps this host from others, when that has changed.
    fn say(&self, unreachable: Option<NetError>, unreached: Option<String>) {
        if unreachable.is_some() {
            self.failed.notify_one();
        }
        let problem = unreachable.map(|e| chain(&e)).or(unreached);
        let mut said = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != problem {
            match &problem {
                Some(problem) => {
                    tracing::error!("tasks of this host and of others may not reach each other: {problem}")
                }
                None => tracing::info!("tasks of this host and of others reach each other again"),
            }
            *said = problem;
        }
    }
}

/// How many there are beside the one that is named.
fn and_more(all: usize) -> String {
    match all {
        0 | 1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    }
}

/// What is to be said of hosts whose tasks cannot be reached whatever is tried.
fn unreached(those: &BTreeMap<NodeId, String>) -> Option<String> {
    let (node, said) = those.first_key_value()?;
    let more = and_more(those.len());
    Some(format!(
        "node {node}{more} is at \"{said}\", and networks go over IPv4 addresses only: let it leave, and join again with \
         --advertise-addr"
    ))
}

/// What is to be said of hosts with tasks in encrypted networks that cannot encrypt.
fn keyless(those: &BTreeSet<NodeId>) -> Option<String> {
    let node = those.first()?;
    let more = and_more(those.len());
    Some(format!(
        "node {node}{more} has tasks in encrypted networks and no key: nothing is sent there in the open; its log says why it \
         cannot encrypt"
    ))
}

/// How a task hangs on the dataplane.
fn endpoint(task: &Task, set: &AssignmentSet) -> EndpointConfig {
    let address = |(network, address): &(NetworkId, IpAddr)| {
        let network = set.networks.get(network);
        let mut subnets = network.map(|n| subnets(n)).unwrap_or_default();
        subnets.retain(|(subnet, _)| subnet.is_ipv4() == address.is_ipv4());
        EndpointAddress {
            address: *address,
            subnets,
            internal: network.is_some_and(|n| n.spec.internal),
        }
    };
    EndpointConfig {
        id: task.id.to_string(),
        addresses: task.addresses.iter().map(address).collect(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|s| format!(": {s}"));
    format!("{error}{}", source.unwrap_or_default())
}

fn translate(net: WantedNet) -> Wanted {
    let protocol = |p: spec::Protocol| match p {
        spec::Protocol::Tcp => Some(Protocol::Tcp),
        spec::Protocol::Udp => Some(Protocol::Udp),
        spec::Protocol::Sctp => None,
    };
    Wanted {
        endpoints: net
            .endpoints
            .into_iter()
            .map(|(address, here)| {
                let endpoint = Endpoint {
                    network: here.network,
                    internal: here.internal,
                    encrypted: here.encrypted,
                };
                (address, endpoint)
            })
            .collect(),
        vips: net.vips,
        ports: net
            .ports
            .into_iter()
            .filter_map(|((p, port), v)| Some(((protocol(p)?, port), v)))
            .collect(),
        proxied: net.proxied.into_iter().map(|(_, port)| port).collect(),
        bound: (net.bound.into_iter())
            .filter_map(|((p, port), address)| Some(((protocol(p)?, port), address)))
            .collect(),
        published: (net.published.into_iter())
            .filter_map(|(address, p, port)| Some((address, protocol(p)?, port)))
            .collect(),
        encrypts: net.encrypts,
        zone: Zone {
            askers: net
                .askers
                .into_iter()
                .map(|(id, a)| (id.to_string(), a))
                .collect(),
            names: net.names,
            reverse: net.reverse,
            located: net.located,
        },
        overlay: Overlay {
            own: net.own,
            hosts: net.hosts,
            keys: net.keys,
            remote: (net.remote.into_iter())
                .map(|(address, there)| {
                    let remote = Remote {
                        network: there.network,
                        host: there.host,
                        encrypted: there.encrypted,
                    };
                    (address, remote)
                })
                .collect(),
        },
        subnets: net.subnets,
    }
}
