//! Decides one write after another: each decision sees the result of the one before it.
//!
//! Two decisions at the same time would choose the same free name, port or address. So they take turns, each lasting
//! about one sync of the disk; requests that wait for the same turn share it. Reports of agents choose nothing, and
//! pass by.

use std::collections::BTreeSet;
use std::sync::Arc;

use manager_core::{Action, Admitted, Answer, Entry, Refusal, RequestId, State, Txn};
use model::Timestamp;
use model::ids::IdSource;
use model::object::Key;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

use crate::raft::{Log, ProposeError};

/// Times a request is decided again because an agent's report changed what it was based on.
const ATTEMPTS_MAX: u32 = 16;

/// Requests that share one entry.
const BATCH_MAX: usize = 256;
/// Requests that wait for their turn; then callers wait with theirs.
const QUEUE_MAX: usize = 1024;

/// Ids from the kernel's random numbers.
#[derive(Debug, Default)]
pub struct RandomIds;

/// Random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        // It fails only when a signal interrupts it; then it is asked again.
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

impl IdSource for RandomIds {
    fn next_id(&mut self) -> u128 {
        let bytes = random::<16>();
        // Zero stands for no object.
        u128::from_le_bytes(bytes).max(1)
    }
}

/// Why a write did not take place.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The request cannot be carried out.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log did not take it.
    #[error(transparent)]
    Log(#[from] ProposeError),
}

type Decide = Box<dyn FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal> + Send>;
type Decision = Result<(Admitted, u64), WriteError>;

/// A request that waits to be decided.
struct Waiting {
    request: Option<RequestId>,
    decide: Decide,
    answer: oneshot::Sender<Decision>,
}

/// The one place from which decisions are written.
pub(crate) struct Writer {
    /// Where they are written.
    pub(crate) log: Arc<Log>,
    turn: Arc<Mutex<()>>,
    queue: mpsc::Sender<Waiting>,
}

impl Writer {
    /// Its loop ends when it is dropped.
    pub(crate) fn new(log: Arc<Log>) -> Self {
        let turn = Arc::new(Mutex::new(()));
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(log.clone(), turn.clone(), requests));
        Self { log, turn, queue }
    }

    /// Waits, in order of arrival, for the right to decide and to write.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Decides a request on the newest state and writes the decision; returns it with its place in the log.
    ///
    /// A request that changes nothing writes nothing, and has the place of the newest entry.
    pub(crate) async fn write(
        &self,
        decide: impl FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal> + Send + 'static,
    ) -> Decision {
        self.write_once(None, decide).await
    }

    /// The same for a request that may come again: it is carried out once, and answered as before after that.
    pub(crate) async fn write_once(
        &self,
        request: Option<RequestId>,
        decide: impl FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal> + Send + 'static,
    ) -> Decision {
        let stopped = || ProposeError::Stopped {
            why: "it is leaving the cluster or shutting down".into(),
        };
        let (answer, wait) = oneshot::channel();
        let waiting = Waiting {
            request,
            decide: Box::new(decide),
            answer,
        };
        self.queue.send(waiting).await.map_err(|_| stopped())?;
        wait.await.map_err(|_| ProposeError::Unknown)?
    }
}

async fn run(log: Arc<Log>, turn: Arc<Mutex<()>>, mut requests: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    let mut term = None;
    while requests.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let _turn = turn.lock().await;
        // What earlier leaders committed must be seen before the first decision: it may have carried these out.
        let role = *log.role().borrow();
        if role.leader && term != Some(role.term) && log.confirm().await.is_ok() {
            term = Some(role.term);
        }
        if !role.leader || term != Some(role.term) {
            let none = ProposeError::NotLeader { leader: None };
            for waiting in batch.drain(..) {
                let _ = waiting.answer.send(Err(none.clone().into()));
            }
            continue;
        }
        // Those that came while the leader loop had its turn go along.
        while batch.len() < BATCH_MAX
            && let Ok(more) = requests.try_recv()
        {
            batch.push(more);
        }
        if commit(&log, &mut batch).await {
            continue;
        }
        // Too large together: one by one.
        for one in std::mem::take(&mut batch) {
            commit(&log, &mut vec![one]).await;
        }
    }
}

