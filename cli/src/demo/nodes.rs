//! `rswarm demo --nodes N`: a cluster of hosts that are namespaces: joined, loaded, hurt and healed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hosts::{Host, Hosts, HostsError};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::load::{Load, request};
use super::{Args, PATIENCE, PORT, SHOP};
use crate::client::Fail;
use crate::render::line;

mod writes;

use writes::Writes;

/// Managers of the cluster: one may be lost.
const MANAGERS: u8 = 3;
/// Pause between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Name of the stack's file.
const FILE: &str = "nodes.yml";
/// Tasks of the tier that moves, before and after it is scaled.
const MOVING: usize = 5;
const SCALED: usize = 10;

impl From<HostsError> for Fail {
    fn from(error: HostsError) -> Self {
        Self::new(error.to_string())
    }
}

/// What was measured.
#[derive(Default)]
struct Figures {
    join: f64,
    deploy: f64,
    scale: f64,
    failover: f64,
    loss: f64,
    heal: f64,
    update: f64,
    replace: f64,
    restarted: usize,
    requests: (u64, u64),
    writes: writes::Counts,
}

impl Figures {
    fn report(&self) -> Value {
        let (requests, failed) = self.requests;
        json!({
            "requests": requests, "failed": failed, "deploy_s": self.deploy, "scale_s": self.scale,
            "update_s": self.update, "replace_s": self.replace, "join_s": self.join,
            "leader_failover_s": self.failover, "node_loss_s": self.loss, "heal_s": self.heal,
            "writes": self.writes.acknowledged, "failed_writes": self.writes.failed, "lost_writes": self.writes.lost,
            "restarted_tasks": self.restarted, "failed_requests": failed,
        })
    }

    /// Whether everything that was promised was kept.
    fn good(&self) -> bool {
        self.requests.1 == 0 && self.writes.lost == 0 && self.restarted == 0
    }
}

/// Runs the demo on threads of its own, and ends it in good order on Ctrl-C.
pub(super) async fn run(args: Args) -> Result<u8, Fail> {
    if args.nodes <= MANAGERS {
        return Err(Fail::new(format!(
            "a cluster of the demo has {MANAGERS} managers and at least one worker: use --nodes {} or more",
            MANAGERS + 1
        )));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let waiting = tokio::spawn(async move {
        // Commands that run get the signal as well, so that nothing waits for them.
        if tokio::signal::ctrl_c().await.is_ok() {
            told.store(true, Ordering::SeqCst);
        }
    });
    let result = tokio::task::spawn_blocking(move || whole(&args, &stop)).await;
    waiting.abort();
    result.map_err(|e| Fail::new(format!("the demo broke off: {e}")))?
}

fn whole(args: &Args, stop: &AtomicBool) -> Result<u8, Fail> {
    line(format!(
        "# {} hosts: network namespaces on one bridge, a daemon in each, clients in one more",
        args.nodes
    ));
    let hosts = Hosts::make(&std::env::current_exe()?, args.nodes, "info,openraft=error")?;
    let stage = Stage { hosts: &hosts, stop };
    let mut outcome = stage.play();
    if let (Ok(figures), Some(path)) = (&outcome, &args.report) {
        let text = format!("{}\n", figures.report());
        std::fs::write(path, text).map_err(|e| Fail::new(format!("write {}: {e}", path.display())))?;
    }
    if outcome.is_ok() && !args.once {
        stage.stay();
    }
    if outcome.is_err() {
        for host in hosts.all() {
            eprintln!("# what the daemon of {} logged last:\n{}", host.name, host.log());
        }
    } else if let Err(error) = stage.leave() {
        outcome = Err(error);
    }
    let left = hosts.end();
    let figures = outcome?;
    if !left.is_empty() {
        return Err(Fail::new(format!("left behind: {left:?}")));
    }
    line("# everything is gone again");
    Ok(u8::from(!figures.good()))
}

/// The hosts, and whether to stop.
struct Stage<'a> {
    hosts: &'a Hosts,
    stop: &'a AtomicBool,
}

