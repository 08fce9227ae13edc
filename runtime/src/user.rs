//! Who a container runs as: `user[:group]` resolved against the text of its /etc/passwd and /etc/group.

use serde::{Deserialize, Serialize};

/// Docker's bound, and the reason no number can wrap to 0.
const ID_MAX: u32 = i32::MAX as u32;
/// Supplementary groups taken from /etc/group; NGROUPS_MAX is 65,536, a real image has a handful.
const GROUPS_MAX: usize = 256;

/// Why a user cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("E_USER {spec:?}: {rule}")]
pub(crate) struct UserError {
    /// As given.
    pub(crate) spec: String,
    /// What is wrong with it.
    pub(crate) rule: &'static str,
}

/// A user or a group as written: a number or a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Name {
    Number(u32),
    Text(String),
}

/// `user[:group]`, parsed but not looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserSpec {
    pub(crate) user: Name,
    pub(crate) group: Option<Name>,
}

/// The ids a process takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl UserSpec {
    /// Splits and checks; empty is root.
    pub(crate) fn parse(spec: &str) -> Result<Self, UserError> {
        let error = |rule| UserError {
            spec: spec.into(),
            rule,
        };
        let name = |text: &str| -> Result<Name, UserError> {
            // Whatever begins like a number must be one in range, so that no parser down the line wraps it.
            if text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
                let number = text
                    .parse::<u32>()
                    .ok()
                    .filter(|n| *n <= ID_MAX && !text.starts_with('+'));
                return number
                    .map(Name::Number)
                    .ok_or_else(|| error("an id is a number from 0 to 2147483647"));
            }
            let good = !text.is_empty() && text.len() <= 256 && !text.contains(['\0', '\n', ':', '/']);
            if good {
                Ok(Name::Text(text.into()))
            } else {
                Err(error("use user, uid, user:group or uid:gid"))
            }
        };
        if spec.is_empty() {
            return Ok(Self {
                user: Name::Number(0),
                group: None,
            });
        }
        match spec.split_once(':') {
            None => Ok(Self {
                user: name(spec)?,
                group: None,
            }),
            Some((user, group)) => Ok(Self {
                user: name(user)?,
                group: Some(name(group)?),
            }),
        }
    }

    /// Looks the names up. Lines that are not well formed are skipped, never taken as id 0.
    pub(crate) fn resolve(&self, passwd: &str, group: &str) -> Result<User, UserError> {
        let error = |rule| UserError {
            spec: format!("{self:?}"),
            rule,
        };
        let entry = passwd
            .lines()
            .filter_map(PasswdLine::parse)
            .find(|line| match &self.user {
                Name::Number(uid) => line.uid == *uid,
                Name::Text(name) => line.name == name,
            });
        let uid = match (&self.user, &entry) {
            (Name::Number(uid), _) => *uid,
            (Name::Text(_), Some(line)) => line.uid,
            (Name::Text(_), None) => return Err(error("no such user in the container's /etc/passwd")),
        };
        let gid = match &self.group {
            None => entry.as_ref().map_or(0, |line| line.gid),
            Some(Name::Number(gid)) => *gid,
            Some(Name::Text(name)) => group
                .lines()
                .filter_map(GroupLine::parse)
                .find(|line| line.name == name)
                .map(|line| line.gid)
                .ok_or_else(|| error("no such group in the container's /etc/group"))?,
        };
        // An explicit group says exactly what is wanted; otherwise the user's own memberships apply, as at a login.
        let member = entry
            .as_ref()
            .filter(|_| self.group.is_none())
            .map(|line| line.name);
        let groups = group
            .lines()
            .filter_map(GroupLine::parse)
            .filter(|line| member.is_some_and(|name| line.members.split(',').any(|m| m == name)))
            .map(|line| line.gid)
            .take(GROUPS_MAX)
            .collect();
        let home = entry
            .map(|line| line.home)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/");
        Ok(User {
            uid,
            gid,
            groups,
            home: home.into(),
        })
    }
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
        let gid = fields.next()?.parse().ok().filter(|id| *id <= ID_MAX)?;
        Some(Self {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or("/"),
        })
    }
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok().filter(|id| *id <= ID_MAX)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n:x:0:0::/:\n\nbroken:x:abc:0::/:\nbig:x:4294967296:0::/:\n\
                          app:x:1000:1000:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1000:\nwheel:x:10:root,app\nvideo:x:44:app\n";

    #[test]
    fn a_user_resolves_to_exactly_these_ids() {
        type Ids<'a> = (u32, u32, &'a [u32], &'a str);
        let rows: &[(&str, &str, Ids<'_>)] = &[
            ("nothing is root, with root's home", "", (0, 0, &[10], "/root")),
            (
                "a name brings its group, memberships and home",
                "app",
                (1000, 1000, &[10, 44], "/home/app"),
            ),
            (
                "a known number is the same user",
                "1000",
                (1000, 1000, &[10, 44], "/home/app"),
            ),
            (
                "an unknown number gets group 0 and no home",
                "4242",
                (4242, 0, &[], "/"),
            ),
            (
                "an explicit group replaces memberships",
                "app:wheel",
                (1000, 10, &[], "/home/app"),
            ),
            ("numbers need no files", "7:8", (7, 8, &[], "/")),
            ("the largest id", "2147483647", (2_147_483_647, 0, &[], "/")),
        ];
        for (name, spec, (uid, gid, groups, home)) in rows {
            let user = UserSpec::parse(spec).unwrap().resolve(PASSWD, GROUP).unwrap();
            let expected = User {
                uid: *uid,
                gid: *gid,
                groups: groups.to_vec(),
                home: (*home).into(),
            };
            assert_eq!(user, expected, "{name}");
        }
    }

    #[test]
    fn nothing_odd_becomes_root() {
        for bad in [
            "4294967296",
            "2147483648",
            "-1",
            "+0",
            "root:0:0",
            ":",
            "a:",
            ":0",
            "0x0",
            "1e3",
            "a\nb",
            "a/b",
        ] {
            assert!(UserSpec::parse(bad).is_err(), "{bad:?}");
        }
        for absent in ["nobody", "broken", "big", "app:nogroup"] {
            assert!(
                UserSpec::parse(absent).unwrap().resolve(PASSWD, GROUP).is_err(),
                "{absent:?}"
            );
        }
    }
}
