//! A command with a deadline, and what it said.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Pause between two looks whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// What a command said and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; absent when it was ended at its deadline.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Said {
    /// Whether it ended with 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Everything it wrote, and its end, for a person who asks why.
    pub fn all(&self) -> String {
        let end = match self.code {
            Some(code) => format!("exit code {code}"),
            None => "no end".to_owned(),
        };
        format!("{}{}({end} after {:.1?})", self.out, self.err, self.took)
    }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is what there is.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a command to its end, or ends it after `limit`.
///
/// # Errors
/// When it cannot be started or waited for.
pub(crate) fn run(mut command: Command, input: Option<&str>, limit: Duration) -> io::Result<Said> {
    let began = Instant::now();
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // One that does not read it has its reasons, and says them.
        let _ = stdin.write_all(text.as_bytes());
    }
    let code = wait(&mut child, limit)?;
    let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Said {
        code,
        out: text(out),
        err: text(err),
        took: began.elapsed(),
    })
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<i32>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            use std::os::unix::process::ExitStatusExt;
            return Ok(status.code().or(status.signal().map(|s| 128 + s)));
        }
        if began.elapsed() > limit {
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
