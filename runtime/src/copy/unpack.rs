//! A tar into a folder that somebody else may be changing meanwhile. Neither is trusted.

use std::ffi::{OsStr, OsString};
use std::io::{self as stdio, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::pack::name_of;
use super::{CopyError, ENTRIES_MAX, NAME_MAX, io, shown};

/// Largest header of the kind that precedes an entry: attributes may have 64 KiB, names 4 KiB.
const EXTENSION_MAX: u64 = 256 << 10;
/// Folders whose times are set at the end; of more than that the others get the time of the copy.
const FOLDERS_MAX: usize = 100_000;
/// Largest id of a user or group: the one above means "no change".
const ID_MAX: u64 = u32::MAX as u64 - 1;

/// Whose the files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// As the tar says.
    Kept,
    /// This user and group.
    Is(u32, u32),
}

/// What is taken over of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Owner of what is made.
    pub owner: Owner,
    /// Keeps set-user-id and set-group-id bits, and capabilities of programs.
    pub privileges: bool,
    /// Makes device nodes; otherwise they are left out and counted.
    pub devices: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of files.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub devices_left_out: u64,
}

/// Where a tar is unpacked.
#[derive(Debug)]
pub struct Target {
    folder: OwnedFd,
    resolve: ResolveFlags,
    /// What the first part of each name becomes; empty: it is taken off.
    rename: Option<OsString>,
}

impl Target {
    pub(super) fn new(folder: OwnedFd, resolve: ResolveFlags, rename: Option<OsString>) -> Self {
        Self {
            folder,
            resolve,
            rename,
        }
    }

    /// A name of the tar below the folder; empty: the folder itself.
    fn name(&self, given: &[u8]) -> Result<PathBuf, CopyError> {
        let wrong = |rule| CopyError::Path {
            path: format!("the entry {}", shown(given)),
            rule,
        };
        if given.len() > NAME_MAX || given.contains(&0) {
            return Err(CopyError::Limit(format!(
                "the name {} … has more than {NAME_MAX} bytes",
                shown(given)
            )));
        }
        let mut parts: Vec<&OsStr> = Vec::new();
        let path = Path::new(OsStr::from_bytes(given));
        for part in path.components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => parts.push(part),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(wrong("it names a place from the root on"));
                }
                Component::ParentDir => return Err(wrong("it leads out of the folder")),
            }
        }
        let Some(rename) = &self.rename else {
            return Ok(parts.iter().collect());
        };
        // What came as `.` has no first part to be replaced.
        let rest = if given == b"." || given.starts_with(b"./") {
            &parts[..]
        } else {
            parts.get(1..).unwrap_or_default()
        };
        let rename = Some(rename.as_os_str()).filter(|r| !r.is_empty());
        Ok(rename.into_iter().chain(rest.iter().copied()).collect())
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(
            &self.folder,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            self.resolve,
        )
    }

    /// The folder of an entry, made where it is missing.
    fn parent(&self, name: &Path) -> Result<OwnedFd, CopyError> {
        let above = name.parent().unwrap_or(Path::new(""));
        let flags = OFlags::DIRECTORY | OFlags::PATH;
        match self.open(above, flags) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(refused(above, error)),
        }
        let mut made = PathBuf::new();
        let mut folder = self.open(&made, flags).map_err(|e| refused(above, e))?;
        for part in above.components() {
            made.push(part);
            folder = match self.open(&made, flags) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::from(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(refused(&made, error)),
                    }
                    // A link that leads nowhere was in the way.
                    self.open(&made, flags).map_err(|e| refused(&made, e))?
                }
                Err(error) => return Err(refused(&made, error)),
            };
        }
        Ok(folder)
    }
}

fn refused(path: &Path, error: Errno) -> CopyError {
    let path = shown(path.as_os_str().as_bytes());
    let rule = match error {
        Errno::XDEV => "a link there leads out of the folder that is copied to",
        Errno::LOOP => "a link there leads nowhere, or into another process",
        Errno::NOTDIR => "a part of it is there already and is no folder",
        Errno::NOENT => "it was changed while it was copied to",
        error => {
            return CopyError::Io {
                what: format!("write {path}"),
                source: error.into(),
            };
        }
    };
    CopyError::Path { path, rule }
}

/// What stood before an entry about it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    capability: Option<Vec<u8>>,
}

