//! Every file of `scenarios/` replayed; `UPDATE=1` writes the replies as they are now.

use std::path::Path;

#[test]
fn every_scenario_ends_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|e| e.expect("readable").path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "scenarios are missing");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a text");
        let name = file.display();
        match tests::sim::script::replay(&text) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(now) if now == text => {}
            Ok(now) if std::env::var_os("UPDATE").is_some() => std::fs::write(&file, now).expect("written"),
            Ok(now) => wrong.push(format!("{name} is now:\n{now}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