impl Stage<'_> {
    fn play(&self) -> Result<Figures, Fail> {
        let mut figures = Figures {
            join: self.join()?,
            ..Figures::default()
        };
        let file = self.images()?;
        let file = file.display().to_string();
        line("\n# any manager takes any command: this one passes it on to the leader");
        figures.deploy = self.timed(2, &["stack", "deploy", "-c", &file, "shop"])?;
        self.type_in(2, &["stack", "services", "shop"])?;
        self.type_in(2, &["stack", "ps", "shop"])?;
        let targets: Vec<SocketAddr> = self.hosts.all().iter().map(address).collect();
        let load = Load::start(&targets, Some(self.hosts.outside()));
        let writes = Writes::start(self.hosts, MANAGERS);
        let hurt = std::thread::scope(|scope| {
            let writer = scope.spawn(|| writes.go_on());
            let hurt = self.under_load(&file, &load, &mut figures);
            writes.end();
            // What it counted is asked below.
            let _ = writer.join();
            hurt
        });
        figures.requests = load.end();
        hurt?;
        figures.writes = writes.counts(self.host(1))?;
        self.sum_up(&figures);
        Ok(figures)
    }

    fn under_load(&self, file: &str, load: &Load, figures: &mut Figures) -> Result<(), Fail> {
        line("\n# from here on clients ask every host, and somebody writes to managers all the time");
        figures.scale = self.timed(3, &["service", "scale", &format!("shop_api={SCALED}")])?;
        self.lose_the_leader(figures)?;
        self.lose_a_worker(load, figures)?;
        line("\n# a new version on all hosts: each old task serves until the new one is ready");
        line(format!(
            "\nh1$ VERSION=v2 API={SCALED} rswarm stack deploy -c {file} shop"
        ));
        let mut update = self.host(1).command(&["stack", "deploy", "-c", file, "shop"]);
        figures.update = self.shown(update.env("VERSION", "v2").env("API", SCALED.to_string()))?;
        let hosts = self.hosts.all();
        self.waits("hosts answer with the new version", hosts.len(), |done| {
            let answer = hosts::inside(&self.hosts.outside(), || request(address(&hosts[done])));
            let new = answer.map_err(HostsError::from)??.contains("\"version\":\"v2\"");
            Ok((done + usize::from(new), String::new()))
        })?;
        self.kill_a_container(figures)
    }

    fn join(&self) -> Result<f64, Fail> {
        let began = Instant::now();
        self.type_in(
            1,
            &[
                "swarm",
                "init",
                "--advertise-addr",
                &self.host(1).address().to_string(),
            ],
        )?;
        let token = |role: &str| self.says(self.host(1), &["swarm", "join-token", "-q", role]);
        let (manager, worker) = (token("manager")?, token("worker")?);
        let hosts = self.hosts.all();
        for host in &hosts[1..] {
            let token = if host.number <= MANAGERS {
                &manager
            } else {
                &worker
            };
            self.type_in(
                host.number,
                &["swarm", "join", "--token", token.trim(), &self.host(1).peer()],
            )?;
        }
        let count = hosts.len();
        self.waits("nodes are Ready, managers agree", count, |_| {
            let nodes = self.nodes(self.host(1))?;
            let votes = |n: &&Node| n.manager.is_empty() || n.votes();
            let ready = nodes
                .values()
                .filter(|n| n.status == "Ready")
                .filter(votes)
                .count();
            let managers = nodes.values().filter(|n| n.votes()).count();
            // The last one is not counted before all managers are.
            let missing = usize::from(MANAGERS).saturating_sub(managers);
            Ok((ready.min(count - missing.min(count)), String::new()))
        })?;
        let took = began.elapsed().as_secs_f64();
        self.type_in(1, &["node", "ls"])?;
        Ok(took)
    }

    /// Makes both versions on every host; answers the stack's file.
    fn images(&self) -> Result<PathBuf, Fail> {
        let context = self.hosts.dir().join("shop");
        std::fs::create_dir(&context)?;
        for (name, text) in SHOP {
            std::fs::write(context.join(name), text)?;
        }
        std::fs::write(context.join(FILE), stack(self.hosts.all()))?;
        std::fs::copy(std::env::current_exe()?, context.join("rswarm"))?;
        let folder = context.display().to_string();
        line("\n# on each host: rswarm image build -t shop/web:v1 …, and v2");
        let hosts = self.hosts.all();
        self.waits("images are made", 2 * hosts.len(), |done| {
            let (host, version) = (&hosts[done / 2], if done % 2 == 0 { "v1" } else { "v2" });
            let (tag, argument) = (format!("shop/web:{version}"), format!("VERSION={version}"));
            let command = [
                "image",
                "build",
                "-q",
                "-t",
                &tag,
                "--build-arg",
                &argument,
                &folder,
            ];
            self.says(host, &command)?;
            Ok((done + 1, format!("{tag} on {}", host.name)))
        })?;
        Ok(context.join(FILE))
    }

    fn lose_the_leader(&self, figures: &mut Figures) -> Result<(), Fail> {
        let before = self.containers()?;
        let leader = self.leader(self.host(1))?;
        let other = self.host(if leader.number == 1 { 2 } else { 1 });
        line(format!(
            "\n# the leader is lost: the daemon of {} is killed; a write through {} waits for the next one",
            leader.name, other.name
        ));
        leader.kill();
        let began = Instant::now();
        self.says_with(
            other,
            &["config", "create", "failover", "-"],
            Some("written while nobody led"),
        )?;
        figures.failover = began.elapsed().as_secs_f64();
        line(format!("# written after {:.2} s", figures.failover));
        self.type_in(other.number, &["node", "ls"])?;
        leader.start()?;
        self.waits("managers agree again", MANAGERS.into(), |_| {
            let nodes = self.nodes(other)?;
            Ok((nodes.values().filter(|n| n.votes()).count(), String::new()))
        })?;
        let after = self.containers()?;
        let same = |(name, pid): &(&String, &u64)| after.get(*name) == Some(*pid);
        figures.restarted = before.len() - before.iter().filter(same).count();
        line(format!(
            "# of {} containers {} were restarted by it",
            before.len(),
            figures.restarted
        ));
        Ok(())
    }

    fn lose_a_worker(&self, load: &Load, figures: &mut Figures) -> Result<(), Fail> {
        let asked = self.host(1);
        let Some(lost) = self.hosts.all().last() else {
            return Ok(());
        };
        line(format!(
            "\n# a worker is lost: {} is cut off from all others; its clients still reach it",
            lost.name
        ));
        self.hosts.isolate(&[lost])?;
        let began = Instant::now();
        self.waits("tasks of shop_api run elsewhere", SCALED, |_| {
            let tasks = self.tasks(asked, "shop_api")?;
            let elsewhere = tasks.iter().filter(|t| t.runs() && t.node != lost.name).count();
            let status = self.nodes(asked)?.remove(&lost.name).map(|n| n.status);
            let status = status.unwrap_or_default();
            Ok((elsewhere, format!("{} is {status}", lost.name)))
        })?;
        figures.loss = began.elapsed().as_secs_f64();
        self.type_in(1, &["node", "ls"])?;
        self.type_in(1, &["service", "ps", "shop_api"])?;
        line(format!(
            "\n# {} is healed: what was replaced ends there",
            lost.name
        ));
        let old: BTreeSet<String> = self.containers_of(lost)?.into_keys().collect();
        load.ask(address(lost), false);
        let began = Instant::now();
        self.hosts.heal()?;
        let count = old.len();
        self.waits("old containers have ended", count, |_| {
            let now = self.containers_of(lost)?;
            Ok((
                old.iter().filter(|name| !now.contains_key(*name)).count(),
                String::new(),
            ))
        })?;
        self.waits("its web task runs again", 1, |_| {
            let tasks = self.tasks(asked, &format!("shop_{}", web(lost)))?;
            Ok((
                tasks.iter().filter(|t| t.runs() && t.node == lost.name).count(),
                String::new(),
            ))
        })?;
        figures.heal = began.elapsed().as_secs_f64();
        load.ask(address(lost), true);
        self.type_in(1, &["node", "ps", &lost.name])
    }

    fn kill_a_container(&self, figures: &mut Figures) -> Result<(), Fail> {
        let found = self.hosts.all().iter().find_map(|host| {
            let containers = self.containers_of(host).ok()?;
            let (name, pid) = containers.into_iter().find(|(n, _)| n.starts_with("shop_api."))?;
            Some((host, name, pid))
        });
        let (host, name, pid) = found.ok_or_else(|| Fail::new("no container of shop_api runs"))?;
        line(format!("\n# one container is killed: {name} on {}", host.name));
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or_else(|| Fail::new(format!("{name} has no process")))?;
        let began = Instant::now();
        rustix::process::kill_process(raw, rustix::process::Signal::KILL)
            .map_err(|e| Fail::new(format!("kill {name}: {e}")))?;
        self.waits("tasks of shop_api run", SCALED, |_| {
            let now = self.containers()?;
            let api = |(n, p): &(&String, &u64)| n.starts_with("shop_api.") && **p != pid;
            Ok((now.iter().filter(api).count(), String::new()))
        })?;
        figures.replace = began.elapsed().as_secs_f64();
        Ok(())
    }

    fn sum_up(&self, f: &Figures) {
        let (requests, failed) = f.requests;
        let writes = &f.writes;
        line("");
        for (what, figure) in [
            ("hosts joined", format!("{:.2} s", f.join)),
            ("deployed", format!("{:.2} s", f.deploy)),
            (
                &format!("scaled {MOVING} → {SCALED}") as &str,
                format!("{:.2} s", f.scale),
            ),
            ("leader lost → next write", format!("{:.2} s", f.failover)),
            ("  tasks restarted by that", f.restarted.to_string()),
            (
                "worker lost → its tasks run elsewhere",
                format!("{:.2} s", f.loss),
            ),
            ("  healed", format!("{:.2} s", f.heal)),
            ("updated under load", format!("{:.2} s", f.update)),
            ("container killed → replaced", format!("{:.3} s", f.replace)),
            ("requests, failed", format!("{requests}, {failed}")),
            (
                "writes acknowledged, lost, refused",
                format!("{}, {}, {}", writes.acknowledged, writes.lost, writes.failed),
            ),
        ] {
            line(format!("  {what:<40} {figure}"));
        }
    }

    /// Leaves the cluster as it is until Ctrl-C.
    fn stay(&self) {
        let host = self.host(1);
        line(format!(
            "\n# up: rswarm -H {} node ls, and nsenter --net={} curl http://{}/; Ctrl-C ends it",
            host.socket().display(),
            self.hosts.outside().display(),
            address(host),
        ));
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK_EVERY);
        }
        // From here on nothing is broken off.
        self.stop.store(false, Ordering::SeqCst);
    }

    /// Every host leaves, the last manager last, and nothing of the cluster may stay.
    fn leave(&self) -> Result<(), Fail> {
        line("\n# every host leaves");
        for host in self.hosts.all().iter().rev() {
            self.says(host, &["swarm", "leave", "--force"])?;
        }
        self.waits("traces of the cluster are gone", 1, |_| {
            let left = self.hosts.left();
            let text = if left.is_empty() {
                String::new()
            } else {
                format!("{left:?}")
            };
            Ok((usize::from(left.is_empty()), text))
        })?;
        for host in self.hosts.all() {
            if host.stop() != Some(0) {
                return Err(Fail::new(format!("the daemon of {} did not end well", host.name)));
            }
        }
        Ok(())
    }
}

