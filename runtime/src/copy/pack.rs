//! A file or folder as a tar.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use tar::{Builder, EntryType, Header};

use super::place::Shape;
use super::tree::reopen;
use super::{CopyError, ENTRIES_MAX, NAME_MAX, io, shown};

/// Folders one in another; each holds a descriptor.
const DEPTH_MAX: usize = 256;
/// Files with several names that are remembered, so that each is sent once; of more than that each name is a file.
const LINKS_MAX: usize = 65_536;
/// Largest attribute that is sent along (the kernel's own bound).
const ATTRIBUTE_MAX: usize = 64 << 10;
/// File systems whose files are answers of the kernel: they have no size, some no end (statfs(2)).
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;
/// Capabilities of a program, the one attribute beside mode and owner that decides what it may do.
const CAPABILITY: &str = "security.capability";

/// What is to be copied, held open.
#[derive(Debug)]
pub struct Source {
    fd: OwnedFd,
    stat: Stat,
    /// A folder or not, and whether only what is in it.
    pub shape: Shape,
    /// Its name in the tar; `.` where it has none.
    pub name: String,
}

struct Level {
    fd: OwnedFd,
    dir: Dir,
    /// Length of the folder's own name in the path.
    length: usize,
}

struct Packer<W: Write> {
    out: Builder<W>,
    entries: u64,
    /// First name of each file that has several.
    names: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Source {
    pub(super) fn new(fd: OwnedFd, stat: Stat, shape: Shape, name: String) -> Result<Self, CopyError> {
        if is_answer(fd.as_fd()) {
            return Err(CopyError::Path {
                path: shown(name.as_bytes()),
                rule: "files of /proc and /sys are answers of the kernel and not copied: read them with `rswarm exec`",
            });
        }
        Ok(Self {
            fd,
            stat,
            shape,
            name,
        })
    }

    /// Its size in bytes; of a folder nothing is said.
    pub fn size(&self) -> u64 {
        if self.shape.folder {
            0
        } else {
            u64::try_from(self.stat.st_size).unwrap_or(0)
        }
    }

    /// Writes it as a tar. Sockets are left out, and so is what /proc and /sys hold.
    ///
    /// A file that shrinks meanwhile is filled with zeros, one that grows is cut at the size it had.
    ///
    /// # Errors
    /// [`CopyError::Limit`] when it has more entries or deeper folders than any copy may; [`CopyError::Io`].
    pub fn pack<W: Write>(self, out: W) -> Result<(), CopyError> {
        let mut packer = Packer {
            out: Builder::new(out),
            entries: 0,
            names: BTreeMap::new(),
        };
        let mut path = self.name.into_bytes();
        let mut levels: Vec<Level> = Vec::new();
        packer.put(&path, self.fd.as_fd(), &self.stat)?;
        if self.shape.folder {
            levels.push(enter(&path, self.fd)?);
        }
        while let Some(level) = levels.last_mut() {
            path.truncate(level.length);
            let Some(entry) = level.dir.read() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(io(format!("read the folder {}", shown(&path))))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            // One name without `/`, and no link is followed: this cannot lead elsewhere.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(child) = rustix::fs::openat(&level.fd, name, flags, Mode::empty()) else {
                // It was removed since it was listed.
                continue;
            };
            let stat = rustix::fs::fstat(&child).map_err(io(format!("look at {}", shown(&path))))?;
            packer.put(&path, child.as_fd(), &stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && !is_answer(child.as_fd()) {
                if levels.len() >= DEPTH_MAX {
                    let deep = format!("{} lies in more than {DEPTH_MAX} folders", shown(&path));
                    return Err(CopyError::Limit(deep));
                }
                levels.push(enter(&path, child)?);
            }
        }
        packer.out.finish().map_err(io("end the tar"))
    }
}

fn enter(path: &[u8], fd: OwnedFd) -> Result<Level, CopyError> {
    let what = || format!("read the folder {}", shown(path));
    let fd = reopen(fd.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(io(what()))?;
    Ok(Level {
        dir: Dir::read_from(&fd).map_err(io(what()))?,
        fd,
        length: path.len(),
    })
}

/// Whether it lies in /proc or /sys.
fn is_answer(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|f| [PROC, SYSFS].contains(&f.f_type.cast_unsigned()))
}

impl<W: Write> Packer<W> {
    fn put(&mut self, path: &[u8], fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), CopyError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(CopyError::Limit(format!("more than {ENTRIES_MAX} files")));
        }
        if path.len() > NAME_MAX {
            return Err(CopyError::Limit(format!(
                "the name {} … has more than {NAME_MAX} bytes",
                shown(path)
            )));
        }
        let mut header = header(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let identity = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&identity).cloned() {
                header.set_entry_type(EntryType::Link);
                return self.write(header, path, &first, std::io::empty(), 0);
            }
            if self.names.len() < LINKS_MAX {
                self.names.insert(identity, path.to_vec());
            }
        }
        match kind {
            FileType::RegularFile => {
                header.set_entry_type(EntryType::Regular);
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = reopen(fd, flags).map_err(io(format!("open {}", shown(path))))?;
                self.attributes(&file)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let data = Exact {
                    file: std::fs::File::from(file),
                    left: size,
                };
                self.write(header, path, &[], data, size)
            }
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                let mut name = path.to_vec();
                name.push(b'/');
                self.write(header, &name, &[], std::io::empty(), 0)
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = rustix::fs::readlinkat(fd, "", Vec::new());
                let target = target.map_err(io(format!("read the link {}", shown(path))))?;
                self.write(header, path, target.as_bytes(), std::io::empty(), 0)
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.write(header, path, &[], std::io::empty(), 0)
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let block = kind == FileType::BlockDevice;
                header.set_entry_type(if block { EntryType::Block } else { EntryType::Char });
                let number =
                    |n: std::io::Result<()>| n.map_err(io(format!("number of the device {}", shown(path))));
                number(header.set_device_major(rustix::fs::major(stat.st_rdev)))?;
                number(header.set_device_minor(rustix::fs::minor(stat.st_rdev)))?;
                self.write(header, path, &[], std::io::empty(), 0)
            }
            // A socket is nothing without the process behind it.
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    /// Capabilities of a program, which would be lost without.
    fn attributes(&mut self, file: &OwnedFd) -> Result<(), CopyError> {
        let mut value = vec![0u8; ATTRIBUTE_MAX];
        match rustix::fs::fgetxattr(file, CAPABILITY, value.as_mut_slice()) {
            Ok(length @ 1..) => {
                value.truncate(length);
                let key = format!("SCHILY.xattr.{CAPABILITY}");
                let pair = [(key.as_str(), value.as_slice())];
                self.out
                    .append_pax_extensions(pair)
                    .map_err(io("write the capabilities of a program"))
            }
            // Most files have none, and some file systems know of none.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// One entry. Names that do not fit a header come before it, as GNU tar writes them.
    fn write(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        data: impl Read,
        size: u64,
    ) -> Result<(), CopyError> {
        let what = || format!("write {} to the tar", shown(path));
        for (bytes, kind) in [(path, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            let field = header.as_old_mut();
            let field = if kind == EntryType::GNULongName {
                &mut field.name
            } else {
                &mut field.linkname
            };
            let fits = bytes.len().min(field.len() - 1);
            field[..fits].copy_from_slice(&bytes[..fits]);
            if fits < bytes.len() {
                let mut long = Header::new_gnu();
                long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
                long.set_entry_type(kind);
                long.set_size(bytes.len() as u64 + 1);
                long.set_mode(0o644);
                long.set_cksum();
                let text = bytes.chain(&b"\0"[..]);
                self.out.append(&long, text).map_err(io(what()))?;
            }
        }
        header.set_size(size);
        header.set_cksum();
        self.out.append(&header, data).map_err(io(what()))
    }
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header
}

/// As many bytes as were promised, whatever becomes of the file.
struct Exact {
    file: std::fs::File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = match self.file.read(&mut buffer[..most])? {
            0 => {
                buffer[..most].fill(0);
                most
            }
            read => read,
        };
        self.left -= read as u64;
        Ok(read)
    }
}

/// Where a descriptor can be named, for calls that take no descriptor.
pub(super) fn name_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
