//! Tells the manager which images this node holds, anew for every session and whenever it changes.

use std::sync::Arc;
use std::time::Duration;

use image::{Held, ImageStore};
use model::spec::{IMAGE_NAMES_MAX, IMAGES_HELD_MAX};
use proto::dispatch as w;
use tokio::sync::{Notify, watch};

use crate::agent::Shared;
use crate::link::Link;
use crate::tasks::blocking;

/// Wait before a report that failed is made again.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest wait of an operator's command for the manager to know what it changed.
const TOLD_LIMIT: Duration = Duration::from_secs(2);

/// What was reported.
pub(crate) struct Inventory {
    changed: Arc<Notify>,
    /// Version of the store the manager of this session knows; none before the first report to it.
    told: watch::Sender<Option<u64>>,
}

impl Inventory {
    pub(crate) fn of(store: &ImageStore) -> Self {
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        store.on_change(move || wake.notify_one());
        Self {
            changed,
            told: watch::Sender::new(None),
        }
    }
}

/// Reports for as long as the agent runs.
pub(crate) async fn run(shared: Arc<Shared>) {
    let inventory = &shared.inventory;
    let mut links = shared.links.subscribe();
    loop {
        let link = links.borrow_and_update().clone();
        inventory.told.send_replace(None);
        let reports = async {
            match link {
                Some(link) => report(&shared, link).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reports => {}
            changed = links.changed() => if changed.is_err() { return },
        }
    }
}

async fn report(shared: &Shared, mut link: Link) {
    loop {
        let store = shared.images.clone();
        let read = blocking(move || (store.version(), store.inventory())).await;
        let result = match read {
            Ok((version, held)) => {
                let request = w::ReportImagesRequest {
                    session: link.session.clone(),
                    images: bounded(held),
                };
                let sent = link.client.report_images(request).await;
                sent.map(|_| version).map_err(|s| s.message().to_owned())
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(version) => {
                shared.inventory.told.send_replace(Some(version));
                shared.inventory.changed.notified().await;
            }
            Err(error) => {
                tracing::warn!(%error, "tell the manager which images are here");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// The newest images, as many as are taken; their names count as well.
fn bounded(mut held: Vec<Held>) -> Vec<w::HeldImage> {
    held.sort_by_key(|h| (std::cmp::Reverse(h.created_ms), h.id.clone()));
    let (mut names, all) = (0, held.len());
    let fits = |h: &Held| {
        names += h.references.len();
        names <= IMAGE_NAMES_MAX
    };
    let images: Vec<w::HeldImage> = held
        .into_iter()
        .take(IMAGES_HELD_MAX)
        .take_while(fits)
        .map(|h| w::HeldImage {
            id: h.id,
            references: h.references,
            created_ms: h.created_ms,
        })
        .collect();
    if images.len() < all {
        tracing::warn!(
            "this node holds {all} images, and other nodes are told of the newest {} only: remove some",
            images.len()
        );
    }
    images
}

impl Shared {
    /// Waits until the manager knows of the images that are here now, so that a service made by the next command finds
    /// them; a bounded time, and not at all without a session.
    pub(crate) async fn images_told(&self) {
        if self.links.subscribe().borrow().is_none() {
            return;
        }
        let version = self.images.version();
        let mut told = self.inventory.told.subscribe();
        let known = told.wait_for(|told| told.is_some_and(|told| told >= version));
        // The manager is busy or away: the command itself has succeeded.
        let _ = tokio::time::timeout(TOLD_LIMIT, known).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stays_within_what_a_manager_takes() {
        let held = |n: usize, names: usize| Held {
            id: format!("{n:064}"),
            references: vec!["a:1".into(); names],
            created_ms: n as u64,
        };
        assert_eq!(bounded((0..3).map(|n| held(n, 2)).collect()).len(), 3);
        let many = bounded((0..=IMAGES_HELD_MAX).map(|n| held(n, 1)).collect());
        assert_eq!(many.len(), IMAGES_HELD_MAX);
        assert!(
            many[0].created_ms > many[1].created_ms && many.iter().all(|i| i.created_ms > 0),
            "the newest"
        );
        let named = bounded(vec![held(3, IMAGE_NAMES_MAX - 1), held(2, 1), held(1, 1)]);
        assert_eq!(named.len(), 2);
    }
}
