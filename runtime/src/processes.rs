//! Processes of a container, from what the kernel says of them: no program of the container or the host is asked.

use std::fs;

use crate::plan::CgroupPlan;

/// Processes listed: the default limit of a whole host's process ids.
const PROCESSES_MAX: usize = 32_768;
/// Longest command line taken.
const COMMAND_MAX: usize = 4096;
/// Unit of times in /proc (proc_pid_stat(5)): 1/100 s on every Linux there is.
const TICK_MS: u64 = 10;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Its id on the host.
    pub pid: u32,
    /// Its id in the container.
    pub inner_pid: u32,
    /// Its parent on the host.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// That user's name in the container's /etc/passwd; empty: none.
    pub user: String,
    /// State, one letter, as ps has it.
    pub state: String,
    /// Major and minor number of its terminal; 0: none.
    pub terminal: (u32, u32),
    /// CPU time it used, in milliseconds.
    pub cpu_ms: u64,
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// Threads.
    pub threads: u64,
    /// Nice value.
    pub nice: i32,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Bytes of memory it holds.
    pub resident_bytes: u64,
    /// Short name of its program.
    pub name: String,
    /// Program and arguments; of a kernel thread or a process that is ending, its short name in brackets.
    pub command: String,
}

/// Lists them, by id.
pub(crate) fn list(plan: &CgroupPlan, first: u32, passwd: &str) -> Vec<Process> {
    let boot_ms = boot_ms();
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = namespace(first);
    let listed = plan
        .folders
        .iter()
        .find_map(|f| fs::read_to_string(f.join("cgroup.procs")).ok());
    let mut pids: Vec<u32> = listed
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .take(PROCESSES_MAX)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter()
        // Helpers of ours share its cgroup for a moment, but not its processes.
        .filter(|pid| namespace(*pid).is_some_and(|n| Some(&n) == inside.as_ref()))
        .filter_map(|pid| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
            let text = |name: &str| read(name).map(|b| String::from_utf8_lossy(&b).into_owned());
            let command = read("cmdline").unwrap_or_default();
            let mut process = parse(&text("stat")?, &text("status")?, &command, boot_ms)?;
            process.user = user(passwd, process.uid).unwrap_or_default().to_owned();
            Some(process)
        })
        .collect()
}

fn boot_ms() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("btime "));
    line.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0) * 1000
}

/// Name of a user in the text of a passwd file.
fn user(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

fn parse(stat: &str, status: &str, command: &[u8], boot_ms: u64) -> Option<Process> {
    // The name stands in parentheses and may hold any of them.
    let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
    let name = stat.get(begin + 1..end)?.to_owned();
    let fields: Vec<&str> = stat.get(end + 2..)?.split_whitespace().collect();
    // Fields are counted as in proc_pid_stat(5), where the state is number 3.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let number = |n: usize| field(n).parse::<u64>().unwrap_or(0);
    let line = |key: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(key))
            .unwrap_or_default()
    };
    let words = |key: &str| line(key).split_whitespace().collect::<Vec<_>>();
    let kib = |key: &str| {
        words(key)
            .first()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    let terminal = u32::try_from(number(7)).unwrap_or(0);
    let mut shown: Vec<u8> = command.iter().copied().take(COMMAND_MAX).collect();
    while shown.last() == Some(&0) {
        shown.pop();
    }
    shown.iter_mut().filter(|b| **b == 0).for_each(|b| *b = b' ');
    let command = if shown.is_empty() {
        format!("[{name}]")
    } else {
        String::from_utf8_lossy(&shown).into_owned()
    };
    Some(Process {
        pid: stat.get(..begin)?.trim().parse().ok()?,
        inner_pid: words("NSpid:").last().and_then(|n| n.parse().ok()).unwrap_or(0),
        parent: u32::try_from(number(4)).ok()?,
        // The effective one.
        uid: words("Uid:").get(1).and_then(|n| n.parse().ok()).unwrap_or(0),
        user: String::new(),
        state: field(3).into(),
        terminal: (
            (terminal >> 8) & 0xfff,
            (terminal & 0xff) | ((terminal >> 12) & 0xfff00),
        ),
        cpu_ms: (number(14) + number(15)) * TICK_MS,
        started_ms: boot_ms + number(22) * TICK_MS,
        threads: number(20),
        nice: field(19).parse().unwrap_or(0),
        virtual_bytes: number(23),
        resident_bytes: kib("VmRSS:"),
        name,
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_holds() {
        let stat = "4242 (a ) S (b) S 4200 4242 4242 34817 4242 4194560 1 0 0 0 150 50 0 0 20 -5 3 0 12345 4096000 100";
        let status = "Name:\ta ) S (b\nUid:\t0\t1000\t0\t0\nNSpid:\t4242\t7\nVmRSS:\t     400 kB\n";
        let process = parse(stat, status, b"sh\0-c\0sleep 9\0", 1_000_000).unwrap();
        let wanted = Process {
            pid: 4242,
            inner_pid: 7,
            parent: 4200,
            uid: 1000,
            user: String::new(),
            state: "S".into(),
            terminal: (136, 1),
            cpu_ms: 2000,
            started_ms: 1_123_450,
            threads: 3,
            nice: -5,
            virtual_bytes: 4_096_000,
            resident_bytes: 409_600,
            name: "a ) S (b".into(),
            command: "sh -c sleep 9".into(),
        };
        assert_eq!(process, wanted);
        assert_eq!(parse(stat, status, b"", 0).unwrap().command, "[a ) S (b]");
    }

    #[test]
    fn users_are_named_as_the_container_names_them() {
        let passwd = "broken\n:x:7:\nroot:x:0:0::/:/bin/sh\napp:x:1000:1000::/:\n";
        assert_eq!(
            (user(passwd, 1000), user(passwd, 0), user(passwd, 7)),
            (Some("app"), Some("root"), None)
        );
    }
}
