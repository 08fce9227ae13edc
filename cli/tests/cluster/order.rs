//! Services that wait for one another: when they start, when they change, and when they go.

use std::fs;
use std::path::Path;

use crate::bed::{Bed, Outcome, PATIENCE, contains, equal, is, until};

/// An application on a database that is healthy once a file is there, and on a migration that does as it is told. Each writes
/// down when it starts and when it is asked to stop; what runs of the application writes a file again and again.
fn stack(out: &Path, version: u8, migration: &str) -> String {
    let out = out.display();
    format!(
        "services:
  app:
    image: web:v1
    command: [sh, -c, 'echo app {version} >> /out/starts; while :; do echo > /out/alive; sleep 0.05; done']
    volumes: ['{out}:/out']
    pre_stop: [{{command: [sh, -c, 'sleep 0.5; echo app >> /out/exits']}}]
    depends_on:
      db: {{condition: service_healthy}}
      migrate: {{condition: service_completed_successfully}}
    deploy: {{replicas: 2, update_config: {{monitor: 200ms}}}}
  db:
    image: web:v1
    command: [sh, -c, 'echo db {version} >> /out/starts; while :; do sleep 0.1; done']
    volumes: ['{out}:/out']
    healthcheck: {{test: [CMD, sh, -c, 'test -e /out/healthy'], interval: 200ms, start_interval: 200ms, start_period: 5m}}
    pre_stop:
      - command: [sh, -c, 'busybox rm -f /out/alive; sleep 0.5; if test -e /out/alive; then echo early >> /out/exits; fi; echo db >> /out/exits']
    deploy: {{update_config: {{monitor: 200ms}}}}
  migrate:
    image: web:v1
    command: [sh, -c, 'echo migrate {version} >> /out/starts; {migration}']
    volumes: ['{out}:/out']
    depends_on: {{db: {{condition: service_healthy}}}}
    deploy: {{mode: replicated-job, restart_policy: {{condition: none}}}}
"
    )
}

/// The application runs once its database is healthy and the migration is done, also the second time; why it waits is shown; both
/// change in their order, and go the other way round.
pub(crate) fn services_start_change_and_go_in_order(bed: &Bed) -> Outcome {
    let out = bed.hosts.dir().join("order");
    fs::create_dir_all(&out)?;
    let file = bed.hosts.dir().join("order.yaml");
    let deploy = |version: u8, migration: &str, flags: &str| {
        fs::write(&file, stack(&out, version, migration))?;
        bed.types(1, &format!("stack deploy {flags} -c {} st", file.display()))
    };
    let lines = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(out.join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let waits = |service: &str, tasks: usize, reason: &str| {
        until(&format!("{service} waits: {reason}"), PATIENCE, || {
            let shown = bed.ok(1, &format!("service ps --no-trunc {service}"))?;
            let found = shown
                .lines()
                .filter(|l| l.contains("Ready") && l.contains(reason));
            Ok(is(found.count(), tasks).map_err(|e| format!("{e}: {shown}")))
        })
    };

    // Nothing but the database runs before that is healthy.
    equal("deploying", deploy(1, "exit 1", "-d")?.code, Some(0))?;
    waits("st_app", 2, "waits for st_db: service_healthy, 0 of 1 ready")?;
    waits("st_migrate", 1, "waits for st_db: service_healthy, 0 of 1 ready")?;
    contains(&bed.ok(1, "service why st_app")?, "st_app: waits for st_db")?;
    let inspected = bed.ok(1, "service inspect st_app")?;
    contains(&inspected, "\"DependsOn\"")?;
    contains(&inspected, "service_completed_successfully")?;
    equal("what has started", lines("starts"), vec!["db 1".to_owned()])?;

    // The migration fails, and goes on failing to whoever waits for it.
    fs::write(out.join("healthy"), "")?;
    let failed = "waits for st_migrate: service_completed_successfully, its last run failed";
    waits("st_app", 2, failed)?;
    let said = bed.types(1, "service update --label-add a=b --timeout 1s st_app")?;
    equal("waiting for what waits ends with", said.code, Some(4))?;
    contains(&said.all(), failed)?;
    equal(
        "what has started",
        lines("starts"),
        vec!["db 1".to_owned(), "migrate 1".to_owned()],
    )?;

    // One that works takes its place.
    let said = deploy(1, "sleep 1", "")?;
    equal(
        &format!("deploying ends with; it said {}", said.all()),
        said.code,
        Some(0),
    )?;
    contains(&said.all(), "waits for st_migrate")?;
    bed.runs(1, "st_app", 2)?;
    equal(
        "what has started at last",
        lines("starts")[2..].to_vec(),
        ["migrate 1", "app 1", "app 1"].map(str::to_owned).to_vec(),
    )?;

    // All change: the application after what it depends on.
    fs::remove_file(out.join("starts"))?;
    fs::remove_file(out.join("exits")).or_else(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(e)
        }
    })?;
    let said = deploy(2, "sleep 1", "")?;
    equal(
        &format!("changing ends with; it said {}", said.all()),
        said.code,
        Some(0),
    )?;
    let started = lines("starts");
    equal("starts", started.len(), 4)?;
    equal(
        "the application is the last",
        started[2..].to_vec(),
        vec!["app 2".to_owned(); 2],
    )?;

    // They go the other way round, and nothing of the application is left when the database is asked.
    fs::remove_file(out.join("exits"))?;
    let gone = || {
        bed.ok(1, "stack rm st")?;
        until("all are gone", PATIENCE, || {
            Ok(is(bed.all_containers("st_")?.len(), 0))
        })
    };
    gone()?;
    equal(
        "exits",
        lines("exits"),
        ["app", "app", "db"].map(str::to_owned).to_vec(),
    )?;

    // The same once more.
    fs::remove_file(out.join("starts"))?;
    fs::remove_file(out.join("healthy"))?;
    equal("deploying again", deploy(3, "sleep 0.2", "-d")?.code, Some(0))?;
    waits("st_app", 2, "waits for st_db: service_healthy, 0 of 1 ready")?;
    fs::write(out.join("healthy"), "")?;
    bed.runs(1, "st_app", 2)?;
    equal(
        "what has started",
        lines("starts"),
        ["db 3", "migrate 3", "app 3", "app 3"]
            .map(str::to_owned)
            .to_vec(),
    )?;

    bed.refused(
        1,
        "service create --depends-on nobody web:v1",
        "there is no such service",
    )?;
    bed.refused(
        1,
        "service create --depends-on st_db=fine web:v1",
        "no condition fine",
    )?;
    bed.refused(
        1,
        "service create --depends-on st_db=completed web:v1",
        "it never completes",
    )?;
    bed.refused(
        1,
        "service update --depends-on-add st_app st_db",
        "wait for one another",
    )?;
    bed.ok(
        1,
        "service create -q --name by --depends-on st_db=healthy --depends-on late,optional web:v1",
    )?;
    bed.ok(1, "service update -q --depends-on-rm late by")?;
    let by = "service inspect --format '{{json .Spec.TaskTemplate.DependsOn}}' by";
    equal(
        "what is left",
        bed.ok(1, by)?.trim(),
        r#"[{"Condition":"service_healthy","Required":true,"Service":"st_db"}]"#,
    )?;
    bed.ok(1, "service rm by")?;
    gone()?;
    Ok(())
}
