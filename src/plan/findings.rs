//! Preflight: what stands in the way of moving a machine, or is worth knowing before one says yes.

use std::fmt;

use crate::api::machine::{Board, Disk, DiskFormat, DiskSource, Firmware, Machine, TargetBus};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The machine cannot be moved as it is.
    Blocks,
    /// It can be moved, but somebody should know.
    Informs,
}

/// Something found about a machine, for the person who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// One CamelCase word.
    pub reason: &'static str,
    /// What was found.
    pub message: String,
    /// What to do about it; empty when nothing needs doing.
    pub what_to_do: &'static str,
}

impl Finding {
    /// Whether the machine cannot be moved because of it.
    pub fn blocks(&self) -> bool {
        self.severity == Severity::Blocks
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.reason, self.message)?;
        if self.what_to_do.is_empty() { Ok(()) } else { write!(out, " ({})", self.what_to_do) }
    }
}

fn blocks(reason: &'static str, message: impl Into<String>, what_to_do: &'static str) -> Finding {
    Finding { severity: Severity::Blocks, reason, message: message.into(), what_to_do }
}

/// Everything worth saying about a machine. `vlans` are those for which the target names a subnet; `bus` is that of the target's disks.
pub fn findings(machine: &Machine, hostname: &str, vlans: &[u16], bus: TargetBus) -> Vec<Finding> {
    let mut found = Vec::new();
    if !machine.persistent {
        let message = format!(
            "the domain {} is transient: it would vanish when it is shut down, and with it the way back",
            machine.name
        );
        found.push(blocks("TransientDomain", message, "define it with virsh define"));
    }
    if machine.on_poweroff != "destroy" {
        let message = format!("on_poweroff is {}: the source would not stay off", machine.on_poweroff);
        found.push(blocks("OnPoweroff", message, "set <on_poweroff>destroy</on_poweroff>"));
    }
    if machine.disks.is_empty() {
        found.push(blocks("NoDisks", "no disk of the domain can be moved", "see which were left out and why"));
    }
    found.extend(too_many_disks(machine, bus));
    if machine.firmware == Firmware::SecureBoot && machine.board != Board::Q35 {
        let message = "the domain boots with secure boot on another board than Q35: AHV has it on Q35 only";
        found.push(blocks(
            "SecureBootWithoutQ35",
            message,
            "define the domain with machine='q35', or without secure boot",
        ));
    }
    if hostname.len() > 80 {
        found.push(blocks("NameTooLong", "AHV takes names of at most 80 characters", "shorten the hostname"));
    }
    for disk in &machine.disks {
        found.extend(disk_findings(disk));
    }
    for nic in &machine.nics {
        let vlan = nic.vlan.unwrap_or(0);
        if !vlans.contains(&vlan) {
            let message =
                format!("the interface {} is on VLAN {vlan}, for which the NutanixCluster names no subnet", nic.mac);
            found.push(blocks("NoSubnetForVlan", message, "add it to spec.subnets; vlan 0 is untagged"));
        }
    }
    found.extend(machine.left_out.iter().map(|disk| Finding {
        severity: Severity::Informs,
        reason: "DiskLeftOut",
        message: format!("disk {} stays behind: {}", disk.device, disk.why),
        what_to_do: "",
    }));
    found
}

/// Veeam's documentation of AHV's limits.
fn too_many_disks(machine: &Machine, bus: TargetBus) -> Option<Finding> {
    let (most, what_to_do) = match bus {
        TargetBus::Scsi => (256, "detach some"),
        TargetBus::Pci => (7, "remove spec.overrides.diskBus, for SCSI takes 256, or detach some"),
    };
    let count = machine.disks.len();
    let message = format!("{count} disks are more than the {most} that AHV takes on this bus");
    (count > most).then(|| blocks("TooManyDisks", message, what_to_do))
}

fn disk_findings(disk: &Disk) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = &disk.device;
    match disk.source {
        DiskSource::File | DiskSource::Block => {}
        DiskSource::Other => {
            let message = format!("disk {name} is neither a file nor a block device of the host");
            found.push(blocks(
                "UnsupportedDiskSource",
                message,
                "network disks cannot be proven off; move it to local storage first",
            ));
        }
    }
    match disk.format {
        DiskFormat::Raw => {}
        DiskFormat::Qcow2 | DiskFormat::Other => {
            let message = format!("disk {name} is not raw: verifying other formats is not built yet");
            found.push(blocks("UnsupportedDiskFormat", message, "convert it to raw"));
        }
    }
    if disk.size_bytes == 0 {
        found.push(blocks(
            "DiskSizeUnknown",
            format!("libvirt did not tell the size of disk {name}"),
            "see virsh domblkinfo",
        ));
    } else if !disk.size_bytes.is_multiple_of(512) {
        let message = format!("disk {name} has {} bytes, which is no multiple of 512", disk.size_bytes);
        found.push(blocks("OddDiskSize", message, "grow it to a multiple of 512 bytes"));
    }
    found
}
