//! `stats` and `top`: what containers of this host use, and their processes.

use proto::host as w;
use runtime::{ContainerInfo, ContainerState};
use tonic::Status;

use super::{HostService, broken};
use crate::tasks::blocking;
use crate::translate::NAME_LABEL;

/// What running containers use: those that are named, or all. One that ended meanwhile is left out.
pub(super) async fn stats(host: &HostService, references: Vec<String>) -> Result<w::StatsReply, Status> {
    let runtime = host.shared.runtime.clone();
    let named: Vec<ContainerInfo> = references
        .iter()
        .map(|r| host.find(r))
        .collect::<Result<_, _>>()?;
    let memory = host.shared.description().memory.0;
    blocking(move || {
        let infos = if references.is_empty() {
            runtime.list()
        } else {
            named
        };
        let running = |i: &ContainerInfo| matches!(i.state, ContainerState::Running { .. });
        let containers = infos.into_iter().filter(running).filter_map(|info| {
            let used = runtime.stats(&info.id)?;
            Some(w::ContainerStats {
                name: info.labels.get(NAME_LABEL).cloned().unwrap_or_default(),
                id: info.id,
                cpu_ns: used.cpu_ns,
                memory_bytes: used.memory,
                memory_limit_bytes: if used.memory_limit == 0 {
                    memory
                } else {
                    used.memory_limit.min(memory)
                },
                pids: used.pids,
                received_bytes: used.network.0,
                sent_bytes: used.network.1,
                disk_read_bytes: used.disk.map(|d| d.0),
                disk_written_bytes: used.disk.map(|d| d.1),
            })
        });
        w::StatsReply {
            containers: containers.collect(),
            read_at_ns: uptime_ns(),
        }
    })
    .await
    .map_err(broken)
}

fn uptime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Processes of a container.
pub(super) async fn top(host: &HostService, reference: &str) -> Result<w::TopReply, Status> {
    let (runtime, info) = (host.shared.runtime.clone(), host.find(reference)?);
    let id = info.id.clone();
    let processes = blocking(move || runtime.processes(&id)).await.map_err(broken)?;
    let processes = processes
        .ok_or_else(|| Status::failed_precondition(format!("container {} is not running", info.id)))?;
    let process = |p: runtime::Process| w::Process {
        pid: p.pid,
        inner_pid: p.inner_pid,
        parent: p.parent,
        uid: p.uid,
        user: p.user,
        state: p.state,
        terminal_major: p.terminal.0,
        terminal_minor: p.terminal.1,
        cpu_ms: p.cpu_ms,
        started_at_ms: p.started_ms,
        threads: p.threads,
        nice: p.nice,
        virtual_bytes: p.virtual_bytes,
        resident_bytes: p.resident_bytes,
        name: p.name,
        command: p.command,
    };
    Ok(w::TopReply {
        processes: processes.into_iter().map(process).collect(),
        host_memory_bytes: host.shared.description().memory.0,
    })
}
