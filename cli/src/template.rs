//! The part of Go's templates that people use with `--format`: fields, `if`, `range`, `json` and a few functions.

use serde_json::Value;

use crate::client::Fail;

/// Most nodes a template has.
const NODES_MAX: usize = 1_000;

/// A template, read.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Vec<String>),
    If(Vec<String>, Vec<Node>, Vec<Node>),
    Range(Vec<String>, Vec<Node>),
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, Fail> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{") {
            if at > 0 {
                tokens.push(Err(rest[..at].to_owned()));
            }
            let end = rest[at..]
                .find("}}")
                .ok_or_else(|| Fail::new(format!("template: \"{{{{\" is not closed in {text}")))?;
            tokens.push(Ok(rest[at + 2..at + end].trim_matches(['-', ' ']).to_owned()));
            rest = &rest[at + end + 2..];
        }
        if !rest.is_empty() {
            tokens.push(Err(rest.to_owned()));
        }
        if tokens.len() > NODES_MAX {
            return Err(Fail::new(format!("template: more than {NODES_MAX} parts")));
        }
        let mut at = 0;
        let (nodes, end) = block(&tokens, &mut at)?;
        if end.is_some() {
            return Err(Fail::new(
                "template: an \"end\" or \"else\" without its beginning",
            ));
        }
        Ok(Self { nodes })
    }

    pub(crate) fn render(&self, value: &Value) -> Result<String, Fail> {
        let mut out = String::new();
        render(&self.nodes, value, value, &mut out)?;
        Ok(out)
    }
}

type Token = Result<String, String>;

/// Nodes up to an `end` or `else`, which is answered.
fn block(tokens: &[Token], at: &mut usize) -> Result<(Vec<Node>, Option<String>), Fail> {
    let mut nodes = Vec::new();
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        match token {
            Err(text) => nodes.push(Node::Text(text.clone())),
            Ok(action) => {
                let words = words(action)?;
                match words.first().map(String::as_str) {
                    Some("end" | "else") => return Ok((nodes, Some(action.clone()))),
                    Some("if") => {
                        let (yes, end) = block(tokens, at)?;
                        let no = match end.as_deref() {
                            Some("else") => block(tokens, at)?.0,
                            Some(_) => Vec::new(),
                            None => return Err(Fail::new("template: an \"if\" has no \"end\"")),
                        };
                        nodes.push(Node::If(words[1..].to_vec(), yes, no));
                    }
                    Some("range") => {
                        let (inner, end) = block(tokens, at)?;
                        if end.is_none() {
                            return Err(Fail::new("template: a \"range\" has no \"end\""));
                        }
                        nodes.push(Node::Range(words[1..].to_vec(), inner));
                    }
                    Some(_) => nodes.push(Node::Print(words)),
                    None => {}
                }
            }
        }
    }
    Ok((nodes, None))
}

