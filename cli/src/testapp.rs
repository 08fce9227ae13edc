//! The test application: a small HTTP server that says who it is, and misbehaves on request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How it behaves.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// Asks the one that runs here for its health and ends with 0 or 1.
    #[arg(long)]
    check: bool,
    /// Seconds before it answers.
    #[arg(long, default_value_t = 0.0)]
    slow_start: f64,
    /// Seconds after which it crashes.
    #[arg(long)]
    crash_after: Option<f64>,
    /// Says it is unhealthy.
    #[arg(long)]
    unhealthy: bool,
    /// Keeps a CPU busy.
    #[arg(long)]
    burn_cpu: bool,
    /// Fills this much memory, such as 64m.
    #[arg(long)]
    burn_memory: Option<String>,
    /// Ignores SIGTERM.
    #[arg(long)]
    ignore_term: bool,
    /// Port it listens on.
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Version it tells.
    #[arg(long, env = "VERSION", default_value = "none")]
    version: String,
}

/// Runs it; answers the exit code.
pub(crate) fn run(args: &Args) -> u8 {
    if args.check {
        return u8::from(!healthy(args.port));
    }
    misbehave(args);
    std::thread::sleep(Duration::from_secs_f64(args.slow_start.clamp(0.0, 3600.0)));
    let listener = match TcpListener::bind(("0.0.0.0", args.port)) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("listen on port {}: {e}", args.port);
            return 1;
        }
    };
    println!("version {} listens on port {}", args.version, args.port);
    let (stopping, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let (Ok(signals), false) = (signals, args.ignore_term) {
        let (stopping, busy) = (stopping.clone(), busy.clone());
        std::thread::spawn(move || {
            signals.block_on(async {
                if let Ok(mut term) =
                    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                {
                    term.recv().await;
                }
            });
            stopping.store(true, Ordering::SeqCst);
            // What is being answered is answered to its end, for at most 5 s.
            let until = Instant::now() + Duration::from_secs(5);
            std::thread::sleep(Duration::from_millis(20));
            while busy.load(Ordering::SeqCst) > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("stopped by SIGTERM");
            std::process::exit(0);
        });
    } else if args.ignore_term {
        // Process 1 of a container takes no signal it has no handler for.
        println!("ignores SIGTERM");
    }
    for stream in listener.incoming().flatten() {
        let (args, stopping, busy) = (args.clone(), stopping.clone(), busy.clone());
        std::thread::spawn(move || {
            let _ = serve(stream, &args, &stopping, &busy);
        });
    }
    0
}

fn misbehave(args: &Args) {
    if let Some(after) = args.crash_after {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs_f64(after.clamp(0.0, 86_400.0)));
            println!("crashes as it was told");
            std::process::exit(42);
        });
    }
    if args.burn_cpu {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    if let Some(size) = args
        .burn_memory
        .as_ref()
        .and_then(|s| s.parse::<model::Bytes>().ok())
    {
        std::thread::spawn(move || {
            let mut memory = vec![0u8; usize::try_from(size.0).unwrap_or(0)];
            for page in memory.chunks_mut(4096) {
                page[0] = 1;
            }
            loop {
                std::thread::park();
                std::hint::black_box(&memory);
            }
        });
    }
}

fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|t| t.starts_with("HTTP/1.1 200"))
}

fn serve(stream: TcpStream, args: &Args, stopping: &AtomicBool, busy: &AtomicUsize) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?.ip().to_string();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut first = String::new();
        if reader.by_ref().take(8192).read_line(&mut first)? == 0 {
            return Ok(());
        }
        busy.fetch_add(1, Ordering::SeqCst);
        let mut close = stopping.load(Ordering::SeqCst);
        loop {
            let mut header = String::new();
            reader.by_ref().take(8192).read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            close |= header.to_ascii_lowercase().starts_with("connection: close");
        }
        let path = first.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let (status, body) = answer(&path, &client, args);
        let connection = if close { "close" } else { "keep-alive" };
        let reply = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        let sent = writer.write_all(reply.as_bytes());
        busy.fetch_sub(1, Ordering::SeqCst);
        sent?;
        if close {
            return Ok(());
        }
    }
}

fn answer(path: &str, client: &str, args: &Args) -> (&'static str, String) {
    if path == "/healthz" {
        return if args.unhealthy {
            ("503 Service Unavailable", "unhealthy".into())
        } else {
            ("200 OK", "ok".into())
        };
    }
    if let Some(file) = path.strip_prefix("/file?path=") {
        return match std::fs::read_to_string(file) {
            Ok(text) => ("200 OK", text),
            Err(e) => ("404 Not Found", format!("{file}: {e}")),
        };
    }
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let body = serde_json::json!({"version": args.version, "hostname": hostname, "client": client});
    ("200 OK", body.to_string())
}
