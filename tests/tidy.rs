//! The house rules a compiler cannot see: layers, purity, where unsafe lives, how files begin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crate, the crates of ours it may use, and whether it is pure (no clock, I/O, async or randomness).
const LAYERS: &[(&str, &[&str], bool)] = &[
    ("model", &[], true),
    ("deploy", &["model"], true),
    ("crash", &[], false),
    ("proto", &["crash", "model"], false),
    ("manager-core", &["model"], true),
    ("agent-core", &["model"], true),
    ("runtime", &[], false),
    ("image", &[], false),
    ("net", &[], false),
    ("hosts", &["net"], false),
    (
        "manager-server",
        &["manager-core", "proto", "model", "crash"],
        false,
    ),
    (
        "agent-worker",
        &["agent-core", "proto", "model", "crash", "runtime", "image", "net"],
        false,
    ),
    (
        "rswarm",
        &[
            "model",
            "crash",
            "proto",
            "deploy",
            "manager-core",
            "manager-server",
            "agent-core",
            "agent-worker",
            "runtime",
            "image",
            "net",
            "hosts",
        ],
        false,
    ),
    ("tests", &["model", "manager-core", "agent-core"], false),
];

/// Dependencies that would bring a clock, a socket or chance into a pure crate.
const IMPURE: &[&str] = &[
    "tokio", "tonic", "openraft", "sled", "rand", "rustix", "libc", "tracing", "futures",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the workspace")
        .to_owned()
}

/// Every source file of the workspace, relative to its root, with its text.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the workspace can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default()
                .to_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, found);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    assert!(found.len() > 50, "the walk saw only {} files", found.len());
    found
        .into_iter()
        .map(|p| {
            let text = std::fs::read_to_string(&p).expect("a source file is text");
            (
                p.strip_prefix(root())
                    .expect("below the root")
                    .display()
                    .to_string(),
                text,
            )
        })
        .collect()
}

fn fail_with(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_crate_uses_only_the_layers_above_it() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let table: BTreeMap<&str, (&[&str], bool)> = LAYERS
        .iter()
        .map(|(n, uses, pure)| (*n, (*uses, *pure)))
        .collect();
    let ours: BTreeSet<&str> = table.keys().copied().collect();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        seen.insert(name);
        let Some((uses, pure)) = table.get(name) else {
            problems.push(format!("{name}: not in the layer table of tests/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let (used, dev) = (
                dependency["name"].as_str().expect("a name"),
                dependency["kind"] == "dev",
            );
            if ours.contains(used) && !dev && !uses.contains(&used) {
                problems.push(format!("{name} uses {used}, which is not a layer above it"));
            }
            if *pure && !dev && IMPURE.contains(&used) {
                problems.push(format!("{name} decides, so it must not depend on {used}"));
            }
        }
    }
    problems.extend(
        ours.difference(&seen)
            .map(|n| format!("{n}: in the layer table, not in the workspace")),
    );
    fail_with(&problems);
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let problems: Vec<_> = sources()
        .iter()
        .filter(|(_, t)| !t.starts_with("//!"))
        .map(|(p, _)| format!("{p}: no //! line"))
        .collect();
    fail_with(&problems);
}

#[test]
fn unsafe_code_lives_under_sys_only() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        // A bench's floor is made of bare system calls.
        let bench = path.contains("/benches/");
        if path.contains("/sys/") || path.ends_with("/sys.rs") || path == "tests/tidy.rs" || bench {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["unsafe {", "unsafe fn", "unsafe impl"]
                .iter()
                .any(|u| code.contains(u))
            {
                problems.push(format!("{path}:{}: unsafe outside a sys folder", number + 1));
            }
        }
    }
    fail_with(&problems);
}

#[test]
fn the_crates_forbid_what_they_must() {
    let mut problems = Vec::new();
    for (path, text) in sources().iter().filter(|(p, _)| p.ends_with("src/lib.rs")) {
        let kernel = path.starts_with("runtime/") || path.starts_with("net/") || path.starts_with("image/");
        let (forbids, denies) = (
            text.contains("#![forbid(unsafe_code)]"),
            text.contains("#![deny(unsafe_code)]"),
        );
        if !forbids && (!kernel || !denies) {
            problems.push(format!("{path}: unsafe_code is neither forbidden nor denied"));
        }
        let decides = ["model/", "manager/core/", "agent/core/"]
            .iter()
            .any(|c| path.starts_with(c));
        if decides && !text.contains("#![deny(clippy::wildcard_enum_match_arm)]") {
            problems.push(format!("{path}: a pure crate spells out every match"));
        }
    }
    fail_with(&problems);
}

#[test]
fn nothing_is_left_for_later_without_an_issue() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        if path == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let marks = ["todo!(", "unimplemented!(", "FIXME", "XXX:"];
            let bare = line.contains("TODO") && !line.contains("TODO(#");
            if bare || marks.iter().any(|m| line.contains(m)) {
                problems.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    fail_with(&problems);
}

#[test]
fn files_are_named_after_an_idea() {
    let vague = [
        "utils.rs",
        "util.rs",
        "common.rs",
        "helpers.rs",
        "misc.rs",
        "part2.rs",
    ];
    let problems: Vec<_> = sources()
        .iter()
        .filter(|(p, _)| vague.iter().any(|v| p.ends_with(&format!("/{v}"))))
        .map(|(p, _)| format!("{p}: name the idea it holds"))
        .collect();
    fail_with(&problems);
}

#[test]
fn every_invariant_is_registered() {
    let table =
        std::fs::read_to_string(root().join("tests/invariants/mod.rs")).expect("the table of invariants");
    let mut problems = Vec::new();
    for (path, _) in sources()
        .iter()
        .filter(|(p, _)| p.starts_with("tests/invariants/") && !p.ends_with("mod.rs"))
    {
        let name = path
            .trim_start_matches("tests/invariants/")
            .trim_end_matches(".rs");
        if !table.contains(&format!("mod {name};")) || !table.contains(&format!("{name}::")) {
            problems.push(format!("{path}: not in the table of tests/invariants/mod.rs"));
        }
    }
    fail_with(&problems);
}

/// An aim, not a rule: prints what outgrew it.
#[test]
fn long_files_are_printed() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > 600 {
            println!("{path}: {lines} lines");
        }
    }
}
