//! `logs`: output of containers of this host, merged by time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::host as w;
use runtime::merge::{Merge, Next, Patience};
use runtime::{ContainerInfo, LogLine, LogQuery, LogStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use super::{Events, HostService, QUEUE, admit};
use crate::translate::TASK_LABEL;

/// Lines of one log that are read before it is their turn, each of 16 KiB at most.
const AHEAD: usize = 16;
/// How long the others wait for a log that says nothing. They are files of this host: what is there comes at once.
const PATIENCE: Patience = Patience {
    first_ms: 200,
    later_ms: 50,
};

type Sender = mpsc::Sender<Result<w::LogEntry, Status>>;

/// Reads logs until they end or the client is gone.
pub(super) fn start(host: &HostService, r: &w::LogsRequest) -> Result<Response<Events<w::LogEntry>>, Status> {
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for reference in &r.containers {
        match host.find(reference) {
            Ok(info) => found.push(info),
            Err(status) if r.lenient && status.code() == Code::NotFound => absent.push(reference.clone()),
            Err(status) => return Err(status),
        }
    }
    let places = admit(&host.readers, found.len(), "logs being read")?;
    let query = LogQuery {
        tail: r.tail.map(|t| usize::try_from(t).unwrap_or(usize::MAX)),
        since_ns: r.since_ns,
        follow: r.follow,
    };
    let logs = found.into_iter().map(|info| {
        let lines = host.shared.runtime.logs(&info.id, query);
        (info, lines)
    });
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(send(logs.collect(), absent, sender, places));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

async fn send(
    logs: Vec<(ContainerInfo, mpsc::Receiver<LogLine>)>,
    absent: Vec<String>,
    sender: Sender,
    _places: OwnedSemaphorePermit,
) {
    for absent in absent {
        let entry = w::LogEntry {
            absent,
            ..w::LogEntry::default()
        };
        if sender.send(Ok(entry)).await.is_err() {
            return;
        }
    }
    tokio::select! {
        () = merge(logs, &sender) => {}
        // Readers see that nobody wants their lines, also those whose log is quiet.
        () = sender.closed() => {}
    }
}

/// A line of a log, or its end; the permit is its place ahead of its turn.
type Event = (u64, Option<(w::LogEntry, OwnedSemaphorePermit)>);

async fn merge(logs: Vec<(ContainerInfo, mpsc::Receiver<LogLine>)>, sender: &Sender) {
    let (events, mut queue) = mpsc::channel::<Event>(AHEAD);
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut merge = Merge::new(PATIENCE);
    // Dropped with this, and with them the threads that read.
    let mut readers = tokio::task::JoinSet::new();
    for (number, (info, lines)) in (0u64..).zip(logs) {
        merge.add(number, now());
        readers.spawn(read(number, info, lines, events.clone()));
    }
    drop(events);
    let take = |merge: &mut Merge<_>, (number, line): Event| match line {
        Some((entry, place)) => merge.push(number, entry.time_ns, (entry, place)),
        None => merge.end(number),
    };
    loop {
        while let Ok(event) = queue.try_recv() {
            take(&mut merge, event);
        }
        match merge.next(now()) {
            Next::Item((entry, place)) => {
                drop(place);
                if sender.send(Ok(entry)).await.is_err() {
                    return;
                }
            }
            Next::Wait { until_ms } => {
                let late = until_ms.map(|at| Duration::from_millis(at.saturating_sub(now())));
                tokio::select! {
                    event = queue.recv() => match event {
                        Some(event) => take(&mut merge, event),
                        None => return,
                    },
                    () = tokio::time::sleep(late.unwrap_or_default()), if late.is_some() => {}
                }
            }
            Next::End => return,
        }
    }
}

async fn read(
    number: u64,
    info: ContainerInfo,
    mut lines: mpsc::Receiver<LogLine>,
    events: mpsc::Sender<Event>,
) {
    let task = info.labels.get(TASK_LABEL).cloned().unwrap_or_default();
    let ahead = Arc::new(Semaphore::new(AHEAD));
    while let Ok(place) = ahead.clone().acquire_owned().await
        && let Some(line) = lines.recv().await
    {
        let entry = w::LogEntry {
            container: info.id.clone(),
            task: task.clone(),
            time_ns: line.time_ns,
            stderr: line.stream == LogStream::Stderr,
            line: line.text,
            absent: String::new(),
        };
        if events.send((number, Some((entry, place)))).await.is_err() {
            return;
        }
    }
    let _ = events.send((number, None)).await;
}
