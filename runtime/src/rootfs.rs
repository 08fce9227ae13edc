//! The root file system of a container, made by its first process in its own mount namespace.
//!
//! Every place inside is reached by a descriptor that openat2(2) resolved within the root, so no link of an image
//! leads a mount elsewhere; nothing is mounted in the host's namespace, so nothing has to be unmounted there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::config::{FileMount, MountConfig, MountSource};
use crate::plan::RootfsPlan;
use crate::sys;

type Step = Result<(), String>;

fn at<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |e| format!("{what}: {e}")
}

/// Makes the whole root and makes it the root of this process.
pub(crate) fn enter(plan: &RootfsPlan) -> Step {
    let nothing = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", nothing).map_err(at("keep mounts to this container"))?;
    let root = overlay(plan)?;
    system(root.as_fd())?;
    for mount in &plan.mounts {
        place(root.as_fd(), mount)?;
    }
    files(root.as_fd(), &plan.files)?;
    rustix::process::fchdir(&root).map_err(at("enter the root file system"))?;
    rustix::process::pivot_root(".", ".").map_err(at("make it the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("leave the host's root"))?;
    rustix::process::chdir("/").map_err(at("enter /"))
}

/// What must come after settings were written to /proc/sys: paths that tell of the host are hidden.
pub(crate) fn seal(plan: &RootfsPlan) -> Step {
    let mut blank = None;
    for path in &plan.masked {
        mask(path, &mut blank)?;
    }
    for path in &plan.read_only_paths {
        let Ok(tree) = clone_tree(rustix::fs::CWD, path, true) else {
            continue;
        };
        sys::mount_read_only(tree.as_fd(), true).map_err(at(format!("make {path} read-only")))?;
        attach(tree.as_fd(), rustix::fs::CWD, path)?;
    }
    if plan.read_only {
        let root = open("/", OFlags::PATH)?;
        sys::mount_read_only(root.as_fd(), false).map_err(at("make the root read-only"))?;
    }
    Ok(())
}

/// Hides a path. `blank` is a folder that is hidden already: the same empty file system serves all of them.
fn mask<'a>(path: &'a str, blank: &mut Option<&'a str>) -> Step {
    let Ok(stat) = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) else {
        return Ok(());
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let null = clone_tree(rustix::fs::CWD, "/dev/null", false).map_err(at("/dev/null"))?;
        return attach(null.as_fd(), rustix::fs::CWD, path);
    }
    let empty = match blank {
        Some(other) => clone_tree(rustix::fs::CWD, other, false).map_err(at(*other))?,
        None => file_system(
            "tmpfs",
            &[("size", "0"), ("mode", "555")],
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )?,
    };
    attach(empty.as_fd(), rustix::fs::CWD, path)?;
    *blank = Some(path);
    Ok(())
}

fn overlay(plan: &RootfsPlan) -> Result<OwnedFd, String> {
    let what = "overlay of the image's layers";
    // Made below the overlay what the image lacks: through it each one would first copy the root up.
    for name in ["proc", "dev", "sys"] {
        let there = |layer: &std::path::PathBuf| layer.join(name).symlink_metadata().is_ok();
        if !plan.layers.iter().any(there) {
            let folder = plan.upper.join(name);
            let made = std::fs::DirBuilder::new().mode(0o755).create(&folder);
            made.map_err(at(format!("{what}: make {}", folder.display())))?;
        }
    }
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at(what))?;
    let set = |key: &str, value: &Path| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value);
    for layer in &plan.layers {
        set("lowerdir+", layer).map_err(at(format!("{what}: layer {}", layer.display())))?;
    }
    set("upperdir", &plan.upper).map_err(at(what))?;
    set("workdir", &plan.work).map_err(at(what))?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(at(what))?;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(at(what))?;
    attach(mount.as_fd(), rustix::fs::CWD, &plan.target.to_string_lossy())?;
    Ok(mount)
}

