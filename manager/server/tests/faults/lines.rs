//! The lines between managers: each passes on what it is sent, unless it is cut, and as slowly as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use manager_server::Route;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use crate::Dice;

/// Managers of a cluster.
pub(crate) const SITES: usize = 3;
/// Where managers listen, each at an address of its own.
const PORT: u16 = 2377;
/// Bytes that pass at a time where few do: nobody waits long behind another.
const NARROW_PIECE: usize = 2 << 10;
/// How often a line that is cut is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One direction between two managers.
#[derive(Default)]
struct Line {
    cut: AtomicBool,
    delay_ms: AtomicU64,
    /// How many of a hundred pieces are lost, and sent again.
    lost_percent: AtomicUsize,
    connections: AtomicU64,
    /// Bytes a second, of all connections together; 0: as fast as it goes.
    rate: AtomicU64,
    /// Held by the connection whose bytes are on the line.
    busy: tokio::sync::Mutex<()>,
    carried: AtomicU64,
}

/// All lines of a cluster.
#[derive(Clone)]
pub(crate) struct Grid {
    lines: Arc<[[Line; SITES]; SITES]>,
    /// Where the line from one to another begins.
    begins: Arc<Vec<Vec<String>>>,
    net: String,
}

impl Grid {
    /// Opens every line; they are kept up by the runtime.
    pub(crate) fn new(seed: u64, runtime: &Handle) -> Self {
        // Addresses of the loopback that nobody else uses: by process and seed.
        let net = format!("127.{}.{}", 1 + std::process::id() % 250, seed % 250);
        let lines: Arc<[[Line; SITES]; SITES]> = Arc::default();
        let mut begins = Vec::new();
        for from in 0..SITES {
            let mut row = Vec::new();
            for to in 0..SITES {
                let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
                row.push(listener.local_addr().unwrap().to_string());
                let target = format!("{net}.{}:{PORT}", to + 1);
                // Connections of different lines lose different pieces.
                let first = (seed * 100 + (from * SITES + to) as u64) << 32;
                lines[from][to].connections.store(first, Ordering::SeqCst);
                runtime.spawn(pass(listener, target, lines.clone(), (from, to)));
            }
            begins.push(row);
        }
        Self {
            lines,
            begins: Arc::new(begins),
            net,
        }
    }

    /// Where a manager listens.
    pub(crate) fn address(&self, site: usize) -> String {
        format!("{}.{}:{PORT}", self.net, site + 1)
    }

    /// Where the line from one manager to another begins.
    pub(crate) fn way(&self, from: usize, to: usize) -> String {
        self.begins[from][to].clone()
    }

    /// The way from a manager to the others.
    pub(crate) fn route(&self, from: usize) -> Route {
        let grid = self.clone();
        Route::by(move |address| {
            let to = (0..SITES).find(|to| grid.address(*to) == address);
            to.map_or_else(|| address.to_owned(), |to| grid.begins[from][to].clone())
        })
    }

    /// Loses what one sends to another from now on, or no more. It is sent when the line is healed, as TCP does.
    pub(crate) fn cut(&self, from: usize, to: usize, cut: bool) {
        self.lines[from][to].cut.store(cut, Ordering::SeqCst);
    }

    /// Cuts a manager off from all others.
    pub(crate) fn isolate(&self, site: usize) {
        for other in (0..SITES).filter(|other| *other != site) {
            self.cut(site, other, true);
            self.cut(other, site, true);
        }
    }

    /// Delays everything.
    pub(crate) fn slow(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap();
        for line in self.lines.iter().flatten() {
            line.delay_ms.store(ms, Ordering::SeqCst);
        }
    }

    /// Loses so many of a hundred pieces of everything, which are sent again later.
    pub(crate) fn lose(&self, percent: usize) {
        for line in self.lines.iter().flatten() {
            line.lost_percent.store(percent, Ordering::SeqCst);
        }
    }

    /// Lets so many bytes a second through between a manager and all others, each way; 0: all.
    pub(crate) fn narrow(&self, site: usize, rate: u64) {
        for other in 0..SITES {
            self.lines[site][other].rate.store(rate, Ordering::SeqCst);
            self.lines[other][site].rate.store(rate, Ordering::SeqCst);
        }
    }

    /// Bytes that all others have sent to a manager so far, on connections of either side.
    pub(crate) fn carried_to(&self, site: usize) -> u64 {
        (0..SITES)
            .map(|other| self.lines[other][site].carried.load(Ordering::SeqCst))
            .sum()
    }

    /// Makes every line whole and quick.
    pub(crate) fn heal(&self) {
        self.slow(Duration::ZERO);
        self.lose(0);
        for line in self.lines.iter().flatten() {
            line.cut.store(false, Ordering::SeqCst);
        }
    }
}

async fn pass(
    listener: TcpListener,
    target: String,
    lines: Arc<[[Line; SITES]; SITES]>,
    (from, to): (usize, usize),
) {
    while let Ok((near, _)) = listener.accept().await {
        let (lines, target) = (lines.clone(), target.clone());
        tokio::spawn(async move {
            // What opens a connection has to come through as well.
            open(&lines[from][to]).await;
            open(&lines[to][from]).await;
            // Refused: the one who asked sees its connection end.
            let Ok(far) = TcpStream::connect(&target).await else {
                return;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            // Either end that is gone ends both.
            tokio::select! {
                () = carry(near_in, far_out, &lines[from][to]) => {}
                () = carry(far_in, near_out, &lines[to][from]) => {}
            }
        });
    }
}

async fn open(line: &Line) {
    while line.cut.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Pieces of a connection on their way in one direction.
const UNDER_WAY: usize = 256;
/// Until what was lost is sent again, the first time; it doubles, up to a bound, as with TCP.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
const AGAIN_MOST: Duration = Duration::from_secs(5);

impl Line {
    /// When a piece that is sent now arrives, lost again and again as the line is.
    fn arrival(&self, dice: &mut Dice) -> Instant {
        let mut takes = Duration::from_millis(self.delay_ms.load(Ordering::SeqCst));
        let lost = self.lost_percent.load(Ordering::SeqCst);
        let mut again = AGAIN_AFTER;
        while lost > 0 && dice.below(100) < lost {
            takes += again;
            again = AGAIN_MOST.min(again * 2);
        }
        Instant::now() + takes
    }
}

async fn carry(
    mut input: tokio::net::tcp::OwnedReadHalf,
    mut output: tokio::net::tcp::OwnedWriteHalf,
    line: &Line,
) {
    let (send, mut under_way) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take = async {
        let mut bytes = vec![0u8; 64 << 10];
        let mut dice = Dice::new(line.connections.fetch_add(1, Ordering::SeqCst));
        loop {
            let rate = line.rate.load(Ordering::SeqCst);
            let most = if rate == 0 { bytes.len() } else { NARROW_PIECE };
            let Ok(count @ 1..) = input.read(&mut bytes[..most]).await else {
                return;
            };
            if rate > 0 {
                // Its place in the queue of all that go this way; then it takes as long as its bytes need.
                let _busy = line.busy.lock().await;
                tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
            }
            line.carried.fetch_add(count as u64, Ordering::SeqCst);
            let piece = (line.arrival(&mut dice), bytes[..count].to_vec());
            if send.send(piece).await.is_err() {
                return;
            }
        }
    };
    let give = async {
        // In order: what comes behind one that was lost waits for it.
        while let Some((arrives, piece)) = under_way.recv().await {
            tokio::time::sleep_until(arrives.into()).await;
            open(line).await;
            if output.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = take => {}
        () = give => {}
    }
}
