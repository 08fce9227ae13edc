//! A folder that is the root of every path: a container's, or the host's own.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::pack::Source;
use super::place::{Destination, Place, Shape, place};
use super::unpack::Target;
use super::{CopyError, NAME_MAX, io, shown};

/// Links of /proc that are no names but doors (to other processes' roots and descriptors) are never gone through.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A root for paths.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    resolve: ResolveFlags,
    /// Held as long as the root is used: a lock.
    _held: Option<OwnedFd>,
}

/// A path as it was typed, cut at `/`.
struct Typed<'p> {
    /// From the root, without `/` at either end; empty: the root.
    path: String,
    /// It ended with `/` or `/.`, so a folder is meant.
    slash: bool,
    /// It ended with `/.`, or is the root: what is in the folder is meant.
    contents: bool,
    /// As it was.
    text: &'p str,
}

impl<'p> Typed<'p> {
    /// # Errors
    /// [`CopyError::Path`] for what climbs above the root, and for no path at all.
    fn parse(text: &'p str) -> Result<Self, CopyError> {
        let wrong = |rule| CopyError::Path {
            path: shown(text.as_bytes()),
            rule,
        };
        if text.is_empty() {
            return Err(wrong("an empty path names nothing"));
        }
        if text.len() > NAME_MAX || text.contains('\0') {
            return Err(wrong("a path has at most 4096 bytes, none of them 0"));
        }
        let mut depth = 0u32;
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| wrong("it leads above the root"))?
                }
                _ => depth += 1,
            }
        }
        let parts: Vec<&str> = text.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(Self {
            slash: matches!(last, "" | "." | ".."),
            // Where `..` ends is known by no name, so it is copied without one.
            contents: matches!(last, "." | "..") || parts.is_empty(),
            path: parts.join("/"),
            text,
        })
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// The root of this host, and a path on it made absolute: for what an operator names on the own machine.
///
/// # Errors
/// The working directory is unknown, the path is no text, or `/` cannot be opened.
pub fn local(path: &Path) -> Result<(Tree, String), CopyError> {
    let text = path.to_str().ok_or_else(|| CopyError::Path {
        path: shown(path.as_os_str().as_bytes()),
        rule: "it is no UTF-8",
    })?;
    let here = std::env::current_dir().map_err(io("find the working directory"))?;
    let whole = if path.is_absolute() {
        text.to_owned()
    } else {
        // Joined as text: a path type would lose the `/.` at the end, which means something here.
        format!("{}/{text}", here.display())
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(io("open /"))?;
    let resolve = ResolveFlags::empty();
    let tree = Tree {
        root,
        resolve,
        _held: None,
    };
    Ok((tree, whole))
}

impl Tree {
    /// A folder as the root, such as a container's. No link leads out of it.
    pub(crate) fn new(root: OwnedFd, held: Option<OwnedFd>) -> Self {
        Self {
            root,
            resolve: IN_ROOT,
            _held: held,
        }
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), self.resolve)
    }

    fn found(&self, typed: &Typed<'_>, follow: bool) -> Result<(OwnedFd, Stat), CopyError> {
        let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let fd = self
            .open(&typed.path, flags)
            .map_err(|e| refused(typed.text, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(io(format!("look at {}", shown(typed.text.as_bytes()))))?;
        Ok((fd, stat))
    }

    /// A regular file, opened to be read.
    pub(super) fn file(&self, path: &str) -> Option<std::fs::File> {
        let (fd, stat) = self.found(&Typed::parse(path).ok()?, true).ok()?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let opened = regular.then(|| reopen(fd.as_fd(), OFlags::RDONLY).ok()).flatten();
        opened.map(std::fs::File::from)
    }

    /// What is at a path, to be copied; with `follow`, what a link there leads to.
    ///
    /// # Errors
    /// [`CopyError::Path`] and [`CopyError::Missing`].
    pub fn source(&self, path: &str, follow: bool) -> Result<Source, CopyError> {
        let typed = Typed::parse(path)?;
        let (fd, stat) = self.found(&typed, follow || typed.slash)?;
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if typed.slash && !folder {
            return Err(CopyError::Path {
                path: shown(path.as_bytes()),
                rule: "it ends with / but is no folder",
            });
        }
        let shape = Shape {
            folder,
            contents: folder && typed.contents,
        };
        let name = if shape.contents { "." } else { typed.name() };
        Source::new(fd, stat, shape, name.into())
    }

    /// Where a copy of this shape goes, when `path` is its destination.
    ///
    /// # Errors
    /// [`CopyError::Path`], [`CopyError::Missing`] (its folder), [`CopyError::Place`].
    pub fn target(&self, path: &str, source: Shape) -> Result<Target, CopyError> {
        let typed = Typed::parse(path)?;
        let there = match self.open(&typed.path, OFlags::empty()) {
            Ok(fd) => Some(fd),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(refused(path, error)),
        };
        let kind = match &there {
            None => Destination::Nothing,
            Some(fd) => {
                let stat =
                    rustix::fs::fstat(fd).map_err(io(format!("look at {}", shown(path.as_bytes()))))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Destination::Folder,
                    _ => Destination::Other,
                }
            }
        };
        let how = place(source, kind, typed.slash)?;
        let (folder, rename) = match (how, there) {
            (Place::Into, Some(fd)) => (fd, None),
            (Place::Contents, Some(fd)) => (fd, Some(OsString::new())),
            (Place::As, _) | (Place::Into | Place::Contents, None) => {
                let above = typed.path.rsplit_once('/').map_or("", |(above, _)| above);
                let above = self.open(above, OFlags::DIRECTORY).map_err(|e| match e {
                    Errno::NOENT => CopyError::Missing {
                        path: format!("the folder of {}", shown(path.as_bytes())),
                    },
                    e => refused(path, e),
                })?;
                (above, Some(OsString::from_vec(typed.name().into())))
            }
        };
        self.into(folder, rename, path)
    }

    /// A folder into which a tar is unpacked as it is.
    ///
    /// # Errors
    /// [`CopyError::Path`] when it is no folder, [`CopyError::Missing`].
    pub fn folder(&self, path: &str) -> Result<Target, CopyError> {
        let typed = Typed::parse(path)?;
        let fd = self
            .open(&typed.path, OFlags::DIRECTORY)
            .map_err(|e| refused(path, e))?;
        self.into(fd, None, path)
    }

    fn into(&self, folder: OwnedFd, rename: Option<OsString>, path: &str) -> Result<Target, CopyError> {
        let what = || format!("open the folder {}", shown(path.as_bytes()));
        let same = |a: BorrowedFd<'_>, b: BorrowedFd<'_>| -> rustix::io::Result<bool> {
            let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
            Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
        };
        let whole = same(folder.as_fd(), self.root.as_fd()).map_err(io(what()))?;
        // Below the root, links may lead anywhere in it; below another folder they must stay there.
        let resolve = if whole {
            IN_ROOT
        } else {
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
        };
        Ok(Target::new(folder, resolve, rename))
    }
}

