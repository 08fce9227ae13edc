//! A cluster of the real binary on hosts of one machine, and what an operator asks it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hosts::{Host, Hosts, Said};
use libtest_mimic::Failed;
use serde_json::Value;

/// How long anything may take that has no bound of its own: the machine of a test may be busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What daemons log.
const LOG: &str = "info,openraft=error";

pub(crate) type Outcome = Result<(), Failed>;

/// Hosts, and the cluster on them.
pub(crate) struct Bed {
    pub(crate) hosts: Hosts,
}

/// A row of `node ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) manager: String,
}

/// A row of `service ps`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) desired: String,
    pub(crate) state: String,
}

pub(crate) fn fail<T>(text: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::from(text.into()))
}

/// What a failure says.
pub(crate) fn text_of(failed: &Failed) -> String {
    failed.message().unwrap_or("no reason").to_owned()
}

/// Fails unless two things are the same.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Outcome {
    if got == want {
        Ok(())
    } else {
        fail(format!("{what}: got {got:?}, want {want:?}"))
    }
}

/// Fails unless a text has a part.
pub(crate) fn contains(text: &str, part: &str) -> Outcome {
    if text.contains(part) {
        Ok(())
    } else {
        fail(format!("no \"{part}\" in:\n{text}"))
    }
}

/// Fails when something took longer than promised; says how long it took.
pub(crate) fn within(what: &str, took: Duration, limit: Duration) -> Outcome {
    println!("    {what}: {:.2} s (bound {limit:?})", took.as_secs_f64());
    if took <= limit {
        Ok(())
    } else {
        fail(format!("{what} took {took:.1?}, which is more than {limit:?}"))
    }
}

