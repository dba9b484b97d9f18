//! Prism Element, API v2: the only API that tells which file on the storage is a disk's.

use serde_json::Value;

use super::PrismError;
use super::http::{Access, Call, Server};

/// A client for Prism Element.
#[derive(Clone)]
pub struct PrismElement {
    pub(super) server: Server,
}

const V2: &str = "/PrismGateway/services/rest/v2.0";

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
    /// A client.
    pub fn new(access: &Access) -> Result<Self, PrismError> {
        Ok(Self { server: Server::new(access)? })
    }

    /// The names of the storage containers: also the question whether there is a v2 API at all.
    pub async fn storage_containers(&self) -> Result<Vec<String>, PrismError> {
        let path = format!("{V2}/storage_containers");
        let answer = match self.server.call(&Call::get(&path, &[])).await {
            Err(PrismError::NotFound { tried, .. } | PrismError::Refused { tried, status: 410 | 501, .. }) => {
                return Err(PrismError::ElementV2Gone { tried });
            }
            other => other?,
        };
        let Some(containers) = answer.body["entities"].as_array() else {
            let why = "there is no list of storage containers".into();
            return Err(PrismError::Malformed { tried: format!("GET {path}"), why });
        };
        Ok(containers.iter().filter_map(|container| container["name"].as_str().map(str::to_owned)).collect())
    }

    /// The disks of a VM, CD-ROMs left out. A disk that v2 does not tell everything about is left out too: it cannot be joined.
    pub async fn vm_disks(&self, vm_uuid: &str) -> Result<Vec<ElementDisk>, PrismError> {
        let path = format!("{V2}/vms/{vm_uuid}");
        let answer = match self.server.call(&Call::get(&path, &[("include_vm_disk_config", "true")])).await {
            // This VM is not there, or nothing of v2 is.
            Err(error @ (PrismError::NotFound { .. } | PrismError::Refused { status: 410 | 501, .. })) => {
                return Err(self.storage_containers().await.err().unwrap_or(error));
            }
            other => other?,
        };
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