/// Words of an action; quoted ones keep a leading quote so that they are told from names.
fn words(text: &str) -> Result<Vec<String>, Fail> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '"' | '`' => {
                let mut word = String::from('"');
                loop {
                    match chars.next() {
                        Some(d) if d == c => break,
                        Some('\\') if c == '"' => match chars.next() {
                            Some('t') => word.push('\t'),
                            Some('n') => word.push('\n'),
                            Some(d) => word.push(d),
                            None => {}
                        },
                        Some(d) => word.push(d),
                        None => return Err(Fail::new(format!("template: a quote is not closed in {text}"))),
                    }
                }
                words.push(word);
            }
            '(' | ')' | '|' => words.push(c.to_string()),
            c => {
                let mut word = String::from(c);
                while let Some(d) = chars
                    .peek()
                    .filter(|d| !d.is_whitespace() && !matches!(d, '(' | ')' | '|'))
                {
                    word.push(*d);
                    chars.next();
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

fn render(nodes: &[Node], dot: &Value, root: &Value, out: &mut String) -> Result<(), Fail> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(words) => out.push_str(&print(&pipeline(words, dot, root)?)),
            Node::If(words, yes, no) => {
                let branch = if truth(&pipeline(words, dot, root)?) {
                    yes
                } else {
                    no
                };
                render(branch, dot, root, out)?;
            }
            Node::Range(words, inner) => match pipeline(words, dot, root)? {
                Value::Array(items) => {
                    for item in &items {
                        render(inner, item, root, out)?;
                    }
                }
                Value::Object(map) => {
                    for item in map.values() {
                        render(inner, item, root, out)?;
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            },
        }
    }
    Ok(())
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn print(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            format!(
                "map[{}]",
                map.iter()
                    .map(|(k, v)| format!("{k}:{}", print(v)))
                    .collect::<Vec<_>>()
                    .join(" ")
            )
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn pipeline(words: &[String], dot: &Value, root: &Value) -> Result<Value, Fail> {
    let mut result: Option<Value> = None;
    for part in words.split(|w| w == "|") {
        let mut args = operands(part, dot, root)?;
        if let Some(last) = result.take() {
            args.push(last);
        }
        result = Some(call(part, args)?);
    }
    Ok(result.unwrap_or(Value::Null))
}

/// The values of a command's words, without a leading function name.
fn operands(words: &[String], dot: &Value, root: &Value) -> Result<Vec<Value>, Fail> {
    let mut values = Vec::new();
    let mut at = usize::from(words.first().is_some_and(|w| is_function(w)));
    while at < words.len() {
        if words[at] == "(" {
            let mut depth = 1;
            let start = at + 1;
            while depth > 0 {
                at += 1;
                match words.get(at).map(String::as_str) {
                    Some("(") => depth += 1,
                    Some(")") => depth -= 1,
                    Some(_) => {}
                    None => return Err(Fail::new("template: a parenthesis is not closed")),
                }
            }
            values.push(pipeline(&words[start..at], dot, root)?);
        } else {
            values.push(operand(&words[at], dot, root)?);
        }
        at += 1;
    }
    Ok(values)
}

fn operand(word: &str, dot: &Value, root: &Value) -> Result<Value, Fail> {
    if let Some(text) = word.strip_prefix('"') {
        return Ok(Value::String(text.into()));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(number.into());
    }
    let (mut value, path) = match word.strip_prefix('$') {
        Some(path) => (root, path),
        None => (dot, word),
    };
    let Some(path) = path.strip_prefix('.') else {
        return match path {
            "" => Ok(value.clone()),
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            other => Err(Fail::new(format!("template: function \"{other}\" not defined"))),
        };
    };
    for name in path.split('.').filter(|n| !n.is_empty()) {
        value = value.get(name).unwrap_or(&Value::Null);
    }
    Ok(value.clone())
}

fn is_function(word: &str) -> bool {
    const NAMES: [&str; 17] = [
        "json", "upper", "lower", "title", "join", "split", "truncate", "println", "print", "index", "eq",
        "ne", "and", "or", "not", "len", "pad",
    ];
    NAMES.contains(&word)
}

fn call(words: &[String], args: Vec<Value>) -> Result<Value, Fail> {
    let name = words.first().map_or("", String::as_str);
    if !is_function(name) {
        return Ok(args.into_iter().next_back().unwrap_or(Value::Null));
    }
    let text = |i: usize| args.get(i).map(print).unwrap_or_default();
    let number = |i: usize| usize::try_from(args.get(i).and_then(Value::as_u64).unwrap_or(0)).unwrap_or(0);
    Ok(match name {
        "json" => serde_json::to_string(args.first().unwrap_or(&Value::Null))
            .unwrap_or_default()
            .into(),
        "upper" => text(0).to_uppercase().into(),
        "lower" => text(0).to_lowercase().into(),
        "title" => {
            let t = text(0);
            t.chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(t.chars().skip(1))
                .collect::<String>()
                .into()
        }
        "join" => match args.first() {
            Some(Value::Array(items)) => items.iter().map(print).collect::<Vec<_>>().join(&text(1)).into(),
            Some(_) | None => Value::String(String::new()),
        },
        "split" => text(0)
            .split(&text(1))
            .map(|s| Value::from(s.to_owned()))
            .collect(),
        "truncate" => text(0).chars().take(number(1)).collect::<String>().into(),
        "pad" => format!(
            "{}{}{}",
            " ".repeat(number(1).min(1000)),
            text(0),
            " ".repeat(number(2).min(1000))
        )
        .into(),
        "println" => format!("{}\n", args.iter().map(print).collect::<Vec<_>>().join(" ")).into(),
        "print" => args.iter().map(print).collect::<String>().into(),
        "index" => {
            let mut value = args.first().cloned().unwrap_or(Value::Null);
            for key in &args[1.min(args.len())..] {
                let next = match key {
                    Value::String(k) => value.get(k).cloned(),
                    key => value
                        .get(usize::try_from(key.as_u64().unwrap_or(u64::MAX)).unwrap_or(usize::MAX))
                        .cloned(),
                };
                value = next.unwrap_or(Value::Null);
            }
            value
        }
        "eq" => args[1.min(args.len())..]
            .iter()
            .any(|a| Some(a) == args.first())
            .into(),
        "ne" => (args.first() != args.get(1)).into(),
        "and" => args
            .iter()
            .find(|a| !truth(a))
            .or(args.last())
            .cloned()
            .unwrap_or(Value::Null),
        "or" => args
            .iter()
            .find(|a| truth(a))
            .or(args.last())
            .cloned()
            .unwrap_or(Value::Null),
        "not" => (!args.first().is_some_and(truth)).into(),
        _ => match args.first() {
            Some(Value::Array(a)) => a.len().into(),
            Some(Value::Object(o)) => o.len().into(),
            Some(Value::String(s)) => s.len().into(),
            Some(_) | None => 0.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_render_as_go_renders_them() {
        let v = serde_json::json!({"Name": "web", "N": 3, "Labels": {"a": "b"}, "L": [{"X": 1}, {"X": 2}], "Update": {"State": "completed"}});
        for (text, want) in [
            ("{{.Name}}", "web"),
            ("{{if .Update}}{{.Update.State}}{{end}}", "completed"),
            ("{{if .Nothing}}x{{else}}y{{end}}", "y"),
            ("{{json .Labels}}", r#"{"a":"b"}"#),
            ("{{range .L}}{{.X}},{{end}}", "1,2,"),
            (
                "{{upper .Name}} {{.Name | title}} {{truncate .Name 2}}",
                "WEB Web we",
            ),
            ("{{index .Labels \"a\"}}", "b"),
            ("{{if eq .N 3}}three{{end}}", "three"),
            ("{{if and (eq .Name \"web\") (not .Nothing)}}ok{{end}}", "ok"),
            ("{{.No.Such.Field}}", "<no value>"),
            ("{{len .L}}", "2"),
        ] {
            assert_eq!(
                Template::parse(text).and_then(|t| t.render(&v)).unwrap(),
                want,
                "{text}"
            );
        }
        for bad in ["{{.Name", "{{if .A}}", "{{end}}", "{{\"x}}", "{{nosuch .A}}"] {
            assert!(Template::parse(bad).and_then(|t| t.render(&v)).is_err(), "{bad}");
        }
    }
}
