//! Which fetch brings which layer, so that images that share one fetch it once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Layers that are being fetched.
pub(super) struct Claims {
    layers: Mutex<BTreeSet<String>>,
    released: watch::Sender<u64>,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            layers: Mutex::default(),
            released: watch::Sender::new(0),
        }
    }
}

/// The layers one fetch brings; they are free again when it is dropped.
pub(super) struct Claimed {
    all: Arc<Claims>,
    mine: Vec<String>,
}

impl Claims {
    fn layers(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever layers become free.
    pub(super) fn released(&self) -> watch::Receiver<u64> {
        self.released.subscribe()
    }

    /// Takes those that nobody has.
    pub(super) fn claim(self: &Arc<Self>, wanted: &[String]) -> Claimed {
        let mut layers = self.layers();
        let mine = wanted.iter().filter(|l| layers.insert((*l).clone())).cloned();
        Claimed {
            mine: mine.collect(),
            all: self.clone(),
        }
    }
}

impl Claimed {
    pub(super) fn layers(&self) -> &[String] {
        &self.mine
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        {
            let mut layers = self.all.layers();
            layers.retain(|l| !self.mine.contains(l));
        }
        if !self.mine.is_empty() {
            self.all.released.send_modify(|version| *version += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_who_brings_it_until_he_is_gone() {
        let all = Arc::new(Claims::default());
        let wanted = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let first = all.claim(&wanted(&["a", "b"]));
        let released = all.released();
        let second = all.claim(&wanted(&["b", "c"]));
        assert_eq!(
            (first.layers(), second.layers()),
            (&wanted(&["a", "b"])[..], &wanted(&["c"])[..])
        );
        assert!(all.claim(&wanted(&["a"])).layers().is_empty());
        assert!(!released.has_changed().unwrap_or(true), "nothing became free");
        drop(first);
        assert!(released.has_changed().unwrap_or(false));
        assert_eq!(all.claim(&wanted(&["b", "c"])).layers(), wanted(&["b"]));
    }
}
