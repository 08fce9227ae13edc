//! Clients that write and read through any manager, and what they have seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::channel;
use proto::control::control_client::ControlClient;
use proto::control::{CreateRequest, GetInfoRequest, Info, ListRequest, Spec, spec};
use proto::types::{ConfigSpec, Kind, object};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::Dice;

/// Clients that write, and as many that read.
const CLIENTS: u64 = 3;
/// A client waits so long for an answer; then it does not know what became of its call.
const PATIENCE: Duration = Duration::from_secs(8);
/// Calls of [`make`] under way at a time.
const AT_ONCE: usize = 64;
/// How often managers are asked who leads.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What all clients have seen.
#[derive(Default)]
pub(crate) struct Seen {
    acknowledged: Mutex<BTreeSet<String>>,
    /// The newest place of the log that anybody was shown.
    index: AtomicU64,
    reads: AtomicUsize,
    /// Who led in which term.
    leaders: Mutex<BTreeMap<u64, String>>,
    /// The site that led last, and one.
    leader: AtomicUsize,
    wrong: Mutex<Option<String>>,
    /// The last faults, with when they began.
    faults: Mutex<Vec<(Instant, String)>>,
}

impl Seen {
    fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The first rule that was broken.
    pub(crate) fn wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn broke(&self, why: String) {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let last = faults.iter().rev().take(2);
        let last: Vec<_> = last
            .map(|(at, what)| format!("{:.2?} ago {what}", at.elapsed()))
            .collect();
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.get_or_insert(format!("{why}; {}", last.join("; ")));
    }

    /// Remembers what is being done to the managers.
    pub(crate) fn suffers(&self, what: String) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.push((Instant::now(), what));
    }

    /// The site that led when it was looked at last.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.leader.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Acknowledged writes, reads, and terms with a leader.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        (
            self.acknowledged().len(),
            self.reads.load(Ordering::SeqCst),
            leaders.len(),
        )
    }

    fn led(&self, site: usize, info: &Info) {
        if !info.leader {
            return;
        }
        self.leader.store(site + 1, Ordering::SeqCst);
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = leaders
            .entry(info.raft_term)
            .or_insert_with(|| info.node_id.clone());
        if *known != info.node_id {
            let why = format!("{known} and {} both led in term {}", info.node_id, info.raft_term);
            drop(leaders);
            self.broke(why);
        }
    }

    /// Whether everything that was acknowledged is there, as each manager says.
    ///
    /// # Errors
    /// What is missing where.
    pub(crate) async fn all_there(&self, sockets: &[PathBuf]) -> Result<(), String> {
        let acknowledged = self.acknowledged();
        for (site, socket) in sockets.iter().enumerate() {
            let (_, names) = list(socket).await?;
            let gone: Vec<_> = acknowledged.difference(&names).collect();
            if !gone.is_empty() {
                return Err(format!("m{} has not what was acknowledged: {gone:?}", site + 1));
            }
        }
        Ok(())
    }
}

async fn control(socket: &Path) -> Result<ControlClient<Channel>, String> {
    let channel = channel::connect(socket).await.map_err(|e| e.to_string())?;
    Ok(ControlClient::new(channel).max_decoding_message_size(64 << 20))
}

/// Names of all configs, and the place of the log they are of.
async fn list(socket: &Path) -> Result<(u64, BTreeSet<String>), String> {
    let request = ListRequest {
        kind: Kind::Config.into(),
        ..ListRequest::default()
    };
    let reply = control(socket).await?.list(request).await;
    let reply = reply.map_err(|e| e.message().to_owned())?.into_inner();
    let name = |o: proto::types::Object| match o.object {
        Some(object::Object::Config(config)) => config.spec.map(|s| s.name),
        _ => None,
    };
    let count = reply.objects.len();
    let names: BTreeSet<String> = reply.objects.into_iter().filter_map(name).collect();
    if names.len() != count {
        return Err(format!("{count} configs have {} names", names.len()));
    }
    Ok((reply.index, names))
}

/// Makes configs through one manager, many at a time.
///
/// # Errors
/// The first that was refused.
pub(crate) async fn make(
    socket: &Path,
    prefix: &str,
    count: usize,
    data: impl Fn(usize) -> Vec<u8>,
) -> Result<(), String> {
    let control = control(socket).await?;
    for from in (0..count).step_by(AT_ONCE) {
        let all = (from..count.min(from + AT_ONCE)).map(|n| {
            let mut control = control.clone();
            let request = config(format!("{prefix}-{n}"), data(n));
            async move { control.create(request).await.map_err(|e| e.message().to_owned()) }
        });
        futures::future::try_join_all(all).await?;
    }
    Ok(())
}

/// Makes one thing through one manager.
///
/// # Errors
/// Why it was refused.
pub(crate) async fn create(socket: &Path, request: CreateRequest) -> Result<(), String> {
    let made = control(socket).await?.create(request).await;
    made.map(drop).map_err(|e| e.message().to_owned())
}

/// Services, and those that have a task.
///
/// # Errors
/// What the manager said.
pub(crate) async fn planned(socket: &Path) -> Result<(usize, usize), String> {
    let mut ids = [BTreeSet::new(), BTreeSet::new()];
    for (kind, ids) in [Kind::Service, Kind::Task].into_iter().zip(&mut ids) {
        let request = ListRequest {
            kind: kind.into(),
            ..ListRequest::default()
        };
        let reply = control(socket).await?.list(request).await;
        let reply = reply.map_err(|e| e.message().to_owned())?.into_inner();
        ids.extend(reply.objects.into_iter().filter_map(|o| match o.object? {
            object::Object::Service(service) => Some(service.id),
            object::Object::Task(task) => Some(task.service),
            _ => None,
        }));
    }
    Ok((ids[0].len(), ids[0].intersection(&ids[1]).count()))
}

