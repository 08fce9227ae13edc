//! Guests: booted, told what to run, cut from power, and gone with the value that stands for them.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::initramfs;
use crate::kernel::Kernel;
use crate::wire::Wire;

/// How long a guest may take from power on to its first answer: seconds on an idle machine, and it need not be idle.
const BOOT: Duration = Duration::from_secs(90);
/// How long one command may take inside.
const COMMAND: Duration = Duration::from_secs(60);
/// What a command may take longer than the guest allows it, before the guest counts as hung.
const HANG: Duration = Duration::from_secs(20);
/// Time between two looks of [`Guest::until`].
const LOOK: Duration = Duration::from_millis(200);
/// Room on a guest's disk; the file is sparse.
const DISK: u64 = 512 << 20;
/// Most a command may print.
const OUTPUT_MAX: usize = 4 << 20;
/// Begins the last line of an answer.
const MARK: u8 = 0x1e;

/// What all guests of one test share; its folder goes with it.
pub(crate) struct Machines {
    dir: tempfile::TempDir,
    kernel: PathBuf,
    wire: Wire,
}

impl Machines {
    /// Makes what guests boot from, in a folder of its own below `parent`.
    pub(crate) fn new(parent: &Path, kernel: &Kernel, binary: &Path, busybox: &Path) -> Result<Self, Failed> {
        let dir = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
        let root = initramfs::make(kernel, binary, busybox, dir.path())?;
        fs::write(dir.path().join("initramfs"), root)?;
        Ok(Self {
            dir,
            kernel: kernel.image.clone(),
            wire: Wire::default(),
        })
    }

    /// Where all of it is.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// What joins them.
    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// A machine with an empty disk, switched on; one of that name is gone. Its address is 10.77.0.`number`.
    pub(crate) fn guest(&self, name: &str, number: u8) -> Result<Guest, Failed> {
        self.guest_with(name, number, "")
    }

    /// The same, with more words for its kernel; `guest.lacks=MODULE,…` are not loaded.
    pub(crate) fn guest_with(&self, name: &str, number: u8, words: &str) -> Result<Guest, Failed> {
        let disk = self.dir.path().join(format!("{name}.disk"));
        fs::File::create(&disk)?.set_len(DISK)?;
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(&disk)
            .output()?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(format!("mke2fs of {}: {why}", disk.display()).into());
        }
        let mut guest = Guest {
            name: name.into(),
            number,
            words: words.into(),
            dir: self.dir.path().to_owned(),
            kernel: self.kernel.clone(),
            wire: self.wire.clone(),
            running: None,
            commands: 0,
        };
        guest.boot()?;
        Ok(guest)
    }
}

/// One machine.
pub(crate) struct Guest {
    name: String,
    number: u8,
    words: String,
    dir: PathBuf,
    kernel: PathBuf,
    wire: Wire,
    running: Option<Running>,
    commands: u32,
}

/// A machine that is on.
struct Running {
    qemu: Child,
    control: Option<UnixStream>,
}

/// How a command ended inside.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Its exit code.
    pub(crate) status: i32,
    /// Both its outputs.
    pub(crate) text: String,
}

