//! Which layer of an image comes from which node next: a function of what arrived and what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{NodeId, Timestamp};

/// Layers under way at the same time: a slow one does not hold up the others, and a node that serves is left slots for
/// others.
pub const LAYERS_AT_ONCE: usize = 3;
/// Nodes used at the same time; the others stand in for those that fail.
pub const SOURCES_AT_ONCE: usize = 4;
/// Failures of one node, each of which another may be the reason of, before it is not asked again.
pub const STRIKES_MAX: u32 = 3;
/// Failures of one fetch before it is given up: every one of 16 nodes may fail three times.
pub const FAILURES_MAX: u32 = 48;
/// Times that the manager is asked for further nodes, every [`BUSY_PAUSE`]: some ten minutes, in which the first of many
/// nodes that want the same image have it and serve it on.
pub const ASKS_MAX: u32 = 300;
/// Wait before a node is asked again that serves as many others as it can.
pub const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Wait before a node is asked again that failed.
pub const STRIKE_PAUSE: Duration = Duration::from_secs(1);
/// Time in which the first nodes that answer are not given a second layer each, so that the others get theirs.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// A layer that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    diff_id: String,
    /// Bytes of the packed form that is being fetched.
    size: u64,
    /// Bytes of it that arrived.
    have: u64,
    /// Who sent them.
    from: BTreeSet<NodeId>,
    /// Bytes of several nodes were not the layer: from now on it comes from one.
    alone: bool,
    /// Who sent those.
    suspects: BTreeSet<NodeId>,
    state: LayerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerState {
    Waiting,
    Moving(NodeId),
    Done,
}

/// A node that may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    node: NodeId,
    offer: Offer,
    strikes: u32,
    not_before: Timestamp,
    dropped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Offer {
    Unasked,
    Asked,
    /// Layer → bytes of its packed form there.
    Has(BTreeMap<String, u64>),
}

/// A fetch under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    layers: Option<Vec<Layer>>,
    sources: Vec<Source>,
    began: Timestamp,
    failures: u32,
    asks: u32,
    /// The list of nodes is as new as it can be: nothing was tried since it came.
    fresh: bool,
}

/// A layer, or the rest of one, from one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Which layer.
    pub diff_id: String,
    /// From whom.
    pub source: NodeId,
    /// Where to begin; zero also where something arrived that cannot be gone on with.
    pub offset: u64,
    /// Bytes of the whole.
    pub size: u64,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Begin these; nothing to begin: wait for what is under way, or until the time.
    Go {
        /// Nodes to ask what they have.
        describe: Vec<NodeId>,
        /// Layers to fetch.
        transfers: Vec<Transfer>,
        /// When to look again although nothing happened.
        wake: Option<Timestamp>,
    },
    /// Ask the manager which nodes have the image, not before this time.
    Ask(Timestamp),
    /// Every layer is here.
    Done,
    /// It will not work.
    Failed(Failed),
}

/// Why a fetch is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Nobody is left to ask.
    #[error("no node that has it could send it whole")]
    NoSource,
    /// Too much went wrong.
    #[error("its transfer failed {FAILURES_MAX} times")]
    Failures,
    /// Every node was busy all the time.
    #[error("the nodes that have it are busy sending it to others: it is tried again with the next task")]
    Busy,
}

/// How a node failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It cannot be reached, went silent or broke off.
    Lost,
    /// It serves as many others as it can.
    Busy,
    /// It does not have what it was asked for.
    Lacks,
    /// What it sent is not what was asked for.
    Wrong,
}

impl Fetch {
    /// Begins with the nodes the manager named, the one to ask first in front.
    pub fn new(sources: impl IntoIterator<Item = NodeId>, now: Timestamp) -> Self {
        let mut fetch = Self {
            layers: None,
            sources: Vec::new(),
            began: now,
            failures: 0,
            asks: 0,
            fresh: true,
        };
        fetch.add(sources);
        fetch
    }

    /// Which layers are wanted, once it is known; those that were wanted before are forgotten.
    pub fn want(&mut self, layers: impl IntoIterator<Item = String>) {
        let layer = |diff_id| Layer {
            diff_id,
            size: 0,
            have: 0,
            from: BTreeSet::new(),
            alone: false,
            suspects: BTreeSet::new(),
            state: LayerState::Waiting,
        };
        self.layers = Some(layers.into_iter().map(layer).collect());
    }

