//! What the store holds: clusters, containers and subnets that are given, VMs and their devices that come and go.

use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The bus types that AHV names, with how many devices each takes.
const BUSES: [(&str, u32); 4] = [("SCSI", 256), ("IDE", 4), ("PCI", 7), ("SATA", 6)];

/// Things that exist from the start and never change.
pub struct Inventory {
    pub cluster: Named,
    /// Prism Central lists itself among the clusters.
    pub prism_central: Named,
    pub host_uuid: String,
    pub container: Named,
    pub subnets: Vec<Subnet>,
}

/// An entity of which only the name matters.
pub struct Named {
    pub uuid: String,
    pub name: String,
}

impl Named {
    pub fn new(kind: &str, name: &str) -> Self {
        Self { uuid: given_uuid(kind, name), name: name.to_owned() }
    }
}

/// A category. Unlike the rest of the inventory, categories are made while the simulator runs.
#[derive(Clone, Debug)]
pub struct Category {
    pub uuid: String,
    pub key: String,
    pub value: String,
}

/// A VLAN network.
pub struct Subnet {
    pub uuid: String,
    pub name: String,
    pub vlan: u16,
}

/// A VM of the simulated cluster.
#[derive(Clone, Debug)]
pub struct Vm {
    pub uuid: String,
    /// The writable fields of the v4 object, in v4 spelling, without disks, NICs and CD-ROMs.
    pub settings: Map<String, Value>,
    /// In the order in which they were added.
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// v4 CD-ROM objects; they have no file behind them.
    pub cd_roms: Vec<Value>,
    /// Counts changes, a guest's own power-off included; the ETag is made of it.
    pub version: u64,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// What the hypervisor said when it was last asked.
    pub was_on: bool,
}

impl Vm {
    /// The VM's name; not unique.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// A text among the settings, empty if it is absent.
    pub fn text(&self, key: &str) -> &str {
        self.settings.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number among the settings.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.settings.get(key).and_then(Value::as_u64)
    }

    /// The header that a change has to name. Opaque to clients; its first half is base64 of a media type.
    pub fn etag(&self) -> String {
        format!("YXBwbGljYXRpb24vanNvbg==:{}", self.version)
    }

    /// Counts a change.
    pub fn touch(&mut self) {
        self.version += 1;
        self.updated = Timestamp::now();
    }

    /// Disks in the order in which a guest finds them.
    pub fn disks_by_address(&self) -> Vec<&Disk> {
        let mut disks: Vec<&Disk> = self.disks.iter().collect();
        disks.sort_by(|a, b| a.address.cmp(&b.address));
        disks
    }
}

/// Where a disk sits. Ordered by bus, then index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskAddress {
    /// One of SCSI, IDE, PCI, SATA.
    pub bus: String,
    pub index: u32,
}

impl DiskAddress {
    /// The number of devices that a bus takes; nothing for an unknown bus.
    pub fn bus_limit(bus: &str) -> Option<u32> {
        BUSES.iter().find(|(name, _)| *name == bus).map(|(_, limit)| *limit)
    }
}

/// A disk of a VM. It has two uuids: the device's, which v3 and v4 show, and its file's, which only v2 shows too.
#[derive(Clone, Debug)]
pub struct Disk {
    pub device_uuid: String,
    pub vmdisk_uuid: String,
    pub address: DiskAddress,
    pub size_bytes: u64,
    pub container_uuid: String,
}

/// A network card.
#[derive(Clone, Debug)]
pub struct Nic {
    pub uuid: String,
    pub mac: String,
    pub model: String,
    pub is_connected: bool,
    pub nic_type: String,
    pub vlan_mode: String,
    pub subnet_uuid: String,
    /// `ipv4Config` as it was given.
    pub ipv4_config: Option<Value>,
}

/// The uuid of something that a test gives: the same in every run, so that files may name it.
pub fn given_uuid(kind: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{kind} {name}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// A random uuid in lower case.
pub fn new_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
