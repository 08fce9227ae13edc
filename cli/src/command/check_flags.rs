//! Flags of health and readiness checks, and of hooks.

use deploy::check::{parse_http, parse_port};
use model::spec::{ContainerSpec, Healthcheck, Hook, NetProbe};

use super::service_flags::{set, time};
use crate::client::Fail;

/// How a task is seen to be healthy, and ready.
#[derive(clap::Args, Default)]
pub(crate) struct CheckArgs {
    #[arg(long, group = "health-way")]
    health_cmd: Option<String>,
    /// A GET that is sent to the task's port must be answered with 200 to 399: PORT[/PATH].
    #[arg(long, group = "health-way", value_name = "PORT[/PATH]")]
    health_http: Option<String>,
    /// The task's port must accept a connection.
    #[arg(long, group = "health-way", value_name = "PORT")]
    health_tcp: Option<String>,
    #[arg(long)]
    health_interval: Option<String>,
    #[arg(long)]
    health_timeout: Option<String>,
    #[arg(long)]
    health_retries: Option<u32>,
    #[arg(long)]
    health_start_period: Option<String>,
    #[arg(long)]
    health_start_interval: Option<String>,
    #[arg(long)]
    no_healthcheck: bool,
    /// A task gets no connections while this command fails in it; it goes on running.
    #[arg(long, group = "ready-way")]
    ready_cmd: Option<String>,
    /// The same while a GET is not answered with 200 to 399.
    #[arg(long, group = "ready-way", value_name = "PORT[/PATH]")]
    ready_http: Option<String>,
    /// The same while the port accepts no connection.
    #[arg(long, group = "ready-way", value_name = "PORT")]
    ready_tcp: Option<String>,
    /// Time between two looks whether it is ready (default 5s).
    #[arg(long)]
    ready_interval: Option<String>,
    /// Longest time of one look (default 5s).
    #[arg(long)]
    ready_timeout: Option<String>,
    /// Failures in a row that take it out (default 3).
    #[arg(long)]
    ready_retries: Option<u32>,
    /// Time between two looks until it is ready for the first time (default 1s).
    #[arg(long)]
    ready_start_interval: Option<String>,
    /// Take the readiness check away: a task is ready while it is healthy.
    #[arg(long, conflicts_with = "ready-way")]
    no_readiness: bool,
    /// Command for the shell that runs before each task, in a container like it; several run in order. They take the place of
    /// those before; an empty text takes them away.
    #[arg(long)]
    pre_start_cmd: Vec<String>,
    /// The same in the task after its start, before it is checked.
    #[arg(long)]
    post_start_cmd: Vec<String>,
    /// The same before it is asked to stop, within its grace.
    #[arg(long)]
    pre_stop_cmd: Vec<String>,
}

/// The flags of one of the two.
struct Flags<'a> {
    name: &'a str,
    cmd: &'a Option<String>,
    http: &'a Option<String>,
    tcp: &'a Option<String>,
    retries: Option<u32>,
    times: [(&'a str, &'a Option<String>); 4],
}

impl Flags<'_> {
    fn apply(&self, check: &mut Option<Healthcheck>) -> Result<(), Fail> {
        let net = match (self.http, self.tcp) {
            (Some(text), _) => Some(parse_http(text).map_err(|e| self.wrong("http", &e))?),
            (None, Some(text)) => {
                let port = parse_port(text).map_err(|e| self.wrong("tcp", &e))?;
                Some(NetProbe::Tcp { port })
            }
            (None, None) => None,
        };
        let timed = self.retries.is_some() || self.times.iter().any(|(_, t)| t.is_some());
        if self.cmd.is_none() && net.is_none() && !timed {
            return Ok(());
        }
        let h = check.get_or_insert_default();
        // Another way takes the place of the one before.
        if let Some(command) = self.cmd {
            (h.test, h.net) = (vec!["CMD-SHELL".into(), command.clone()], None);
        } else if net.is_some() {
            (h.test, h.net) = (Vec::new(), net);
        }
        set(&self.retries, &mut h.retries);
        let places = [
            &mut h.interval,
            &mut h.timeout,
            &mut h.start_period,
            &mut h.start_interval,
        ];
        for ((flag, given), place) in self.times.iter().zip(places) {
            time(&format!("{}-{flag}", self.name), given.as_ref(), place)?;
        }
        Ok(())
    }

    fn wrong(&self, flag: &str, problem: &str) -> Fail {
        Fail::new(format!("--{}-{flag}: {problem}", self.name))
    }
}

