//! The seccomp filter: what a process of a container may not ask the kernel.
//!
//! It refuses what Docker's default profile refuses, and in addition AF_ALG and AF_VSOCK sockets, io_uring, keyctl,
//! bpf, userfaultfd, the new mount calls, other architectures' entries, and every call younger than [`LAST_KNOWN`].
//! The program is a search tree: the kernel runs it for every call there is when it is loaded, to remember which plain
//! calls pass, and later for the others only.

use libc::sock_filter;

/// The highest call number the filter was written for (Linux 6.18, `file_setattr`); later ones answer ENOSYS.
const LAST_KNOWN: u32 = 469;

// Offsets in struct seccomp_data (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const fn refuse(errno: i32) -> u32 {
    0x0005_0000 | errno as u32
}

/// Namespaces a process may not make by clone(2): mount, cgroup, uts, ipc, user, pid, net.
const NAMESPACES: u32 = 0x7e02_0000;

/// Calls refused with EPERM unless the capability beside them is kept (0xff: whatever is kept).
fn refused() -> Vec<(libc::c_long, u8)> {
    const ADMIN: u8 = 21;
    const ALWAYS: u8 = 0xff;
    vec![
        (libc::SYS_acct, 20),
        (libc::SYS_add_key, ALWAYS),
        (libc::SYS_bpf, 39),
        (libc::SYS_clock_adjtime, 25),
        (libc::SYS_clock_settime, 25),
        (libc::SYS_delete_module, 16),
        (libc::SYS_finit_module, 16),
        (libc::SYS_init_module, 16),
        (libc::SYS_fsconfig, ADMIN),
        (libc::SYS_fsmount, ADMIN),
        (libc::SYS_fsopen, ADMIN),
        (libc::SYS_fspick, ADMIN),
        (libc::SYS_get_mempolicy, 23),
        (libc::SYS_io_uring_enter, ALWAYS),
        (libc::SYS_io_uring_register, ALWAYS),
        (libc::SYS_io_uring_setup, ALWAYS),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_ioperm, 17),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_iopl, 17),
        (libc::SYS_kcmp, 19),
        (libc::SYS_kexec_file_load, 22),
        (libc::SYS_kexec_load, 22),
        (libc::SYS_keyctl, ALWAYS),
        (libc::SYS_mbind, 23),
        (libc::SYS_mount, ADMIN),
        (libc::SYS_mount_setattr, ADMIN),
        (libc::SYS_move_mount, ADMIN),
        (libc::SYS_move_pages, 23),
        (libc::SYS_open_by_handle_at, 2),
        (libc::SYS_open_tree, ADMIN),
        (libc::SYS_perf_event_open, 38),
        (libc::SYS_pivot_root, ADMIN),
        (libc::SYS_process_vm_readv, 19),
        (libc::SYS_process_vm_writev, 19),
        (libc::SYS_quotactl, ADMIN),
        (libc::SYS_reboot, 22),
        (libc::SYS_request_key, ALWAYS),
        (libc::SYS_set_mempolicy, 23),
        (libc::SYS_setns, ADMIN),
        (libc::SYS_settimeofday, 25),
        (libc::SYS_swapoff, ADMIN),
        (libc::SYS_swapon, ADMIN),
        (libc::SYS_syslog, 34),
        (libc::SYS_umount2, ADMIN),
        (libc::SYS_unshare, ADMIN),
        (libc::SYS_userfaultfd, ALWAYS),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_uselib, ALWAYS),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_ustat, ALWAYS),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_sysfs, ALWAYS),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS__sysctl, ALWAYS),
        (libc::SYS_lookup_dcookie, ALWAYS),
        (libc::SYS_nfsservctl, ALWAYS),
    ]
}

/// What a listed call leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// EPERM.
    Refuse,
    /// ENOSYS: its flags lie behind a pointer that a filter cannot follow, and the C library then uses clone.
    Missing,
    /// EPERM with flags that make namespaces.
    Clone,
    /// EPERM for some families.
    Socket,
}

/// Calls that a leaf of the search tree compares one by one.
const LEAF: usize = 3;

/// The program for a process that keeps these capabilities.
pub(crate) fn filter(capabilities: &[u8]) -> Vec<sock_filter> {
    let keeps = |c: u8| capabilities.contains(&c);
    let number = |n: libc::c_long| u32::try_from(n).unwrap_or(u32::MAX);
    let mut listed: Vec<(u32, Action)> = refused()
        .into_iter()
        .filter(|(_, capability)| !keeps(*capability))
        .map(|(call, _)| (number(call), Action::Refuse))
        .collect();
    if !keeps(21) {
        listed.push((number(libc::SYS_clone3), Action::Missing));
        listed.push((number(libc::SYS_clone), Action::Clone));
    }
    listed.push((number(libc::SYS_socket), Action::Socket));
    listed.sort_unstable_by_key(|(call, _)| *call);
    let mut p = vec![
        load(ARCHITECTURE),
        jump_equal(NATIVE, 1, 0),
        answer(refuse(libc::ENOSYS)),
        load(NUMBER),
        // Numbers of the x32 entry lie above 0x40000000, so this covers them too.
        jump_above(LAST_KNOWN, 0, 1),
        answer(refuse(libc::ENOSYS)),
    ];
    let mut open = Vec::new();
    search(&listed, &mut p, &mut open);
    for (action, code) in [
        (Action::Refuse, vec![answer(refuse(libc::EPERM))]),
        (Action::Missing, vec![answer(refuse(libc::ENOSYS))]),
        (
            Action::Clone,
            vec![
                load(ARGUMENT_0),
                jump_any(NAMESPACES, 0, 1),
                answer(refuse(libc::EPERM)),
                answer(ALLOW),
            ],
        ),
        (
            Action::Socket,
            vec![
                load(ARGUMENT_0),
                jump_equal(libc::AF_ALG as u32, 1, 0),
                jump_equal(libc::AF_VSOCK as u32, 0, 1),
                answer(refuse(libc::EPERM)),
                answer(ALLOW),
            ],
        ),
    ] {
        for (from, _) in open.iter().filter(|(_, a)| *a == action) {
            p[*from].jt = distance(*from, p.len());
        }
        p.extend(code);
    }
    p
}