impl Before {
    fn take(&mut self, entry: &mut Entry<'_, impl Read>, kind: EntryType) -> Result<(), CopyError> {
        let mut bytes = Vec::new();
        let most = EXTENSION_MAX + 1;
        entry
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|e| CopyError::Format(e.to_string()))?;
        if bytes.len() as u64 >= most {
            return Err(CopyError::Limit(format!(
                "a header of more than {EXTENSION_MAX} bytes"
            )));
        }
        let text = |mut bytes: Vec<u8>| {
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            bytes
        };
        match kind {
            EntryType::GNULongName => self.name = Some(text(bytes)),
            EntryType::GNULongLink => self.link = Some(text(bytes)),
            _ => self.records(&bytes)?,
        }
        Ok(())
    }

    /// Records of a pax header, `LENGTH KEY=VALUE\n` each: values may hold any byte, so they are counted.
    fn records(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        let wrong = || CopyError::Format("a pax header that cannot be read".into());
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .position(|b| *b == b' ')
                .filter(|at| *at < 8)
                .ok_or_else(wrong)?;
            let length = std::str::from_utf8(&bytes[..space])
                .ok()
                .and_then(|t| t.parse::<usize>().ok());
            let length = length
                .filter(|l| *l > space + 1 && *l <= bytes.len())
                .ok_or_else(wrong)?;
            let (record, rest) = bytes.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|t| t.parse::<u64>().ok())
                    .ok_or_else(wrong)
            };
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"size" => self.size = Some(number()?),
                b"SCHILY.xattr.security.capability" => self.capability = Some(value.to_vec()),
                _ => {}
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Unpacks a tar. What is there already is replaced: folders keep what is in them, a folder never gives way to a file,
/// nor a file to a folder. What came before an error stays.
///
/// # Errors
/// [`CopyError::Path`] for entries that lead out of the folder, [`CopyError::Format`], [`CopyError::Limit`], and
/// [`CopyError::Io`] when a file cannot be written.
pub fn unpack(source: impl Read, target: &Target, options: Options) -> Result<Outcome, CopyError> {
    let broken = |e: stdio::Error| CopyError::Format(e.to_string());
    let mut archive = tar::Archive::new(source);
    let mut work = Unpacker {
        target,
        options,
        outcome: Outcome::default(),
        folders: Vec::new(),
    };
    let mut before = Before::default();
    // Raw, because otherwise long names are read to memory whatever their length.
    for (count, entry) in archive.entries().map_err(broken)?.raw(true).enumerate() {
        if count as u64 >= ENTRIES_MAX * 3 {
            return Err(CopyError::Limit(format!("more than {ENTRIES_MAX} files")));
        }
        let mut entry = entry.map_err(broken)?;
        match entry.header().entry_type() {
            kind @ (EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader) => {
                before.take(&mut entry, kind)?;
            }
            EntryType::XGlobalHeader => {}
            kind => work.place(&mut entry, kind, std::mem::take(&mut before))?,
        }
    }
    work.finish();
    Ok(work.outcome)
}

struct Unpacker<'t> {
    target: &'t Target,
    options: Options,
    outcome: Outcome,
    folders: Vec<(PathBuf, Timestamps)>,
}

/// What an entry says of its file.
struct About {
    owner: (Uid, Gid),
    mode: Mode,
    times: Timestamps,
    capability: Option<Vec<u8>>,
}

