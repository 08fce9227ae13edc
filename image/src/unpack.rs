//! A layer's tar into a folder that overlayfs takes as it is. The tar is not trusted.
//!
//! Every name is resolved inside the folder by openat2(2); nothing is followed out of it. Device nodes are left out:
//! containers have their own. Whiteouts become what overlayfs reads (kernel: filesystems/overlayfs.rst).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use sha2::{Digest, Sha256};
use tar::EntryType;

/// Most entries of one layer.
const ENTRIES_MAX: u64 = 2_000_000;
/// Most bytes one layer unpacks to.
const BYTES_MAX: u64 = 64 << 30;
/// Longest name.
const NAME_MAX: usize = 4096;

/// Why a layer was not unpacked. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It cannot be read, or a file cannot be written.
    #[error("unpack {entry}")]
    Io {
        /// Which entry.
        entry: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no tar, or a broken one.
    #[error("E_TAR_FORMAT: {0}")]
    Format(String),
    /// An entry would lie outside the image.
    #[error("E_TAR_ESCAPE: the entry {entry} leads outside the image")]
    Escape {
        /// Which entry.
        entry: String,
    },
    /// It is larger than any image we take.
    #[error("E_LAYER_LIMIT: {0}")]
    Limit(String),
    /// Its content is not what its digest says.
    #[error("E_DIGEST: the layer is {found}, not {wanted}: the archive is damaged or was changed")]
    Digest {
        /// What the image names.
        wanted: String,
        /// What was read.
        found: String,
    },
}

impl UnpackError {
    /// Whether this host is to blame (its disk is full, say) and not what was read.
    pub fn is_local(&self) -> bool {
        match self {
            // What a decoder finds wrong has no number of the kernel.
            Self::Io { source, .. } => source.raw_os_error().is_some(),
            Self::Format(_) | Self::Escape { .. } | Self::Limit(_) | Self::Digest { .. } => false,
        }
    }
}

/// Counts and hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        if self.bytes > BYTES_MAX {
            return Err(io::Error::other(
                "E_LAYER_LIMIT: more bytes than any layer may have",
            ));
        }
        Ok(n)
    }
}

