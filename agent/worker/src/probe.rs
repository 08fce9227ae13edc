//! Health probes: a process in the container, again and again, until the verdict is no longer asked for.

use std::sync::Arc;

use agent_core::health::{Counter, Health, OUTPUT_MAX};
use model::spec::Healthcheck;
use runtime::ExecConfig;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::agent::Shared;
use crate::contact::boottime;

/// Probes a container; the verdicts and what the last failing probe said go to `verdict`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    container: String,
    check: Healthcheck,
    verdict: watch::Sender<(Health, String)>,
) {
    let argv = match check.test.first().map(String::as_str) {
        Some("CMD-SHELL") => vec!["/bin/sh".to_owned(), "-c".into(), check.test[1..].join(" ")],
        _ => check.test[1..].to_vec(),
    };
    let mut counter = Counter::new(check, boottime());
    loop {
        tokio::time::sleep(counter.pause(boottime())).await;
        let (success, output) =
            match tokio::time::timeout(counter.timeout(), probe(&shared, &container, &argv)).await {
                Ok(result) => result,
                Err(_) => (false, "the probe took too long".into()),
            };
        counter.observe(success, boottime());
        if verdict.send((counter.health, output)).is_err() {
            return;
        }
    }
}

async fn probe(shared: &Shared, container: &str, argv: &[String]) -> (bool, String) {
    let config = ExecConfig {
        argv: argv.to_vec(),
        ..ExecConfig::default()
    };
    let mut session = match shared.runtime.exec(container, &config) {
        Ok(session) => session,
        Err(error) => return (false, error.to_string()),
    };
    let mut text = Vec::new();
    if let Some(out) = session.stdout.take() {
        let _ = out.take(OUTPUT_MAX as u64).read_to_end(&mut text).await;
    }
    let code = session.wait().await.unwrap_or(255);
    (code == 0, String::from_utf8_lossy(&text).trim().to_owned())
}