/// A new file system that is not attached yet.
fn file_system(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, String> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(at(kind))?;
    for (key, value) in options {
        let set = if value.is_empty() {
            rustix::mount::fsconfig_set_flag(fs.as_fd(), *key)
        } else {
            rustix::mount::fsconfig_set_string(fs.as_fd(), *key, *value)
        };
        set.map_err(at(format!("{kind} with {key}={value}")))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(at(kind))?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(at(kind))
}

fn attach(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &str) -> Step {
    let flags = if path.is_empty() {
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
    } else {
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
    };
    rustix::mount::move_mount(mount, "", dir, path, flags).map_err(at(format!("mount at {path}")))
}

/// The files of a container that does not run, in a mount that is attached nowhere and goes with its descriptor.
///
/// With `write` the upper folder is written to, and only one such view may be there at a time.
pub(crate) fn view(layers: &[std::path::PathBuf], dir: &Path, write: bool) -> io::Result<OwnedFd> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    if layers.is_empty() {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        return Ok(rustix::fs::open(&upper, flags, Mode::empty())?);
    }
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value);
    if write {
        set("upperdir", &upper)?;
        set("workdir", &work)?;
    } else {
        set("lowerdir+", &upper)?;
    }
    for layer in layers {
        set("lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if !write {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    Ok(rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn clone_tree(dir: BorrowedFd<'_>, path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// A file through a read-only mount of its own that is attached nowhere. A process started from it shows a container
/// (through /proc/PID/exe) nothing that could be written to, whatever its capabilities on that file (CVE-2019-5736).
pub(crate) fn read_only_view(file: &Path) -> io::Result<OwnedFd> {
    let view = clone_tree(rustix::fs::CWD, &file.to_string_lossy(), false)?;
    sys::mount_read_only(view.as_fd(), false)?;
    Ok(view)
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd, String> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(at(format!("open {path}")))
}

/// Opens a place inside the root, making folders (and the file) that are missing.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &str, file: bool) -> Result<OwnedFd, String> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let look = |p: &str| rustix::fs::openat2(root, p, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside);
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let mut parent = String::new();
    for (depth, part) in parts.iter().enumerate() {
        let here = format!("{parent}/{part}");
        if let Err(error) = look(&here) {
            if error != rustix::io::Errno::NOENT {
                return Err(format!("{here} in the root file system: {error}"));
            }
            let folder = look(if parent.is_empty() { "/" } else { &parent }).map_err(at(&parent))?;
            let made = if file && depth + 1 == parts.len() {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                reopen(folder.as_fd())
                    .and_then(|f| rustix::fs::openat(&f, *part, flags, Mode::from(0o644)).map(drop))
            } else {
                reopen(folder.as_fd()).and_then(|f| rustix::fs::mkdirat(&f, *part, Mode::from(0o755)))
            };
            // A link that leads nowhere is found missing and then in the way.
            made.map_err(at(format!("make {here} in the root file system")))?;
        }
        parent = here;
    }
    look(if parent.is_empty() { "/" } else { &parent }).map_err(at(path))
}

/// A folder opened by path only, opened for use.
fn reopen(folder: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        folder,
        ".",
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn folder_fd(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, String> {
    let fd = resolve(root, path, false)?;
    let stat = rustix::fs::fstat(&fd).map_err(at(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(format!("{path} of the image is not a folder"));
    }
    Ok(fd)
}

/// /proc, /dev and /sys.
fn system(root: BorrowedFd<'_>) -> Step {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let put = |mount: OwnedFd, path: &str| -> Step {
        let target = folder_fd(root, path)?;
        attach(mount.as_fd(), target.as_fd(), "")
    };
    put(file_system("proc", &[], quiet)?, "/proc")?;
    let dev = file_system(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k")],
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )?;
    devices(dev.as_fd())?;
    put(dev, "/dev")?;
    let pts_options = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    put(file_system("devpts", &pts_options, no_exec)?, "/dev/pts")?;
    put(
        file_system("tmpfs", &[("mode", "1777"), ("size", "65536k")], quiet)?,
        "/dev/shm",
    )?;
    if let Ok(mqueue) = file_system("mqueue", &[], quiet) {
        put(mqueue, "/dev/mqueue")?;
    }
    put(
        file_system("sysfs", &[], quiet | MountAttrFlags::MOUNT_ATTR_RDONLY)?,
        "/sys",
    )?;
    if let Ok(cgroups) = cgroup_view(quiet) {
        // Hosts without the folder (no cgroups in sysfs) have nothing to show there.
        if let Ok(target) = folder_fd(root, "/sys/fs/cgroup") {
            attach(cgroups.as_fd(), target.as_fd(), "")?;
        }
    }
    Ok(())
}

fn cgroup_view(quiet: MountAttrFlags) -> Result<OwnedFd, String> {
    let read_only = quiet | MountAttrFlags::MOUNT_ATTR_RDONLY;
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return file_system("cgroup2", &[], read_only);
    }
    file_system("tmpfs", &[("size", "0"), ("mode", "555")], read_only)
}

fn devices(dev: BorrowedFd<'_>) -> Step {
    sys::umask(0);
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(dev, name, FileType::CharacterDevice, Mode::from(0o666), number)
            .map_err(at(format!("make /dev/{name}")))?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        rustix::fs::symlinkat(target, dev, name).map_err(at(format!("make /dev/{name}")))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, name, Mode::from(0o755)).map_err(at(format!("make /dev/{name}")))?;
    }
    sys::umask(0o022);
    Ok(())
}

