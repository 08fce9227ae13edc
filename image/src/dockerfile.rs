//! Dockerfiles: text into instructions, with variables filled in as they come.

use std::collections::BTreeMap;

/// Largest Dockerfile.
const SIZE_MAX: usize = 1 << 20;

/// One instruction: its line, its word in capitals, and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) line: usize,
    pub(crate) word: String,
    pub(crate) rest: String,
}

/// Splits a Dockerfile into instructions: comments gone, continued lines joined.
pub(crate) fn parse(text: &str) -> Result<Vec<Instruction>, String> {
    if text.len() > SIZE_MAX {
        return Err(format!("the Dockerfile is larger than {SIZE_MAX} bytes"));
    }
    let mut escape = '\\';
    let mut instructions = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if let Some(comment) = line.strip_prefix('#') {
            // Parser directives stand before anything else.
            if instructions.is_empty()
                && open.is_none()
                && let Some(("escape", value)) = comment.split_once('=').map(|(k, v)| (k.trim(), v.trim()))
            {
                escape = value
                    .chars()
                    .next()
                    .filter(|c| matches!(c, '\\' | '`'))
                    .ok_or("the escape directive takes \\ or `")?;
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let (first, mut all) = open.take().unwrap_or((number + 1, String::new()));
        match line.strip_suffix(escape) {
            Some(part) => {
                all.push_str(part);
                all.push(' ');
                open = Some((first, all));
            }
            None => {
                all.push_str(line);
                instructions.push(instruction(first, &all));
            }
        }
    }
    if let Some((first, all)) = open {
        instructions.push(instruction(first, &all));
    }
    Ok(instructions)
}

fn instruction(line: usize, text: &str) -> Instruction {
    let (word, rest) = text
        .trim()
        .split_once(char::is_whitespace)
        .unwrap_or((text.trim(), ""));
    Instruction {
        line,
        word: word.to_ascii_uppercase(),
        rest: rest.trim().to_owned(),
    }
}

/// Fills in `$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}`; an unknown name is empty.
pub(crate) fn expand(text: &str, vars: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.peek() == Some(&'$') {
            out.push('$');
            chars.next();
            continue;
        }
        if c != '$' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'{') {
            chars.next();
            let inner: String = chars.by_ref().take_while(|c| *c != '}').collect();
            let split = inner
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(inner.len());
            let (name, action) = inner.split_at(split);
            let value = vars.get(name).filter(|v| !v.is_empty());
            match action.get(..2) {
                None if action.is_empty() => out.push_str(value.map_or("", String::as_str)),
                Some(":-") => out.push_str(value.map_or(&action[2..], String::as_str)),
                Some(":+") => out.push_str(if value.is_some() { &action[2..] } else { "" }),
                Some(_) | None => return Err(format!("${{{inner}}} cannot be read")),
            }
            continue;
        }
        let mut name = String::new();
        while let Some(c) = chars.peek().filter(|c| c.is_ascii_alphanumeric() || **c == '_') {
            name.push(*c);
            chars.next();
        }
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(vars.get(&name).map_or("", String::as_str));
        }
    }
    Ok(out)
}

/// Splits into words; quotes keep white space and are taken away.
pub(crate) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', q) if q != Some('\'') => word.get_or_insert_default().extend(chars.next()),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

/// A JSON list of words, or nothing where the text is none.
pub(crate) fn json_form(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// `NAME=value …`, or the old `NAME value`.
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let list = words(text)?;
    if list.first().is_some_and(|w| !w.contains('=')) {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or("a name needs a value: NAME=VALUE")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    list.iter()
        .map(|w| {
            w.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .ok_or(format!("{w}: write NAME=VALUE"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_joined_and_comments_left_out() {
        let got =
            parse("# escape=\\\nFROM scratch\n\n# c\nENV A=1 \\\n  # inside\n  B=2\ncopy a /b").unwrap();
        let flat: Vec<_> = got
            .iter()
            .map(|i| (i.line, i.word.as_str(), i.rest.as_str()))
            .collect();
        assert_eq!(
            flat,
            [
                (2, "FROM", "scratch"),
                (5, "ENV", "A=1  B=2"),
                (8, "COPY", "a /b")
            ]
        );
    }

    #[test]
    fn variables_words_and_pairs() {
        let vars = BTreeMap::from([("V".to_owned(), "1".to_owned())]);
        for (text, want) in [
            ("v$V-${V}", "v1-1"),
            ("${X:-d}${V:+set}${X:+no}", "dset"),
            ("\\$V $", "$V $"),
            ("$X", ""),
        ] {
            assert_eq!(expand(text, &vars).as_deref(), Ok(want), "{text}");
        }
        assert!(expand("${V?x}", &vars).is_err());
        assert_eq!(words("a 'b c' d\\ e \"\"").unwrap(), ["a", "b c", "d e", ""]);
        assert!(words("'").is_err());
        assert_eq!(
            pairs("A=1 B='x y'").unwrap(),
            [("A".into(), "1".into()), ("B".into(), "x y".into())]
        );
        assert_eq!(pairs("A some text").unwrap(), [("A".into(), "some text".into())]);
        assert_eq!(json_form("[\"a\", \"b\"]").unwrap(), ["a", "b"]);
        assert_eq!(json_form("[a"), None);
    }
}
