//! The binary as an operator meets it without a daemon: help, wrong usage, exit codes.

use std::process::{Command, Output};

fn rswarm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rswarm"))
        .args(args)
        .env_remove("RSWARM_SOCKET")
        .output()
        .expect("it runs")
}

#[test]
fn help_names_the_commands_and_the_exit_codes() {
    let out = rswarm(&["--help"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success());
    for word in ["service", "swarm", "secret", "demo", "3 paused"] {
        assert!(text.contains(word), "{word} in:\n{text}");
    }
}

#[test]
fn without_a_daemon_a_command_says_what_to_do() {
    let out = rswarm(&["--socket", "/nonexistent/rswarm.sock", "service", "ls"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text.contains("rswarm daemon") && text.contains("/nonexistent/rswarm.sock"),
        "{text}"
    );
    assert!(!text.contains("panicked"));
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    for args in [&["service", "nosuch"][..], &["--nosuch"], &["service", "create"]] {
        assert_eq!(rswarm(args).status.code(), Some(125), "{args:?}");
    }
}

#[test]
fn stack_files_are_checked_before_anything_is_asked_of_the_daemon() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bad.yml");
    std::fs::write(&file, "services:\n  web:\n    imgae: x\n    ports: [x]\n").expect("written");
    let path = file.display().to_string();
    let out = rswarm(&["stack", "deploy", "-c", &path, "shop"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    for part in [
        format!("{path}:3:5: services.web.imgae: there is no such key; did you mean image?"),
        format!("{path}:4:13: services.web.ports[0]"),
    ] {
        assert!(text.contains(&part), "{part} in:\n{text}");
    }
    let out = rswarm(&["stack", "deploy", "-c", "/nonexistent.yml", "shop"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("read /nonexistent.yml"), "{text}");
}

#[test]
fn a_file_beyond_its_bound_is_refused_and_not_cut() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("stack.yml");
    std::fs::write(&file, "services: {web: {image: x, env_file: big.env}}").expect("written");
    let line = "A=aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n";
    std::fs::write(
        dir.path().join("big.env"),
        line.repeat((4 << 20) / line.len() + 1),
    )
    .expect("written");
    let out = rswarm(&["stack", "deploy", "-c", &file.display().to_string(), "shop"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(text.contains("it has more than 4194304 bytes"), "{text}");
}

#[test]
fn stack_config_prints_the_long_form() {
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop/stack.yml");
    let out = rswarm(&["stack", "config", "-c", shop]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success());
    for part in ["image: shop/web:v1", "published: 18080", "monitor: 200ms"] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let out = rswarm(&["stack", "config", "--skip-interpolation", "-c", shop]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("shop/web:${VERSION:-v1}"));
}

#[test]
fn the_binary_is_static() {
    let out = Command::new("ldd").arg(env!("CARGO_BIN_EXE_rswarm")).output();
    let Ok(out) = out else {
        println!("skipped: there is no ldd here");
        return;
    };
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(
        text.contains("not a dynamic") || text.contains("statically linked"),
        "{text}"
    );
}
