//! Health and readiness checks, and hooks.

use std::time::Duration;

use model::spec as m;

use super::{WireError, nanos, small};
use crate::types as w;

impl From<&m::Healthcheck> for w::Healthcheck {
    fn from(h: &m::Healthcheck) -> Self {
        Self {
            test: h.test.clone(),
            interval_ns: nanos(h.interval),
            timeout_ns: nanos(h.timeout),
            retries: h.retries,
            start_period_ns: nanos(h.start_period),
            start_interval_ns: nanos(h.start_interval),
            net: h.net.as_ref().map(|net| match net {
                m::NetProbe::Http { port, path, status } => w::healthcheck::Net::Http(w::HttpProbe {
                    port: (*port).into(),
                    path: path.clone(),
                    status_first: (*status.start()).into(),
                    status_last: (*status.end()).into(),
                }),
                m::NetProbe::Tcp { port } => w::healthcheck::Net::Tcp((*port).into()),
            }),
        }
    }
}

impl TryFrom<w::Healthcheck> for m::Healthcheck {
    type Error = WireError;
    fn try_from(h: w::Healthcheck) -> Result<Self, WireError> {
        let net = |net| {
            Ok(match net {
                w::healthcheck::Net::Http(http) => m::NetProbe::Http {
                    port: small(http.port, "healthcheck.http.port")?,
                    path: http.path,
                    status: small(http.status_first, "healthcheck.http.status_first")?
                        ..=small(http.status_last, "healthcheck.http.status_last")?,
                },
                w::healthcheck::Net::Tcp(port) => m::NetProbe::Tcp {
                    port: small(port, "healthcheck.tcp")?,
                },
            })
        };
        Ok(Self {
            test: h.test,
            net: h.net.map(net).transpose()?,
            interval: Duration::from_nanos(h.interval_ns),
            timeout: Duration::from_nanos(h.timeout_ns),
            retries: h.retries,
            start_period: Duration::from_nanos(h.start_period_ns),
            start_interval: Duration::from_nanos(h.start_interval_ns),
        })
    }
}

impl From<&m::Hook> for w::Hook {
    fn from(h: &m::Hook) -> Self {
        Self {
            command: h.command.clone(),
            user: h.user.clone(),
            dir: h.dir.clone(),
            env: h.env.clone(),
        }
    }
}

impl From<w::Hook> for m::Hook {
    fn from(h: w::Hook) -> Self {
        Self {
            command: h.command,
            user: h.user,
            dir: h.dir,
            env: h.env,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_survive_the_wire() {
        let hook = |word: &str| m::Hook {
            command: vec![word.into(), "x".into()],
            user: "1000".into(),
            dir: "/w".into(),
            env: vec!["A=b".into()],
        };
        let spec = m::ContainerSpec {
            pre_start: vec![hook("first"), hook("second")],
            post_start: vec![hook("after")],
            pre_stop: vec![hook("before")],
            ..m::ContainerSpec::default()
        };
        assert_eq!(
            m::ContainerSpec::try_from(w::ContainerSpec::from(&spec)),
            Ok(spec)
        );
    }

    #[test]
    fn checks_survive_the_wire() {
        let http = m::NetProbe::Http {
            port: 8080,
            path: "/ready?deep=1".into(),
            status: 200..=204,
        };
        for net in [None, Some(http), Some(m::NetProbe::Tcp { port: 5432 })] {
            let check = m::Healthcheck {
                test: vec!["CMD".into(), "x".into()],
                net,
                interval: Duration::from_millis(1),
                timeout: Duration::from_millis(2),
                retries: 3,
                start_period: Duration::from_millis(4),
                start_interval: Duration::from_millis(5),
            };
            assert_eq!(m::Healthcheck::try_from(w::Healthcheck::from(&check)), Ok(check));
        }
        let large = w::Healthcheck {
            net: Some(w::healthcheck::Net::Tcp(65_536)),
            ..w::Healthcheck::default()
        };
        assert!(m::Healthcheck::try_from(large).is_err());
    }
}
