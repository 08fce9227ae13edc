//! A cluster that goes on from one manager's state: out of a backup, or after all other managers were lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use manager_core::State;
use manager_core::admit::{self, Revival};
use model::object::{NodeDescription, NodeRole};
use model::{ClusterId, NodeId};
use proto::identity::{self, Papers, Place};
use tokio::sync::mpsc;

use crate::ca;
use crate::init::{Made, now, place};
use crate::raft::{BackupError, KeyRing, Log, Opened, Restore, UnlockKey};
use crate::server::{ClusterError, Manager, Membership, bind, identity_of, raft_id, wipe};
use crate::writer::{RandomIds, Writer};

impl Manager {
    /// Makes this node the only manager of the cluster in a backup. A backup that cannot be used leaves nothing behind.
    pub(crate) async fn restore(
        &self,
        key: &UnlockKey,
        mut pieces: mpsc::Receiver<Vec<u8>>,
        listen: &str,
        advertise: &str,
    ) -> Result<Made, ClusterError> {
        let _change = self.shared.change.lock().await;
        if *self.membership().borrow() != Membership::None {
            return Err(ClusterError::Active);
        }
        let listener = bind(listen)?;
        let place = place(listen, advertise, &listener)?;
        let folder = Staging(self.config().data_dir.join("restore"));
        wipe(&folder.0)?;
        let mut restore = Restore::new(&folder.0, &KeyRing::create(&folder.0, None)?, key)?;
        while let Some(piece) = pieces.recv().await {
            restore = blocking(move || restore.take(&piece).map(|()| restore)).await?;
        }
        let state = blocking(move || restore.finish()).await?;
        drop(folder);
        self.knows(&state)?;
        let cluster = state.cluster().ok_or(ClusterError::Inactive)?;
        let (security, cluster) = (cluster.security.clone(), cluster.id);
        let node = NodeId::new(&mut RandomIds);
        let key = identity::new_key()?;
        let csr = identity::request(&key)?;
        let issued = ca::sign(&security, &csr, node, NodeRole::Manager, cluster, now())?;
        let papers = Papers {
            key: key.clone(),
            certificates: issued.certificates.clone(),
            authorities: ca::authorities(&security),
        };
        let raft_id = raft_id();
        let revival = Revival {
            node,
            identity: identity_of(&issued, Some(raft_id)),
            description: NodeDescription {
                hostname: self.config().hostname.clone(),
                address: place.address.clone(),
                level: self.config().level,
                ..NodeDescription::default()
            },
            keep_nodes: false,
        };
        self.keychain().use_papers(papers.clone())?;
        let made = self.revive(&self.dir(), &state, raft_id, &revival).await;
        let log = match made {
            Ok(log) => log,
            Err(error) => {
                self.keychain().forget()?;
                wipe(&self.dir())?;
                return Err(error);
            }
        };
        let made = self.told(node, cluster, &place, &log)?;
        let managers = vec![(node, place.address.clone())];
        // Last: from here on there is a cluster.
        self.keychain()
            .install(papers, &key, Place { managers, ..place })?;
        self.listen(listener);
        self.start(log);
        Ok(made)
    }

    /// Makes this manager, which lost the others for good, the only one.
    pub(crate) async fn force_new(&self) -> Result<Made, ClusterError> {
        let _change = self.shared.change.lock().await;
        let Some(cluster) = self.cluster() else {
            return Err(match *self.membership().borrow() {
                Membership::Locked => ClusterError::Locked,
                Membership::None => ClusterError::Inactive,
                Membership::Worker | Membership::Manager => ClusterError::NoManager,
            });
        };
        let log = &cluster.writer.log;
        let state = log.everything().await.map_err(ClusterError::State)?;
        let (Some(known), Some(object)) = (state.node(self.node_id()), state.cluster()) else {
            return Err(ClusterError::State(
                "this manager does not know the cluster yet".into(),
            ));
        };
        let raft_id = raft_id();
        let mut identity = known.identity.clone();
        identity.raft_id = Some(raft_id);
        let revival = Revival {
            node: known.id,
            identity,
            description: known.description.clone(),
            keep_nodes: true,
        };
        // Beside the old log, which is given up only when the new one is whole.
        let aside = beside(&self.dir());
        wipe(&aside)?;
        let fresh = self.revive(&aside, &state, raft_id, &revival).await?;
        fresh.close().await;
        drop(fresh);
        self.stop_managing(&cluster).await;
        wipe(&self.dir())?;
        take_over(&self.dir())?;
        let Opened::Ready(keys) = KeyRing::open(&self.dir())? else {
            return Err(ClusterError::Locked);
        };
        let log = Arc::new(Log::open(&self.dir(), self.shared.links.clone(), keys).await?);
        let mut place = self.keychain().place();
        place.address.clone_from(&known.description.address);
        let made = self.told(known.id, object.id, &place, &log)?;
        self.keychain()
            .set_managers(vec![(known.id, place.address)], place.epoch)?;
        self.start(log);
        Ok(made)
    }

    async fn revive(
        &self,
        dir: &Path,
        state: &State,
        raft_id: u64,
        revival: &Revival,
    ) -> Result<Arc<Log>, ClusterError> {
        wipe(dir)?;
        let keys = KeyRing::create(dir, None)?;
        let place = (revival.node, revival.description.address.as_str());
        let log = Log::revive(dir, raft_id, self.shared.links.clone(), keys, place, state).await?;
        let (log, revival) = (Arc::new(log), revival.clone());
        let decide = move |state: &State, now, _: &mut RandomIds| admit::revive(state, &revival, now);
        let written = Writer::new(log.clone()).write(decide).await;
        if let Err(error) = written {
            log.close().await;
            return Err(error.into());
        }
        Ok(log)
    }

    fn told(&self, node: NodeId, cluster: ClusterId, place: &Place, log: &Log) -> Result<Made, ClusterError> {
        let state = log.read();
        let security = state.cluster().map(|c| c.security.clone()).unwrap_or_default();
        let token = ca::standing(&security, NodeRole::Worker).map(|t| ca::token_text(&security, t));
        Ok(Made {
            node,
            cluster,
            token: token.transpose()?.unwrap_or_default(),
            address: place.address.clone(),
        })
    }
}

/// A folder that is gone when this is dropped.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // What stays is removed before the next restore.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn beside(dir: &Path) -> PathBuf {
    dir.with_extension("new")
}

/// Puts a log that was made beside an old one in its place, if the old one is gone; an unfinished one is removed.
pub(crate) fn take_over(dir: &Path) -> Result<(), ClusterError> {
    let aside = beside(dir);
    if !aside.exists() {
        return Ok(());
    }
    if Log::exists(dir) || !Log::exists(&aside) {
        return wipe(&aside);
    }
    let moved = std::fs::remove_dir_all(dir).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    });
    let moved = moved.and_then(|()| std::fs::rename(&aside, dir));
    let moved = moved.and_then(|()| match dir.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    });
    moved.map_err(|source| ClusterError::Wipe {
        path: dir.to_owned(),
        source,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, ClusterError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| BackupError::Io(std::io::Error::other(e)))??)
}