/// Makes small configs through one manager, each when the one before it is there: as many entries.
///
/// # Errors
/// The first that was refused.
pub(crate) async fn one_by_one(socket: &Path, prefix: &str, count: usize) -> Result<(), String> {
    let mut control = control(socket).await?;
    for n in 0..count {
        let made = control
            .create(config(format!("{prefix}-{n}"), b"x".to_vec()))
            .await;
        made.map_err(|e| e.message().to_owned())?;
    }
    Ok(())
}

fn config(name: String, data: Vec<u8>) -> CreateRequest {
    CreateRequest {
        spec: Some(Spec {
            spec: Some(spec::Spec::Config(ConfigSpec {
                name,
                data,
                ..ConfigSpec::default()
            })),
        }),
        ..CreateRequest::default()
    }
}

/// Begins all clients; they end when it is over.
pub(crate) fn begin(
    runtime: &Runtime,
    sockets: &[PathBuf],
    seen: &Arc<Seen>,
    over: &Arc<AtomicBool>,
    seed: u64,
) -> Vec<JoinHandle<()>> {
    let mut all = Vec::new();
    for client in 0..CLIENTS {
        let dice = || Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(client));
        let (sockets, seen, over) = (sockets.to_vec(), seen.clone(), over.clone());
        all.push(runtime.spawn(write(client, dice(), sockets.clone(), seen.clone(), over.clone())));
        all.push(runtime.spawn(keep_reading(dice(), sockets, seen, over)));
    }
    for (site, socket) in sockets.iter().enumerate() {
        let (socket, seen, over) = (socket.clone(), seen.clone(), over.clone());
        all.push(runtime.spawn(async move {
            while !over.load(Ordering::SeqCst) {
                if let Ok(mut control) = control(&socket).await
                    && let Ok(Ok(info)) =
                        tokio::time::timeout(PATIENCE, control.get_info(GetInfoRequest {})).await
                {
                    seen.led(site, &info.into_inner());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }));
    }
    all
}

async fn write(client: u64, mut dice: Dice, sockets: Vec<PathBuf>, seen: Arc<Seen>, over: Arc<AtomicBool>) {
    let mut number = 0u64;
    while !over.load(Ordering::SeqCst) {
        let socket = &sockets[dice.below(sockets.len())];
        number += 1;
        let name = format!("c{client}-{number}");
        let request = config(name.clone(), b"x".to_vec());
        let call = async {
            let mut control = control(socket).await.ok()?;
            control.create(request).await.ok()
        };
        // What was refused or not answered may be there or not.
        if let Ok(Some(_)) = tokio::time::timeout(PATIENCE, call).await {
            let mut acknowledged = seen.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            acknowledged.insert(name);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn keep_reading(mut dice: Dice, sockets: Vec<PathBuf>, seen: Arc<Seen>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        let site = dice.below(sockets.len());
        let began = Instant::now();
        // Before the call: what others were told by now must be in its answer.
        let (known, newest) = (seen.acknowledged(), seen.index.load(Ordering::SeqCst));
        if let Ok(Ok((index, names))) = tokio::time::timeout(PATIENCE, list(&sockets[site])).await {
            let gone: Vec<_> = known.difference(&names).collect();
            if !gone.is_empty() {
                let took = began.elapsed();
                seen.broke(format!(
                    "m{} showed an old state ({index}) after {took:?}, without {gone:?}",
                    site + 1
                ));
            }
            if index < newest {
                seen.broke(format!("m{} showed {index} after {newest} was shown", site + 1));
            }
            seen.index.fetch_max(index, Ordering::SeqCst);
            seen.reads.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads what there is from a manager.
///
/// # Errors
/// What it said.
pub(crate) async fn read(socket: &Path) -> Result<(), String> {
    list(socket).await.map(drop)
}

/// The term a manager is in.
///
/// # Errors
/// What it said.
pub(crate) async fn term(socket: &Path) -> Result<u64, String> {
    let mut control = control(socket).await?;
    let info = control.get_info(GetInfoRequest {}).await;
    info.map(|i| i.into_inner().raft_term)
        .map_err(|e| e.message().to_owned())
}

/// Whether all managers have the same history.
///
/// # Errors
/// How they differ.
pub(crate) async fn histories(sockets: &[PathBuf]) -> Result<(), String> {
    let mut all = BTreeSet::new();
    for socket in sockets {
        let mut control = control(socket).await?;
        let info = tokio::time::timeout(PATIENCE, control.get_info(GetInfoRequest {}));
        let info = info.await.map_err(|e| e.to_string())?;
        let info = info.map_err(|e| e.message().to_owned())?.into_inner();
        let names = tokio::time::timeout(PATIENCE, list(socket)).await;
        let (_, names) = names.map_err(|e| e.to_string())??;
        all.insert((info.raft_term, info.index, names));
    }
    if all.len() == 1 {
        return Ok(());
    }
    let shown: Vec<_> = all.iter().map(|(t, i, names)| (t, i, names.len())).collect();
    Err(format!("the managers differ (term, index, configs): {shown:?}"))
}
