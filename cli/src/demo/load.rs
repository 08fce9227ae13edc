//! Requests to published ports, as many clients send them, and how many of them failed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Clients at the same time.
const CLIENTS: usize = 2;
/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Somebody who answers requests.
struct Target {
    address: SocketAddr,
    asked: AtomicBool,
    /// Requests to it that are under way.
    open: AtomicUsize,
}

struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    failed: AtomicU64,
    targets: Vec<Target>,
}

/// Clients that ask all targets in turn until they are stopped.
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Begins, from within a network namespace where one is given.
    pub(super) fn start(targets: &[SocketAddr], namespace: Option<PathBuf>) -> Self {
        let target = |address: &SocketAddr| Target {
            address: *address,
            asked: AtomicBool::new(true),
            open: AtomicUsize::new(0),
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            targets: targets.iter().map(target).collect(),
        });
        let threads = (0..CLIENTS)
            .map(|client| {
                let (shared, namespace) = (shared.clone(), namespace.clone());
                std::thread::spawn(move || match namespace {
                    None => shared.ask_all(client),
                    Some(namespace) => {
                        let there = shared.clone();
                        if let Err(error) = hosts::inside(&namespace, move || there.ask_all(client)) {
                            shared.failed.fetch_add(1, Ordering::SeqCst);
                            eprintln!("a client could not begin: {error}");
                        }
                    }
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// Asks a target from now on, or no more: once this returns, no request to it is under way.
    pub(super) fn ask(&self, address: SocketAddr, asked: bool) {
        for target in self.shared.targets.iter().filter(|t| t.address == address) {
            target.asked.store(asked, Ordering::SeqCst);
            while !asked && target.open.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Stops; answers how many requests there were, and how many of them failed.
    pub(super) fn end(mut self) -> (u64, u64) {
        self.stop();
        let count = |c: &AtomicU64| c.load(Ordering::SeqCst);
        (count(&self.shared.sent), count(&self.shared.failed))
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn ask_all(&self, first: usize) {
        let mut turn = first;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let target = &self.targets[turn % self.targets.len()];
            // In this order: whoever takes a target away sees either the request or that there is none.
            target.open.fetch_add(1, Ordering::SeqCst);
            if target.asked.load(Ordering::SeqCst) {
                let result = request(target.address);
                self.sent.fetch_add(1, Ordering::SeqCst);
                if let Err(e) = result {
                    self.failed.fetch_add(1, Ordering::SeqCst);
                    eprintln!("a request to {} failed: {e}", target.address);
                }
            }
            target.open.fetch_sub(1, Ordering::SeqCst);
            std::thread::sleep(PAUSE);
        }
    }
}

/// One request; answers what came back.
pub(super) fn request(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.starts_with("HTTP/1.1 200") {
        Ok(text)
    } else {
        Err(std::io::Error::other(format!("answer: {text:.80}")))
    }
}