/// A search tree over sorted calls; `open` are the jumps that still need the place of their action.
fn search(listed: &[(u32, Action)], p: &mut Vec<sock_filter>, open: &mut Vec<(usize, Action)>) {
    if listed.len() <= LEAF {
        for (call, action) in listed {
            open.push((p.len(), *action));
            p.push(jump_equal(*call, 0, 0));
        }
        p.push(answer(ALLOW));
        return;
    }
    let (low, high) = listed.split_at(listed.len() / 2);
    let fork = p.len();
    p.push(jump_above(high[0].0 - 1, 0, 0));
    search(low, p, open);
    p[fork].jt = distance(fork, p.len());
    search(high, p, open);
}

/// A jump's offset; the list above is far too short to reach 255, and a test builds the longest.
fn distance(from: usize, to: usize) -> u8 {
    u8::try_from(to - from - 1).unwrap_or(u8::MAX)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    }
}
fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}
fn jump_equal(k: u32, yes: u8, no: u8) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, yes, no)
}
fn jump_above(k: u32, yes: u8, no: u8) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, k, yes, no)
}
fn jump_any(k: u32, yes: u8, no: u8) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, k, yes, no)
}
fn answer(k: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, k, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: a small interpreter of the shapes used above.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let s = &program[at];
            at += 1;
            let code = u32::from(s.code);
            if code == libc::BPF_RET | libc::BPF_K {
                return s.k;
            }
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                a = match s.k {
                    NUMBER => number,
                    ARCHITECTURE => arch,
                    ARGUMENT_0 => argument,
                    other => panic!("offset {other}"),
                };
                continue;
            }
            let yes = match code & 0xf0 {
                x if x == libc::BPF_JEQ => a == s.k,
                x if x == libc::BPF_JGT => a > s.k,
                x if x == libc::BPF_JSET => a & s.k != 0,
                other => panic!("jump {other}"),
            };
            at += usize::from(if yes { s.jt } else { s.jf });
        }
    }

    #[test]
    fn calls_are_answered_as_listed() {
        let p = filter(&[0, 1]);
        let n = |c: libc::c_long| u32::try_from(c).unwrap();
        let perm = refuse(libc::EPERM);
        for (name, call, argument, want) in [
            ("read", libc::SYS_read, 0, ALLOW),
            ("execve", libc::SYS_execve, 0, ALLOW),
            ("mount", libc::SYS_mount, 0, perm),
            ("a plain clone", libc::SYS_clone, 17, ALLOW),
            (
                "a clone into a user namespace",
                libc::SYS_clone,
                0x1000_0000,
                perm,
            ),
            ("clone3", libc::SYS_clone3, 0, refuse(libc::ENOSYS)),
            ("a TCP socket", libc::SYS_socket, 2, ALLOW),
            ("an AF_ALG socket", libc::SYS_socket, 38, perm),
            ("an AF_VSOCK socket", libc::SYS_socket, 40, perm),
            ("io_uring", libc::SYS_io_uring_setup, 0, perm),
        ] {
            assert_eq!(run(&p, NATIVE, n(call), argument), want, "{name}");
        }
        assert_eq!(run(&p, NATIVE, LAST_KNOWN + 1, 0), refuse(libc::ENOSYS));
        assert_eq!(run(&p, NATIVE, 0x4000_0000, 0), refuse(libc::ENOSYS), "x32");
        assert_eq!(run(&p, 0x4000_0003, 1, 0), refuse(libc::ENOSYS), "32 bit");
        assert!(filter(&[]).len() < 255, "an offset has 8 bits");
        // Call by call, the tree answers as the list says.
        for call in 0..=LAST_KNOWN {
            let listed = refused().iter().any(|(c, _)| n(*c) == call);
            let special = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket]
                .map(n)
                .contains(&call);
            if !special {
                let want = if listed { perm } else { ALLOW };
                assert_eq!(run(&filter(&[]), NATIVE, call, 0), want, "call {call}");
            }
        }
        let admin = filter(&[21]);
        assert_eq!(
            run(&admin, NATIVE, n(libc::SYS_mount), 0),
            ALLOW,
            "with CAP_SYS_ADMIN"
        );
    }
}
