//! Autolock: what a manager needs to take part lies on its disk under a key that only operators and the cluster know.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::identity::{IdentityError, Papers};

use crate::raft::unlock_key::{open_bytes, seal_bytes};
use crate::raft::{Event, KeyRing, Log, UnlockKey};
use crate::server::{ClusterError, Manager};

/// How the sealed key of a node begins on disk.
const SEALED: &str = "sealed ";
/// What the key of a node is sealed for: what is sealed for something else does not open as one.
const PURPOSE: &str = "node key";

/// Whether the key of a node is sealed.
pub(crate) fn is_sealed(key_file: &str) -> bool {
    key_file.starts_with(SEALED)
}

/// The text of a node's key on disk.
fn seal(key: &str, unlock: Option<&UnlockKey>) -> std::io::Result<String> {
    match unlock {
        None => Ok(key.to_owned()),
        Some(unlock) => {
            let sealed = seal_bytes(unlock, PURPOSE, key.as_bytes())?;
            Ok(format!("{SEALED}{}\n", STANDARD.encode(sealed)))
        }
    }
}

/// The key in a text from disk.
fn open(key_file: &str, unlock: &UnlockKey) -> Result<String, ClusterError> {
    let wrong = || ClusterError::WrongKey;
    let text = key_file.trim_start_matches(SEALED).trim();
    let sealed = STANDARD.decode(text).map_err(|_| wrong())?;
    let plain = open_bytes(unlock, PURPOSE, &sealed).map_err(|_| wrong())?;
    String::from_utf8(plain.to_vec()).map_err(|_| wrong())
}

/// The identity of a locked manager with its key.
pub(crate) fn open_papers(
    papers: Papers,
    key_file: &str,
    unlock: &UnlockKey,
) -> Result<Papers, ClusterError> {
    let key = if is_sealed(key_file) {
        open(key_file, unlock)?
    } else {
        key_file.to_owned()
    };
    Ok(Papers { key, ..papers })
}

/// An unlock key as the cluster has it; empty: none.
fn key_of(bytes: &[u8]) -> Option<UnlockKey> {
    UnlockKey::from_bytes(bytes)
}

/// Follows the cluster's own object until the log is closed: locks this manager's keys with the cluster's key, and ends the
/// daemon when the cluster writes what its build does not know.
pub(crate) async fn follow(manager: Manager, log: Arc<Log>) {
    let mut subscription = log.subscribe();
    let mut done: Option<Vec<u8>> = None;
    loop {
        let state = log.read();
        if let Err(error) = manager.knows(&state) {
            tracing::error!("{error}");
            manager.stop_daemon();
            return;
        }
        if let Some(cluster) = state.cluster()
            && done.as_ref() != Some(&cluster.security.unlock_key)
        {
            let wanted = cluster.security.unlock_key.clone();
            // Known from the start, the files say whether there is anything to do.
            let first = done.is_none() && wanted.is_empty() && !log.keys().is_sealed();
            let result = if first {
                Ok(())
            } else {
                lock(&manager, log.keys(), &wanted).await
            };
            match result {
                Ok(()) => done = Some(wanted),
                Err(error) => tracing::error!("lock the keys of this manager on its disk: {error}"),
            }
        }
        loop {
            match subscription.next().await {
                Some(Event::Replaced) => break,
                Some(Event::Applied(changes)) if touches_cluster(&changes) => break,
                Some(Event::Applied(_)) => {}
                None => return,
            }
        }
    }
}

fn touches_cluster(changes: &manager_core::Changes) -> bool {
    changes.items.iter().any(|c| c.key == model::object::Key::Cluster)
}

async fn lock(manager: &Manager, keys: &KeyRing, wanted: &[u8]) -> Result<(), String> {
    let (keychain, keys, unlock) = (manager.keychain().clone(), keys.clone(), key_of(wanted));
    let work = move || -> Result<(), String> {
        let identity = keychain.identity().ok_or("this node has no identity")?;
        let text = seal(&identity.papers.key, unlock.as_ref()).map_err(|e| e.to_string())?;
        keychain
            .rewrite_key(&text)
            .map_err(|e: IdentityError| e.to_string())?;
        keys.seal(unlock.as_ref()).map_err(|e| e.to_string())?;
        // What was readable before is not to be the key of what is written from now on.
        if unlock.is_some() {
            keys.rotate().map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| e.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_key_opens_with_its_own_unlock_key_alone() {
        let (one, other) = (UnlockKey::random().unwrap(), UnlockKey::random().unwrap());
        let text = seal("the key", Some(&one)).unwrap();
        assert!(is_sealed(&text) && !text.contains("the key"));
        assert_eq!(open(&text, &one).unwrap(), "the key");
        assert!(open(&text, &other).is_err());
        assert_eq!(seal("the key", None).unwrap(), "the key");
    }
}