    /// The manager's answer; nodes that are known stay as they are.
    pub fn asked(&mut self, sources: impl IntoIterator<Item = NodeId>) {
        self.asks += 1;
        self.fresh = true;
        self.add(sources);
    }

    fn add(&mut self, sources: impl IntoIterator<Item = NodeId>) {
        for node in sources {
            if self.source(node).is_none() {
                self.sources.push(Source {
                    node,
                    offer: Offer::Unasked,
                    strikes: 0,
                    not_before: Timestamp::default(),
                    dropped: false,
                });
            }
        }
    }

    /// A node is being asked what it has.
    pub fn describing(&mut self, node: NodeId) {
        self.fresh = false;
        if let Some(source) = self.source(node) {
            source.offer = Offer::Asked;
        }
    }

    /// A node said what it has: layer → bytes.
    pub fn described(&mut self, node: NodeId, layers: BTreeMap<String, u64>) {
        if let Some(source) = self.source(node) {
            source.offer = Offer::Has(layers);
        }
    }

    /// A node could not be asked.
    pub fn not_described(&mut self, node: NodeId, fault: Fault, now: Timestamp) {
        if let Some(source) = self.source(node) {
            source.offer = Offer::Unasked;
        }
        self.blame(node, fault, now);
    }

    /// A transfer begins.
    pub fn begin(&mut self, transfer: &Transfer) {
        self.fresh = false;
        if let Some(layer) = self.layer(&transfer.diff_id) {
            if transfer.offset == 0 {
                layer.have = 0;
                layer.from.clear();
            }
            layer.size = transfer.size;
            layer.from.insert(transfer.source);
            layer.state = LayerState::Moving(transfer.source);
        }
    }

    /// So much of a layer has arrived in all.
    pub fn arrived(&mut self, diff_id: &str, have: u64) {
        if let Some(layer) = self.layer(diff_id) {
            layer.have = have;
        }
    }

    /// A layer is here, and is what it should be.
    pub fn verified(&mut self, diff_id: &str) {
        if let Some(layer) = self.layer(diff_id) {
            layer.have = layer.size;
            layer.state = LayerState::Done;
        }
    }

    /// A transfer failed. Answers the node that is to blame for wrong bytes, if it can only be one.
    ///
    /// Bytes of several nodes may be wrong although each is honest: they may have packed the layer differently, with the
    /// same length. So nobody is blamed then, and the layer comes from one node alone.
    pub fn broken(&mut self, diff_id: &str, fault: Fault, now: Timestamp) -> Option<NodeId> {
        let layer = self.layer(diff_id)?;
        let LayerState::Moving(source) = layer.state else {
            return None;
        };
        layer.state = LayerState::Waiting;
        if fault != Fault::Wrong {
            self.blame(source, fault, now);
            return None;
        }
        let from = std::mem::take(&mut layer.from);
        layer.have = 0;
        if from.len() > 1 {
            layer.alone = true;
            layer.suspects = from;
            self.failures += 1;
            return None;
        }
        self.blame(source, Fault::Wrong, now);
        Some(source)
    }

    fn blame(&mut self, node: NodeId, fault: Fault, now: Timestamp) {
        if fault != Fault::Busy {
            self.failures += 1;
        }
        let Some(source) = self.source(node) else { return };
        match fault {
            Fault::Busy => source.not_before = now + BUSY_PAUSE,
            Fault::Lost => {
                source.strikes += 1;
                source.not_before = now + STRIKE_PAUSE;
                source.dropped |= source.strikes >= STRIKES_MAX;
            }
            Fault::Lacks | Fault::Wrong => source.dropped = true,
        }
    }

    /// Bytes that arrived, and bytes there are as far as they are known.
    pub fn progress(&self) -> (u64, u64) {
        let layers = self.layers.as_deref().unwrap_or_default();
        let size = |layer: &Layer| {
            let offered = self
                .sources
                .iter()
                .filter_map(|s| s.offers(&layer.diff_id))
                .next();
            if layer.size > 0 {
                layer.size
            } else {
                offered.unwrap_or(0)
            }
        };
        (layers.iter().map(|l| l.have).sum(), layers.iter().map(size).sum())
    }

