//! Images this node lacks, from nodes that have them: performs the plan of [`agent_core::fetch`].

mod claims;
mod transfer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_core::fetch::{Fault, Fetch, Next};
use image::{ImageStore, Reference};
use model::{NodeId, Timestamp};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::peers::Peers;
use crate::tasks::{blocking, chain};
use claims::Claims;
use transfer::{Description, Incoming, Moved, Outcome};

/// Images fetched at the same time; each has a few transfers and as many threads that unpack.
const IMAGES_AT_ONCE: usize = 4;
/// Longest fetch of one image: 64 GiB at 20 MB/s.
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// Time between two words on how far a fetch is: each becomes an entry of the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Which image a reference means, and who has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) sources: Vec<(NodeId, String)>,
}

/// Why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    /// No node has it.
    #[error("no node of the cluster has it")]
    Nobody,
    /// The manager does not answer.
    #[error("the manager could not say who has it: {0}")]
    Manager(String),
}

/// Whoever knows who has what.
#[tonic::async_trait]
pub(crate) trait Finder: Send + Sync {
    async fn find(&self, reference: &str) -> Result<Found, FindError>;
}

/// How a fetch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flight {
    /// Nodes that have the image are looked for.
    Looking,
    /// Bytes that arrived, of how many.
    Moving(u64, u64),
    /// It is here; or why not.
    Over(Result<(), String>),
}

/// Fetches each image once, however many tasks wait for it.
pub(crate) struct Fetcher {
    images: ImageStore,
    peers: Option<Arc<dyn Peers>>,
    finder: Arc<dyn Finder>,
    flights: Mutex<BTreeMap<String, Arc<watch::Sender<Flight>>>>,
    claims: Arc<Claims>,
    slots: Semaphore,
}

impl Fetcher {
    pub(crate) fn new(images: ImageStore, peers: Option<Arc<dyn Peers>>, finder: Arc<dyn Finder>) -> Self {
        Self {
            images,
            peers,
            finder,
            flights: Mutex::default(),
            claims: Arc::default(),
            slots: Semaphore::new(IMAGES_AT_ONCE),
        }
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<String, Arc<watch::Sender<Flight>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches an image, or joins those who wait for it. It is given up when nobody waits any more.
    pub(crate) fn get(self: &Arc<Self>, reference: &str) -> watch::Receiver<Flight> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(reference) {
            return flight.subscribe();
        }
        let (sender, receiver) = watch::channel(Flight::Looking);
        let sender = Arc::new(sender);
        flights.insert(reference.to_owned(), sender.clone());
        tokio::spawn(self.clone().fly(reference.to_owned(), sender));
        receiver
    }

    async fn fly(self: Arc<Self>, reference: String, flight: Arc<watch::Sender<Flight>>) {
        let result = {
            let mut work = Box::pin(tokio::time::timeout(FETCH_LIMIT, self.fetch(&reference, &flight)));
            loop {
                tokio::select! {
                    result = &mut work => break result.unwrap_or_else(|_| Err("it takes longer than an hour".into())),
                    () = flight.closed() => {
                        let mut flights = self.flights();
                        // Somebody may have joined in between.
                        if flight.receiver_count() == 0 {
                            flights.remove(&reference);
                            return;
                        }
                    }
                }
            }
        };
        if let Err(error) = &result {
            tracing::warn!(image = %reference, %error, "fetch an image");
        }
        // Taken off first, so that whoever joins later begins anew.
        self.flights().remove(&reference);
        flight.send_replace(Flight::Over(result));
    }

