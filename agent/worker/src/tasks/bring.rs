//! Waiting for the image of a task, while other nodes send it.

use image::StoreError;

use super::{Worker, blocking, chain};
use crate::fetch::Flight;

/// What came of it.
pub(super) enum Brought {
    /// It is here.
    Here,
    /// It is not, and will not be.
    Failed(String),
    /// The task is not wanted any more.
    NotWanted,
    /// The agent stops.
    Stopped,
}

impl Worker {
    /// Has the image fetched where it is not here, and tells how far that is.
    pub(super) async fn bring_image(&mut self) -> Brought {
        let reference = self.task.spec.container.image.clone();
        let (images, name) = (self.shared.images.clone(), reference.clone());
        let missing = match blocking(move || images.resolve(&name)).await {
            Ok(Ok(_)) => return Brought::Here,
            Ok(Err(error @ StoreError::NotFound(_))) => chain(error),
            Ok(Err(error)) => return Brought::Failed(chain(error)),
            Err(error) => return Brought::Failed(error),
        };
        let mut flight = self.shared.fetcher.get(&reference);
        loop {
            let stands = flight.borrow_and_update().clone();
            match stands {
                Flight::Over(Ok(())) => return Brought::Here,
                Flight::Over(Err(error)) => return Brought::Failed(format!("{missing}; {error}")),
                Flight::Looking => self.message = "fetching image".into(),
                Flight::Moving(have, total) => self.message = words(have, total),
            }
            self.tell();
            tokio::select! {
                biased;
                order = self.order.changed() => {
                    if order.is_err() {
                        return Brought::Stopped;
                    }
                    self.take_order();
                    if !self.local.desired.is_some_and(model::task_state::DesiredState::is_live) {
                        return Brought::NotWanted;
                    }
                }
                changed = flight.changed() => if changed.is_err() {
                    return Brought::Failed(format!("{missing}; its transfer was given up"));
                },
            }
        }
    }
}

fn words(have: u64, total: u64) -> String {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    format!("fetching image ({} of {} MB)", have / 1_000_000, mb(total))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn progress_reads_in_megabytes() {
        assert_eq!(words(12_999_999, 39_000_001), "fetching image (12 of 40 MB)");
        assert_eq!(words(0, 5), "fetching image (0 of 1 MB)");
    }
}