/// Looks until it is so; answers how long that took.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Result<(), String>, Failed>,
) -> Result<Duration, Failed> {
    let began = Instant::now();
    loop {
        match look()? {
            Ok(()) => return Ok(began.elapsed()),
            Err(now) if began.elapsed() > limit => {
                return fail(format!("{what}: not after {limit:?}; it is so: {now}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

/// For [`until`]: whether two things are the same, and what they are when not.
pub(crate) fn is<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), String> {
    if got == want {
        Ok(())
    } else {
        Err(format!("{got:?}, not {want:?}"))
    }
}

impl Bed {
    /// Hosts whose daemons run and are in no cluster.
    pub(crate) fn hosts(count: u8) -> Result<Self, Failed> {
        let hosts = Hosts::make(Path::new(env!("CARGO_BIN_EXE_rswarm")), count, LOG)?;
        Ok(Self { hosts })
    }

    /// Makes them a cluster: managers first, then workers, all Ready, with the image `web:v1`.
    pub(crate) fn form(&self, managers: u8, workers: u8) -> Outcome {
        self.ok(1, "swarm init")?;
        let token = |role: &str| self.ok(1, &format!("swarm join-token -q {role}"));
        let (manager, worker) = (token("manager")?, token("worker")?);
        for number in 2..=managers + workers {
            let token = if number <= managers { &manager } else { &worker };
            self.join(number, token.trim())?;
        }
        self.settled(managers, workers)?;
        self.load_images()
    }

    /// Joins through the first host, by token.
    pub(crate) fn join(&self, number: u8, token: &str) -> Result<String, Failed> {
        self.ok(
            number,
            &format!("swarm join --token {token} {}", self.host(1).peer()),
        )
    }

    /// Waits until every node is Ready and every manager takes part.
    pub(crate) fn settled(&self, managers: u8, workers: u8) -> Outcome {
        let one = self.up()?.number;
        until("the cluster stands", PATIENCE, || {
            let nodes = match self.nodes(one) {
                Ok(nodes) => nodes,
                Err(not_yet) => return Ok(Err(text_of(&not_yet))),
            };
            let ready = nodes.values().filter(|n| n.status == "Ready").count();
            let votes = |n: &&Node| matches!(n.manager.as_str(), "Leader" | "Reachable");
            let voters = nodes.values().filter(votes).count();
            let want = (usize::from(managers + workers), usize::from(managers));
            Ok(is((ready, voters), want).map_err(|e| format!("{e}: {nodes:?}")))
        })?;
        Ok(())
    }

    /// Waits until these are the managers and so many others are workers, all Ready.
    pub(crate) fn settled_as(&self, asked: u8, managers: &[&str], workers: usize) -> Outcome {
        until("the managers are as wanted", PATIENCE, || {
            let nodes = match self.nodes(asked) {
                Ok(nodes) => nodes,
                Err(not_yet) => return Ok(Err(text_of(&not_yet))),
            };
            let votes = |n: &Node| matches!(n.manager.as_str(), "Leader" | "Reachable");
            let voters: Vec<&str> = nodes
                .iter()
                .filter(|(_, n)| votes(n))
                .map(|(h, _)| h.as_str())
                .collect();
            let rest = nodes
                .values()
                .filter(|n| n.manager.is_empty() && n.status == "Ready")
                .count();
            Ok(is((voters.as_slice(), rest), (managers, workers)).map_err(|e| format!("{e}: {nodes:?}")))
        })?;
        Ok(())
    }

    /// Makes `web:v1` on every host.
    pub(crate) fn load_images(&self) -> Outcome {
        let image = self.hosts.dir().join("image");
        fs::create_dir_all(image.join("bin"))?;
        fs::create_dir_all(image.join("www"))?;
        fs::copy("/bin/busybox", image.join("bin/busybox"))?;
        for applet in ["sh", "sleep", "cat", "httpd", "wget", "nslookup"] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(applet))?;
        }
        fs::write(image.join("www/index.html"), "hello\n")?;
        let text = "FROM scratch\nCOPY bin /bin\nCOPY www /www\nSTOPSIGNAL SIGKILL\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";
        fs::write(image.join("Dockerfile"), text)?;
        for host in self.hosts.all() {
            self.ok(
                host.number,
                &format!("image build -q -t web:v1 {}", image.display()),
            )?;
        }
        Ok(())
    }

    pub(crate) fn host(&self, number: u8) -> &Host {
        self.hosts.host(number)
    }

    /// A host whose daemon runs, the first of them.
    pub(crate) fn up(&self) -> Result<&Host, Failed> {
        let mut hosts = self.hosts.all().iter();
        Ok(hosts.find(|h| h.is_up()).ok_or("no daemon runs")?)
    }

    /// Types a line on a host.
    pub(crate) fn types(&self, number: u8, line: &str) -> Result<Said, Failed> {
        let words = shlex::split(line).ok_or("a quote is not closed")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(self.host(number).run(&words)?)
    }

    /// Types what must succeed; answers what it printed.
    pub(crate) fn ok(&self, number: u8, line: &str) -> Result<String, Failed> {
        let said = self.types(number, line)?;
        if said.ok() {
            Ok(said.out)
        } else {
            fail(format!("on h{number}, `rswarm {line}`:\n{}", said.all()))
        }
    }

    /// Types what must be refused with words that help, within a time; answers all it said.
    pub(crate) fn refused(&self, number: u8, line: &str, part: &str) -> Result<Said, Failed> {
        let said = self.types(number, line)?;
        let text = said.all();
        if said.code == Some(1) && text.contains(part) && !text.contains("panicked") {
            Ok(said)
        } else {
            fail(format!(
                "on h{number}, `rswarm {line}` was to be refused with \"{part}\":\n{text}"
            ))
        }
    }

    fn rows(&self, number: u8, line: &str) -> Result<Vec<Value>, Failed> {
        let text = self.ok(number, line)?;
        let rows = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        Ok(rows.map_err(|e| format!("`rswarm {line}` printed no JSON ({e}):\n{text}"))?)
    }

    /// `node ls`, by host; of several nodes of one host the one that is Ready.
    pub(crate) fn nodes(&self, number: u8) -> Result<BTreeMap<String, Node>, Failed> {
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        for row in self.rows(number, "node ls --format json")? {
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let node = Node {
                id: text("ID"),
                status: text("Status"),
                manager: text("ManagerStatus"),
            };
            let known = nodes.get(&text("Hostname"));
            if known.is_none_or(|k| k.status != "Ready") {
                nodes.insert(text("Hostname"), node);
            }
        }
        Ok(nodes)
    }

    /// The host that leads, as another one says.
    pub(crate) fn leader_by(&self, number: u8) -> Result<Option<&Host>, Failed> {
        let nodes = self.nodes(number)?;
        let leads = nodes.iter().find(|(_, n)| n.manager == "Leader");
        Ok(leads.and_then(|(name, _)| self.hosts.all().iter().find(|h| h.name == *name)))
    }

    /// The host that leads.
    pub(crate) fn leader(&self) -> Result<&Host, Failed> {
        let one = self.up()?.number;
        let mut found = None;
        until("somebody leads", PATIENCE, || {
            found = match self.leader_by(one) {
                Ok(found) => found,
                Err(not_yet) => return Ok(Err(text_of(&not_yet))),
            };
            Ok(found.map(drop).ok_or_else(|| "nobody".to_owned()))
        })?;
        Ok(found.ok_or("nobody leads")?)
    }

    /// Managers beside the leader, first those with the lowest number.
    pub(crate) fn followers(&self, managers: u8) -> Result<Vec<&Host>, Failed> {
        let leader = self.leader()?.number;
        let others = self
            .hosts
            .all()
            .iter()
            .filter(|h| h.number <= managers && h.number != leader);
        Ok(others.collect())
    }

    /// Tasks of a service, all that are known.
    pub(crate) fn tasks(&self, number: u8, service: &str) -> Result<Vec<Task>, Failed> {
        let rows = self.rows(number, &format!("service ps --format json {service}"))?;
        let mut tasks: Vec<Task> = (rows.iter())
            .map(|row| {
                let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
                let state = text("CurrentState");
                Task {
                    id: text("ID"),
                    name: text("Name"),
                    node: text("Node"),
                    desired: text("DesiredState"),
                    state: state.split(' ').next().unwrap_or_default().to_owned(),
                }
            })
            .collect();
        tasks.sort();
        Ok(tasks)
    }

    /// Tasks of a service that run and are to.
    pub(crate) fn running(&self, number: u8, service: &str) -> Result<Vec<Task>, Failed> {
        let mut tasks = self.tasks(number, service)?;
        tasks.retain(|t| t.state == "Running" && t.desired == "Running");
        Ok(tasks)
    }

    /// Waits until so many tasks of a service run; answers them and how long it took.
    pub(crate) fn runs(&self, number: u8, service: &str, count: usize) -> Result<Vec<Task>, Failed> {
        let mut found = Vec::new();
        until(&format!("{count} tasks of {service} run"), PATIENCE, || {
            found = self.running(number, service)?;
            Ok(is(found.len(), count))
        })?;
        Ok(found)
    }

    /// Names and processes of containers that run on a host, of tasks whose names begin so.
    pub(crate) fn containers(&self, number: u8, name: &str) -> Result<BTreeMap<String, u64>, Failed> {
        let rows = self.rows(number, "ps --format json")?;
        let pairs = rows
            .iter()
            .filter_map(|row| Some((row["Names"].as_str()?.to_owned(), row["Pid"].as_u64()?)));
        Ok(pairs.filter(|(n, _)| n.starts_with(name)).collect())
    }

    /// Containers of all hosts, by name: their processes. None may change without a reason.
    pub(crate) fn all_containers(&self, name: &str) -> Result<BTreeMap<String, u64>, Failed> {
        let mut all = BTreeMap::new();
        for host in self.hosts.all().iter().filter(|h| h.is_up()) {
            all.append(&mut self.containers(host.number, name)?);
        }
        Ok(all)
    }

    /// Ends with everything gone; fails when something withstands.
    pub(crate) fn end(self) -> Outcome {
        let left = self.hosts.end();
        if left.is_empty() {
            Ok(())
        } else {
            fail(format!("left behind: {left:#?}"))
        }
    }

    /// What daemons logged last.
    pub(crate) fn logs(&self) -> String {
        let logs = self
            .hosts
            .all()
            .iter()
            .map(|h| format!("-- {} logged last:\n{}\n", h.name, h.log()));
        logs.collect()
    }
}