/// Unpacks a tar into the empty folder `into`; answers the digest of the tar.
pub(crate) fn unpack(source: impl Read, into: &Path) -> Result<String, UnpackError> {
    let whole = |source: io::Error| UnpackError::Io {
        entry: into.display().to_string(),
        source,
    };
    let root = rustix::fs::open(
        into,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| whole(e.into()))?;
    let mut hashing = Hashing {
        inner: source,
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut folders: Vec<(String, Timestamps)> = Vec::new();
    {
        let mut archive = tar::Archive::new(&mut hashing);
        let entries = archive
            .entries()
            .map_err(|e| UnpackError::Format(e.to_string()))?;
        for (count, entry) in entries.enumerate() {
            if count as u64 >= ENTRIES_MAX {
                return Err(UnpackError::Limit(format!("more than {ENTRIES_MAX} entries")));
            }
            let mut entry = entry.map_err(|e| UnpackError::Format(e.to_string()))?;
            place(root.as_fd(), &mut entry, &mut folders)?;
        }
    }
    io::copy(&mut hashing, &mut io::sink()).map_err(whole)?;
    // Folders last: what was put into them changed their times.
    for (name, times) in folders.iter().rev() {
        if let Ok(folder) = open_inside(root.as_fd(), name, OFlags::DIRECTORY | OFlags::RDONLY) {
            let _ = rustix::fs::futimens(&folder, times);
        }
    }
    Ok(format!("sha256:{:x}", hashing.hash.finalize()))
}

/// A name inside the root: no climbing, no absolute path, no empty name.
fn inside(path: &Path) -> Result<String, UnpackError> {
    let text = path.to_string_lossy().into_owned();
    let escape = || UnpackError::Escape {
        entry: text.chars().take(200).collect(),
    };
    if text.len() > NAME_MAX || text.contains('\0') {
        return Err(UnpackError::Limit("a name longer than 4096 bytes".into()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir | Component::RootDir => {}
            Component::Normal(p) => parts.push(p.to_str().ok_or_else(escape)?),
            Component::ParentDir | Component::Prefix(_) => return Err(escape()),
        }
    }
    // An absolute name is an attempt to write to the host; Docker's own archives have none.
    if path.is_absolute() {
        return Err(escape());
    }
    Ok(parts.join("/"))
}

fn open_inside(root: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let name = if name.is_empty() { "." } else { name };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// The folder of an entry, made where it is missing, and the entry's last name.
fn parent<'n>(root: BorrowedFd<'_>, name: &'n str) -> io::Result<(OwnedFd, &'n str)> {
    let (folder, last) = name.rsplit_once('/').unwrap_or(("", name));
    let mut made = String::new();
    for part in folder.split('/').filter(|p| !p.is_empty()) {
        let above = if made.is_empty() {
            String::new()
        } else {
            made.clone()
        };
        if !made.is_empty() {
            made.push('/');
        }
        made.push_str(part);
        if let Err(e) = open_inside(root, &made, OFlags::DIRECTORY | OFlags::PATH) {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(e);
            }
            let above = open_inside(root, &above, OFlags::DIRECTORY | OFlags::RDONLY)?;
            rustix::fs::mkdirat(&above, part, Mode::from(0o755))?;
        }
    }
    Ok((
        open_inside(root, folder, OFlags::DIRECTORY | OFlags::RDONLY)?,
        last,
    ))
}

fn place<R: Read>(
    root: BorrowedFd<'_>,
    entry: &mut tar::Entry<'_, R>,
    folders: &mut Vec<(String, Timestamps)>,
) -> Result<(), UnpackError> {
    let path = entry
        .path()
        .map_err(|e| UnpackError::Format(e.to_string()))?
        .into_owned();
    let name = inside(&path)?;
    let io = |source: io::Error| UnpackError::Io {
        entry: name.clone(),
        source,
    };
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let header = Header::read(entry)?;
    if name.is_empty() {
        folders.push((name, header.times));
        return Ok(());
    }
    let (folder, last) = parent(root, &name).map_err(io)?;
    if let Some(hidden) = last.strip_prefix(".wh.") {
        return whiteout(folder.as_fd(), hidden).map_err(io);
    }
    let exists = rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW).ok();
    let is_folder = exists
        .as_ref()
        .is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
    if exists.is_some() && !(is_folder && kind.is_dir()) {
        let flags = if is_folder {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(&folder, last, flags).map_err(|e| io(e.into()))?;
    }
    match kind {
        EntryType::Directory => {
            if !is_folder {
                rustix::fs::mkdirat(&folder, last, Mode::from(0o755)).map_err(|e| io(e.into()))?;
            }
            folders.push((name.clone(), header.times.clone()));
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file =
                rustix::fs::openat(&folder, last, flags, Mode::from(0o600)).map_err(|e| io(e.into()))?;
            io::copy(entry, &mut std::fs::File::from(file)).map_err(io)?;
        }
        EntryType::Symlink => {
            let target = entry.link_name().ok().flatten().ok_or_else(|| no_target(&name))?;
            rustix::fs::symlinkat(target.as_ref(), &folder, last).map_err(|e| io(e.into()))?;
        }
        EntryType::Link => {
            let target = entry.link_name().ok().flatten().ok_or_else(|| no_target(&name))?;
            let target = inside(&target)?;
            let (from, from_name) = parent(root, &target).map_err(io)?;
            // The name itself, not what it may lead to, so that no link reaches a file outside.
            rustix::fs::linkat(&from, from_name, &folder, last, AtFlags::empty())
                .map_err(|e| io(e.into()))?;
            return Ok(());
        }
        EntryType::Fifo => rustix::fs::mknodat(&folder, last, FileType::Fifo, Mode::from(0o600), 0)
            .map_err(|e| io(e.into()))?,
        EntryType::Char | EntryType::Block => return Ok(()),
        other => {
            return Err(UnpackError::Format(format!(
                "the entry {name} is of the unknown kind {other:?}"
            )));
        }
    }
    header.apply(folder.as_fd(), last, kind).map_err(io)
}

fn no_target(name: &str) -> UnpackError {
    UnpackError::Format(format!("the link {name} has no target"))
}

fn whiteout(folder: BorrowedFd<'_>, hidden: &str) -> io::Result<()> {
    if hidden == ".wh..opq" {
        rustix::fs::fsetxattr(folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
        return Ok(());
    }
    if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.starts_with(".wh.") {
        return Ok(());
    }
    rustix::fs::mknodat(folder, hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
    Ok(())
}

/// Owner, mode, times and attributes of an entry.
struct Header {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Header {
    fn read<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Self, UnpackError> {
        let wrong = |e: io::Error| UnpackError::Format(e.to_string());
        let small = |n: u64| u32::try_from(n).ok().filter(|n| *n != u32::MAX);
        let id = |n: u64| {
            small(n).ok_or_else(|| UnpackError::Format(format!("an owner has the impossible id {n}")))
        };
        let header = entry.header();
        let (uid, gid) = (
            id(header.uid().map_err(wrong)?)?,
            id(header.gid().map_err(wrong)?)?,
        );
        let mode = header.mode().map_err(wrong)? & 0o7777;
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let at = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut xattrs = Vec::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions {
                let extension = extension.map_err(wrong)?;
                let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else {
                    continue;
                };
                if name.starts_with("trusted.overlay") || name.starts_with("user.overlay") {
                    return Err(UnpackError::Format(format!(
                        "the attribute {name} would control the overlay"
                    )));
                }
                if name.starts_with("user.") || name == "security.capability" {
                    xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        Ok(Self {
            uid,
            gid,
            mode,
            times: Timestamps {
                last_access: at,
                last_modification: at,
            },
            xattrs,
        })
    }

    fn apply(&self, folder: BorrowedFd<'_>, last: &str, kind: EntryType) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(folder, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            // After the owner, since a change of owner clears the set-user-id bits.
            rustix::fs::chmodat(folder, last, Mode::from(self.mode), AtFlags::empty())?;
        }
        if !self.xattrs.is_empty() && (kind == EntryType::Regular || kind == EntryType::Directory) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(folder, last, flags, Mode::empty())?;
            for (name, value) in &self.xattrs {
                rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty())?;
            }
        }
        rustix::fs::utimensat(folder, last, &self.times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}