impl CheckArgs {
    /// Puts what was given into a spec; the rest stays.
    pub(super) fn apply(&self, c: &mut ContainerSpec) -> Result<(), Fail> {
        if self.no_healthcheck {
            c.healthcheck = Some(Healthcheck {
                test: vec!["NONE".into()],
                ..Healthcheck::default()
            });
        } else {
            let health = Flags {
                name: "health",
                cmd: &self.health_cmd,
                http: &self.health_http,
                tcp: &self.health_tcp,
                retries: self.health_retries,
                times: [
                    ("interval", &self.health_interval),
                    ("timeout", &self.health_timeout),
                    ("start-period", &self.health_start_period),
                    ("start-interval", &self.health_start_interval),
                ],
            };
            health.apply(&mut c.healthcheck)?;
        }
        if self.no_readiness {
            c.readiness = None;
        }
        let ready = Flags {
            name: "ready",
            cmd: &self.ready_cmd,
            http: &self.ready_http,
            tcp: &self.ready_tcp,
            retries: self.ready_retries,
            times: [
                ("interval", &self.ready_interval),
                ("timeout", &self.ready_timeout),
                ("start-period", &None),
                ("start-interval", &self.ready_start_interval),
            ],
        };
        ready.apply(&mut c.readiness)?;
        hooks(&self.pre_start_cmd, &mut c.pre_start);
        hooks(&self.post_start_cmd, &mut c.post_start);
        hooks(&self.pre_stop_cmd, &mut c.pre_stop);
        Ok(())
    }
}

fn hooks(given: &[String], into: &mut Vec<Hook>) {
    if given.is_empty() {
        return;
    }
    let shell = |text: &String| Hook {
        command: vec!["/bin/sh".into(), "-c".into(), text.clone()],
        ..Hook::default()
    };
    *into = given.iter().filter(|text| !text.is_empty()).map(shell).collect();
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        checks: CheckArgs,
    }

    fn typed(line: &str, c: &mut ContainerSpec) -> Result<(), String> {
        let words = shlex::split(line).expect("closed quotes");
        let line =
            Line::try_parse_from(["x".to_owned()].into_iter().chain(words)).map_err(|e| e.to_string())?;
        line.checks.apply(c).map_err(|e| e.message)
    }

    #[test]
    fn one_way_takes_the_place_of_another_and_times_stay() {
        let mut c = ContainerSpec::default();
        typed(
            "--health-cmd 'ask me' --health-interval 2s --ready-tcp 80 --ready-retries 1",
            &mut c,
        )
        .unwrap();
        typed("--health-http 8080/live --ready-timeout 1s", &mut c).unwrap();
        let health = c.healthcheck.clone().expect("a check");
        assert_eq!((health.test.len(), health.interval.as_secs()), (0, 2));
        assert!(matches!(health.net, Some(NetProbe::Http { port: 8080, ref path, .. }) if path == "/live"));
        let ready = c.readiness.clone().expect("a check");
        assert_eq!(ready.net, Some(NetProbe::Tcp { port: 80 }));
        assert_eq!((ready.retries, ready.timeout.as_secs()), (1, 1));
        typed("--health-cmd again", &mut c).unwrap();
        let again = c.healthcheck.clone().expect("a check");
        assert_eq!((again.test[1].as_str(), again.net), ("again", None));
        typed("--no-healthcheck --no-readiness", &mut c).unwrap();
        assert!(c.healthcheck.is_some_and(|h| h.is_none()) && c.readiness.is_none());
    }

    #[test]
    fn hooks_take_the_place_of_those_before() {
        let mut c = ContainerSpec::default();
        let commands = |hooks: &[Hook]| hooks.iter().map(|h| h.command[2].clone()).collect::<Vec<_>>();
        typed("--pre-start-cmd 'a b' --pre-start-cmd c --pre-stop-cmd d", &mut c).unwrap();
        typed("--post-start-cmd e --health-tcp 80", &mut c).unwrap();
        assert_eq!(commands(&c.pre_start), ["a b", "c"]);
        assert_eq!(
            (commands(&c.post_start), commands(&c.pre_stop)),
            (vec!["e".into()], vec!["d".into()])
        );
        typed("--pre-start-cmd f --pre-stop-cmd ''", &mut c).unwrap();
        assert_eq!(
            (commands(&c.pre_start), c.pre_stop),
            (vec!["f".into()], Vec::new())
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (line, part) in [
            ("--health-cmd x --health-tcp 80", "cannot be used with"),
            ("--ready-http 80 --ready-tcp 80", "cannot be used with"),
            ("--no-readiness --ready-tcp 80", "cannot be used with"),
            ("--ready-tcp 0", "--ready-tcp: \"0\" is no port"),
            ("--health-http x/y", "--health-http: x/y"),
            ("--ready-interval soon", "ready-interval"),
        ] {
            let said = typed(line, &mut ContainerSpec::default()).expect_err(line);
            assert!(said.contains(part), "{line}: {said}");
        }
    }
}