impl Unpacker<'_> {
    fn about(&self, entry: &Entry<'_, impl Read>, before: &mut Before) -> Result<About, CopyError> {
        let header = entry.header();
        let wrong = |e: stdio::Error| CopyError::Format(e.to_string());
        let id = |said: Option<u64>, field: stdio::Result<u64>| -> Result<u32, CopyError> {
            let number = said.map_or(field, Ok).map_err(wrong)?;
            u32::try_from(number)
                .ok()
                .filter(|n| u64::from(*n) <= ID_MAX)
                .ok_or_else(|| CopyError::Format(format!("an owner has the impossible id {number}")))
        };
        let (uid, gid) = match self.options.owner {
            Owner::Is(uid, gid) => (uid, gid),
            Owner::Kept => (id(before.uid, header.uid())?, id(before.gid, header.gid())?),
        };
        let kept = if self.options.privileges { 0o7777 } else { 0o1777 };
        let at = Timespec {
            tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
            tv_nsec: 0,
        };
        Ok(About {
            owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
            mode: Mode::from(header.mode().map_err(wrong)? & kept),
            times: Timestamps {
                last_access: at,
                last_modification: at,
            },
            capability: before.capability.take().filter(|_| self.options.privileges),
        })
    }

    fn place(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        mut before: Before,
    ) -> Result<(), CopyError> {
        let given = before
            .name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        if before.size.is_some_and(|size| size != entry.size()) {
            return Err(CopyError::Format(format!(
                "{}: its size stands in a pax header only: write the tar in GNU format",
                shown(&given)
            )));
        }
        let name = self.target.name(&given)?;
        let Some(last) = name.file_name().map(OsStr::to_owned) else {
            // What is copied is the content of a folder; the folder it goes to stays what it is.
            return Ok(());
        };
        let about = self.about(entry, &mut before)?;
        let folder = self.target.parent(&name)?;
        let failed = |e: Errno| refused(&name, e);
        let there = match rustix::fs::statat(&folder, &last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        let wrong = |rule| CopyError::Path {
            path: shown(name.as_os_str().as_bytes()),
            rule,
        };
        match (there, kind.is_dir()) {
            (Some(true), false) => return Err(wrong("a folder is there already, and gives way to no file")),
            (Some(false), true) => return Err(wrong("a file is there already, and gives way to no folder")),
            (Some(false), false) if !self.is_left_out(kind) => {
                rustix::fs::unlinkat(&folder, &last, AtFlags::empty()).map_err(failed)?;
            }
            (Some(_) | None, _) => {}
        }
        let link = || {
            let link = before
                .link
                .clone()
                .or_else(|| entry.link_name_bytes().map(|l| l.into_owned()));
            link.filter(|l| !l.is_empty() && l.len() <= NAME_MAX)
                .ok_or_else(|| wrong("a link that has no target, or a target longer than any path"))
        };
        match kind {
            EntryType::Directory => {
                if there.is_none() {
                    rustix::fs::mkdirat(&folder, &last, Mode::from(0o700)).map_err(failed)?;
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&folder, &last, flags, Mode::empty()).map_err(failed)?;
                about.apply(made.as_fd()).map_err(failed)?;
                if self.folders.len() < FOLDERS_MAX {
                    self.folders.push((name, about.times));
                }
            }
            EntryType::Regular | EntryType::Continuous => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&folder, &last, flags, Mode::from(0o600)).map_err(failed)?;
                let mut file = std::fs::File::from(file);
                self.outcome.bytes +=
                    stdio::copy(entry, &mut file).map_err(io(format!("write {}", name.display())))?;
                about.apply(file.as_fd()).map_err(failed)?;
                if let Some(value) = &about.capability {
                    let _ = rustix::fs::fsetxattr(&file, "security.capability", value, XattrFlags::empty());
                }
            }
            EntryType::Symlink => {
                let target = link()?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &folder, &last).map_err(failed)?;
                let (uid, gid) = about.owner;
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&folder, &last, Some(uid), Some(gid), nofollow).map_err(failed)?;
                rustix::fs::utimensat(&folder, &last, &about.times, nofollow).map_err(failed)?;
            }
            EntryType::Link => {
                let target = self.target.name(&link()?)?;
                let Some(target_name) = target.file_name() else {
                    return Err(wrong("a link to the folder itself"));
                };
                let from = self.target.parent(&target)?;
                // The name itself, not what it may lead to.
                rustix::fs::linkat(&from, target_name, &folder, &last, AtFlags::empty()).map_err(failed)?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&folder, &last, FileType::Fifo, Mode::from(0o600), 0).map_err(failed)?;
                about
                    .apply_to_node(folder.as_fd(), &last, FileType::Fifo)
                    .map_err(failed)?;
            }
            EntryType::Char | EntryType::Block if self.is_left_out(kind) => {
                self.outcome.devices_left_out += 1
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let number = |n: stdio::Result<Option<u32>>| {
                    n.ok().flatten().ok_or_else(|| wrong("a device without a number"))
                };
                let device =
                    rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
                let kind = if kind == EntryType::Block {
                    FileType::BlockDevice
                } else {
                    FileType::CharacterDevice
                };
                rustix::fs::mknodat(&folder, &last, kind, Mode::from(0o600), device).map_err(failed)?;
                about.apply_to_node(folder.as_fd(), &last, kind).map_err(failed)?;
            }
            other => {
                return Err(CopyError::Format(format!(
                    "the entry {} is of the kind {other:?}, which is not taken",
                    shown(&given)
                )));
            }
        }
        Ok(())
    }

    fn is_left_out(&self, kind: EntryType) -> bool {
        matches!(kind, EntryType::Char | EntryType::Block) && !self.options.devices
    }

    /// Times of folders come last: what was put into them changed them.
    fn finish(&mut self) {
        for (name, times) in self.folders.iter().rev() {
            if let Ok(folder) = self.target.open(name, OFlags::DIRECTORY | OFlags::RDONLY) {
                let _ = rustix::fs::futimens(&folder, times);
            }
        }
    }
}

impl About {
    /// Through the descriptor only: the name may mean something else by now.
    fn apply(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let (uid, gid) = self.owner;
        rustix::fs::fchown(fd, Some(uid), Some(gid))?;
        // After the owner, since a change of owner clears the set-user-id bits.
        rustix::fs::fchmod(fd, self.mode)?;
        rustix::fs::futimens(fd, &self.times)
    }

    /// For what must not be opened, as a pipe or a device would act on that.
    fn apply_to_node(&self, folder: BorrowedFd<'_>, last: &OsStr, kind: FileType) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(folder, last, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode) != kind {
            return Err(Errno::NOENT);
        }
        let (uid, gid) = self.owner;
        let itself = name_of(node.as_fd());
        rustix::fs::chownat(rustix::fs::CWD, &itself, Some(uid), Some(gid), AtFlags::empty())?;
        rustix::fs::chmodat(rustix::fs::CWD, &itself, self.mode, AtFlags::empty())?;
        rustix::fs::utimensat(rustix::fs::CWD, &itself, &self.times, AtFlags::empty())
    }
}
