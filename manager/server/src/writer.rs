//! Decides one write after another: each decision sees the result of the one before it.
//!
//! Two decisions at the same time would choose the same free name, port or address. So they take turns, each lasting
//! about one sync of the disk. Reports of agents choose nothing, and pass by.

use std::sync::Arc;

use manager_core::{Admitted, Refusal, State};
use model::Timestamp;
use model::ids::IdSource;
use tokio::sync::{Mutex, MutexGuard};

use crate::raft::{Log, ProposeError};

/// Times a request is decided again because an agent's report changed what it was based on.
const ATTEMPTS_MAX: u32 = 16;

/// Ids from the kernel's random numbers.
#[derive(Debug, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next_id(&mut self) -> u128 {
        let mut bytes = [0u8; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            // It fails only when a signal interrupts it; then it is asked again.
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .unwrap_or(0);
        }
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

/// The one place from which decisions are written.
pub(crate) struct Writer {
    /// Where they are written.
    pub(crate) log: Arc<Log>,
    turn: Mutex<()>,
}

impl Writer {
    pub(crate) fn new(log: Arc<Log>) -> Self {
        Self {
            log,
            turn: Mutex::new(()),
        }
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
        mut decide: impl FnMut(&State, Timestamp, &mut RandomIds) -> Result<Admitted, Refusal>,
    ) -> Result<(Admitted, u64), WriteError> {
        let _turn = self.turn().await;
        let mut attempt = 1;
        loop {
            let state = self.log.read();
            let mut admitted = decide(&state, self.log.now(), &mut RandomIds)?;
            if admitted.txn.is_empty() {
                return Ok((admitted, state.index()));
            }
            match self.log.propose(std::mem::take(&mut admitted.txn)).await {
                Ok(applied) => return Ok((admitted, applied.index)),
                Err(ProposeError::Stale(_)) if attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