    async fn fetch(&self, reference: &str, flight: &watch::Sender<Flight>) -> Result<(), String> {
        let _slot = self.slots.acquire().await.map_err(|e| e.to_string())?;
        let found = self.finder.find(reference).await.map_err(|e| e.to_string())?;
        let names = names_for(reference, &found.id);
        let (images, id, own) = (self.images.clone(), found.id.clone(), names.clone());
        // It may be here under another name.
        let here = blocking(move || match images.resolve(&id) {
            Ok(_) => own.map_or(Ok(true), |name| images.tag(&id, &name.to_string()).map(|()| true)),
            Err(_) => Ok(false),
        });
        if here.await?.map_err(|e| chain(&e))? {
            return Ok(());
        }
        let Some(peers) = self.peers.clone() else {
            return Err("this agent cannot reach other nodes".into());
        };
        let began = Instant::now();
        let run = Run {
            fetcher: self,
            reference,
            flight,
            peers,
            plan: Fetch::new(found.sources.iter().map(|(node, _)| *node), Timestamp::default()),
            addresses: found.sources.into_iter().collect(),
            channels: BTreeMap::new(),
            config: None,
            id: found.id,
            incoming: BTreeMap::new(),
            counters: BTreeMap::new(),
            under_way: JoinSet::new(),
            began,
        };
        run.finish(names).await
    }
}

/// The name the image gets here. One that is pinned, or asked for by its id, gets none, as in Docker: the name may mean
/// another image tomorrow, and only those who gave it should say so.
fn names_for(reference: &str, id: &str) -> Option<Reference> {
    let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
    let by_id = id
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.starts_with(digits));
    (!by_id && !reference.contains('@'))
        .then(|| reference.parse().ok())
        .flatten()
}

/// Something under way has ended.
enum Ended {
    Described(NodeId, Result<(Channel, Description), (Fault, String)>),
    Moved(Moved),
}

/// One fetch.
struct Run<'a> {
    fetcher: &'a Fetcher,
    reference: &'a str,
    flight: &'a watch::Sender<Flight>,
    peers: Arc<dyn Peers>,
    plan: Fetch,
    addresses: BTreeMap<NodeId, String>,
    channels: BTreeMap<NodeId, Channel>,
    config: Option<Vec<u8>>,
    id: String,
    /// Layers that have begun to arrive and are not complete.
    incoming: BTreeMap<String, Incoming>,
    /// Bytes of the layers that arrive just now.
    counters: BTreeMap<String, Arc<AtomicU64>>,
    under_way: JoinSet<Ended>,
    began: Instant,
}

