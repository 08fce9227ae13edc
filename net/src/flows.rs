//! Connections as the kernel tracks them (conntrack), by a thread of its own: to list them the kernel walks through a large
//! table, 10 ms and more, which nothing else has to wait for. Whoever asks meanwhile shares the next walk.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;

use tokio::sync::oneshot;

use crate::dataplane::{NETLINK_NETFILTER, NetError, at};
use crate::family::Family;
use crate::sys;
use crate::sys::netlink::Socket;
use crate::sys::nft;

/// Requests that share one walk.
const TOGETHER_MAX: usize = 1024;

/// What is asked.
enum Job {
    /// Forget flows of UDP to these, so that the next datagram chooses another.
    Forget(BTreeSet<IpAddr>, oneshot::Sender<Result<(), NetError>>),
    /// Whether clients have TCP connections to any of these.
    Connected(Vec<IpAddr>, oneshot::Sender<Result<bool, NetError>>),
}

/// The connections of one dataplane. Clones are the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Flows {
    jobs: mpsc::Sender<Job>,
}

impl Flows {
    /// Begins, in the dataplane's namespace, which the thread keeps until the last clone of this is gone.
    pub(crate) fn start(inside: File) -> Result<Self, NetError> {
        let (jobs, queue) = mpsc::channel();
        let run = move || {
            let opened = sys::enter(&inside).and_then(|()| Socket::open(NETLINK_NETFILTER));
            drop(inside);
            let Ok(mut socket) = opened else { return };
            while let Ok(first) = queue.recv() {
                let more = queue.try_iter().take(TOGETHER_MAX - 1);
                let all: Vec<Job> = [first].into_iter().chain(more).collect();
                answer(&mut socket, all);
            }
        };
        let thread = std::thread::Builder::new().name("flows".into()).spawn(run);
        thread.map_err(at("start the thread of connections"))?;
        Ok(Self { jobs })
    }

    /// Begins to forget; answers what tells that it is done. Nothing: there is nothing to forget, or nobody to do it.
    pub(crate) fn forget(&self, those: BTreeSet<IpAddr>) -> Option<oneshot::Receiver<Result<(), NetError>>> {
        if those.is_empty() {
            return None;
        }
        let (done, result) = oneshot::channel();
        self.jobs.send(Job::Forget(those, done)).ok()?;
        Some(result)
    }

    pub(crate) async fn is_connected(&self, those: Vec<IpAddr>) -> Result<bool, NetError> {
        if those.is_empty() {
            return Ok(false);
        }
        let (done, result) = oneshot::channel();
        self.jobs
            .send(Job::Connected(those, done))
            .map_err(|_| NetError::Gone)?;
        result.await.map_err(|_| NetError::Gone)?
    }
}

/// IPv4 servers of one walk whose connections are picked by the kernel, each in a walk of its own; of more all are read.
const PICKED_MAX: usize = 4;

fn answer(socket: &mut Socket, jobs: Vec<Job>) {
    let servers: BTreeSet<IpAddr> = (jobs.iter())
        .flat_map(|job| match job {
            Job::Forget(those, _) => those.iter().copied().collect::<Vec<_>>(),
            Job::Connected(those, _) => those.clone(),
        })
        .collect();
    let flows = look(socket, &servers);
    let listed = || -> Result<&Vec<nft::Flow>, NetError> {
        let again = |e: &std::io::Error| std::io::Error::new(e.kind(), e.to_string());
        flows.as_ref().map_err(|e| at("list connections")(again(e)))
    };
    for job in jobs {
        match job {
            Job::Forget(those, done) => {
                let result = listed().and_then(|flows| {
                    let to = |flow: &&nft::Flow| flow.is_udp() && those.contains(&flow.server());
                    let mut gone = flows.iter().filter(to).map(|flow| nft::forget(socket, flow));
                    gone.try_for_each(|r| r).map_err(at("forget UDP flows"))
                });
                let _ = done.send(result);
            }
            Job::Connected(those, done) => {
                let open = |flow: &nft::Flow| flow.is_open() && those.contains(&flow.server());
                let _ = done.send(listed().map(|flows| flows.iter().any(open)));
            }
        }
    }
}

/// Connections, those to these servers among them.
fn look(socket: &mut Socket, servers: &BTreeSet<IpAddr>) -> std::io::Result<Vec<nft::Flow>> {
    let four: Vec<Ipv4Addr> = (servers.iter())
        .filter_map(|server| match server {
            IpAddr::V4(server) => Some(*server),
            IpAddr::V6(_) => None,
        })
        .collect();
    let mut flows = Vec::new();
    if four.len() > PICKED_MAX {
        flows = nft::flows(socket, Family::V4)?;
    } else {
        for server in &four {
            flows.extend(nft::flows_of(socket, *server)?);
        }
    }
    if four.len() < servers.len() {
        flows.extend(nft::flows(socket, Family::V6)?);
    }
    Ok(flows)
}
