//! What is wrong with a file, and where.

use crate::node::Place;

/// Most problems, and most warnings, that are kept of one load.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong, or that deserves a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File, as it was named.
    pub file: String,
    /// Line, from 1; 0: the file as a whole.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Keys that lead there, such as `services.web.ports[0]`; may be empty.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.file)?;
        if self.line > 0 {
            write!(out, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(out, ": {}", self.path)?;
        }
        write!(out, ": {}", self.message)
    }
}

/// Collects problems, so that one look shows all of them.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) files: Vec<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

impl Report {
    pub(crate) fn new(files: Vec<String>) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    fn entry(&self, at: Place, path: &str, message: String) -> Problem {
        Problem {
            file: self.files.get(at.file).cloned().unwrap_or_default(),
            line: at.line,
            column: at.column,
            path: path.to_owned(),
            message,
        }
    }

    /// Notes what makes the files unusable.
    pub(crate) fn problem(&mut self, at: Place, path: &str, message: impl Into<String>) {
        let entry = self.entry(at, path, message.into());
        push(&mut self.problems, entry);
    }

    /// Notes what the user should know; the same sentence once per path.
    pub(crate) fn warn(&mut self, at: Place, path: &str, message: impl Into<String>) {
        let entry = self.entry(at, path, message.into());
        push(&mut self.warnings, entry);
    }
}

fn push(all: &mut Vec<Problem>, entry: Problem) {
    let known = all
        .iter()
        .any(|p| p.path == entry.path && p.message == entry.message);
    if known || all.len() > PROBLEMS_MAX {
        return;
    }
    if all.len() == PROBLEMS_MAX {
        all.push(Problem {
            message: format!("more than {PROBLEMS_MAX} such lines; the rest is left out"),
            path: String::new(),
            ..entry
        });
        return;
    }
    all.push(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_an_end_and_no_repeats() {
        let mut report = Report::new(vec!["a.yml".into()]);
        let at = Place {
            file: 0,
            line: 2,
            column: 3,
        };
        for i in 0..1_000 {
            report.problem(at, "services.web", format!("{}", i / 2));
        }
        assert_eq!(report.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(report.problems[0].to_string(), "a.yml:2:3: services.web: 0");
        assert_eq!(report.problems[1].message, "1");
    }
}
