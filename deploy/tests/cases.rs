//! Golden cases: every folder of `cases/` holds files as a user writes them and what becomes of them.
//!
//! `compose*.yaml` are loaded in order of their names and converted as stack `st`; `expected.txt` holds the warnings,
//! then the problems or the long form and the specs. `UPDATE=1 cargo test -p deploy` writes what it finds.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write;
use std::path::Path;

use deploy::{Source, Surroundings, load};

fn vars(name: &str) -> Option<String> {
    match name {
        "TAG" => Some("1.2".into()),
        "EMPTY" => Some(String::new()),
        "TOKEN" => Some("from-env".into()),
        _ => None,
    }
}

fn run(folder: &Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("compose"))
        .collect();
    names.sort();
    let files: Vec<_> = names
        .into_iter()
        .map(|name| Source {
            text: std::fs::read_to_string(folder.join(&name)).unwrap(),
            name,
        })
        .collect();
    let mut out = String::new();
    let read = |path: &str, max: usize| {
        let inside = path
            .strip_prefix("/src/")
            .ok_or_else(|| format!("{path}: no such file"))?;
        let bytes = std::fs::read(folder.join(inside)).map_err(|_| format!("{path}: no such file"))?;
        assert!(bytes.len() <= max);
        Ok(bytes)
    };
    let from = Surroundings {
        folder: "/src",
        home: "/home/me",
        vars: &vars,
        read: &read,
    };
    let loaded = load(&files, Some(&vars));
    let (warnings, rest) = match loaded {
        Err(problems) => (Vec::new(), Err(problems)),
        Ok(mut compose) => {
            let yaml = compose.to_yaml();
            let again = [Source {
                name: "again".into(),
                text: yaml.clone(),
            }];
            let again = load(&again, Some(&vars)).map(|c| c.to_yaml());
            assert_eq!(
                again.as_ref(),
                Ok(&yaml),
                "{}: the long form changes when read",
                folder.display()
            );
            let stack = compose.convert("st", &from);
            (compose.warnings().to_vec(), stack.map(|s| (yaml, s)))
        }
    };
    for w in warnings {
        writeln!(out, "warning: {w}").unwrap();
    }
    match rest {
        Err(problems) => {
            for p in problems {
                writeln!(out, "{p}").unwrap();
            }
        }
        Ok((yaml, stack)) => write!(out, "{yaml}\n---\n{stack:#?}\n").unwrap(),
    }
    out
}

#[test]
fn every_case_gives_what_it_says() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut wrong = Vec::new();
    let mut folders: Vec<_> = std::fs::read_dir(&all)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    folders.sort();
    assert!(folders.len() >= 10, "the cases are missing");
    for folder in folders {
        let got = run(&folder);
        let file = folder.join("expected.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &got).unwrap();
        }
        if std::fs::read_to_string(&file).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_variables_their_text_stays() {
    let files = [Source {
        name: "a".into(),
        text: "services: {web: {image: 'x:${TAG:-1}', environment: [A=$$B]}}".into(),
    }];
    let yaml = load(&files, None).unwrap().to_yaml();
    assert!(yaml.contains("x:${TAG:-1}") && yaml.contains("A: $$B"), "{yaml}");
}

#[test]
fn too_many_files_are_refused() {
    let file = Source {
        name: "a".into(),
        text: "services: {}".into(),
    };
    assert!(load(&vec![file.clone(); deploy::FILES_MAX], None).is_ok());
    assert!(load(&vec![file; deploy::FILES_MAX + 1], None).is_err());
}

#[test]
fn paths_become_absolute() {
    let files = [Source {
        name: "a".into(),
        text: "services: {web: {image: x, env_file: e, volumes: ['./a:/a', 'v:/v', '../up:/u']}}\n\
               volumes: {v: }\nsecrets: {s: {file: ./k}}\nconfigs: {c: {file: ~/c}}"
            .into(),
    }];
    let mut compose = load(&files, None).unwrap();
    compose.absolute("/src/app", "/home/me");
    let yaml = compose.to_yaml();
    for part in [
        "- /src/app/e",
        "source: /src/app/a",
        "source: v",
        "source: /src/up",
        "/src/app/k",
        "/home/me/c",
    ] {
        assert!(yaml.contains(part), "{part} in {yaml}");
    }
}