    /// Decides what to do now.
    pub fn next(&self, now: Timestamp) -> Next {
        let layers = self.layers.as_deref().unwrap_or_default();
        if self.layers.is_some() && layers.iter().all(|l| l.state == LayerState::Done) {
            return Next::Done;
        }
        if self.failures >= FAILURES_MAX {
            return Next::Failed(Failed::Failures);
        }
        let usable = |s: &&Source| !s.dropped && s.not_before <= now;
        let asked = self.sources.iter().filter(|s| s.offer == Offer::Asked).count();
        let used = self
            .sources
            .iter()
            .filter(|s| !s.dropped && s.offer != Offer::Unasked)
            .count();
        let describe: Vec<NodeId> = (self.sources.iter().filter(usable))
            .filter(|s| s.offer == Offer::Unasked)
            .take(SOURCES_AT_ONCE.saturating_sub(used))
            .map(|s| s.node)
            .collect();
        let answers_come = asked + describe.len() > 0;
        let patient_until = self.began + PATIENCE;
        let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
        for layer in layers {
            if let LayerState::Moving(node) = layer.state {
                *busy.entry(node).or_default() += 1;
            }
        }
        let moving: usize = busy.values().sum();
        let mut room = LAYERS_AT_ONCE.saturating_sub(moving);
        let (mut transfers, mut held_back) = (Vec::new(), false);
        for layer in layers.iter().filter(|l| l.state == LayerState::Waiting) {
            if room == 0 {
                break;
            }
            let Some(transfer) = self.choose(layer, &busy, now) else {
                continue;
            };
            let load = busy.entry(transfer.source).or_default();
            if *load > 0 && answers_come && now < patient_until {
                held_back = true;
                continue;
            }
            *load += 1;
            room -= 1;
            transfers.push(transfer);
        }
        let idle = describe.is_empty() && transfers.is_empty() && asked + moving == 0;
        if !idle || held_back {
            let later = self.sources.iter().filter(|s| !s.dropped && s.not_before > now);
            let wake = later.map(|s| s.not_before).min();
            let patience = held_back.then_some(patient_until);
            return Next::Go {
                describe,
                transfers,
                wake: wake.into_iter().chain(patience).min(),
            };
        }
        let back = (self.sources.iter().filter(|s| !s.dropped && s.not_before > now))
            .map(|s| s.not_before)
            .min();
        match back {
            Some(_) if self.asks >= ASKS_MAX => Next::Failed(Failed::Busy),
            // Others may have it by then.
            Some(at) => Next::Ask(at),
            None if self.fresh || self.asks >= ASKS_MAX => Next::Failed(Failed::NoSource),
            None => Next::Ask(now),
        }
    }

    /// The node a layer comes from: one where it can go on, then one that sends us the least already, then one that
    /// failed least, then the first in the manager's order.
    fn choose(&self, layer: &Layer, busy: &BTreeMap<NodeId, usize>, now: Timestamp) -> Option<Transfer> {
        let candidates = self.sources.iter().enumerate().filter_map(|(place, source)| {
            let size = source.offers(&layer.diff_id)?;
            // Equal lengths are a good sign of equal bytes, and no more: the digest is looked at in the end.
            let same = size == layer.size && (!layer.alone || layer.from.iter().all(|n| *n == source.node));
            let offset = if same { layer.have } else { 0 };
            let starts_anew = layer.have > 0 && offset == 0;
            let load = busy.get(&source.node).copied().unwrap_or(0);
            let suspect = layer.suspects.contains(&source.node);
            let rank = (suspect, starts_anew, load, source.strikes, place);
            (source.not_before <= now).then_some((rank, source.node, offset, size))
        });
        let (_, source, offset, size) = candidates.min()?;
        Some(Transfer {
            diff_id: layer.diff_id.clone(),
            source,
            offset,
            size,
        })
    }

    fn source(&mut self, node: NodeId) -> Option<&mut Source> {
        self.sources.iter_mut().find(|s| s.node == node)
    }

    fn layer(&mut self, diff_id: &str) -> Option<&mut Layer> {
        self.layers.as_mut()?.iter_mut().find(|l| l.diff_id == diff_id)
    }
}

impl Source {
    /// Bytes of a layer it can send.
    fn offers(&self, diff_id: &str) -> Option<u64> {
        match &self.offer {
            Offer::Has(layers) if !self.dropped => layers.get(diff_id).copied(),
            Offer::Has(_) | Offer::Unasked | Offer::Asked => None,
        }
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
