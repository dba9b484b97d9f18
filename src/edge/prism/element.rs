//! Prism Element, API v2: the only API that tells which file on the storage is a disk's.

use serde_json::Value;

use super::PrismError;
use super::http::{Call, Server};

/// A client for Prism Element.
#[derive(Clone)]
pub struct PrismElement {
    server: Server,
}

/// A disk of a VM as v2 shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementDisk {
    /// The v4 API's `extId` of the disk.
    pub device_uuid: String,
    /// Names the file.
    pub vmdisk_uuid: String,
    /// Path on the NFS server, starting with the container.
    pub nfs_path: String,
    pub index: u32,
    pub size_bytes: u64,
}

impl PrismElement {
    /// A client with basic authentication; see [`Server::new`] for `ca_pem`.
    pub fn new(url: &str, username: &str, password: &str, ca_pem: Option<&str>) -> Result<Self, PrismError> {
        Ok(Self { server: Server::new(url, username, password, ca_pem)? })
    }

    /// The disks of a VM, CD-ROMs left out. A disk that v2 does not tell everything about is left out too: it cannot be joined.
    pub async fn vm_disks(&self, vm_uuid: &str) -> Result<Vec<ElementDisk>, PrismError> {
        let path = format!("/PrismGateway/services/rest/v2.0/vms/{vm_uuid}");
        let answer = self.server.call(&Call::get(&path, &[("include_vm_disk_config", "true")])).await?;
        let disks = answer.body["vm_disk_info"].as_array().cloned().unwrap_or_default();
        Ok(disks.iter().filter(|disk| disk["is_cdrom"] != true).filter_map(disk).collect())
    }
}

fn disk(disk: &Value) -> Option<ElementDisk> {
    let address = &disk["disk_address"];
    let text = |name: &str| address[name].as_str().map(str::to_owned);
    Some(ElementDisk {
        device_uuid: text("device_uuid")?,
        vmdisk_uuid: text("vmdisk_uuid")?,
        nfs_path: text("ndfs_filepath")?,
        index: u32::try_from(address["device_index"].as_u64()?).ok()?,
        size_bytes: disk["size"].as_u64()?,
    })
}
