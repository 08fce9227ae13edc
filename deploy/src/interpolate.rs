//! `$VAR`, `${VAR:-default}` and their kin in values, as docker/cli and compose read them.

/// Deepest nesting of defaults.
const DEPTH_MAX: usize = 32;

/// Fills variables in; unset names are given to `unset`.
///
/// # Errors
/// What cannot be read, or what a `?` demands.
pub fn interpolate(
    text: &str,
    vars: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
) -> Result<String, String> {
    expand(text, vars, unset, 0)
}

fn expand(
    text: &str,
    vars: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
    depth: usize,
) -> Result<String, String> {
    if depth > DEPTH_MAX {
        return Err(format!(
            "E_INTERPOLATE: defaults are nested deeper than {DEPTH_MAX}"
        ));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let Some(inner) = rest.strip_prefix('{') else {
            let len = name_length(rest);
            if len == 0 {
                return Err(format!(
                    "E_INTERPOLATE: a lone $ in \"{text}\": write $$ for the sign itself"
                ));
            }
            out.push_str(&value(&rest[..len], vars, unset));
            rest = &rest[len..];
            continue;
        };
        let end =
            closing(inner).ok_or_else(|| format!("E_INTERPOLATE: \"${{\" is not closed in \"{text}\""))?;
        out.push_str(&braced(&inner[..end], vars, unset, depth)?);
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the brace closes that is open at the start; inner ones are counted.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let bytes = text.as_bytes();
    for (i, b) in bytes.iter().enumerate() {
        match b {
            b'{' if i > 0 && bytes[i - 1] == b'$' => open += 1,
            b'}' if open == 0 => return Some(i),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if first {
        text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len())
    } else {
        0
    }
}

fn value(name: &str, vars: &dyn Fn(&str) -> Option<String>, unset: &mut dyn FnMut(&str)) -> String {
    vars(name).unwrap_or_else(|| {
        unset(name);
        String::new()
    })
}

fn braced(
    inner: &str,
    vars: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
    depth: usize,
) -> Result<String, String> {
    let len = name_length(inner);
    let (name, action) = inner.split_at(len);
    if len == 0 {
        return Err(format!("E_INTERPOLATE: ${{{inner}}} names no variable"));
    }
    if action.is_empty() {
        return Ok(value(name, vars, unset));
    }
    let (colon, action) = action.strip_prefix(':').map_or((false, action), |a| (true, a));
    let found = vars(name).filter(|v| !colon || !v.is_empty());
    let mut word = |w: &str| expand(w, vars, unset, depth + 1);
    match action.split_at_checked(1) {
        Some(("-", default)) => found.map_or_else(|| word(default), Ok),
        Some(("+", instead)) => {
            if found.is_some() {
                word(instead)
            } else {
                Ok(String::new())
            }
        }
        Some(("?", message)) => match found {
            Some(v) => Ok(v),
            None => Err(format!(
                "required variable {name} is missing a value: {}",
                word(message)?
            )),
        },
        Some(_) | None => Err(format!("E_INTERPOLATE: ${{{inner}}} cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let vars = |n: &str| match n {
            "A" => Some("1".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        for (text, want) in [
            ("$A-${A}-$$A", Some("1-1-$A")),
            ("${X:-d}${X-d}", Some("dd")),
            ("${E:-d}|${E-d}", Some("d|")),
            ("${A:+x}${E:+x}${E+y}${X+z}", Some("xy")),
            ("${X:-${Y:-deep}}", Some("deep")),
            ("${X}", Some("")),
            ("${X:?no x}", None),
            ("${E?x}", Some("")),
            ("${E:?x}", None),
            ("${", None),
            ("${A", None),
            ("$", None),
            ("${1}", None),
        ] {
            let mut unset = Vec::new();
            let got = interpolate(text, &vars, &mut |n| unset.push(n.to_owned()));
            assert_eq!(got.as_deref().ok(), want, "{text}");
        }
        let deep = format!("{}x{}", "${A1:-".repeat(10_000), "}".repeat(10_000));
        assert!(interpolate(&deep, &vars, &mut |_| {}).is_err());
    }
}
