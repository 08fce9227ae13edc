//! Whether the checks and hooks of a container can be carried out, and which hosts know of them.

use std::time::Duration;

use model::spec::{ContainerSpec, HOOKS_MAX, Healthcheck, Hook, NetProbe, PROBE_PATH_MAX};
use model::units::format_duration;

use super::validate::duration;

/// Shortest time of any knob of a check.
const TIME_MIN: Duration = Duration::from_millis(1);

/// Checks health, readiness and hooks.
///
/// # Errors
/// One sentence that says what is wrong.
pub(super) fn check(c: &ContainerSpec) -> Result<(), String> {
    for (kind, hooks) in kinds(c) {
        if hooks.len() > HOOKS_MAX {
            return Err(format!("more than {HOOKS_MAX} hooks {kind}"));
        }
        hooks.iter().try_for_each(|hook| command(kind, hook))?;
    }
    if let Some(h) = &c.healthcheck {
        one("health", h)?;
    }
    let Some(r) = &c.readiness else { return Ok(()) };
    one("readiness", r)?;
    if !r.asks() {
        return Err(
            "the readiness check has nothing to ask: give it a test, http or tcp, or leave it out: then a task is ready \
             while it is healthy"
                .into(),
        );
    }
    if !r.start_period.is_zero() {
        return Err(
            "the readiness check has a start period: a task that was not ready yet has none to lose".into(),
        );
    }
    Ok(())
}

fn kinds(c: &ContainerSpec) -> [(&'static str, &[Hook]); 3] {
    [
        ("pre_start", &c.pre_start),
        ("post_start", &c.post_start),
        ("pre_stop", &c.pre_stop),
    ]
}

/// Most bytes of the words of one hook: all of them are in each task's spec.
const HOOK_WORDS_MAX: usize = 64 << 10;

fn command(kind: &str, hook: &Hook) -> Result<(), String> {
    if hook.command.first().is_none_or(String::is_empty) {
        return Err(format!("a hook {kind} has no command"));
    }
    let words = || {
        hook.command
            .iter()
            .chain(&hook.env)
            .chain([&hook.user, &hook.dir])
    };
    if words().map(|w| w.len() + 1).sum::<usize>() > HOOK_WORDS_MAX {
        return Err(format!("a hook {kind} has more than {HOOK_WORDS_MAX} bytes"));
    }
    if words().any(|w| w.contains('\0')) {
        return Err(format!("a hook {kind} must not hold a NUL byte"));
    }
    if let Some(nameless) = hook
        .env
        .iter()
        .find(|e| e.split('=').next().is_none_or(str::is_empty))
    {
        return Err(format!(
            "the environment entry \"{nameless}\" of a hook {kind} has no name: write NAME=VALUE"
        ));
    }
    if !hook.dir.is_empty() && !hook.dir.starts_with('/') {
        return Err(format!(
            "the working directory {} of a hook {kind} must be an absolute path",
            hook.dir
        ));
    }
    Ok(())
}

fn one(kind: &str, h: &Healthcheck) -> Result<(), String> {
    for (name, d) in [
        ("interval", h.interval),
        ("timeout", h.timeout),
        ("start period", h.start_period),
        ("start interval", h.start_interval),
    ] {
        let name = format!("{kind} {name}");
        duration(&name, d)?;
        if !d.is_zero() && d < TIME_MIN {
            return Err(format!(
                "{name} {} is too short: at least 1ms",
                format_duration(d)
            ));
        }
    }
    match h.test.first().map(String::as_str) {
        None | Some("NONE" | "CMD" | "CMD-SHELL") => {}
        Some(other) => {
            return Err(format!(
                "a {kind} test begins with NONE, CMD or CMD-SHELL, not {other}"
            ));
        }
    }
    match &h.net {
        None => Ok(()),
        Some(_) if !h.test.is_empty() => Err(format!(
            "the {kind} check has a test and a probe over the network: it is one of test, http and tcp"
        )),
        Some(net) => probe(kind, net),
    }
}

fn probe(kind: &str, net: &NetProbe) -> Result<(), String> {
    let (NetProbe::Http { port, .. } | NetProbe::Tcp { port }) = net;
    if *port == 0 {
        return Err(format!("the {kind} check asks port 0: it must be 1 to 65535"));
    }
    let NetProbe::Http { path, status, .. } = net else {
        return Ok(());
    };
    if !path.starts_with('/') {
        return Err(format!(
            "the path \"{path}\" of the {kind} check must begin with /"
        ));
    }
    if path.len() > PROBE_PATH_MAX {
        return Err(format!(
            "the path of the {kind} check has more than {PROBE_PATH_MAX} bytes"
        ));
    }
    if let Some(bad) = path.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!(
            "the path of the {kind} check has {bad:?}: write it as it goes over the wire, such as %20 for a space"
        ));
    }
    if status.is_empty() || *status.start() < 100 || *status.end() > 599 {
        return Err(format!(
            "the {kind} check wants a status from {} to {}: statuses go from 100 to 599",
            status.start(),
            status.end()
        ));
    }
    Ok(())
}

