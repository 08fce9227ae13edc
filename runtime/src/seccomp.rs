//! The seccomp filter: what a process of a container may not ask the kernel.
//!
//! It refuses what Docker's default profile refuses, and in addition AF_ALG and AF_VSOCK sockets, io_uring, keyctl,
//! bpf, userfaultfd, the new mount calls, other architectures' entries, and every call younger than [`LAST_KNOWN`].
//! The program is a straight list: the kernel remembers which plain calls pass and runs it for the others only.

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

/// The program for a process that keeps these capabilities.
pub(crate) fn filter(capabilities: &[u8]) -> Vec<sock_filter> {
    let keeps = |c: u8| capabilities.contains(&c);
    let number = |n: libc::c_long| u32::try_from(n).unwrap_or(u32::MAX);
    let mut p = vec![
        load(ARCHITECTURE),
        jump_equal(NATIVE, 1, 0),
        answer(refuse(libc::ENOSYS)),
        load(NUMBER),
        // Numbers of the x32 entry lie above 0x40000000, so this covers them too.
        jump_above(LAST_KNOWN, 0, 1),
        answer(refuse(libc::ENOSYS)),
    ];
    for (call, capability) in refused() {
        if !keeps(capability) {
            p.push(jump_equal(number(call), 0, 1));
            p.push(answer(refuse(libc::EPERM)));
        }
    }
    if !keeps(21) {
        // Its flags lie behind a pointer that a filter cannot follow: the C library then uses clone instead.
        p.push(jump_equal(number(libc::SYS_clone3), 0, 1));
        p.push(answer(refuse(libc::ENOSYS)));
        p.push(jump_equal(number(libc::SYS_clone), 0, 4));
        p.push(load(ARGUMENT_0));
        p.push(jump_any(NAMESPACES, 0, 1));
        p.push(answer(refuse(libc::EPERM)));
        p.push(answer(ALLOW));
    }
    p.push(jump_equal(number(libc::SYS_socket), 0, 5));
    p.push(load(ARGUMENT_0));
    p.push(jump_equal(libc::AF_ALG as u32, 1, 0));
    p.push(jump_equal(libc::AF_VSOCK as u32, 0, 1));
    p.push(answer(refuse(libc::EPERM)));
    p.push(answer(ALLOW));
    p.push(answer(ALLOW));
    p
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
        let admin = filter(&[21]);
        assert_eq!(
            run(&admin, NATIVE, n(libc::SYS_mount), 0),
            ALLOW,
            "with CAP_SYS_ADMIN"
        );
    }
}
