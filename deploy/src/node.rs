//! YAML as it was written: a tree whose nodes know their place and whose scalars keep their text.
//!
//! `0440`, `1e3` or `yes` mean different things to different keys, so the decision is left to the schema.

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Most bytes of one file.
pub const FILE_MAX: usize = 4 << 20;
/// Deepest nesting.
const DEPTH_MAX: usize = 64;
/// Most nodes of one file, aliases filled in (B47: bombs).
const NODES_MAX: usize = 200_000;

/// A place in one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place {
    /// Which of the files, from 0.
    pub file: usize,
    /// Line, from 1; 0 when unknown.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Where.
    pub at: Place,
    /// What.
    pub value: Value,
}

/// A YAML value; scalars that are no strings keep their text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as written.
    Number(String),
    /// Any other scalar.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; keys are unique.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: Place,
    /// Its value.
    pub node: Node,
}

impl Entry {
    /// The same key with another value.
    pub(crate) fn with(&self, node: Node) -> Self {
        Self {
            key: self.key.clone(),
            at: self.at,
            node,
        }
    }
}

impl Node {
    /// A node that stands where another one does.
    pub(crate) fn new(at: Place, value: Value) -> Self {
        Self { at, value }
    }

    /// A text.
    pub(crate) fn text(at: Place, text: impl Into<String>) -> Self {
        Self::new(at, Value::Text(text.into()))
    }

    /// The value of a key, when this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.node)
    }

    /// The entries of a mapping; none of anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(all) => all,
            _ => &[],
        }
    }

    /// The items of a sequence; none of anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(all) => all,
            _ => &[],
        }
    }

    /// The text of a scalar; `None` for collections and null.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Text(t) | Value::Number(t) => Some(t),
            Value::Bool(true) => Some("true"),
            Value::Bool(false) => Some("false"),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What it is, in the words of a message.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads one file.
///
/// # Errors
/// The first thing that is no YAML, and where.
pub(crate) fn parse(file: usize, text: &str) -> Result<Node, (Place, String)> {
    let top = Place {
        file,
        line: 1,
        column: 1,
    };
    if text.len() > FILE_MAX {
        return Err((
            top,
            format!("the file has {} bytes; at most {FILE_MAX} are read", text.len()),
        ));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_aliases: 1_000,
            max_documents: 1,
            max_total_scalar_bytes: 2 * FILE_MAX,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: false,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let at = e.location().map_or(top, |l| Place {
            file,
            line: l.line(),
            column: l.column(),
        });
        (at, sentence(&e.to_string()))
    })?;
    Ok(raw_node(file, text, raw))
}

/// A parser's message without its own place and code.
fn sentence(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = match line.split_once(": ") {
        Some((head, tail)) if head.starts_with("line ") => tail,
        _ => line,
    };
    let line = line.find(" at line ").map_or(line, |i| &line[..i]);
    // The parser's advice is for programmers.
    let line = line.find(", set ").map_or(line, |i| &line[..i]);
    line.to_owned()
}

enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn raw_node(file: usize, text: &str, raw: Spanned<Raw>) -> Node {
    let place = |l: &serde_saphyr::Location| Place {
        file,
        line: l.line(),
        column: l.column(),
    };
    let at = place(&raw.referenced);
    let span = raw.defined.span();
    let written = || {
        let from = usize::try_from(span.byte_offset()?).ok()?;
        let len = usize::try_from(span.byte_len()?).ok()?;
        text.get(from..from.checked_add(len)?)
            .map(|t| t.trim().to_owned())
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(b) => Value::Bool(b),
        Raw::Number(n) => Value::Number(written().filter(|w| is_number(w)).unwrap_or(n)),
        Raw::Text(t) => Value::Text(t),
        Raw::List(all) => Value::List(all.into_iter().map(|r| raw_node(file, text, r)).collect()),
        Raw::Map(all) => Value::Map(
            all.into_iter()
                .map(|(key, r)| Entry {
                    at: place(&key.referenced),
                    key: key.value,
                    node: raw_node(file, text, r),
                })
                .collect(),
        ),
    };
    Node { at, value }
}

/// Whether the text of a span is the number itself and not an anchor or a tag before it.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && !text.contains(char::is_whitespace)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Raw, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = seq.next_element()? {
            all.push(item);
        }
        Ok(Raw::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = map.next_entry()? {
            all.push(entry);
        }
        Ok(Raw::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".into(),
            Value::Bool(b) => format!("b{b}"),
            Value::Number(n) => format!("n{n}"),
            Value::Text(t) => format!("{t:?}"),
            Value::List(l) => format!("[{}]", l.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Map(m) => format!(
                "{{{}}}",
                m.iter()
                    .map(|e| format!("{}@{}:{}={}", e.key, e.at.line, e.at.column, show(&e.node)))
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_nodes_their_place() {
        for (text, want) in [
            ("a: 0440", "{a@1:1=n0440}"),
            ("a: 0o440", "{a@1:1=n0o440}"),
            ("a: &x 3.10\nb: *x", "{a@1:1=n3.10 b@2:1=n3.10}"),
            ("a: 1e3", "{a@1:1=n1e3}"),
            ("a: 1_000", "{a@1:1=\"1_000\"}"),
            ("a: '5'", "{a@1:1=\"5\"}"),
            ("a: yes", "{a@1:1=\"yes\"}"),
            ("a: true\nb:\nc: ~", "{a@1:1=btrue b@2:1=~ c@3:1=~}"),
            ("a: 22:22", "{a@1:1=\"22:22\"}"),
            ("a: [1, x]\n80: y", "{a@1:1=[n1 \"x\"] 80@2:1=\"y\"}"),
            (
                "x: &b {k: 1, l: 2}\na:\n  <<: *b\n  l: 3",
                "{x@1:1={k@1:8=n1 l@1:14=n2} a@2:1={l@4:3=n3 k@3:7=n1}}",
            ),
            ("a: 2026-01-01", "{a@1:1=\"2026-01-01\"}"),
            ("é: 07\nb: 08", "{é@1:1=n07 b@2:1=n08}"),
            ("a: |\n  two\n  lines\n", "{a@1:1=\"two\\nlines\\n\"}"),
            ("a: .5\nb: -1\nc: +2", "{a@1:1=n.5 b@2:1=n-1 c@3:1=n+2}"),
        ] {
            let got = parse(0, text);
            assert_eq!(got.as_ref().map(show), Ok(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_place() {
        let bomb = {
            let mut t = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
            for i in 1..12 {
                let p = format!("*a{}", i - 1);
                t.push_str(&format!("a{i}: &a{i} [{}]\n", [p.as_str(); 10].join(",")));
            }
            t
        };
        for (text, line) in [
            ("a: 1\na: 2", 2),
            ("a: [1", 0),
            ("a:\n\t- b", 2),
            ("a: *nowhere", 1),
            ("a: 1\n---\nb: 2", 0),
            (bomb.as_str(), 0),
            (&"[".repeat(10_000), 1),
            (&format!("a: {}", "x".repeat(FILE_MAX)), 1),
        ] {
            let (at, message) = parse(0, text).expect_err(&text[..text.len().min(40)]);
            assert!(line == 0 || at.line == line, "{at:?} {message}");
            assert!(message.len() < 300, "{message}");
        }
    }
}