impl Guest {
    /// Switches it on and waits until it takes commands; answers how long that took.
    pub(crate) fn boot(&mut self) -> Result<Duration, Failed> {
        let began = Instant::now();
        let (control, theirs) = UnixStream::pair()?;
        let wire = self.wire.plug(&self.name)?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]);
        // The smaller "microvm" has one timer only, whose first tick is lost when the machine is busy: it hangs.
        command.args(["-M", "q35", "-smp", "1", "-m", "512"]);
        // A plain model with a source of chance, else daemons wait for one. QEMU 7.2 emulates cmpxchg16b with wrong
        // flags now and then, and the kernel's allocator dies of it.
        let emulated = ["-accel", "tcg", "-cpu", "Nehalem,+rdrand,-cx16"];
        command.args(if kvm() {
            ["-accel", "kvm", "-cpu", "host"]
        } else {
            emulated
        });
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-initrd", "initramfs"]);
        // Guards against attacks on processors only cost here, and a panic is to end the machine.
        command.arg("-append").arg(format!(
            "console=ttyS0 loglevel=4 mitigations=off panic=-1 guest.name={} guest.address=10.77.0.{}/24 {}",
            self.name, self.number, self.words
        ));
        command.arg("-serial").arg(format!("file:{}.console", self.name));
        // Its standard input and output are the other ends of our sockets: no file, no port, and gone with either of us.
        command.args([
            "-chardev",
            "socket,id=control,fd=1",
            "-device",
            "virtio-serial-pci",
        ]);
        command.args(["-device", "virtserialport,chardev=control,name=control"]);
        command.args(["-netdev", "dgram,id=wire,local.type=fd,local.str=0", "-device"]);
        command.arg(format!(
            "virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:77:00:{:02x}",
            self.number
        ));
        command
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,file={}.disk", self.name));
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        let errors = fs::File::create(self.dir.join(format!("{}.qemu", self.name)))?;
        let qemu = command
            .current_dir(&self.dir)
            .stdin(Stdio::from(OwnedFd::from(wire)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(errors)
            .spawn()?;
        // The command keeps copies of the other ends until it is dropped, and an end of file is seen after that only.
        drop(command);
        self.running = Some(Running {
            qemu,
            control: Some(control),
        });
        if let Err(failed) = self.command("true", BOOT) {
            let why = failed.message().unwrap_or_default().to_owned();
            return Err(format!("boot: {why}\n{}", self.last_words()).into());
        }
        Ok(began.elapsed())
    }

    /// Ends the machine as a power cut does.
    pub(crate) fn power_cut(&mut self) -> Result<(), Failed> {
        self.wire.pull(&self.name);
        if let Some(mut running) = self.running.take() {
            running.qemu.kill()?;
            running.qemu.wait()?;
        }
        Ok(())
    }

    /// Goes away as a killed test does, without a word; answers whether the machine ended by itself.
    pub(crate) fn abandon(&mut self) -> Result<bool, Failed> {
        let Some(running) = &mut self.running else {
            return Ok(true);
        };
        running.control = None;
        let deadline = Instant::now() + HANG;
        while Instant::now() < deadline {
            if running.qemu.try_wait()?.is_some() {
                return Ok(true);
            }
            std::thread::sleep(LOOK);
        }
        Ok(false)
    }

    /// Process id of the machine.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|r| r.qemu.id())
    }

    /// Runs one line of shell inside.
    pub(crate) fn run(&mut self, line: &str) -> Result<Reply, Failed> {
        self.command(line, COMMAND)
    }

    /// Runs what must succeed; answers what it printed.
    pub(crate) fn ok(&mut self, line: &str) -> Result<String, Failed> {
        let reply = self.run(line)?;
        if reply.status == 0 {
            return Ok(reply.text);
        }
        Err(format!(
            "{}: `{line}` ended with {}:\n{}",
            self.name, reply.status, reply.text
        )
        .into())
    }

    /// Runs a line until what it prints is right; answers that.
    pub(crate) fn until(
        &mut self,
        what: &str,
        within: Duration,
        line: &str,
        right: impl Fn(&str) -> bool,
    ) -> Result<String, Failed> {
        let deadline = Instant::now() + within;
        loop {
            let reply = self.run(line)?;
            if reply.status == 0 && right(&reply.text) {
                return Ok(reply.text);
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "{}: {what}: not after {within:?}; `{line}` ends with {} and says:\n{}",
                    self.name, reply.status, reply.text
                )
                .into());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What is worth reading after a failure: the last lines of the kernel, of QEMU and of the daemon.
    pub(crate) fn last_words(&mut self) -> String {
        let mut text = String::new();
        for kind in ["console", "qemu"] {
            let file = self.dir.join(format!("{}.{kind}", self.name));
            let all = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = all.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            text.push_str(&format!("-- {} {kind}:\n{last}\n", self.name));
        }
        if let Ok(reply) = self.command("dmesg | tail -n 5; tail -n 25 /run/daemon.log", HANG) {
            text.push_str(&format!("-- {} daemon:\n{}", self.name, reply.text));
        }
        text
    }

    /// Gives up the conversation; the machine ends by that or with the value.
    fn deaf(&mut self) {
        if let Some(running) = &mut self.running {
            running.control = None;
        }
    }

    fn command(&mut self, line: &str, within: Duration) -> Result<Reply, Failed> {
        assert!(!line.contains('\n'), "a command is one line");
        self.commands += 1;
        let (number, name) = (self.commands, self.name.clone());
        let control = self.running.as_mut().and_then(|r| r.control.as_mut());
        let control = control.ok_or_else(|| format!("{name} is off"))?;
        let lost = |e: std::io::Error| format!("{name}: `{line}`: {e}");
        writeln!(control, "{number} {} {line}", within.as_secs()).map_err(lost)?;
        let deadline = Instant::now() + within + HANG;
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        loop {
            if let Some(reply) = parse(&bytes, number)? {
                return Ok(reply);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || bytes.len() > OUTPUT_MAX {
                // What comes later would be taken for the answer to another command.
                self.deaf();
                let said = String::from_utf8_lossy(&bytes);
                return Err(format!("{name}: `{line}` does not end; so far it says:\n{said}").into());
            }
            control.set_read_timeout(Some(left)).map_err(lost)?;
            match control.read(&mut part) {
                Ok(0) => return Err(format!("{name} ended while it ran `{line}`").into()),
                Ok(n) => bytes.extend_from_slice(&part[..n]),
                // The deadline is looked at above.
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(lost(e).into()),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.power_cut();
    }
}

/// The answer to a command, once all of it is there.
fn parse(bytes: &[u8], number: u32) -> Result<Option<Reply>, Failed> {
    let Some(at) = bytes.iter().rposition(|b| *b == MARK) else {
        return Ok(None);
    };
    let last = String::from_utf8_lossy(&bytes[at + 1..]);
    let Some(status) = last
        .strip_prefix(&format!("{number} "))
        .and_then(|l| l.strip_suffix('\n'))
    else {
        return Ok(None);
    };
    Ok(Some(Reply {
        status: status.parse()?,
        text: String::from_utf8_lossy(&bytes[..at]).into_owned(),
    }))
}

/// Whether the processor runs guests itself. A device file alone says little: inside some machines it is there, and a
/// guest stops at the first instruction that has to be emulated.
pub(crate) fn kvm() -> bool {
    let open = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    open && processor
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}
