//! Lines of logs to standard output and error, as fast as whoever reads them.

use std::io::{ErrorKind, Write};

use crate::moment;

/// Bytes collected before they are written.
const BUFFER: usize = 32 << 10;

/// One line to be shown.
pub(crate) struct Line<'l> {
    pub(crate) time_ns: u64,
    pub(crate) stderr: bool,
    pub(crate) prefix: &'l str,
    pub(crate) text: &'l [u8],
    /// A line that has no newline gets one, so that the next prefix begins a line.
    pub(crate) whole: bool,
}

impl Line<'_> {
    fn write(&self, timestamps: bool, out: &mut Vec<u8>) {
        if timestamps {
            out.extend_from_slice(moment::print(self.time_ns).as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(self.text);
        if self.whole && !self.text.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
}

/// Where lines go.
pub(crate) struct Output {
    timestamps: bool,
    buffer: Vec<u8>,
    open: bool,
}

impl Output {
    pub(crate) fn new(timestamps: bool) -> Self {
        Self {
            timestamps,
            buffer: Vec::with_capacity(BUFFER),
            open: true,
        }
    }

    /// Takes a line; false once nobody reads any more.
    pub(crate) fn put(&mut self, line: &Line<'_>) -> bool {
        if line.stderr {
            // In order: what came before goes out first.
            self.flush();
            let mut text = Vec::new();
            line.write(self.timestamps, &mut text);
            self.done(std::io::stderr().write_all(&text));
        } else {
            line.write(self.timestamps, &mut self.buffer);
            if self.buffer.len() >= BUFFER {
                self.flush();
            }
        }
        self.open
    }

    /// Writes what was collected.
    pub(crate) fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let mut out = std::io::stdout().lock();
        let written = out.write_all(&self.buffer).and_then(|()| out.flush());
        self.buffer.clear();
        drop(out);
        self.done(written);
    }

    fn done(&mut self, written: std::io::Result<()>) {
        // Whatever the reason, more lines would be lost as well.
        self.open &= !written.is_err_and(|e| e.kind() != ErrorKind::Interrupted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_comes_first_then_the_task_then_the_line() {
        let row = |timestamps, whole, text: &[u8]| {
            let line = Line {
                time_ns: 1_709_208_000_000_000_007,
                stderr: false,
                prefix: "web.1.abc@h1    | ",
                text,
                whole,
            };
            let mut out = Vec::new();
            line.write(timestamps, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            row(true, true, b"up\n"),
            "2024-02-29T12:00:00.000000007Z web.1.abc@h1    | up\n"
        );
        assert_eq!(row(false, true, b"half a"), "web.1.abc@h1    | half a\n");
        assert_eq!(row(false, false, b"half a"), "web.1.abc@h1    | half a");
    }
}
