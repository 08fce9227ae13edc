//! Probes over the network: what is sent, and what an answer means.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// What a probe asks with HTTP (RFC 9112).
pub fn request(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: rswarm-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
}

/// What the beginning of an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Too little of it is there.
    More,
    /// Its status is well.
    Well,
    /// It is not: the status, and what of the body is there.
    Bad(String),
}

/// Longest first line of an answer.
const FIRST_LINE_MAX: usize = 512;

/// Reads the beginning of an answer.
pub fn answer(bytes: &[u8], wanted: &RangeInclusive<u16>) -> Answer {
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return if bytes.len() < FIRST_LINE_MAX {
            Answer::More
        } else {
            no_http(bytes)
        };
    };
    let line = &bytes[..end];
    let Some(status) = status(line) else {
        return no_http(line);
    };
    if wanted.contains(&status) {
        return Answer::Well;
    }
    let text = String::from_utf8_lossy(bytes);
    let body = ["\r\n\r\n", "\n\n"].iter().find_map(|gap| text.split_once(gap));
    let body = body.map(|(_, body)| body.trim()).filter(|body| !body.is_empty());
    let first = String::from_utf8_lossy(line);
    Answer::Bad(match body {
        Some(body) => format!("{}: {body}", first.trim()),
        None => first.trim().to_owned(),
    })
}

fn no_http(line: &[u8]) -> Answer {
    let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
    Answer::Bad(format!("the answer is not HTTP: {}", shown.trim()))
}

/// The status of a first line such as `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.get(..12)?).ok()?;
    let code = line.strip_prefix("HTTP/1.")?.get(1..)?.strip_prefix(' ')?;
    code.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_host() {
        let text = request(([10, 0, 0, 2], 8080).into(), "/ready?x=1");
        assert!(text.starts_with("GET /ready?x=1 HTTP/1.1\r\nHost: 10.0.0.2:8080\r\n"));
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn answers_are_judged_by_their_status() {
        let bad = |text: &str| Answer::Bad(text.into());
        for (text, want) in [
            ("", Answer::More),
            ("HTTP/1.1 2", Answer::More),
            ("HTTP/1.1 200 OK", Answer::More),
            ("HTTP/1.1 200 OK\r\n", Answer::Well),
            ("HTTP/1.0 399\n", Answer::Well),
            ("HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n", Answer::Well),
            ("HTTP/1.1 400 Bad Request\r\n", bad("HTTP/1.1 400 Bad Request")),
            (
                "HTTP/1.1 503 Busy\r\nA: b\r\n\r\nthe database is away\n",
                bad("HTTP/1.1 503 Busy: the database is away"),
            ),
            ("HTTP/1.1 199 Odd\r\n", bad("HTTP/1.1 199 Odd")),
            (
                "SSH-2.0-OpenSSH_9.2\r\n",
                bad("the answer is not HTTP: SSH-2.0-OpenSSH_9.2"),
            ),
            ("HTTP/2 200 x\r\n", bad("the answer is not HTTP: HTTP/2 200 x")),
            (
                "HTTP/1.1 2x0 OK\r\n",
                bad("the answer is not HTTP: HTTP/1.1 2x0 OK"),
            ),
            ("\n", bad("the answer is not HTTP: ")),
        ] {
            assert_eq!(answer(text.as_bytes(), &(200..=399)), want, "{text:?}");
        }
        let endless = vec![b'x'; FIRST_LINE_MAX];
        assert_eq!(answer(&endless[1..], &(200..=399)), Answer::More);
        assert!(matches!(answer(&endless, &(200..=399)), Answer::Bad(text) if text.len() < 120));
        assert_eq!(answer(b"HTTP/1.1 204 No\n", &(200..=200)), bad("HTTP/1.1 204 No"));
    }
}