fn place(root: BorrowedFd<'_>, mount: &MountConfig) -> Step {
    let target_path = mount.target.as_str();
    match &mount.source {
        MountSource::Bind { path, recursive } => {
            let source = path.to_string_lossy();
            let tree =
                clone_tree(rustix::fs::CWD, &source, *recursive).map_err(at(format!("bind {source}")))?;
            if mount.read_only {
                sys::mount_read_only(tree.as_fd(), *recursive)
                    .map_err(at(format!("make {target_path} read-only")))?;
            }
            let stat = rustix::fs::fstat(&tree).map_err(at(&*source))?;
            let is_file = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
            let target = resolve(root, target_path, is_file)?;
            attach(tree.as_fd(), target.as_fd(), "").map_err(at(format!("bind {source} at {target_path}")))
        }
        MountSource::Tmpfs { size, mode } => {
            let (size, mode) = (size.to_string(), format!("{mode:o}"));
            let mut options = vec![("mode", mode.as_str())];
            if size != "0" {
                options.push(("size", size.as_str()));
            }
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            if mount.read_only {
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            let tmpfs = file_system("tmpfs", &options, attributes)?;
            let target = folder_fd(root, target_path)?;
            attach(tmpfs.as_fd(), target.as_fd(), "").map_err(at(format!("tmpfs at {target_path}")))
        }
    }
}

/// Files whose content was given: all in one memory file system, each bound to its place.
fn files(root: BorrowedFd<'_>, files: &[FileMount]) -> Step {
    if files.is_empty() {
        return Ok(());
    }
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // Secrets must not reach the swap; kernels before 6.4 do not know the option and are asked without.
    let store = file_system("tmpfs", &[("mode", "700"), ("noswap", "")], quiet)
        .or_else(|_| file_system("tmpfs", &[("mode", "700")], quiet))?;
    // It has to be attached somewhere for its files to be bound; /dev/shm is hidden for the moment only.
    let shelf = folder_fd(root, "/dev/shm")?;
    attach(store.as_fd(), shelf.as_fd(), "")?;
    for (number, file) in files.iter().enumerate() {
        let name = number.to_string();
        write_file(store.as_fd(), &name, file).map_err(at(format!("write {}", file.target)))?;
        let tree = clone_tree(store.as_fd(), &name, false).map_err(at(&file.target))?;
        if !file.writable {
            sys::mount_read_only(tree.as_fd(), false).map_err(at(&file.target))?;
        }
        let target = resolve(root, &file.target, true)?;
        attach(tree.as_fd(), target.as_fd(), "").map_err(at(format!("show {}", file.target)))?;
    }
    let shelf = resolve(root, "/dev/shm", false)?;
    detach(shelf.as_fd())
}

fn write_file(store: BorrowedFd<'_>, name: &str, file: &FileMount) -> io::Result<()> {
    use std::io::Write;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(store, name, flags, Mode::from(0o600))?;
    let mut out = std::fs::File::from(fd);
    out.write_all(&file.content)?;
    rustix::fs::fchown(
        &out,
        Some(rustix::fs::Uid::from_raw(file.uid)),
        Some(rustix::fs::Gid::from_raw(file.gid)),
    )?;
    rustix::fs::fchmod(&out, Mode::from(file.mode))?;
    Ok(())
}

/// Takes a mount away again whose folder is known by descriptor only.
fn detach(mount: BorrowedFd<'_>) -> Step {
    use std::os::fd::AsRawFd;
    rustix::process::fchdir(mount).map_err(at("enter the shelf"))?;
    let _ = mount.as_raw_fd();
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("clear the shelf"))
}

/// A folder that is to be worked in, made where it is missing (the container is the root by now).
pub(crate) fn work_in(path: &str) -> Step {
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY)?;
    let folder = folder_fd(root.as_fd(), path)?;
    rustix::process::fchdir(&folder).map_err(at(format!("enter the working directory {path}")))
}

/// A C string for the kernel.
pub(crate) fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("a NUL byte in {text:?}"))
}
