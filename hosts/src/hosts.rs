//! All hosts of one test or demo: made together, cut apart, and gone without a trace.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use net::{NetError, Wire};

use crate::host::Host;
use crate::remains::Remains;

/// Most hosts: their names stay within the eight characters of a dataplane's.
const HOSTS_MAX: u8 = 99;
/// Number of the host on the same wire that has no daemon, and is never cut off.
const OUTSIDE: u8 = 200;
/// What folders of hosts are called; the process that made them and their id follow.
const PREFIX: &str = "rswarm-hosts-";
/// Characters of an id, which with two digits of a number is a dataplane's name.
const ID_LEN: usize = 6;

/// Why hosts are not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A step failed.
    #[error("{what}: {source}")]
    Step {
        /// What was attempted, on what.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The network between them.
    #[error("{0}: {reason}", reason = cause(.0))]
    Net(#[from] NetError),
    /// A daemon does not answer.
    #[error("the daemon of {host} does not answer; it logged last:\n{log}")]
    Silent {
        /// Whose.
        host: String,
        /// Its last lines.
        log: String,
    },
}

fn cause(error: &NetError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}

pub(crate) fn step<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, HostsError> {
    result.map_err(|source| HostsError::Step {
        what: what.into(),
        source,
    })
}

/// Hosts on one wire. Dropped, also after a panic, they take everything of theirs with them.
#[derive(Debug)]
pub struct Hosts {
    dir: PathBuf,
    id: String,
    hosts: Vec<Host>,
    wire: Mutex<Option<Wire>>,
}

impl Hosts {
    /// Makes hosts 1 to `count` and starts a daemon on each; `log` is what they log.
    ///
    /// # Errors
    /// [`HostsError`] with the step that failed; nothing is left then.
    pub fn make(exe: &Path, count: u8, log: &str) -> Result<Self, HostsError> {
        sweep_the_dead();
        let id = fresh_id()?;
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}-{id}", std::process::id()));
        let what = format!("make the folder {}", dir.display());
        step(what, DirBuilder::new().mode(0o711).create(&dir))?;
        let mut hosts = Self {
            dir,
            id,
            hosts: Vec::new(),
            wire: Mutex::default(),
        };
        let mut wire = Wire::make(&hosts.dir.join("net"))?;
        wire.add(OUTSIDE)?;
        for number in 1..=count.min(HOSTS_MAX) {
            wire.add(number)?;
            let paths = (exe, hosts.dir.as_path(), wire.namespace(number));
            hosts.hosts.push(Host::new((number, &hosts.id), paths, log));
        }
        *hosts.wire() = Some(wire);
        for host in &hosts.hosts {
            host.boot()?;
        }
        for host in &hosts.hosts {
            host.answers()?;
        }
        Ok(hosts)
    }

    fn wire(&self) -> MutexGuard<'_, Option<Wire>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All of them, by number.
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// Namespace of a machine on the same wire that is none of them: where clients are.
    pub fn outside(&self) -> PathBuf {
        (self.wire().as_ref()).map_or_else(PathBuf::new, |wire| wire.namespace(OUTSIDE))
    }

    /// One of them, from 1 on.
    ///
    /// # Panics
    /// When there is no such host: that is a mistake of the caller.
    pub fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// Loses what `from` sends to `to`, or no more. Nobody is told: no connection is closed by it.
    ///
    /// # Errors
    /// [`HostsError`]; then it is as before.
    pub fn lose(&self, from: &Host, to: &Host, lost: bool) -> Result<(), HostsError> {
        match self.wire().as_mut() {
            Some(wire) => Ok(wire.lose(from.number, to.number, lost)?),
            None => Ok(()),
        }
    }

    /// Cuts some hosts off from some others, in both directions.
    ///
    /// # Errors
    /// [`HostsError`]; then a part of them is cut off.
    pub fn cut(&self, some: &[&Host], others: &[&Host]) -> Result<(), HostsError> {
        for one in some {
            for other in others.iter().filter(|o| o.number != one.number) {
                self.lose(one, other, true)?;
                self.lose(other, one, true)?;
            }
        }
        Ok(())
    }

    /// Cuts hosts off from all that are not among them.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn isolate(&self, some: &[&Host]) -> Result<(), HostsError> {
        let among = |h: &&Host| some.iter().any(|s| s.number == h.number);
        let others: Vec<&Host> = self.hosts.iter().filter(|h| !among(h)).collect();
        self.cut(some, &others)
    }

    /// Loses so many of a hundred packets between these hosts, by chance, in both directions.
    ///
    /// # Errors
    /// [`HostsError`]; then it is so between some of them.
    pub fn noise(&self, among: &[&Host], percent: u8) -> Result<(), HostsError> {
        let numbers: BTreeSet<u8> = among.iter().map(|h| h.number).collect();
        for host in &numbers {
            let others = numbers.iter().copied().filter(|n| n != host).collect();
            if let Some(wire) = self.wire().as_mut() {
                wire.noise(*host, &others, percent)?;
            }
        }
        Ok(())
    }

    /// Loses all datagrams for a UDP port of a host from now on, or no more; healing does not end it.
    ///
    /// # Errors
    /// [`HostsError`]; then it is as before.
    pub fn lose_udp(&self, to: &Host, port: u16, lost: bool) -> Result<(), HostsError> {
        match self.wire().as_mut() {
            Some(wire) => Ok(wire.lose_udp(to.number, port, lost)?),
            None => Ok(()),
        }
    }

    /// Heals everything that was lost between hosts; cables stay as they are.
    ///
    /// # Errors
    /// [`HostsError`]; then a part of it is healed.
    pub fn heal(&self) -> Result<(), HostsError> {
        for from in &self.hosts {
            for to in &self.hosts {
                self.lose(from, to, false)?;
            }
            self.noise(&[from], 0)?;
        }
        Ok(())
    }

    /// Pulls a host's cable, or puts it back: the host sees that its link is down.
    ///
    /// # Errors
    /// [`HostsError`]; then it is as before.
    pub fn cable(&self, host: &Host, plugged: bool) -> Result<(), HostsError> {
        match self.wire().as_mut() {
            Some(wire) => Ok(wire.cable(host.number, plugged)?),
            None => Ok(()),
        }
    }

    /// What there is of these hosts beside their daemons and the wire; empty once each has left its cluster.
    pub fn left(&self) -> Remains {
        let mut left = Remains::find(&self.dir, &self.id);
        let daemons: Vec<i32> = self.hosts.iter().filter_map(Host::pid).collect();
        left.processes.retain(|(pid, _)| !daemons.contains(pid));
        let wire = self.dir.join("net");
        left.mounts.retain(|m| !m.starts_with(&wire));
        left
    }

    /// Takes everything down, whatever still runs; answers what withstood.
    pub fn end(mut self) -> Remains {
        self.take_down()
    }

    fn take_down(&mut self) -> Remains {
        self.hosts.clear();
        let left = Remains::sweep(&self.dir, &self.id);
        *self.wire() = None;
        let _ = fs::remove_dir_all(&self.dir);
        left
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// A name nobody else has on this machine: other hosts here are told apart by it.
fn fresh_id() -> Result<String, HostsError> {
    let mut bytes = [0u8; ID_LEN];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    step("choose a name for hosts", filled.map_err(Into::into))?;
    // A letter first, for people who read lists.
    let letters = bytes.iter().map(|b| char::from(b'a' + b % 26));
    Ok(letters.collect())
}

/// Takes down what processes left that were killed before they could do it themselves.
fn sweep_the_dead() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let Some((pid, id)) = parts.filter(|(_, id)| id.len() == ID_LEN) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            Remains::sweep(&entry.path(), id);
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: needs root");
        }
        root
    }

    /// What is left of hosts of a process.
    fn left_of(pid: u32) -> Vec<String> {
        let prefix = format!("{PREFIX}{pid}-");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut left: Vec<String> = (mounts.lines().filter(|l| l.contains(&prefix)))
            .map(str::to_owned)
            .collect();
        let folders = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        left.extend(
            folders
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with(&prefix)),
        );
        left
    }

    #[test]
    fn hosts_that_do_not_start_say_so_and_a_run_that_was_killed_is_swept() {
        if !root() {
            return;
        }
        let mut dead = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = dead.id();
        dead.wait().unwrap();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{pid}-sweepy"));
        let mut wire = Wire::make(&dir.join("net")).unwrap();
        wire.add(1).unwrap();
        // As if it had never been dropped.
        std::mem::forget(wire);
        assert_eq!(left_of(pid).len(), 3, "two namespaces and a folder");

        let failed = Hosts::make(Path::new("/bin/false"), 2, "info").unwrap_err();
        assert!(
            matches!(&failed, HostsError::Silent { host, .. } if host == "h1"),
            "{failed}"
        );
        assert_eq!(left_of(std::process::id()), Vec::<String>::new());
        assert_eq!(left_of(pid), Vec::<String>::new());
    }

    #[test]
    fn what_a_process_holds_open_or_is_in_is_found() {
        if !root() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("rswarm-findme-{}", std::process::id()));
        let mut wire = Wire::make(&dir.join("net")).unwrap();
        wire.add(1).unwrap();
        let mut child = net::inside(&wire.namespace(1), || {
            std::process::Command::new("/bin/sleep")
                .arg("1000")
                .spawn()
                .unwrap()
        })
        .unwrap();
        let found = Remains::find(&dir, "findme");
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(found.processes, [(pid, "/bin/sleep 1000".to_owned())]);
        assert_eq!(found.mounts.len(), 2);
        // It is ours to wait for; its end is what the sweep brings about.
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert!(Remains::sweep(&dir, "findme").is_empty());
        assert!(!reaper.join().unwrap().success());
        drop(wire);
        fs::remove_dir_all(&dir).unwrap();
    }
}
