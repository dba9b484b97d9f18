//! AHV's part in the lab: boots a VM of simulated Prism from its disk files.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::learn::Cable;
use super::{Console, GuestImage, Load, run};
use crate::hypervisor::{Hypervisor, VmShape};
use crate::process::Process;

/// Most time that QEMU's monitor may take for an answer.
const MONITOR_DEADLINE: Duration = Duration::from_secs(10);

/// Runs VMs with QEMU: virtio-scsi disks, as AHV has them.
pub struct QemuHypervisor {
    dir: PathBuf,
    image: GuestImage,
    loads: Mutex<HashMap<String, Load>>,
    asides: Mutex<HashMap<String, PathBuf>>,
    deaf: Mutex<HashSet<String>>,
    running: Mutex<HashMap<String, Running>>,
}

struct Running {
    process: Process,
    cables: Vec<Cable>,
}

impl QemuHypervisor {
    /// Consoles and logs go to `dir`.
    pub fn new(dir: &Path, image: &GuestImage) -> Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            image: image.clone(),
            loads: Mutex::default(),
            asides: Mutex::default(),
            deaf: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// How the VM of that name writes: what its boot loader's command line would hold if the guest had one.
    pub fn set_load(&self, name: &str, load: Load) {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), load);
    }

    /// Copies of the disks of the VM of that name, as they are before it boots, go to `dir`: `0.img` and so on.
    pub fn set_aside(&self, name: &str, dir: &Path) {
        self.asides.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), dir.to_owned());
    }

    fn copy_aside(&self, vm: &VmShape) -> Result<()> {
        let aside = self.asides.lock().unwrap_or_else(PoisonError::into_inner).get(&vm.name).cloned();
        let Some(dir) = aside else { return Ok(()) };
        std::fs::create_dir_all(&dir)?;
        for (index, disk) in vm.disks.iter().enumerate() {
            run(Command::new("cp").arg("--sparse=always").arg(disk).arg(dir.join(format!("{index}.img"))))?;
        }
        Ok(())
    }

    /// From its next boot on the guest of the VM of that name ignores its power button.
    pub fn set_deaf(&self, name: &str) {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
    }

    /// The serial console of a VM.
    pub fn console(&self, uuid: &str) -> Console {
        Console::new(&self.dir.join(format!("{uuid}.console")))
    }

    fn monitor(&self, uuid: &str) -> PathBuf {
        self.dir.join(format!("{uuid}.qmp"))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hypervisor for QemuHypervisor {
    fn power_on(&self, vm: &VmShape) -> Result<()> {
        ensure!(!self.is_on(&vm.uuid), "VM {} is on", vm.name);
        self.copy_aside(vm)?;
        let load = self.loads.lock().unwrap_or_else(PoisonError::into_inner).get(&vm.name).copied().unwrap_or_default();
        let deaf = self.deaf.lock().unwrap_or_else(PoisonError::into_inner).contains(&vm.name);
        let command_line = load.command_line(vm.disks.len()) + if deaf { " drover.deaf=1" } else { "" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-machine",
                "pc,accel=tcg",
                "-display",
                "none",
                "-no-reboot",
                "-nodefaults",
                "-m",
                "160",
                "-name",
                &vm.name,
            ])
            .args(["-smp", "1", "-device", "virtio-scsi-pci,id=scsi0"])
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .args(["-append", &command_line])
            .arg("-serial")
            .arg(format!("file:{}", self.dir.join(format!("{}.console", vm.uuid)).display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.monitor(&vm.uuid).display()));
        for (index, disk) in vm.disks.iter().enumerate() {
            command
                .args(["-drive", &format!("file={},if=none,id=d{index},format=raw,cache=none", disk.display())])
                .args(["-device", &format!("scsi-hd,drive=d{index},bus=scsi0.0,scsi-id={index}")]);
        }
        let mut cables = Vec::new();
        for (index, mac) in vm.macs.iter().enumerate() {
            let end = |whose: &str| self.dir.join(format!("{}-n{index}.{whose}", vm.uuid));
            let cable = Cable::plug(&end("cable"))?;
            command
                .args(["-netdev", &cable.netdev(&format!("n{index}"), &end("qemu"))])
                .args(["-device", &format!("virtio-net-pci,netdev=n{index},mac={mac},romfile=")]);
            cables.push(cable);
        }
        let process =
            Process::spawn(&format!("QEMU of {}", vm.name), command, &self.dir.join(format!("{}.log", vm.uuid)))?;
        self.running().insert(vm.uuid.clone(), Running { process, cables });
        Ok(())
    }

    fn shut_down(&self, uuid: &str) -> Result<()> {
        let mut monitor = UnixStream::connect(self.monitor(uuid)).context("connect to QEMU's monitor")?;
        monitor.set_read_timeout(Some(MONITOR_DEADLINE))?;
        let mut answers = BufReader::new(monitor.try_clone()?);
        let mut line = String::new();
        answers.read_line(&mut line).context("read QEMU's greeting")?;
        for command in ["qmp_capabilities", "system_powerdown"] {
            writeln!(monitor, "{}", json!({"execute": command}))?;
            line.clear();
            answers.read_line(&mut line).with_context(|| format!("read the answer to {command}"))?;
            ensure!(!line.contains("\"error\""), "{command}: {line}");
        }
        Ok(())
    }

    fn power_off(&self, uuid: &str) -> Result<()> {
        self.running().remove(uuid);
        Ok(())
    }

    fn is_on(&self, uuid: &str) -> bool {
        self.running().get_mut(uuid).is_some_and(|vm| vm.process.ended().is_none())
    }

    fn learned_ips(&self, uuid: &str) -> Vec<String> {
        self.running().get(uuid).map(|vm| vm.cables.iter().flat_map(Cable::learned).collect()).unwrap_or_default()
    }
}
