//! The kernel a guest boots: Debian's, unpacked by `.ci/guest` and never installed, and modules of it in loading order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::Failed;

/// What the guest's devices and the daemon's data plane need. A host's kernel loads most of it on demand; a guest has
/// no modprobe, so they are loaded before anything runs.
const WANTED: &[&str] = &[
    "virtio_blk",
    "virtio_net",
    "overlay",
    "veth",
    "vxlan",
    "wireguard",
    "tun",
    "nf_tables",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_ct",
    "nft_hash",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
];

/// An unpacked kernel package.
pub(crate) struct Kernel {
    /// What QEMU is given.
    pub(crate) image: PathBuf,
    /// Files of modules by name, compressed or not.
    modules: BTreeMap<String, PathBuf>,
}

/// A module as the kernel takes it.
pub(crate) struct Module {
    /// As `lsmod` shows it.
    pub(crate) name: String,
    /// The ELF file.
    pub(crate) content: Vec<u8>,
}

impl Kernel {
    /// The kernel in a folder that `dpkg -x` filled; absent where none was.
    pub(crate) fn find(folder: &Path) -> Option<Self> {
        let image = fs::read_dir(folder.join("boot"))
            .ok()?
            .flatten()
            .map(|e| e.path())
            .find(|p| file_name(p).starts_with("vmlinuz-"))?;
        // Debian 13 has /lib in /usr.
        let mut modules = BTreeMap::new();
        for lib in ["lib/modules", "usr/lib/modules"] {
            collect(&folder.join(lib), &mut modules);
        }
        Some(Self { image, modules })
    }

    /// The wanted modules and what they depend on, each after what it needs. What is built in is in neither.
    pub(crate) fn load_order(&self) -> Result<Vec<Module>, Failed> {
        let mut order = Vec::new();
        for name in WANTED {
            self.visit(name, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<Module>) -> Result<(), Failed> {
        let Some(file) = self.modules.get(name) else {
            return Ok(());
        };
        if order.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let content = read(file)?;
        for needed in depends(&content) {
            self.visit(&needed, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn collect(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&path, found);
        } else if let Some((stem, _)) = file_name(&path).split_once(".ko") {
            found.insert(stem.replace('-', "_"), path);
        }
    }
}

/// Reads a module. Debian compresses them, which not every kernel undoes by itself.
fn read(file: &Path) -> Result<Vec<u8>, Failed> {
    let plain = fs::read(file)?;
    if !file_name(file).ends_with(".xz") {
        return Ok(plain);
    }
    let out = Command::new("busybox")
        .args(["unxz", "-c"])
        .stdin(Stdio::from(fs::File::open(file)?))
        .output()?;
    if !out.status.success() {
        return Err(format!("busybox unxz of {}: {}", file.display(), out.status).into());
    }
    Ok(out.stdout)
}

/// What `depends=` of its `.modinfo` section names. The package has no `modules.dep`: `depmod` makes it on the machine
/// where the kernel is installed, from the same lines.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|n| !n.is_empty())
        .map(|n| n.replace('-', "_"))
        .collect()
}
