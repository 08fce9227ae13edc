//! The root file system of a guest: busybox, our binary, modules and a first process, as a cpio archive in memory.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Failed;

use crate::kernel::Kernel;

/// The first process of a guest.
const INIT: &str = include_str!("init.sh");

/// A cpio archive in the "newc" form that kernels unpack.
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Archive {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inodes: 0,
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), Failed> {
        self.inodes += 1;
        let (size, name) = (u32::try_from(content.len())?, u32::try_from(path.len() + 1)?);
        let fields = [
            self.inodes,
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            size,
            0,
            0,
            device.0,
            device.1,
            name,
            0, // no checksum in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn folder(&mut self, path: &str) -> Result<(), Failed> {
        self.entry(path, 0o040_755, (0, 0), &[])
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Failed> {
        self.entry(path, 0o100_000 | mode, (0, 0), content)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), Failed> {
        self.entry(path, 0o120_777, (0, 0), target.as_bytes())
    }

    fn end(mut self) -> Result<Vec<u8>, Failed> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }
}

/// Makes the archive. `binary` is the rswarm to test; `scratch` a folder for what is made on the way.
pub(crate) fn make(
    kernel: &Kernel,
    binary: &Path,
    busybox: &Path,
    scratch: &Path,
) -> Result<Vec<u8>, Failed> {
    let mut root = Archive::new();
    for folder in [
        "bin",
        "dev",
        "etc",
        "modules",
        "new",
        "proc",
        "run",
        "sys",
        "tmp",
        "var",
        "var/lib",
        "var/lib/rswarm",
    ] {
        root.folder(folder)?;
    }
    // Where the kernel's messages go before anything is mounted.
    root.entry("dev/console", 0o020_600, (5, 1), &[])?;
    let (applets, busybox) = (applets(busybox)?, fs::read(busybox)?);
    root.file("bin/busybox", 0o755, &busybox)?;
    for applet in &applets {
        root.link(&format!("bin/{applet}"), "busybox")?;
    }
    root.file("bin/rswarm", 0o755, &stripped(binary, scratch)?)?;
    root.file("init", 0o755, INIT.as_bytes())?;
    // Without it busybox dies where it looks for a name of any kind.
    root.file("etc/nsswitch.conf", 0o644, b"hosts: files\nservices: files\n")?;
    root.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
    root.file("image.tar", 0o644, &image(&busybox, &applets)?)?;
    let mut order = String::new();
    for module in kernel.load_order()? {
        root.file(&format!("modules/{}.ko", module.name), 0o644, &module.content)?;
        order.push_str(&format!("{}\n", module.name));
    }
    root.file("modules/order", 0o644, order.as_bytes())?;
    root.end()
}

fn applets(busybox: &Path) -> Result<Vec<String>, Failed> {
    let out = Command::new(busybox).arg("--list").output()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text
        .lines()
        .filter(|a| *a != "busybox")
        .map(str::to_owned)
        .collect())
}

/// The binary without what only a debugger reads: a test build is three quarters of that, and the guest holds it in
/// memory. Where there is no `strip` it is taken as it is.
fn stripped(binary: &Path, scratch: &Path) -> Result<Vec<u8>, Failed> {
    let small = scratch.join("rswarm");
    let done = Command::new("strip").arg("-o").arg(&small).arg(binary).status();
    let from = if done.is_ok_and(|s| s.success()) {
        &small
    } else {
        binary
    };
    Ok(fs::read(from)?)
}

/// The tar of a root file system with busybox, for `image import`.
fn image(busybox: &[u8], applets: &[String]) -> Result<Vec<u8>, Failed> {
    let header = |mode, kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut program = header(0o755, tar::EntryType::Regular, u64::try_from(busybox.len())?);
    tar.append_data(&mut program, "bin/busybox", busybox)?;
    for applet in applets {
        let mut link = header(0o777, tar::EntryType::Symlink, 0);
        tar.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}