impl Run<'_> {
    fn now(&self) -> Timestamp {
        Timestamp::default() + self.began.elapsed()
    }

    async fn finish(mut self, name: Option<Reference>) -> Result<(), String> {
        // Any description tells the config, and with it the layers.
        self.until(|run| run.config.is_some()).await?;
        let config = self.config.clone().unwrap_or_default();
        let claims = self.fetcher.claims.clone();
        loop {
            let mut released = claims.released();
            let (images, document) = (self.fetcher.images.clone(), config.clone());
            let missing = blocking(move || images.missing(&document)).await?;
            let missing = missing.map_err(|e| chain(&e))?;
            if missing.is_empty() {
                break;
            }
            let mine = claims.claim(&missing);
            if mine.layers().is_empty() {
                // Other images that have them bring them.
                let _ = released.changed().await;
                continue;
            }
            self.plan.want(mine.layers().iter().cloned());
            self.until(|_| false).await?;
        }
        let images = self.fetcher.images.clone();
        let added = blocking(move || images.add_image(&config, name.as_slice())).await?;
        added.map(drop).map_err(|e| chain(&e))
    }

    /// Performs the plan until it is done, or enough is known.
    async fn until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !enough(self) {
            let wake = match self.plan.next(self.now()) {
                Next::Done => return Ok(()),
                Next::Failed(why) => return Err(why.to_string()),
                Next::Ask(at) => {
                    tokio::time::sleep(at.since(self.now())).await;
                    self.ask_again().await?;
                    continue;
                }
                Next::Go {
                    describe,
                    transfers,
                    wake,
                } => {
                    describe.into_iter().for_each(|node| self.describe(node));
                    for transfer in transfers {
                        self.plan.begin(&transfer);
                        self.transfer(transfer);
                    }
                    wake
                }
            };
            let until = wake.map(|at| at.since(self.now()));
            let pause = async {
                match until {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.under_way.join_next() => {
                    let ended = ended.map_err(|e| format!("a transfer failed: {e}"))?;
                    self.took(ended)?;
                }
                () = pause => {}
                _ = tick.tick() => self.tell(),
            }
        }
        Ok(())
    }

    async fn ask_again(&mut self) -> Result<(), String> {
        // The id: by now the name may mean another image.
        let found = match self.fetcher.finder.find(&self.id).await {
            Ok(found) => found,
            Err(FindError::Nobody) => Found::default(),
            Err(error) => return Err(error.to_string()),
        };
        self.plan.asked(found.sources.iter().map(|(node, _)| *node));
        self.addresses.extend(found.sources);
        Ok(())
    }

    fn describe(&mut self, node: NodeId) {
        self.plan.describing(node);
        let (peers, id) = (self.peers.clone(), self.id.clone());
        let address = self.addresses.get(&node).cloned().unwrap_or_default();
        self.under_way.spawn(async move {
            let described = transfer::describe(&*peers, node, &address, &id).await;
            Ended::Described(node, described)
        });
    }

    fn transfer(&mut self, transfer: agent_core::fetch::Transfer) {
        let Some(channel) = self.channels.get(&transfer.source).cloned() else {
            // None is planned from a node that was not reached.
            self.plan.broken(&transfer.diff_id, Fault::Lost, self.now());
            return;
        };
        let incoming = match self.incoming.remove(&transfer.diff_id) {
            Some(incoming) if transfer.offset > 0 => incoming,
            // What arrived before is dropped, and its thread with it.
            Some(_) | None => Incoming::new(&self.fetcher.images, &transfer.diff_id),
        };
        self.counters.insert(transfer.diff_id.clone(), incoming.counter());
        self.under_way
            .spawn(async move { Ended::Moved(transfer::run(channel, transfer, incoming).await) });
    }

    /// Takes what ended into the plan.
    fn took(&mut self, ended: Ended) -> Result<(), String> {
        let (now, image) = (self.now(), self.reference);
        match ended {
            Ended::Described(node, Ok((channel, description))) => {
                self.channels.insert(node, channel);
                self.config.get_or_insert(description.config);
                self.plan.described(node, description.layers);
            }
            Ended::Described(node, Err((fault, why))) => {
                tracing::warn!(%node, %image, %why, "a node cannot be asked for an image");
                self.plan.not_described(node, fault, now);
            }
            Ended::Moved(Moved {
                transfer,
                incoming,
                outcome,
            }) => {
                let (layer, node) = (&transfer.diff_id, transfer.source);
                self.counters.remove(layer);
                if let Some((incoming, have)) = incoming {
                    self.plan.arrived(layer, have);
                    self.incoming.insert(layer.clone(), incoming);
                }
                match outcome {
                    Outcome::Verified => self.plan.verified(layer),
                    Outcome::Here(why) => return Err(why),
                    Outcome::Failed(fault, why) => match self.plan.broken(layer, fault, now) {
                        Some(liar) => {
                            tracing::error!(node = %liar, %layer, %image, %why, "a node sent wrong bytes; it is not asked for this image again");
                        }
                        None => tracing::warn!(%node, %layer, %image, %why, "a transfer broke off"),
                    },
                }
            }
        }
        Ok(())
    }

    /// Tells how far it is.
    fn tell(&mut self) {
        for (layer, have) in &self.counters {
            self.plan.arrived(layer, have.load(Ordering::Relaxed));
        }
        let (have, total) = self.plan.progress();
        if total > 0 {
            self.flight.send_replace(Flight::Moving(have, total));
        }
    }
}

#[cfg(test)]
mod tests;
