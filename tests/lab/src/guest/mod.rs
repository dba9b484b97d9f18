//! The test guest: a Debian kernel, busybox, and a writer whose records prove that nothing was lost.

mod console;
mod image;
mod learn;
mod qemu;
#[path = "../../guest/record.rs"]
pub mod record;

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub use console::Console;
pub use image::GuestImage;
pub use qemu::QemuHypervisor;
pub use record::Records;

/// How a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Records per second; 0 = as fast as it can.
    pub rate: u32,
    pub payload_bytes: u32,
    /// Records that a disk keeps.
    pub ring: u32,
    /// How many records further the next one lies.
    pub stride: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self { rate: 20, payload_bytes: 4000, ring: 2048, stride: 1 }
    }
}

impl Load {
    fn records(self) -> record::Ring {
        record::Ring { slots: self.ring.into(), stride: self.stride.into(), payload_bytes: self.payload_bytes as usize }
    }

    /// The kernel's command line. The kernel would try out the emulated timer, and panics when a busy computer lets too few ticks through.
    pub fn command_line(&self, disks: usize) -> String {
        let Self { rate, payload_bytes, ring, stride } = self;
        format!(
            "console=ttyS0 quiet panic=1 no_timer_check drover.disks={disks} drover.rate={rate} drover.payload={payload_bytes} drover.ring={ring} drover.stride={stride}"
        )
    }
}

/// Makes a sparse raw disk with an ext4 file system labelled `drover<index>`, in which a file of `ballast_bytes` noise takes space.
pub fn make_disk(path: &Path, size_bytes: u64, index: usize, ballast_bytes: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(size_bytes))
        .with_context(|| format!("make {}", path.display()))?;
    let content = tempfile::tempdir()?;
    if ballast_bytes > 0 {
        let mut noise = std::fs::File::open("/dev/urandom")?.take(ballast_bytes);
        let mut ballast = std::fs::File::create(content.path().join("ballast"))?;
        std::io::copy(&mut noise, &mut ballast).context("write the ballast of a disk")?;
    }
    let label = format!("drover{index}");
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", &label, "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .arg(content.path())
        .arg(path))
}

/// Reads the records on the raw image of a disk whose VM is off, from a copy whose journal is replayed.
pub fn read_records(disk: &Path, load: Load) -> Result<Records> {
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("disk.img");
    let dump = dir.path().join("records");
    run(Command::new("cp").arg("--sparse=always").arg(disk).arg(&copy))?;
    // 0 = clean, 1 = repaired (the journal was replayed).
    let fsck = Command::new("e2fsck").args(["-p"]).arg(&copy).output().context("run e2fsck")?;
    ensure!(
        matches!(fsck.status.code(), Some(0 | 1)),
        "e2fsck of {}: {}",
        disk.display(),
        String::from_utf8_lossy(&fsck.stdout)
    );
    run(Command::new("debugfs").arg("-R").arg(format!("dump /records {}", dump.display())).arg(&copy))?;
    let file = std::fs::File::open(&dump).with_context(|| format!("{} has no records", disk.display()))?;
    Ok(load.records().check(|offset, slot| file.read_exact_at(slot, offset).is_ok()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