/// Where clients ask a host.
fn address(host: &Host) -> SocketAddr {
    SocketAddr::from((host.address(), PORT + u16::from(host.number)))
}

/// The web service of a host.
fn web(host: &Host) -> String {
    format!("web{}", host.number)
}

/// The stack: a web service on each host, and one that may be anywhere.
fn stack(hosts: &[Host]) -> String {
    let mut text = String::from(
        r#"x-web: &web
  image: shop/web:${VERSION:-v1}
  configs: [{source: motd, target: /etc/motd}]
  healthcheck: {test: [CMD, /rswarm, testapp, --check], interval: 1s, timeout: 2s, start_period: 10s, start_interval: 50ms}
configs: {motd: {file: motd}}
secrets: {key: {file: key}}
services:
  api:
    image: shop/web:v1
    secrets: [key]
    deploy:
      replicas: ${API:-5}
      restart_policy: {delay: 0s}
      update_config: {monitor: 200ms}
"#,
    );
    for host in hosts {
        let (service, port, name) = (web(host), address(host).port(), &host.name);
        text.push_str(&format!(
            "  {service}:\n    <<: *web\n    ports: [\"{port}:8080\"]\n    deploy: {{replicas: 1, placement: {{constraints: \
             [\"node.hostname == {name}\"]}}, restart_policy: {{delay: 0s}}, update_config: {{order: start-first, monitor: 200ms}}}}\n"
        ));
    }
    text
}