/// Decides all requests of a batch, each on the result of the one before it, and writes them as one entry. Answers
/// false, with the batch as it was, when several are too large for that.
async fn commit(log: &Log, batch: &mut Vec<Waiting>) -> bool {
    let mut attempt = 1;
    loop {
        let state = log.read();
        let (txn, decisions) = decide_all(&state, log.now(), batch);
        let written = if txn.is_empty() {
            Ok(state.index())
        } else {
            log.propose(txn).await.map(|applied| applied.index)
        };
        match written {
            Err(ProposeError::Stale(_)) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(ProposeError::TooLarge { .. }) if batch.len() > 1 => return false,
            written => {
                for (waiting, decision) in batch.drain(..).zip(decisions) {
                    let answer = match decision {
                        Decided::Now(admitted) => {
                            written.clone().map(|index| (admitted, index)).map_err(Into::into)
                        }
                        Decided::Before(admitted, index) => Ok((admitted, index)),
                        Decided::Refused(refusal) => Err(refusal.into()),
                    };
                    // The caller hung up; what it asked for is done all the same.
                    let _ = waiting.answer.send(answer);
                }
                return true;
            }
        }
    }
}

/// What became of one request of a batch.
enum Decided {
    /// It is carried out with the batch.
    Now(Admitted),
    /// It was carried out already, by this entry.
    Before(Admitted, u64),
    /// It is not carried out.
    Refused(Refusal),
}

/// The decisions of a batch, and the one transaction that carries them out.
fn decide_all(state: &State, now: Timestamp, batch: &mut [Waiting]) -> (Txn, Vec<Decided>) {
    let mut ahead = state.clone();
    let mut all = Txn::default();
    let mut touched = BTreeSet::new();
    let mut decisions = Vec::with_capacity(batch.len());
    for waiting in batch {
        if let Some(known) = waiting.request.and_then(|r| Some((r, ahead.answer(r.id)?))) {
            decisions.push(repeated(known));
            continue;
        }
        let mut admitted = match (waiting.decide)(&ahead, now, &mut RandomIds) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                decisions.push(Decided::Refused(refusal));
                continue;
            }
        };
        if !admitted.txn.is_empty() {
            let mut txn = std::mem::take(&mut admitted.txn);
            txn.actions
                .extend(waiting.request.map(|request| answer(request, &admitted)));
            let entry = Entry {
                index: ahead.index() + 1,
                now,
                txn,
            };
            // It was decided on this very state, so it cannot be stale; the log would refuse it in the same way.
            let changes = ahead.apply(&entry).unwrap_or_default();
            // What the batch itself changed before has a version that is not known yet, and needs no check.
            let unseen = |(key, _): &&(Key, u64)| !touched.contains(key);
            all.expect.extend(entry.txn.expect.iter().filter(unseen));
            all.actions.extend(entry.txn.actions);
            touched.extend(changes.items.iter().map(|change| change.key));
        }
        decisions.push(Decided::Now(admitted));
    }
    (all, decisions)
}

fn answer(request: RequestId, admitted: &Admitted) -> Action {
    Action::Answer(Arc::new(Answer {
        request,
        keys: admitted.keys.clone(),
        warnings: admitted.warnings.clone(),
        changes: admitted.changes.clone(),
    }))
}

fn repeated((request, (index, answer)): (RequestId, (u64, &Arc<Answer>))) -> Decided {
    if answer.request.digest != request.digest {
        return Decided::Refused(Refusal::reused());
    }
    let admitted = Admitted {
        txn: Txn::default(),
        keys: answer.keys.clone(),
        warnings: answer.warnings.clone(),
        changes: answer.changes.clone(),
    };
    Decided::Before(admitted, index)
}
