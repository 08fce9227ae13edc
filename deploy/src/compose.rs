//! The whole way from files to one stack.

use model::spec::StackSpec;

use crate::convert::{Surroundings, absolute, convert};
use crate::interpolate::interpolate;
use crate::merge::merge;
use crate::node::{Node, Value, parse};
use crate::problem::{Problem, Report};
use crate::schema::{FILE, normalise};

/// Most files of one stack.
pub const FILES_MAX: usize = 64;

/// One file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, for messages.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// Files that are understood, merged and in long form.
#[derive(Debug)]
pub struct Compose {
    tree: Node,
    files: Vec<String>,
    filled: bool,
    warnings: Vec<Problem>,
}

/// Variables of the environment.
pub type Vars<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads files, fills variables in (without `vars` they stay as they are) and merges them; a later file wins.
///
/// # Errors
/// Everything that is wrong, in the order of the files.
pub fn load(files: &[Source], vars: Option<Vars<'_>>) -> Result<Compose, Vec<Problem>> {
    let mut report = Report::new(files.iter().map(|f| f.name.clone()).collect());
    let mut merged: Option<Node> = None;
    if files.len() > FILES_MAX {
        let message = format!("at most {FILES_MAX} files make one stack");
        report.problem(crate::node::Place::default(), "", message);
        return Err(report.problems);
    }
    for (i, file) in files.iter().enumerate() {
        let tree = match parse(i, &file.text) {
            Ok(tree) => tree,
            Err((at, message)) => {
                report.problem(at, "", message);
                continue;
            }
        };
        if tree.value == Value::Null {
            report.problem(tree.at, "", "the file is empty");
            continue;
        }
        let tree = match vars {
            Some(vars) => fill(&tree, vars, "", &mut report),
            None => tree,
        };
        if let Some(tree) = normalise(&tree, &FILE, "", &mut report) {
            merged = Some(match merged {
                Some(base) => merge(base, tree, &FILE),
                None => tree,
            });
        }
    }
    match merged {
        Some(tree) if report.problems.is_empty() => Ok(Compose {
            tree,
            files: report.files,
            filled: vars.is_some(),
            warnings: report.warnings,
        }),
        _ => Err(report.problems),
    }
}

/// Variables are filled into values, never into keys; the `x-` keys of the file itself are left out.
fn fill(node: &Node, vars: Vars<'_>, path: &str, report: &mut Report) -> Node {
    let value = match &node.value {
        Value::Text(text) => {
            let mut unset = Vec::new();
            let filled = interpolate(text, vars, &mut |name| unset.push(name.to_owned()));
            for name in unset {
                let message = format!("The \"{name}\" variable is not set. Defaulting to a blank string.");
                report.warn(node.at, path, message);
            }
            match filled {
                Ok(text) => Value::Text(text),
                Err(e) => {
                    report.problem(node.at, path, e);
                    Value::Null
                }
            }
        }
        Value::List(items) => Value::List(
            items
                .iter()
                .enumerate()
                .map(|(i, n)| fill(n, vars, &format!("{path}[{i}]"), report))
                .collect(),
        ),
        Value::Map(entries) => Value::Map(
            entries
                .iter()
                .filter(|e| !(path.is_empty() && e.key.starts_with("x-")))
                .map(|e| {
                    let path = match path {
                        "" => e.key.clone(),
                        _ => format!("{path}.{}", e.key),
                    };
                    e.with(fill(&e.node, vars, &path, report))
                })
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => node.value.clone(),
    };
    Node { at: node.at, value }
}

/// Changes every node at a path; `*` is any key or item.
fn edit(node: &mut Node, path: &[&str], change: &mut dyn FnMut(&mut Node)) {
    let Some((first, rest)) = path.split_first() else {
        return change(node);
    };
    match &mut node.value {
        Value::Map(entries) => entries
            .iter_mut()
            .filter(|e| *first == "*" || e.key == *first)
            .for_each(|e| edit(&mut e.node, rest, change)),
        Value::List(items) if *first == "*" => items.iter_mut().for_each(|n| edit(n, rest, change)),
        Value::List(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
    }
}

impl Compose {
    /// What the user should know: ignored keys, variables without value.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Makes paths absolute, so that what [`Compose::to_yaml`] prints means the same in another folder.
    pub fn absolute(&mut self, folder: &str, home: &str) {
        let mut resolve = |node: &mut Node| {
            if let Value::Text(path) = &mut node.value {
                *path = absolute(path, folder, home);
            }
        };
        edit(&mut self.tree, &["secrets", "*", "file"], &mut resolve);
        edit(&mut self.tree, &["configs", "*", "file"], &mut resolve);
        edit(&mut self.tree, &["services", "*", "env_file", "*"], &mut resolve);
        edit(&mut self.tree, &["services", "*", "volumes", "*"], &mut |mount| {
            if mount.get("type").and_then(Node::scalar) == Some("bind") {
                edit(mount, &["source"], &mut resolve);
            }
        });
    }

    /// The files as one, in long form; loading it again gives the same.
    pub fn to_yaml(&self) -> String {
        crate::print::yaml(&self.tree, self.filled)
    }

    /// The stack of the given name, with warnings of its own added to [`Compose::warnings`].
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn convert(&mut self, namespace: &str, from: &Surroundings<'_>) -> Result<StackSpec, Vec<Problem>> {
        let mut report = Report::new(self.files.clone());
        let stack = convert(&self.tree, namespace, from, &mut report);
        self.warnings.append(&mut report.warnings);
        if report.problems.is_empty() {
            Ok(stack)
        } else {
            Err(report.problems)
        }
    }
}
