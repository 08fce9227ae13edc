//! Somebody who writes through one manager after the other all the time, and asks in the end what became of it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hosts::{Host, Hosts};

use crate::client::Fail;

/// Pause between two writes: a steady hand, not a flood.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one may take: longer than any election.
const LIMIT: Duration = Duration::from_secs(30);

/// What became of the writes.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) acknowledged: usize,
    /// Acknowledged, and not there in the end.
    pub(super) lost: usize,
    /// Refused by a manager that was not killed meanwhile.
    pub(super) failed: usize,
}

/// One who writes.
pub(super) struct Writes<'a> {
    managers: Vec<&'a Host>,
    ended: AtomicBool,
    done: Mutex<(BTreeSet<String>, usize)>,
}

impl<'a> Writes<'a> {
    pub(super) fn start(hosts: &'a Hosts, managers: u8) -> Self {
        Self {
            managers: hosts.all().iter().take(managers.into()).collect(),
            ended: AtomicBool::new(false),
            done: Mutex::default(),
        }
    }

    /// Writes until the end; each write through the next manager that runs.
    pub(super) fn go_on(&self) {
        let mut turn = 0;
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(PAUSE);
            turn += 1;
            let manager = self.managers[turn % self.managers.len()];
            let Some(pid) = manager.pid().filter(|_| manager.is_up()) else {
                continue;
            };
            let name = format!("write{turn}");
            let said = manager.run_within(&["config", "create", &name, "-"], Some("x"), LIMIT);
            let good = said.as_ref().is_ok_and(hosts::Said::ok);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            if good {
                done.0.insert(name);
            } else if manager.pid() == Some(pid) && manager.is_up() && !self.ended.load(Ordering::SeqCst) {
                done.1 += 1;
                let why = said.map_or_else(|e| e.to_string(), |s| s.all());
                eprintln!("a write through {} failed: {why}", manager.name);
            }
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Asks a manager what is there.
    pub(super) fn counts(&self, asked: &Host) -> Result<Counts, Fail> {
        let said = asked.run_within(&["config", "ls", "--format", "{{.Name}}"], None, LIMIT)?;
        if !said.ok() {
            return Err(Fail::new(format!("list what was written: {}", said.all())));
        }
        let there: BTreeSet<&str> = said.out.lines().collect();
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Counts {
            acknowledged: done.0.len(),
            lost: done
                .0
                .iter()
                .filter(|name| !there.contains(name.as_str()))
                .count(),
            failed: done.1,
        })
    }
}