/// What hosts of an older build would get wrong of a container, and what they would do; none: they know all of it.
pub(super) fn unknown(c: &ContainerSpec) -> Option<(&'static str, &'static str)> {
    if c.readiness.is_some() {
        return Some(("readiness", "send connections to tasks that are not ready"));
    }
    if kinds(c).iter().any(|(_, hooks)| !hooks.is_empty()) {
        return Some(("hooks", "not run them"));
    }
    let net = c.healthcheck.as_ref().is_some_and(|h| h.net.is_some());
    net.then_some(("healthcheck by http or tcp", "check nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(path: &str, first: u16, last: u16) -> Healthcheck {
        Healthcheck {
            net: Some(NetProbe::Http {
                port: 80,
                path: path.into(),
                status: first..=last,
            }),
            ..Healthcheck::default()
        }
    }

    fn with(edit: impl FnOnce(&mut Healthcheck)) -> Healthcheck {
        let mut check = http("/", 200, 399);
        edit(&mut check);
        check
    }

    #[test]
    fn a_check_asks_one_thing_in_one_way() {
        let long = format!("/{}", "x".repeat(PROBE_PATH_MAX));
        let tcp = |port| Healthcheck {
            net: Some(NetProbe::Tcp { port }),
            ..Healthcheck::default()
        };
        for (check, wrong) in [
            (http("/ready?a=b", 200, 200), None),
            (http(&long[1..], 200, 200), Some("must begin with /")),
            (http(&long[..PROBE_PATH_MAX], 100, 599), None),
            (http(&long, 200, 200), Some("more than 2048 bytes")),
            (http("/a b", 200, 200), Some("has ' '")),
            (http("/\r\nX: y", 200, 200), Some("has '\\r'")),
            (http("/", 99, 200), Some("from 99 to 200")),
            (http("/", 200, 600), Some("from 200 to 600")),
            (http("/", 300, 200), Some("from 300 to 200")),
            (tcp(1), None),
            (tcp(0), Some("port 0")),
            (
                with(|h| h.test = vec!["CMD".into(), "x".into()]),
                Some("one of test, http and tcp"),
            ),
            (
                with(|h| h.timeout = Duration::from_micros(999)),
                Some("too short"),
            ),
            (with(|h| h.start_interval = TIME_MIN), None),
        ] {
            for readiness in [false, true] {
                let mut c = ContainerSpec::default();
                let place = if readiness {
                    &mut c.readiness
                } else {
                    &mut c.healthcheck
                };
                *place = Some(check.clone());
                match (super::check(&c), wrong) {
                    (Ok(()), None) => {}
                    (Err(said), Some(part)) => assert!(said.contains(part), "{said}"),
                    (said, _) => panic!("{check:?}: {said:?}"),
                }
            }
        }
    }

    #[test]
    fn hooks_have_a_command_and_bounds() {
        let hook = |edit: fn(&mut Hook)| {
            let mut hook = Hook {
                command: vec!["x".into()],
                ..Hook::default()
            };
            edit(&mut hook);
            hook
        };
        let well = || hook(|_| {});
        for (hooks, wrong) in [
            (vec![well(); HOOKS_MAX], None),
            (vec![well(); HOOKS_MAX + 1], Some("more than 16 hooks")),
            (vec![hook(|h| h.command.clear())], Some("no command")),
            (vec![well(), hook(|h| h.command[0].clear())], Some("no command")),
            (vec![hook(|h| h.dir = "w".into())], Some("absolute path")),
            (vec![hook(|h| h.env = vec!["=x".into()])], Some("has no name")),
            (vec![hook(|h| h.user = "a\0".into())], Some("NUL")),
            (
                vec![hook(|h| h.command[0] = "x".repeat(HOOK_WORDS_MAX - 3))],
                None,
            ),
            (
                vec![hook(|h| h.command[0] = "x".repeat(HOOK_WORDS_MAX))],
                Some("more than 65536 bytes"),
            ),
        ] {
            for kind in 0..3 {
                let mut c = ContainerSpec::default();
                *[&mut c.pre_start, &mut c.post_start, &mut c.pre_stop][kind] = hooks.clone();
                let said = super::check(&c).err().unwrap_or_default();
                assert_eq!(said.is_empty(), wrong.is_none(), "{said}");
                assert!(said.contains(wrong.unwrap_or_default()), "{said}");
                assert!(super::unknown(&c).is_some());
            }
        }
    }

    #[test]
    fn readiness_must_ask_and_has_no_start_period() {
        let test = |words: &[&str]| Healthcheck {
            test: words.iter().map(|w| (*w).to_owned()).collect(),
            ..Healthcheck::default()
        };
        for (check, wrong) in [
            (test(&["CMD", "x"]), None),
            (test(&["NONE"]), Some("nothing to ask")),
            (test(&[]), Some("nothing to ask")),
            (test(&["CMD"]), Some("nothing to ask")),
            (with(|h| h.start_period = TIME_MIN), Some("start period")),
        ] {
            let c = ContainerSpec {
                readiness: Some(check.clone()),
                ..ContainerSpec::default()
            };
            let said = super::check(&c).err().unwrap_or_default();
            assert_eq!(said.is_empty(), wrong.is_none(), "{check:?}: {said}");
            assert!(said.contains(wrong.unwrap_or_default()), "{said}");
        }
    }
}
