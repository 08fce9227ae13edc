//! System calls that rustix does not wrap, one a function, without policy.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// In which process `clone` returned.
pub(crate) enum Cloned {
    /// The caller; the child's id in the caller's pid namespace, and a descriptor of it.
    Parent(i32, OwnedFd),
    /// The new process.
    Child,
}

/// clone3(2) like fork, into new namespaces.
pub(crate) fn clone_into(namespaces: u64) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut args = libc::clone_args {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM the child has a copy of our memory and its own stack (stack 0 is allowed then), so it
    // may go on in Rust; only one-threaded processes (shim, exec helper, init) call this, so no lock is held by a
    // thread that the child lacks. `pidfd` lives until the call returned; the size is that of the struct.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            std::mem::size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor there that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent(i32::try_from(pid).unwrap_or(-1), fd))
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers; the result is a new descriptor that nobody else owns.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers and a null pointer, which means "as kill(2) would".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    })?;
    Ok(())
}

/// setns(2).
pub(crate) fn setns(fd: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: takes two integers; changes namespaces of this one-threaded process only.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kinds) }))?;
    Ok(())
}

/// unshare(2).
pub(crate) fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: takes an integer; changes namespaces of this one-threaded process only.
    check(libc::c_long::from(unsafe { libc::unshare(kinds) }))?;
    Ok(())
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// mount_setattr(2) on an open mount: read-only, and recursively where asked.
pub(crate) fn mount_read_only(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        set: 1, /* MOUNT_ATTR_RDONLY */
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the struct lives through the call, and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            std::mem::size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// The signal this process gets when its parent dies; 0: none.
pub(crate) fn parent_death_signal() -> i32 {
    let mut signal = 0;
    // SAFETY: the kernel writes one integer, which lives through the call.
    let got = unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    if got < 0 { 0 } else { signal }
}

/// prctl(2) with one argument.
pub(crate) fn prctl(option: i32, argument: u64) -> io::Result<()> {
    // SAFETY: the options used here (no_new_privs, dropping from the bounding set, parent death signal, subreaper)
    // take an integer and change this process only.
    check(libc::c_long::from(unsafe {
        libc::prctl(option, argument, 0, 0, 0)
    }))?;
    Ok(())
}

/// setrlimit(2).
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the struct lives through the call.
    check(libc::c_long::from(unsafe {
        libc::setrlimit(resource as _, &limit)
    }))?;
    Ok(())
}

/// setgroups(2), setresgid(2), setresuid(2): of this process, which has one thread.
pub(crate) fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list lives through the call and its length is given. The raw calls are used because the C library
    // would signal other threads, of which there are none.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// capset(2), version 3.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let mut header = CapHeader {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |v: u64, high: bool| u32::try_from(if high { v >> 32 } else { v & 0xffff_ffff }).unwrap_or(0);
    let data = [false, true].map(|high| CapData {
        effective: half(effective, high),
        permitted: half(permitted, high),
        inheritable: half(inheritable, high),
    });
    // SAFETY: version 3 reads a header and two data structs, which live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_mut(&mut header), data.as_ptr()) })?;
    Ok(())
}

/// seccomp(2): loads a filter for this process. Needs no_new_privs or CAP_SYS_ADMIN.
pub(crate) fn load_filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::other("the filter is too long"))?;
    let fprog = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: program and descriptor live through the call, which copies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            1, /* SECCOMP_SET_MODE_FILTER */
            0,
            std::ptr::from_ref(&fprog),
        )
    })?;
    Ok(())
}

/// close_range(2): every descriptor from `first` on closes at exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers; marks descriptors, closes none.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            4, /* CLOSE_RANGE_CLOEXEC */
        )
    })?;
    Ok(())
}

/// execve(2); returns only when it failed.
pub(crate) fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let list = |words: &[CString]| -> Vec<*const libc::c_char> {
        words
            .iter()
            .map(|w| w.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, env) = (list(argv), list(env));
    // SAFETY: both lists end with a null pointer, and their strings live until the call returned.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// waitpid(2) without waiting for more than one child: its id and raw status.
pub(crate) fn wait(pid: i32, block: bool) -> io::Result<Option<(i32, i32)>> {
    let mut status: libc::c_int = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` lives through the call.
        let got = unsafe { libc::waitpid(pid, &mut status, flags) };
        if got >= 0 {
            return Ok((got > 0).then_some((got, status)));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A raw wait status as an exit code and the signal that ended the process.
pub(crate) fn decode(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return (128 + signal, Some(signal));
    }
    (libc::WEXITSTATUS(status), None)
}

/// Sets every signal back to its default and unblocks all.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets a default action; signals that cannot be set answer an error, which does not matter.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is the empty set on Linux; both live through the call.
    unsafe {
        let set: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Ignores a signal.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: sets an action that runs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Makes the terminal on `fd` the controlling one of this session (TIOCSCTTY).
pub(crate) fn take_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes an integer.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))?;
    Ok(())
}

/// kill(2).
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

/// umask(2).
pub(crate) fn umask(mask: u32) {
    // SAFETY: takes an integer and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Installs a handler; it may only call what is safe in one (signal-safety(7)).
pub(crate) fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handler passed here calls kill(2) and reads an atomic only.
    unsafe { libc::signal(signal, handler as libc::sighandler_t) };
}

/// PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15): how a process ended that was not our child.
pub(crate) fn exit_info(pidfd: BorrowedFd<'_>) -> Option<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
        more: [u32; 2],
    }
    let mut info = Info {
        mask: 1 << 3,
        ..Info::default()
    };
    let size = u64::try_from(std::mem::size_of::<Info>()).unwrap_or(0);
    // _IOWR(0xFF, 11, struct pidfd_info)
    let request = (3u64 << 30) | (size << 16) | (0xff << 8) | 11;
    // SAFETY: the struct is at least as large as the size in the request says and lives through the call.
    let got = unsafe { libc::ioctl(pidfd.as_raw_fd(), request as _, std::ptr::from_mut(&mut info)) };
    (got == 0 && info.mask & (1 << 3) != 0).then_some(info.exit_code)
}

/// Registers a descriptor with the reactor, for waiting until it can be read.
pub(crate) fn readiness(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: asks that the descriptor stays the same and open while it is registered; an OwnedFd does, and nobody else
    // can reach it.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
        .map_err(Into::into)
}

/// PR_SET_DUMPABLE: without CAP_SYS_PTRACE nobody looks into this process through /proc. A program it runs is open again.
pub(crate) fn hide() {
    let _ = prctl(libc::PR_SET_DUMPABLE, 0);
}

/// mallopt(3): few arenas, and what is free at the end of one is given back.
pub(crate) fn tune_allocator() {
    // SAFETY: three integers each; an option that is not known is ignored. Called while there is one thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// malloc_trim(3): gives whole free pages back, wherever they are.
pub(crate) fn trim_allocator() {
    // SAFETY: takes an integer and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
