//! What a VM is, as the host side reports it and the plan uses it. Parsed from libvirt's domain XML by [`crate::machine`].

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A source VM. Sizes are bytes. Disk order is the guest's: the boot disk first, then as the domain lists them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// libvirt's domain name.
    #[schemars(length(max = 255))]
    pub name: String,
    /// libvirt's domain uuid: the identity of the machine.
    #[schemars(length(max = 36))]
    pub uuid: String,
    /// `<title>` of the domain, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub title: Option<String>,
    /// Virtual CPUs and how they are grouped.
    pub cpu: Cpu,
    /// Memory the guest may use, in bytes.
    #[schemars(range(max = 281_474_976_710_656_i64))]
    pub memory_bytes: u64,
    /// How the guest boots.
    pub firmware: Firmware,
    /// The emulated board.
    pub board: Board,
    /// Disks that will be moved.
    #[schemars(length(max = 256))]
    pub disks: Vec<Disk>,
    /// Disks that will not be moved (cdrom, read-only, shareable …), and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub left_out: Vec<LeftOutDisk>,
    /// Network interfaces in the guest's order.
    #[schemars(length(max = 64))]
    pub nics: Vec<Nic>,
    /// `<on_poweroff>`: what libvirt does when the guest powers off. Anything but `destroy` cannot be moved.
    #[schemars(length(max = 32))]
    pub on_poweroff: String,
    /// Whether the domain is defined (persistent). A transient one vanishes when it stops, so it cannot be moved.
    pub persistent: bool,
}

/// CPU topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    #[schemars(range(min = 1, max = 1024))]
    pub sockets: u32,
    #[schemars(range(min = 1, max = 1024))]
    pub cores_per_socket: u32,
    #[schemars(range(min = 1, max = 8))]
    pub threads_per_core: u32,
}

/// How a guest boots. Unknown firmware is refused by the parser, not guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Firmware {
    Bios,
    Uefi,
    SecureBoot,
}

/// The emulated board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Board {
    /// i440fx.
    Pc,
    /// Q35.
    Q35,
}

/// The bus a disk hangs on, as libvirt names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskBus {
    Virtio,
    Scsi,
    Sata,
    Ide,
}

/// The bus that the target's disks hang on, as Prism names it. PCI is virtio-blk, and takes 7 disks at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TargetBus {
    /// virtio-scsi, the default.
    #[default]
    Scsi,
    /// virtio-blk.
    Pci,
}

/// Where a disk's bytes are on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskSource {
    /// A file, in `path`.
    File,
    /// A block device, in `path`.
    Block,
    /// Anything else (network, volume …): refused by preflight.
    Other,
}

/// The format of a disk's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskFormat {
    Raw,
    Qcow2,
    /// Anything else: refused by preflight.
    Other,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// libvirt's target device, e.g. `vda`: unique in the domain.
    #[schemars(length(min = 1, max = 32))]
    pub device: String,
    /// The bus it hangs on.
    pub bus: DiskBus,
    /// What holds its bytes.
    pub source: DiskSource,
    /// Path of the file or block device on the host.
    #[schemars(length(max = 4096))]
    pub path: String,
    /// Format of its content.
    pub format: DiskFormat,
    /// Virtual size in bytes. The domain XML does not tell it: the host side asks libvirt (`virDomainGetBlockInfo`); 0 = not known yet.
    #[schemars(range(max = 9_007_199_254_740_991_i64))]
    pub size_bytes: u64,
}

/// A disk that stays behind, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeftOutDisk {
    #[schemars(length(max = 32))]
    pub device: String,
    #[schemars(length(max = 256))]
    pub why: String,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// MAC address, lower case with colons.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// VLAN tag; absent = untagged or told by the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4094))]
    pub vlan: Option<u16>,
    /// libvirt's network or bridge name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub network: Option<String>,
}