/// A row of `node ls`.
struct Node {
    status: String,
    manager: String,
}

impl Node {
    fn votes(&self) -> bool {
        matches!(self.manager.as_str(), "Leader" | "Reachable")
    }
}

/// A row of `service ps`.
struct Task {
    node: String,
    state: String,
    desired: String,
}

impl Task {
    fn runs(&self) -> bool {
        self.desired == "Running" && self.state.starts_with("Running")
    }
}

/// What is asked of hosts.
impl Stage<'_> {
    fn host(&self, number: u8) -> &Host {
        self.hosts.host(number)
    }

    fn stopped(&self) -> Result<(), Fail> {
        if self.stop.load(Ordering::SeqCst) {
            return Err(Fail::new("interrupted"));
        }
        Ok(())
    }

    /// Runs a command as an operator would type it on a host, for everybody to see.
    fn type_in(&self, number: u8, words: &[&str]) -> Result<(), Fail> {
        self.timed(number, words).map(drop)
    }

    /// The same; answers how long it took, in seconds.
    fn timed(&self, number: u8, words: &[&str]) -> Result<f64, Fail> {
        let host = self.host(number);
        line(format!("\n{}$ rswarm {}", host.name, words.join(" ")));
        self.shown(&mut host.command(words))
    }

    fn shown(&self, command: &mut std::process::Command) -> Result<f64, Fail> {
        self.stopped()?;
        let began = Instant::now();
        let status = command.status()?;
        self.stopped()?;
        if status.success() {
            return Ok(began.elapsed().as_secs_f64());
        }
        Err(Fail::new(format!("this command ended with {status}")))
    }

    /// Runs a command that is not shown; answers what it printed.
    fn says(&self, host: &Host, words: &[&str]) -> Result<String, Fail> {
        self.says_with(host, words, None)
    }

    fn says_with(&self, host: &Host, words: &[&str], input: Option<&str>) -> Result<String, Fail> {
        self.stopped()?;
        let said = host.run_within(words, input, PATIENCE)?;
        if said.ok() {
            return Ok(said.out);
        }
        let text = format!("on {}, `rswarm {}`: {}", host.name, words.join(" "), said.all());
        Err(Fail::new(text))
    }

    fn rows(&self, host: &Host, words: &[&str]) -> Result<Vec<Value>, Fail> {
        let text = self.says(host, words)?;
        let rows: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        rows.map_err(|e| Fail::new(format!("`rswarm {}` printed no JSON: {e}", words.join(" "))))
    }

    fn nodes(&self, asked: &Host) -> Result<BTreeMap<String, Node>, Fail> {
        let rows = self.rows(asked, &["node", "ls", "--format", "json"])?;
        let nodes = rows.iter().map(|row| {
            let node = Node {
                status: text(row, "Status"),
                manager: text(row, "ManagerStatus"),
            };
            (text(row, "Hostname"), node)
        });
        Ok(nodes.collect())
    }

    fn leader(&self, asked: &Host) -> Result<&Host, Fail> {
        let nodes = self.nodes(asked)?;
        let leads = |h: &&Host| nodes.get(&h.name).is_some_and(|n| n.manager == "Leader");
        let found = self.hosts.all().iter().find(leads);
        found.ok_or_else(|| Fail::new("nobody leads the cluster"))
    }

    fn tasks(&self, asked: &Host, service: &str) -> Result<Vec<Task>, Fail> {
        let rows = self.rows(asked, &["service", "ps", "--format", "json", service])?;
        let tasks = rows.iter().map(|row| Task {
            node: text(row, "Node"),
            state: text(row, "CurrentState"),
            desired: text(row, "DesiredState"),
        });
        Ok(tasks.collect())
    }

    /// Name and process of every container that runs on a host.
    fn containers_of(&self, host: &Host) -> Result<BTreeMap<String, u64>, Fail> {
        let rows = self.rows(host, &["ps", "--format", "json"])?;
        Ok((rows.iter())
            .filter_map(|row| Some((text(row, "Names"), row["Pid"].as_u64()?)))
            .collect())
    }

    fn containers(&self) -> Result<BTreeMap<String, u64>, Fail> {
        let mut all = BTreeMap::new();
        for host in self.hosts.all() {
            all.append(&mut self.containers_of(host)?);
        }
        Ok(all)
    }

    /// Looks until `total` are counted, and shows how many are.
    fn waits(
        &self,
        what: &str,
        total: usize,
        mut look: impl FnMut(usize) -> Result<(usize, String), Fail>,
    ) -> Result<(), Fail> {
        let began = Instant::now();
        let mut shown = Shown::new(what, total);
        let mut count = 0;
        loop {
            self.stopped()?;
            let (now, note) = look(count)?;
            count = now;
            shown.set(count, &note);
            if count >= total {
                shown.end(began.elapsed());
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Fail::new(format!(
                    "{what}: {count} of {total} after {PATIENCE:?}; {note}"
                )));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

/// How far something is: a bar on a terminal, a line in the end elsewhere.
struct Shown {
    what: String,
    total: usize,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new(what: &str, total: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("  [{bar:20}] {pos}/{len} {prefix} {elapsed} {wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total as u64).with_style(style.progress_chars("=> "));
            bar.set_prefix(what.to_owned());
            bar
        });
        Self {
            what: what.to_owned(),
            total,
            bar,
        }
    }

    fn set(&mut self, count: usize, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(count as u64);
            bar.set_message(note.to_owned());
            bar.tick();
        }
    }

    fn end(&self, took: Duration) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        line(format!(
            "  {}/{} {} after {:.2} s",
            self.total,
            self.total,
            self.what,
            took.as_secs_f64()
        ));
    }
}
