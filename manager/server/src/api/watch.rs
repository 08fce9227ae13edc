//! Watch: everything of some kinds, then each change as it is committed.

use std::sync::{Arc, Weak};

use manager_core::{Changes, State};
use model::ServiceId;
use model::object::Object;
use proto::control::WatchEvent;
use proto::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{filter, order, shown};
use crate::dispatcher::Streamed;
use crate::raft::{Event, Log, Subscription};

/// Events that wait for a slow client; a client slower still gets everything anew.
const EVENTS_QUEUED: usize = 64;

/// What a client wants to see.
pub(super) struct Wanted {
    /// Kinds; none: all.
    pub(super) kinds: Vec<types::Kind>,
    /// Only this service and its tasks.
    pub(super) service: Option<ServiceId>,
}

const ALL: [types::Kind; 7] = [
    types::Kind::Cluster,
    types::Kind::Node,
    types::Kind::Service,
    types::Kind::Task,
    types::Kind::Network,
    types::Kind::Secret,
    types::Kind::Config,
];

impl Wanted {
    fn takes(&self, object: &Object) -> bool {
        let kind = types::Key::from(object.key()).kind();
        let of_service = match (self.service, object) {
            (None, _) => true,
            (Some(id), Object::Service(service)) => service.id == id,
            (Some(id), Object::Task(task)) => task.service == id,
            (Some(_), _) => false,
        };
        of_service && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }

    fn snapshot(&self, state: &State) -> WatchEvent {
        let kinds = if self.kinds.is_empty() {
            &ALL[..]
        } else {
            &self.kinds
        };
        let objects = kinds
            .iter()
            .flat_map(|kind| filter::all(state, *kind))
            .filter(|o| self.takes(o));
        WatchEvent {
            index: state.index(),
            snapshot: true,
            changed: objects.map(|o| said(state, &o)).collect(),
            removed: Vec::new(),
        }
    }

    fn changes(&self, state: &State, changes: &Changes) -> Option<WatchEvent> {
        let mut event = WatchEvent {
            index: changes.index,
            ..WatchEvent::default()
        };
        for change in &changes.items {
            match (&change.before, &change.after) {
                (_, Some(after)) if self.takes(after) => event.changed.push(said(state, after)),
                (Some(before), None) if self.takes(before) => event.removed.push(change.key.into()),
                _ => {}
            }
        }
        let again = (self.service.iter()).flat_map(|id| order::again(state, changes, *id));
        event
            .changed
            .extend(again.filter(|o| self.takes(o)).map(|o| said(state, &o)));
        (!event.changed.is_empty() || !event.removed.is_empty()).then_some(event)
    }
}

/// An object as clients see it, with what it waits for.
fn said(state: &State, object: &Object) -> types::Object {
    let mut object = shown(object);
    order::say(state, &mut object);
    object
}

/// Begins a watch; it ends with the client, or with the log.
pub(super) fn start(log: &Arc<Log>, wanted: Wanted) -> Streamed<WatchEvent> {
    let (send, stream) = mpsc::channel(EVENTS_QUEUED);
    let subscription = log.subscribe();
    // Weak: a client that watches must not keep a log alive that is to be closed.
    tokio::spawn(follow(Arc::downgrade(log), subscription, wanted, send));
    ReceiverStream::new(stream)
}

async fn follow(
    log: Weak<Log>,
    mut subscription: Subscription,
    wanted: Wanted,
    send: mpsc::Sender<Result<WatchEvent, Status>>,
) {
    let mut next = Some(wanted.snapshot(&subscription.state));
    loop {
        if let Some(event) = next
            && send.send(Ok(event)).await.is_err()
        {
            return;
        }
        next = tokio::select! {
            event = subscription.next() => match event {
                Some(Event::Applied(changes)) => log.upgrade().and_then(|log| wanted.changes(&log.read(), &changes)),
                Some(Event::Replaced) => log.upgrade().map(|log| wanted.snapshot(&log.read())),
                None => return,
            },
            () = send.closed() => return,
        };
    }
}
