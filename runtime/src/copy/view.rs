//! Where the files of a container are seen: through its first process, or while it does not run through a mount of ours.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{CopyError, Tree};
use crate::container::{ContainerState, Runtime};
use crate::rootfs;
use crate::state_dir::{self, IDENTITY, Identity};

/// Largest file that is read as a whole, such as /etc/passwd.
const TEXT_MAX: u64 = 1 << 20;

impl Runtime {
    /// The files of a container. With `write`, so that they can be written to.
    ///
    /// Of one that runs it is what its first process sees, with volumes and memory file systems. Of one that ended it is
    /// its own files alone, and for writing only one view of them is given at a time.
    ///
    /// # Errors
    /// [`CopyError::Container`] when there is none, it was not started yet, or its files were freed.
    pub fn tree(&self, id: &str, write: bool) -> Result<Tree, CopyError> {
        let failed = |problem: String| CopyError::Container {
            id: id.into(),
            problem,
        };
        let dir = self.dir(id);
        let none = || failed("there is no such container".into());
        let state = self.inspect(id).ok_or_else(none)?.state;
        if let (ContainerState::Running { .. }, Some(running)) = (state, state_dir::running(&dir)) {
            let path = format!("/proc/{}/root", running.pid);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(path, flags, Mode::empty());
            // Asked after opening: had the number gone to another process by then, it would show.
            if !state_dir::alive(running.pid, running.pid_start) {
                return Err(failed("it has just ended: try again".into()));
            }
            return Ok(Tree::new(root.map_err(|e| failed(e.to_string()))?, None));
        }
        if state == ContainerState::Created {
            return Err(failed("it was not started yet".into()));
        }
        let identity: Identity = state_dir::read(&dir, IDENTITY).ok_or_else(none)?;
        if !dir.join("upper").exists() {
            return Err(failed("they were freed when it ended as it was meant to".into()));
        }
        let lock = |dir: &std::path::Path| -> Result<OwnedFd, CopyError> {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| failed(e.to_string()))?;
            rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| failed("another copy to it is under way: try again when it is done".into()))?;
            Ok(folder)
        };
        let held = write.then(|| lock(&dir)).transpose()?;
        let root = rootfs::view(&identity.layers, &dir, write);
        Ok(Tree::new(root.map_err(|e| failed(e.to_string()))?, held))
    }
}

impl Tree {
    /// A small text file; absent when it is not there or is anything else.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        use std::io::Read;
        let file = self.file(path)?;
        let mut text = String::new();
        file.take(TEXT_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }
}
