//! System calls and netlink: sockets, messages, namespaces. No policy.

pub(crate) mod link;
pub(crate) mod netlink;
pub(crate) mod nft;
pub(crate) mod tun;
pub(crate) mod wireguard;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Enters a network namespace with the calling thread, which must be a dedicated one.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: takes two integers and changes the calling thread only; callers run it on threads of their own.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a network namespace and keeps it under `path` by a bind mount.
pub(crate) fn make_namespace(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::create(path)?;
    let path = path.to_owned();
    let made = std::thread::spawn(move || -> io::Result<()> {
        // SAFETY: takes an integer and changes this new thread only, which ends below.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)?;
        Ok(())
    });
    made.join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace panicked")))
}

/// Lets go of a namespace; the kernel takes it down when nothing is in it any more.
pub(crate) fn drop_namespace(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}