fn refused(path: &str, error: Errno) -> CopyError {
    let path = shown(path.as_bytes());
    match error {
        Errno::NOENT => CopyError::Missing { path },
        Errno::LOOP => CopyError::Path {
            path,
            rule: "its links lead nowhere, or into another process",
        },
        Errno::NOTDIR => CopyError::Path {
            path,
            rule: "a part of it is no folder",
        },
        Errno::XDEV => CopyError::Path {
            path,
            rule: "a link leads out of the folder",
        },
        Errno::NAMETOOLONG => CopyError::Path {
            path,
            rule: "a part of it is too long",
        },
        error => CopyError::Io {
            what: format!("open {path}"),
            source: error.into(),
        },
    }
}

/// The file a descriptor stands for, opened anew for use.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_whether_a_folder_or_its_contents_are_meant() {
        for (text, path, slash, contents) in [
            ("/a/b", "a/b", false, false),
            ("a//b/", "a/b", true, false),
            ("/a/.", "a", true, true),
            ("/", "", true, true),
            ("/a/../b", "a/../b", false, false),
            ("/a/b/..", "a/b/..", true, true),
        ] {
            let typed = Typed::parse(text).unwrap();
            assert_eq!(
                (typed.path.as_str(), typed.slash, typed.contents),
                (path, slash, contents),
                "{text}"
            );
        }
    }

    #[test]
    fn paths_above_the_root_are_refused() {
        for text in ["/../../etc/shadow", "..", "a/../../b", "", "/a\0b"] {
            assert!(
                matches!(Typed::parse(text), Err(CopyError::Path { .. })),
                "{text:?}"
            );
        }
        assert!(Typed::parse(&"a/".repeat(2049)).is_err(), "longer than any path");
    }
}
