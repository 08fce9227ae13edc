//! `swarm unlock`: the key of a locked manager, from a terminal without showing it, or from a pipe.

use std::io::{BufRead, Read};

use proto::control::{GetInfoRequest, UnlockRequest};
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr};

use crate::client::{Client, Fail};
use crate::progress::INTERRUPTED;
use crate::render;

/// Longest line taken: a key has 52 characters, and one with a slip in it is answered, not read without end.
const LINE_MAX: usize = 1024;

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    /// Absent where standard input is no terminal.
    fn begin() -> Option<Self> {
        let before = isatty(stdin()).then(|| tcgetattr(stdin()).ok()).flatten()?;
        let mut hidden = before.clone();
        // Keys come one by one, Ctrl-C among them: so nothing ends this process before the terminal is as it was.
        hidden.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        hidden.special_codes[SpecialCodeIndex::VMIN] = 1;
        hidden.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Flush, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}

/// A line of keys pressed: those that delete do. Absent when it was given up with Ctrl-C.
fn typed(keys: impl Iterator<Item = u8>) -> Option<String> {
    let mut line = Vec::new();
    for key in keys {
        match key {
            b'\r' | b'\n' | 0x04 => break,
            0x03 => return None,
            0x08 | 0x7f => drop(line.pop()),
            // The whole line, as a terminal does.
            0x15 => line.clear(),
            _ if line.len() < LINE_MAX => line.push(key),
            _ => {}
        }
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Asks for the key; absent when the operator gave up.
fn ask() -> Result<Option<String>, Fail> {
    if let Some(_hidden) = Hidden::begin() {
        eprint!("Please enter unlock key: ");
        let line = typed(std::io::stdin().lock().bytes().map_while(Result::ok));
        eprintln!();
        return Ok(line);
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .take(LINE_MAX as u64)
        .read_line(&mut line)
        .map_err(|e| Fail::new(format!("read the unlock key from standard input: {e}")))?;
    Ok(Some(line))
}

/// Opens this locked manager with the key that is asked for.
pub(crate) async fn run(client: &Client) -> Result<u8, Fail> {
    // First, so that nobody types a key for nothing.
    let mut control = client.control().await?;
    if !control.get_info(GetInfoRequest {}).await?.into_inner().locked {
        return Err(Fail::new("this node is not locked"));
    }
    let Some(key) = ask()? else {
        return Ok(INTERRUPTED);
    };
    let key = key.trim().to_owned();
    if key.is_empty() {
        return Err(Fail::new(
            "no unlock key was given: `rswarm swarm unlock-key` on a manager that is not locked shows it",
        ));
    }
    control.unlock(UnlockRequest { key }).await?;
    render::line("Swarm unlocked.");
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_line_is_what_is_left_of_the_keys() {
        for (keys, line) in [
            ("key\r", Some("key")),
            ("kez\x7fy\nmore", Some("key")),
            ("wrong\x15key\n", Some("key")),
            ("\x7f\x08key\x04", Some("key")),
            ("key\x03\n", None),
            ("", Some("")),
        ] {
            assert_eq!(typed(keys.bytes()).as_deref(), line, "{keys:?}");
        }
        let endless = typed(std::iter::repeat_n(b'k', 5 * LINE_MAX)).unwrap();
        assert_eq!(endless.len(), LINE_MAX, "a line has a bound");
    }
}
